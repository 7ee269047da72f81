"""The pieces of work of a large table: row groups of a Parquet file, stretches of a text file, or other files whole."""

import dataclasses
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nn_train.errors import DataError
from nn_train.pulse import pulse
from nn_train.schema import Split
from nn_train.settings import Config, DataConfig
from nn_train.table_files import (
    TEXT_FORMATS,
    file_format,
    find_files,
    input_paths,
    num_bytes,
    plain_column,
    readable,
    reason,
    refuse_damage,
    refuse_duplicates,
    refuse_other_columns,
)
from nn_train.table_stream import read_pieces, read_span
from nn_train.table_text import Span
from nn_train.text_spans import find_spans

UNIT_ROWS = 1 << 19  # a unit of a Parquet file has so many rows or a few more, one of a text file has as many
PIECE_ROWS = 1 << 16  # that are in memory at a time; UNIT_ROWS are a whole number of pieces
UNIT_BYTES = 1 << 26  # a text file that is no longer is one unit
OF_FILES: tuple[Split, ...] = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows that one process reads together.

    `part_rows` are the rows of each row group of a Parquet file from `first_part` on. It is None for another format,
    whose rows are those of `span`, where their place in a text file is known, or else those from `first_row` on,
    `most_rows` of them or all that are left. `split` is that of a table of its own (split.method=files).
    """

    number: int
    file: Path
    file_number: int
    split: Split | None
    first_part: int = 0
    first_row: int = 0  # in its file
    part_rows: tuple[int, ...] | None = None
    most_rows: int | None = None
    span: Span | None = None

    @property
    def num_rows(self) -> int | None:
        """The rows, where they are counted before they are read."""
        if self.span is not None:
            return self.span.num_rows
        return None if self.part_rows is None else sum(self.part_rows)

    @property
    def parts(self) -> list[int]:
        """What of a unit can be damaged by itself: its row groups; of another format it is one part."""
        return [0] if self.part_rows is None else [self.first_part + place for place in range(len(self.part_rows))]

    def row_of(self, part: int) -> int:
        """The number of a part's first row in the file."""
        return self.first_row + sum((self.part_rows or ())[: part - self.first_part])

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self) | {"file": str(self.file)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Unit":
        """Rebuild what `to_json` wrote."""
        rows, span = values["part_rows"], values["span"]
        own: dict[str, Any] = {
            "file": Path(values["file"]),
            "part_rows": None if rows is None else tuple(rows),
            "span": None if span is None else Span(*span),
        }
        return cls(**values | own)


def plan_units(config: Config) -> list[Unit]:
    """The units of all tables of a run, in their order; `data.max_rows` ends them where rows are counted.

    Raises:
        DataError: a file cannot be read, or its columns are not those of the first one.
    """
    units: list[Unit] = []
    first: pa.Schema | None = None
    file_number = 0
    for (key, path), split in zip(input_paths(config), OF_FILES, strict=False):
        for file in find_files(path, key=key):
            whole = Unit(
                number=len(units),
                file=file,
                file_number=file_number,
                split=split if config.split.method == "files" else None,
            )
            kind = file_format(file, config.data)
            if kind == "parquet":
                metadata, schema = _read_footer(file)
                first = first or schema
                refuse_other_columns(schema, first, file)
                units += _row_groups(metadata, whole)
            elif kind in TEXT_FORMATS:
                units += _stretches(whole, config.data, kind)
            else:
                units.append(whole)
            file_number += 1
    return units


def _read_footer(file: Path) -> tuple[Any, pa.Schema]:
    try:
        with readable(file), pq.ParquetFile(file) as parquet:
            refuse_duplicates(parquet.schema_arrow.names, file)
            return parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"this is not a whole Parquet file: its end cannot be read: {reason(error)}",
            where=str(file),
            fix="write or copy it again, or take it out of the folder",
        ) from None


def _row_groups(metadata: Any, whole: Unit) -> Iterator[Unit]:
    """A Parquet file in units of neighbouring row groups."""
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    number, start, first_row = whole.number, 0, 0
    for group in range(len(sizes)):
        rows = tuple(sizes[start : group + 1])
        if sum(rows) >= UNIT_ROWS or group + 1 == len(sizes):
            yield dataclasses.replace(whole, number=number, first_part=start, first_row=first_row, part_rows=rows)
            number, start, first_row = number + 1, group + 1, first_row + sum(rows)


