"""Packed rows: built once by one of many processes, whole or not at all, and equal to what was encoded."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nn_train import building
from nn_train.config import load_config
from nn_train.errors import DataError
from nn_train.packed import DONE_FILE, Batch, PackedRows, build_once, load_rows, rows_file, save_rows
from nn_train.placement import Placement, available_memory, choose_placement
from nn_train.preparation import PreparedData, prepare_data
from nn_train.splits import load_splits
from tests.conftest import ROOT, make_table

CPU = torch.device("cpu")
BUILDER = """
import os, signal, sys, time
from pathlib import Path
from nn_train.packed import build_once

folder, log, how = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def build(target):
    with log.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    (target / "half").write_text("1")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (target / "whole").write_text(str(os.getpid()))

print("ready", flush=True)
sys.stdin.readline()
was_built = build_once(folder, build)
print(was_built, (folder / "whole").read_text(), flush=True)
"""


def start_builders(number: int, folder: Path, log: Path, how: str = "live") -> list[subprocess.Popen[str]]:
    """Processes that have imported everything and wait for a line."""
    command = [sys.executable, "-c", BUILDER, str(folder), str(log), how]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for _ in range(number)
    ]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return started


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- once, and whole --------------------------------------------------------------------------------------------------


def test_four_processes_build_once_and_a_killed_build_is_built_anew(tmp_path: Path) -> None:
    folder, log = tmp_path / "packed" / "key", tmp_path / "log"
    (killed,) = start_builders(1, folder, log, "die")
    killed.communicate("\n")
    assert killed.returncode == -signal.SIGKILL
    assert len(log.read_text().splitlines()) == 1
    assert not folder.exists()
    assert names(folder.parent) != set()  # what the killed one left

    processes = start_builders(4, folder, log)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    builders = log.read_text().splitlines()[1:]
    assert len(builders) == 1  # one did the work
    assert sorted(answer[0] for answer in answers) == ["False", "False", "False", "True"]
    assert {answer[1] for answer in answers} == {builders[0]}  # and all see it
    assert names(folder) == {"half", "whole", DONE_FILE}
    assert names(folder.parent) == {"key", "key.lock"}


def never(target: Path) -> None:
    raise AssertionError("built again")


def test_a_second_call_does_no_work(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "key"
    assert build_once(folder, lambda target: (target / "rows").touch())
    before = (folder / "rows").stat()
    assert not build_once(folder, never)
    assert (folder / "rows").stat() == before


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_a_build_that_fails_leaves_nothing_behind(error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def build(target: Path) -> None:
        (target / "deep").mkdir()
        (target / "deep" / "rows").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        build_once(folder, build)
    assert caught.value is error
    assert names(tmp_path) <= {"key.lock"}
    assert build_once(folder, lambda target: (target / "rows").touch())
    assert names(folder) == {"rows", DONE_FILE}


def test_a_folder_without_the_done_file_is_built_anew(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    folder.mkdir()
    (folder / "stale").write_text("half")
    assert build_once(folder, lambda target: (target / "rows").touch())
    assert names(folder) == {"rows", DONE_FILE}


def test_the_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def build(target: Path) -> None:
        assert target != folder and target.parent == folder.parent and not folder.exists()
        assert names(target) == set()

    assert build_once(folder, build)
    assert folder.exists()


def test_two_folders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    def build(target: Path) -> None:
        assert build_once(tmp_path / "other", lambda inner: (inner / "rows").touch())

    assert build_once(tmp_path / "key", build)


# --- rows there and back ----------------------------------------------------------------------------------------------


def arrays(num_rows: int, num_numeric: int, num_categorical: int, kind: type) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x_num = rng.normal(size=(num_rows, num_numeric)).astype(np.float32)
    x_cat = rng.integers(0, 2**31 - 1, size=(num_rows, num_categorical), dtype=np.int32)
    return x_num, x_cat, rng.integers(-1, 9, size=num_rows).astype(kind)


def pack(folder: Path, encoded: tuple[np.ndarray, ...], weights: np.ndarray | None = None) -> None:
    folder.mkdir()
    columns = dict(zip(("x_num", "x_cat", "y"), encoded, strict=True)) | (
        {} if weights is None else {"weight": weights}
    )
    save_rows(folder, "val", columns)


PLACEMENTS = ("device", "memory", "disk")


def assert_equal(rows: PackedRows | Batch, encoded: tuple[np.ndarray, ...], positions: np.ndarray) -> None:
    assert len(rows) == len(positions)
    codes = torch.int32 if isinstance(rows, PackedRows) and rows.placement != "device" else torch.int64
    assert (rows.x_num.dtype, rows.x_cat.dtype) == (torch.float32, codes)
    for got, want in zip((rows.x_num, rows.x_cat, rows.y), encoded, strict=True):
        assert got.is_contiguous() and got.shape == want[positions].shape
        np.testing.assert_array_equal(got.numpy(), want[positions])


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("kind", [np.int64, np.float32])
@pytest.mark.parametrize(("num_numeric", "num_categorical"), [(3, 2), (0, 2), (3, 0), (1, 1), (0, 0)])
def test_rows_come_back_as_they_were_in_any_order(
    num_numeric: int, num_categorical: int, kind: type, placement: Placement, tmp_path: Path
) -> None:
    encoded = arrays(100, num_numeric, num_categorical, kind)
    pack(tmp_path / "key", encoded)
    rows = load_rows(tmp_path / "key", "val", placement=placement)
    assert_equal(rows, encoded, np.arange(100))
    rng = np.random.default_rng(1)
    for positions in (np.arange(100), rng.permutation(100), np.array([7, 7, 99, 0]), np.array([], dtype=np.int64)):
        taken = rows.take(torch.from_numpy(positions))
        assert taken.y.dtype == torch.from_numpy(encoded[2]).dtype
        assert_equal(taken, encoded, positions)
    assert_equal(rows.slice(10, 15), encoded, np.arange(10, 15))
    assert_equal(rows.slice(98, 110), encoded, np.arange(98, 100))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("num_rows", [0, 1])
def test_a_single_row_and_none(num_rows: int, placement: Placement, tmp_path: Path) -> None:
    encoded = arrays(num_rows, 2, 2, np.float32)
    pack(tmp_path / "key", encoded)
    assert_equal(load_rows(tmp_path / "key", "val", placement=placement), encoded, np.arange(num_rows))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_odd_numbers_keep_their_bits(placement: Placement, tmp_path: Path) -> None:
    x_num = np.array([[np.nan, -0.0], [np.inf, 1e-45]], dtype=np.float32)
    encoded = (x_num, np.zeros((2, 0), dtype=np.int32), np.array([np.nan, 1], dtype=np.float32))
    pack(tmp_path / "key", encoded)
    rows = load_rows(tmp_path / "key", "val", placement=placement)
    assert rows.x_num.numpy().tobytes() == x_num.tobytes()
    assert rows.y.numpy().tobytes() == encoded[2].tobytes()


def test_slices_of_resident_rows_are_no_copies(tmp_path: Path) -> None:
    pack(tmp_path / "key", arrays(50, 3, 2, np.int64))
    rows = load_rows(tmp_path / "key", "val")
    part = rows.slice(10, 15)
    assert part.x_num.data_ptr() == rows.x_num[10:].data_ptr()
    assert (rows.weight, part.weight, rows.take(torch.tensor([1])).weight) == (None, None, None)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_weights_are_packed_where_there_are_any(placement: Placement, tmp_path: Path) -> None:
    encoded = arrays(50, 3, 2, np.int64)
    weights = np.random.default_rng(2).random(50).astype(np.float32)
    pack(tmp_path / "key", encoded, weights)
    rows = load_rows(tmp_path / "key", "val", placement=placement)
    places = np.array([4, 4, 49, 0])
    assert rows.weight is not None and rows.weight.tolist() == weights.tolist()
    taken, part = rows.take(torch.from_numpy(places)).weight, rows.slice(1, 3).weight
    assert taken is not None and taken.tolist() == weights[places].tolist()
    assert part is not None and part.tolist() == weights[1:3].tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("damage", ["cut", "header", "objects", "gone"])
def test_damaged_files_are_refused_with_the_mend(damage: str, placement: Placement, tmp_path: Path) -> None:
    pack(tmp_path / "key", arrays(50, 3, 2, np.int64))
    file = rows_file(tmp_path / "key", "val", "x_num")
    if damage == "cut":
        os.truncate(file, file.stat().st_size - 7)
    elif damage == "header":
        file.write_bytes(b"\0" * 500)
    elif damage == "objects":
        np.save(file, np.array([{}]), allow_pickle=True)
    else:
        file.unlink()
    with pytest.raises(DataError) as caught:
        load_rows(tmp_path / "key", "val", placement=placement)
    assert caught.value.where == str(file) and str(file.parent) in caught.value.fix


def test_a_part_has_memory_of_its_own(tmp_path: Path) -> None:
    pack(tmp_path / "key", arrays(50, 3, 2, np.int64))
    batch = load_rows(tmp_path / "key", "val").take(torch.arange(50))
    part = batch.part(3, 5)
    assert part.x_num.equal(batch.x_num[3:5]) and part.x_num.data_ptr() % 64 == 0
    assert batch.part(0, 50) is batch
    assert len(batch.part(5, 5)) == 0


# --- where rows are kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "num_bytes", "device_type", "expected"),
    [
        ("auto", 1 << 20, "cpu", "device"),
        ("auto", 100 << 20, "cpu", "memory"),
        ("auto", 7 << 30, "cpu", "disk"),
        ("auto", 1 << 30, "cuda", "device"),
        ("auto", 3 << 30, "cuda", "memory"),
        ("auto", 7 << 30, "cuda", "disk"),
        ("memory", 7 << 30, "cpu", "memory"),
        ("disk", 1, "cuda", "disk"),
        ("device", 7 << 30, "cuda", "device"),
    ],
)
def test_placement_is_the_first_with_room(setting: Any, num_bytes: int, device_type: str, expected: Placement) -> None:
    found = choose_placement(
        setting,
        num_bytes=num_bytes,
        device_type=device_type,
        free_on_device=lambda: 4 << 30,
        free_in_memory=lambda: 8 << 30,
    )
    assert found == expected


def test_available_memory_is_no_more_than_the_machine_has() -> None:
    assert 0 < available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- through prepare_data ---------------------------------------------------------------------------------------------


def prepare(path: Path, *words: str) -> PreparedData:
    return prepare_data(load_config(words=[f"data.path={path}", "data.target=y", "preprocess.num_bins=8", *words]))


def encoded_by_hand(path: Path, prepared: PreparedData, *words: str) -> tuple[np.ndarray, ...]:
    """Preprocessor.transform on the whole typed table."""
    config = load_config(words=[f"data.path={path}", "data.target=y", *words])
    table = building.read_table(config.data)
    encoded = prepared.preprocessor.transform(building.typed_frame(table, prepared.schema, config.data))
    assert encoded.y is not None
    return encoded.x_num, encoded.x_cat, encoded.y


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("drop", ["", "size,age,day", "colour,member,size", "size,age,day,colour"])
def test_packed_rows_equal_the_transformed_table(task: str, drop: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    frame = make_table(200, task=task)
    frame.to_csv(path, index=False)
    words = [f"data.drop={drop}"] if drop else []
    prepared = prepare(path, *words)
    encoded = encoded_by_hand(path, prepared, *words)
    fitted = prepared.preprocessor
    assert encoded[0].shape[1] == len(fitted.numeric) == len(fitted.bins)
    assert encoded[1].shape[1] == len(fitted.cardinalities)
    if drop == "size,age,day":
        assert encoded[0].shape[1] == 0
    if drop == "colour,member,size":
        assert encoded[1].shape[1] == 0
    for split in ("train", "val", "test"):
        positions = getattr(load_splits(prepared.folder / "splits.npz"), split)
        assert_equal(prepared.rows(split, device=CPU), encoded, positions)
        truth = prepared.truth(split)
        assert truth["row"].tolist() == positions.tolist()
        assert truth["target"].tolist() == frame["y"].iloc[positions].tolist()


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make any reading, inferring, fitting and encoding fail."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the table was prepared again")

    def forbid() -> None:
        for name in ("read_table", "infer_schema", "typed_frame", "fit_preprocessor", "save_rows"):
            monkeypatch.setattr(building, name, refuse)

    return forbid


def test_a_second_preparation_does_no_work(table_file: Path, no_work: Callable[[], None]) -> None:
    first = prepare(table_file)
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert not first.was_cached
    no_work()
    second = prepare(table_file)
    assert second.was_cached and second.folder == first.folder
    assert second.preprocessor.to_bytes() == first.preprocessor.to_bytes()
    assert (second.schema, second.info) == (first.schema, first.info)
    for split in ("train", "val", "test"):
        a, b = first.rows(split, device=CPU), second.rows(split, device=CPU)
        assert a.x_num.equal(b.x_num) and a.x_cat.equal(b.x_cat) and a.y.equal(b.y)
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before


def test_touching_or_moving_the_file_or_another_model_prepares_nothing_anew(
    table_file: Path, no_work: Callable[[], None]
) -> None:
    prepare(table_file)
    no_work()
    os.utime(table_file, (1, 1))
    assert prepare(table_file).was_cached
    moved = table_file.parent / "deep" / "other.csv"
    moved.parent.mkdir()
    shutil.move(table_file, moved)
    assert prepare(moved).was_cached
    assert prepare(moved, "model.name=mlp", "run.seed=3", "train.max_epochs=1", "optim.peak_lr=1").was_cached
    assert prepare(moved, "train.class_weights=balanced", "train.loss=focal", "train.label_smoothing=0.1").was_cached


@pytest.mark.parametrize(
    "word",
    [
        *("preprocess.scaler=standard", "preprocess.imputation=median", "preprocess.indicators=false"),
        *("preprocess.min_level_rows=2", "preprocess.max_levels=3", "preprocess.near_constant=0.1"),
        *("preprocess.num_bins=9", "split.seed=1", "split.val=0.2", "data.max_rows=250", "data.drop=age"),
        *("data.positive=no", "data.columns.age=categorical", "data.weight=age"),
    ],
)
def test_a_changed_setting_prepares_anew(word: str, table_file: Path, no_work: Callable[[], None]) -> None:
    first = prepare(table_file)
    second = prepare(table_file, word)
    assert not second.was_cached and second.folder != first.folder
    no_work()
    assert prepare(table_file).was_cached  # both stay
    assert prepare(table_file, word).was_cached


def test_changed_content_prepares_anew(table_file: Path) -> None:
    first = prepare(table_file)
    stamp = table_file.stat().st_mtime_ns
    text = table_file.read_text()
    changed = text.replace("red", "tan")
    assert len(changed) == len(text) and changed != text
    table_file.write_text(changed)
    os.utime(table_file, ns=(stamp, stamp))  # neither size nor time tell
    second = prepare(table_file)
    assert not second.was_cached
    (colour, _) = second.preprocessor.categorical
    assert "tan" in colour.levels and "red" not in colour.levels
    assert "red" in first.preprocessor.categorical[0].levels
    table_file.write_text(text)
    assert prepare(table_file).was_cached


def test_a_damaged_preparation_is_built_anew_and_equal(table_file: Path) -> None:
    first = prepare(table_file)
    wanted = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    (first.folder / DONE_FILE).unlink()
    (first.folder / "rows.arrow").write_bytes(b"half")
    (first.folder / "more").touch()
    second = prepare(table_file)
    assert not second.was_cached
    assert {path.name: path.read_bytes() for path in second.folder.iterdir()} == wanted


def test_a_table_that_cannot_be_prepared_leaves_nothing_in_the_cache(table_file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        prepare(table_file, "data.drop=size,age,colour,member,day")
    assert all(name.endswith(".lock") for name in names(tmp_path / "cache" / "nn_train" / "packed"))


def test_the_cache_may_lie_elsewhere(table_file: Path, tmp_path: Path) -> None:
    prepared = prepare(table_file, f"data.cache_dir={tmp_path / 'here'}")
    assert prepared.folder.is_relative_to(tmp_path / "here")
    assert not (tmp_path / "cache").exists()


def test_the_same_rows_in_another_format_are_prepared_anew_and_equal(tmp_path: Path) -> None:
    frame = make_table(200)
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.to_parquet(tmp_path / "table.parquet", index=False)
    a, b = prepare(tmp_path / "table.csv"), prepare(tmp_path / "table.parquet")
    assert not a.was_cached and not b.was_cached
    pd.testing.assert_frame_equal(a.truth("val"), b.truth("val"))
    assert a.rows("val", device=CPU).x_num.equal(b.rows("val", device=CPU).x_num)
