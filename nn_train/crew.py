"""Runs in processes of their own, some at a time: what a sweep and an ensemble start. Imports no torch."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from nn_train.errors import RunFolderError

LOOK_EVERY_S = 0.1
Job = TypeVar("Job")


class Crew:
    """Starts processes, a few at a time, and waits for them. Ctrl-C and SIGTERM are handed on to them."""

    def __init__(self) -> None:
        self.stop_requested = False
        self.running: list[subprocess.Popen[bytes]] = []

    def run(
        self,
        jobs: Sequence[Job],
        *,
        command: Callable[[Job], Sequence[str]],
        log: Callable[[Job], Path],
        note_end: Callable[[Job, int], None],
        parallel: int,
    ) -> None:
        """Start the command of every job, its words going to the end of `log`, and say how each ended by `note_end`."""
        waiting = list(jobs)
        started: dict[int, Job] = {}
        with self._signals_noted():
            while self.running or (waiting and not self.stop_requested):
                while waiting and len(self.running) < parallel and not self.stop_requested:
                    job = waiting.pop(0)
                    process = _start(command(job), log(job))
                    self.running.append(process)
                    started[process.pid] = job
                    if self.stop_requested:  # while it was started
                        process.terminate()
                time.sleep(LOOK_EVERY_S)
                for process in list(self.running):
                    if process.poll() is not None:
                        self.running.remove(process)
                        note_end(started.pop(process.pid), process.returncode)

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        def note(number: int, frame: Any) -> None:
            self.stop_requested = True
            for process in self.running:
                process.terminate()

        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _start(command: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as file:
        # in a group of its own: a Ctrl-C of the terminal reaches it once, through this process
        return subprocess.Popen(
            command, env=own_environment(), stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
        )


def own_environment() -> dict[str, str]:
    """This process's environment: with its own Python first, and without the trial of an agent that it may stand in."""
    own = {name: value for name, value in os.environ.items() if not re.fullmatch(r"WANDB_(SWEEP|RUN)_.*", name)}
    return own | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def last_error(log: Path) -> str:
    """The error that a process ended with, by the last lines of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")] or lines[-1:] or [""]
    return errors[-1].removeprefix("error: ")


@contextmanager
def owned_folder(folder: Path, what: str, *, other: str = "--dir OTHER") -> Iterator[None]:
    """Hold a folder for one command at a time; `other` is the option for another one. Raises RunFolderError."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"another process runs this {what}", where=str(folder), fix=f"wait for it, or {other}"
        ) from None
    try:
        yield
    finally:
        lock.release()


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
