"""A table in pieces of so many rows, in order, of any size and format: memory holds a few pieces and no more."""

import io
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from nn_train.errors import DataError, short
from nn_train.settings import DataConfig
from nn_train.table_files import (
    TEXT_FORMATS,
    file_format,
    open_arrow,
    open_file,
    plain_column,
    readable,
    reason,
    refuse_damage,
    refuse_duplicates,
)
from nn_train.table_text import Span, stream_text

T = TypeVar("T")
JSON_BLOCK_BYTES = 1 << 23


def read_pieces(files: Sequence[Path], data: DataConfig, *, num_rows: int) -> Iterator[pa.Table]:
    """Pieces of `num_rows` rows (the last one of a file has fewer), `data.max_rows` in all at most.

    Columns are as the file has them: text in CSV and TSV. A file without rows gives one empty piece.

    Raises:
        DataError: naming the file, and the line or column where there is one.
    """
    left = data.max_rows
    for file in files:
        with readable(file):
            for piece in _of_size(_read_file(file, data), num_rows):
                yield piece if left is None else piece.slice(0, left)
                left = None if left is None else left - len(piece)
                if left is not None and left <= 0:
                    return


def read_span(file: Path, data: DataConfig, span: Span, *, num_rows: int) -> Iterator[pa.Table]:
    """The rows of a span of a text file, in such pieces.

    Raises:
        DataError: naming the line that cannot be read.
    """
    with readable(file):
        yield from _of_size(stream_text(file, data, file_format(file, data), span=span), num_rows)


def ahead(items: Iterable[T], *, depth: int = 2) -> Generator[T, None, None]:
    """The same items, made by a thread that is up to `depth` of them ahead; an error comes where it was met."""
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    is_over = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not is_over.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:  # it is raised where the items are used
            put(None, error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_over.set()
        thread.join()


def _of_size(parts: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The rows of `parts` in tables of `num_rows`, the last of what is left; one empty table where there are none."""
    rest: Any = None
    found = False
    for part in parts:
        try:
            rest = part if rest is None else pa.concat_tables([rest, part], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # JSON: a column that is one thing here and another there
            yield rest
            rest = part
        while len(rest) >= num_rows:
            found = True
            yield rest.slice(0, num_rows)
            rest = rest.slice(num_rows)
    if rest is not None and (len(rest) or not found):
        yield rest


def _read_file(file: Path, data: DataConfig) -> Iterator[pa.Table]:
    kind = file_format(file, data)
    if not file.stat().st_size:
        raise DataError("the file is empty", where=str(file), fix="give a file with a header and rows")
    if kind in TEXT_FORMATS:
        yield from stream_text(file, data, kind)
        return
    read: Callable[[Path], Iterator[pa.Table]] = {
        "json": _read_json,
        "parquet": _read_parquet,
        "arrow": _read_arrow,
    }[kind]
    for part in read(file):
        refuse_damage(part, file)
        refuse_duplicates(part.column_names, file)
        yield pa.table({name: plain_column(part.column(name)) for name in part.column_names})


def _read_parquet(file: Path) -> Iterator[pa.Table]:
    place = "its end"
    try:
        with pq.ParquetFile(file) as parquet:
            yield parquet.schema_arrow.empty_table()
            for group in range(parquet.num_row_groups):
                place = f"row group {group}"
                for batch in parquet.iter_batches(row_groups=[group]):
                    yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        raise DataError(
            f"this is not a whole Parquet file: {place} cannot be read: {reason(error)}",
            where=str(file),
            fix="write or copy it again, or set data.format",
        ) from None


def _read_arrow(file: Path) -> Iterator[pa.Table]:
    with open_arrow(file) as reader:
        yield reader.schema.empty_table()
        has_places = isinstance(reader, pa.ipc.RecordBatchFileReader)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if has_places else reader:
            yield pa.Table.from_batches([batch])


def _read_json(file: Path) -> Iterator[pa.Table]:
    """JSON lines in blocks of whole lines: the types of one block need not be those of the next."""
    with open_file(file) as stream:
        found = False
        for number in itertools.count(1):
            block = stream.read(JSON_BLOCK_BYTES) + stream.readline()
            if not block and not found:
                raise DataError("the file holds no rows", where=str(file), fix="give it rows")
            if not block:
                return
            if not block.strip():
                continue
            try:
                found = True
                options = pa_json.ReadOptions(block_size=len(block) + 1)
                yield pa_json.read_json(io.BytesIO(block), read_options=options)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise DataError(
                    f"this is not a table in JSON lines (block {number} of 8 MiB): {short(reason(error), most=150)}",
                    where=str(file),
                    fix="one JSON object a line, and one type per column",
                ) from None
