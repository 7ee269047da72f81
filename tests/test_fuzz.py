"""Tables with wild values and damaged bytes: rows to train on, or one error that names the file and the mend."""

import bz2
import csv
import decimal
import gzip
import io
import json
import lzma
import math
import shlex
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nn_train import Engine
from nn_train.config import load_config
from nn_train.errors import ConfigError, UserError
from nn_train.packed import DONE_FILE
from nn_train.preparation import PreparedData, prepare_data
from nn_train.run_folder import holds_run
from nn_train.schema import SPLITS
from nn_train.settings import Config, DataConfig
from nn_train.splits import load_splits
from nn_train.table_files import cache_dir, find_files
from nn_train.values import column_word, shell_word
from tests.conftest import SMALL, Start

PATIENT = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.filter_too_much,
    HealthCheck.large_base_example,
]
LIGHT = settings(max_examples=40, deadline=None, database=None, suppress_health_check=PATIENT)
LONG = settings(LIGHT, max_examples=2500)
MOST_SECONDS = 20


class Case(NamedTuple):
    """A table's file, and the words with which it is prepared."""

    name: str
    content: bytes
    words: list[str]


# --- tables -----------------------------------------------------------------------------------------------------------

RECIPES: dict[str, Callable[[int], str]] = {
    "number": lambda row: f"{math.sin(row):.3f}",
    "count": lambda row: str(row * 7 % 23),
    "word": lambda row: ("red", "green", "blue")[row % 3],
    "flag": lambda row: ("no", "yes")[row * row % 7 % 2],
    "day": lambda row: f"2024-{row % 12 + 1:02}-{row % 28 + 1:02}",
    "day first": lambda row: f"{row % 28 + 1:02}/{row % 12 + 1:02}/2023",
    "stamp": lambda row: f"2024-{row % 12 + 1:02}-{row % 28 + 1:02}T12:{row % 60:02}:00+02:00",
    "code": lambda row: f"{row * 37 % 100:05}",
    "id": lambda row: f"id-{row}",
    "text": lambda row: f"a sentence with more than four words, number {row}",
    "gap": lambda row: "" if row % 4 else f"{row / 3:.2f}",
    "money": lambda row: f"${row},{row:03}.50",
    "clock": lambda row: f"{row % 24}:{row % 60:02}",
    "quoted": lambda row: f'say "hi {row % 3}",\nthen go',
    "letters": lambda row: ("水", "é", "🦆")[row % 3],
    "constant": lambda row: "same",
    "split": lambda row: ("train", "train", "train", "val", "test")[row % 5],
}
TARGETS: list[Callable[[int], str]] = [
    lambda row: ("no", "yes")[row * row % 7 % 2],
    lambda row: "abc"[row % 3],
    lambda row: f"{math.cos(row):.3f}",
    lambda row: str(row * row % 31),
]
WILD_CELLS = [
    "", " ", "NA", "null", "None", "nan", "inf", "-Infinity", "1e400", "-1e400", "1e-400", "5e-324", "1e308",
    "9" * 400, "0." + "0" * 400 + "1", "1" * 30, "9007199254740993", "1_000", "0x1f", "١٢", "1,234.5", "1.234,5",
    "12%", "$-5", "-0", "1.", ".5", "+5", "--5", "1E+05", "0", "1", "true", "TRUE", "Yes", "train", "tset",
    "99999999999 days 00:00:00", "24:00", "25:61", "1:2:3:4", "3 days, 4:05", "January 2024", "2024", "20240101",
    "9999-12-31", "0001-01-01", "0000-00-00", "2024-02-30", "1677-01-01", "2262-04-12", "12/31/99", "31/12/9999",
    "2024-01-01T00:00:00+99:99", "2024-01-01 12:30:61", "2024-01-01T10:00[Europe/Berlin]", "99999999", "now",
    "today", "\u2028", "\x85", "\ufeff", "\x00", "\x1a", "\x1b[2J", "\x7f", "a\tb", "a;b", '"', '""', "\\", "\r",
    "\n", "\r\n", "=1+1", "{value}", "{0}", "%s", "[bold]x", "x" * 5000, "é" * 3000, "word " * 3000, "e\u0301",
    "\U0010ffff", "İ", "ß",
]  # fmt: skip
cells = st.one_of(
    st.sampled_from(WILD_CELLS),
    st.text(max_size=4),
    st.floats().map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.datetimes().map(str),
    st.times().map(str),
    st.from_regex(r"[0-9./: T-]{1,12}", fullmatch=True),
)
WORDS = [
    ["data.infinite=missing"], ["data.missing_values=['', 'no', '?']"], ["data.missing_values=[]"],
    ["data.task=multiclass"], ["data.task=regression"], ["data.max_rows=25"], ["data.positive=no"], ["data.id=c0"],
    ["data.id=c1"], ["data.weight=c0"], ["data.weight=c1"], ["train.class_weights=balanced"],
    ["data.columns.c0=keep"],
    *(
        [f"data.columns.{name}={kind}"]
        for name in ("c0", "c1")
        for kind in ("numeric", "date", "boolean", "categorical")
    ),
    *(
        [f"split.method={method}", f"split.column={name}"]
        for name in ("c0", "c1")
        for method in ("time", "group", "column")
    ),
    ["split.val=0.4"], ["split.test=0.01"],
    *([f"preprocess.scaler={scaler}"] for scaler in ("standard", "robust", "robust-clip", "none")),
    ["preprocess.imputation=median"], ["preprocess.min_level_rows=1"], ["preprocess.max_levels=2"],
    ["preprocess.near_constant=0"],
]  # fmt: skip
READERS = [
    "data.encoding=latin-1", "data.encoding=utf-16", "data.encoding=utf-32", "data.encoding=shift_jis",
    "data.encoding=utf-7", "data.encoding=ascii", "data.encoding=punycode", "data.encoding=utf-8-sig",
    "data.encoding=iso2022_jp", "data.delimiter=;", "data.delimiter=|", "data.delimiter='\"'", "data.delimiter=é",
    'data.delimiter="\\n"', "data.delimiter=a", "data.format=tsv", "data.format=json", "data.format=parquet",
    "data.format=arrow",
]  # fmt: skip
places = st.integers(0, 2**16)
options = st.lists(st.sampled_from(WORDS), max_size=4).map(lambda chosen: [word for words in chosen for word in words])


