"""Reading: every format and encoding gives the same rows, and what cannot be read names its place."""

import bz2
import gzip
import lzma
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nn_train.errors import DataError
from nn_train.inference import infer_schema
from nn_train.settings import DataConfig
from nn_train.table import name_row, read_table
from nn_train.table_files import find_files, fingerprint
from nn_train.values import typed_frame
from tests.conftest import make_table

TEXT = "a,b,y\n1,x,no\n2,,yes\n"
COLUMNS = {"a": ["1", "2"], "b": ["x", ""], "y": ["no", "yes"]}


def read(path: Path, content: bytes | str | None = None, **data) -> dict[str, list]:
    """The table's columns as lists, after `content` was written to `path`."""
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(DataConfig(path=str(path), target="y", **data)).to_dict()


def frame_of(path: Path) -> pd.DataFrame:
    """The typed columns of the table at `path`."""
    data = DataConfig(path=str(path), target="y")
    table = read_table(data)
    return typed_frame(table, infer_schema(table, data), data)


# --- formats ----------------------------------------------------------------------------------------------------------


def zipped(content: bytes, path: Path) -> None:
    """A zip as macOS makes it, with its own bookkeeping inside."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t.csv", content)
        archive.writestr("__MACOSX/._t.csv", b"\x00\x05")


COMPRESSORS = {
    "gz": lambda content, path: path.write_bytes(gzip.compress(content, mtime=0)),
    "bz2": lambda content, path: path.write_bytes(bz2.compress(content)),
    "xz": lambda content, path: path.write_bytes(lzma.compress(content)),
    "zst": lambda content, path: path.write_bytes(pa.compress(content, codec="zstd", asbytes=True)),
    "zip": zipped,
}


@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.txt", "t.data"])
def test_csv(tmp_path: Path, name: str) -> None:
    assert read(tmp_path / name, TEXT) == COLUMNS


@pytest.mark.parametrize("name", ["t.tsv", "t.tab"])
def test_tsv(tmp_path: Path, name: str) -> None:
    assert read(tmp_path / name, TEXT.replace(",", "\t")) == COLUMNS


@pytest.mark.parametrize("ending", COMPRESSORS)
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_compressed_text(tmp_path: Path, ending: str, kind: str) -> None:
    path = tmp_path / f"t.{kind}.{ending}"
    COMPRESSORS[ending](TEXT.replace(",", "," if kind == "csv" else "\t").encode(), path)
    assert read(path) == COLUMNS


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.parquet", "t.arrow", "t.stream.arrow", "t.feather", "t.jsonl"]
)
def test_the_same_table_in_every_format_gives_the_same_values(tmp_path: Path, name: str) -> None:
    frame = make_table(120).assign(
        flag=lambda f: f["age"] > 40, code=lambda f: f["age"] % 3, maybe=lambda f: (f["age"] > 50).mask(f["age"] < 25)
    )
    frame.to_csv(tmp_path / "reference.csv", index=False)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(table, path)
    elif name.endswith("stream.arrow"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif name.endswith(("arrow", "feather")):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif name.endswith("jsonl"):
        frame.to_json(path, orient="records", lines=True, date_format="iso")
    else:
        frame.to_csv(path, index=False)
    found, reference = frame_of(path), frame_of(tmp_path / "reference.csv")
    pd.testing.assert_frame_equal(found, reference)
    assert found["size"].isna().any() and found["colour"].isna().any()
    assert found["day"].dtype == "datetime64[ns]"
    assert set(found["maybe"].dropna()) == {"true", "false"}


def test_types_of_arrow_that_stand_for_others(tmp_path: Path) -> None:
    columns = {
        "words": pa.array(["a", "b", None]).dictionary_encode(),
        "runs": pa.RunEndEncodedArray.from_arrays([2, 3], ["a", "b"]),
        "uuid": pa.array([b"0" * 16, b"1" * 16, None], pa.uuid()),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "y": pa.array(["no", "yes", "no"]),
    }
    table = pa.table(columns)
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = read(path)
    assert found["words"] == ["a", "b", None]
    assert found["runs"] == ["a", "a", "b"]
    assert found["map"][0] == [{"key": "k", "value": 1}]


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", b"\xef\xbb\xbf" + TEXT.encode()) == COLUMNS
    assert read(tmp_path / "t.csv", TEXT.encode("utf-16"), encoding="utf-16") == COLUMNS


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems(tmp_path: Path, end: str) -> None:
    assert read(tmp_path / "t.csv", TEXT.replace("\n", end)) == COLUMNS


def test_quoted_fields_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", 'a,"b\nc",y\r\n"1,5","say ""hi""",no\r\n"two\r\nlines",,yes\r\n')
    assert found == {"a": ["1,5", "two\r\nlines"], "b c": ['say "hi"', ""], "y": ["no", "yes"]}


