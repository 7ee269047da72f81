"""Text tables: every column as text, or an error that names the line.

What a value means is decided in one place (`inference`), and alike in every shard.
"""

import codecs
import csv
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from nn_train.errors import DataError, short
from nn_train.settings import DataConfig
from nn_train.table_files import open_file, reason, refuse_duplicates

DELIMITERS = {
    ",": "data.delimiter=,",
    ";": "data.delimiter=';'",
    "\t": "data.format=tsv",
    "|": "data.delimiter='|'",
}
OTHER_FORMATS = {
    b"PAR1": ("a Parquet file", "data.format=parquet"),
    b"ARRO": ("an Arrow file", "data.format=arrow"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "save it as CSV, or end the archive's name in .csv.zip"),
    b"\x1f\x8b\x08": ("a gzip file", "end its name in .csv.gz"),
}
EXCEL_DELIMITER = re.compile(r"sep=(.)\s*")  # a first line that Excel writes and reads
BLOCK_BYTES = 1 << 24  # a row can be as long, and not much longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What the top of a text table says; `num_lines` are the lines before the first row."""

    names: list[str]
    delimiter: str
    num_lines: int
    has_rows: bool


class Span(NamedTuple):
    """Some rows of a text file: its bytes from `start` to `stop`, its rows from `first_row` on."""

    start: int
    stop: int
    first_row: int
    num_rows: int


def read_text(file: Path, data: DataConfig, kind: str) -> pa.Table:
    """Read a CSV or TSV file, every column as text.

    Raises:
        DataError: naming the line that cannot be decoded, or has too many or too few fields.
    """
    header = read_header(file, data, kind)
    if not header.has_rows:
        return pa.schema(dict.fromkeys(header.names, pa.string())).empty_table()
    with named_mistakes(file, data, header), open_file(file) as stream:
        table = pa_csv.read_csv(stream, **text_options(header, data))
    refuse_zero_bytes(table, file, data, header)
    refuse_open_quote(table, file, data, header)
    return table


def stream_text(file: Path, data: DataConfig, kind: str, *, span: Span | None = None) -> Iterator[pa.Table]:
    """The same piece by piece; of a span its rows alone are read."""
    header = read_header(file, data, kind)
    last = pa.schema(dict.fromkeys(header.names, pa.string())).empty_table()
    yield last
    if not header.has_rows:
        return
    first_row, options = 0, text_options(header, data)
    if span is not None:
        first_row, options["read_options"].skip_rows = span.first_row, 0
    with (
        named_mistakes(file, data, header, span),
        open_file(file) if span is None else _open_span(file, span) as stream,
        pa_csv.open_csv(stream, **options) as reader,
    ):
        for batch in reader:
            last = pa.Table.from_batches([batch])
            refuse_zero_bytes(last, file, data, header, first_row=first_row)
            first_row += len(last)
            yield last
    if span is None:  # one was cut out of a file all of whose quotes are closed
        refuse_open_quote(last, file, data, header)


@contextmanager
def _open_span(file: Path, span: Span) -> Iterator[pa.NativeFile]:
    with pa.OSFile(str(file)) as whole, whole.get_stream(span.start, span.stop - span.start) as stream:
        yield stream


@contextmanager
def named_mistakes(file: Path, data: DataConfig, header: Header, span: Span | None = None) -> Iterator[None]:
    """Turn what Arrow says of a text table into an error that names the line."""
    try:
        yield
    except (pa.ArrowInvalid, UnicodeError) as error:
        _explain(file, data, header, span)
        raise DataError(
            f"the table cannot be read: {reason(error)}",
            where=str(file),
            fix="look at data.delimiter and data.encoding",
        ) from None


def refuse_open_quote(table: pa.Table, file: Path, data: DataConfig, header: Header) -> None:
    """Look closer where the last value has a line break: perhaps a quote swallows the rest of the file."""
    if len(table) and "\n" in table.column(-1)[-1].as_py():
        _explain(file, data, header)


