"""One per node: starts `accelerate launch` there, and is the only process that signals are meant for.

It learns that the run is to stop from a signal, from the attempt's stop request in the run folder, or
from the clock; says so to the node's processes by a file; and ends everything at once where a newer
attempt owns the run. Usage: python -m launch.agent PLAN
"""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from launch.command import accelerate_argv, default_environment, node_environment
from launch.devices import count_cpus, count_gpus, share_machine
from launch.plan import Plan, request_stop
from launch.watch import Sign, Watchdog
from launch.worker import die_with_parent
from nn_train.attempts import Fence
from nn_train.errors import UserError

FENCED = 94
TICK_S, LOOK_S = 0.05, 0.5  # between two looks at the child, and at the run folder
TELL_S = 2.0  # for the other nodes' agents to have their processes write their stacks
SWEEP_S = 5.0  # how long helpers of an ended world may take to end by themselves
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclasses.dataclass(frozen=True)
class Node:
    """This host's part in an attempt."""

    rank: int
    processes: int
    threads: int


def find_node(plan: Plan, environment: Mapping[str, str]) -> Node:
    """Which node this is and what it starts; known only here, on the node.

    Raises:
        UserError: no GPU where one process per GPU is asked for, or more processes than GPUs.
    """
    slurm = environment if plan.job else {}  # left over in a shell it means nothing
    gpus = 0 if plan.use_cpu else int(slurm.get("SLURM_GPUS_ON_NODE") or count_gpus(environment))
    share = share_machine(
        processes=plan.processes_per_node,
        threads=plan.threads,
        gpus=gpus,
        cpus=int(slurm.get("SLURM_CPUS_ON_NODE") or count_cpus()),
    )
    # one task per node: SLURM_PROCID counts the nodes, through all components of a heterogeneous job
    return Node(rank=int(slurm.get("SLURM_PROCID", "0")), processes=share.processes, threads=share.threads)


