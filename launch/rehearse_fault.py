"""The second half of a rehearsal, where one is wanted: the next attempt meets a fault, and the one after it goes on."""

import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path

from launch.job import FAULT_FILE
from launch.plan import Plan
from launch.runs import is_own_script, read_run
from nn_train.errors import UserError
from nn_train.faults import parse_faults
from nn_train.run_folder import write_file
from nn_train.timeline import read_events

TICK_S = 0.1
AFTER = 20  # steps of the attempt before a fault that is named by its kind alone
STRUCK = re.compile(rb"^injected fault: (.+), ([\d.]+) s$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordeal:
    """What was seen of an attempt that met a fault; None: not within the time that was waited."""

    what: str
    struck_s: float | None = None  # in seconds since 1970
    kind: str = ""  # how the attempt ended
    noticed_s: float | None = None
    back_s: float | None = None
    repeated_steps: int = 0


def spell_fault(text: str, plan: Plan) -> str:
    """A fault in full: a kind alone strikes process 0 at a step, once the attempt has trained for a while.

    Raises:
        UserError: it cannot be read, or the script is not the project's own.
    """
    if not is_own_script(plan):
        raise UserError("faults are met by this project's own training alone", fix="leave --fault out")
    fault = text if "@" in text else f"{text}@step,after={AFTER},rank=0"
    parse_faults(fault)
    return fault


def ask_for_fault(plan: Plan, fault: str) -> None:
    """Have the next attempt meet the fault."""
    write_file(plan.folder / FAULT_FILE, fault)


def withdraw_fault(plan: Plan) -> None:
    """Take back what `ask_for_fault` asked for."""
    (plan.folder / FAULT_FILE).unlink(missing_ok=True)


def watch_ordeal(plan: Plan, fault: str, *, wait_s: float) -> Ordeal:
    """Watch the attempt after `plan`'s meet the fault, and the run train again."""
    folder, number = plan.folder, plan.attempt + 1
    seen = Ordeal(what=fault)
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        events = read_events(folder)
        if seen.struck_s is None and (moment_s := next(_struck(folder, number), None)):
            seen = dataclasses.replace(seen, struck_s=moment_s)
        end = next((e for e in events if e["attempt"] == number and e["event"] == "end"), None)
        again = next((e for e in events if e["attempt"] > number and e["event"] == "train"), None)
        if seen.struck_s is not None and end is not None:
            noticed_s = round(max(0.0, end["time"] - seen.struck_s), 1)
            seen = dataclasses.replace(seen, kind=str(end.get("kind", "")), noticed_s=noticed_s)
            if again is not None:
                made, safe = end.get("made_step"), end.get("last_step")
                lost = max(0, made - safe) if made is not None and safe is not None else int(again.get("repeats", 0))
                return dataclasses.replace(
                    seen, back_s=round(max(0.0, again["time"] - seen.struck_s), 1), repeated_steps=lost
                )
        if end is not None and end.get("action") != "restart" and again is None and read_run(folder).is_over:
            return seen
        time.sleep(TICK_S)
    return seen


def _struck(folder: Path, number: int) -> Iterator[float]:
    """When the fault struck, as the process that met it said."""
    for log in (folder / "logs" / f"attempt-{number:04d}").glob("*-rank-*.log"):
        for _, moment_s in STRUCK.findall(log.read_bytes()):
            yield float(moment_s)


def describe_ordeal(ordeal: Ordeal, *, folder: Path, wait_s: float) -> tuple[str, list[str]]:
    """What the fault cost, in one line, and every problem with its mend."""
    look = f"  mend: python -m launch show {folder}"
    if ordeal.struck_s is None:
        return f"{ordeal.what}: never struck", [
            f"problem: the attempt did not come to the fault within {wait_s:g} s", look
        ]  # fmt: skip
    if ordeal.noticed_s is None:
        return f"{ordeal.what}: the attempt goes on", [
            f"problem: the fault was not noticed within {wait_s:g} s",
            "  mend: a shorter time-out (watchdog.cap, watchdog.floor), or a longer --wait",
        ]
    if ordeal.back_s is None:
        return f"{ordeal.what}: the attempt {ordeal.kind.replace('_', ' ')} after {ordeal.noticed_s:g} s", [
            "problem: the run does not train again", look
        ]  # fmt: skip
    return (
        f"{ordeal.what}: ended after {ordeal.noticed_s:g} s; training again after {ordeal.back_s:g} s; "
        f"{ordeal.repeated_steps} steps made again"
    ), []