def text_options(header: Header, data: DataConfig) -> dict[str, Any]:
    """How Arrow reads the rows below this header: every column as text."""
    columns = dict.fromkeys(header.names, pa.string())
    return {
        "convert_options": pa_csv.ConvertOptions(column_types=columns, strings_can_be_null=False, check_utf8=True),
        "parse_options": pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True),
        "read_options": pa_csv.ReadOptions(
            encoding="utf8" if codec_of(data) == "utf-8-sig" else data.encoding,
            column_names=header.names,
            skip_rows=header.num_lines,
            block_size=BLOCK_BYTES,
        ),
    }


def codec_of(data: DataConfig) -> str:
    """Python's name of the encoding; of UTF-8 the one that skips a byte-order mark."""
    try:
        "".encode(data.encoding)
    except (LookupError, ValueError):
        raise DataError(
            f"data.encoding={data.encoding} is not a known encoding",
            where=data.path,
            fix="data.encoding=utf-8, latin-1, cp1252, utf-16, ...",
        ) from None
    name = codecs.lookup(data.encoding).name
    return "utf-8-sig" if name == "utf-8" else name


@contextmanager
def _open_text(file: Path, data: DataConfig, *, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    with open_file(file) as stream:
        text = io.TextIOWrapper(stream, encoding=codec_of(data), errors=errors, newline="")
        try:
            yield text
        finally:
            text.detach()


def _reader(lines: Iterable[str], delimiter: str, *, strict: bool) -> Any:
    csv.field_size_limit(sys.maxsize)  # of the whole process
    return csv.reader(lines, delimiter=delimiter, strict=strict)


def read_header(file: Path, data: DataConfig, kind: str) -> Header:
    """Read the column names. Raises DataError for another format, a wrong delimiter, or names that repeat."""
    with open_file(file) as stream:
        _refuse_other_format(stream.read(4), file, data)
    delimiter = data.delimiter or ("\t" if kind == "tsv" else ",")
    try:
        with _open_text(file, data) as text:
            line = text.readline().removeprefix("\ufeff")
            num_lines = 1
            if excel := EXCEL_DELIMITER.fullmatch(line):
                delimiter = data.delimiter or excel[1]
                line, num_lines = text.readline(), 2
            if len(line) > BLOCK_BYTES:
                raise DataError(
                    f"line {num_lines} is longer than {BLOCK_BYTES >> 20} MiB; it should name the columns",
                    where=str(file),
                    fix="look whether it is a text table, with an end to each line",
                )
            _refuse_zero_byte(line, file)
            reader = _reader(itertools.chain([line], text), delimiter, strict=True)
            fields = next(reader)
            _refuse_zero_byte("".join(fields), file)  # of a quoted name with a line break
            has_rows = bool(text.read(1))
    except UnicodeError as error:
        _refuse_bytes(file, data)
        raise _not_encoded(file, data, error) from None
    except csv.Error as error:
        raise DataError(
            f"the line of column names: {short(str(error))}", where=str(file), fix="correct its quotes"
        ) from None
    if not line.strip():
        raise DataError(
            "the first line is empty; it should name the columns", where=str(file), fix="remove empty lines at the top"
        )
    _refuse_delimiter(line, fields, delimiter, file)
    names = [" ".join(name.splitlines()).strip() or f"column_{index}" for index, name in enumerate(fields, 1)]
    refuse_duplicates(names, file)
    return Header(names=names, delimiter=delimiter, num_lines=num_lines - 1 + reader.line_num, has_rows=has_rows)


def _refuse_zero_byte(text: str, file: Path) -> None:
    if "\0" in text:
        raise DataError(
            "this is not a text table: it holds zero bytes",
            where=str(file),
            fix="data.format=parquet, arrow or json, or data.encoding=utf-16",
        )


def _refuse_other_format(head: bytes, file: Path, data: DataConfig) -> None:
    for magic, (what, fix) in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DataError(f"this is {what}, not a text table", where=str(file), fix=fix)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and codec_of(data) == "utf-8-sig":
        raise DataError("the file starts as UTF-16 does, and not UTF-8", where=str(file), fix="data.encoding=utf-16")


def _refuse_delimiter(line: str, fields: list[str], delimiter: str, file: Path) -> None:
    others = [sign for sign in DELIMITERS if sign != delimiter and sign in line]
    if len(fields) > 1 or not others:
        return
    raise DataError(
        f"one column was found, '{short(line)}': the fields are not parted by {delimiter!r}",
        where=str(file),
        fix=DELIMITERS[max(others, key=line.count)],
    )


def refuse_zero_bytes(table: pa.Table, file: Path, data: DataConfig, header: Header, *, first_row: int = 0) -> None:
    """Raise DataError that names the line of a value with a zero byte in it; `first_row` is the table's first."""
    for name in table.column_names:
        found = pc.index(pc.match_substring(table.column(name), "\0"), True).as_py()
        if found >= 0:
            line = line_of_row(file, data, header, first_row + found)
            raise DataError(
                f"column '{short(name)}' holds a zero byte in line {line}",
                where=str(file),
                fix="remove zero bytes from the file, or write or download it again",
            )


def _records(file: Path, data: DataConfig, delimiter: str, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The fields of each record, with the number of its first line; empty lines are left out."""
    with _open_text(file, data, errors="replace") as text:  # bytes that are no text are looked for elsewhere
        reader = _reader(text, delimiter, strict=strict)
        line = 1
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            is_open = "unexpected end" in str(error)
            raise DataError(
                f"line {line}: {'a quote is opened and never closed' if is_open else short(str(error))}",
                where=str(file),
                fix="correct the line",
            ) from None


def line_of_row(file: Path, data: DataConfig, header: Header, row: int) -> int:
    """The line (from 1) in which a row (from 0) begins: rows may hold line breaks, and lines may be empty."""
    lines = (line for line, _ in _records(file, data, header.delimiter) if line > header.num_lines)
    return next(itertools.islice(lines, row, None))


def _explain(file: Path, data: DataConfig, header: Header, span: Span | None = None) -> None:
    """Find the first line that cannot be decoded or has too many or too few fields, or one too long, and name it."""
    _refuse_bytes(file, data, span)
    longest = (0, 0)
    records = _records(file, data, header.delimiter, strict=True)
    rows: Iterator[tuple[int, list[str]]] = (record for record in records if record[0] > header.num_lines)
    if span is not None:
        rows = itertools.islice(rows, span.first_row, span.first_row + span.num_rows)
    for line, fields in rows:
        if len(fields) != len(header.names):
            raise DataError(
                f"line {line} has {len(fields)} fields, and the header {len(header.names)}: "
                f"'{short(header.delimiter.join(fields))}'",
                where=str(file),
                fix="correct the line (a field that holds the delimiter needs quotes), or data.delimiter",
            )
        longest = max(longest, (sum(map(len, fields)), line))
    length, line = longest
    if length > BLOCK_BYTES:
        raise DataError(
            f"line {line} is longer than {BLOCK_BYTES >> 20} MiB",
            where=str(file),
            fix="shorten it, and look whether a quote is opened in it and closed too late",
        )


def _refuse_bytes(file: Path, data: DataConfig, span: Span | None = None) -> None:
    codec = codec_of(data)
    line = 1
    decoder = codecs.getincrementaldecoder(codec)()
    left, num_bytes = (0, sys.maxsize) if span is None else (span.start, span.stop - span.start)
    try:
        with open_file(file) as stream:
            while left and (block := stream.read(min(BLOCK_BYTES, left))):
                line, left = line + block.count(b"\n"), left - len(block)
            while block := stream.read(min(BLOCK_BYTES, num_bytes)):
                line, num_bytes = line + decoder.decode(block).count("\n"), num_bytes - len(block)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        content = error.object
        line += content.count(b"\n", 0, error.start)
        name = codec.removesuffix("-sig")
        raise DataError(
            f"line {line} holds the byte 0x{content[error.start]:02x}, which is not {name}",
            where=str(file),
            fix=f"data.encoding={'latin-1' if name == 'utf-8' else 'utf-8'}, or save the table as UTF-8",
        ) from None
    except UnicodeError as error:  # of the codecs that say no place
        raise _not_encoded(file, data, error) from None


def _not_encoded(file: Path, data: DataConfig, error: UnicodeError) -> DataError:
    return DataError(
        f"the file is not {data.encoding}: {reason(error)}", where=str(file), fix="data.encoding=utf-8, utf-16-le, ..."
    )
