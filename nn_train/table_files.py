"""The files of a table: which ones a path means, what they are, and their bytes."""

import bz2
import difflib
import glob
import gzip
import hashlib
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from nn_train.errors import DataError
from nn_train.settings import Config, DataConfig

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
    return not any(part.startswith((".", "_")) for part in path.parts) and suffix_of(path) in FORMATS


def compression_of(path: Path) -> str:
    """The ending that tells a compression, or nothing."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def suffix_of(path: Path) -> str:
    """The ending that tells the format, without that of a compression."""
    return Path(path.stem).suffix.lower() if compression_of(path) else path.suffix.lower()


def fingerprint(files: list[Path]) -> str:
    """A digest of the files' content and formats, in their order; where they lie does not count.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with readable(file), file.open("rb") as stream:
            digest.update(f"{suffix_of(file)}{compression_of(file)}\0{file.stat().st_size}\0".encode())
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def cache_dir(data: DataConfig) -> Path:
    """Where packed rows are kept: data.cache_dir, else the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data.cache_dir or f"{home}/nn_train").expanduser().absolute()


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
    except (zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            what, fix = f"the file cannot be read: {error.strerror}", "check the file and its permissions"
        else:
            what, fix = f"the file is damaged: {str(error).strip()}", "write or download it again"
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
    members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise DataError(f"the archive holds {len(members)} files", where=str(file), fix="give one table per archive")
    if members[0].flag_bits & 1:
        raise DataError("the archive is encrypted", where=str(file), fix="unpack it, and data.path=FILE")
    return members[0]


def refuse_duplicates(names: list[str], file: Path) -> None:
    """Raise DataError where two columns have one name."""
    first: dict[str, int] = {}
    for index, name in enumerate(names, 1):
        if name in first:
            raise DataError(
                f"two columns are called '{name}' (columns {first[name]} and {index})",
                where=str(file),
                fix="rename one of them",
            )
        first[name] = index
