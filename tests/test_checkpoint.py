"""Checkpoints: the same bits back, every damage found, older ones left when a write fails."""

import dataclasses
import errno
import json
import logging
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from nn_train.checkpoint import (
    FILES,
    MANIFEST,
    Checkpoint,
    cpu_copy,
    decode_checkpoint,
    encode_checkpoint,
    list_checkpoints,
    read_checkpoint,
    read_newest,
    write_checkpoint,
)
from nn_train.loop import TrainState
from nn_train.optim import build_optimizer
from nn_train.settings import OptimConfig

EVERY_FILE = (*FILES, MANIFEST)


class Net(nn.Module):
    """Weights in the shapes that occur, a buffer, and a weight that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        self.unused = nn.Parameter(torch.randn(2))
        self.register_buffer("codes", torch.tensor([1, 2, 3]))


def make_optimizer(net: Net, *, steps: int) -> torch.optim.Optimizer:
    optimizer = build_optimizer(net, OptimConfig())
    for _ in range(steps):
        optimizer.zero_grad()
        net.layers(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    return optimizer


def make_checkpoint(*, steps: int = 3) -> Checkpoint:
    net = Net()
    optimizer = make_optimizer(net, steps=steps)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict()
    state = TrainState(step=steps, best_value=0.1 + 0.2, best_step=2, evals_since_best=1, elapsed_s=1 / 3)
    return Checkpoint(
        state=state,
        model=net.state_dict(),
        best=cpu_copy(net.state_dict()),
        optimizer=optimizer.state_dict() | {"scaler": scaler},
        extra={"processes": 2},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, of steps 1, 2 and 3."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(folder, encode_checkpoint(make_checkpoint(steps=step)), step=step, keep_last=3)
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int | None:
    files = read_newest(folder)
    return None if files is None else decode_checkpoint(files).state.step


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the program warns of."""
    monkeypatch.setattr(logging.getLogger("nn_train"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="nn_train")
    return caplog


def test_a_checkpoint_comes_back_to_the_bit(folder: Path) -> None:
    saved = make_checkpoint(steps=3)
    files = read_newest(folder)
    assert files is not None
    back = decode_checkpoint(files)
    assert back.state == saved.state
    assert back.extra == saved.extra
    assert back.optimizer["scaler"] == saved.optimizer["scaler"]
    for ours, theirs in ((back.model, saved.model), (back.best, saved.best)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert all(ours[name].dtype == theirs[name].dtype for name in theirs)
    entries, expected = back.optimizer["state"], saved.optimizer["state"]
    assert entries.keys() == expected.keys()
    for index in expected:
        assert entries[index].keys() == expected[index].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(entries[index][name], expected[index][name]) for name in expected[index])


def test_an_optimizer_goes_on_from_a_checkpoint_as_if_never_stopped() -> None:
    through, stopped = Net(), Net()
    torch.manual_seed(1)
    make_optimizer(through, steps=2)
    torch.manual_seed(1)
    optimizer = make_optimizer(stopped, steps=1)
    random = torch.get_rng_state()
    saved = dataclasses.replace(make_checkpoint(), model=stopped.state_dict(), optimizer=optimizer.state_dict())
    back = decode_checkpoint(encode_checkpoint(saved))
    resumed = Net()
    resumed.load_state_dict(back.model)
    optimizer = make_optimizer(resumed, steps=0)
    optimizer.load_state_dict({name: back.optimizer[name] for name in ("state", "param_groups")})
    torch.set_rng_state(random)
    optimizer.zero_grad()
    resumed.layers(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(through.parameters(), resumed.parameters(), strict=True))


def test_a_scaler_goes_on_from_a_checkpoint() -> None:
    back = decode_checkpoint(encode_checkpoint(make_checkpoint()))
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(back.optimizer["scaler"])
    assert scaler.state_dict() == back.optimizer["scaler"]
    assert scaler.get_scale() == 1024.0


def test_without_a_scaler_there_is_none() -> None:
    checkpoint = make_checkpoint()
    checkpoint.optimizer["scaler"] = None
    assert decode_checkpoint(encode_checkpoint(checkpoint)).optimizer["scaler"] is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -0.0, 1e-320])