class Agent:
    """Holds one node's `accelerate launch` from its start to its end."""

    def __init__(self, plan: Plan, node: Node):
        self.plan = plan
        self.node = node
        self.fence = Fence(plan.folder, plan.attempt)
        self.folder = Path(tempfile.mkdtemp(prefix="launch-"))
        self.stop_file = self.folder / "stop"
        self.signals: list[signal.Signals] = []
        self.stopped_s: float | None = None
        self.told_processes = False
        self.watchdog = Watchdog(
            self.folder, host=socket.gethostname(), log_dir=plan.log_dir, is_alone=len(plan.nodes) == 1
        )
        self.hang: list[Sign] = []  # how the processes stood when they were found to hang
        self.preloader: subprocess.Popen[bytes] | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember, and no more."""
        self.signals.append(signal.Signals(number))

    def run(self) -> int:
        """Start, watch, end; the exit code: 0 if every process of this node did what it was to do."""
        started_s = time.time()
        self.plan.log_dir.mkdir(parents=True, exist_ok=True)
        with (self.plan.log_dir / f"{socket.gethostname()}-launcher.log").open("ab") as log:
            child = self._start(log.fileno())
            try:
                code = self._watch(child)
            finally:
                self._end(child)
                if self.preloader is not None:
                    self._end(self.preloader)
        self._sweep(0.0 if code == FENCED or self.hang else SWEEP_S)
        if code != FENCED:
            self._record(code, started_s)
        self._clear()
        return code if code in (0, FENCED) else 1

    def _start(self, log: int) -> subprocess.Popen[bytes]:
        environment = node_environment(
            self.plan,
            local_processes=self.node.processes,
            threads=self.node.threads,
            folder=self.folder,
            inherited=default_environment(),
        )
        if self.plan.preload:
            environment["LAUNCH_PRELOADER"] = str(self.folder / "preloader")
            self.preloader = subprocess.Popen(
                [sys.executable, "-m", "launch.preload", environment["LAUNCH_PRELOADER"], ",".join(self.plan.preload)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).resolve().parent.parent,  # the code that runs here, whatever folder this is
                start_new_session=True,
                preexec_fn=_prepare_child,
            )
        return subprocess.Popen(
            accelerate_argv(self.plan, node_rank=self.node.rank, local_processes=self.node.processes),
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C on a terminal is for this process alone
            preexec_fn=_prepare_child,
        )

    def _watch(self, child: subprocess.Popen[bytes]) -> int:
        looked_s = 0.0
        while True:
            code = child.poll()
            if code is not None:
                return code
            now_s = time.monotonic()
            if now_s - looked_s >= LOOK_S or self.signals:
                looked_s = now_s
                if not self._may_go_on():
                    return FENCED
                if self._hangs():
                    return 1
                if self.stopped_s is None:
                    self._look_for_stop()
                elif self._is_out_of_patience(now_s, child):
                    return 1
            time.sleep(TICK_S)

    def _may_go_on(self) -> bool:
        """Is this attempt still the newest? A run folder that cannot be reached says neither yes nor no."""
        try:
            return self.fence.is_open
        except OSError:
            return True

    def _hangs(self) -> bool:
        """Do the processes hang, here or on another node? They have written their stacks then."""
        self.hang = self.watchdog.look()
        is_first = bool(self.hang)
        if not is_first and not self._is_told_of_hang():
            return False
        self.hang = self.hang or self.watchdog.signs()
        with suppress(OSError):
            request_stop(self.plan.hang_notice, socket.gethostname())  # for the agents of the other nodes
        self.watchdog.dump_stacks()
        if is_first and len(self.plan.nodes) > 1:
            time.sleep(TELL_S)  # a world that ends here would take the others' stacks with it
        return True

    def _is_told_of_hang(self) -> bool:
        try:
            return self.plan.hang_notice.exists()
        except OSError:  # a run folder that cannot be reached says nothing
            return False

    def _look_for_stop(self) -> None:
        reason = self._reason()
        if not reason:
            return
        self.stopped_s = time.monotonic()
        try:
            request_stop(self.plan.stop_request, reason)  # so that every node's agent learns of it
            reason = self.plan.stop_request.read_text(encoding="utf-8") or reason
        except OSError:
            pass
        temporary = self.stop_file.with_suffix(".tmp")
        temporary.write_text(reason, encoding="utf-8")
        os.replace(temporary, self.stop_file)
        self.signals.clear()

    def _reason(self) -> str:
        """Why the run is to stop; empty while it is not."""
        left_s = None if self.plan.end_time is None else self.plan.end_time - time.time()
        if self.signals:
            if self.signals[0] == signal.SIGINT:
                return "interrupted"
            # Slurm sends the lead signal up to a minute early
            is_near_end = left_s is not None and left_s < self.plan.lead_s + 90
            return "walltime" if is_near_end else "preempted"
        if left_s is not None and left_s < self.plan.lead_s:
            return "walltime"
        try:
            return self.plan.stop_request.read_text(encoding="utf-8") or "requested"
        except OSError:
            pass
        try:
            (self.plan.folder / "STOP").unlink()  # a person's own touch
        except OSError:
            return ""
        return "requested"

    def _is_out_of_patience(self, now_s: float, child: subprocess.Popen[bytes]) -> bool:
        """After a stop was asked for: send the script's own signal, once; a second Ctrl-C, or too long, ends all."""
        assert self.stopped_s is not None
        if self.plan.stop_signal and not self.told_processes:
            self.told_processes = True
            for pid in [*_scripts_below(child.pid), *(_children(self.preloader.pid) if self.preloader else [])]:
                _send(pid, getattr(signal, self.plan.stop_signal))
        if signal.SIGINT in self.signals:
            return True
        self.signals.clear()
        waited_s = now_s - self.stopped_s
        if self.plan.end_time is not None:
            # Slurm never requeues a job that meets its limit: this one must end before
            left_s = self.plan.end_time - min(30.0, self.plan.lead_s / 4) - time.time()
            if left_s < 0 < left_s + waited_s:
                return True
        return waited_s > self.plan.grace_s

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Make sure that nothing of the launcher is left; its workers die with it."""
        if child.poll() is None:
            _send(child.pid, signal.SIGKILL)
            child.wait()

    def _sweep(self, patience_s: float) -> None:
        """End what the scripts left behind, here: a process that lost its parent belongs to nobody."""
        deadline_s = time.monotonic() + patience_s
        while (left := processes_of(self.plan.rendezvous_id)) and time.monotonic() < deadline_s:
            time.sleep(TICK_S)
        for pid in left:
            _send(pid, signal.SIGKILL)

    def _clear(self) -> None:
        """Remove what only this attempt's processes needed, and files for stacks that nobody wrote."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for file in self.plan.log_dir.glob(f"{socket.gethostname()}-rank-*.stacks"):
            with suppress(OSError):
                if not file.stat().st_size:
                    file.unlink()

    def _record(self, code: int, started_s: float) -> None:
        record = {
            "host": socket.gethostname(),
            "node_rank": self.node.rank,
            "processes": self.node.processes,
            "code": code,
            "step": self.watchdog.step(),
            "hang": [dataclasses.asdict(sign) for sign in self.hang],
            "started_s": started_s,
            "ended_s": time.time(),
        }
        file = self.plan.log_dir / f"{socket.gethostname()}-agent.json"
        temporary = file.with_suffix(".tmp")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, file)


def _prepare_child() -> None:
    """In the child, before `accelerate launch`: die with the agent, and be deaf to what is the agent's to hear.

    Slurm signals every process of a step on some clusters (proctrack/linuxproc) and the agent alone on others
    (proctrack/cgroup). Ignored signals stay ignored through exec, so the launcher, the scripts and their helpers
    do not hear them until they ask for them.
    """
    die_with_parent()
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _scripts_below(launcher: int) -> list[int]:
    """The scripts themselves: launcher -> worker -> script."""
    return [script for worker in _children(launcher) for script in _children(worker)]


def processes_of(rendezvous_id: str) -> list[int]:
    """Processes on this host that were started by an attempt, whoever their parent is now; not this one."""
    mark = f"LAUNCH_ID={rendezvous_id}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def main() -> int:
    """Run one node's part of the plan that the command line names."""
    try:
        plan = Plan.read(Path(sys.argv[1]))
        agent = Agent(plan, find_node(plan, os.environ))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201 - this is a command
        return 2
    for number in HANDLED:
        signal.signal(number, agent.note)
    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
