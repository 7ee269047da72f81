"""From files to rows: one table as a `datasets.Dataset`, or an error that names the file and the row.

Text tables are read with every column as text, so that what a value means is decided in one
place (`inference`), and alike in every shard.
"""

import bz2
import codecs
import csv
import dataclasses
import difflib
import glob
import gzip
import hashlib
import io
import itertools
import lzma
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from nn_train.errors import DataError
from nn_train.settings import DataConfig

FORMATS = {
    ".csv": "csv",
    ".txt": "csv",
    ".data": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip", ".zst")
TEXT_FORMATS = ("csv", "tsv")
DELIMITERS = {
    ",": "data.delimiter=,",
    ";": "data.delimiter=';'",
    "\t": "data.format=tsv",
    "|": "data.delimiter='\"|\"'",
}
OTHER_FORMATS = {
    b"PAR1": ("a Parquet file", "data.format=parquet"),
    b"ARRO": ("an Arrow file", "data.format=arrow"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "save it as CSV, or end the archive's name in .csv.zip"),
    b"\x1f\x8b\x08": ("a gzip file", "end its name in .csv.gz"),
}
EXCEL_DELIMITER = re.compile(r"sep=(.)\s*")  # a first line that Excel writes and reads
BLOCK_BYTES = 1 << 24  # a field cannot be longer


def find_files(path: str, *, key: str = "data.path") -> list[Path]:
    """The files that a path, folder or glob means, in sorted order.

    Raises:
        DataError: there are none; a name that is near is suggested.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [file for file in sorted(place.rglob("*")) if file.is_file() and _is_table(file.relative_to(place))]
        if not found:
            raise DataError("the folder holds no tables", where=str(place), fix=f"{key}=FILE, FOLDER or 'FOLDER/*.csv'")
        return found
    found = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if Path(name).is_file())
    if found:
        return found
    hint = f"; there is no folder {place.parent}"
    if place.parent.is_dir():
        near = difflib.get_close_matches(place.name, [file.name for file in place.parent.iterdir()], n=1, cutoff=0.5)
        hint = f"; near it lies {near[0]}" if near else ""
    raise DataError(f"no such file{hint}", where=str(place), fix=f"{key}=FILE, FOLDER or 'FOLDER/*.csv'")


def _is_table(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and _suffix(path) in FORMATS


def _compression(path: Path) -> str:
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def _suffix(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    return Path(path.stem).suffix.lower() if _compression(path) else path.suffix.lower()


def fingerprint(files: list[Path]) -> str:
    """A digest of the files' content and formats, in their order; where they lie does not count.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with _readable(file), file.open("rb") as stream:
            digest.update(f"{_suffix(file)}{_compression(file)}\0{file.stat().st_size}\0".encode())
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def cache_dir(data: DataConfig) -> Path:
    """Where packed rows are kept: data.cache_dir, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data.cache_dir or f"{home}/nn_train").expanduser().absolute()


def read_table(data: DataConfig, path: str | None = None) -> datasets.Dataset:
    """Read the table at `path` (default: data.path), all shards in order, `data.max_rows` at most.

    Raises:
        DataError: naming the file, and the row or column where there is one.
    """
    parts: list[pa.Table] = []
    num_rows = 0
    for file in find_files(path or data.path):
        part = _read_file(file, data)
        if parts:
            part = _like_first(part, parts[0], file)
        parts.append(part)
        num_rows += len(part)
        if data.max_rows is not None and num_rows >= data.max_rows:
            break
    table = _join(parts, path or data.path)
    return datasets.Dataset(table if data.max_rows is None else table.slice(0, data.max_rows))


def name_row(data: DataConfig, row: int) -> str:
    """Where a row (from 0) of the table stands, for a person: `line 18 of table.csv`."""
    for file in find_files(data.path):
        num_rows = len(_read_file(file, data))
        if row < num_rows:
            kind = _format(file, data)
            if kind not in TEXT_FORMATS:
                return f"row {row + 1} of {file.name}"
            return f"line {_line_of_row(file, data, _read_header(file, data, kind), row)} of {file.name}"
        row -= num_rows
    return f"row {row + 1} of the tables that follow"


def _like_first(part: pa.Table, first: pa.Table, file: Path) -> pa.Table:
    """The columns of a shard in the order of the first one, or an error that says what differs."""
    fix = "give every shard the same columns"
    for name in first.column_names:
        if name not in part.column_names:
            raise DataError(f"column '{name}' of the first shard is missing", where=str(file), fix=fix)
    for name in part.column_names:
        if name not in first.column_names:
            raise DataError(f"column '{name}' is not in the first shard", where=str(file), fix=fix)
    part = part.select(first.column_names)
    for name in first.column_names:
        kinds = [first.schema.field(name).type, part.schema.field(name).type]
        try:
            pa.unify_schemas([pa.schema({name: kind}) for kind in kinds], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise DataError(
                f"column '{name}' holds {kinds[1]}, and {kinds[0]} in the first shard",
                where=str(file),
                fix="give the column one type in every shard",
            ) from None
    return part


def _join(parts: list[pa.Table], path: str) -> pa.Table:
    table = pa.concat_tables(parts, promote_options="permissive") if len(parts) > 1 else parts[0]
    if not len(table):
        raise DataError("the table has a header and no rows", where=path, fix="give it rows")
    return table


def _format(file: Path, data: DataConfig) -> str:
    if data.format != "auto":
        return data.format
    if _suffix(file) not in FORMATS:
        raise DataError(
            f"the format of '{file.name}' is not known from its name",
            where=str(file),
            fix="data.format=csv, tsv, parquet, arrow or json; another format must be saved as one of these",
        )
    return FORMATS[_suffix(file)]


def _read_file(file: Path, data: DataConfig) -> pa.Table:
    kind = _format(file, data)
    with _readable(file):
        if not file.stat().st_size:
            raise DataError("the file is empty", where=str(file), fix="data.path=FILE with a header and rows")
        if kind in TEXT_FORMATS:
            return _read_text(file, data, kind)
        table = {"json": _read_json, "parquet": _read_parquet, "arrow": _read_arrow}[kind](file)
    _refuse_duplicates(table.column_names, file)
    return _plain_columns(table, file)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what the system or a decompressor says of a file into an error that names it."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            what, fix = f"the file cannot be read: {error.strerror}", "check the file and its permissions"
        else:
            what, fix = f"the file is damaged: {str(error).strip()}", "write or download it again"
        raise DataError(what, where=str(file), fix=fix) from None


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """The file's bytes, decompressed by the ending of its name."""
    ending = _compression(file)
    if ending == ".zip":
        with zipfile.ZipFile(file) as archive, archive.open(_only_member(archive, file)) as stream:
            yield stream
    elif ending == ".zst":
        with pa.input_stream(str(file), compression="zstd") as stream:
            yield stream
    else:
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending, open)
        with opener(file, "rb") as stream:
            yield stream


