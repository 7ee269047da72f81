"""Large tables, prepared as a stream by any number of processes: the same rows, whatever happens on the way."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nn_train import survey as surveys
from nn_train import table_files
from nn_train.building import read_table, typed_frame
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import DataError
from nn_train.packed import DONE_FILE, features_file
from nn_train.parquet_rows import rows_at_places
from nn_train.preparation import PreparedData, prepare_data
from nn_train.run_folder import read_json
from nn_train.schema import SPLITS
from nn_train.shards import PartReader, Unit, plan_units
from nn_train.survey import ColumnFacts, Survey
from nn_train.table_files import fingerprint
from tests.conftest import ROOT, SMALL, make_table, run_world

STREAM = ("data.preparation=stream", "data.workers=1", "data.target=y")
NUM_SHARDS, SHARD_ROWS, GROUP_ROWS = 5, 700, 200


def big_table(task: str = "binary") -> pd.DataFrame:
    """Rows of every kind, a few of which have no target, and a category with levels of all sizes."""
    num_rows = NUM_SHARDS * SHARD_ROWS
    table = make_table(num_rows, task=task)
    rng = np.random.default_rng(7)
    table["city"] = [f"city {int(number)}" for number in rng.zipf(1.6, size=num_rows) % 300]
    table["w"] = rng.choice([0.5, 1.0, 2.0], size=num_rows)
    table.loc[rng.choice(num_rows, 20, replace=False), "y"] = None
    return table


def write_shards(folder: Path, table: pd.DataFrame) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_SHARDS):
        part = table.iloc[number * SHARD_ROWS : (number + 1) * SHARD_ROWS]
        part.to_parquet(folder / f"part-{number}.parquet", index=False, row_group_size=GROUP_ROWS)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The binary table in shards."""
    return write_shards(tmp_path_factory.mktemp("shards") / "table", big_table())


def prepare(path: Path, *words: str) -> PreparedData:
    return prepare_data(load_config(words=[f"data.path={path}", *STREAM, "preprocess.num_bins=8", *words]))


def digest(data: PreparedData) -> str:
    """A sum over all packed rows and all that was fitted."""
    found = hashlib.sha256()
    for file in sorted(data.folder.glob("*.npy")):
        found.update(file.read_bytes())
    for content in data.preprocessor.to_bytes().values():
        found.update(content)
    found.update(json.dumps(data.info, sort_keys=True).encode())
    for split in ("val", "test"):
        found.update(data.truth(split).to_csv(index=False).encode())
    return found.hexdigest()


# --- the rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_packed_rows_are_those_of_the_table_and_each_is_in_one_split(task: str, form: str, tmp_path: Path) -> None:
    table = big_table(task)
    path = write_shards(tmp_path / "table", table)
    if form == "csv":
        shutil.rmtree(path)
        path.mkdir()
        table.iloc[:1000].to_csv(path / "a.csv", index=False)
        table.iloc[1000:].to_csv(path / "b.csv", index=False)
    data = prepare(path, "data.weight=w")
    config = load_config(words=[f"data.path={path}", "data.target=y"])
    whole = typed_frame(read_table(config.data), data.schema, config.data)
    encoded = data.preprocessor.transform(whole)
    assert encoded.y is not None
    has_target = table["y"].notna().to_numpy()
    assert data.schema.num_rows == has_target.sum() and data.schema.num_rows_without_target == 20
    seen = []
    for split in ("val", "test"):
        rows = data.truth(split)["row"].to_numpy()
        seen.append(rows)
        packed = data.rows(split)
        np.testing.assert_array_equal(packed.x_num.numpy(), encoded.x_num[rows])
        np.testing.assert_array_equal(packed.x_cat.numpy(), encoded.x_cat[rows])
        np.testing.assert_array_equal(packed.y.numpy(), encoded.y[rows])
        assert packed.weight is not None
        np.testing.assert_array_equal(packed.weight.numpy(), table["w"].to_numpy()[rows].astype(np.float32))
        truth = data.truth(split)["target"]
        assert truth.astype(str).tolist() == whole["y"].iloc[rows].astype(str).tolist()
        assert 0.1 < len(rows) / has_target.sum() < 0.2
    train = np.setdiff1d(np.flatnonzero(has_target), np.concatenate(seen))
    packed = data.rows("train")
    np.testing.assert_array_equal(packed.x_cat.numpy(), encoded.x_cat[train])
    np.testing.assert_array_equal(packed.x_num.numpy(), encoded.x_num[train])
    assert data.info["rows"] == {"train": len(train), "val": len(seen[0]), "test": len(seen[1])}
    features = rows_at_places(features_file(data.folder, "test"), np.array([5, 0]), ["city", "size"])
    assert features.column("city").to_pylist() == table["city"].iloc[seen[1][[5, 0]]].tolist()


