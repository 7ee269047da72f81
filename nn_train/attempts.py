"""Who may write into a run folder: numbered attempts, of which the newest owns the run.

`RUN/attempts/0003.json` is made by exactly one process, and never changed. Whoever publishes
something (a checkpoint, a line of metrics, a status) first looks whether a newer attempt is there:
processes that a broken network or a lost host left behind can then never write into the run.
Imports the standard library alone, since the launcher uses it on login nodes.
"""

import dataclasses
import datetime
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nn_train.errors import RunFolderError, UserError

FOLDER = "attempts"
# what an attempt's file may say beside its number, which is in its name; another kind of value is passed over
KINDS: dict[str, Any] = {"launch": str, "job": str, "host": str, "started": str, "pid": int, "pid_started": int | None,
                         "first_step": int | None}  # fmt: skip


class Fenced(UserError):
    """A newer attempt owns the run: this one must write nothing more, and leave."""


def process_fields(pid: int) -> list[str]:
    """What the system says of a process of this host, from its state on; empty where it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return fields if fields and fields[0] not in "ZX" else []  # one that only waits to be reaped runs no more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a run, as its file says."""

    number: int
    launch: str = ""  # what started it: attempts of one launch share a budget of restarts; empty without a launcher
    job: str = ""  # Slurm's id of the job
    host: str = ""
    pid: int = 0
    pid_started: int | None = None  # the process's start on its host, in clock ticks since boot: ids are used again
    started: str = ""
    first_step: int | None = None  # optimizer steps that were safe when it began

    def describe(self) -> str:
        """The attempt in a few words: `attempt 3 (job 17, host n1)`."""
        owner = f"job {self.job}" if self.job else f"process {self.pid}"
        return f"attempt {self.number} ({owner}, host {self.host})"

    @staticmethod
    def started_ticks(pid: int) -> int | None:
        """When a process of this host started, in clock ticks since boot; None where it does not run."""
        fields = process_fields(pid)
        return int(fields[19]) if fields else None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read an attempt's file; one that cannot be read is known by its number alone."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            known = {name: value for name, value in values.items() if isinstance(value, KINDS.get(name, ()))}
            return cls(number=int(path.stem), **known)
        except (OSError, ValueError, AttributeError, RecursionError):
            return cls(number=int(path.stem))


def list_attempts(run_dir: Path) -> list[Attempt]:
    """All attempts of a run, oldest first."""
    return [Attempt.read(run_dir / FOLDER / f"{number:04d}.json") for number in sorted(_numbers(run_dir))]


def newest_number(run_dir: Path) -> int:
    """The number of the attempt that owns the run; 0 where there is none."""
    return max(_numbers(run_dir), default=0)


def _numbers(run_dir: Path) -> list[int]:
    # a listing, and not a look for the next name: network file systems keep "no such file" in mind for a minute
    try:
        names = os.listdir(run_dir / FOLDER)
    except FileNotFoundError:
        return []
    return [int(found[1]) for name in names if (found := re.fullmatch(r"(\d+)\.json", name))]


def claim(run_dir: Path, **known: Any) -> Attempt:
    """Take the run over: make the next attempt's file, which every older attempt is fenced off by.

    Raises:
        OSError: the run folder cannot be written.
    """
    folder = run_dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        attempt = Attempt(
            number=newest_number(run_dir) + 1,
            host=socket.gethostname(),
            pid=os.getpid(),
            pid_started=Attempt.started_ticks(os.getpid()),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **known,
        )
        try:
            with (folder / f"{attempt.number:04d}.json").open("x", encoding="utf-8") as file:
                json.dump(dataclasses.asdict(attempt), file, indent=1)
            return attempt
        except FileExistsError:  # another process was faster
            continue


@dataclasses.dataclass(frozen=True)
class Fence:
    """What a process of one attempt asks before it writes into the run."""

    run_dir: Path
    number: int

    @property
    def is_open(self) -> bool:
        """Does this attempt still own the run?"""
        return newest_number(self.run_dir) <= self.number

    def check(self) -> None:
        """Raise Fenced if a newer attempt owns the run."""
        if not self.is_open:
            newer = list_attempts(self.run_dir)[-1]
            raise Fenced(
                f"{newer.describe()} owns this run now; attempt {self.number} leaves and writes nothing more",
                where=str(self.run_dir),
                fix="look at the newer attempt: python -m launch show RUN",
            )


@dataclasses.dataclass(frozen=True)
class Launched:
    """What the launcher says to a process that it started; see "Any script" in the README."""

    run_dir: Path
    number: int
    goes_on: bool  # an earlier attempt of the same launch was there: a fresh start would undo it
    stop_file: Path | None

    @classmethod
    def from_environment(cls, run_dir: Path, environment: Mapping[str, str] = os.environ) -> Self | None:
        """What the launcher says of this run; None where no launcher started it."""
        folder, number = environment.get("LAUNCH_RUN_DIR"), environment.get("LAUNCH_ATTEMPT", "")
        if not folder or not number.isdigit() or Path(folder) != run_dir:
            return None
        stop_file = environment.get("LAUNCH_STOP_FILE")
        return cls(
            run_dir=run_dir,
            number=int(number),
            goes_on=environment.get("LAUNCH_GOES_ON") == "1",
            stop_file=Path(stop_file) if stop_file else None,
        )


def refuse_newer(run_dir: Path, number: int) -> Fence:
    """The fence of an attempt that the launcher claimed.

    Raises:
        RunFolderError: the launcher never claimed it.
        Fenced: a newer one is there.
    """
    fence = Fence(run_dir, number)
    if newest_number(run_dir) < number:
        raise RunFolderError(
            f"the environment says LAUNCH_ATTEMPT={number}, and the run has no such attempt",
            where=str(run_dir),
            fix="unset LAUNCH_ATTEMPT, which a launcher left in this shell",
        )
    fence.check()
    return fence