def _only_member(archive: zipfile.ZipFile, file: Path) -> zipfile.ZipInfo:
    members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise DataError(f"the archive holds {len(members)} files", where=str(file), fix="give one table per archive")
    if members[0].flag_bits & 1:
        raise DataError("the archive is encrypted", where=str(file), fix="unpack it, and data.path=FILE")
    return members[0]


# --- text -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    """What the top of a text table says; `num_lines` are the lines before the first row."""

    names: list[str]
    delimiter: str
    num_lines: int
    has_rows: bool


def _read_text(file: Path, data: DataConfig, kind: str) -> pa.Table:
    header = _read_header(file, data, kind)
    columns = dict.fromkeys(header.names, pa.string())
    if not header.has_rows:
        return pa.schema(columns).empty_table()
    convert = pa_csv.ConvertOptions(column_types=columns, strings_can_be_null=False, check_utf8=True)
    parse = pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True)
    encoding = "utf8" if _codec(data) == "utf-8-sig" else data.encoding
    read = pa_csv.ReadOptions(
        encoding=encoding, column_names=header.names, skip_rows=header.num_lines, block_size=BLOCK_BYTES
    )
    try:
        with _open(file) as stream:
            table = pa_csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeError) as error:
        _explain(file, data, header)
        raise DataError(
            f"the table cannot be read: {str(error).splitlines()[0]}",
            where=str(file),
            fix="look at data.delimiter and data.encoding",
        ) from None
    _refuse_zero_bytes(table, file, data, header)
    if len(table) and "\n" in table.column(-1)[-1].as_py():  # perhaps a quote that swallows the rest of the file
        _explain(file, data, header)
    return table