def test_empty_lines_and_a_missing_last_line_end_are_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", TEXT.replace("\n1", "\n\n1").rstrip("\n")) == COLUMNS


def test_an_index_column_of_pandas_gets_a_name(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    make_table(60).to_csv(path)
    data = DataConfig(path=str(path), target="y")
    table = read_table(data)
    assert table.column_names[0] == "column_1"
    assert infer_schema(table, data).columns[0].dropped.startswith("id-like")


@pytest.mark.parametrize("delimiter", [";", "|", "\t", " "])
def test_another_delimiter(tmp_path: Path, delimiter: str) -> None:
    assert read(tmp_path / "t.csv", TEXT.replace(",", delimiter), delimiter=delimiter) == COLUMNS


def test_the_delimiter_line_of_excel_is_followed(tmp_path: Path) -> None:
    assert read(tmp_path / "t.csv", "sep=;\r\n" + TEXT.replace(",", ";")) == COLUMNS
    data = DataConfig(path=str(tmp_path / "t.csv"), target="y")
    assert name_row(data, 1) == "line 4 of t.csv"


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "UTF8", "utf-8-sig", "shift_jis"])
def test_another_encoding(tmp_path: Path, encoding: str) -> None:
    letter = "水" if encoding == "shift_jis" else "é"
    content = TEXT.replace("x", letter).replace("a,", f"{letter},")
    found = read(tmp_path / "t.csv", content.encode(encoding), encoding=encoding)
    assert found == {letter: ["1", "2"], "b": [letter, ""], "y": ["no", "yes"]}


def test_spaces_around_names_are_no_part_of_them(tmp_path: Path) -> None:
    assert list(read(tmp_path / "t.csv", TEXT.replace("a,b,y", " a , b c,y "))) == ["a", "b c", "y"]


