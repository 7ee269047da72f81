"""The timeline of a run: events that are appended and read back, and where the time of a run went."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_train.timeline import (
    EVENTS_FILE,
    PARTS,
    USEFUL,
    Timeline,
    append_event,
    describe,
    describe_duration,
    read_events,
    summarise,
)

T = 1_790_000_000.0


def event(at_s, attempt, name, **values):
    return {"time": T + at_s, "attempt": attempt, "event": name, **values}


def spent(timeline):
    """The parts that are not empty, rounded."""
    return {part: round(seconds, 3) for part, seconds in timeline.parts.items() if seconds > 1e-6}


def undisturbed():
    """A run that no launcher started: the process began at -3."""
    return [
        event(0, 1, "start", step=0, processes=1, prepare_s=3.0),
        event(0.5, 1, "train", step=0, repeats=0),
        event(5.5, 1, "checkpoint", step=50, write_s=0, stall_s=0.1, bytes=10),
        event(10.7, 1, "trained", step=100, elapsed_s=10.0, why="max_steps"),
        event(14.7, 1, "evaluated", seconds=4.0),
        event(16.7, 1, "reported", seconds=2.0),
    ]


def launched():
    """Preempted and requeued, then crashed at step 75 and started again from 60."""
    job = {"job": "17", "hosts": ["n1", "n2"]}
    return [
        event(0, 1, "attempt", **job),
        event(4, 1, "start", step=0, processes=4, prepare_s=2.0),
        event(5, 1, "train", step=0, repeats=0),
        event(25, 1, "stop", step=40, reason="SIGTERM"),
        event(26, 1, "end", kind="stopped", reason="preempted", first_step=0, last_step=40, made_step=40,
              action="requeue"),
        event(56, 2, "attempt", **job),
        event(59, 2, "start", step=40, processes=4, prepare_s=2.0),
        event(60, 2, "train", step=40, repeats=0),
        event(70, 2, "checkpoint", step=60, write_s=0, stall_s=1, bytes=10),
        event(77, 2, "hang", rank=3, host="n2", phase="step", step=75, silent_s=1.0),
        event(77, 2, "hang", rank=2, host="n1", phase="step", step=75, silent_s=1.0),
        event(78, 2, "end", kind="crashed", reason="process 3", first_step=40, last_step=60, made_step=75,
              action="restart"),
        event(79, 3, "attempt", **job),
        event(82, 3, "start", step=60, processes=4, prepare_s=2.0),
        event(83, 3, "train", step=60, repeats=15),
        event(103, 3, "trained", step=100, elapsed_s=50.0, why="max_steps"),
        event(108, 3, "evaluated", seconds=5.0),
    ]  # fmt: skip


# ---- the file


def test_events_come_back_as_they_were_written(tmp_path: Path) -> None:
    before_s = time.time()
    append_event(tmp_path, "attempt", attempt=2, job="17", hosts=["n1", "n2"])
    append_event(tmp_path, "failed", attempt=1, step=3, why='a "line"\nand another: é', loss=float("nan"))
    append_event(
        tmp_path, "checkpoint", attempt=2, at=[float("inf"), {"x": float("-inf")}], path=Path("/a"), big="x" * 9999
    )
    events = read_events(tmp_path)
    assert [(e["attempt"], e["event"]) for e in events] == [(1, "failed"), (2, "attempt"), (2, "checkpoint")]
    assert events[0]["why"] == 'a "line"\nand another: é' and events[0]["loss"] is None
    assert events[2]["at"] == [None, {"x": None}] and events[2]["path"] == "/a" and len(events[2]["big"]) == 500
    assert events[1]["hosts"] == ["n1", "n2"]
    assert all(
        before_s - 0.001 <= e["time"] <= time.time() + 0.001 and e["time"] == round(e["time"], 3) for e in events
    )
    assert len((tmp_path / EVENTS_FILE).read_text().splitlines()) == 3


def test_what_is_torn_or_foreign_is_passed_over(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    append_event(tmp_path, "start", attempt=1, step=0)
    whole = (tmp_path / EVENTS_FILE).read_bytes()
    foreign = [b"[]", b"7", b"null", b'{"time": 1, "attempt": 1}', b"\xff\x00",
               b'{"time": 1, "attempt": "1", "event": "x"}', b"[" * 100_000,
               b'{"time": NaN, "attempt": 1, "event": "x"}', b'{"time": 1e99, "attempt": 1, "event": "x"}',
               b'{"time": true, "attempt": 1, "event": "x"}', b'{"time": 1, "attempt": 1.5, "event": "x"}',
               b'{"time": 1' + b"0" * 400 + b', "attempt": 1, "event": "x"}',
               b'{"time": 1, "attempt": 1, "event": 7}']  # fmt: skip
    (tmp_path / EVENTS_FILE).write_bytes(b"\n".join([*foreign, b""]) + whole)
    assert [e["event"] for e in read_events(tmp_path)] == ["start"]
    # the end of a line that a full disk tore is the beginning of the next one
    (tmp_path / EVENTS_FILE).write_bytes(whole[:30] + whole + whole[:-9])
    assert [e["event"] for e in read_events(tmp_path)] == ["start"]
    append_event(tmp_path, "stop", attempt=1, step=4, reason="after the torn one")
    assert [e["event"] for e in read_events(tmp_path)] == ["start", "stop"]


WRITER = """
import pathlib, sys
from nn_train.timeline import append_event
sys.stdin.read()
for step in range(200):
    append_event(pathlib.Path(sys.argv[1]), "checkpoint", attempt=int(sys.argv[2]), step=step, why="x" * 300)
