"""Who hangs: a pure judgement of the signs, the stacks of a real process, and a watchdog that was itself stopped."""

import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.outcome import Failure
from launch.watch import PAUSE_S, Sign, Watchdog, find_behind, is_hung, read_signs, read_stack
from nn_train.pulse import PHASES, RECORD
from tests.launch.shared import wait_for
from tests.test_pulse import start_sleeper


def sign(**values: object) -> Sign:
    """A process that is well, but for `values`."""
    known = {"rank": 0, "host": "n1", "phase": "step", "step": 30, "waits": False, "silent_s": 0.1,
             "patience_s": 60.0, "state": "S"}  # fmt: skip
    return Sign(**(known | values))  # type: ignore[arg-type]


WAITING = {"waits": True, "silent_s": 61.0}
STUCK = {"silent_s": 61.0}


@pytest.mark.parametrize(
    ("signs", "is_one"),
    [
        ([], False),
        ([sign()], False),
        ([sign(**STUCK)], True),
        ([sign(), sign(rank=1, **STUCK)], True),
        ([sign(**WAITING), sign(rank=1)], False),  # the one that is waited for still has time
        ([sign(**WAITING), sign(rank=1, **STUCK)], True),
        ([sign(**WAITING), sign(rank=1, **WAITING)], True),  # a message that was lost
        ([sign(silent_s=90.0, patience_s=100.0), sign(rank=1, **WAITING)], False),
    ],
)
def test_what_is_a_hang(signs: list[Sign], is_one: bool) -> None:
    assert is_hung(signs) == is_one


def test_where_all_of_a_node_wait_for_another_that_ones_agent_has_time_to_tell() -> None:
    assert not is_hung([sign(**WAITING), sign(rank=1, **WAITING)], is_alone=False)
    long = {"waits": True, "silent_s": 181.0}
    assert is_hung([sign(**long), sign(rank=1, **long)], is_alone=False)
    assert is_hung([sign(**WAITING), sign(rank=1, **STUCK)], is_alone=False)


@pytest.mark.parametrize(
    ("signs", "rank"),
    [
        ([sign(**WAITING), sign(rank=1, **STUCK)], 1),
        ([sign(**STUCK), sign(rank=1, state="T", **STUCK)], 1),
        ([sign(**STUCK), sign(rank=1, state="T", **WAITING)], 1),
        ([sign(**WAITING), sign(rank=1, step=29, **WAITING)], 1),
        ([sign(phase="evaluate", **WAITING), sign(rank=1, phase="step", **WAITING)], 1),
        ([sign(rank=3, silent_s=0.0, phase="preprocess"), sign(rank=2, phase="preprocess", **STUCK)], 2),
        ([sign(host="n2", rank=2, **STUCK), sign(rank=1, **STUCK)], 1),
    ],
)
def test_who_is_behind(signs: list[Sign], rank: int) -> None:
    assert find_behind(signs).rank == rank
    assert find_behind(signs[::-1]).rank == rank


@given(
    st.lists(
        st.builds(
            Sign, rank=st.integers(0, 7), host=st.sampled_from(["a", "b"]), phase=st.sampled_from(PHASES),
            step=st.integers(0, 9), waits=st.booleans(), silent_s=st.floats(0, 99), patience_s=st.floats(0, 99),
            state=st.sampled_from(["R", "S", "D", "T", ""]),
        ),
        min_size=1,
    )
)  # fmt: skip
def test_the_one_behind_is_overdue_where_one_is(signs: list[Sign]) -> None:
    behind = find_behind(signs)
    assert behind in signs
    assert behind.is_overdue or not any(one.is_overdue for one in signs)
    if any(one.is_overdue and not one.waits for one in signs):
        assert not behind.waits or behind.state == "T"


def test_the_words_name_process_host_phase_and_step() -> None:
    failure = Failure(host="n2", rank=1, code=None, lines=(), hang=sign(rank=1, host="n2", state="T", **STUCK))
    assert str(failure) == "process 1 on n2 hangs in phase step at step 30: no sign for 61 s; it is stopped (SIGSTOP)"
    assert failure.file_name == "n2-rank-1.stacks"