def text_of(columns: list[list[str]], **dialect: Any) -> str:
    """Columns c0, c1, ... and the target y as CSV."""
    stream = io.StringIO()
    chosen: Any = {"lineterminator": "\n"} | dialect
    writer = csv.writer(stream, **chosen)
    writer.writerow([*(f"c{index}" for index in range(len(columns) - 1)), "y"])
    writer.writerows(zip(*columns, strict=True))
    return stream.getvalue()


@st.composite
def columns_of(draw: st.DrawFn) -> list[list[str]]:
    """Columns of all kinds as text, the target last."""
    num_rows = draw(st.integers(12, 45))
    chosen = draw(st.lists(st.sampled_from(list(RECIPES.values())), min_size=2, max_size=5))
    return [[recipe(row) for row in range(num_rows)] for recipe in (*chosen, draw(st.sampled_from(TARGETS)))]


@st.composite
def wild_cells(draw: st.DrawFn) -> Case:
    """Well-formed tables, with columns of anything and with anything among their values."""
    columns = draw(columns_of())
    num_rows = len(columns[0])
    for _ in range(draw(st.integers(0, 2))):
        pool = draw(st.lists(cells, min_size=1, max_size=5))
        columns[draw(places) % len(columns)] = [pool[row * row % 11 % len(pool)] for row in range(num_rows)]
    most = draw(st.sampled_from([0, 0, 1, 2, 6]))
    for column, row, value in draw(st.lists(st.tuples(places, places, cells), max_size=most)):
        columns[column % len(columns)][row % num_rows] = value
    return Case("t.csv", text_of(columns).encode("utf-8", "replace"), draw(options))


