"""The timeline of a run: what happened when, over all its attempts, and how much of the time was of use.

`RUN/events.jsonl` holds one line per event, `{"time": ..., "attempt": ..., "event": ..., ...}`:

| event | by | values |
|---|---|---|
| `start` | training | step (where it goes on from), processes, prepare_s (since the process began) |
| `train` | training | step, repeats (steps that were made before and are made again) |
| `checkpoint` | training | step, stall_s (training waited for the copy), write_s (then beside the training), bytes |
| `checkpoint_failed` | training | step, why |
| `skipped` | training | step, rows (the first few row numbers) |
| `restored` | training | step (where it was), to (the step that it went back to) |
| `stop` | training | step, reason |
| `trained` | training | step, elapsed_s (training time that counts, over all attempts), why |
| `evaluated`, `reported` | training | seconds |
| `failed` | training | step, why |
| `attempt` | launcher | job, hosts |
| `hang` | launcher | rank, host, phase, step, silent_s |
| `end` | launcher | kind, reason, first_step, last_step (steps that are safe), made_step (or null), action |

The training writes from its main process. An `end`'s kind is done, stopped, wrong_input, crashed or lost, and its
action finish, restart, requeue, stay or give_up. An attempt that was killed has no event of the training after its
last one, and a run that no launcher started has none of the launcher's.

Imports the standard library alone, since the launcher uses it on login nodes.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

EVENTS_FILE = "events.jsonl"
Event = dict[str, Any]
MOST_CHARS = 500  # of one text: a traceback belongs into the log
LATEST_S, LARGEST = 1e11, 1e15  # a time beyond, or another number, was not written by this program
# What the time of a run goes into; the first three are of use, and a pause is nobody's loss.
PARTS = {
    "preparing": "first preparation",
    "training": "training that counts",
    "evaluating": "evaluation and report",
    "preparing_again": "later preparations",
    "lost": "lost training",
    "waiting": "waiting",
    "other": "other",
    "paused": "paused",
}
USEFUL = ("preparing", "training", "evaluating")
# Where the time of a phase goes that did not come to its end.
BROKEN_OFF = {"preparing": "preparing_again", "training": "lost", "evaluating": "other"}
BY_LAUNCHER = ("attempt", "hang", "end")
GOES_ON = ("restart", "requeue")  # the actions after which nobody but the launcher or Slurm is waited for


def append_event(run_dir: Path, event: str, *, attempt: int, **values: Any) -> None:
    """Append one line to the run's timeline; one that cannot be written is left out, and stops nothing.

    It does not ask who owns the run: whoever calls looks at the fence first. An event that was read is
    written as it was, with its time.
    """
    line = {"time": round(time.time(), 3), "attempt": attempt, "event": event, **_plain(values)}
    with contextlib.suppress(OSError):
        handle = os.open(run_dir / EVENTS_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(handle, f"{json.dumps(line, default=str)}\n".encode())  # in one piece: others append too
        finally:
            os.close(handle)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        return value[:MOST_CHARS]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_events(run_dir: Path) -> list[Event]:
    """The events of a run by attempt, each attempt's in the order of the file; what is no event is passed over."""
    try:
        lines = (run_dir / EVENTS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events = [event for line in lines if (event := _parse(line)) is not None]
    return sorted(events, key=lambda event: event["attempt"])


def _parse(line: str) -> Event | None:
    # a line that a full disk or a killed host tore has the next one at its end
    for text in dict.fromkeys((line, line[max(0, line.rfind('{"time": ')) :])):
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            moment, attempt = event.get("time"), event.get("attempt")
            if is_number(moment) and 0 <= moment < LATEST_S and is_number(attempt) and isinstance(attempt, int):
                return event
    return None


def is_number(value: object) -> TypeGuard[float]:
    """Is it a number that can be meant, and no truth value?"""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _seconds(event: Event, name: str) -> float | None:
    value = event.get(name)
    return max(0.0, float(value)) if is_number(value) else None


def _step(event: Event, name: str) -> int | None:
    value = event.get(name)
    return int(value) if is_number(value) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of wall time that went into one part; times are seconds since 1970.

    What lies between two attempts belongs to the later one. `step`: what was safe after it, of a training.
    """

    attempt: int
    part: str
    from_s: float
    to_s: float
    step: int = 0

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.to_s - self.from_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptSummary:
    """One attempt as its events tell; `kind` is an `end`'s, or failed, or `no word` where there was none."""

    number: int
    job: str
    hosts: tuple[str, ...]
    began_s: float
    kind: str
    reason: str
    action: str
    first_step: int | None
    last_step: int | None
    lost_steps: int
    checkpoints_s: tuple[float, ...]  # when each was there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where the time of a run went; `parts` has a number of seconds for each of PARTS, and they add up to `total_s`.

    `total_s` is the wall time from the beginning of the first attempt to the last event. `paused` is the
    time in which the run was not meant to go on: it was done and later extended, or was stopped, or given
    up, until somebody started it again.
    """

    total_s: float = 0.0
    parts: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    attempts: tuple[AttemptSummary, ...] = ()
    spans: tuple[Span, ...] = ()
    crashes: int = 0  # attempts that ended with an error, or were killed or lost
    requeues: int = 0
    hangs: int = 0
    checkpoints: int = 0
    checkpoints_failed: int = 0
    stall_mean_s: float = 0.0  # how long training waited for a checkpoint
    stall_longest_s: float = 0.0
    skipped: int = 0
    restored: int = 0
    lost_steps: int = 0  # steps that were made and have to be made again
    stop_reasons: tuple[str, ...] = ()

    @property
    def useful_s(self) -> float:
        """What the run would have taken undisturbed."""
        return sum(self.parts[part] for part in USEFUL)

    @property
    def active_s(self) -> float:
        """The wall time in which the run was meant to go on."""
        return self.total_s - self.parts["paused"]

    @property
    def goodput(self) -> float:
        """The share of the time that was of use, from 0 to 1; 1 where no time has passed."""
        return min(1.0, self.useful_s / self.active_s) if self.active_s > 0 else 1.0

    def to_json(self) -> dict[str, Any]:
        """The figures, without the single attempts and stretches."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        figures = fields | {
            "goodput": self.goodput,
            "useful_s": self.useful_s,
            "active_s": self.active_s,
            "attempts": len(self.attempts),
            "parts": {part: round(seconds, 3) for part, seconds in self.parts.items()},
        }
        del figures["spans"]
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}


