"""Rows of a Parquet file that is larger than memory: one run of rows after another, or some by their places."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 65_536


def row_batches(source: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """A file's rows, some at a time.

    Row group by row group: asked for all of them at once, Arrow keeps what it has read of the file until its end.
    """
    for place in range(source.num_row_groups):
        yield from source.iter_batches(batch_size=BATCH_ROWS, row_groups=[place], columns=columns)


class RowReader:
    """Hands out a file's rows in order, as many at a time as are asked for."""

    def __init__(self, file: Path):
        self._source = pq.ParquetFile(file)
        self._batches = row_batches(self._source)
        self._rest = self._source.schema_arrow.empty_table()

    def take(self, num_rows: int) -> pa.Table:
        """The next rows."""
        parts, missing = [self._rest], num_rows - len(self._rest)
        while missing > 0:
            parts.append(pa.Table.from_batches([next(self._batches)]))
            missing -= len(parts[-1])
        table = pa.concat_tables(parts)
        self._rest = table.slice(num_rows)
        return table.slice(0, num_rows)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def rows_at_places(file: Path, places: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows at `places` (R,), in their order, with some of the columns."""
    order = np.argsort(places, kind="stable")
    parts = list(_found(file, places[order], columns))
    return pa.concat_tables(parts).take(np.argsort(order)).combine_chunks()


def _found(file: Path, places: np.ndarray, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    start = 0
    with pq.ParquetFile(file) as source:
        kept = None if columns is None else list(columns)
        yield source.schema_arrow.empty_table().select(source.schema_arrow.names if kept is None else kept)
        for batch in row_batches(source, kept):
            first, last = np.searchsorted(places, (start, start + len(batch)))
            if last > first:
                found = pa.Table.from_batches([batch]).select(batch.schema.names if kept is None else kept)
                yield found.take(places[first:last] - start)
            start += len(batch)