@st.composite
def wild_targets(draw: st.DrawFn) -> Case:
    """Numbers to predict from the ends of float64."""
    edges = [0.0, 5e-324, 1e-310, 1e-200, 1e-160, 1e39, 1e99, -1e99, 1e100, 1e300, 1.7e308, math.inf, math.nan]
    pool = draw(st.lists(st.one_of(st.floats(), st.sampled_from(edges)), min_size=1, max_size=4))
    bases: list[Callable[[int], float]] = [
        math.cos,
        lambda row: 0.0,
        lambda row: 7.0 + row % 2,
        lambda row: pool[0] * row,
    ]
    base = draw(st.sampled_from(bases))
    target = [repr(base(row)) for row in range(draw(st.integers(20, 40)))]
    for place in draw(st.lists(places, max_size=len(target))):
        target[place % len(target)] = repr(pool[place * 7 % len(pool)])
    features = [[RECIPES[name](row) for row in range(len(target))] for name in ("number", "count")]
    return Case("t.csv", text_of([*features, target]).encode(), [*draw(options), "data.task=regression"])


# --- damage -----------------------------------------------------------------------------------------------------------

TOKENS = [
    b"\0", b'"', b'""', b"'", b",", b",,", b";", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\\", b"#", b"sep=;\n",
    b"\x0b", b"\x1a", b"\x1b", b"\x1c", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff", b"\x80", b"\xc3",
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"1e999", b"-inf", b"9" * 500, b"x" * 70_000,
    b"," * 300, b"\n" * 50, b"PAR1", b"ARROW1",
]  # fmt: skip
edits = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("set"), places, st.integers(0, 255)),
    st.tuples(st.just("insert"), places, st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=6))),
    st.tuples(st.just("delete"), places, st.integers(1, 40)),
    st.tuples(st.just("truncate"), places, st.just(0)),
    st.tuples(st.just("double"), places, st.integers(1, 200)),
    st.tuples(st.just("swap lines"), places, places),
)


def damage(content: bytes, wanted: list[tuple[str, int, Any]]) -> bytes:
    """`content` after the edits; a place counts modulo the length."""
    for what, place, how in wanted:
        at = place % (len(content) + 1)
        if what == "insert":
            content = content[:at] + how + content[at:]
        elif what == "delete":
            content = content[:at] + content[at + how :]
        elif what == "truncate":
            content = content[:at]
        elif what == "double":
            content = content[: at + how] + content[at:]
        elif what == "swap lines":
            lines = content.split(b"\n")
            first, second = place % len(lines), how % len(lines)
            lines[first], lines[second] = lines[second], lines[first]
            content = b"\n".join(lines)
        elif at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << how if what == "flip" else how]) + content[at + 1 :]
    return content


