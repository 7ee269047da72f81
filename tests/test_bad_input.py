"""What a user sees of a table or a setting that cannot be trained on: one message, its place, the mend."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train.config import load_config
from nn_train.errors import ConfigError, UserError
from nn_train.preparation import prepare_data
from nn_train.train import main
from tests.conftest import SMALL, Start, make_table

NUM_ROWS = 100
NUMBERS = [str(round(float(value), 3)) for value in np.random.default_rng(0).normal(size=NUM_ROWS)]


def table_text(rows: int = NUM_ROWS, **columns: list[str]) -> str:
    """A CSV with a number `a`, a category `b` and a target `y`; `columns` replace or add some."""
    frame = {
        "a": NUMBERS[:rows],
        "b": [("red", "green", "blue")[row % 3] for row in range(rows)],
        "y": [("no", "yes")[row % 2] for row in range(rows)],
    }
    return pd.DataFrame(frame | columns).to_csv(index=False)


def with_value(values: list[str], row: int, value: str) -> list[str]:
    """A copy with one value changed."""
    return [*values[:row], value, *values[row + 1 :]]


def with_line(number: int, text: str) -> str:
    """The table with one line (from 1) replaced."""
    lines = table_text().splitlines()
    return "\n".join([*lines[: number - 1], text, *lines[number:]]) + "\n"


def damaged_parquet() -> bytes:
    """A Parquet file with its middle overwritten."""
    content = pd.DataFrame({"a": NUMBERS * 50, "y": ["no", "yes"] * 2500}).to_parquet(None)
    return content[:200] + b"\xff" * 200 + content[400:]


def write_table(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    """The content as a file."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refuse(folder: Path, path: Path, *words: str) -> str:
    """The message with which a run on the table is refused, after a look at what every message owes."""
    run_dir = folder / "run"
    config = load_config(None, [f"data.path={path}", "data.target=y", f"run.dir={run_dir}", *words])
    with pytest.raises(UserError) as caught:
        prepare_data(config)
    message = str(caught.value)
    assert "\n  mend: " in message and len(message) < 700
    assert not run_dir.exists()
    packed = folder / "cache" / "nn_train" / "packed"
    assert not [place for place in packed.glob("*") if place.suffix != ".lock"]
    return message