def _stretches(whole: Unit, data: DataConfig, kind: str) -> Iterator[Unit]:
    """A text file in stretches of rows, each with its span where those can be told.

    Where they cannot they are as many as the file's length lets expect, and the last one has what is left.
    """
    size, number = num_bytes(whole.file), 1
    spans: list[Span] = []
    if size > UNIT_BYTES:
        with suppress(DataError), readable(whole.file):  # it is met again, and said, where the rows are read
            spans = find_spans(whole.file, data, kind, num_rows=UNIT_ROWS)
            if not spans:
                head = next(read_pieces([whole.file], data, num_rows=PIECE_ROWS))
                number = max(1, round(size / row_bytes(head) / UNIT_ROWS))
    for place, span in enumerate(spans):
        yield dataclasses.replace(whole, number=whole.number + place, first_row=span.first_row, span=span)
    for place in range(0 if spans else number):
        yield dataclasses.replace(
            whole,
            number=whole.number + place,
            first_row=place * UNIT_ROWS,
            most_rows=UNIT_ROWS if place + 1 < number else None,
        )


def row_bytes(rows: pa.Table) -> float:
    """About what a row takes in a file that is no Parquet."""
    return max(1.0, rows.nbytes / max(len(rows), 1) * 0.7)


class ShardError(DataError):
    """A part of a table that cannot be read."""


class PartReader:
    """Reads the parts of units.

    Stretches of a text file that have no span cost one pass over it where they are asked for in their order. What comes
    after a damaged place of such a file cannot be read: it is the error that was met there.
    """

    def __init__(self, data: DataConfig):
        self.data = data
        self._file: Path | None = None
        self._next_row = 0
        self._failure: DataError | None = None

    def read(self, unit: Unit, part: int, *, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The rows of a part in pieces, in their order.

        Raises:
            ShardError: naming the file, and the row group where there is one.
        """
        try:
            if unit.part_rows is not None:
                yield from _read_group(unit, part, columns)
                return
            for piece in self._read_stretch(unit) if unit.span is None else self._read_span(unit.file, unit.span):
                yield piece if columns is None else piece.select(columns)
        except DataError as error:
            fix = f"{error.fix}; or data.bad_shards=skip leaves such parts of a table out"
            raise ShardError(error.what, where=error.where, fix=fix) from None

    def _read_stretch(self, unit: Unit) -> Iterator[pa.Table]:
        if self._file != unit.file or self._next_row > unit.first_row:
            self._file, self._next_row, self._failure = unit.file, 0, None
            self._pieces = read_pieces([unit.file], self.data, num_rows=PIECE_ROWS)
        while unit.most_rows is None or self._next_row < unit.first_row + unit.most_rows:
            row, piece = self._next_row, self._next_piece()
            if piece is None:
                return
            if row >= unit.first_row:
                yield piece

    def _read_span(self, file: Path, span: Span) -> Iterator[pa.Table]:
        num_rows = 0
        for piece in read_span(file, self.data, span, num_rows=PIECE_ROWS):
            pulse.beat()
            num_rows += len(piece)
            yield piece
        if num_rows != span.num_rows:
            raise DataError(
                f"there are {num_rows:,} rows where {span.num_rows:,} were counted from row {span.first_row + 1:,} on",
                where=str(file),
                fix="do not write to the file while it is read, or data.preparation=whole",
            )

    def _next_piece(self) -> pa.Table | None:
        pulse.beat()
        if self._failure is not None:
            raise self._failure
        try:
            piece = next(self._pieces, None)
        except DataError as error:
            self._failure = error
            raise
        self._next_row += 0 if piece is None else len(piece)
        return piece


def _read_group(unit: Unit, group: int, columns: list[str] | None) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(unit.file, memory_map=True) as parquet:
            table = parquet.read_row_group(group, columns=columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"row group {group} cannot be read: {reason(error)}",
            where=str(unit.file),
            fix="write or copy the file again",
        ) from None
    refuse_damage(table, unit.file)
    table = pa.table({name: plain_column(table.column(name)) for name in table.column_names})
    for start in range(0, len(table), PIECE_ROWS):
        yield table.slice(start, PIECE_ROWS)


def num_cells(files: list[Path], data: DataConfig) -> float:
    """Values of a table, as far as they are told without reading it: in text one has about eight bytes.

    Raises:
        DataError: a Parquet file's end cannot be read.
    """
    cells = 0.0
    for file in files:
        if file_format(file, data) == "parquet":
            metadata, _ = _read_footer(file)
            cells += metadata.num_rows * metadata.num_columns
        else:
            cells += num_bytes(file) / 8
    return cells
