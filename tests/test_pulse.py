"""The sign of life of a process: what another one reads, how long it may take, and what follows when it stays away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nn_train.pulse import DUMP_SIGNAL, FACTOR, PHASES, RECORD, Beat, Pulse, file_name
from tests.conftest import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a launcher's agent gives a process."""
    monkeypatch.setenv("LAUNCH_PULSE_DIR", str(tmp_path))
    monkeypatch.setenv("LAUNCH_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "3")
    return tmp_path


def test_another_process_reads_phase_and_step(folder: Path) -> None:
    pulse = Pulse()
    pulse.start(folder, floor_s=1.0, cap_s=30.0)
    try:
        before_s = time.monotonic()
        pulse.mark("evaluate", 7)
        beat = Beat.read(folder / file_name(3))
        assert beat is not None
        assert (beat.rank, beat.pid, beat.phase, beat.step, beat.waits) == (3, os.getpid(), "evaluate", 7, False)
        assert before_s <= beat.moment_s <= time.monotonic() and beat.patience_s == 30.0
        with pulse:
            waiting = Beat.read(folder / file_name(3))
        after = Beat.read(folder / file_name(3))
        assert waiting is not None and waiting.waits and after is not None and not after.waits
    finally:
        pulse.stop()
    assert not (folder / file_name(3)).exists()
    assert not (folder / "logs").exists()  # nothing was written, so nothing is left


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_fits_into_the_record(folder: Path, phase: str) -> None:
    pulse = Pulse()
    pulse.start(folder, floor_s=1.0, cap_s=30.0)
    pulse.mark(phase, 2**40)
    beat = Beat.read(folder / file_name(3))
    pulse.stop()
    assert beat is not None and (beat.phase, beat.step) == (phase, 2**40)


@pytest.mark.parametrize("content", [b"", b"x", bytes(RECORD.size), b"\xff" * RECORD.size])
def test_what_is_no_record_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pulse-0").write_bytes(content)
    assert Beat.read(tmp_path / "pulse-0") is None
    assert Beat.read(tmp_path / "pulse-1") is None


def test_the_time_out_is_learned_between_floor_and_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    pulse = Pulse()
    pulse.start(folder, floor_s=2.0, cap_s=100.0)
    assert pulse.patience_s("step") == 100.0  # not seen yet
    pulse.mark("step", 0)
    for took_s, expected_s in ((0.01, 2.0), (1.0, FACTOR), (0.5, FACTOR), (50.0, 100.0)):
        now_s += took_s
        pulse.mark("step", 1)
        assert pulse.patience_s("step") == pytest.approx(max(expected_s, 2.0))
    assert pulse.patience_s("evaluate") == 100.0  # each phase for itself
    now_s += 0.01
    pulse.mark("preprocess")
    now_s += 0.01
    pulse.mark("preprocess")
    assert pulse.patience_s("preprocess") == 100.0  # its parts are not alike
    assert pulse.patience_s("baselines") > 100.0  # one long call of a library
    pulse.stop()


def test_without_a_start_and_without_a_cap_nothing_is_written(folder: Path) -> None:
    Pulse().mark("step", 1)
    pulse = Pulse()
    pulse.start(folder, floor_s=1.0, cap_s=None)
    pulse.mark("step", 1)
    with pulse:
        pass
    pulse.stop()
    assert list(folder.iterdir()) == []


def test_a_training_that_a_script_starts_has_no_say_in_the_scripts_pulse(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCH_RUN_DIR", "/another/run")
    pulse = Pulse()
    pulse.start(folder, floor_s=1.0, cap_s=30.0)
    pulse.mark("step", 1)
    assert list(folder.iterdir()) == []
    pulse.stop()


def test_a_temp_folder_that_is_full_is_no_reason_to_fail(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (small_disk / "filled").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("LAUNCH_PULSE_DIR", str(small_disk))
    monkeypatch.setenv("LAUNCH_LOG_DIR", str(small_disk / "logs"))
    pulse = Pulse()
    pulse.start(folder, floor_s=1.0, cap_s=30.0)
    pulse.mark("step", 1)
    with pulse:
        pass
    pulse.stop()


SLEEPER = """
import sys, time
from pathlib import Path
from nn_train.faults import arm
from nn_train.pulse import pulse
arm()
pulse.start(Path("/run"), floor_s=0.1, cap_s=float(sys.argv[1]))
pulse.write_stacks_into(Path(sys.argv[2]))
pulse.mark("step", 5)
print("marked", flush=True)
time.sleep(float(sys.argv[3]))
pulse.stop()
print("end", flush=True)
"""


def start_sleeper(logs: Path, *, seconds: float, cap_s: float = 1.0, **environment: str) -> subprocess.Popen[str]:
    """A process that marks a step and then does nothing for a while."""
    command = [sys.executable, "-c", SLEEPER, str(cap_s), str(logs), str(seconds)]
    environment = os.environ | {"LAUNCH_RUN_DIR": "/run"} | environment
    out = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=out, stderr=out)


@pytest.mark.parametrize("fault", ["", "lock@step", "loop@step"])
def test_one_of_several_that_nobody_watches_writes_its_stacks_and_ends(tmp_path: Path, fault: str) -> None:
    process = start_sleeper(tmp_path, seconds=60, WORLD_SIZE="2", RANK="1", NN_TRAIN_FAULTS=fault)
    process.communicate(timeout=30)
    assert process.returncode == 1
    (stacks,) = tmp_path.glob("*-rank-1.stacks")
    assert "Timeout" in stacks.read_text() and ("strike" in stacks.read_text()) == bool(fault)


def test_one_that_is_alone_writes_its_stacks_and_goes_on(tmp_path: Path) -> None:
    process = start_sleeper(tmp_path, seconds=3.5)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and said.splitlines() == ["marked", "end"]
    (stacks,) = tmp_path.glob("*.stacks")
    assert "Timeout" in stacks.read_text()


def test_one_that_is_in_time_leaves_nothing(tmp_path: Path) -> None:
    process = start_sleeper(tmp_path / "logs", seconds=0.1, WORLD_SIZE="2")
    process.communicate(timeout=30)
    assert process.returncode == 0 and not (tmp_path / "logs").exists()


@pytest.mark.parametrize("fault", ["", "lock@step", "loop@step", "stop@step"])
def test_a_watched_process_writes_its_stacks_when_it_is_asked(tmp_path: Path, fault: str) -> None:
    logs = tmp_path / "logs"
    process = start_sleeper(logs, seconds=60, cap_s=50.0, LAUNCH_PULSE_DIR=str(tmp_path), LAUNCH_LOG_DIR=str(logs),
                            NN_TRAIN_FAULTS=fault)  # fmt: skip
    try:
        stream = process.stderr if fault else process.stdout
        assert stream is not None and stream.readline()
        time.sleep(0.2)
        process.send_signal(DUMP_SIGNAL)
        process.send_signal(signal.SIGCONT)  # a stopped one hears nothing before
        deadline_s, text = time.monotonic() + 10, ""
        while ("strike" if fault else "<module>") not in text:  # the file grows line by line
            assert time.monotonic() < deadline_s, text
            time.sleep(0.02)
            text = "".join(path.read_text() for path in logs.glob("*.stacks"))
        assert fault == "stop@step" or process.poll() is None
    finally:
        process.kill()
        process.communicate()