ONE_ODD = with_value(["no", "yes"] * 50, 40, "maybe")
CASES: dict[str, tuple[str, str | bytes, tuple[str, ...], str]] = {
    "empty file": ("table.csv", "", (), "the file is empty"),
    "header only": ("table.csv", "a,b,y\n", (), "the table has a header and no rows"),
    "too many fields": ("table.csv", with_line(18, "1,red,no,extra"), (), "line 18 has 4 fields, and the header 3"),
    "too few fields": ("table.csv", with_line(18, "1,red"), (), "line 18 has 2 fields, and the header 3: '1,red'"),
    "open quote": ("table.csv", with_line(18, '1,red,"no'), (), "line 18: a quote is opened and never closed"),
    "wrong delimiter": ("table.csv", table_text().replace(",", ";"), (), "mend: data.delimiter=';'"),
    "wrong delimiter given": ("table.csv", table_text(), ("data.delimiter=;",), "mend: data.delimiter=,"),
    "wrong bytes": ("table.csv", with_line(18, "1,caf\xe9,no").encode("latin-1"), (), "line 18 holds the byte 0xe9"),
    "utf-16": ("table.csv", table_text().encode("utf-16"), (), "mend: data.encoding=utf-16"),
    "zero bytes": ("table.csv", with_line(18, "1,re\0d,no"), (), "column 'b' holds a zero byte in line 18"),
    "two columns of one name": ("table.csv", "a,y,a\n1,2,3\n", (), "two columns are called 'a' (columns 1 and 3)"),
    "unknown encoding": ("table.csv", table_text(), ("data.encoding=utf-99",), "data.encoding=utf-99 is not a known"),
    "damaged gz": ("table.csv.gz", gzip.compress(table_text().encode())[:-50], (), "the file is damaged"),
    "damaged parquet": ("table.parquet", damaged_parquet(), (), "the file is damaged: Corrupt snappy"),
    "no parquet": ("table.parquet", table_text(), (), "this is not a whole Parquet file"),
    "unknown format": ("table.xlsx", b"PK\x03\x04", (), "the format of 'table.xlsx' is not known"),
    "no target": ("table.csv", table_text(), ("data.target=Y",), "there is no column 'Y'; the columns are a, b, y"),
    "no such column": ("table.csv", table_text(), ("data.drop=[colour]",), "there is no column 'colour'"),
    "constant target": ("table.csv", table_text(y=["no"] * NUM_ROWS), (), "the target 'y' is 'no' in every row"),
    "empty target": ("table.csv", table_text(y=[""] * NUM_ROWS), (), "the target 'y' has no value in any row"),
    "class with one row": ("table.csv", table_text(y=ONE_ODD), (), "'maybe' in one row only (line 42 of table.csv)"),
    "text among numbers": (
        "table.csv",
        table_text(a=with_value(NUMBERS, 40, "1.5x")),
        (),
        "column 'a' holds numbers, and the text '1.5x' in line 42 of table.csv",
    ),
    "text among the numbers of the target": (
        "table.csv",
        table_text(y=with_value(NUMBERS, 40, "1.5x")),
        (),
        "the target 'y' holds '1.5x' in line 42 of table.csv, which is no number",
    ),
    "infinite number": (
        "table.csv",
        table_text(a=with_value(NUMBERS, 40, "inf")),
        (),
        "column 'a' holds an infinite number in line 42 of table.csv\n  mend: correct it, or data.infinite=missing",
    ),
    "infinite target": (
        "table.csv",
        table_text(y=with_value(NUMBERS, 40, "-inf")),
        (),
        "the target 'y' holds '-inf' in line 42 of table.csv, which is infinite",
    ),
    "decimal comma": (
        "table.csv",
        table_text(a=[value.replace(".", ",") for value in NUMBERS]),
        (),
        f"column 'a' holds numbers with a decimal comma: '{NUMBERS[0].replace('.', ',')}' in line 2 of table.csv",
    ),
    "column without values": (
        "table.csv",
        table_text(c=[""] * NUM_ROWS),
        (),
        "column 'c' has no value in any row\n  mend: data.columns.c=drop",
    ),
    "no feature": (
        "table.csv",
        table_text(),
        ("data.drop=[a, b]",),
        "no feature is left (a: data.drop; b: data.drop)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_cannot_be_trained_on(tmp_path: Path, case: str) -> None:
    name, content, words, message = CASES[case]
    path = write_table(tmp_path, content, name)
    shown = refuse(tmp_path, path, *words)
    assert shown.startswith(f"{path}: ") and message in shown


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tabel.csv", "no such file; near it lies table.csv"),
        ("nowhere/table.csv", "no such file; there is no folder"),
        ("empty", "the folder holds no tables"),
        ("empty/*.csv", "no such file"),
    ],
)
def test_a_place_without_a_table(tmp_path: Path, place: str, message: str) -> None:
    write_table(tmp_path, table_text())
    (tmp_path / "empty").mkdir()
    write_table(tmp_path / "empty", "no table", "notes.md")
    assert refuse(tmp_path, tmp_path / place).startswith(f"{tmp_path / place}: {message}")