"""


def test_processes_that_append_at_the_same_moment_tear_no_line(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number)], stdin=subprocess.PIPE)
        for number in (1, 2, 3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    events = read_events(tmp_path)
    assert [(e["attempt"], e["step"]) for e in events] == [(n, step) for n in (1, 2, 3) for step in range(200)]


def test_a_timeline_that_cannot_be_written_stops_nothing(tmp_path: Path, small_disk: Path) -> None:
    append_event(tmp_path / "none", "start", attempt=1)
    (tmp_path / EVENTS_FILE).mkdir()
    append_event(tmp_path, "start", attempt=1)
    assert read_events(tmp_path) == []
    append_event(small_disk, "start", attempt=1)
    with pytest.raises(OSError), (small_disk / "full").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
    for step in range(100):
        append_event(small_disk, "checkpoint", attempt=1, step=step, why="x" * 400)
    (small_disk / "full").unlink()
    append_event(small_disk, "stop", attempt=1)
    names = [e["event"] for e in read_events(small_disk)]
    assert names[0] == "start" and names[-1] == "stop" and len(names) < 102


def test_an_event_that_was_read_is_written_as_it_was(tmp_path: Path) -> None:
    append_event(tmp_path, "attempt", attempt=3, job="17")
    events = read_events(tmp_path)
    (tmp_path / EVENTS_FILE).unlink()
    time.sleep(0.01)
    append_event(tmp_path, **events[0])
    assert read_events(tmp_path) == events


def test_a_login_node_needs_nothing_but_the_standard_library() -> None:
    code = "import sys; had = set(sys.modules); import nn_train.timeline; print(*set(sys.modules) - had)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    others = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    assert (done.stderr, others) == ("", {"nn_train"})


# ---- where the time went


def test_nothing_is_known_of_no_events() -> None:
    assert summarise([]) == Timeline()
    assert (describe(Timeline()), Timeline().goodput, Timeline().useful_s) == ("", 1.0, 0)


def test_an_undisturbed_run_is_all_of_use() -> None:
    timeline = summarise(undisturbed())
    # 0.2 s of what lies between `train` and `trained` is not on the loop's own clock
    assert spent(timeline) == {"preparing": 3.7, "training": 10.0, "evaluating": 6.0}
    assert (round(timeline.total_s, 3), timeline.goodput) == (19.7, pytest.approx(1))
    assert describe(timeline) == "goodput 1.00: 19.7 s useful of 19.7 s"
    assert (timeline.crashes, timeline.requeues, timeline.lost_steps, timeline.attempts[0].kind) == (0, 0, 0, "done")


def test_a_run_that_is_still_on_its_way() -> None:
    events = undisturbed()
    assert describe(summarise(events[:1])) == "goodput 1.00: 3.0 s useful of 3.0 s"
    assert spent(summarise(events[:3])) == {"preparing": 3.5, "training": 5.0}
    assert spent(summarise(events[:5])) == {"preparing": 3.7, "training": 10.0, "evaluating": 4.0}
    assert [summarise(events[:n]).attempts[0].kind for n in (1, 3, 4, 5)] == ["no word", "no word", "no word", "done"]
    assert summarise([*events[:1], event(9, 1, "skipped", step=3)]).crashes == 0


def test_a_launched_run_that_was_preempted_and_crashed() -> None:
    timeline = summarise(launched())
    assert spent(timeline) == {
        "preparing": 5.0,  # from the claim, the launcher's own start with it
        "training": 20.0 + 10.0 + 20.0,
        "evaluating": 5.0,
        "preparing_again": 4.0 + 4.0,
        "lost": 8.0,  # after the last checkpoint
        "waiting": 30.0 + 1.0,
        "other": 1.0,  # between `stop` and `end`
    }
    assert (timeline.total_s, timeline.useful_s) == (108, 60)
    assert (timeline.crashes, timeline.requeues, timeline.hangs, timeline.lost_steps) == (1, 1, 1, 15)
    assert timeline.stop_reasons == ("preempted",)
    rows = [(a.number, a.kind, a.job, a.hosts, a.first_step, a.last_step, a.lost_steps) for a in timeline.attempts]
    assert rows == [
        (1, "stopped", "17", ("n1", "n2"), 0, 40, 0),
        (2, "crashed", "17", ("n1", "n2"), 40, 60, 15),
        (3, "done", "17", ("n1", "n2"), 60, 100, 0),
    ]
    assert describe(timeline) == (
        "goodput 0.56: 60.0 s useful of 108.0 s; 3 attempts, 1 crash, 1 requeue, 1 hang; "
        "15 steps made again, 31.0 s waiting"
    )
    figures = json.loads(json.dumps(timeline.to_json()))
    assert (figures["goodput"], figures["attempts"], figures["parts"]["lost"]) == (0.556, 3, 8.0)


def test_what_was_made_while_a_checkpoint_was_written_is_not_in_it() -> None:
    events = [
        event(0, 1, "start", step=0, prepare_s=1),
        event(0, 1, "train", step=0, repeats=0),
        event(10, 1, "checkpoint", step=50, write_s=4.0, stall_s=1.0, bytes=1),
        event(12, 1, "failed", step=50, why="ValueError"),
        event(20, 2, "start", step=50, prepare_s=2),
        event(20, 2, "train", step=50, repeats=25),
        event(30, 2, "trained", step=100, elapsed_s=99, why="max_steps"),
    ]
    timeline = summarise(events)
    # 6 s until the copy was taken; from then on training went on beside the writing
    assert spent(timeline) == {"preparing": 1, "training": 6 + 10, "lost": 6, "paused": 6, "preparing_again": 2}
    assert (timeline.crashes, timeline.lost_steps, timeline.stall_mean_s, timeline.stall_longest_s) == (1, 25, 1.0, 1.0)
    assert timeline.attempts[0].reason == "ValueError"


def test_a_damaged_checkpoint_takes_the_training_after_the_one_before_it() -> None:
    events = [
        event(0, 1, "start", step=0, prepare_s=0),
        event(0, 1, "train", step=0, repeats=0),
        event(10, 1, "checkpoint", step=10),
        event(20, 1, "checkpoint", step=20),
        event(30, 1, "checkpoint", step=30),
        event(31, 1, "end", kind="crashed", first_step=0, last_step=30, made_step=31, action="restart"),
        event(31, 2, "attempt", job="", hosts=["h"]),
        event(31, 2, "train", step=10, repeats=21),
    ]
    assert spent(summarise(events)) == {"training": 10, "lost": 21}
    assert summarise(events).lost_steps == 21
    # and so does going back within an attempt
    events = [*events[:5], event(32, 1, "restored", step=32, to=20), event(42, 1, "checkpoint", step=30)]
    assert spent(summarise(events)) == {"training": 20 + 10, "lost": 12}
    assert (summarise(events).lost_steps, summarise(events).restored) == (12, 1)
    assert describe(summarise(events)).endswith("; 12 steps made again\n1 return to a checkpoint")


def test_an_attempt_that_was_killed_leaves_no_word() -> None:
    """What it did after its last event is known by the steps that are made again; nobody was to start it again."""
    events = [
        event(0, 1, "start", step=0, prepare_s=2),
        event(0, 1, "train", step=0, repeats=0),
        event(10, 1, "checkpoint", step=20),
        event(60, 2, "start", step=20, prepare_s=3),
        event(61, 2, "train", step=20, repeats=30),
        event(101, 2, "trained", step=100, elapsed_s=50.0),
    ]
    timeline = summarise(events)
    # half a second a step
    assert spent(timeline) == {"preparing": 2, "training": 50, "lost": 15, "waiting": 32, "preparing_again": 4}
    assert (timeline.crashes, timeline.lost_steps, timeline.attempts[0].kind) == (1, 30, "no word")
    assert [(s.attempt, s.part) for s in timeline.spans if s.part in ("lost", "waiting")] == [
        (1, "lost"),
        (2, "waiting"),
    ]
    # never more than the gap
    events[4]["repeats"] = 10_000
    assert spent(summarise(events)) == {"preparing": 2, "training": 50, "lost": 47, "preparing_again": 4}
    # killed again while it prepared: the gap after that is no training
    again = [event(40, 2, "start", step=20, prepare_s=1), *[e | {"attempt": 3} for e in events[3:]]]
    again[2]["repeats"] = 30
    assert spent(summarise(events[:3] + again)) == {
        "preparing": 2, "training": 50, "lost": 15, "waiting": 14 + 17, "preparing_again": 1 + 4
    }  # fmt: skip


def test_a_host_that_was_lost_is_told_of_by_the_next_attempt() -> None:
    end = {"kind": "lost", "reason": "", "first_step": 0, "last_step": 20, "made_step": None, "action": "restart"}
    events = [
        event(0, 1, "attempt", job="17", hosts=["n1"]),
        event(2, 1, "start", step=0, prepare_s=2),
        event(2, 1, "train", step=0, repeats=0),
        event(12, 1, "checkpoint", step=20),
        event(500, 1, "end", **end),
        event(500, 2, "attempt", job="17", hosts=["n2"]),
        event(502, 2, "start", step=20, prepare_s=2),
        event(502, 2, "train", step=20, repeats=10),
        event(542, 2, "trained", step=100, elapsed_s=50.0),
    ]
    expected = {"preparing": 2, "training": 50, "lost": 5, "waiting": 483, "preparing_again": 2}
    assert spent(summarise(events)) == expected
    # Slurm requeued the job by itself, and nobody wrote an end
    timeline = summarise([e for e in events if e["event"] != "end"])
    assert spent(timeline) == expected
    assert (timeline.crashes, timeline.requeues, timeline.lost_steps) == (1, 1, 10)


@pytest.mark.parametrize(
    ("action", "job", "part"),
    [("stay", "18", "paused"), ("requeue", "17", "waiting"), ("stay", "17", "waiting"), ("give_up", "18", "paused")],
)
def test_only_a_gap_in_which_the_run_was_to_go_on_is_waiting(action: str, job: str, part: str) -> None:
    events = launched()[:5]
    events[-1]["action"] = action
    more = [e | {"attempt": 2, "time": e["time"] + 86_400 + 26} for e in launched()[:3]]
    more[0] |= {"job": job}
    more[2] |= {"step": 40}
    timeline = summarise(events + more)
    assert round(timeline.parts[part], 3) == 86_400
    assert timeline.total_s == 86_400 + 26 + 5
    assert timeline.goodput == pytest.approx(25 / (31 if part == "paused" else 86_431))
    assert (f"24.0 h {part}") in describe(timeline)


def test_a_run_that_is_extended_days_after_it_was_done() -> None:
    days = 3 * 86_400
    more = [
        event(days, 2, "start", step=100, prepare_s=2),
        event(days, 2, "train", step=100, repeats=0),
        event(days + 10, 2, "trained", step=200, elapsed_s=20.0),
        event(days + 14, 2, "evaluated", seconds=4),
        event(days + 16, 2, "reported", seconds=4),
    ]
    timeline = summarise(undisturbed() + more)
    # the 0.2 s until the first step are shared out evenly
    assert spent(timeline) == {"preparing": 3.6, "training": 20, "evaluating": 12, "preparing_again": 2.1,
                               "paused": days - 2 - 16.7}  # fmt: skip
    assert describe(timeline) == "goodput 0.94: 35.6 s useful of 37.7 s; 2 attempts; 3.0 d paused"
    # a report that was cut off is no reason to wait: the run was done
    cut = summarise([e for e in undisturbed() if e["event"] != "reported"] + more)
    assert "waiting" not in spent(cut)
    # the launcher starts a run that is done once more, and finds nothing to do
    idle = [
        event(days + 100, 3, "attempt", job="", hosts=["h"]),
        event(days + 103, 3, "end", kind="done", action="finish"),
    ]
    assert spent(summarise(undisturbed() + more + idle))["preparing_again"] == 2.1 + 3


def test_clocks_that_disagree_make_no_time_negative() -> None:
    events = launched()
    for e in events:
        if e["event"] in ("attempt", "end", "hang"):
            e["time"] -= 5  # the launcher's host is behind
    timeline = summarise(events)
    assert timeline.total_s == 113
    assert sum(timeline.parts.values()) == pytest.approx(timeline.total_s)
    assert timeline.parts["lost"] == pytest.approx(3) and min(timeline.parts.values()) >= 0


def test_a_script_that_writes_no_events_of_its_own() -> None:
    one = [event(0, 1, "attempt", job="", hosts=["h"]), event(60, 1, "end", kind="done", action="finish")]
    assert describe(summarise(one)) == "goodput 1.00: 60.0 s useful of 60.0 s"
    crash = {"kind": "crashed", "first_step": 0, "last_step": 0, "made_step": 4, "action": "restart"}
    two = [one[0], event(30, 1, "end", **crash), *[e | {"attempt": 2, "time": e["time"] + 30} for e in one]]
    assert spent(summarise(two)) == {"lost": 30, "training": 60}
    assert summarise(two).lost_steps == 4
    two[1] |= {"last_step": 3}  # it saves by itself
    assert spent(summarise(two)) == {"training": 90}


def test_troubles_are_a_second_line() -> None:
    events = [*undisturbed()[:3], *(event(6 + n, 1, "checkpoint_failed", step=60, why="full") for n in range(2))]
    events += [event(9, 1, "skipped", step=70, rows=[1, 2])]
    assert describe(summarise(events)).splitlines()[1] == "2 of 3 checkpoints could not be written, 1 batch skipped"


def test_durations_for_a_person() -> None:
    said = [describe_duration(s) for s in (0, 61.23, 119.9, 720, 7300, 200_000)]
    assert said == ["0.0 s", "61.2 s", "119.9 s", "12.0 min", "2.0 h", "2.3 d"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 200),
    st.floats(),
    st.sampled_from(["", "17", "done", "stopped", "crashed", "lost", "restart", "requeue", "stay"]),
    st.lists(st.integers(), max_size=2),
    st.just(10**400),
)  # fmt: skip
NAMES = ("start", "train", "checkpoint", "checkpoint_failed", "skipped", "restored", "stop", "trained", "evaluated",
         "reported", "failed", "attempt", "hang", "end", "of a later version")  # fmt: skip
KEYS = ("step", "to", "prepare_s", "repeats", "write_s", "stall_s", "elapsed_s", "kind", "reason", "first_step",
        "last_step", "made_step", "action", "job", "hosts", "why")  # fmt: skip
EVENTS = st.lists(
    st.builds(
        lambda at_s, attempt, name, values: {**values, "time": at_s, "attempt": attempt, "event": name},
        st.one_of(st.integers(0, 300), st.floats(0, 4e9)),
        st.integers(0, 4),
        st.sampled_from(NAMES),
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8),
    ),
    max_size=25,
)
ANY = settings(max_examples=300, deadline=None)


@ANY
@given(EVENTS)
def test_whatever_happened_the_parts_add_up(events: list[dict]) -> None:
    timeline = summarise(events)
    assert set(timeline.parts) == set(PARTS)
    assert all(seconds >= 0 for seconds in timeline.parts.values())
    assert sum(timeline.parts.values()) == pytest.approx(timeline.total_s, abs=1e-3)
    assert 0 <= timeline.goodput <= 1
    assert 0 <= timeline.useful_s <= timeline.total_s + 1e-3
    assert timeline.lost_steps >= 0 and timeline.crashes <= len(timeline.attempts) == len(
        {e["attempt"] for e in events}
    )
    for one, other in zip(timeline.spans, timeline.spans[1:], strict=False):
        assert one.from_s < one.to_s == other.from_s < other.to_s
    assert bool(describe(timeline)) == bool(events)
    json.dumps(timeline.to_json(), allow_nan=False)


@ANY
@given(EVENTS, st.randoms())
def test_only_the_order_within_an_attempt_counts(events: list[dict], random) -> None:
    order = sorted(events, key=lambda e: e["attempt"])
    numbers = [e["attempt"] for e in events]
    random.shuffle(numbers)
    queues = {number: [e for e in order if e["attempt"] == number] for number in numbers}
    assert summarise([queues[number].pop(0) for number in numbers]) == summarise(events)


def step_clock(seconds, prepare, every):
    """A run with one event after another, as an undisturbed training writes them."""
    events = [event(0, 1, "start", step=0, prepare_s=prepare), event(0, 1, "train", step=0, repeats=0)]
    steps = range(every, int(seconds * 10), every)
    events += [event(step / 10, 1, "checkpoint", step=step, write_s=0.05, stall_s=0.01) for step in steps]
    return [*events, event(seconds, 1, "trained", step=int(seconds * 10), elapsed_s=seconds),
            event(seconds + 2, 1, "evaluated", seconds=2.0)]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.integers(5, 60), st.integers(0, 9), st.integers(7, 90), st.data())
def test_a_kill_costs_what_it_took(seconds: int, prepare: int, every: int, data: st.DataObject) -> None:
    """A run that is killed anywhere and goes on has the useful time of the undisturbed one, and its costs besides."""
    whole = step_clock(seconds, prepare, every)
    assert summarise(whole).goodput == pytest.approx(1)
    place = data.draw(st.integers(2, len(whole) - 2))
    before = whole[:place]
    safe, safe_s = max((e.get("step", 0), e["time"]) for e in before)
    killed_s, gap = safe_s - T, 40
    more = [
        event(killed_s + gap, 2, "start", step=safe, prepare_s=5),
        event(killed_s + gap, 2, "train", step=safe, repeats=0),
    ]
    more += [e | {"attempt": 2, "time": e["time"] + gap} for e in whole[place:]]
    timeline = summarise(before + more)
    assert timeline.useful_s == pytest.approx(summarise(whole).useful_s, abs=0.1)
    assert timeline.total_s - timeline.useful_s == pytest.approx(gap, abs=0.1)
    assert timeline.crashes == 1 and sum(timeline.parts[part] for part in PARTS if part not in USEFUL) <= gap + 0.1