def _codec(data: DataConfig) -> str:
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
def _open_text(file: Path, data: DataConfig) -> Iterator[io.TextIOWrapper]:
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, encoding=_codec(data), newline="")
        try:
            yield text
        finally:
            text.detach()


def _read_header(file: Path, data: DataConfig, kind: str) -> _Header:
    with _open(file) as stream:
        _refuse_other_format(stream.read(4), file, data)
    delimiter = data.delimiter or ("\t" if kind == "tsv" else ",")
    try:
        with _open_text(file, data) as text:
            line = text.readline().removeprefix("\ufeff")
            num_lines = 1
            if excel := EXCEL_DELIMITER.fullmatch(line):
                delimiter = data.delimiter or excel[1]
                line, num_lines = text.readline(), 2
            if "\0" in line:
                raise DataError(
                    "this is not a text table: it holds zero bytes",
                    where=str(file),
                    fix="data.format=parquet, arrow or json, or data.encoding=utf-16",
                )
            reader = csv.reader(itertools.chain([line], text), delimiter=delimiter, strict=True)
            fields = next(reader)
            has_rows = bool(text.read(1))
    except UnicodeError:
        _refuse_bytes(file, data)
        raise
    except csv.Error as error:
        raise DataError(f"the line of column names: {error}", where=str(file), fix="correct its quotes") from None
    if not line.strip():
        raise DataError(
            "the first line is empty; it should name the columns", where=str(file), fix="remove empty lines at the top"
        )
    _refuse_delimiter(line, fields, delimiter, file)
    names = [" ".join(name.splitlines()).strip() or f"column_{index}" for index, name in enumerate(fields, 1)]
    _refuse_duplicates(names, file)
    return _Header(names=names, delimiter=delimiter, num_lines=num_lines - 1 + reader.line_num, has_rows=has_rows)


def _refuse_other_format(head: bytes, file: Path, data: DataConfig) -> None:
    for magic, (what, fix) in OTHER_FORMATS.items():
        if head.startswith(magic):
            raise DataError(f"this is {what}, not a text table", where=str(file), fix=fix)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and _codec(data) == "utf-8-sig":
        raise DataError("the file starts as UTF-16 does, and not UTF-8", where=str(file), fix="data.encoding=utf-16")


def _refuse_delimiter(line: str, fields: list[str], delimiter: str, file: Path) -> None:
    others = [sign for sign in DELIMITERS if sign != delimiter and sign in line]
    if len(fields) > 1 or not others:
        return
    raise DataError(
        f"one column was found, '{_short(line)}': the fields are not parted by {delimiter!r}",
        where=str(file),
        fix=DELIMITERS[max(others, key=line.count)],
    )


def _refuse_duplicates(names: list[str], file: Path) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(names, 1):
        if name in first:
            raise DataError(
                f"two columns are called '{name}' (columns {first[name]} and {index})",
                where=str(file),
                fix="rename one of them",
            )
        first[name] = index