def zipped(content: bytes) -> bytes:
    """An archive with the one file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", content)
    return stream.getvalue()


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zip": zipped,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@st.composite
def damaged_text(draw: st.DrawFn) -> Case:
    """CSV and TSV with changed bytes, in other encodings, with other delimiters and line ends than are expected."""
    dialect = {
        "delimiter": draw(st.sampled_from(",,,\t;|")),
        "lineterminator": draw(st.sampled_from(["\n", "\r\n", "\r"])),
    }
    text = text_of(draw(columns_of()), **dialect, quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
    encodings = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "shift_jis", "utf-7"]
    content = damage(text.encode(draw(st.sampled_from(encodings)), "replace"), draw(st.lists(edits, max_size=3)))
    name = draw(st.sampled_from(["t.tsv" if dialect["delimiter"] == "\t" else "t.csv", "t.txt"]))
    words = draw(st.one_of(st.just([]), options, st.lists(st.sampled_from(READERS), max_size=2)))
    return Case(name, content, words)


def whole_table(num_rows: int = 40) -> pa.Table:
    """A small table with the types of most tables."""
    rows = range(num_rows)
    return pa.table(
        {
            "c0": [math.sin(row) for row in rows],
            "c1": [RECIPES["word"](row) for row in rows],
            "c2": pa.array([row % 3 for row in rows]).dictionary_encode(),
            "c3": pa.array(rows, pa.timestamp("s")),
            "y": [TARGETS[0](row) for row in rows],
        }
    )


def file_of(table: pa.Table, kind: str) -> bytes:
    """The table as the content of a file of its kind."""
    stream = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, stream)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(stream, table.schema) as writer:
            writer.write_table(table)
    return stream.getvalue()


@st.composite
def damaged_container(draw: st.DrawFn) -> Case:
    """Compressed, Parquet and Arrow files with changed bytes."""
    ending = draw(st.sampled_from([*COMPRESSORS, "parquet", "arrow", "stream"]))
    if ending in COMPRESSORS:
        content = COMPRESSORS[ending](text_of(draw(columns_of())).encode())
    else:
        content = file_of(whole_table(), ending)
    name = f"t.csv{ending}" if ending in COMPRESSORS else f"t.{ending.replace('stream', 'arrow')}"
    return Case(name, damage(content, draw(st.lists(edits, min_size=1, max_size=3))), draw(options))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), cells),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=3,
)


@st.composite
def wild_json(draw: st.DrawFn) -> Case:
    """JSON lines with any values, and with changed bytes."""
    pools = [draw(st.one_of(st.just([0.5, 1, 2]), st.lists(json_values, min_size=1, max_size=3))) for _ in range(2)]
    rows = [
        {"c0": pools[0][row % len(pools[0])], "c1": pools[1][row * row % 7 % len(pools[1])], "y": TARGETS[0](row)}
        for row in range(draw(st.integers(12, 40)))
    ]
    is_ascii = draw(st.booleans())
    content = "\n".join(json.dumps(row, ensure_ascii=is_ascii) for row in rows).encode("utf-8", "surrogatepass")
    return Case("t.jsonl", damage(content, draw(st.lists(edits, max_size=2))), draw(options))


# --- types of Arrow ---------------------------------------------------------------------------------------------------

small = st.integers(0, 5)
ticks = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-(10**18), 10**18), st.integers(0, 2 * 10**9))
days = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 20_000))
letters = st.one_of(st.sampled_from(["a", "b"]), cells.filter(lambda text: text.isprintable()))


def decimals(digits: int, scale: int) -> st.SearchStrategy[decimal.Decimal]:
    """Decimal numbers of so many digits, so many of them behind the point."""
    most = 10 ** (digits - 1)
    return st.integers(-most, most).map(lambda whole: decimal.Decimal(whole).scaleb(-scale, decimal.Context(prec=80)))


TYPES: list[tuple[pa.DataType, st.SearchStrategy]] = [
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.one_of(small, st.integers(-128, 127))),
    (pa.int64(), st.one_of(small, st.integers(-(2**63), 2**63 - 1))),
    (pa.uint64(), st.one_of(small, st.integers(0, 2**64 - 1))),
    (pa.float16(), st.floats(width=16).map(np.float16)),
    (pa.float32(), st.one_of(st.sampled_from([0.5, math.nan]), st.floats(width=32))),
    (pa.float64(), st.one_of(small.map(float), st.floats())),
    *((kind, letters) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *((kind, st.binary(max_size=4)) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.date32(), days),
    (pa.date64(), days.map(lambda day: day * 86_400_000)),
    *((pa.timestamp(unit), ticks) for unit in ("s", "ms", "us", "ns")),
    (pa.timestamp("us", "Europe/Berlin"), ticks),
    (pa.timestamp("ns", "+05:30"), ticks),
    (pa.time32("s"), st.integers(0, 86_399)),
    (pa.time64("ns"), st.integers(0, 86_399 * 10**9)),
    (pa.duration("s"), ticks),
    (pa.duration("ns"), ticks),
    (pa.decimal128(10, 2), decimals(10, 2)),
    (pa.decimal128(38, 0), decimals(38, 0)),
    (pa.decimal256(60, 3), decimals(60, 3)),
    (pa.decimal32(5, 1), decimals(5, 1)),
    (pa.null(), st.none()),
    (pa.list_(pa.int64()), st.lists(small, max_size=3)),
    (pa.list_(pa.string(), 2), st.lists(letters, min_size=2, max_size=2)),
    (pa.list_view(pa.int8()), st.lists(small, max_size=3)),
    (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": small})),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(letters, small), max_size=2)),
    (pa.dictionary(pa.int32(), pa.string()), letters),
    (pa.dictionary(pa.int32(), pa.int64()), small),
    (pa.month_day_nano_interval(), st.tuples(small, small, small).map(pa.MonthDayNano)),
]


def array_of(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values in a type, as its ticks where it has some: Python has no word for many of them."""
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    return pa.array(values, kind)


