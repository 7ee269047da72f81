"""Slurm's own commands, called and read; nothing here decides anything.

Answers come from `scontrol` and `squeue`, which every cluster has; accounting (`sacct`) is asked only for
jobs that the controller has forgotten.
"""

import dataclasses
import datetime
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence

from nn_train.errors import UserError

ALIVE = frozenset({
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "REQUEUE_HOLD",
    "REQUEUE_FED", "RESIZING", "SIGNALING", "STAGE_OUT", "SPECIAL_EXIT", "RESV_DEL_HOLD",
})  # fmt: skip
NOT_STARTED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
TIMEOUT_S = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job as squeue shows it; an empty state: the queue has forgotten it."""

    id: str
    state: str = ""
    reason: str = ""
    nodes: str = ""
    time_left: str = ""

    @property
    def is_alive(self) -> bool:
        """Does it wait, run, or come to its end?"""
        return self.state in ALIVE

    @property
    def is_waiting(self) -> bool:
        """Is it yet to begin?"""
        return self.state in NOT_STARTED


def is_here(program: str = "sbatch") -> bool:
    """Is Slurm's command on this machine?"""
    return shutil.which(program) is not None


def call(*argv: str) -> str:
    """Run one of Slurm's commands; what it printed.

    Raises:
        UserError: it is missing, does not answer, or says no; with its own words.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise UserError(
            f"{argv[0]} is not on this machine",
            fix="run this on a login node of the cluster; on a machine without Slurm: python -m launch run",
        ) from None
    except subprocess.TimeoutExpired:
        raise _no_answer(argv[0]) from None
    if done.returncode != 0:
        words = _words(argv[0], done.stderr)
        raise UserError(f"{argv[0]} refused: {words or f'exit code {done.returncode}'}", fix="see its message")
    return done.stdout


def _no_answer(program: str) -> UserError:
    return UserError(f"{program} did not answer within {TIMEOUT_S} s", fix="is slurmctld up? scontrol ping")


def _words(program: str, text: str) -> str:
    """What a program said, in one line."""
    return "; ".join(line.removeprefix(f"{program}: ") for line in text.strip().splitlines())


def _ask(*argv: str) -> str:
    """What a command prints; nothing where it is missing or refuses."""
    try:
        return call(*argv)
    except UserError:
        return ""


def read_fields(line: str) -> dict[str, str]:
    """`Name=value Name=value ...` as scontrol -o prints it; a value may hold spaces."""
    parts = re.split(r"(?:^|\s)([A-Za-z][\w:/]*)=", line.strip())
    return dict(zip(parts[1::2], (value.strip() for value in parts[2::2]), strict=True))


def job_fields(job: str) -> dict[str, str]:
    """What the controller knows of a job; empty if it has forgotten it, or there is no Slurm here."""
    lines = _ask("scontrol", "-o", "show", "job", job).splitlines()
    return read_fields(lines[0]) if lines else {}


def job_state(job: str) -> str:
    """`RUNNING`, `PENDING`, `CANCELLED`, ...; empty if nothing is known of the job."""
    state = job_fields(job).get("JobState", "")
    if not state and is_here("sacct"):
        state = _ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State").strip().partition("\n")[0]
    return state.partition(" ")[0]


def is_alive(job: str) -> bool:
    """Does the job wait, run, or come to its end?"""
    return job_state(job) in ALIVE


def ask_queue(jobs: Iterable[str]) -> dict[str, Job] | None:
    """What squeue says of jobs, by their ids; None if it cannot be asked."""
    jobs = sorted(set(jobs))
    if not jobs:
        return {}
    try:
        text = call("squeue", "-h", "-r", "-t", "all", "-j", ",".join(jobs), "-o", "%A|%i|%T|%N|%L|%r")
    except UserError as error:
        # said of one id alone; of several, those that are forgotten are passed over
        return {} if "Invalid job id" in error.what else None
    found: dict[str, Job] = {}
    for line in text.splitlines():
        own, shown, state, nodes, left, reason = line.strip().split("|", maxsplit=5)
        for name in (own, shown):  # a task of an array has an id of its own and a name such as 17_3
            found[name] = Job(id=name, state=state, reason=reason, nodes=nodes, time_left=left)
    return found


def job_times(job: str, environment: Mapping[str, str]) -> tuple[float | None, float | None]:
    """When the job began and when its time is up, in seconds since 1970; None if never, or unknown.

    Slurm 23 and newer say so in the environment.
    """
    names = ("SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME")
    if all(environment.get(name, "").isdigit() for name in names):
        return float(environment[names[0]]), float(environment[names[1]])
    fields = job_fields(job)
    return _time(fields.get("StartTime", "")), _time(fields.get("EndTime", ""))


def _time(text: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def node_address(node: str) -> str:
    """The address that Slurm reaches a node by; empty if it cannot be asked."""
    lines = _ask("scontrol", "-o", "show", "node", node).splitlines()
    return read_fields(lines[0]).get("NodeAddr", "") if lines else ""


def partition_sizes() -> dict[str, int]:
    """Partition -> its number of nodes; empty if it cannot be asked."""
    sizes: dict[str, int] = {}
    for line in _ask("sinfo", "-h", "-o", "%R %D").splitlines():
        name, _, count = line.strip().rpartition(" ")
        sizes[name] = sizes.get(name, 0) + int(count)
    return sizes


def default_partition() -> str:
    """The partition of jobs that name none; empty if it cannot be asked."""
    return next((line.strip("* \n") for line in _ask("sinfo", "-h", "-o", "%P").splitlines() if "*" in line), "")


def submit(script: str, options: Sequence[str]) -> str:
    """Queue a batch script; the job's id. Raises UserError if Slurm refuses."""
    return call("sbatch", "--parsable", *options, script).strip().partition(";")[0]


def try_submit(script: str, options: Sequence[str]) -> str:
    """Have Slurm check a batch script without queueing it; what it said. Raises UserError if it refuses."""
    try:
        done = subprocess.run(
            ["sbatch", "--test-only", *options, script], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise _no_answer("sbatch") from None
    words = _words("sbatch", done.stderr + done.stdout)
    if done.returncode != 0:
        raise UserError(
            f"Slurm would refuse this job: {words}", fix="ask for what the partition has: sinfo -o '%P %D %l %G'"
        )
    return words
