"""The files of a table: which ones a path means, what they are, and their bytes."""

import bz2
import difflib
import glob
import gzip
import hashlib
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from nn_train.errors import DataError, short
from nn_train.pulse import pulse
from nn_train.settings import Config, DataConfig
from nn_train.together import acquire

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
LARGE_FILE_BYTES = 64 << 20
PACKED = 5  # times as long is a table that is compressed, about


def input_paths(config: Config) -> list[tuple[str, str]]:
    """The setting and the path of each table of a run."""
    paths = [("data.path", config.data.path)]
    if config.split.method == "files":
        paths += [("split.val_path", config.split.val_path or ""), ("split.test_path", config.split.test_path or "")]
    return paths


def find_files(path: str, *, key: str = "data.path") -> list[Path]:
    """The files that a path, folder or glob means, in sorted order.

    Raises:
        DataError: there are none; a name that is near is suggested.
    """
    place = Path(os.path.expanduser(path))
    if os.path.isfile(place):  # pathlib would raise an error for a name that is too long
        return [place]
    if os.path.isdir(place):
        found = [file for file in sorted(place.rglob("*")) if file.is_file() and _is_table(file.relative_to(place))]
        if not found:
            raise DataError("the folder holds no tables", where=str(place), fix=f"{key}=FILE, FOLDER or 'FOLDER/*.csv'")
        return found
    found = sorted(Path(name) for name in glob.glob(str(place), recursive=True) if os.path.isfile(name))
    if found:
        return found
    hint = f"; there is no folder {place.parent}"
    if os.path.isdir(place.parent):
        near = difflib.get_close_matches(place.name, [file.name for file in place.parent.iterdir()], n=1, cutoff=0.5)
        hint = f"; near it lies {near[0]}" if near else ""
    raise DataError(f"no such file{hint}", where=str(place), fix=f"{key}=FILE, FOLDER or 'FOLDER/*.csv'")


