"""Faults on purpose: read as they are written, met where they are wanted and nowhere else."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_train import faults
from nn_train.errors import ConfigError
from nn_train.faults import KINDS, NUMBERS, PLACES, VARIABLE, Fault, InjectedFault, arm, parse_faults, strike
from nn_train.pulse import PHASES
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def unarmed() -> object:
    """Nothing is left for the next test."""
    yield
    arm({})


def test_several_faults_are_read() -> None:
    text = "kill@step,step=30,rank=1; no_space@checkpoint,file=state.json,times=all,attempt=2;"
    assert parse_faults(text) == [
        Fault(kind="kill", place="step", step=30, rank=1),
        Fault(kind="no_space", place="checkpoint", file="state.json", times=float("inf"), attempt=2),
    ]
    assert parse_faults(" ; ") == []


@pytest.mark.parametrize(
    "text",
    ["kill", "kill@", "@step", "burn@step", "kill@moon", "kill@step,step", "kill@step,step=-1", "kill@step,stop=3",
     "kill@step,step=3.5", "kill@step,file=x", "nan@evaluate", "kill@checkpoint,file=", "kill @step",
     "kill@step rank=1"],
)  # fmt: skip
def test_what_is_no_fault_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        parse_faults(text)
    assert faults.EXAMPLE in caught.value.fix and caught.value.where == VARIABLE


@given(st.text(alphabet="kilraise@step,=0123456789; nanchekpo_filtm", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        for fault in parse_faults(text):
            assert fault.kind in KINDS and fault.place in PLACES
    except ConfigError:
        pass


@given(st.sampled_from(KINDS), st.sampled_from(PLACES), st.dictionaries(st.sampled_from(NUMBERS), st.integers(0, 99)))
def test_what_is_written_is_read(kind: str, place: str, numbers: dict[str, int]) -> None:
    text = ",".join([f"{kind}@{place}", *(f"{name}={value}" for name, value in numbers.items())])
    if kind == "nan" and place != "step":
        return
    (fault,) = parse_faults(text)
    assert (fault.kind, fault.place) == (kind, place)
    assert all(getattr(fault, name) == value for name, value in numbers.items())


def test_places_are_the_phases_of_the_watchdog() -> None:
    assert [phase for phase in PHASES if phase in PLACES] == [place for place in PLACES if place != "checkpoint"]


def test_a_fault_strikes_once_and_at_its_place_alone() -> None:
    arm({VARIABLE: "raise@step,step=3"})
    assert not strike("step", step=2) and not strike("evaluate", step=3) and not strike("step", step=4)
    with pytest.raises(InjectedFault, match="step at step 3"):
        strike("step", step=3)
    assert not strike("step", step=3)


@pytest.mark.parametrize(("times", "count"), [("times=2", 2), ("times=all", 9), ("times=0", 0)])
def test_a_fault_strikes_as_often_as_it_says(times: str, count: int) -> None:
    arm({VARIABLE: f"io_error@evaluate,{times}"})
    struck = 0
    for _ in range(9):
        try:
            strike("evaluate")
        except OSError:
            struck += 1
    assert struck == count


def test_the_mark_of_a_save_is_no_file_of_a_checkpoint() -> None:
    arm({VARIABLE: "raise@checkpoint"})
    assert not strike("snapshot", step=3)
    with pytest.raises(InjectedFault, match=r"state\.json"):
        strike("checkpoint", step=3, file="state.json")


def test_the_next_checkpoint_will_do() -> None:
    arm({VARIABLE: "raise@checkpoint,step=10,file=rename"})
    assert not strike("checkpoint", step=9, file="rename") and not strike("checkpoint", step=12, file="prune")
    with pytest.raises(InjectedFault, match="rename"):
        strike("checkpoint", step=12, file="rename")


@pytest.mark.parametrize(
    ("condition", "environment", "is_met"),
    [("rank=1", {"RANK": "1"}, True), ("rank=1", {"RANK": "0"}, False), ("rank=0", {}, True),
     ("attempt=2", {"LAUNCH_ATTEMPT": "2"}, True), ("attempt=2", {"LAUNCH_ATTEMPT": "1"}, False),
     ("attempt=2", {}, False)],
)  # fmt: skip
def test_process_and_attempt_are_chosen(condition: str, environment: dict[str, str], is_met: bool) -> None:
    arm({VARIABLE: f"raise@step,{condition}"} | environment)
    if is_met:
        with pytest.raises(InjectedFault):
            strike("step")
    else:
        assert not strike("step")


@pytest.mark.parametrize(("kind", "number"), [("no_space", errno.ENOSPC), ("io_error", errno.EIO)])
def test_the_errors_of_a_disk_are_the_systems_own(kind: str, number: int) -> None:
    arm({VARIABLE: f"{kind}@report"})
    with pytest.raises(OSError, match="injected fault: report") as caught:
        strike("report")
    assert caught.value.errno == number


def start_victim(kind: str) -> subprocess.Popen[bytes]:
    """A process that counts in a thread, and meets the fault."""
    script = (
        "import sys, threading, time\nfrom nn_train.faults import arm, strike\narm()\n"
        "def count():\n    while True:\n        time.sleep(0.01); sys.stdout.write('.'); sys.stdout.flush()\n"
        "threading.Thread(target=count, daemon=True).start()\ntime.sleep(0.1)\nprint(strike('step'))\n"
    )
    environment = os.environ | {VARIABLE: f"{kind}@step"}
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
                            env=environment)  # fmt: skip


@pytest.mark.parametrize(("kind", "code"), [("kill", -signal.SIGKILL), ("exit", faults.EXIT_CODE), ("raise", 1)])
def test_a_process_ends_as_the_fault_says(kind: str, code: int) -> None:
    process = start_victim(kind)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert f"injected fault: {kind}@step at step 0, ".encode() in said


@pytest.mark.parametrize(("kind", "state", "is_deaf"), [("stop", "T", True), ("lock", "S", True), ("loop", "R", False)])
def test_a_process_hangs_as_the_fault_says(kind: str, state: str, is_deaf: bool) -> None:
    process = start_victim(kind)
    assert process.stdout is not None and process.stderr is not None
    try:
        assert b"injected fault" in process.stderr.readline()
        os.set_blocking(process.stdout.fileno(), False)
        time.sleep(0.3)
        process.stdout.read()
        time.sleep(0.5)
        assert process.poll() is None
        states = {Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] for _ in range(5)}
        assert state in states
        # with the lock held, or stopped, no other thread of it comes to a word
        assert bool(process.stdout.read()) != is_deaf
    finally:
        process.kill()
        process.communicate()