def test_counts_are_those_of_all_rows_and_levels_those_of_the_train_rows(folder: Path) -> None:
    data, table = prepare(folder), big_table()
    there = table[table["y"].notna()]
    held = np.concatenate([data.truth(split)["row"].to_numpy() for split in ("val", "test")])
    train = there.drop(index=held)
    counts = train["city"].value_counts()
    city = next(column for column in data.preprocessor.categorical if column.column == "city")
    least = max(5, len(train) // 500)
    expected = sorted(counts[counts >= least].index, key=lambda level: (-counts[level], level))
    assert list(city.levels) == expected and len(expected) > 10
    specs = {spec.name: spec for spec in data.schema.columns}
    assert specs["city"].num_distinct == there["city"].nunique()
    assert specs["size"].num_missing == there["size"].isna().sum()
    assert specs["colour"].num_missing == there["colour"].isna().sum()
    assert data.info["class_counts"]["train"] == train["y"].value_counts().to_dict()


def test_scales_are_those_of_all_train_rows_where_the_sample_holds_them_all(folder: Path) -> None:
    """The sample of a table this small is the whole table, so that nothing is a matter of chance."""
    data, table = prepare(folder, "preprocess.scaler=standard"), big_table()
    held = np.concatenate([data.truth(split)["row"].to_numpy() for split in ("val", "test")])
    train = table[table["y"].notna()].drop(index=held)
    place = [number.name for number in data.preprocessor.numeric].index("age")
    np.testing.assert_allclose(data.preprocessor.arrays["center"][place], train["age"].mean())


@pytest.mark.parametrize("target", ["y", "[y,age]"])
def test_the_target_is_standardised_by_all_train_rows(target: str, tmp_path: Path) -> None:
    table = big_table("regression")
    path = write_shards(tmp_path / "table", table)
    data = prepare(path, f"data.target={target}")
    held = np.concatenate([data.truth(split)["row"].to_numpy() for split in ("val", "test")])
    train = table[table["y"].notna()].drop(index=held)
    names = ["y"] if target == "y" else ["y", "age"]
    np.testing.assert_allclose(np.ravel(data.preprocessor.target_mean), train[names].mean())
    np.testing.assert_allclose(np.ravel(data.preprocessor.target_std), train[names].std(ddof=0))
    assert abs(float(data.rows("train").y.mean(0).abs().max())) < 1e-5


def test_a_small_sample_is_near_the_whole(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = prepare(folder)
    monkeypatch.setattr(surveys, "SAMPLE_ROWS", (600, 200, 200))
    sampled = prepare(folder, f"data.cache_dir={tmp_path / 'other'}")
    assert sampled.info["sampled_rows"] == 1000 < whole.info["sampled_rows"]
    assert [c.levels for c in sampled.preprocessor.categorical] == [c.levels for c in whole.preprocessor.categorical]
    distance = (sampled.rows("train").x_num - whole.rows("train").x_num).abs()
    assert float(distance.median()) < 0.1


@pytest.mark.parametrize("drop", ["size,age,day,w", "colour,member,city", ""])
def test_a_table_without_numbers_or_levels_and_no_test_rows(drop: str, folder: Path) -> None:
    data = prepare(folder, f"data.drop={drop}", "split.test=0", "preprocess.indicators=false")
    assert data.num_rows("test") == 0 == len(data.rows("test", placement="memory"))
    rows = data.rows("train")
    assert (rows.x_num.shape[1] == 0) == (drop == "size,age,day,w")
    assert (rows.x_cat.shape[1] == 0) == (drop == "colour,member,city")
    assert len(rows) == data.info["rows"]["train"] > 2000


# --- splits -----------------------------------------------------------------------------------------------------------


def test_splits_by_group_time_column_and_files(tmp_path: Path) -> None:
    table = big_table()
    table["part"] = np.resize(["train"] * 7 + ["dev", "test", "test"], len(table))
    path = write_shards(tmp_path / "table", table)

    def rows(*words: str) -> dict[str, np.ndarray]:
        data = prepare(path, *words)
        found = {split: data.truth(split)["row"].to_numpy() for split in ("val", "test")}
        return found | {"rest": np.setdiff1d(np.flatnonzero(table["y"].notna()), np.concatenate(list(found.values())))}

    by_group = rows("split.method=group", "split.column=city")
    cities = [set(table["city"].iloc[part]) for part in by_group.values()]
    assert all(cities) and not (cities[0] & cities[1] or cities[0] & cities[2] or cities[1] & cities[2])
    by_time = {split: table["day"].iloc[part] for split, part in rows("split.method=time", "split.column=day").items()}
    assert by_time["rest"].max() < by_time["val"].min() and by_time["val"].max() < by_time["test"].min()
    assert 0.1 < len(by_time["val"]) / len(table) < 0.2
    by_column = rows("split.method=column", "split.column=part")
    assert set(table["part"].iloc[by_column["val"]]) == {"dev"} and set(table["part"].iloc[by_column["rest"]]) == {
        "train"
    }
    files = [str(file) for file in sorted(path.iterdir())]
    data = prepare(Path(files[0]), "split.method=files", f"split.val_path={files[1]}", f"split.test_path={files[2]}")
    assert data.info["rows"] == {
        split: int(table["y"].iloc[n * SHARD_ROWS : (n + 1) * SHARD_ROWS].notna().sum())
        for n, split in enumerate(SPLITS)
    }


def test_folds_cover_the_rows_that_are_not_for_the_test(folder: Path) -> None:
    found = [prepare(folder, "split.folds=3", f"split.fold={fold}") for fold in range(3)]
    tests = {tuple(data.truth("test")["row"]) for data in found}
    folds = [data.truth("val")["row"].tolist() for data in found]
    assert len(tests) == 1
    assert len(set().union(*folds)) == sum(map(len, folds)) == found[0].schema.num_rows - len(next(iter(tests)))


def test_another_seed_gives_another_split_and_another_table_behind_it_none(folder: Path, tmp_path: Path) -> None:
    first = prepare(folder)
    other = prepare(folder, "split.seed=1")
    assert first.truth("test")["row"].tolist() != other.truth("test")["row"].tolist()
    longer = Path(shutil.copytree(folder, tmp_path / "longer"))
    shutil.copy(longer / "part-0.parquet", longer / "part-9.parquet")
    again = prepare(longer)
    held = again.truth("test")["row"]
    assert held[held < NUM_SHARDS * SHARD_ROWS].tolist() == first.truth("test")["row"].tolist()


# --- many processes ---------------------------------------------------------------------------------------------------

PREPARE = """
import sys
from nn_train.config import load_config
from nn_train.preparation import prepare_data
data = prepare_data(load_config(words=sys.argv[1:]))
print(data.folder, data.was_cached)
"""


def start_preparing(number: int, words: list[str]) -> list[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PREPARE, *words]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(number)]


def test_four_processes_and_helpers_give_the_bytes_of_one(folder: Path, tmp_path: Path) -> None:
    alone = prepare(folder, f"data.cache_dir={tmp_path / 'alone'}")
    words = [f"data.path={folder}", *STREAM, "preprocess.num_bins=8", f"data.cache_dir={tmp_path / 'cache'}"]
    said = [process.communicate()[0] for process in start_preparing(4, words)]
    assert len({line.split()[0] for line in said}) == 1
    together = prepare(folder, f"data.cache_dir={tmp_path / 'cache'}")
    assert together.was_cached and digest(together) == digest(alone)
    helped = prepare(folder, f"data.cache_dir={tmp_path / 'helped'}", "data.workers=3")
    assert digest(helped) == digest(alone)
    assert not list(together.folder.glob("survey-*.parquet"))


def test_a_killed_preparation_is_gone_on_with_and_nothing_is_done_twice(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    words = [f"data.path={folder}", *STREAM, "preprocess.num_bins=8", f"data.cache_dir={cache}"]
    (killed,) = start_preparing(1, words)
    deadline = time.monotonic() + 60
    while not list(cache.glob("packed/*/survey-*.done")) and time.monotonic() < deadline:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    [shared] = [path for path in cache.glob("packed/*") if path.is_dir()]
    assert not (shared / DONE_FILE).exists()
    done = {path.name: path.stat().st_mtime_ns for path in shared.glob("*.done")}
    assert any(name.startswith("survey") for name in done)
    data = prepare(folder, f"data.cache_dir={cache}")
    kept = {name: (data.folder / name).stat().st_mtime_ns for name in done}
    assert kept == done  # what was done was not done again
    assert digest(data) == digest(prepare(folder, f"data.cache_dir={tmp_path / 'alone'}"))


def test_a_second_start_does_no_work_and_reads_no_large_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LARGE_FILE_BYTES", 1)
    first = prepare(folder)
    monkeypatch.setattr(table_files, "_digest_into", lambda *_: pytest.fail("a file was read"))
    second = prepare(folder)
    assert second.was_cached and second.folder == first.folder


def test_a_large_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LARGE_FILE_BYTES", 1)
    file, known = tmp_path / "a.csv", tmp_path / "known"
    file.write_text("a,b\n1,2\n")
    first = fingerprint([file], known)
    assert fingerprint([file], known) == first == fingerprint([file])
    file.write_text("a,b\n1,3\n")
    os.utime(file, ns=(1, 1))
    assert fingerprint([file], known) == fingerprint([file]) != first
    for note in known.glob("*.json"):
        note.write_text("{")
    assert fingerprint([file], known) == fingerprint([file])


# --- what cannot be prepared ------------------------------------------------------------------------------------------


def damage(file: Path, group: int, *, column: int = 0) -> None:
    """Overwrite the pages of a column in a row group."""
    pages = pq.read_metadata(file).row_group(group).column(column)
    with file.open("r+b") as stream:
        stream.seek(pages.dictionary_page_offset or pages.data_page_offset)
        stream.write(b"\xff" * 60)


def test_a_damaged_row_group_is_named_or_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "table"))
    damage(path / "part-2.parquet", 1)
    with pytest.raises(DataError, match="row group 1 cannot be read") as caught:
        prepare(path)
    assert caught.value.where.endswith("part-2.parquet") and "data.bad_shards=skip" in caught.value.fix
    data = prepare(path, "data.bad_shards=skip")
    assert [what for what in data.info["warnings"] if "left out" in what and "row group 1" in what]
    assert len(data.info["bad_parts"]) == 1
    lost = set(range(2 * SHARD_ROWS + GROUP_ROWS, 2 * SHARD_ROWS + 2 * GROUP_ROWS))
    expected = big_table()["y"].notna()
    assert data.schema.num_rows == expected.drop(index=list(lost)).sum()
    whole = prepare(folder)
    for split in ("val", "test"):  # the rows behind are where they were
        rows = whole.truth(split)["row"]
        assert data.truth(split)["row"].tolist() == rows[~rows.isin(lost)].tolist()


