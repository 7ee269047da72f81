"""The batch script of a submission: slurm/train.sh with a cluster's options and set-up in their places. Pure."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.profile import Profile
from nn_train.config import project_root
from nn_train.errors import ConfigError

TEMPLATE = project_root() / "slurm" / "train.sh"
EDGE = re.compile(r"^# ----.*$\n", re.MULTILINE)
DURATION = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a submission asks Slurm for."""

    name: str
    profile: Profile
    nodes: int
    time: str | None
    array: str | None
    output: Path
    """Folder of the batch script's own output."""
    chdir: Path
    code: Path
    """Folder that holds the frozen nn_train and launch."""
    path: str
    """A folder to put first on PATH; empty where the profile's set-up lines choose the Python."""
    words: tuple[str, ...]
    """What `launch.job begin` gets: options, `--`, the script's words."""


def sbatch_options(job: Job) -> list[str]:
    """The #SBATCH options of a job, one a line."""
    profile = job.profile
    gpus = f"{profile.gpu_type}:{profile.gpus_per_node}" if profile.gpu_type else str(profile.gpus_per_node)
    tasks = (profile.processes_per_node or 1) if not profile.gpus_per_node else 1
    processes = profile.processes_per_node or profile.gpus_per_node or 1
    # with one task a node that starts all processes, all of their CPUs are that task's
    cpus = (profile.cpus_per_process or 0) * (processes if tasks == 1 else 1)
    options = {
        "--job-name": job.name,
        "--partition": profile.partition,
        "--account": profile.account,
        "--qos": profile.qos,
        "--constraint": profile.constraint,
        "--nodes": job.nodes,
        "--ntasks-per-node": tasks,
        "--gpus-per-node": gpus if profile.gpus_per_node else None,
        "--cpus-per-task": cpus or None,
        "--mem": profile.memory_per_node,
        "--time": job.time,
        "--array": job.array,
        "--signal": f"USR1@{profile.lead:.0f}",
        "--output": job.output / ("slurm-%A_%a.out" if job.array else "slurm-%j.out"),
        "--chdir": job.chdir,
    }
    lines = [f"{name}={_quote(str(value))}" for name, value in options.items() if value is not None]
    lines += ["--exclusive"] if profile.exclusive else []
    return [*lines, "--requeue", "--open-mode=append", *profile.sbatch_options]


def render(job: Job) -> str:
    """The batch script, whole.

    Raises:
        ConfigError: a name that no #SBATCH line can hold.
    """
    head, _, body = EDGE.split(TEMPLATE.read_text(encoding="utf-8"))
    shebang = head.splitlines()[0]
    lines = [
        shebang,
        "# Written by `python -m launch submit`. To start the run again as it was submitted: sbatch this file.",
        *(f"#SBATCH {option}" for option in sbatch_options(job)),
        "set -u",
        "",
        *job.profile.setup,
        *([f'export PATH={shlex.quote(job.path)}:"$PATH"'] if job.path else []),
        f"container=({shlex.join(job.profile.container)})",
        f"srun_options=({shlex.join(job.profile.srun_options)})",
        "# the code as it was when this was submitted, and not what the working directory holds by then",
        f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(job.code))}",
        f"set -- {shlex.join(job.words)}",
    ]
    return "\n".join(lines) + "\n" + body


def _quote(text: str) -> str:
    """A value of an #SBATCH line: Slurm reads double quotes there, and knows no escape of them."""
    if not re.search(r"[\s'#;]", text):
        return text
    if '"' in text or "\n" in text or "\\" in text:
        raise ConfigError(
            f"Slurm cannot read the name {text!r} in a batch script", fix="a folder without double quotes"
        )
    return f'"{text}"'


def seconds_of(time: str) -> int | None:
    """A walltime as sbatch reads it, in seconds; None for no limit.

    Raises:
        ConfigError: no such time.
    """
    if time.lower() in ("unlimited", "infinite", "0"):
        return None
    found = DURATION.fullmatch(time)
    if not found:
        raise ConfigError(f"--time={time} is no walltime", fix="write minutes, MM:SS, HH:MM:SS, D-HH or D-HH:MM:SS")
    days, first, second, third = (int(found[name] or 0) for name in "dabc")
    if found["d"] is not None:  # D-HH[:MM[:SS]]
        return ((days * 24 + first) * 60 + second) * 60 + third
    if found["c"] is not None:  # HH:MM:SS
        return (first * 60 + second) * 60 + third
    return first * 60 + second  # MM[:SS]


def join_words(options: Sequence[str], words: Sequence[str]) -> tuple[str, ...]:
    """`OPTIONS -- WORDS`."""
    return (*options, "--", *words)
