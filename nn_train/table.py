"""From files to rows: one table as a `datasets.Dataset`, or an error that names the file and the row.

Text tables are read with every column as text, so that what a value means is decided in one
place (`inference`), and alike in every shard.
"""

import bz2
import csv
import difflib
import glob
import gzip
import hashlib
import io
import lzma
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
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
DELIMITERS = ",;\t|"
DELIMITER_WORDS = {"\t": "'\\t'", ";": "';'", "|": "'|'", ",": "','"}


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
    names = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1, cutoff=0.5)
    hint = f"; near it lies {near[0]}" if near else "" if names else f"; there is no folder {place.parent}"
    raise DataError(f"no such file{hint}", where=str(place), fix=f"{key}=FILE, FOLDER or 'FOLDER/*.csv'")


def _is_table(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and _suffix(path) in FORMATS


def _suffix(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    return Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSIONS else path.suffix.lower()


def fingerprint(files: list[Path]) -> str:
    """A digest of the files' content and kinds, in their order; where they lie does not count.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{''.join(file.suffixes[-2:])}\0{file.stat().st_size}\0".encode())
        with _readable(file), file.open("rb") as stream:
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
            is_text = _format(file, data) in TEXT_FORMATS
            return f"line {row + 2} of {file.name}" if is_text else f"row {row + 1} of {file.name}"
        row -= num_rows
    return f"row {row + 1} of the tables that follow"


def _like_first(part: pa.Table, first: pa.Table, file: Path) -> pa.Table:
    for name in first.column_names:
        if name not in part.column_names:
            raise DataError(
                f"column '{name}' of the first shard is missing",
                where=str(file),
                fix="give every shard the same columns",
            )
    for name in part.column_names:
        if name not in first.column_names:
            raise DataError(
                f"column '{name}' is not in the first shard", where=str(file), fix="give every shard the same columns"
            )
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
            fix="data.format=csv, tsv, parquet, arrow or json",
        )
    return FORMATS[_suffix(file)]


def _read_file(file: Path, data: DataConfig) -> pa.Table:
    kind = _format(file, data)
    with _readable(file):
        if not file.stat().st_size:
            raise DataError("the file is empty", where=str(file), fix="data.path=FILE with a header and rows")
        if kind in TEXT_FORMATS:
            table = _read_text(file, data, delimiter=data.delimiter or ("\t" if kind == "tsv" else ","))
        elif kind == "json":
            table = _read_json(file)
        elif kind == "parquet":
            table = _read_parquet(file)
        else:
            table = _read_arrow(file)
    _refuse_duplicates(table.column_names, file)
    return table


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what the system or a decompressor says of a file into an error that names it."""
    try:
        yield
    except (gzip.BadGzipFile, lzma.LZMAError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"the compressed file is damaged: {error}", where=str(file), fix="write or download it again"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"the file cannot be read: {reason}", where=str(file), fix="check the file and its permissions"
        ) from None


@contextmanager
def _open(file: Path) -> Iterator[Any]:
    """The file's bytes, decompressed by the ending of its name."""
    ending = file.suffix.lower()
    if ending == ".zip":
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if len(members) != 1:
                raise DataError(
                    f"the archive holds {len(members)} files", where=str(file), fix="give one table per archive"
                )
            with archive.open(members[0]) as stream:
                yield stream
    elif ending == ".zst":
        with pa.input_stream(str(file), compression="zstd") as stream:
            yield stream
    else:
        opener = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(ending, open)
        with opener(file, "rb") as stream:
            yield stream


def _read_text(file: Path, data: DataConfig, *, delimiter: str) -> pa.Table:
    names = _read_header(file, data, delimiter)
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, check_utf8=True
    )
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pa_csv.ReadOptions(encoding=_encoding(data), column_names=names, skip_rows=1)
    try:
        with _open(file) as stream:
            return pa_csv.read_csv(stream, read_options=read, parse_options=parse, convert_options=convert)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _explain(file, data, delimiter, num_columns=len(names))
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the table cannot be read: {reason}", where=str(file), fix="look at data.delimiter and data.encoding"
        ) from None


def _encoding(data: DataConfig) -> str:
    try:
        "".encode(data.encoding)
    except LookupError:
        raise DataError(
            f"data.encoding={data.encoding} is not a known encoding",
            fix="data.encoding=utf-8, latin-1, cp1252, utf-16, ...",
        ) from None
    return "utf8" if data.encoding.lower() in ("utf-8", "utf8") else data.encoding