def test_a_long_field_is_read(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", TEXT.replace("x", '"' + "z\n" * 1_500_000 + '"'))
    assert len(found["b"][0]) == 3_000_000
    assert name_row(DataConfig(path=str(tmp_path / "t.csv"), target="y"), 1) == "line 1500003 of t.csv"


# --- many files -------------------------------------------------------------------------------------------------------


def write_shards(folder: Path) -> None:
    """Two shards, with files beside them that are no tables."""
    folder.mkdir()
    (folder / "part-0.csv").write_text("a,y\n1,no\n2,yes\n")
    (folder / "part-1.csv").write_text("y,a\nno,3\n")  # another order of columns
    (folder / "deeper").mkdir()
    (folder / "deeper" / "part-2.csv").write_text("a,y")  # a header without rows
    for name in ("_SUCCESS", ".part-0.csv.crc", ".hidden.csv", "_temporary.csv", "notes.md"):
        (folder / name).write_text("none of it")
    (folder / ".git").mkdir()
    (folder / ".git" / "t.csv").write_text("none of it")


def test_a_folder_of_shards_is_one_table(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    found = read_table(DataConfig(path=str(tmp_path / "shards"), target="y")).to_dict()
    assert found == {"a": ["1", "2", "3"], "y": ["no", "yes", "no"]}


def test_a_glob_is_one_table(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    data = DataConfig(path=str(tmp_path / "shards" / "part-*.csv"), target="y")
    assert read_table(data).to_dict()["a"] == ["1", "2", "3"]
    assert [file.name for file in find_files(data.path)] == ["part-0.csv", "part-1.csv"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert read(tmp_path / "t[1].csv", TEXT) == COLUMNS


def test_shards_of_numbers_take_the_wider_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2], "y": ["no", "yes"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"y": ["no"], "a": [0.5]}), tmp_path / "1.parquet")
    assert read(tmp_path)["a"] == [1.0, 2.0, 0.5]


@pytest.mark.parametrize("max_rows", [1, 2, 3, 99])
def test_max_rows_takes_the_first_rows_over_all_shards(tmp_path: Path, max_rows: int) -> None:
    write_shards(tmp_path / "shards")
    data = DataConfig(path=str(tmp_path / "shards"), target="y", max_rows=max_rows)
    assert read_table(data).to_dict()["a"] == ["1", "2", "3"][:max_rows]


def test_rows_are_named_by_their_line_and_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('t,y\n"two\nlines",1\n\n"after an empty line",2\n')
    pq.write_table(pa.table({"t": ["x"], "y": ["1"]}), tmp_path / "b.parquet")
    data = DataConfig(path=str(tmp_path), target="y")
    assert [name_row(data, row) for row in range(3)] == ["line 2 of a.csv", "line 5 of a.csv", "row 1 of b.parquet"]


# --- fingerprint ------------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_content_and_the_format_not_the_place(tmp_path: Path) -> None:
    first = tmp_path / "table.v1.csv"
    first.write_text(TEXT)
    digest = fingerprint([first])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert fingerprint([Path(shutil.copy(first, elsewhere / "other.name.csv"))]) == digest
    assert fingerprint([Path(shutil.copy(first, elsewhere / "t.tsv"))]) != digest
    assert fingerprint([first, first]) != digest
    first.write_text(TEXT.replace("2", "3"))
    assert fingerprint([first]) != digest


def test_the_fingerprint_follows_where_one_file_ends_and_the_next_begins(tmp_path: Path) -> None:
    for name, text in (("a", "12"), ("b", "3"), ("c", "1"), ("d", "23")):
        (tmp_path / f"{name}.csv").write_text(text)
    files = [tmp_path / f"{name}.csv" for name in "abcd"]
    assert fingerprint(files[:2]) != fingerprint(files[2:])


# --- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b"\n\n", "the first line is empty"),
        ("t.csv", b"a,y\n", "a header and no rows"),
        ("t.csv", b"a,y", "a header and no rows"),
        ("t.csv", b"a,y\n1,2\n3,4,5\n", "line 3 has 3 fields, and the header 2: '3,4,5'"),
        ("t.csv", b'a,y\n1,2\n\n"x\ny"\n', "line 4 has 1 fields, and the header 2"),
        ("t.csv", b'a,y\n1,"2\n3,4\n5,6\n', "line 2: a quote is opened and never closed"),
        ("t.csv", b'a,y\n"1,2\n3,4\n5,6\n', "line 2: a quote is opened and never closed"),
        ("t.csv", b'a,"y\n1,2\n', "the line of column names: unexpected end of data"),
        ("t.csv", b"a,y\n1,\xe9\n", "line 2 holds the byte 0xe9, which is not utf-8"),
        ("t.csv", b"\xe9,y\n1,2\n", "line 1 holds the byte 0xe9, which is not utf-8"),
        ("t.csv", TEXT.encode("utf-16"), "data.encoding=utf-16"),
        ("t.csv", TEXT.encode("utf-16-le"), "it holds zero bytes"),
        ("t.csv", b"a,y\n1,2\n3,\0\n", "column 'y' holds a zero byte in line 3"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns are called 'a' (columns 1 and 3)"),
        ("t.csv", b"a;b;y\n1;2;3\n", "data.delimiter=';'"),
        ("t.csv", b"a\tb\ty\n1\t2\t3\n", "data.format=tsv"),
        ("t.csv", b"a|y\n1|2\n", "data.delimiter='|'"),
        ("t.tsv", b"a,y\n1,2\n", "data.delimiter=,"),
        ("t.csv", b"PAR1....", "data.format=parquet"),
        ("t.csv", b"ARROW1..", "data.format=arrow"),
        ("t.csv", b"PK\x03\x04..", "an Excel workbook"),
        ("t.csv", gzip.compress(TEXT.encode(), mtime=0), "end its name in .csv.gz"),
        ("t.csv.gz", gzip.compress(TEXT.encode() * 9, mtime=0)[:-9], "the file is damaged"),
        ("t.csv.gz", b"no gzip", "the file is damaged"),
        ("t.csv.gz", gzip.compress(b"", mtime=0), "the first line is empty"),
        ("t.csv.bz2", b"no bz2", "the file is damaged"),
        ("t.csv.xz", b"no xz", "the file is damaged"),
        ("t.csv.zst", b"no zst", "the file is damaged"),
        ("t.csv.zip", b"no zip", "the file is damaged"),
        ("t.parquet", b"no parquet", "not a whole Parquet file"),
        ("t.arrow", b"no arrow file", "not a whole Arrow file"),
        ("t.jsonl", b'{"a": 1}\n{"a": "x"}\n', "Column(/a) changed from number to string"),
        ("t.jsonl", b"[1, 2]", "not a table in JSON lines"),
        ("t.xlsx", b"PK\x03\x04", "the format of 't.xlsx' is not known from its name"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "mend: " in str(caught.value)


def test_files_that_are_cut_or_changed_in_the_middle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=5000), "y": rng.integers(0, 2, 5000)})
    frame.to_csv(tmp_path / "whole.csv", index=False)
    text = (tmp_path / "whole.csv").read_bytes()
    for ending, compress in COMPRESSORS.items():
        path = tmp_path / f"t.csv.{ending}"
        compress(text, path)
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:3000] + b"\0\xff\x13" * 3 + whole[3009:]):
            path.write_bytes(damaged)
            with pytest.raises(DataError) as caught:
                read(path)
            assert str(path) in str(caught.value)
    for name in ("t.parquet", "t.arrow"):
        path = tmp_path / name
        frame.to_parquet(path, compression=None) if name == "t.parquet" else frame.to_feather(path)
        path.write_bytes(path.read_bytes()[:-300])
        with pytest.raises(DataError, match=r"not a whole|damaged"):
            read(path)