def summarise(events: Iterable[Event]) -> Timeline:
    """Add up where the time of a run went.

    Clocks of different hosts may disagree: an event that seems to come before the one before it counts as
    simultaneous with it. What an attempt that was killed did after its last event is told by the steps that
    are made again, at the run's mean speed; the rest of the gap is waiting.
    """
    groups: dict[int, list[Event]] = {}
    for event in sorted(events, key=lambda event: event["attempt"]):
        groups.setdefault(event["attempt"], []).append(event)
    if not groups:
        return Timeline()
    ledger = _Ledger(knows_training=any(e["event"] not in BY_LAUNCHER for group in groups.values() for e in group))
    for number, group in groups.items():
        ledger.begin(number, group)
        for event in group:
            ledger.take(event)
    spans = ledger.finish()
    parts = dict.fromkeys(PARTS, 0.0)
    for span in spans:
        parts[span.part] += span.seconds
    set_up_s = min(ledger.set_up_s, parts["training"])
    parts["training"] -= set_up_s
    parts["preparing"] += set_up_s / max(1, ledger.set_ups)
    parts["preparing_again"] += set_up_s - set_up_s / max(1, ledger.set_ups)
    attempts = _read_attempts(groups, ledger.began_s)
    named = [(event["event"], event) for group in groups.values() for event in group]
    stalls = [_seconds(event, "stall_s") or 0.0 for name, event in named if name == "checkpoint"]
    counts = {name: sum(other == name for other, _ in named) for name in ("checkpoint_failed", "skipped", "restored")}
    return Timeline(
        total_s=ledger.now_s - ledger.first_s,
        parts=parts,
        attempts=attempts,
        spans=spans,
        crashes=sum(_has_crashed(attempt, is_last=attempt is attempts[-1]) for attempt in attempts),
        requeues=_count_requeues(attempts),
        # several processes may tell of the same one
        hangs=len({(event["attempt"], _step(event, "step")) for name, event in named if name == "hang"}),
        checkpoints=len(stalls),
        checkpoints_failed=counts["checkpoint_failed"],
        stall_mean_s=sum(stalls) / len(stalls) if stalls else 0.0,
        stall_longest_s=max(stalls, default=0.0),
        skipped=counts["skipped"],
        restored=counts["restored"],
        lost_steps=sum(attempt.lost_steps for attempt in attempts),
        stop_reasons=tuple(a.reason for a in attempts if a.kind == "stopped" and a.reason),
    )