def _read_header(file: Path, data: DataConfig, delimiter: str) -> list[str]:
    _encoding(data)
    with _open(file) as stream:
        head = stream.read(4)
        if head == b"PAR1":
            raise DataError("this is a Parquet file", where=str(file), fix="data.format=parquet")
    with _open(file) as stream:
        text = io.TextIOWrapper(
            stream, encoding="utf-8-sig" if _encoding(data) == "utf8" else data.encoding, newline=""
        )
        try:
            line = text.readline()
        except UnicodeDecodeError:
            _explain(file, data, delimiter, num_columns=0)
            raise
        finally:
            text.detach()
    if "\0" in line:
        raise DataError(
            "this is not a text table: it holds zero bytes",
            where=str(file),
            fix="data.format=parquet, arrow or json, or data.encoding=utf-16",
        )
    if not line.strip():
        raise DataError(
            "the first line is empty; it should name the columns",
            where=str(file),
            fix="remove the empty lines at the top",
        )
    names = next(csv.reader([line], delimiter=delimiter))
    others = [sign for sign in DELIMITERS if sign != delimiter and sign in line]
    if len(names) == 1 and others:
        most = max(others, key=line.count)
        raise DataError(
            f"one column was found, '{_short(line)}': the fields are not parted by {DELIMITER_WORDS.get(delimiter, delimiter)}",
            where=str(file),
            fix=f"data.delimiter={DELIMITER_WORDS[most] if most != chr(9) else chr(34) + chr(92) + 't' + chr(34)}",
        )
    names = [name.strip() or f"column_{index}" for index, name in enumerate(names, 1)]
    _refuse_duplicates(names, file)
    return names


def _refuse_duplicates(names: list[str], file: Path) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(
                f"two columns are called '{name}' (columns {names.index(name) + 1} and {index + 1})",
                where=str(file),
                fix="rename one of them",
            )


def _explain(file: Path, data: DataConfig, delimiter: str, *, num_columns: int) -> None:
    """Find the first line that cannot be decoded or has too many or too few fields, and name it."""
    encoding = "utf-8-sig" if _encoding(data) == "utf8" else data.encoding
    with _open(file) as stream:
        _explain_bytes(stream, file, encoding)
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, encoding=encoding, newline="")
        reader = csv.reader(text, delimiter=delimiter)
        try:
            for fields in reader:
                if fields and num_columns and len(fields) != num_columns:
                    raise DataError(
                        f"line {reader.line_num} has {len(fields)} fields, and the header {num_columns}: '{_short(delimiter.join(fields))}'",
                        where=str(file),
                        fix="mend the line (a field that holds the delimiter needs quotes), or data.delimiter",
                    )
        except csv.Error as error:
            raise DataError(f"line {reader.line_num}: {error}", where=str(file), fix="mend the line") from None
        finally:
            text.detach()


def _explain_bytes(stream: IO[bytes], file: Path, encoding: str) -> None:
    if encoding not in ("utf-8-sig", "ascii", "latin-1", "cp1252"):  # a line of another is not a line of bytes
        try:
            stream.read().decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"byte {error.start} is not {encoding}", where=str(file), fix="another data.encoding"
            ) from None
        return
    for number, line in enumerate(io.BufferedReader(stream) if not hasattr(stream, "__iter__") else stream, 1):  # type: ignore[arg-type]
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            wrong = line[error.start]
            other = "data.encoding=latin-1" if encoding == "utf-8-sig" else "data.encoding=utf-8"
            name = encoding.removesuffix("-sig")
            raise DataError(
                f"line {number} holds the byte 0x{wrong:02x}, which is not {name}",
                where=str(file),
                fix=f"{other}, or save the table as UTF-8",
            ) from None


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_json(file: Path) -> pa.Table:
    try:
        with _open(file) as stream:
            table = pa_json.read_json(stream)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"this is not a table in JSON lines: {reason}",
            where=str(file),
            fix="one JSON object a line, numbers and texts in it",
        ) from None
    return table


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, use_threads=True, partitioning=None)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"this is not a whole Parquet file: {str(error).splitlines()[0]}",
            where=str(file),
            fix="write it again, or data.format=csv",
        ) from None


def _read_arrow(file: Path) -> pa.Table:
    for opener in (pa.ipc.open_file, pa.ipc.open_stream):
        try:
            with pa.memory_map(str(file)) as source:
                return opener(source).read_all()
        except pa.ArrowInvalid:
            continue
    raise DataError("this is not a whole Arrow file", where=str(file), fix="write it again, or set data.format")