def test_any_best_value_comes_back(value: float | None) -> None:
    checkpoint = dataclasses.replace(make_checkpoint(), state=TrainState(best_value=value))
    assert repr(decode_checkpoint(encode_checkpoint(checkpoint)).state.best_value) == repr(value)


def test_the_same_state_gives_the_same_bytes() -> None:
    one, other = encode_checkpoint(make_checkpoint()), encode_checkpoint(make_checkpoint())
    assert one == other
    back = decode_checkpoint(one)
    assert encode_checkpoint(back) == one


def test_tensors_that_do_not_lie_in_one_piece_are_saved() -> None:
    wide = torch.arange(12.0).view(3, 4).T
    checkpoint = dataclasses.replace(make_checkpoint(), model={"wide": wide})
    assert torch.equal(decode_checkpoint(encode_checkpoint(checkpoint)).model["wide"], wide)


def test_later_updates_do_not_reach_a_copy() -> None:
    net = Net()
    copy = cpu_copy(net.state_dict())
    before = copy["layers.0.weight"].clone()
    with torch.no_grad():
        net.layers[0].weight.zero_()  # type: ignore[operator, union-attr]
    assert torch.equal(copy["layers.0.weight"], before)


def test_no_file_is_a_pickle(folder: Path) -> None:
    for path in list_checkpoints(folder)[0].iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))
        assert path.suffix in (".safetensors", ".json")


def test_the_manifest_tells_size_and_sum_of_every_file(folder: Path) -> None:
    newest = list_checkpoints(folder)[0]
    assert names(newest) == sorted(EVERY_FILE)
    manifest = json.loads((newest / MANIFEST).read_text())
    assert list(manifest) == list(FILES)
    for name, entry in manifest.items():
        assert entry["bytes"] == (newest / name).stat().st_size
        listed = subprocess.run(["sha256sum", str(newest / name)], capture_output=True, text=True, check=True)
        assert entry["sha256"] == listed.stdout.split()[0]


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(folder: Path, warnings: pytest.LogCaptureFixture, name: str, where: str) -> None:
    path = list_checkpoints(folder)[0] / name
    content = bytearray(path.read_bytes())
    content[{"first": 0, "middle": len(content) // 2, "last": -1}[where]] ^= 1
    path.write_bytes(content)
    assert newest_step(folder) == 2
    [record] = warnings.records
    assert f"step-00000003 cannot be used: {name} is damaged" in record.message


def test_no_flipped_bit_of_a_manifest_gives_other_weights(folder: Path) -> None:
    newest = list_checkpoints(folder)[0]
    path, whole = newest / MANIFEST, read_checkpoint(newest)
    content = path.read_bytes()
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1
        path.write_bytes(damaged)
        try:
            assert read_checkpoint(newest) == whole
            assert content[index : index + 1].isspace()
        except ValueError as error:
            assert "damaged" in str(error)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("harm", ["removed", "empty", "cut", "longer"])
def test_a_harmed_file_is_found(folder: Path, warnings: pytest.LogCaptureFixture, name: str, harm: str) -> None:
    path = list_checkpoints(folder)[0] / name
    content = path.read_bytes()
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "longer": content + b"\0"}[harm])
    assert newest_step(folder) == 2
    [record] = warnings.records
    assert "step-00000003 cannot be used" in record.message
    assert name in record.message


@pytest.mark.parametrize("content", ["[]", "null", "3", '"model"', '{"model.safetensors": 1}', "[[1, 2]]"])
def test_a_manifest_of_something_else_is_found(folder: Path, content: str) -> None:
    (list_checkpoints(folder)[0] / MANIFEST).write_text(content)
    assert newest_step(folder) == 2


def test_several_damaged_ones_are_passed_over_and_without_a_valid_one_training_starts_over(
    folder: Path, warnings: pytest.LogCaptureFixture
) -> None:
    newest, second, last = list_checkpoints(folder)
    (newest / MANIFEST).unlink()
    shutil.rmtree(second)
    second.mkdir()
    assert newest_step(folder) == 1
    (last / "best.safetensors").unlink()
    assert newest_step(folder) is None
    assert len(warnings.records) == 5
    assert read_newest(folder / "none") is None