class _Ledger:
    """Goes through the events in order and lays spans end to end, so that they always add up.

    At any moment one phase is open, since `since_s`; its name is the part that it is meant for. An event closes
    it, and says whether it came to its end or was broken off.
    """

    def __init__(self, *, knows_training: bool):
        self.knows_training = knows_training  # false: a script that is not the project's own, under the launcher
        self.spans: list[Span] = []
        self.began_s: dict[int, float] = {}
        self.attempt = 0
        self.job = ""
        self.phase = "waiting"
        self.first_s = self.since_s = self.now_s = 0.0
        self.step = 0  # what is safe
        self.is_prepared = False  # the first preparation is of use: training came of it
        self.is_done = False  # all that is left is the report
        self.trainings = 0  # how many attempts came to train
        self.set_up_s, self.set_ups = 0.0, 0  # what they needed until their first step, known at the end
        self.is_silent = False  # the last training was broken off, and nobody knows when
        self.silence: int | None = None  # the place of the gap that holds the rest of such a training
        self.repeats: dict[int, int] = {}  # place of such a gap -> steps that were made again after it

    def begin(self, number: int, group: Sequence[Event]) -> None:
        """The first event of a new attempt: what was open before it is over."""
        first = group[0]
        prepare_s = (_seconds(first, "prepare_s") or 0.0) if first["event"] == "start" else 0.0
        began_s = max(0.0, first["time"] - prepare_s)
        job = next((str(event.get("job") or "") for event in group if event["event"] == "attempt"), "")
        if not self.began_s:
            self.first_s = self.since_s = self.now_s = began_s
        else:
            if self.phase not in ("waiting", "paused"):
                self._leave()
            if job and job == self.job:
                self.phase = "waiting"  # whatever its end said: Slurm took the job back into its queue
            self.attempt = number
            self.now_s = max(self.now_s, began_s)
            self._close(self.now_s)
            if self.is_silent and self.spans and self.spans[-1].part == "waiting":
                self.silence = len(self.spans) - 1
            self.is_silent = False
        self.attempt, self.job, self.is_done = number, job, False
        self.began_s[number] = self.now_s
        self.phase = "preparing" if self.knows_training else "training"

    def _leave(self) -> None:
        """An attempt went without a word of a launcher: on purpose if it said so itself, or else it was killed."""
        was_killed = self.phase != "other" and not self.is_done
        self.is_silent = self.phase == "training"
        self._close(self.now_s, is_whole=False)
        self.phase = "waiting" if was_killed else "paused"

    def take(self, event: Event) -> None:
        """One event of the attempt that has begun."""
        before_s, self.now_s = self.now_s, max(self.now_s, event["time"])
        match event["event"]:
            case "train":
                self._train(event)
            case "checkpoint" if self.phase == "training":
                self.step = self._known_step(event)
                # while it was written training went on, with steps that it does not hold
                self._close(max(self.since_s, self.now_s - (_seconds(event, "write_s") or 0.0)))
            case "restored" if self.phase == "training":
                self._close(self.now_s, is_whole=False)
                self._go_back(_step(event, "to"))
            case "stop":
                self.step = self._known_step(event)
                self._close(self.now_s, is_whole=self.phase == "training")
                self._open("other")
            case "trained" if self.phase == "training":
                self.step = self._known_step(event)
                self._close(self.now_s)
                self._count(_seconds(event, "elapsed_s"))
                self._open("evaluating")
            case "evaluated" | "reported" if self.phase in ("training", "evaluating"):
                self._close(self.now_s)
                self.is_done = True
                self._open("evaluating" if event["event"] == "evaluated" else "other")
            case "failed":
                self._close(self.now_s, is_whole=False)
                self._open("other")
            case "end":
                self._end(event, before_s)

    def _known_step(self, event: Event) -> int:
        step = _step(event, "step")
        return self.step if step is None else step

    def _open(self, phase: str) -> None:
        if self.phase not in ("waiting", "paused"):  # a late word of an attempt that has ended changes nothing
            self.phase = phase

    def _train(self, event: Event) -> None:
        if self.phase in ("training", "waiting", "paused"):
            return
        self._close(self.now_s)
        self.is_prepared = True
        self.trainings += 1
        self.phase = "training"
        self._go_back(_step(event, "step"))
        if self.silence is not None:
            self.repeats[self.silence] = _step(event, "repeats") or 0
            self.silence = None

    def _go_back(self, step: int | None) -> None:
        """What was made beyond a step counts no more: the checkpoints after it were damaged, or given up."""
        self.step = self.step if step is None else step
        for place in reversed(range(len(self.spans))):
            if self.spans[place].part == "training":
                if self.spans[place].step <= self.step:
                    break
                self.spans[place] = dataclasses.replace(self.spans[place], part="lost")

    def _count(self, elapsed_s: float | None) -> None:
        """Between `train` and the first step lies the last of each preparation: the loop's own clock tells how much."""
        if elapsed_s is not None:
            trained_s = sum(span.seconds for span in self.spans if span.part == "training")
            self.set_up_s, self.set_ups = max(0.0, trained_s - elapsed_s), self.trainings

    def _end(self, event: Event, before_s: float) -> None:
        if self.phase in ("waiting", "paused"):
            return
        kind, action = event.get("kind"), event.get("action")
        first, last = _step(event, "first_step"), _step(event, "last_step")
        has_progress = first is not None and last is not None and last > first
        is_whole = kind in ("done", "stopped") or (has_progress and not self.knows_training)
        is_whole = is_whole and self.phase != "preparing"
        self.is_silent = kind == "lost" and self.phase == "training"
        self._close(before_s if kind == "lost" else self.now_s, is_whole=is_whole)
        goes_on = action in GOES_ON if isinstance(action, str) and action else kind in ("crashed", "lost")
        self.phase = "waiting" if goes_on else "paused"

    def _close(self, to_s: float, *, is_whole: bool = True) -> None:
        """Lay the open phase's span down to a moment; the phase stays open from there."""
        is_whole = is_whole and not (self.phase == "preparing" and self.is_prepared)
        part = self.phase if is_whole else BROKEN_OFF.get(self.phase, self.phase)
        if to_s > self.since_s:
            self.spans.append(Span(attempt=self.attempt, part=part, from_s=self.since_s, to_s=to_s, step=self.step))
            self.since_s = to_s

    def finish(self) -> tuple[Span, ...]:
        """All spans; what is open at the last event may yet come to its end."""
        self._close(self.now_s)
        trained = [span for span in self.spans if span.part == "training"]
        steps = max((span.step for span in trained), default=0)
        step_s = sum(span.seconds for span in trained) / steps if steps > 0 else 0.0
        spans: list[Span] = []
        for place, span in enumerate(self.spans):
            cut_s = min(span.to_s, span.from_s + step_s * max(0, self.repeats.get(place, 0)))
            if cut_s > span.from_s:
                before = self.spans[place - 1].attempt if place else span.attempt
                spans.append(dataclasses.replace(span, attempt=before, part="lost", to_s=cut_s))
            if span.to_s > cut_s:
                spans.append(dataclasses.replace(span, from_s=cut_s))
        return tuple(spans)


