"""Checkpoints beside the training: a copy and no more, the newest first; a disk that refuses ends nothing at once."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nn_train import faults
from nn_train.attempts import Fenced
from nn_train.checkpoint import Checkpoint, decode_checkpoint, list_checkpoints, newest_step, read_newest
from nn_train.errors import PassingError, RunFolderError
from nn_train.loop import TrainState
from nn_train.saving import Saver


@pytest.fixture(autouse=True)
def unarmed() -> Iterator[None]:
    """Nothing is left for the next test."""
    yield
    faults.arm({})


class Bench:
    """A saver, and what it told."""

    def __init__(self, folder: Path, **options: Any):
        self.folder = folder
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.owner: Callable[[], None] = lambda: None
        known: dict[str, Any] = {"keep_last": 2, "max_age_s": 3600.0} | options
        self.saver = Saver(folder, check_owner=lambda: self.owner(), tell=self.tell, **known)
        self.weights = torch.zeros(1000)

    def tell(self, event: str, **values: Any) -> None:
        """Take in an event."""
        self.told.append((event, values))

    def put(self, step: int) -> None:
        """Save a state whose weights are the step."""
        self.weights.fill_(step)
        optimizer = {"state": {0: {"step": torch.tensor(float(step))}}, "param_groups": [{"params": [0]}]}
        self.saver.put(Checkpoint(state=TrainState(step=step), model={"w": self.weights}, best={"w": torch.zeros(1)},
                                  optimizer=optimizer, extra={}))  # fmt: skip

    def saved(self) -> list[int]:
        """The steps on the disk, oldest first."""
        return [int(path.name.removeprefix("step-")) for path in list_checkpoints(self.folder)][::-1]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A saver of a fresh folder."""
    bench = Bench(tmp_path / "checkpoints")
    yield bench
    bench.saver.close()


def slow_down(bench: Bench) -> threading.Event:
    """Let writes wait, right before they publish, until the event is set."""
    may_go_on = threading.Event()
    bench.owner = lambda: may_go_on.wait(20) and None
    return may_go_on


def test_what_comes_after_the_copy_is_not_in_the_checkpoint(bench: Bench) -> None:
    may_go_on = slow_down(bench)
    bench.put(1)
    bench.weights.fill_(-1)
    may_go_on.set()
    bench.saver.finish()
    files = read_newest(bench.folder)
    assert files is not None
    assert decode_checkpoint(files).model["w"].unique().tolist() == [1.0]
    assert bench.told[-1][0] == "checkpoint" and bench.told[-1][1]["step"] == 1


def test_training_waits_for_the_copy_alone(bench: Bench) -> None:
    may_go_on = slow_down(bench)
    bench.put(1)
    bench.put(2)
    assert bench.saved() == []  # both calls are back, and nothing is on the disk yet
    may_go_on.set()
    bench.saver.finish()
    assert bench.saved() == [1, 2]


def test_while_one_is_written_the_newest_waits(bench: Bench) -> None:
    may_go_on = slow_down(bench)
    bench.put(1)
    deadline_s = time.monotonic() + 10
    while bench.saver._writing is None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    for step in (2, 3, 4):
        bench.put(step)
    may_go_on.set()
    bench.saver.finish()
    assert bench.saved() == [1, 4]


