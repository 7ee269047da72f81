"""Where a process is, and that it is alive: what the watchdog watches.

A process marks each phase that it enters and each step. How long the next mark may take is learned where a phase comes
again and again: `FACTOR` times the longest that it took so far, between a floor and a cap of the config. The launcher's
agent reads the marks from a small file that the process maps, so that it sees those of one that is stopped, or that
never lets go of the interpreter's lock; when one is overdue it has all processes write their stacks, names the one that
is behind, and ends the world. Processes that no agent watches write their stacks themselves when they are overdue; and,
where others wait for them, end (so do those that Ctrl-Z stopped for longer than that).

One process has one pulse, as it has one log: it is kept by this module. Without `start` a mark costs a comparison.
Imports the standard library alone.
"""

import dataclasses
import faulthandler
import mmap
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from nn_train import faults

# in the order in which a run comes through them
PHASES = (
    "start",
    "preprocess",
    "pack",
    "step",
    "evaluate",
    "snapshot",
    "saving",
    "judge",
    "baselines",
    "report",
    "end",
)
LEARNED = ("step", "evaluate", "snapshot")  # the others are seen once, or are made of parts that are not alike
# a baseline model is one call of another library, and a disk may take its time: checkpoint.max_age says how much
PATIENT = {"baselines": 6.0, "saving": 6.0}
FACTOR = 5.0
DUMP_SIGNAL = signal.SIGRTMIN + 6  # nobody else's: Slurm and people send the signals that have names
RECORD = struct.Struct("<ddqi?16s")  # moment and patience (s, monotonic clock), step, process id, waits, phase
WAITS_AT = struct.calcsize("<ddqi")
REARM_S = 1.0  # between two settings of the timer of a process that watches itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beat:
    """The last mark of a process, as another one reads it."""

    rank: int
    pid: int
    phase: str
    step: int
    waits: bool  # in a collective, for the others
    moment_s: float  # of the monotonic clock, which all processes of a host share
    patience_s: float

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Read the file of one process; None while it holds no mark."""
        try:
            moment_s, patience_s, step, pid, waits, phase = RECORD.unpack(file.read_bytes()[: RECORD.size])
            name, rank = phase.rstrip(b"\0").decode(), int(file.name.rpartition("-")[2])
        except (OSError, ValueError, struct.error):
            return None
        if name not in PHASES:
            return None
        return cls(rank=rank, pid=pid, phase=name, step=step, waits=waits, moment_s=moment_s, patience_s=patience_s)


def file_name(rank: int) -> str:
    """The name of a process's file in the folder that the agent watches."""
    return f"pulse-{rank}"


def stacks_name(host: str, rank: int) -> str:
    """The name of the file for a process's stacks, beside its log."""
    return f"{host}-rank-{rank}.stacks"


class Pulse:
    """The marks of this process."""

    def __init__(self) -> None:
        self.is_on = False
        self.phase, self.step = "start", 0
        self._record: mmap.mmap | bytearray = bytearray(RECORD.size)
        self._file: Path | None = None
        self._stacks: IO[str] | None = None

    def start(self, run_dir: Path, *, floor_s: float, cap_s: float | None) -> None:
        """Begin to be watched: by the agent of the launcher that started this run, else by a timer of this process.

        `cap_s` None: by nobody.
        """
        self.is_on = cap_s is not None
        if cap_s is None:
            return
        self.floor_s, self.cap_s = min(floor_s, cap_s), cap_s
        self._longest_s: dict[str, float] = {}
        self.moment_s = time.monotonic()
        self.rank = int(os.environ.get("RANK", "0"))
        # a script that a launcher started may start trainings of its own: their marks are not the script's
        is_launched = os.environ.get("LAUNCH_RUN_DIR") == str(run_dir)
        folder = os.environ.get("LAUNCH_PULSE_DIR") if is_launched else None
        self.watches_itself = folder is None
        # alone, in a debugger perhaps: nobody waits, and nobody would start it again
        self.ends_itself = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._armed_s = 0.0
        if folder is not None:
            with suppress(OSError):  # a full temp folder: unwatched, and no reason to fail
                self._map(Path(folder) / file_name(self.rank))
                self.write_stacks_into(Path(os.environ["LAUNCH_LOG_DIR"]))
        self.mark("start")

    def _map(self, file: Path) -> None:
        with file.open("w+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, RECORD.size)  # a page that cannot be written later would kill
            self._record = mmap.mmap(opened.fileno(), RECORD.size)
        self._file = file

    def write_stacks_into(self, folder: Path) -> None:
        """Name the folder for the stacks of an overdue process; until then they go to standard error."""
        if not self.is_on or self._stacks is not None:
            return
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            self._stacks = (folder / stacks_name(socket.gethostname(), self.rank)).open("a", encoding="utf-8")
            if not self.watches_itself:
                faulthandler.register(DUMP_SIGNAL, file=self._stacks, all_threads=True)
            self._armed_s = 0.0

    def mark(self, phase: str, step: int = 0) -> bool:
        """Enter a phase, or come further in it; True if a fault asks for a loss that is not a number."""
        if self.is_on:
            self._note(phase, step)
        return faults.strike(phase, step=step)

    def beat(self) -> None:
        """Come further in a phase whose parts are no places of their own."""
        if self.is_on:
            self._note(self.phase, self.step)

    def _note(self, phase: str, step: int) -> None:
        now_s = time.monotonic()
        took_s = now_s - self.moment_s
        if took_s > self._longest_s.get(self.phase, 0.0):
            self._longest_s[self.phase] = took_s
        patience_s = self.patience_s(phase)
        has_changed = phase != self.phase
        self.phase, self.step, self.moment_s = phase, step, now_s
        RECORD.pack_into(self._record, 0, now_s, patience_s, step, os.getpid(), False, phase.encode())
        if self.watches_itself and (has_changed or now_s - self._armed_s >= REARM_S):
            self._arm(now_s, patience_s)

    def patience_s(self, phase: str) -> float:
        """How long the next mark may take: a phase that was not seen has the cap."""
        longest_s = self._longest_s.get(phase)
        if phase not in LEARNED or longest_s is None:
            return self.cap_s * PATIENT.get(phase, 1.0)
        return min(max(FACTOR * longest_s, self.floor_s), self.cap_s)

    def _arm(self, now_s: float, patience_s: float) -> None:
        self._armed_s = now_s
        # the timer is a thread of faulthandler's own, which needs no interpreter lock
        faulthandler.dump_traceback_later(
            patience_s + REARM_S, exit=self.ends_itself, file=self._stacks or sys.__stderr__ or 2
        )

    def stop(self) -> None:
        """End to be watched, in an orderly way."""
        if not self.is_on:
            return
        self.is_on = False
        if self.watches_itself:
            faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None
        if self._stacks is not None:
            faulthandler.unregister(DUMP_SIGNAL)
            self._stacks.close()
            with suppress(OSError):
                if not os.path.getsize(self._stacks.name):
                    os.unlink(self._stacks.name)
                    os.rmdir(os.path.dirname(self._stacks.name))  # only where nothing else is in it
            self._stacks = None

    def __enter__(self) -> None:
        """Wait for the others: `with pulse:` around a collective."""
        self._record[WAITS_AT] = 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record[WAITS_AT] = 0


pulse = Pulse()
