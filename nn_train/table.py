"""From files to rows: one table as a `datasets.Dataset`, or an error that names the file and the row."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from nn_train.errors import DataError, short
from nn_train.settings import DataConfig
from nn_train.table_files import (
    TEXT_FORMATS,
    file_format,
    find_files,
    open_arrow,
    open_file,
    plain_column,
    readable,
    reason,
    refuse_damage,
    refuse_duplicates,
    refuse_other_columns,
)
from nn_train.table_text import BLOCK_BYTES, line_of_row, read_header, read_text


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
            refuse_other_columns(part.schema, parts[0].schema, file)
            part = part.select(parts[0].column_names)
        parts.append(part)
        num_rows += len(part)
        if data.max_rows is not None and num_rows >= data.max_rows:
            break
    table = _join(parts, path or data.path)
    return datasets.Dataset(table if data.max_rows is None else table.slice(0, data.max_rows))


_NAMES: ContextVar[Callable[[int], str] | None] = ContextVar("names of rows", default=None)


@contextmanager
def rows_named(name: Callable[[int], str]) -> Iterator[None]:
    """What `name_row` says while a part of a table is looked at: its rows are not those of the whole."""
    token = _NAMES.set(name)
    try:
        yield
    finally:
        _NAMES.reset(token)


def name_row(data: DataConfig, row: int) -> str:
    """Where a row (from 0) of the table stands, for a person: `line 18 of table.csv`."""
    if (name := _NAMES.get()) is not None:
        return name(row)
    for file in find_files(data.path):
        num_rows = len(_read_file(file, data))
        if row < num_rows:
            kind = file_format(file, data)
            if kind not in TEXT_FORMATS:
                return f"row {row + 1} of {file.name}"
            return f"line {line_of_row(file, data, read_header(file, data, kind), row)} of {file.name}"
        row -= num_rows
    return f"row {row + 1} of the tables that follow"


def _join(parts: list[pa.Table], path: str) -> pa.Table:
    table = pa.concat_tables(parts, promote_options="permissive") if len(parts) > 1 else parts[0]
    if not len(table):
        raise DataError("the table has a header and no rows", where=path, fix="give it rows")
    return table


def _read_file(file: Path, data: DataConfig) -> pa.Table:
    kind = file_format(file, data)
    with readable(file):
        if not file.stat().st_size:
            raise DataError("the file is empty", where=str(file), fix="data.path=FILE with a header and rows")
        if kind in TEXT_FORMATS:
            return read_text(file, data, kind)
        table = {"json": _read_json, "parquet": _read_parquet, "arrow": _read_arrow}[kind](file)
        refuse_damage(table, file)
    refuse_duplicates(table.column_names, file)
    return _plain_columns(table, file)


def _read_json(file: Path) -> pa.Table:
    try:
        with open_file(file) as stream:
            return pa_json.read_json(stream, read_options=pa_json.ReadOptions(block_size=BLOCK_BYTES))
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of the names of columns
        raise DataError(
            f"this is not a table in JSON lines: {reason(error)}",
            where=str(file),
            fix="one JSON object a line, and one type per column",
        ) from None


def _read_parquet(file: Path) -> pa.Table:
    try:
        with pq.ParquetFile(file) as parquet:
            return parquet.read()
    except (pa.ArrowException, UnicodeDecodeError) as error:  # the latter of the names of columns
        raise DataError(
            f"this is not a whole Parquet file: {reason(error)}",
            where=str(file),
            fix="write it again, or data.format=csv",
        ) from None


def _read_arrow(file: Path) -> pa.Table:
    with open_arrow(file) as reader:
        return reader.read_all()


def _plain_columns(table: pa.Table, file: Path) -> pa.Table:
    """Columns as `datasets` takes them: what is encoded (dictionaries, runs, extensions) as what it stands for."""
    columns = {name: plain_column(table.column(name)) for name in table.column_names}
    for name, column in columns.items():
        try:
            datasets.Features.from_arrow_schema(pa.schema({name: column.type}))
        except ValueError:
            raise DataError(
                f"column '{short(name)}' holds {short(str(column.type))}, which cannot be read",
                where=str(file),
                fix="remove the column, or store it as numbers, text or dates",
            ) from None
    return pa.table(columns)