@pytest.mark.parametrize("words", [(), ("split.method=time", "split.column=day")])
def test_every_damaged_part_counts_also_where_the_split_reads_the_table_before(
    words: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "table"))
    for shard in (1, 2):  # the same group of two files
        damage(path / f"part-{shard}.parquet", 1, column=4)
    data = prepare(path, "data.bad_shards=skip", *words)
    assert len(data.info["bad_parts"]) == 2 == len([what for what in data.info["warnings"] if "left out" in what])


def test_rows_without_weight_may_fill_a_shard_but_not_the_table(tmp_path: Path) -> None:
    table = big_table()
    table.loc[SHARD_ROWS : 2 * SHARD_ROWS - 1, "w"] = 0
    data = prepare(write_shards(tmp_path / "some", table), "data.weight=w")
    weight = data.rows("train").weight
    assert weight is not None and 400 < int((weight == 0).sum()) < 600
    with pytest.raises(DataError, match="has the weight 0 in every train row"):
        prepare(write_shards(tmp_path / "all", table.assign(w=0.0)), "data.weight=w")


def test_shards_without_a_row_are_no_table(tmp_path: Path) -> None:
    empty = big_table().iloc[:0]
    with pytest.raises(DataError, match="the table holds no rows"):
        prepare(write_shards(tmp_path / "table", empty))


