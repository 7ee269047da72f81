"""Where rows stand in a text file: the spans hold the rows that the whole file holds, or there are none."""

import csv
import gzip
import io
from itertools import chain, pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_train import text_spans
from nn_train.errors import DataError
from nn_train.settings import DataConfig
from nn_train.table_stream import read_pieces, read_span
from nn_train.table_text import Span
from nn_train.text_spans import find_spans

VALUES = st.text(alphabet='ab,;"\n é', max_size=6)
LINES = st.lists(st.lists(VALUES, min_size=2, max_size=2), max_size=40)


def config(file: Path, **values: object) -> DataConfig:
    return DataConfig(path=str(file), target="y", **values)  # type: ignore[arg-type]


def rows_of(pieces: object) -> list[dict[str, str]]:
    return pa.concat_tables(list(pieces)).to_pylist()  # type: ignore[call-overload]


def check(file: Path, data: DataConfig, *, num_rows: int) -> int:
    """The rows of the spans are those of the file, and the spans are as long as asked for; their number."""
    spans = find_spans(file, data, "csv", num_rows=num_rows)
    expected = rows_of(read_pieces([file], data, num_rows=7))
    found = [rows_of(read_span(file, data, span, num_rows=3)) for span in spans]
    assert list(chain(*found)) == expected or not spans
    assert [len(rows) for rows in found] == [span.num_rows for span in spans]
    assert [span.first_row for span in spans] == [num_rows * place for place in range(len(spans))]
    assert all(span.num_rows == num_rows for span in spans[:-1])
    assert all(one.stop == two.start for one, two in pairwise(spans))
    return len(spans)


@settings(max_examples=300, deadline=None)
@given(
    lines=LINES,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    delimiter=st.sampled_from([",", ";"]),
    gaps=st.lists(st.booleans(), min_size=40, max_size=40),
    is_ended=st.booleans(),
    block=st.integers(1, 60),
    num_rows=st.integers(1, 9),
)
def test_spans_hold_the_rows_of_the_file(
    lines: list[list[str]], quoting: int, end: str, delimiter: str, gaps: list[bool], is_ended: bool, block: int,
    num_rows: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator=end, delimiter=delimiter)  # type: ignore[arg-type]
    writer.writerow(["x", "y"])
    for line, gap in zip(lines, gaps, strict=False):
        writer.writerow(line)
        text.write(end if gap else "")
    file = tmp_path_factory.getbasetemp() / "spans.csv"
    content = text.getvalue()
    file.write_bytes((content if is_ended else content.rstrip("\r\n")).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_spans, "LOOK_BYTES", block)
        found = check(file, config(file, delimiter=delimiter), num_rows=num_rows)
    assert found == -(-len(lines) // num_rows)


@settings(max_examples=400, deadline=None)
@given(body=st.text(alphabet='a,"\n\r', max_size=40), block=st.integers(1, 20), num_rows=st.integers(1, 4))
def test_no_span_is_better_than_a_wrong_one(
    body: str, block: int, num_rows: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # whatever a file holds: a table that can be read whole has the same rows in its spans, if it has spans
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(b"x,y\n" + body.encode())
    data = config(file)
    try:
        whole = rows_of(read_pieces([file], data, num_rows=7))
    except DataError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_spans, "LOOK_BYTES", block)
        spans = find_spans(file, data, "csv", num_rows=num_rows)
    assert not spans or list(chain(*(rows_of(read_span(file, data, span, num_rows=3)) for span in spans))) == whole


IRREGULAR = {
    "a quote within a value": b'x,y\n5" pipe,1\n6" pipe,0\n',
    "old line ends": b"x,y\ra,1\rb,0\r",
    "a return within a line": b"x,y\na\rb,1\n",
    "a quote that stays open": b'x,y\na,1\n"b,0\n',
    "no row": b"x,y\n\n\n",
    "no line below the names": b"x,y",
}


@pytest.mark.parametrize("what", IRREGULAR)
def test_there_is_no_span_where_rows_cannot_be_told(what: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(IRREGULAR[what])
    assert find_spans(file, config(file), "csv", num_rows=1) == []


def test_there_is_no_span_of_compressed_rows_or_signs_of_two_bytes(tmp_path: Path) -> None:
    text = "x,y\na,1\nb,0\n"
    packed, wide = tmp_path / "table.csv.gz", tmp_path / "wide.csv"
    packed.write_bytes(gzip.compress(text.encode()))
    wide.write_bytes(text.encode("utf-16"))
    assert find_spans(packed, config(packed), "csv", num_rows=1) == []
    assert find_spans(wide, config(wide, encoding="utf-16"), "csv", num_rows=1) == []


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252"])
def test_the_top_of_a_file_belongs_to_no_span(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    mark = b"\xef\xbb\xbf" if encoding == "utf-8" else b""
    file.write_bytes(mark + 'sep=;\r\n"the\r\nplace";y\r\né;1\r\nb;0\r\n'.encode(encoding))
    data = config(file, encoding=encoding)
    assert check(file, data, num_rows=1) == 2
    assert rows_of(read_pieces([file], data, num_rows=7))[0] == {"the place": "é", "y": "1"}


def test_a_mistake_is_named_by_its_line_in_the_file_and_looked_for_in_its_span(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    rows = ['"a\nb",1\n'] * 3000
    rows[1500], rows[2500] = "one,two,three\n", "four,five,six,seven\n"  # lines 3003 and 5002
    file.write_text("x,y\n\n" + "".join(rows))
    data = config(file)
    first, second, third = find_spans(file, data, "csv", num_rows=1000)

    def refuses(span: Span, mistake: str) -> None:
        with pytest.raises(DataError, match=mistake):
            list(read_span(file, data, span, num_rows=900))

    refuses(second, "line 3003 has 3 fields")
    refuses(third, "line 5002 has 4 fields")
    assert len(rows_of(read_span(file, data, first, num_rows=900))) == 1000
    file.write_bytes(file.read_bytes().replace(b"four", b"fo\xffr").replace(b"two", b"t\xffo"))
    refuses(second, "line 3003 holds the byte 0xff")
    refuses(third, "line 5002 holds the byte 0xff")
    file.write_bytes(file.read_bytes().replace(b"fo\xffr,five,six,seven", b"\0,12345678901234567"))
    refuses(third, "column 'x' holds a zero byte in line 5002")
