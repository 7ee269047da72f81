"""A throw-away Slurm cluster of several virtual nodes on this one machine, for tests with real jobs.

Nothing of the machine's own Slurm is used or touched: all configuration, keys, state and logs lie in one folder, the
daemons are started directly (no systemd) and everything that is shared on a machine (ports, addresses, names of
bridges, namespaces and cgroups, job ids) carries the cluster's own number, so several clusters can run at once.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

INSTALL = "apt-get install -y slurm-wlm munge iproute2"

PROGRAMS = (
    *("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo"),
    *("ip", "nsenter", "unshare"),
)
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])  # daemons lie in sbin
FREEZER = Path("/sys/fs/cgroup/freezer")  # what proctrack/cgroup needs of cgroup v1

MAX_NODES = 40
NUMBERS = range(1, 250)  # a cluster's number is the third byte of its addresses
START_TIMEOUT_S = 30.0
POLL_S = 0.2


def missing_programs() -> list[str]:
    """The programs a cluster needs and this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program, path=SEARCH_PATH) is None]


class Cluster:
    """Slurm's real daemons, with one slurmd per virtual node; start it with `with`, or with start() and stop().

    Args:
        folder: An empty folder for configuration, state and logs; it stays after stop().
        num_nodes: How many nodes; their names are in `nodes` after start().
        proctrack: How Slurm knows the processes of a step. "cgroup" (root and the v1 freezer) is what production has:
            it signals only the first process of each task, and loses no process. "linuxproc" follows parents: it
            signals the descendants too, and loses those whose parent was killed.
        gpus: Fake GPUs of each node; None for none at all.
        send_user_signal: Preemption sends the job's --signal instead of SIGTERM.
        are_hosts: Each node is a host of its own with network namespace, address and hostname; otherwise all nodes are
            127.0.0.1 with ports of their own.
        node_cpus: CPUs of each node, also more than this machine has.
        grace_s: GraceTime of the partition "low": between the preemption's signal and the end.
        kill_wait_s: KillWait: between SIGTERM and SIGKILL.
        slurmd_timeout_s: SlurmdTimeout; a dead node is declared down 15 to 18 s after this.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_nodes: int = 4,
        proctrack: Literal["cgroup", "linuxproc"] = "cgroup",
        gpus: Sequence[int] | None = None,
        send_user_signal: bool = False,
        are_hosts: bool = True,
        node_cpus: int = 8,
        grace_s: int = 8,
        kill_wait_s: int = 8,
        slurmd_timeout_s: int = 10,
    ) -> None:
        if not 1 <= num_nodes <= MAX_NODES:
            raise ValueError(f"num_nodes is {num_nodes}, not in 1..{MAX_NODES}")
        self.folder = folder.resolve()
        self.num_nodes = num_nodes
        self.proctrack = proctrack
        self.gpus = list(gpus) if gpus is not None else [0] * num_nodes
        if len(self.gpus) != num_nodes:
            raise ValueError(f"{len(self.gpus)} counts of GPUs for {num_nodes} nodes")
        self.send_user_signal = send_user_signal
        self.are_hosts = are_hosts
        self.node_cpus = node_cpus
        self.grace_s = grace_s
        self.kill_wait_s = kill_wait_s
        self.slurmd_timeout_s = slurmd_timeout_s
        self.nodes: list[str] = []
        self.number = 0
        self.environment = {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf"), "PATH": SEARCH_PATH}
        self._claim: socket.socket | None = None
        self._munge_folder: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Start all daemons and wait until every node is idle.

        Raises:
            RuntimeError: The cluster did not come up; the text has the last lines of its logs. Nothing is left running.
        """
        self._claim, self.number = _claim_number(self.num_nodes)
        self.nodes = [f"c{self.number}n{index}" for index in range(1, self.num_nodes + 1)]
        try:
            self._write_configuration()
            if self.are_hosts:
                self._start_network()
            self._start_munge()
            self._start_daemon("slurmctld", "-c")
            for node in self.nodes:
                self.start_node(node)
            self.wait_idle(timeout=START_TIMEOUT_S)
        except (RuntimeError, TimeoutError, subprocess.SubprocessError, OSError) as error:
            told = f"the Slurm cluster did not start: {error}\n{self._last_log_lines()}"
            self.stop()
            raise RuntimeError(told) from error
        except BaseException:  # an interrupt: the caller has no cluster to stop yet
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of this cluster, also orphans of jobs, and remove namespaces, links and cgroups."""
        if self._claim is None:
            return
        self._thaw()  # a frozen process does not die
        _kill_all(self._every_process)  # no kind word first: the state is thrown away
        self._stop_network()
        self._remove_cgroups()
        shutil.rmtree(self.folder / "dev", ignore_errors=True)
        if self._munge_folder is not None:
            shutil.rmtree(self._munge_folder, ignore_errors=True)
            self._munge_folder = None
        self._claim.close()
        self._claim = None

    def _start_munge(self) -> None:
        # a folder of its own: a socket's path must be short, and munged refuses one below a folder that others cannot
        # enter, such as pytest's
        folder = self._munge_folder
        assert folder is not None
        folder.chmod(0o755)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._start_daemon(
            "munged",
            f"--key-file={key}",
            f"--socket={folder / 'socket'}",
            f"--pid-file={folder / 'pid'}",
            f"--seed-file={folder / 'seed'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
            "--num-threads=2",
        )

    def _start_daemon(self, *argv: str, **env: str) -> None:
        """Run a program that goes to the background by itself."""
        log = self.folder / "log" / "start.log"
        with log.open("ab") as output:  # not a pipe: a daemon may hold it open
            code = subprocess.run(
                argv, env=self._client_environment(env), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            ).returncode
        if code != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {code}")

    def _last_log_lines(self, count: int = 8) -> str:
        logs = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{log.name}:\n{_tail(log, count)}" for log in logs)

    # -------------------------------------------------------------------------------------------- configuration

    def _write_configuration(self) -> None:
        for name in ("etc", "log", "run", "state", "spool", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._munge_folder = Path(tempfile.mkdtemp(prefix="munge-", dir="/tmp"))
        etc = self.folder / "etc"
        (etc / "slurm.conf").write_text("\n".join(self._slurm_conf()) + "\n")
        # without its plugin named, slurmd searches for a cgroup mount, and dies where there is none, even if no plugin
        # uses cgroups
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (etc / "gres.conf").write_text("\n".join(self._gres_conf()) + "\n")

    def _slurm_conf(self) -> Iterator[str]:
        user = pwd.getpwuid(os.getuid()).pw_name
        controller = self._controller_address()
        yield from [
            f"ClusterName=c{self.number}",
            f"SlurmctldHost={_hostname()}({controller})",
            f"SlurmctldPort={_first_port(self.number)}",
            f"SlurmUser={user}",
            f"SlurmdUser={user}",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # cred_expire: a requeued job waits this long before it may start again. The default is 120 s; with 5 it is
            # back after 6 to 8 s. Less than 5 is refused without a sign, and the default taken
            f"AuthInfo=socket={self._munge_folder}/socket,cred_expire=5",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/run/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/run/slurmd.%n.pid",
            f"SlurmctldLogFile={self.folder}/log/slurmctld.log",
            f"SlurmdLogFile={self.folder}/log/slurmd.%n.log",
            f"ProctrackType=proctrack/{self.proctrack}",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SwitchType=switch/none",
            "JobAcctGatherType=jobacct_gather/none",
            "AccountingStorageType=accounting_storage/none",
            "MinJobAge=3600",  # without accounting, an ended job is known only as long as this
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "SlurmdParameters=config_overrides",  # believe the CPUs and memory below
            "SchedulerType=sched/backfill",
            "SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0",
            "PriorityType=priority/basic",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "JobRequeue=1",
            # own to each cluster: jobs derive their ports from their ids
            f"FirstJobId={self.number * 100_000 + 1}",
            # a node that was down for want of answers is used again as soon as it answers; with 2, set_down() would be
            # undone by the next message of its slurmd
            "ReturnToService=1",
            f"KillWait={self.kill_wait_s}",
            f"SlurmdTimeout={self.slurmd_timeout_s}",
            "MessageTimeout=10",
            "UnkillableStepTimeout=30",
            "PropagateResourceLimits=NONE",
            "GresTypes=gpu",
        ]
        if self.send_user_signal:  # 22.05 has it here; PreemptParameters came later, and is an error before
            yield "SlurmctldParameters=preempt_send_user_signal"
        yield from self._node_lines()
        common = "Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP"
        yield f"PartitionName=low {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={self.grace_s}"
        yield f"PartitionName=high {common} Default=NO PriorityTier=10 PreemptMode=OFF"

    def _node_lines(self) -> Iterator[str]:
        cpus = f"CPUs={self.node_cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={self.node_cpus} ThreadsPerCore=1"
        for index, (node, gpus) in enumerate(zip(self.nodes, self.gpus, strict=True), start=1):
            hostname = node if self.are_hosts else _hostname()
            gres = f" Gres=gpu:{gpus}" if gpus else ""
            yield (
                f"NodeName={node} NodeHostname={hostname} NodeAddr={self.address(node)} "
                f"Port={_first_port(self.number) + index} {cpus} RealMemory=4000{gres} State=UNKNOWN"
            )

    def _gres_conf(self) -> Iterator[str]:
        yield "AutoDetect=off"
        # a GPU's file must be a device: with a regular file CUDA_VISIBLE_DEVICES is never set. A second /dev/null does
        for index in range(max(self.gpus)):
            os.mknod(self.folder / "dev" / f"gpu{index}", 0o20666, os.makedev(1, 3))
        for node, gpus in zip(self.nodes, self.gpus, strict=True):
            if gpus:
                yield f"NodeName={node} Name=gpu File={self.folder}/dev/gpu[0-{gpus - 1}]"

    # -------------------------------------------------------------------------------------------------- network

    def address(self, node: str) -> str:
        """The node's network address."""
        return f"10.77.{self.number}.{self.nodes.index(node) + 1}" if self.are_hosts else "127.0.0.1"

    def cut(self, node: str) -> None:
        """Take the node's link down: no packet comes through, and nobody gets an error."""
        self._set_link(node, "down")

    def heal(self, node: str) -> None:
        """Take the node's link up again."""
        self._set_link(node, "up")

    def run_on(self, node: str, *argv: str, timeout: float = 30) -> str:
        """Run a command on the node (but not as a job) and return what it wrote to stdout."""
        return self._run([*self._enter(node), *argv], timeout=timeout, env={"SLURMD_NODENAME": node})

    def start_on(self, node: str, *argv: str) -> subprocess.Popen[bytes]:
        """Start a command on a node's host; the caller ends it."""
        return subprocess.Popen([*self._enter(node), *argv], env=self._client_environment({}), stdin=subprocess.DEVNULL)

    def _set_link(self, node: str, state: str) -> None:
        if not self.are_hosts:
            raise RuntimeError("a node has a link of its own only with are_hosts=True")
        _ip("link", "set", self._link(node), state)

    @property
    def _bridge(self) -> str:
        return f"slurm-c{self.number}"

    def _link(self, node: str) -> str:
        """The name of the node's network namespace, and of the outer end of its link (15 characters at most)."""
        return f"slurm-{node}"

    def _controller_address(self) -> str:
        return f"10.77.{self.number}.254" if self.are_hosts else "127.0.0.1"

    def _start_network(self) -> None:
        """One bridge, and per node a network namespace with a link to it."""
        controller = self._controller_address()
        hosts = {"127.0.0.1": "localhost", controller: _hostname()} | {self.address(node): node for node in self.nodes}
        text = "".join(f"{address} {name}\n" for address, name in hosts.items())
        (self.folder / "etc" / "hosts").write_text(text)
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{controller}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node in self.nodes:
            link = self._link(node)
            _ip("netns", "add", link)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", link)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", link, "link", "set", "lo", "up")
            _ip("-n", link, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            _ip("-n", link, "link", "set", "eth0", "up")

    def _stop_network(self) -> None:
        if not self.are_hosts:
            return
        for node in self.nodes:
            # the outer end first: a namespace is taken down in the background, and its links with it
            _ip("link", "del", self._link(node), check=False)
            _ip("netns", "del", self._link(node), check=False)
        _ip("link", "del", self._bridge, check=False)

    def _enter(self, node: str) -> list[str]:
        """The words before a command that make it run on the node."""
        if not self.are_hosts:
            return []
        # not `ip netns exec`: that mounts a fresh /sys, without the cgroups that slurmd needs
        script = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self._link(node)}"),
            *("unshare", "--uts", "--mount", "--propagation", "private"),
            *("sh", "-c", script, str(self.folder / "etc" / "hosts"), node),
        ]

    # ---------------------------------------------------------------------------------------------------- nodes

    def start_node(self, node: str) -> None:
        """Start the node's slurmd; it does not wait until the node is idle."""
        # SLURMD_NODENAME: Slurm gives it to jobs only; here it makes slurmd and its step daemons known by their node
        self._start_daemon(*self._enter(node), "slurmd", "-N", node, SLURMD_NODENAME=node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to all that runs on the node, as if it lost its power; peers see closed sockets, unless it is cut."""
        self._thaw(node)
        daemons = {pid for pid in self._node_processes(node) if _program(pid).startswith("slurm")}
        _signal(daemons)  # first, so that none can report the death of its tasks
        _kill_all(lambda: self._node_processes(node))

    def set_down(self, node: str) -> None:
        """Declare the node down: its jobs are ended or requeued."""
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def set_up(self, node: str) -> None:
        """Declare the node usable again."""
        self.command("scontrol", "update", f"nodename={node}", "state=resume")

    def node_state(self, node: str) -> str:
        """The node's state as sinfo has it in short: idle, mix, alloc, comp, down; with * where it does not answer."""
        return self.command("sinfo", "-h", "-N", "-p", "low", "-n", node, "-o", "%t").strip()

    def wait_idle(self, *nodes: str, timeout: float = 60) -> None:
        """Wait until these nodes (all, if none is named) answer and have no job."""
        deadline = time.monotonic() + timeout
        wanted = set(nodes or self.nodes)
        while True:
            listed = self.command("sinfo", "-h", "-N", "-p", "low", "-o", "%N %t", check=False)
            states = dict(line.split() for line in listed.splitlines())
            if all(states.get(node) == "idle" for node in wanted):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"nodes are not idle after {timeout} s: {states}")
            time.sleep(POLL_S / 2)

    # ----------------------------------------------------------------------------------------- clients and jobs

    def command(self, *argv: str, check: bool = True, timeout: float = 30, **env: str) -> str:
        """Run a client command and return what it wrote to stdout.

        Raises:
            RuntimeError: It failed, and check is set; the text has what it wrote.
        """
        return self._run(argv, check=check, timeout=timeout, env=env)

    def submit(self, *argv: str, cwd: Path, **env: str) -> str:
        """Submit a job by sbatch with these arguments, and return its id."""
        answer = self._run(["sbatch", "--parsable", *argv], cwd=cwd, env=env)
        return answer.strip().split(";")[0]

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job, of an array's task ("12_3") or of a part of a het job ("12+1")."""
        lines = self.command("scontrol", "-o", "show", "job", job_id).splitlines()
        return _fields(lines[0]) if lines else {}

    def wait_state(self, job_id: str, *states: str, timeout: float = 60) -> str:
        """Wait until the job is in one of the states, and return which.

        Raises:
            TimeoutError: It was not; the text has the job's fields and the end of its output.
        """
        deadline = time.monotonic() + timeout
        while (fields := self.job(job_id)).get("JobState") not in states:
            if time.monotonic() > deadline:
                told = (
                    f"job {job_id} is {fields.get('JobState')} after {timeout} s, not {' or '.join(states)}: {fields}"
                )
                output = Path(fields.get("StdOut", ""))
                raise TimeoutError(f"{told}\n{output}:\n{_tail(output, 40)}" if output.is_file() else told)
            time.sleep(POLL_S)
        return fields["JobState"]

    def _client_environment(self, env: dict[str, str]) -> dict[str, str]:
        # a job that these tests may themselves run in is none of this cluster's
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH_", "SRUN_", "SINFO_"))}
        return outer | self.environment | env

    def _run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float = 30,
        cwd: Path | None = None,
        env: dict[str, str],
    ) -> str:
        done = subprocess.run(
            argv,
            env=self._client_environment(env),
            cwd=cwd,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    # ------------------------------------------------------------------------------------------------ processes

    def processes(self, **env: str) -> list[int]:
        """The ids of this cluster's processes (no zombies) that were started with all these environment variables."""
        wanted = {f"{name}={value}".encode() for name, value in env.items()}
        wanted.add(f"SLURM_CONF={self.environment['SLURM_CONF']}".encode())
        return [pid for pid in _process_ids() if wanted <= _started_with(pid)]

    def _every_process(self) -> set[int]:
        found = set(self.processes())
        for node in self.nodes:
            found |= self._inside(node)
        return found

    def _node_processes(self, node: str) -> set[int]:
        return set(self.processes(SLURMD_NODENAME=node)) | self._inside(node)

    def _inside(self, node: str) -> set[int]:
        """The processes in the node's network namespace and cgroup: also those that changed their environment."""
        found = {int(pid) for file in self._cgroup(node).rglob("cgroup.procs") for pid in _read(file).split()}
        if self.are_hosts:
            found |= {int(pid) for pid in _ip("netns", "pids", self._link(node), check=False).split()}
        return {pid for pid in found if not _is_zombie(pid)}

    def _cgroup(self, node: str) -> Path:
        return FREEZER / f"slurm_{node}"

    def _thaw(self, *nodes: str) -> None:
        """Let frozen processes go on: a step daemon freezes its step to kill it, and may have died in between."""
        for node in nodes or self.nodes:
            for file in self._cgroup(node).rglob("freezer.state"):
                with suppress(OSError):
                    file.write_text("THAWED")

    def _remove_cgroups(self, timeout: float = 5) -> None:
        deadline = time.monotonic() + timeout
        for node in self.nodes:
            top = self._cgroup(node)
            while top.exists() and time.monotonic() < deadline:
                for folder, _, _ in os.walk(top, topdown=False):
                    with suppress(OSError):  # busy until the last zombie in it is gone
                        os.rmdir(folder)
                time.sleep(0.02 if top.exists() else 0)


def _claim_number(num_nodes: int) -> tuple[socket.socket, int]:
    """Take a number that no cluster of this machine has; it is ours until the returned socket is closed."""
    for number in NUMBERS:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0slurm-test-cluster-{number}")  # without a file: it goes with the process
        except OSError:
            claim.close()
            continue
        ports = range(_first_port(number), _first_port(number) + num_nodes + 1)
        # a cluster whose process was killed may have left its network, processes or groups
        is_clean = (
            not Path(f"/sys/class/net/slurm-c{number}").exists() and not (FREEZER / f"slurm_c{number}n1").exists()
        )
        if is_clean and all(_is_free(port) for port in ports):
            return claim, number
        claim.close()
    raise RuntimeError(f"all {len(NUMBERS)} numbers of clusters are taken on this machine")


def _first_port(number: int) -> int:
    """The controller's port, with the nodes' after it: below the range that the kernel gives out by itself."""
    return 20_000 + 50 * number


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _hostname() -> str:
    return socket.gethostname().split(".")[0]


def _ip(*argv: str, check: bool = True) -> str:
    program = shutil.which("ip", path=SEARCH_PATH) or "ip"
    done = subprocess.run([program, *argv], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _fields(line: str) -> dict[str, str]:
    """Split "A=1 B=two words C/D=3"; a value may hold blanks and equal signs."""
    parts = re.split(r"(?:^|\s+)([A-Z][\w/:]*)=", line.strip())[1:]
    fields: dict[str, str] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        fields.setdefault(name, value)
    return fields


def _tail(path: Path, count: int) -> str:
    return "\n".join(_read(path).splitlines()[-count:])


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _started_with(pid: int) -> set[bytes]:
    """The environment a process was started with; empty for a zombie and where it is gone."""
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _program(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/comm")).strip()


def _is_zombie(pid: int) -> bool:
    # not os.kill(pid, 0), which finds a zombie too: process 1 may be slow to reap the daemons
    state = re.search(r"^State:\s+(\w)", _read(Path(f"/proc/{pid}/status")), re.MULTILINE)
    return state is None or state[1] in "ZX"


def _signal(pids: set[int]) -> None:
    for pid in pids - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _kill_all(find: Callable[[], set[int]], timeout: float = 5) -> None:
    """SIGKILL to all that find() returns, again and again until it finds none: some may fork meanwhile."""
    deadline = time.monotonic() + timeout
    while pids := find() - {os.getpid()}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(pids)} do not die")
        _signal(pids)
        time.sleep(0.02)