def test_a_truncated_shard_is_named(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "table"))
    os.truncate(path / "part-3.parquet", 2000)
    with pytest.raises(DataError) as caught:
        prepare(path)
    assert caught.value.where.endswith("part-3.parquet") and "not a whole Parquet file" in caught.value.what


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda table: table.drop(columns="age"), "column 'age' of the first shard is missing"),
        (lambda table: table.assign(more=1), "column 'more' is not in the first shard"),
        (lambda table: table.assign(age=table["colour"]), "column 'age' holds"),
    ],
)
def test_a_shard_with_other_columns_or_types_is_named(change: Any, what: str, folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder, tmp_path / "table"))
    change(pd.read_parquet(path / "part-1.parquet")).to_parquet(path / "part-1.parquet", index=False)
    with pytest.raises(DataError) as caught:
        prepare(path)
    assert what in caught.value.what and caught.value.where.endswith("part-1.parquet")


@pytest.mark.parametrize(("number", "what"), [(23, "numbers, and the text 'old'"), (24, "numbers, and 'old'")])
def test_a_text_among_numbers_is_named_whether_the_first_look_saw_it_or_not(
    number: int, what: str, tmp_path: Path
) -> None:
    table = big_table()
    (tmp_path / "table").mkdir()
    table["age"] = table["age"].astype(str)
    table.loc[100 * number + 45, "age"] = "old"
    for place in range(30):  # more files than are looked at
        table.iloc[place * 100 : (place + 1) * 100].to_csv(tmp_path / "table" / f"{place:02}.csv", index=False)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "table")
    assert f"column 'age' holds {what} in row 46 of {number}.csv" in caught.value.what
    found = prepare(tmp_path / "table", "data.columns.age=numeric")
    assert any(number.column == "age" for number in found.preprocessor.numeric)