@st.composite
def any_types(draw: st.DrawFn) -> Case:
    """Parquet and Arrow files with columns of any type."""
    num_rows = draw(st.integers(20, 50))
    columns: dict[str, pa.Array] = {}
    for name in [*(f"c{index}" for index in range(draw(st.integers(1, 4)))), "y"]:
        kind, values = draw(st.sampled_from(TYPES))
        if name == "y" and draw(st.booleans()):
            kind, values = pa.string(), st.sampled_from(["no", "yes"])
        pool = draw(st.lists(values, min_size=2, max_size=draw(st.sampled_from([2, 6, 50])))) + [None] * draw(small)
        columns[name] = array_of([pool[row * 7 % 61 % len(pool)] for row in range(num_rows)], kind)
    kind = draw(st.sampled_from(["arrow", "stream", "parquet"]))
    try:
        content = file_of(pa.table(columns), kind)
    except (pa.ArrowException, OSError):  # a type that Parquet does not have
        kind, content = "arrow", file_of(pa.table(columns), "arrow")
    return Case(f"t.{kind.replace('stream', 'arrow')}", content, draw(options))


# --- the outcome ------------------------------------------------------------------------------------------------------


class Hanging(BaseException):
    """Nothing that is waited for may take this long; no `except` of the program is to swallow it."""


