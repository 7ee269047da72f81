"""Work that many processes share, of one job or of several, on one machine or on many: each piece is done once.

A piece is claimed by a lock on a file, which the system lets go of when a process ends, however it ends; a note beside
it says that the piece is done. So a crash costs the pieces that were being worked on, and no more.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout

from nn_train.pulse import pulse

WAIT_S = 0.2  # between two looks for what others are at


def acquire(lock: BaseFileLock) -> AcquireReturnProxy:
    """The lock, waited for with signs of life: the process that holds it ends, or the watchdog ends it."""
    while True:
        pulse.beat()
        with suppress(Timeout):
            return lock.acquire(timeout=1.0)


def share_out(
    folder: Path, stage: str, pieces: Iterable[int], work: Callable[[int], None], *, in_order: bool = False
) -> int:
    """Do the pieces that nobody else does, and wait until all are done; how many were done here.

    Processes look for work at places of their own, or `in_order` from the first piece on.

    Raises:
        Whatever `work` raises; the piece is then free for whoever tries next, and meets the same.
    """
    left = list(pieces)
    num_done = 0
    while left := [piece for piece in left if not _note(folder, stage, piece).exists()]:
        start = 0 if in_order else os.getpid() % len(left)
        worked = False
        for piece in left[start:] + left[:start]:
            if _try(folder, stage, piece, work):
                worked, num_done = True, num_done + 1
        if not worked:
            pulse.beat()
            time.sleep(WAIT_S)
    return num_done


def _try(folder: Path, stage: str, piece: int, work: Callable[[int], None]) -> bool:
    note = _note(folder, stage, piece)
    if note.exists():
        return False
    with suppress(Timeout), FileLock(note.with_suffix(".lock"), timeout=0):
        if note.exists():
            return False
        pulse.beat()
        work(piece)
        note.touch()
        return True
    return False


def _note(folder: Path, stage: str, piece: int) -> Path:
    return folder / f"{stage}-{piece:06d}.done"