def test_signs_travel_in_the_records_of_the_agents() -> None:
    one = sign(**STUCK)
    assert read_signs([{"code": 0}, {"hang": []}, {"hang": [vars(one)]}]) == [one]


def write_beat(folder: Path, *, rank: int, patience_s: float, ago_s: float, pid: int = 0, waits: bool = False) -> None:
    moment_s = time.monotonic() - ago_s
    record = RECORD.pack(moment_s, patience_s, 12, pid or os.getpid(), waits, b"step")
    (folder / f"pulse-{rank}").write_bytes(record)


def test_a_watchdog_looks_at_all_processes_of_its_node(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, host="n1", log_dir=tmp_path)
    assert watchdog.look() == [] and watchdog.step() is None
    write_beat(tmp_path, rank=1, patience_s=1.0, ago_s=0.2)
    write_beat(tmp_path, rank=0, patience_s=1.0, ago_s=1.5, waits=True)
    assert watchdog.look() == [] and watchdog.step() == 12
    write_beat(tmp_path, rank=1, patience_s=1.0, ago_s=1.4)
    signs = watchdog.look()
    assert [one.rank for one in signs] == [0, 1] and find_behind(signs).rank == 1
    assert all(one.state in "RS" for one in signs)


def test_a_watchdog_that_was_stopped_itself_gives_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(tmp_path, host="n1", log_dir=tmp_path)
    write_beat(tmp_path, rank=0, patience_s=1.0, ago_s=0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    now_s = time.monotonic() + PAUSE_S + 10  # a job that was suspended whole, and goes on
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    assert watchdog.look() == []
    now_s += 1.0
    assert watchdog.look() == []
    for _ in range(40):
        now_s += 1.0
        found = watchdog.look()
    assert found  # it does hang


def test_all_stacks_are_written_the_stopped_ones_too(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    options = {"LAUNCH_PULSE_DIR": str(tmp_path), "LAUNCH_LOG_DIR": str(logs)}
    processes = [start_sleeper(logs, seconds=60, cap_s=50.0, RANK=str(rank), NN_TRAIN_FAULTS=fault, **options)
                 for rank, fault in enumerate(("", "stop@step", "lock@step"))]  # fmt: skip
    watchdog = Watchdog(tmp_path, host=os.uname().nodename, log_dir=logs)
    try:
        wait_for(lambda: [beat.phase for beat in watchdog.beats()] == ["step"] * 3, what="three marks")
        wait_for(lambda: watchdog.signs()[1].state == "T", what="the stopped one")
        watchdog.dump_stacks()
        stacks = [read_stack(logs / f"{os.uname().nodename}-rank-{rank}.stacks") for rank in range(3)]
        assert any("<module>" in line for line in stacks[0])
        assert any("strike" in line for line in stacks[1]) and any("strike" in line for line in stacks[2])
        assert all(len(stack) <= 13 for stack in stacks)
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("", ""),
        ("Thread 0x1 (most recent call first):\n  File a\n\nCurrent thread 0x2 (x):\n  File b\n  File c\n", "Current"),
        ("Current thread 0x2 (x):\n  File b\n\nThread 0x1 (x):\n  File a\n", "Current"),
        ("Thread 0x1 (x):\n  File a\n\nThread 0x2 (x):\n  File main\n", "Thread 0x2"),
        ("Timeout (0:00:02)!\nThread 0x2 (x):\n  File main\n", "Thread 0x2"),
    ],
)
def test_the_main_threads_stack_is_shown(tmp_path: Path, text: str, first: str) -> None:
    (tmp_path / "stacks").write_text(text)
    stack = read_stack(tmp_path / "stacks")
    assert "".join(stack[:1]).startswith(first)
    assert len([line for line in stack if line.startswith("Thread")]) <= 1
