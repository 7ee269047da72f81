"""Faults on purpose: a chosen process meets a chosen mishap at a chosen place. Off unless the environment asks.

    NN_TRAIN_FAULTS='kill@step,step=30,rank=1; no_space@checkpoint,file=optimizer.safetensors,attempt=2'

Each is KIND@PLACE with conditions, all of which must hold; a fault strikes once in a process, or `times=N` times, or
`times=all`. Kinds:

    raise      an exception             no_space  the system's "no space left on device"
    exit       the process ends, code 7 io_error  the system's "input/output error"
    kill       SIGKILL                  lock      holds the interpreter's lock for ever
    stop       SIGSTOP                  loop      loops for ever
    nan        the loss of this process's rows becomes not a number (at `step` alone)

Places; all but `checkpoint`, which is a thread's, are phases of the watchdog as well (`nn_train/pulse.py`):

    start       before the processes meet
    preprocess  before the table is looked for      pack    packed, and not yet published; on the one that packs
    step        before the forward; `step=N` is the one that makes N steps of N - 1
    evaluate    an evaluation while training        checkpoint  half-way through a file of one, on process 0;
    judge       the final evaluation                            `file=NAME`: that one; `file=rename`: before it is
    baselines   the models beside the network                   published; `file=prune`: after, the old ones still there
    report      the plots and the page

Conditions: `step=N` (for checkpoints and evaluations: of step N or later), `after=N` (the first N times nothing
happens), `rank=N`, `attempt=N` (the launcher's number), `file=NAME`.
Imports the standard library alone.
"""

import ctypes
import dataclasses
import errno
import os
import signal
import time
from collections.abc import Mapping

from nn_train.errors import ConfigError

VARIABLE = "NN_TRAIN_FAULTS"
KINDS = ("raise", "exit", "kill", "stop", "lock", "loop", "no_space", "io_error", "nan")
PLACES = ("start", "preprocess", "pack", "step", "evaluate", "checkpoint", "judge", "baselines", "report")
NUMBERS = ("step", "after", "rank", "attempt", "times")
EXIT_CODE = 7
EXAMPLE = "kill@step,step=30,rank=1"
ERRORS = {"no_space": errno.ENOSPC, "io_error": errno.EIO}


class InjectedFault(RuntimeError):
    """What a `raise` fault raises."""


@dataclasses.dataclass(kw_only=True)
class Fault:
    """One mishap and where it strikes; None: anywhere. `after` and `times` count down."""

    kind: str
    place: str
    step: int | None = None
    after: int = 0
    rank: int | None = None
    attempt: int | None = None
    file: str = ""
    times: float = 1

    def matches(self, place: str, *, step: int, file: str) -> bool:
        """Does it strike here?"""
        if self.place != place or self.times <= 0 or (self.file and self.file != file):
            return False
        # checkpoints and evaluations have steps of their own: the next one will do
        is_here = self.step is None or (step == self.step if place == "step" else step >= self.step)
        if is_here and self.after:
            self.after -= 1
            return False
        return is_here


def parse_faults(text: str) -> list[Fault]:
    """Read the faults of one text, separated by `;`.

    Raises:
        ConfigError: a kind, place or condition that does not exist.
    """
    return [_parse(words.strip()) for words in text.split(";") if words.strip()]


def _parse(text: str) -> Fault:
    first, *conditions = [word.strip() for word in text.split(",")]
    kind, _, place = first.partition("@")
    if kind not in KINDS or place not in PLACES:
        raise _error(text, f"it is KIND@PLACE: {', '.join(KINDS)} at {', '.join(PLACES)}")
    if kind == "nan" and place != "step":
        raise _error(text, "nan strikes at a step")
    fault = Fault(kind=kind, place=place)
    for condition in conditions:
        name, _, value = condition.partition("=")
        if name == "times" and value == "all":
            fault.times = float("inf")
        elif name in NUMBERS and value.isdigit():
            setattr(fault, name, int(value))
        elif name == "file" and value and place == "checkpoint":
            fault.file = value
        else:
            raise _error(text, f"'{condition}' is none of {', '.join(f'{n}=N' for n in NUMBERS)}, file=NAME")
    return fault


def _error(text: str, why: str) -> ConfigError:
    return ConfigError(f"the fault '{text}' cannot be read: {why}", where=VARIABLE, fix=f"{VARIABLE}='{EXAMPLE}'")


_armed: list[Fault] = []


def arm(environment: Mapping[str, str] = os.environ) -> None:
    """Arm this process with the faults that the environment holds for it.

    Raises:
        ConfigError: a fault that cannot be read.
    """
    rank, attempt = int(environment.get("RANK", "0")), environment.get("LAUNCH_ATTEMPT", "")
    _armed[:] = [
        fault
        for fault in parse_faults(environment.get(VARIABLE, ""))
        if fault.rank in (None, rank) and (fault.attempt is None or str(fault.attempt) == attempt)
    ]


def strike(place: str, *, step: int = 0, file: str = "") -> bool:
    """Let the fault happen that waits for this place; True if the loss is to become not a number."""
    if not _armed:
        return False
    for fault in _armed:
        if fault.matches(place, step=step, file=file):
            fault.times -= 1
            return _happen(fault, f"{place}{f' {file}' if file else ''} at step {step}")
    return False


def _happen(fault: Fault, where: str) -> bool:
    # not by the log: a fault may strike before it is set up, and nothing may come after this line
    os.write(2, f"injected fault: {fault.kind}@{where}, {time.time():.3f} s\n".encode())
    if fault.kind == "raise":
        raise InjectedFault(f"injected fault: {where}")
    if fault.kind in ERRORS:
        number = ERRORS[fault.kind]
        raise OSError(number, os.strerror(number), f"injected fault: {where}")
    if fault.kind == "exit":
        os._exit(EXIT_CODE)
    if fault.kind in ("kill", "stop"):
        os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
    while fault.kind == "lock":
        ctypes.PyDLL(None).sleep(3600)  # PyDLL, unlike CDLL, keeps the interpreter's lock
    while fault.kind == "loop":
        pass
    return fault.kind == "nan"