@contextmanager
def bounded(seconds: float = MOST_SECONDS) -> Iterator[None]:
    """Fail what does not come to its end."""

    def stop(*_: object) -> None:
        raise Hanging(f"no end after {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@contextmanager
def config_of(case: Case, *words: str) -> Iterator[Config | None]:
    """The config of a run on the case's table in a folder of its own; None where the words contradict each other."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / case.name).write_bytes(case.content)
        own = [f"data.path={folder / case.name}", "data.target=y", f"run.dir={folder / 'run'}"]
        try:
            yield load_config(None, [*own, f"data.cache_dir={folder / 'cache'}", *words, *case.words])
        except ConfigError:
            yield None


def check_error(error: UserError, config: Config) -> None:
    """One message on two lines that a terminal can show, with its place and the mend."""
    message = str(error)
    what, mend = message.split("\n")  # and not a third line
    assert what.startswith(f"{config.data.path}: ") or isinstance(
        error, ConfigError
    )  # settings that do not fit the task
    assert mend.startswith("  mend: ")
    assert what.isprintable() and mend.isprintable() and len(message) < 1000


def check_left(config: Config, *, prepared: bool | None) -> None:
    """No half of a folder is left, in the cache or as a run; whether rows are packed is unknown where `prepared` is."""
    packed = Path(str(config.data.cache_dir)) / "packed"
    folders = [place for place in packed.glob("*") if place.suffix != ".lock"]
    assert not list(packed.glob(".*")) and prepared in (None, bool(folders)) and len(folders) <= 1
    assert all((place / DONE_FILE).exists() for place in folders)
    holds_run(config.run_dir)  # raises where the folder is neither a run nor the known rest of a start


def check_data(data: PreparedData, config: Config) -> None:
    """What was prepared can be trained on, and is found again."""
    splits = load_splits(data.folder / "splits.npz")
    positions = np.concatenate([getattr(splits, split) for split in SPLITS])
    assert len(np.unique(positions)) == len(positions) == data.schema.num_rows
    for split in SPLITS:
        rows = data.rows(split, device=torch.device("cpu"))
        assert len(rows) == data.info["rows"][split] > 0
        assert torch.isfinite(rows.x_num).all() and torch.isfinite(rows.y.double()).all()
        assert rows.x_num.shape[1] + rows.x_cat.shape[1] > 0
        assert data.truth(split).to_parquet(None)  # as it will lie beside the predictions
    assert prepare_data(config).was_cached


def prepare_in_bounds(case: Case) -> None:
    """Prepare the case's table: rows, or one error, and nothing that is half done."""
    with config_of(case) as config:
        if config is None:
            return
        try:
            with bounded():
                data = prepare_data(config)
        except UserError as error:
            check_error(error, config)
            check_left(config, prepared=False)
            assert not config.run_dir.exists()
            return
        check_left(config, prepared=True)
        check_data(data, config)


def run_in_bounds(case: Case) -> None:
    """Two steps of a real run on the case's table."""
    with config_of(case, *SMALL, "train.max_steps=2") as config:
        if config is None:
            return
        engine = Engine(config)
        try:
            with bounded():
                engine.prepare()
            with bounded():
                engine.train()
                engine.evaluate()
        except UserError as error:
            if not config.run_dir.exists():
                check_error(error, config)
            check_left(config, prepared=None)
            return
        finally:
            engine.close()
        check_left(config, prepared=True)
        assert (config.run_dir / "config.yaml").exists() and (config.run_dir / "metrics.json").exists()


CASES: dict[str, Callable[[], st.SearchStrategy[Case]]] = {
    "wild cells": wild_cells,
    "wild targets": wild_targets,
    "damaged text": damaged_text,
    "damaged containers": damaged_container,
    "wild json": wild_json,
    "any types": any_types,
}


@pytest.mark.parametrize("kind", CASES)
@LIGHT
@given(data=st.data())
def test_any_table_gives_rows_or_one_error(kind: str, data: st.DataObject) -> None:
    prepare_in_bounds(data.draw(CASES[kind]()))


@settings(LIGHT, max_examples=20)
@given(case=st.one_of(wild_cells(), wild_targets(), any_types()))
def test_any_table_is_trained_on_or_gives_one_error(case: Case) -> None:
    run_in_bounds(case)


# --- what was found ---------------------------------------------------------------------------------------------------

ROWS = range(40)
PLAIN = [[RECIPES[name](row) for row in ROWS] for name in ("number", "word")]
CLASSES = [TARGETS[0](row) for row in ROWS]
NUMBERS = [TARGETS[2](row) for row in ROWS]
NINES = "9" * 400


def changed(values: list[str], value: str, row: int = 7) -> list[str]:
    """A copy with another value in one row."""
    return [*values[:row], value, *values[row + 1 :]]


def csv_case(*columns: list[str], words: tuple[str, ...] = ()) -> Case:
    """A CSV of these columns, the target last."""
    return Case("t.csv", text_of(list(columns)).encode(), list(words))


def arrow_case(name: str, array: pa.Array, *words: str) -> Case:
    """An Arrow file with a column in another type."""
    return Case("t.arrow", file_of(whole_table(len(array)).set_column(0, name, array), "arrow"), list(words))


def json_case(line: str) -> Case:
    """JSON lines with one that is repeated."""
    lines = [line % TARGETS[0](row) for row in ROWS]
    return Case("t.jsonl", "\n".join(lines).encode("utf-8", "surrogateescape"), [])


FAR_DAYS = pa.array([0, 1, 2**31 - 1, -(2**31)] * 10, pa.int32()).cast(pa.date32())
REFUSED: dict[str, tuple[Case, str]] = {
    "an encoding that says no place": (csv_case(*PLAIN, CLASSES, words=("data.encoding=punycode",)), "not punycode"),
    "utf-16 without its mark": (csv_case(*PLAIN, CLASSES, words=("data.encoding=utf-16",)), "not utf-16"),
    "a name of 3000 letters": (Case("t.csv", b"x" * 3000 + b",y\n" + b",1\n,2\n" * 9, []), "column 'xxx"),
    "a list of such names": (
        Case("t.csv", b"z" * 3000 + b"," + b"x" * 3000 + b"\n1,2\n", []),
        "there is no column 'y'",
    ),
    "a class of 5000 letters": (csv_case(*PLAIN, changed(CLASSES, "x" * 5000)), "the class 'xxx"),
    "signs that a terminal obeys": (
        csv_case(PLAIN[0], PLAIN[1], changed(CLASSES, "\x1b[2J")),
        "class '\\x1b[2J' in one",
    ),
    "a number of 400 digits": (csv_case(*PLAIN, changed(NUMBERS, NINES)), "which is infinite"),
    "a target that is too large": (csv_case(*PLAIN, changed(NUMBERS, "1e300")), "which is too large to learn"),
    "rows without levels": (
        csv_case([RECIPES["code"](row) for row in ROWS], CLASSES, words=("data.columns.c0=categorical",)),
        "no feature is left after preprocessing (c0: no level has 5 train rows)",
    ),
    "a value that is no UTF-8": (
        json_case('{"a": "caf\udce9", "y": "%s"}'),
        "column 'a' is damaged: In chunk 0: Invalid: Invalid UTF8",
    ),
    "a name that is no UTF-8": (json_case('{"caf\udce9": 1, "y": "%s"}'), "the name of column 1 is damaged"),
    "a class that is no UTF-8": (json_case('{"a": 1, "y": "%s\udce9"}'), "column 'y' is damaged"),
    "a name with a zero byte": (
        arrow_case("c\0", pa.array(ROWS)),
        "the name of column 1 is damaged: it holds a zero byte",
    ),
    "a quoted name with a zero byte": (Case("t.csv", b'a,"b\n\0c",y\n1,2,3\n', []), "it holds zero bytes"),
    "a delimiter that ends the line": (
        Case("t.csv", b'"a","y"\n"1","2"\n', ['data.delimiter="\\n"']),
        "the line of column names: '\\n' expected after",
    ),
    "an archive of an unknown compression": (
        Case("t.csv.zip", zipped(b"a,y\n1,2\n").replace(b"\x08\0", b"\x63\0", 9), []),
        "the file is damaged: That compression method is not supported",
    ),
    "groups that are lists": (
        arrow_case("c0", pa.array([[1], [2]] * 20), "split.method=group", "split.column=c0"),
        "split.column='c0' holds list<item: int64>, which tells no split",
    ),
    "times that are lists and ids": (
        arrow_case("c0", pa.array([[1], [2]] * 20), "split.method=time", "split.column=c0", "data.id=c0"),
        "split.column='c0' holds list<item: int64>, which tells no split",
    ),
    "weights that are dates far from any calendar": (
        arrow_case("c0", FAR_DAYS[3:], "data.weight=c0"),
        "the weight '-214",
    ),
    "times that no timestamp holds": (
        arrow_case("c0", FAR_DAYS, "split.method=time", "split.column=c0"),
        "column 'c0' has nothing in row 3, which is no time",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_fuzzing_found_is_refused_with_one_message(case: str) -> None:
    table, message = REFUSED[case]
    prepare_in_bounds(table)
    with config_of(table) as config:
        assert config is not None
        with pytest.raises(UserError) as caught:
            prepare_data(config)
    assert message in str(caught.value)


TAKEN: dict[str, Case] = {
    "an archive with a file without a name": Case(
        "t.csv.zip", zipped(text_of([*PLAIN, CLASSES]).encode()).replace(b"t.csv", b"\0.csv"), []
    ),
    "dates far from any calendar": arrow_case("c0", FAR_DAYS),
    "groups that are such dates": arrow_case(
        "c0", pa.concat_arrays([FAR_DAYS[:39], FAR_DAYS[:1]]), "split.method=group", "split.column=c0"
    ),
    "ids that are times in nanoseconds": arrow_case("c0", pa.array(ROWS, pa.time64("ns")), "data.id=c0"),
    "ids that are such dates": arrow_case("c0", FAR_DAYS, "data.id=c0"),
    "ids that are empty structs": arrow_case("c0", pa.array([{}] * 40, pa.struct([])), "data.id=c0"),
    "views of text": arrow_case("c0", pa.array(["a", "b"] * 20, pa.string_view())),
    "views of bytes": arrow_case("c0", pa.array([b"a", b"b"] * 20, pa.binary_view())),
    "views of lists": arrow_case("c0", pa.array([[1], [2]] * 20, pa.list_view(pa.int64()))),
    "a target of denormal numbers": csv_case(
        *PLAIN, ["5e-324" if row % 2 else "0" for row in ROWS], words=("data.task=regression",)
    ),
    "a target that is one huge number but for a row": csv_case(
        *PLAIN, changed(["1e99"] * 40, "9e98"), words=("data.task=regression",)
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_fuzzing_found_is_trained_on(case: str) -> None:
    run_in_bounds(TAKEN[case])
    with config_of(TAKEN[case]) as config:
        assert config is not None
        prepare_data(config)


@pytest.mark.parametrize("place", [0, 39])
def test_a_target_that_is_far_from_the_train_rows_is_named(place: int) -> None:
    splits = ["val" if row in (0, 1) else "test" if row in (38, 39) else "train" for row in ROWS]
    words = ("split.method=column", "split.column=c1")
    case = csv_case(PLAIN[0], splits, changed(NUMBERS, "1e30", place), words=words)
    with config_of(case) as config:
        assert config is not None
        with pytest.raises(
            UserError, match=rf"holds 1e\+30 in line {place + 2} of t.csv, which is more than 1e\+15 dev"
        ):
            prepare_data(config)


def test_a_line_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn_train.table_text.BLOCK_BYTES", 1 << 20)
    long = "x" * 3_000_000
    header = text_of([*PLAIN, CLASSES]).replace("c1", long)
    for text, message in (
        (text_of([PLAIN[0], changed(PLAIN[1], long), CLASSES]), "line 9 is longer"),
        (header, "line 1 is longer"),
    ):
        with config_of(Case("t.csv", text.encode(), [])) as config:
            assert config is not None
            with pytest.raises(UserError, match=f"{message} than 1 MiB"):
                prepare_data(config)


@pytest.mark.parametrize("path", ["x" * 300 + ".csv", "~nobody/t.csv", "a\0b.csv", "**/" * 50 + "t.csv"])
def test_a_path_that_cannot_be_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    config = DataConfig(path=path, target="y", cache_dir="~nobody/cache")
    with pytest.raises(UserError, match="no such file"):
        find_files(config.path)
    assert cache_dir(config).is_absolute()


odd_names = st.one_of(
    st.text(min_size=1, max_size=12), st.sampled_from(["a.b", "a=b", "a b", "'", '"', "no", "1e5", "é\x85", "\x7f=🦆"])
)


@settings(LIGHT, max_examples=100)
@given(name=odd_names.filter(lambda name: name not in ("null", "~")))  # which a word cannot name
def test_a_mend_names_any_column_so_that_the_command_line_takes_it(name: str) -> None:
    (word,) = shlex.split(column_word(name, "drop"))
    assert load_config(words=[word]).data.columns == {name: "drop"}
    (word,) = shlex.split(shell_word("data.target", name))
    assert load_config(words=[word]).data.target == name


# --- the real script --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        (csv_case(changed(PLAIN[0], "-1e308"), changed(PLAIN[1], "[bold]é\x1b[2J水"), CLASSES), {0}),
        (Case("t.csv.gz", damage(gzip.compress(text_of([*PLAIN, CLASSES]).encode()), [("set", 99, 0)]), []), {2}),
    ],
)
def test_the_script_ends_with_done_or_with_one_error(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, case: Case, codes: set[int]
) -> None:
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):  # a terminal of ASCII
        monkeypatch.setenv(name, value)
    (tmp_path / case.name).write_bytes(case.content)
    words = (f"data.path={tmp_path / case.name}", "data.target=y", f"run.dir={tmp_path / 'run'}", "train.max_steps=2")
    done = start(*SMALL, *words, *case.words, timeout=120)
    assert done.returncode in codes, done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.stderr.startswith("error: ") and "\n  mend: " in done.stderr and not (tmp_path / "run").exists()
        assert all(line.isprintable() for line in done.stderr.splitlines())


# --- the long form ----------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("kind", CASES)
@LONG
@given(data=st.data())
def test_any_table_gives_rows_or_one_error_the_long_form(kind: str, data: st.DataObject) -> None:
    prepare_in_bounds(data.draw(CASES[kind]()))


@pytest.mark.campaign
@settings(LONG, max_examples=500)
@given(case=st.one_of(wild_cells(), wild_targets(), any_types()))
def test_any_table_is_trained_on_or_gives_one_error_the_long_form(case: Case) -> None:
    run_in_bounds(case)