def test_a_class_that_the_first_look_did_not_see_is_a_class(tmp_path: Path) -> None:
    table = big_table("multiclass")
    (tmp_path / "table").mkdir()
    table.loc[2300:2390, "y"] = "rare"
    for number in range(30):
        table.iloc[number * 100 : (number + 1) * 100].to_csv(tmp_path / "table" / f"{number:02}.csv", index=False)
    assert prepare(tmp_path / "table").schema.target.classes == ("high", "low", "mid", "rare")


def test_too_little_disk_is_said_before_the_work_starts(folder: Path, small_disk: Path) -> None:
    with pytest.raises(DataError, match=r"the packed rows need some [\d,]+ bytes, and [\d,]+ are free") as caught:
        prepare(folder, f"data.cache_dir={small_disk}")
    assert "data.cache_dir=FOLDER on a larger disk" in caught.value.fix
    assert not list(small_disk.glob("packed/*/survey*"))


def test_max_rows_goes_with_a_whole_table(folder: Path) -> None:
    with pytest.raises(DataError.__bases__[0], match=r"data\.max_rows"):
        prepare(folder, "data.max_rows=100")


# --- the parts --------------------------------------------------------------------------------------------------------


def test_units_are_neighbouring_row_groups(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn_train.shards.UNIT_ROWS", 300)
    units = plan_units(load_config(words=[f"data.path={folder}", *STREAM]))
    assert [unit.number for unit in units] == list(range(2 * NUM_SHARDS))
    assert [(unit.first_part, unit.first_row, unit.part_rows) for unit in units[:2]] == [
        (0, 0, (200, 200)),
        (2, 400, (200, 100)),
    ]


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text files of more than 10,000 bytes are read in stretches of 400 rows, and pieces of 100."""
    for name, value in {"UNIT_ROWS": 400, "PIECE_ROWS": 100, "UNIT_BYTES": 10_000}.items():
        monkeypatch.setattr(f"nn_train.shards.{name}", value)
    monkeypatch.setattr("nn_train.building_shards.UNIT_ROWS", 50)
    monkeypatch.setattr("nn_train.table_text.BLOCK_BYTES", 1 << 13)  # that Arrow reads at once


@pytest.fixture(params=["regular", "irregular"])
def text_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The binary table as one CSV file, with quotes, line breaks in values and empty lines.

    An irregular one holds a quote within a value, so that nobody can tell where its rows stand before they are read.
    """
    table = big_table()
    table["city"] = table["city"].str.replace("city 1", 'the "first"\ncity, 1')
    head, tail = table.iloc[:1000].to_csv(index=False), table.iloc[1000:].to_csv(index=False, header=False)
    file = tmp_path / "table.csv"
    text = f"{head}\n\n{tail}"
    assert "city 7" in text
    file.write_text(text if request.param == "regular" else text.replace("city 7", 'city"7'))
    return file


def is_regular(units: list[Unit]) -> bool:
    return any(unit.span is not None for unit in units)


def test_a_text_file_in_stretches_gives_the_bytes_of_a_whole_one(
    text_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    whole = prepare(text_file, f"data.cache_dir={tmp_path / 'whole'}")
    request.getfixturevalue("small_units")
    units = plan_units(load_config(words=[f"data.path={text_file}", *STREAM]))
    assert 7 <= len(units) <= 10 and [unit.first_row for unit in units] == [400 * place for place in range(len(units))]
    if "irregular" in request.node.name:
        assert [unit.most_rows for unit in units] == [400] * (len(units) - 1) + [None]
        assert all(unit.num_rows is None for unit in units)
    else:
        assert [unit.num_rows for unit in units] == [400] * (len(units) - 1) + [len(big_table()) % 400 or 400]
    parted = prepare(text_file, f"data.cache_dir={tmp_path / 'parted'}")
    assert digest(parted) == digest(whole)
    by_time = prepare(text_file, f"data.cache_dir={tmp_path / 'time'}", "split.method=time", "split.column=day")
    assert by_time.schema.num_rows == whole.schema.num_rows


def test_stretches_may_be_asked_for_in_any_order_and_beyond_the_end(text_file: Path, small_units: None) -> None:
    config = load_config(words=[f"data.path={text_file}", *STREAM])
    units = plan_units(config)
    beyond = units[0] if is_regular(units) else dataclasses.replace(units[-1], first_row=99 * 400)
    rows = read_table(config.data)
    reader = PartReader(config.data)
    for unit in (units[2], units[3], beyond, units[0], units[-1], units[0], beyond, units[-1]):
        found = [piece for piece in reader.read(unit, 0, columns=["y", "city"]) if len(piece)]
        most = unit.num_rows or unit.most_rows
        last = None if most is None else unit.first_row + most
        expected = list(rows[unit.first_row : last]["city"]) if unit.first_row < len(rows) else []
        assert [value for piece in found for value in piece.column("city").to_pylist()] == expected


def test_the_first_look_at_a_long_text_file_sees_more_than_its_top(tmp_path: Path, small_units: None) -> None:
    table = big_table()
    table.loc[:1500, "city"] = None
    table.to_csv(tmp_path / "table.csv", index=False)
    data = prepare(tmp_path / "table.csv")
    city = next(column for column in data.preprocessor.categorical if column.column == "city")
    assert len(city.levels) > 5


def test_a_long_text_file_of_empty_lines_holds_no_rows(tmp_path: Path, small_units: None) -> None:
    (tmp_path / "table.csv").write_text("a,y\n" + "\n" * 20_000)
    with pytest.raises(DataError, match="the table holds no rows"):
        prepare(tmp_path / "table.csv")


def test_the_stretch_of_a_damaged_line_or_all_that_follows_is_left_out_and_counted(
    text_file: Path, small_units: None
) -> None:
    lines = text_file.read_text().split("\n")
    place = next(number for number in range(2400, len(lines)) if lines[number].count(",") == lines[0].count(","))
    lines[place] += ",one,two"
    text_file.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"line {place + 1} has \d+ fields, and the header") as caught:
        prepare(text_file)
    assert "data.bad_shards=skip" in caught.value.fix
    data = prepare(text_file, "data.bad_shards=skip")
    known = data.schema.num_rows + data.schema.num_rows_without_target
    units = plan_units(load_config(words=[f"data.path={text_file}", *STREAM]))
    if is_regular(units):
        num_bad = 1
        assert known == len(big_table()) - 400
    else:
        num_bad = len(units) - known // 400
        assert known and known % 400 == 0 and known < place and num_bad > 1
    assert len(data.info["bad_parts"]) == num_bad
    (told,) = [what for what in data.info["warnings"] if "left out" in what]
    assert f"line {place + 1} has" in told and (num_bad == 1 or told.endswith(f"({num_bad} parts)"))


def test_a_file_that_changes_while_it_is_read_is_told(text_file: Path, small_units: None) -> None:
    config = load_config(words=[f"data.path={text_file}", *STREAM])
    unit = plan_units(config)[1]
    if unit.span is not None:
        start, stop, _, _ = unit.span
        whole = text_file.read_bytes()
        text_file.write_bytes(whole[:start] + b"\n" * (stop - start) + whole[stop:])
        with pytest.raises(DataError, match="there are 0 rows where 400 were counted from row 401 on"):
            list(PartReader(config.data).read(unit, 0))


def test_surveys_add_up_in_any_parts() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 500))
    parts = []
    for numbers in values:
        facts = ColumnFacts(
            smallest=np.unique(surveys.mix(numbers.view(np.uint64)))[: surveys.NUM_SMALLEST].tolist(),
        )
        moments = {"y": [[500.0, float(numbers.mean()), float(((numbers - numbers.mean()) ** 2).sum())]] * 3}
        sample = pa.table({"x": numbers})
        parts.append(Survey(num_rows=500, rows=[500, 0, 0], columns={"x": facts}, moments=moments, sample=sample))
    whole = Survey()
    for part in parts:
        whole.add(part)
    number, mean, deviations = whole.moments["y"][0]
    assert (whole.num_rows, number) == (2000, 2000)
    np.testing.assert_allclose([mean, deviations / number], [values.mean(), values.var()])
    assert abs(whole.columns["x"].num_distinct / 2000 - 1) < 0.1


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_on_a_stream_is_the_same_on_one_and_two_processes(folder: Path, tmp_path: Path) -> None:
    words = [
        *SMALL,
        f"data.path={folder}",
        *STREAM,
        "data.id=city",
        "data.placement=disk",
        "train.shuffle=blocks",
        "train.shuffle_window=500",
        "train.global_batch_size=64",
        "train.max_epochs=2",
        "model.dropout=0",
        "train.gradient_reduction=exact",
        "report.baselines=true",
        "report.page=true",
        "report.dpi=40",
    ]
    Engine(load_config(None, [*words, f"run.dir={tmp_path / 'one'}"])).run()
    run_world(2, [[*words, f"run.dir={tmp_path / 'two'}"]], tmp_path)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    metrics = read_json(tmp_path / "one" / "metrics.json")
    assert metrics["test"]["roc_auc"] > 0.8
    predictions = pd.read_parquet(tmp_path / "one" / "predictions.parquet")
    table = big_table()
    assert predictions["city"].tolist() == table["city"].iloc[predictions["row"]].tolist()
    assert predictions["target"].tolist() == table["y"].iloc[predictions["row"]].tolist()
    assert (tmp_path / "one" / "report.html").exists() and not (tmp_path / "one" / "splits.npz").exists()
    assert (prepare(folder).folder / DONE_FILE).exists()