def _is_table(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and suffix_of(path) in FORMATS


def compression_of(path: Path) -> str:
    """The ending that tells a compression, or nothing."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def num_bytes(path: Path) -> int:
    """The length of a file, about what it will be unpacked where it is compressed."""
    return path.stat().st_size * (PACKED if compression_of(path) else 1)


def suffix_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    return Path(path.stem).suffix.lower() if compression_of(path) else path.suffix.lower()


def fingerprint(files: list[Path], known: Path | None = None) -> str:
    """A digest of the files' content and formats, in their order; where they lie does not count.

    With a folder `known` large files are read once: what was found of one is kept there with its size and its time of
    change, and holds while both are the same.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with readable(file):
            size = file.stat().st_size
            digest.update(f"{suffix_of(file)}{compression_of(file)}\0{size}\0".encode())
            if size < LARGE_FILE_BYTES:
                _digest_into(digest, file)
            else:
                digest.update(_read_digest(file) if known is None else _known_digest(file, known))
    return digest.hexdigest()


def _digest_into(digest: "hashlib.blake2b", file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            pulse.beat()
            digest.update(block)


def _read_digest(file: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    _digest_into(digest, file)
    return digest.digest()


def _known_digest(file: Path, known: Path) -> bytes:
    name = hashlib.blake2b(os.fsencode(file.absolute()), digest_size=12).hexdigest()
    known.mkdir(parents=True, exist_ok=True)
    note = known / f"{name}.json"
    with acquire(FileLock(known / f"{name}.lock")):  # processes that start together read it once
        stamp = [file.stat().st_size, file.stat().st_mtime_ns]
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(note.read_text(encoding="utf-8"))
            if found["stamp"] == stamp:
                return bytes.fromhex(found["digest"])
        digest = _read_digest(file)
        temporary = note.with_suffix(".tmp")  # the lock makes it this process's own
        temporary.write_text(json.dumps({"stamp": stamp, "digest": digest.hex()}), encoding="utf-8")
        os.replace(temporary, note)
    return digest


def cache_dir(data: DataConfig) -> Path:
    """Where packed rows are kept: data.cache_dir, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(data.cache_dir or f"{home}/nn_train")).absolute()


def file_format(file: Path, data: DataConfig) -> str:
    """The file's format, by data.format or else by its name. Raises DataError if neither tells it."""
    if data.format != "auto":
        return data.format
    if suffix_of(file) not in FORMATS:
        raise DataError(
            f"the format of '{file.name}' is not known from its name",
            where=str(file),
            fix="data.format=csv, tsv, parquet, arrow or json; another format must be saved as one of these",
        )
    return FORMATS[suffix_of(file)]


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Turn what the system or a decompressor says of a file into an error that names it."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.strerror:
            what, fix = f"the file cannot be read: {error.strerror}", "check the file and its permissions"
        else:
            what, fix = f"the file is damaged: {reason(error)}", "write or download it again"
        raise DataError(what, where=str(file), fix=fix) from None


@contextmanager
def open_file(file: Path) -> Iterator[Any]:
    """The file's bytes, decompressed by the ending of its name."""
    ending = compression_of(file)
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
    members = [m for m in archive.infolist() if not m.filename.endswith("/") and not m.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise DataError(f"the archive holds {len(members)} files", where=str(file), fix="give one table per archive")
    if members[0].flag_bits & 1:
        raise DataError("the archive is encrypted", where=str(file), fix="unpack it, and data.path=FILE")
    return members[0]


def reason(error: Exception) -> str:
    """The first line of what a library says of a file."""
    return short(next(iter(str(error).strip().splitlines()), type(error).__name__), most=200)


def refuse_duplicates(names: list[str], file: Path) -> None:
    """Raise DataError where two columns have one name."""
    first: dict[str, int] = {}
    for index, name in enumerate(names, 1):
        if name in first:
            raise DataError(
                f"two columns are called '{short(name)}' (columns {first[name]} and {index})",
                where=str(file),
                fix="rename one of them",
            )
        first[name] = index


def refuse_other_columns(schema: pa.Schema, first: pa.Schema, file: Path) -> None:
    """Raise DataError where a shard has not the columns of the first one, or types that do not go with theirs."""
    fix = "give every shard the same columns"
    for name in first.names:
        if name not in schema.names:
            raise DataError(f"column '{short(name)}' of the first shard is missing", where=str(file), fix=fix)
    for name in schema.names:
        if name not in first.names:
            raise DataError(f"column '{short(name)}' is not in the first shard", where=str(file), fix=fix)
    for name in first.names:
        kinds = [first.field(name).type, schema.field(name).type]
        try:
            pa.unify_schemas([pa.schema({name: kind}) for kind in kinds], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            raise DataError(
                f"column '{short(name)}' holds {short(str(kinds[1]))}, and {short(str(kinds[0]))} in the first shard",
                where=str(file),
                fix="give the column one type in every shard",
            ) from None


@contextmanager
def open_arrow(file: Path) -> Iterator[Any]:
    """Arrow's reader of an IPC file or stream.

    Raises:
        DataError: it is none, or cut off.
    """
    with file.open("rb") as stream:
        is_file = stream.read(6) == b"ARROW1"
    try:
        with pa.memory_map(str(file)) as source:
            yield (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of the names of columns
        raise DataError(
            f"this is not a whole Arrow file: {reason(error)}",
            where=str(file),
            fix="write it again, or set data.format",
        ) from None


def refuse_damage(table: pa.Table, file: Path) -> None:
    """Look at what Arrow takes on trust, since what lies beside it would be read: offsets, codes, text that is none."""
    fix = "write the file again, with text in UTF-8, or remove the column"
    for index in range(table.num_columns):
        name = str(index + 1)
        try:
            name = table.field(index).name
            if "\0" in name:
                raise UnicodeError("it holds a zero byte")
            table.column(index).validate(full=True)
        except UnicodeError as error:
            raise DataError(
                f"the name of column {index + 1} is damaged: {reason(error)}", where=str(file), fix=fix
            ) from None
        except pa.ArrowException as error:
            raise DataError(f"column '{short(name)}' is damaged: {reason(error)}", where=str(file), fix=fix) from None


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """What is encoded (dictionaries, runs, extensions) as what it stands for."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return column.cast(kind.storage_type)
    if pa.types.is_string_view(kind):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary())
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return column.cast(pa.large_list(kind.value_type))
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_run_end_encoded(kind):
        return pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], type=kind.value_type)
    if pa.types.is_map(kind):
        return column.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column