def _read_attempts(groups: dict[int, list[Event]], began_s: dict[int, float]) -> tuple[AttemptSummary, ...]:
    """Every attempt in plain values, and the steps that each lost."""
    lost = _lost_steps(groups)
    return tuple(
        _read_attempt(number, group, began_s=began_s[number], lost_steps=lost.get(number, 0))
        for number, group in groups.items()
    )


def _read_attempt(number: int, group: Sequence[Event], *, began_s: float, lost_steps: int) -> AttemptSummary:
    last = {event["event"]: event for event in group}
    claimed, end = last.get("attempt", {}), last.get("end", {})
    told = next((kind for name, kind in TOLD.items() if name in last), "no word")
    word = last.get("stop", {}).get("reason") or last.get("failed", {}).get("why") or ""
    safe = [_step(event, "step") for event in group if event["event"] in ("train", "checkpoint", "stop", "trained")]
    last_step = _step(end, "last_step")
    first = next((_step(last[name], "step") for name in ("train", "start") if name in last), _step(end, "first_step"))
    hosts = claimed.get("hosts")
    return AttemptSummary(
        number=number,
        job=str(claimed.get("job") or ""),
        hosts=tuple(map(str, hosts)) if isinstance(hosts, list) else (),
        began_s=began_s,
        kind=str(end.get("kind") or told),
        reason=str(end.get("reason") or word),
        action=str(end.get("action") or ""),
        first_step=first,
        last_step=max((step for step in safe if step is not None), default=None) if last_step is None else last_step,
        lost_steps=lost_steps,
        checkpoints_s=tuple(event["time"] for event in group if event["event"] == "checkpoint"),
    )