@pytest.mark.parametrize("keep_last", [1, 2, 5])
def test_only_the_newest_are_kept(tmp_path: Path, keep_last: int) -> None:
    files = encode_checkpoint(make_checkpoint())
    for step in (1, 5, 9, 10, 11):
        write_checkpoint(tmp_path, files, step=step, keep_last=keep_last)
    expected = [f"step-{step:08d}" for step in (1, 5, 9, 10, 11)][-keep_last:]
    assert names(tmp_path) == expected
    assert [path.name for path in list_checkpoints(tmp_path)] == expected[::-1]


def test_steps_beyond_eight_digits_are_newer(tmp_path: Path) -> None:
    files = encode_checkpoint(make_checkpoint())
    for step in (99_999_999, 100_000_000):
        write_checkpoint(tmp_path, files, step=step, keep_last=1)
    assert names(tmp_path) == ["step-100000000"]


def test_a_damaged_checkpoint_beyond_the_new_one_is_not_kept_in_its_place(folder: Path) -> None:
    (list_checkpoints(folder)[0] / MANIFEST).unlink()
    write_checkpoint(folder, encode_checkpoint(make_checkpoint(steps=2)), step=2, keep_last=1)
    assert names(folder) == ["step-00000002"]
    assert newest_step(folder) == 2


def test_a_step_that_was_saved_before_is_replaced(folder: Path) -> None:
    damaged = list_checkpoints(folder)[0]
    (damaged / "state.json").write_text("{}")
    write_checkpoint(folder, encode_checkpoint(make_checkpoint(steps=3)), step=3, keep_last=3)
    assert newest_step(folder) == 3
    assert len(names(folder)) == 3


def test_what_a_killed_write_left_is_removed_and_never_read(folder: Path) -> None:
    left = folder / ".step-00000009.123.tmp"
    shutil.copytree(list_checkpoints(folder)[0], left)
    assert newest_step(folder) == 3
    write_checkpoint(folder, encode_checkpoint(make_checkpoint(steps=4)), step=4, keep_last=2)
    assert names(folder) == ["step-00000003", "step-00000004"]


def test_one_that_cannot_be_read_now_is_not_taken_for_damaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = list_checkpoints(folder)[0]
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.parent == newest:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # what a file server that changes hands answers, for a moment
    with pytest.raises(OSError, match="Stale file handle"):
        read_newest(folder)
    monkeypatch.undo()
    assert read_newest(folder) is not None


def test_one_that_a_kill_left_between_two_renames_is_found(folder: Path) -> None:
    newest = list_checkpoints(folder)[0]
    newest.rename(folder / f".{newest.name}.replaced.tmp")
    files = read_newest(folder)
    assert files is not None and decode_checkpoint(files).state.step == 3
    assert newest_step(folder) == 3


def test_a_full_disk_leaves_the_older_checkpoint(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    write_checkpoint(folder, encode_checkpoint(make_checkpoint(steps=1)), step=1, keep_last=1)
    large = dataclasses.replace(make_checkpoint(steps=2), best={"weights": torch.zeros(100_000)})
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(folder, encode_checkpoint(large), step=2, keep_last=1)
    assert names(folder) == ["step-00000001"]
    assert newest_step(folder) == 1


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 2000 bytes, for as long as pytest itself writes to none; the signal is ignored."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_refuses_leaves_the_older_checkpoints(folder: Path) -> None:
    large = dataclasses.replace(make_checkpoint(steps=4), best={"weights": torch.zeros(1000)})
    files = encode_checkpoint(large)
    with pytest.raises(OSError, match=r"File too large.*best\.safetensors"), small_files():
        write_checkpoint(folder, files, step=4, keep_last=1)
    assert names(folder) == ["step-00000001", "step-00000002", "step-00000003"]
    assert newest_step(folder) == 3
