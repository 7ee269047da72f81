"""Predictions of whole tables: every format in and out, any size of piece, one process or more, killed half way."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nn_train import load_bundle
from nn_train.predict import main
from nn_train.table_stream import ahead
from tests.conftest import ROOT, Start, TinyRun, make_table

SCRIPT = ROOT / "nn_train" / "predict.py"
READ: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".parquet": pd.read_parquet,
    ".csv": pd.read_csv,
    ".jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()]),
}


def predict(run: Path, table: Path, output: Path, *words: str) -> int:
    return main(["--run", str(run), "--input", str(table), "--output", str(output), *words])


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("ending", READ)
def test_the_test_rows_of_the_raw_file_get_the_runs_own_predictions(
    task: str, ending: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run = tiny_run(task, "data.id=age")
    wanted = pd.read_parquet(run / "predictions.parquet")
    assert predict(run, run.parent / "table.csv", tmp_path / f"scores{ending}", f"--summary={tmp_path / 's.json'}") == 0
    # an id is text in a run on CSV, and pandas reads a number where it looks like one
    found = READ[ending](tmp_path / f"scores{ending}").astype({"age": str})
    assert list(found["row"]) == list(range(400)) and list(found.columns) == list(wanted.columns)
    pd.testing.assert_frame_equal(
        found.iloc[wanted["row"]].reset_index(drop=True), wanted, check_dtype=False, atol=1e-6, rtol=0
    )
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["rows"] == summary["judged_rows"] == 400 and summary["metrics"]


def test_the_metrics_are_those_of_the_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    rows = pd.read_parquet(run / "predictions.parquet")["row"]
    pd.read_csv(run.parent / "table.csv").iloc[rows].to_parquet(tmp_path / "test.parquet")
    predict(run, tmp_path / "test.parquet", tmp_path / "scores.csv", f"--summary={tmp_path / 's.json'}")
    wanted = json.loads((run / "metrics.json").read_text())["test"]
    assert json.loads((tmp_path / "s.json").read_text())["metrics"] == pytest.approx(wanted, abs=1e-6)


def as_json(frame: pd.DataFrame, path: Path) -> None:
    frame.to_json(path, orient="records", lines=True)


def as_arrow(frame: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=90)


def as_gzip(frame: pd.DataFrame, path: Path) -> None:
    with gzip.open(path, "wt", newline="") as stream:
        frame.to_csv(stream, index=False)


WRITE: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "new.csv": lambda frame, path: frame.to_csv(path, index=False),
    "new.tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "new.csv.gz": as_gzip,
    "new.parquet": lambda frame, path: frame.to_parquet(path, index=False, row_group_size=70),
    "new.arrow": as_arrow,
    "new.jsonl": as_json,
}


@pytest.mark.parametrize("name", WRITE)
def test_every_format_gives_the_same(name: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    frame = make_table(230, seed=5).drop(columns="y").assign(day=lambda f: f["day"].dt.strftime("%Y-%m-%d"))
    WRITE[name](frame, tmp_path / name)
    assert predict(run, tmp_path / name, tmp_path / "scores.parquet", "--piece-rows=50") == 0
    found = pd.read_parquet(tmp_path / "scores.parquet")
    wanted = load_bundle(run).predict(frame)
    pd.testing.assert_frame_equal(found.drop(columns="row"), wanted, check_dtype=False, atol=1e-6, rtol=0)


@pytest.mark.parametrize("piece_rows", [1, 7, 399, 400, 401])
def test_any_size_of_piece_gives_the_same(piece_rows: int, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    table = run.parent / "table.csv"
    for name, rows in (("a", piece_rows), ("b", 100_000)):
        predict(run, table, tmp_path / f"{name}.parquet", f"--piece-rows={rows}", f"--summary={tmp_path / name}.json")
    a, b = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    pd.testing.assert_frame_equal(a, b, atol=1e-6, rtol=0)
    parts = [json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab"]
    assert parts[0]["metrics"] == pytest.approx(parts[1]["metrics"], abs=1e-6)
    assert parts[0]["missing"] == parts[1]["missing"]


@pytest.mark.parametrize(("processes", "rows"), [(2, 5), (2, 250), (3, 7)])
def test_several_processes_give_the_same(
    processes: int, rows: int, start: Start, tiny_run: TinyRun, tmp_path: Path
) -> None:
    # 250 rows in pieces of 40: seven, an uneven number; 5 in pieces of 40: one, and nothing for the others
    run = tiny_run()
    frame = make_table(rows, seed=3)
    frame.loc[1, "colour"] = "violet"
    frame.to_csv(tmp_path / "new.csv", index=False)
    words = ("--run", str(run), "--input", "new.csv", "--piece-rows=40")
    for name, count in (("one", 1), ("many", processes)):
        done = start("--output", f"{name}.parquet", f"--summary={name}.json", *words, processes=count, script=SCRIPT)
        assert done.returncode == 0, done.stdout + done.stderr
    one, many = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    pd.testing.assert_frame_equal(one, many, atol=1e-6, rtol=0)
    parts = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "many")]
    assert parts[1]["processes"] == processes and parts[0]["unseen"] == parts[1]["unseen"] == {"colour": 1}
    for name in ("rows", "missing", "unreadable", "judged_rows"):
        assert parts[0][name] == parts[1][name]
    assert parts[0]["metrics"] == pytest.approx(parts[1]["metrics"], abs=1e-6, nan_ok=True)


def test_what_is_odd_is_counted_and_said_once(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run("binary", "data.id=age")
    frame = make_table(50, seed=9)[["y", "day", "member", "colour", "size"]].assign(new=1, more="x")
    frame["size"] = frame["size"].fillna(0.5).astype(str)
    frame.loc[:2, "size"] = ["many", None, "1e3"]
    frame.loc[:3, "colour"] = ["violet", None, "red", "pink"]
    frame.loc[4:, "colour"] = "red"
    frame.loc[:1, "y"] = [None, "perhaps"]
    frame.to_parquet(tmp_path / "new.parquet")
    assert predict(run, tmp_path / "new.parquet", tmp_path / "s.csv", f"--summary={tmp_path / 's.json'}") == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["extra"] == ["new", "more"] and found["absent_ids"] == ["age"] and found["reordered"]
    assert found["converted"] == {"size": "string"} or found["converted"] == {"size": "large_string"}
    assert found["missing"] == {"size": 1, "colour": 1} and found["unreadable"] == {"size": 1}
    assert found["unseen"] == {"colour": 2} and found["unseen_examples"] == {"colour": "violet"}
    assert found["rows"] == 50 and found["rows_with_target"] == 48
    said = capsys.readouterr().out
    for text in ("new, more", "age", "size 1", "colour 2 ('violet')", "another order", "48 rows with a target"):
        assert text in said


def test_columns_can_be_kept(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    assert predict(run, run.parent / "table.csv", tmp_path / "s.csv", "--keep=colour,day") == 0
    found = pd.read_csv(tmp_path / "s.csv")
    wanted = pd.read_csv(run.parent / "table.csv")
    assert list(found.columns) == ["row", "colour", "day", "target", "prediction", "p_no", "p_yes"]
    assert list(found["day"]) == list(wanted["day"])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"--run": "nowhere"}, "no bundle can be read here"),
        ({"--input": "nowhere.csv"}, "no such file"),
        ({"--output": "scores.xlsx"}, "is not known from its name"),
        ({"--output": "nowhere/scores.csv"}, "there is no such folder"),
        ({"--output": "new.csv"}, "the output is a file of the table itself"),
        ({"--keep": "colour,weight"}, "--keep names the column 'weight'"),
        ({"--piece-rows": "0"}, "is no number of rows"),
        ({"--pieces": "3"}, "unknown option --pieces"),
        ({"--input": "few.csv"}, "columns age, member of the training table are missing"),
        ({"--input": "ragged.csv"}, "line 3 has 2 fields"),
        ({"--input": "empty.csv"}, "the file is empty"),
        ({"--input": "cut.parquet"}, "this is not a whole Parquet file"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    words: dict[str, str], text: str, tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    frame = make_table(20)
    frame.to_csv("new.csv", index=False)
    frame.drop(columns=["age", "member"]).to_csv("few.csv", index=False)
    (tmp_path / "ragged.csv").write_text("size,age,colour,member,day\n1,2,red,no,2024-01-01\n1,2\n")
    (tmp_path / "empty.csv").touch()
    frame.to_parquet("whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-50])
    before = sorted(path.name for path in tmp_path.iterdir())
    options = {"--run": str(tiny_run()), "--input": "new.csv", "--output": "scores.parquet"} | words
    assert main([f"{name}={value}" for name, value in options.items()]) == 2
    said = capsys.readouterr().err
    assert text in said and "mend: " in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_words_say_how_another_table_is_read(tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tiny_run()
    make_table(20).to_csv(tmp_path / "new.csv", sep=";", index=False, encoding="utf-16", na_rep="nothing")
    words = ("data.delimiter=;", "data.encoding=utf-16", "data.missing_values=[nothing]")
    assert predict(run, tmp_path / "new.csv", tmp_path / "s.csv", *words, f"--summary={tmp_path / 's.json'}") == 0
    found = json.loads((tmp_path / "s.json").read_text())
    gaps = make_table(20).isna().sum()
    assert found["missing"] == gaps[gaps > 0].to_dict() and not found["unreadable"] and not found["unseen"]
    assert predict(run, tmp_path / "new.csv", tmp_path / "s.csv", "model.width=3") == 2
    assert "model.width says nothing of how a table is read" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_half_way_it_leaves_no_file(number: signal.Signals, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    make_table(60_000).to_csv(tmp_path / "new.csv", index=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scores.parquet").write_bytes(b"of an earlier day")
    command = [sys.executable, str(SCRIPT), "--run", str(run), "--input", "new.csv"]
    command += ["--output", "out/scores.parquet", "--piece-rows=20"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job ignores
    )  # fmt: skip
    try:
        deadline_s = time.monotonic() + 60
        while not _writes_into(process.pid, tmp_path / "out") and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode in ((1,) if number == signal.SIGINT else (-number,)), said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores.parquet"]
    assert (tmp_path / "out" / "scores.parquet").read_bytes() == b"of an earlier day"


def _writes_into(pid: int, folder: Path) -> bool:
    """Has the process a file in this folder that holds something by now?"""
    try:
        handles = [Path(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        return any(str(folder) in os.readlink(handle) and handle.stat().st_size for handle in handles)
    except OSError:
        return False


def test_processes_that_see_other_tables_say_so(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        make_table(30 + rank).to_csv(tmp_path / str(rank) / "new.csv", index=False)
    code = (
        "import os, sys; sys.path.insert(0, os.environ['PROJECT']); os.chdir(os.environ['RANK'])\n"
        "from nn_train.ending import leave\nfrom nn_train.predict import main\nleave(main(sys.argv[1:]))\n"
    )
    (tmp_path / "each.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--", "each.py"]
    done = subprocess.run(
        [*command, "--run", str(run), "--input", "new.csv", "--output", "scores.csv"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"PROJECT": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0 and "the processes see different tables" in done.stderr
    assert not list(tmp_path.glob("*/scores.csv"))


def test_what_is_made_ahead_comes_in_order_and_its_error_where_it_was() -> None:
    def items():
        yield from range(5)
        raise ValueError("the sixth")

    found = ahead(items())
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the sixth"):
        next(found)


def test_what_is_made_ahead_ends_with_who_uses_it() -> None:
    made: list[int] = []

    def items():
        try:
            for item in range(10**9):
                made.append(item)
                yield item
        finally:
            made.append(-1)

    source = items()
    found = ahead(source)
    assert next(found) == 0
    found.close()
    count = len(made)
    time.sleep(0.3)
    assert len(made) == count <= 6


def test_a_table_of_several_files_is_one(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    frame = make_table(90, seed=2)
    (tmp_path / "parts").mkdir()
    for part, rows in enumerate((slice(0, 40), slice(40, 41), slice(41, 90))):
        pq.write_table(pa.Table.from_pandas(frame[rows]), tmp_path / "parts" / f"{part}.parquet")
    assert predict(run, tmp_path / "parts", tmp_path / "s.parquet") == 0
    found = pd.read_parquet(tmp_path / "s.parquet")
    np.testing.assert_allclose(found["p_yes"], load_bundle(run).predict(frame)["p_yes"], atol=1e-6)
    assert list(found["row"]) == list(range(90))


def test_what_is_damaged_or_encoded_is_read_as_in_training(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    run = tiny_run()
    frame = make_table(60, seed=4)
    whole = pa.Table.from_pandas(frame, preserve_index=False)
    colour = whole.column("colour").combine_chunks()
    encoded = whole.set_column(whole.column_names.index("colour"), "colour", colour.dictionary_encode())
    with pa.OSFile(str(tmp_path / "encoded.arrow"), "wb") as sink, pa.ipc.new_file(sink, encoded.schema) as writer:
        writer.write_table(encoded)
    assert predict(run, tmp_path / "encoded.arrow", tmp_path / "s.parquet") == 0
    found = pd.read_parquet(tmp_path / "s.parquet")
    np.testing.assert_allclose(found["p_yes"], load_bundle(run).predict(frame)["p_yes"], atol=1e-6)
    # an index into the dictionary that leads beyond its end: Arrow takes it on trust
    far = pa.DictionaryArray.from_arrays(
        pa.array([99] * 60, pa.int32()), colour.dictionary_encode().dictionary, safe=False
    )
    damaged = whole.set_column(whole.column_names.index("colour"), "colour", far)
    with pa.OSFile(str(tmp_path / "damaged.arrow"), "wb") as sink, pa.ipc.new_file(sink, damaged.schema) as writer:
        writer.write_table(damaged)
    assert predict(run, tmp_path / "damaged.arrow", tmp_path / "t.parquet") == 2
    assert "column 'colour' is damaged" in capsys.readouterr().err
    (tmp_path / "quote.csv").write_text(
        'size,age,member,day,colour\n1,2,no,2024-01-01,red\n1,2,no,2024-01-01,"red\n1,2,x\n'
    )
    assert predict(run, tmp_path / "quote.csv", tmp_path / "t.parquet") == 2
    assert "a quote is opened and never closed" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("name", ["empty.parquet", "empty.csv", "empty.arrow"])
def test_a_table_without_rows_gives_a_summary(name: str, tiny_run: TinyRun, tmp_path: Path) -> None:
    WRITE["new" + Path(name).suffix](make_table(5).head(0).astype(object), tmp_path / name)
    assert predict(tiny_run(), tmp_path / name, tmp_path / "s.csv", f"--summary={tmp_path / 's.json'}") == 0
    assert json.loads((tmp_path / "s.json").read_text())["rows"] == 0


def test_parts_with_other_columns_and_a_file_of_no_rows_are_named(tiny_run: TinyRun, tmp_path: Path, capsys) -> None:
    run = tiny_run()
    (tmp_path / "parts").mkdir()
    make_table(30).to_parquet(tmp_path / "parts" / "a.parquet")
    make_table(30).drop(columns="y").to_parquet(tmp_path / "parts" / "b.parquet")
    assert predict(run, tmp_path / "parts", tmp_path / "s.parquet", "--piece-rows=20") == 2
    said = capsys.readouterr()
    assert "column 'target' is in some parts of the table and not in others" in said.err
    assert "Traceback" not in said.err and not (tmp_path / "s.parquet").exists()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    assert predict(run, tmp_path / "blank.jsonl", tmp_path / "s.parquet") == 2
    assert "the file holds no rows" in capsys.readouterr().err


def test_a_kept_column_never_takes_the_place_of_another(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    frame = make_table(20).assign(row=2**60 + 1, prediction="mine", target=None)
    frame.loc[3, "target"] = 7
    frame.to_parquet(tmp_path / "new.parquet")
    assert predict(run, tmp_path / "new.parquet", tmp_path / "s.jsonl", "--keep=row,prediction,target") == 0
    found = READ[".jsonl"](tmp_path / "s.jsonl")
    assert list(found["row"]) == list(range(20)) and set(found["id_row"]) == {2**60 + 1}
    assert set(found["id_prediction"]) == {"mine"} and set(found["prediction"]) <= {"yes", "no"}
    assert found["id_target"][3] == 7 and set(found["target"]) == {"yes", "no"}