def test_shards_that_differ(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_table(folder, table_text(), "0.csv")
    second = write_table(folder, table_text().replace("a,b,y", "a,c,y"), "1.csv")
    assert f"{second}: column 'b' of the first shard is missing" in refuse(tmp_path, folder)


def test_a_mistake_in_the_second_shard_is_named_by_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_table(folder, table_text(), "0.csv")
    write_table(folder, table_text(a=with_value(NUMBERS, 40, "1.5x")), "1.csv")
    assert "the text '1.5x' in line 42 of 1.csv" in refuse(tmp_path, folder)


@pytest.mark.parametrize(
    ("columns", "words", "message"),
    [
        ({"y": with_value(ONE_ODD, 50, "maybe")}, (), "class 'maybe' has 2 rows"),
        ({}, ("data.max_rows=8",), "8 rows with a target are too few to split"),
        ({}, ("split.val=0.99", "split.test=0.005"), "leave none of the 100 rows to train on"),
        ({"g": ["u", "v"] * 50}, ("split.method=group", "split.column=g"), "holds 2 group(s); three are needed"),
        ({"t": [*map(str, range(99)), ""]}, ("split.method=time", "split.column=t"), "which is no time"),
        ({"s": ["train", "tset"] * 50}, ("split.method=column", "split.column=s"), "column 's' has 'tset' in row 2"),
        ({"s": ["train", "val"] * 50}, ("split.method=column", "split.column=s"), "leaves no rows for test"),
        ({}, ("split.method=group", "split.column=q"), "there is no column 'q'"),
    ],
)
def test_rows_that_cannot_be_split(
    tmp_path: Path, columns: dict[str, list[str]], words: tuple[str, ...], message: str
) -> None:
    path = write_table(tmp_path, table_text(**columns))
    assert message in refuse(tmp_path, path, *words)


def test_rows_that_cannot_be_split_are_named_with_their_table(tmp_path: Path) -> None:
    path = write_table(tmp_path, table_text())
    assert refuse(tmp_path, path, "data.max_rows=8").startswith(f"{path}: ")


def test_a_test_table_without_a_column(tmp_path: Path) -> None:
    path = write_table(tmp_path, table_text())
    other = write_table(tmp_path, table_text().replace("a,b,y", "a,c,y"), "other.csv")
    words = ("split.method=files", f"split.val_path={path}", f"split.test_path={other}")
    assert f"{other}: column 'b' of the train table is missing" in refuse(tmp_path, path, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.pth=t.csv"], "unknown key 'data.pth'; did you mean 'data.path'?"),
        (["train.max_epochs=many"], "train.max_epochs='many'"),
        (["train.global_batch_size=0"], "train.global_batch_size=0"),
        (["train.global_batch_size=8", "train.micro_batch_size=16"], "micro_batch_size=16 is more than"),
        (["data.delimiter=ab"], "data.delimiter='ab'"),
        (["data.drop=[y]"], "data.drop holds the target 'y'"),
    ],
)
def test_a_setting_that_cannot_be(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert main(["data.path=t.csv", "data.target=y", f"run.dir={run_dir}", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and "\n  mend: " in shown.err
    assert "Traceback" not in shown.err and shown.out == "" and not run_dir.exists()
    with pytest.raises(ConfigError):
        load_config(None, ["data.path=t.csv", "data.target=y", *words])


# --- the real script --------------------------------------------------------------------------------------------------

STARTED: dict[str, tuple[Callable[[], str], tuple[str, ...], str]] = {
    "before the table": (table_text, ("data.path=nowhere.csv",), "nowhere.csv: no such file"),
    "in the table": (lambda: with_line(18, "1,red"), (), "line 18 has 2 fields, and the header 3: '1,red'"),
    "in a column": (
        lambda: table_text(a=with_value(NUMBERS, 40, "1.5x")),
        (),
        "column 'a' holds numbers, and the text '1.5x' in line 42 of table.csv",
    ),
}


@pytest.mark.parametrize("case", STARTED)
def test_one_process_shows_one_message_and_leaves_nothing(tmp_path: Path, start: Start, case: str) -> None:
    make, words, message = STARTED[case]
    path = write_table(tmp_path, make())
    run_dir = tmp_path / "run"
    done = start(f"data.path={path}", "data.target=y", f"run.dir={run_dir}", *SMALL, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and "\n  mend: " in done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert not run_dir.exists() and not (tmp_path / "runs").exists()


def late_failure() -> str:
    """A table of which the split leaves a class out of train."""
    splits = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    return table_text(s=splits, y=[*["no", "yes"] * 45, *["maybe"] * 10])


@pytest.mark.parametrize(
    ("make", "words", "message"),
    [
        (lambda: with_line(18, "1,red"), (), "line 18 has 2 fields, and the header 3: '1,red'"),
        (late_failure, ("split.method=column", "split.column=s"), "class 'maybe' occurs in the test rows"),
        (
            lambda: make_table(100).to_csv(index=False),
            ("train.global_batch_size=1",),
            "train.global_batch_size=1 cannot feed 2 processes",
        ),
    ],
)
def test_two_processes_show_one_message_and_leave_nothing(
    tmp_path: Path, start: Start, make: Callable[[], str], words: tuple[str, ...], message: str
) -> None:
    path = write_table(tmp_path, make())
    run_dir = tmp_path / "run"
    words = (f"data.path={path}", "data.target=y", f"run.dir={run_dir}", *SMALL, *words)
    done = start(*words, processes=2, timeout=60)
    assert done.returncode == 1  # that of torch's agent, whatever the processes say
    assert done.stderr.count("error: ") == 1 and done.stderr.count(message) == 1 and "\n  mend: " in done.stderr
    own_lines = [line for line in done.stderr.splitlines() if line.lstrip().startswith("File ") and "nn_train" in line]
    assert not own_lines
    assert not run_dir.exists() and not (tmp_path / "runs").exists()