def test_archives_that_hold_no_single_readable_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    with pytest.raises(DataError, match="the archive holds 2 files"):
        read(path)


def test_shards_that_differ(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text("a,b,y\n1,2,3\n")
    for text, message in (("a,y\n1,3\n", "'b' of the first shard is missing"), ("a,b,c,y\n1,2,3,4\n", "'c' is not in")):
        (tmp_path / "1.csv").write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            read(tmp_path)
        assert "1.csv" in str(caught.value)
    (tmp_path / "1.csv").unlink()
    pq.write_table(pa.table({"a": [1], "b": ["2"], "y": ["3"]}), tmp_path / "1.parquet")
    with pytest.raises(DataError, match="column 'a' holds int64, and string in the first shard"):
        read(tmp_path)


def test_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="two columns are called 'a'"):
        read(tmp_path / "t.parquet")


def test_places_without_a_table(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(TEXT)
    (tmp_path / "empty").mkdir()
    for path, message in (
        ("tabel.csv", "near it lies table.csv"),
        ("nowhere/t.csv", "there is no folder"),
        ("empty/t.csv", "no such file\n"),
        ("empty", "the folder holds no tables"),
        ("*.parquet", "no such file"),
    ):
        with pytest.raises(DataError) as caught:
            read(tmp_path / path)
        assert message in str(caught.value)


def test_an_encoding_that_does_not_exist(tmp_path: Path) -> None:
    for encoding in ("utf-99", "hex"):
        with pytest.raises(DataError, match=f"data.encoding={encoding} is not a known encoding"):
            read(tmp_path / "t.csv", TEXT, encoding=encoding)