def _refuse_zero_bytes(table: pa.Table, file: Path, data: DataConfig, header: _Header) -> None:
    for name in table.column_names:
        found = pc.index(pc.match_substring(table.column(name), "\0"), True).as_py()
        if found >= 0:
            raise DataError(
                f"column '{name}' holds a zero byte in line {_line_of_row(file, data, header, found)}",
                where=str(file),
                fix="remove zero bytes from the file, or write or download it again",
            )


def _records(file: Path, data: DataConfig, delimiter: str, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The fields of each record, with the number of its first line; empty lines are left out."""
    csv.field_size_limit(sys.maxsize)
    with _open_text(file, data) as text:
        reader = csv.reader(text, delimiter=delimiter, strict=strict)
        line = 1
        try:
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            is_open = "unexpected end" in str(error)
            raise DataError(
                f"line {line}: {'a quote is opened and never closed' if is_open else error}",
                where=str(file),
                fix="correct the line",
            ) from None


def _line_of_row(file: Path, data: DataConfig, header: _Header, row: int) -> int:
    lines = (line for line, _ in _records(file, data, header.delimiter) if line > header.num_lines)
    return next(itertools.islice(lines, row, None))


def _explain(file: Path, data: DataConfig, header: _Header) -> None:
    """Find the first line that cannot be decoded or has too many or too few fields, and name it."""
    _refuse_bytes(file, data)
    for line, fields in _records(file, data, header.delimiter, strict=True):
        if line > header.num_lines and len(fields) != len(header.names):
            raise DataError(
                f"line {line} has {len(fields)} fields, and the header {len(header.names)}: "
                f"'{_short(header.delimiter.join(fields))}'",
                where=str(file),
                fix="correct the line (a field that holds the delimiter needs quotes), or data.delimiter",
            )


def _refuse_bytes(file: Path, data: DataConfig) -> None:
    codec = _codec(data)
    with _open(file) as stream:
        content = stream.read()
    try:
        content.decode(codec)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        name = codec.removesuffix("-sig")
        raise DataError(
            f"line {line} holds the byte 0x{content[error.start]:02x}, which is not {name}",
            where=str(file),
            fix=f"data.encoding={'latin-1' if name == 'utf-8' else 'utf-8'}, or save the table as UTF-8",
        ) from None


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- typed formats ----------------------------------------------------------------------------------------------------


def _read_json(file: Path) -> pa.Table:
    try:
        with _open(file) as stream:
            return pa_json.read_json(stream, read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES))
    except pa.ArrowException as error:
        raise DataError(
            f"this is not a table in JSON lines: {str(error).splitlines()[0]}",
            where=str(file),
            fix="one JSON object a line, and one type per column",
        ) from None


def _read_parquet(file: Path) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read()
    except pa.ArrowException as error:
        raise DataError(
            f"this is not a whole Parquet file: {str(error).splitlines()[0]}",
            where=str(file),
            fix="write it again, or data.format=csv",
        ) from None


def _read_arrow(file: Path) -> pa.Table:
    with file.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    try:
        with pa.memory_map(str(file)) as source:
            return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source).read_all()
    except pa.ArrowException as error:
        raise DataError(
            f"this is not a whole Arrow file: {str(error).splitlines()[0]}",
            where=str(file),
            fix="write it again, or set data.format",
        ) from None


def _plain_columns(table: pa.Table, file: Path) -> pa.Table:
    """Columns as `datasets` takes them: what is encoded (dictionaries, runs, extensions) as what it stands for."""
    columns = {name: _plain_column(table.column(name)) for name in table.column_names}
    for name, column in columns.items():
        try:
            datasets.Features.from_arrow_schema(pa.schema({name: column.type}))
        except ValueError:
            raise DataError(
                f"column '{name}' holds {column.type}, which cannot be read",
                where=str(file),
                fix="remove the column, or store it as numbers, text or dates",
            ) from None
    return pa.table(columns)


def _plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return column.cast(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_run_end_encoded(kind):
        return pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], type=kind.value_type)
    if pa.types.is_map(kind):
        return column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column
