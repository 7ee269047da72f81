"""The watchdog of one node: reads the pulses of its processes, and knows a hang from a long step.

See nn_train/pulse.py for what a process says. A process that waits for others in a collective is not the one that
hangs: it is overdue as well, and the one that is behind is another.
"""

import dataclasses
import os
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nn_train.attempts import process_fields
from nn_train.pulse import DUMP_SIGNAL, PHASES, Beat, stacks_name

DUMP_S = 2.0  # how long the stacks may take to be written
TICK_S = 0.05
PAUSE_S = 5.0  # a watchdog that did not look for so long was itself stopped, as all of a suspended job is
STACK_LINES = 12
OTHERS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sign:
    """How one process stood when a hang was noticed; plain values, so that it travels as JSON."""

    rank: int
    host: str
    phase: str
    step: int
    waits: bool
    silent_s: float
    patience_s: float
    state: str  # of the process as the system has it: R, S, D, T (stopped), or empty where it is gone

    @property
    def is_overdue(self) -> bool:
        """Is its mark later than it was to come?"""
        return self.silent_s > self.patience_s

    def describe(self) -> str:
        """The sign in words."""
        doing = ""
        if self.state == "T":
            doing = "; it is stopped (SIGSTOP)"
        elif self.waits:
            doing = "; it waits for the others"
        elif self.state == "R":
            doing = "; it is busy"
        return f"hangs in phase {self.phase} at step {self.step}: no sign for {self.silent_s:.0f} s{doing}"


class Watchdog:
    """Looks at the pulses of one node's processes."""

    def __init__(self, folder: Path, *, host: str, log_dir: Path, is_alone: bool = True):
        self.folder, self.host, self.log_dir, self.is_alone = folder, host, log_dir, is_alone
        self._looked_s = time.monotonic()
        self._excused_until_s = 0.0

    def beats(self) -> list[Beat]:
        """The last marks of the processes that are watched, by rank."""
        found = (Beat.read(file) for file in self.folder.glob("pulse-*"))
        return sorted((beat for beat in found if beat is not None), key=lambda beat: beat.rank)

    def step(self) -> int | None:
        """How many steps the processes have made, by their marks, also where they are gone; None: they said nothing."""
        return max((beat.step for beat in self.beats()), default=None)

    def look(self) -> list[Sign]:
        """How all processes stand, if they hang; else nothing."""
        now_s = time.monotonic()
        if now_s - self._looked_s > PAUSE_S:
            self._excused_until_s = now_s + (now_s - self._looked_s)
        self._looked_s = now_s
        if now_s <= self._excused_until_s or not is_hung(self.signs(), is_alone=self.is_alone):
            return []
        time.sleep(TICK_S)  # a mark may have been read while it was written: two looks must agree
        signs = self.signs()
        return signs if is_hung(signs, is_alone=self.is_alone) else []

    def signs(self) -> list[Sign]:
        """How all processes stand now that are still there."""
        now_s = time.monotonic()
        signs = [
            Sign(
                rank=beat.rank,
                host=self.host,
                phase=beat.phase,
                step=beat.step,
                waits=beat.waits,
                silent_s=round(now_s - beat.moment_s, 3),
                patience_s=round(beat.patience_s, 3),
                state="".join(process_fields(beat.pid)[:1]),
            )
            for beat in self.beats()
        ]
        return [sign for sign in signs if sign.state]

    def dump_stacks(self) -> None:
        """Have every process write its Python stacks beside its log; a stopped one is woken for it."""
        beats = [beat for beat in self.beats() if process_fields(beat.pid)]
        files = [self.log_dir / stacks_name(self.host, beat.rank) for beat in beats]
        for beat in beats:
            with suppress(OSError):
                os.kill(beat.pid, DUMP_SIGNAL)
                os.kill(beat.pid, signal.SIGCONT)
        deadline_s = time.monotonic() + DUMP_S
        while time.monotonic() < deadline_s and not all(map(_is_written, files)):
            time.sleep(TICK_S)


def is_hung(signs: Sequence[Sign], *, is_alone: bool = True) -> bool:
    """Is a process overdue that waits for nobody, or are all?

    Where there are other nodes, the one that all of this node wait for may be well, and its own agent knows: then
    they have `OTHERS` times as long.
    """
    overdue = [sign for sign in signs if sign.is_overdue]
    if any(not sign.waits for sign in overdue):
        return True
    factor = 1.0 if is_alone else OTHERS
    return bool(signs) and all(sign.silent_s > factor * sign.patience_s for sign in signs)


def find_behind(signs: Iterable[Sign]) -> Sign:
    """The process that the others wait for: overdue, stopped, in no collective, or else the one that is least far."""

    def place(sign: Sign) -> tuple[Any, ...]:
        is_stopped = sign.state == "T"  # also in a collective
        return (not sign.is_overdue, not is_stopped, sign.waits, sign.step, PHASES.index(sign.phase), sign.rank)

    return min(signs, key=place)


def read_signs(records: Iterable[dict[str, Any]]) -> list[Sign]:
    """The signs in the records of all nodes' agents; none where no hang was noticed."""
    return [Sign(**values) for record in records for values in record.get("hang", ())]


def _is_written(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def read_stack(file: Path) -> tuple[str, ...]:
    """The stack of the process's main thread, innermost first, from the file that `dump_stacks` had written."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    starts = [number for number, line in enumerate(lines) if line.startswith(("Thread", "Current thread"))]
    current = [number for number in starts if lines[number].startswith("Current")]
    start = (current or starts or [0])[-1]  # a process that held no lock has no current thread; its main one is last
    stack: list[str] = []
    for line in lines[start : start + STACK_LINES + 1]:
        if stack and not line.startswith("  "):
            break
        stack.append(line.strip())
    return tuple(stack)