# What an attempt says of its own end, where no launcher does.
TOLD = {"failed": "failed", "stop": "stopped", "reported": "done", "evaluated": "done"}


def _lost_steps(groups: dict[int, list[Event]]) -> dict[int, int]:
    """Attempt -> steps that it made in vain: by its end, by what the next one repeats, and by going back."""
    lost = dict.fromkeys(groups, 0)
    knows_training = any(event["event"] == "train" for group in groups.values() for event in group)
    owner, pending = next(iter(groups)), 0  # who trained last, and what its end says that it has lost
    for number, group in groups.items():
        for event in group:
            made, safe, to = (_step(event, name) for name in ("made_step", "last_step", "to"))
            if event["event"] == "train":
                # it may go on from an older checkpoint than the end of the one before it knew of
                lost[owner] += max(pending, _step(event, "repeats") or 0)
                owner, pending = number, 0
            elif event["event"] == "restored" and to is not None:
                lost[number] += max(0, (_step(event, "step") or 0) - to)
            elif event["event"] == "end" and made is not None and safe is not None:
                if knows_training:  # an attempt that never came to train has lost none but those of the one before
                    pending = max(pending, made - safe)
                else:
                    lost[number] += max(0, made - safe)
    lost[owner] += pending
    return lost


def _has_crashed(attempt: AttemptSummary, *, is_last: bool) -> bool:
    return attempt.kind in ("crashed", "lost", "failed") or (attempt.kind == "no word" and not is_last)


def _count_requeues(attempts: Sequence[AttemptSummary]) -> int:
    by_slurm = sum(
        bool(one.job) and one.job == other.job and one.action not in GOES_ON
        for one, other in itertools.pairwise(attempts)
    )
    return by_slurm + sum(attempt.action == "requeue" for attempt in attempts)


def describe(timeline: Timeline) -> str:
    """A run's timeline in one line, and a second one if it had troubles; empty where nothing is known."""
    if not timeline.attempts:
        return ""
    useful, active = describe_duration(timeline.useful_s), describe_duration(timeline.active_s)
    ends = [
        _some(len(timeline.attempts) if len(timeline.attempts) > 1 else 0, "attempt"),
        _some(timeline.crashes, "crash", "crashes"),
        _some(timeline.requeues, "requeue"),
        _some(timeline.hangs, "hang"),
    ]
    costs = [
        f"{_some(timeline.lost_steps, 'step')} made again" if timeline.lost_steps else "",
        *(f"{describe_duration(timeline.parts[part])} {part}" for part in ("waiting", "paused")
          if timeline.parts[part] >= 0.05),
    ]  # fmt: skip
    troubles = [
        f"{timeline.checkpoints_failed} of {_some(timeline.checkpoints + timeline.checkpoints_failed, 'checkpoint')} "
        "could not be written" if timeline.checkpoints_failed else "",
        f"{_some(timeline.skipped, 'batch', 'batches')} skipped" if timeline.skipped else "",
        f"{_some(timeline.restored, 'return')} to a checkpoint" if timeline.restored else "",
    ]  # fmt: skip
    first = [f"goodput {timeline.goodput:.2f}: {useful} useful of {active}", *_join(ends, costs)]
    return "\n".join(["; ".join(first), *_join(troubles)])


def _join(*groups: Sequence[str]) -> list[str]:
    return [", ".join(filter(None, group)) for group in groups if any(group)]


def _some(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or f'{one}s'}" if count else ""


def describe_duration(seconds: float) -> str:
    """A duration in one unit: `61.2 s`, `12.3 min`, `3.4 h`, `2.5 d`."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86_400:.1f} d"
