"""How an attempt ended, read from what its processes left; and which of their errors came first."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from launch.plan import Plan
from launch.watch import Sign, find_behind, read_signs, read_stack
from nn_train.pulse import stacks_name

Kind = Literal["done", "stopped", "wrong_input", "crashed", "lost"]
USER_ERROR, SAVED = 2, 75
TAIL_LINES, TAIL_BYTES = 20, 16_384
# What a process says that only lost the others: the first cause is elsewhere.
CONSEQUENCE = re.compile(
    r"[Cc]onnection (closed by peer|reset by peer|refused)|[Bb]roken pipe|Timed out waiting \d+ms|"
    r"ncclRemoteError|ncclSystemError|remote process exited|Socket Timeout|store->(get|wait)|DistNetworkError|"
    r"process \d+ failed"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """The first error of an attempt, as far as it can be told."""

    host: str
    rank: int | None
    code: int | None
    lines: tuple[str, ...]
    hang: Sign | None = None  # how it stood, if it was ended because it hung

    def __str__(self) -> str:
        who = f"host {self.host}" if self.rank is None else f"process {self.rank} on {self.host}"
        return f"{who} {self.hang.describe() if self.hang else describe_code(self.code)}"

    @property
    def file_name(self) -> str:
        """The file in the attempt's folder that says more: a log, or the stacks of a process that hung."""
        if self.rank is None:
            return f"{self.host}-launcher.log"
        return stacks_name(self.host, self.rank) if self.hang else f"{self.host}-rank-{self.rank}.log"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One attempt that has ended; a step is None for a script that does not say how far it came.

    `last_step` counts the steps that are safe, `made_step` those that were made, for all that its agents know.
    `reason`: why it was asked to stop, if it was; else why it ended.
    """

    kind: Kind
    reason: str = ""
    first_step: int | None = None
    last_step: int | None = None
    made_step: int | None = None
    failure: Failure | None = None

    @property
    def made_progress(self) -> bool | None:
        """Did it bring the run further? None if that cannot be told."""
        if self.first_step is None or self.last_step is None:
            return None
        return self.last_step > self.first_step


def describe_code(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "left no word: it was killed, or its host was lost"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def read_outcome(plan: Plan) -> Outcome:
    """Judge an attempt by its exit records, its stop request and the run's status file."""
    agents, workers = _records(plan, "*-agent.json"), _records(plan, "*.exit.json")
    made = max((agent["step"] for agent in agents if agent.get("step") is not None), default=None)
    steps: dict[str, Any] = {"first_step": plan.first_step, "last_step": read_step(plan.folder), "made_step": made}
    expected = sum(agent["processes"] for agent in agents)
    codes = [worker["code"] for worker in workers]
    is_whole = len(agents) == len(plan.nodes) and len(workers) == expected > 0
    reason = _read(plan.stop_request)
    if is_whole and not any(codes):
        return Outcome(kind="done", **steps)
    if is_whole and all(code in (0, SAVED) for code in codes):
        return Outcome(kind="stopped", reason=reason or "requested", **steps)
    failure = first_failure(plan, agents, workers)
    if failure.code == USER_ERROR:
        return Outcome(kind="wrong_input", reason=str(failure), failure=failure, **steps)
    if not _was_asked_before(plan, [*agents, *workers]):
        reason = ""  # the order to end came from Slurm, when one node had failed
    return Outcome(kind="crashed", reason=reason or str(failure), failure=failure, **steps)


def _was_asked_before(plan: Plan, records: list[dict[str, Any]]) -> bool:
    """Was the attempt asked to stop before its first process failed?"""
    try:
        asked_s = plan.stop_request.stat().st_mtime
    except OSError:
        return False
    return all(record["ended_s"] >= asked_s for record in records if record["code"] not in (0, SAVED))


def read_step(run_dir: Path) -> int | None:
    """How many steps of the run are safe, by its status file; None if it does not say."""
    try:
        step = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def first_failure(plan: Plan, agents: list[dict[str, Any]], workers: list[dict[str, Any]]) -> Failure:
    """The earliest error that is no consequence of another; its last lines, without what follows from it."""
    if signs := read_signs(agents):
        behind = find_behind(signs)
        stack = read_stack(plan.log_dir / stacks_name(behind.host, behind.rank))
        return Failure(host=behind.host, rank=behind.rank, code=None, lines=stack, hang=behind)
    failed = sorted((w for w in workers if w["code"] not in (0, SAVED)), key=lambda w: w["ended_s"])
    tails = {
        worker["rank"]: read_tail(plan.log_dir / f"{worker['host']}-rank-{worker['rank']}.log") for worker in failed
    }
    causes = [w for w in failed if w["code"] < 0 or not any(CONSEQUENCE.search(line) for line in tails[w["rank"]])]
    if causes:
        # a mistake of the user's ends all processes alike, and process 0 alone says what it is
        cause = min(causes, key=lambda w: w["rank"]) if causes[0]["code"] == USER_ERROR else causes[0]
        return Failure(host=cause["host"], rank=cause["rank"], code=cause["code"], lines=tails[cause["rank"]])
    seen = {agent["host"] for agent in agents}
    for host in plan.nodes:
        if not any(same_host(host, name) for name in seen):
            return Failure(host=host, rank=None, code=None, lines=())
    for agent in sorted(agents, key=lambda agent: agent["ended_s"]):
        if agent["code"]:
            log = plan.log_dir / f"{agent['host']}-launcher.log"
            return Failure(host=agent["host"], rank=None, code=agent["code"], lines=read_tail(log))
    last = failed[0] if failed else {"host": plan.nodes[0], "rank": None, "code": None}
    return Failure(host=last["host"], rank=last["rank"], code=last["code"], lines=tails.get(last["rank"], ()))


def same_host(one: str, other: str) -> bool:
    """Do two names mean one host? One may carry the domain."""
    return one.partition(".")[0] == other.partition(".")[0]


def read_tail(file: Path) -> tuple[str, ...]:
    """The last lines of a log."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().st_size - TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ()
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-TAIL_LINES:]


def _records(plan: Plan, pattern: str) -> list[dict[str, Any]]:
    return list(_read_json(plan.log_dir.glob(pattern)))


def _read_json(files: Iterator[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            yield json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