@pytest.mark.parametrize("kind", ["no_space", "io_error"])
def test_a_disk_that_refuses_is_a_warning_and_the_next_one_is_through(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(logging.getLogger("nn_train"), "propagate", True)
    bench.put(1)
    bench.saver.finish()
    faults.arm({faults.VARIABLE: f"{kind}@checkpoint,file=optimizer.safetensors"})
    bench.put(2)
    bench.saver.wait()
    assert not bench.saver.must_end and bench.saved() == [1]
    assert "the checkpoint of step 2 could not be written" in caplog.text and "training goes on" in caplog.text
    assert [event for event, _ in bench.told] == ["checkpoint", "checkpoint_failed"]
    bench.put(3)
    bench.saver.finish()
    assert bench.saved() == [1, 3] and not list(bench.folder.glob(".*"))


@pytest.mark.parametrize(("kind", "error"), [("no_space", RunFolderError), ("io_error", PassingError)])
def test_it_ends_when_the_newest_is_too_old_and_not_before(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    bench = Bench(tmp_path, max_age_s=1.0)
    faults.arm({faults.VARIABLE: f"{kind}@checkpoint,times=all"})
    bench.put(1)
    bench.saver.wait()
    assert not bench.saver.must_end
    time.sleep(1.1)
    assert bench.saver.must_end
    with pytest.raises(error, match="no checkpoint could be written for 1 s") as caught:
        bench.saver.finish()
    assert "model.safetensors" in caught.value.where and "goes on from the newest" in caught.value.fix  # type: ignore[attr-defined]


def test_the_last_one_is_tried_again(bench: Bench) -> None:
    faults.arm({faults.VARIABLE: "no_space@checkpoint,times=2"})
    bench.put(1)
    bench.saver.finish()
    assert [event for event, _ in bench.told] == ["checkpoint_failed", "checkpoint_failed", "checkpoint"]
    assert bench.saved() == [1]


def test_without_a_limit_a_full_disk_ends_nothing_before_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_age_s=None)
    faults.arm({faults.VARIABLE: "no_space@checkpoint,times=all"})
    bench.put(1)
    bench.saver.wait()
    assert not bench.saver.must_end
    with pytest.raises(RunFolderError, match="No space left"):
        bench.saver.finish()


def test_a_disk_that_never_answers_ends_the_training_as_well(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_age_s=0.5)
    may_go_on = slow_down(bench)
    bench.put(7)
    time.sleep(0.1)
    assert not bench.saver.must_end
    time.sleep(0.5)
    assert bench.saver.must_end
    with pytest.raises(PassingError, match="the checkpoint of step 7 is on its way to the disk for too long"):
        bench.saver.finish()
    may_go_on.set()


def test_what_the_disk_refused_is_the_reason_also_while_another_is_on_its_way(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_age_s=0.5)
    faults.arm({faults.VARIABLE: "no_space@checkpoint,times=1"})
    bench.put(7)
    bench.saver.wait()
    may_go_on = slow_down(bench)
    bench.put(8)
    time.sleep(0.6)
    with pytest.raises(RunFolderError, match="no checkpoint could be written for 1 s: No space left on device"):
        bench.saver.finish()
    may_go_on.set()
    bench.saver.close()


def test_checkpoints_that_are_further_apart_than_the_limit_are_not_late(tmp_path: Path) -> None:
    bench = Bench(tmp_path, max_age_s=0.5)
    for step in (1, 2):
        time.sleep(0.7)  # nothing was given to the disk: it is not behind
        may_go_on = slow_down(bench)
        bench.put(step)
        assert not bench.saver.must_end
        may_go_on.set()
        bench.saver.finish()
    assert bench.saved() == [1, 2]


def test_a_lost_run_ends_at_once_and_publishes_nothing(bench: Bench) -> None:
    def refuse() -> None:
        raise Fenced("a newer attempt owns this run now")

    bench.owner = refuse
    bench.put(1)
    bench.saver.wait()
    assert bench.saver.must_end and bench.saved() == [] and bench.told == []
    with pytest.raises(Fenced):
        bench.saver.finish()


def test_what_is_no_failure_of_the_disk_is_not_forgotten(bench: Bench) -> None:
    faults.arm({faults.VARIABLE: "raise@checkpoint,file=prune"})
    bench.put(1)
    bench.saver.wait()
    bench.put(2)
    bench.saver.wait()
    assert bench.saver.must_end
    with pytest.raises(faults.InjectedFault):
        bench.saver.finish()


def test_after_close_nothing_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn_train.saving.CLOSE_S", 0.1)
    may_go_on = slow_down(bench)
    bench.put(1)
    bench.put(2)
    bench.saver.close()
    may_go_on.set()
    deadline_s = time.monotonic() + 10
    while bench.saver._writing is not None and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert bench.told == [] and newest_step(bench.folder) <= 1


def test_no_thread_is_left(bench: Bench) -> None:
    bench.put(1)
    bench.saver.finish()
    assert bench.saver._thread is not None and bench.saver._thread.is_alive()
    bench.saver.close()
    assert not bench.saver._thread.is_alive()


def test_a_real_disk_that_is_full_and_then_has_room_again(small_disk: Path) -> None:
    bench = Bench(small_disk / "checkpoints")
    ballast = small_disk / "ballast"
    bench.put(1)
    bench.saver.finish()
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(1024))
    bench.put(2)
    bench.saver.wait()
    assert bench.saved() == [1] and bench.told[-1][0] == "checkpoint_failed"
    ballast.unlink()
    bench.put(3)
    bench.saver.finish()
    assert bench.saved() == [1, 3]


def test_two_valid_ones_are_left_also_where_one_was_harmed(bench: Bench) -> None:
    for step in (1, 2, 3):
        bench.put(step)
        bench.saver.finish()
    assert bench.saved() == [2, 3]
    (list_checkpoints(bench.folder)[0] / "state.json").write_text("{}")  # a disk lost the newest
    bench.put(4)
    bench.saver.finish()
    assert bench.saved() == [2, 4]
