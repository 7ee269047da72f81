"""Rows to be predicted: read by the run's schema, whatever their columns' order and types, and counted.

How a value is read is `values.py`'s, as in training; nothing here is fitted.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nn_train.errors import DataError, short
from nn_train.preprocessor import UNSEEN, Encoded, Preprocessor, is_gap
from nn_train.schema import TableSchema
from nn_train.settings import DataConfig
from nn_train.values import (
    clean_text,
    finite,
    is_bytes,
    is_text,
    listed,
    plain,
    read_levels,
    read_numbers,
    typed_columns,
)

Rows: TypeAlias = pd.DataFrame | pa.Table | Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
KINDS = ("missing", "unreadable", "unseen")


@dataclasses.dataclass(kw_only=True)
class Counts:
    """What was met in the rows, by column: nothing in it is an error. `examples` are unseen levels."""

    rows: int = 0
    missing: Counter[str] = dataclasses.field(default_factory=Counter)
    unreadable: Counter[str] = dataclasses.field(default_factory=Counter)
    unseen: Counter[str] = dataclasses.field(default_factory=Counter)
    examples: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, other: "Counts") -> None:
        """Take in the counts of other rows."""
        self.rows += other.rows
        for kind in KINDS:
            getattr(self, kind).update(getattr(other, kind))
        self.examples = other.examples | self.examples


def encode_rows(
    rows: Rows, preprocessor: Preprocessor, schema: TableSchema, data: DataConfig
) -> tuple[Encoded, Counts]:
    """Numbers and codes of raw rows, and what was met on the way; `data` says how values are read.

    Raises:
        DataError: a column that is needed is missing, or holds what cannot be read.
    """
    encoded, counts = encode_groups(rows, None, preprocessor, schema, data)
    return encoded, counts[0]


def encode_groups(
    rows: Rows, sizes: Sequence[int] | None, preprocessor: Preprocessor, schema: TableSchema, data: DataConfig
) -> tuple[Encoded, list[Counts]]:
    """As `encode_rows`, for groups of rows that lie behind each other: counts for each; None is one group of all.

    Raises:
        DataError: a column that is needed is missing, or holds what cannot be read.
    """
    used = tuple(column for column in schema.columns if column.name in preprocessor.columns)
    schema = dataclasses.replace(schema, columns=used)
    table = as_table(rows, [column.name for column in schema.columns])
    try:
        columns = typed_columns(table, schema, data)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _unreadable(table, error) from None
    encoded = preprocessor.transform_columns(columns, num_rows=table.num_rows)
    marks = _marks(table, columns, encoded, preprocessor, data)
    return encoded, _count(marks, columns, [table.num_rows] if sizes is None else sizes)


def as_table(rows: Rows, names: Sequence[str]) -> pa.Table:
    """The columns `names` of the rows as an Arrow table.

    Raises:
        DataError: columns are missing, twice there, or hold lists or raw bytes.
    """
    columns = _columns(rows)
    if absent := [name for name in names if name not in columns]:
        raise DataError(
            f"{'column' if len(absent) == 1 else 'columns'} {listed(absent)} of the training table "
            f"{'is' if len(absent) == 1 else 'are'} missing",
            fix=f"give the table these columns; it has {listed(list(columns)) or 'none'}",
        )
    arrays = {name: _as_array(columns[name]) for name in names}
    for name, array in arrays.items():
        if pa.types.is_nested(array.type) or is_bytes(array.type):
            raise DataError(
                f"column '{short(name)}' holds {short(str(array.type))}", fix="give it numbers, text or dates"
            )
    if len({len(array) for array in arrays.values()}) > 1:
        raise DataError("the columns have different lengths", fix="give each column a value for each row")
    return pa.table(arrays)


def read_target(table: pa.Table, preprocessor: Preprocessor, data: DataConfig) -> np.ndarray | None:
    """The target's values (B,): class codes, -1 for none or an unknown one, or numbers, NaN for none.

    Of several targets (B, T); None where the table does not have the target, or not all of them.
    """
    target = preprocessor.target
    if not set(target.names) <= set(table.column_names):
        return None
    if target.task == "regression":
        return target.take({name: finite(read_numbers(table.column(name), data)) for name in target.names})
    codes = pc.index_in(read_levels(table.column(target.name), data), pa.array(target.classes, pa.string()))
    return codes.fill_null(-1).to_numpy().astype(np.int64)


def _columns(rows: Any) -> Mapping[str, Any]:
    if isinstance(rows, pa.Table | pd.DataFrame):
        names = rows.column_names if isinstance(rows, pa.Table) else list(map(str, rows.columns))
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"two columns are called '{short(twice[0])}'", fix="rename one of them")
        columns = rows.columns if isinstance(rows, pa.Table) else [rows[name] for name in rows.columns]
        return dict(zip(names, columns, strict=True))
    if isinstance(rows, Mapping):
        return {str(name): values for name, values in rows.items()}
    return {str(name): [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _as_array(values: Any) -> pa.ChunkedArray:
    """A column as Arrow has it; one of mixed types as text."""
    if isinstance(values, pa.ChunkedArray):
        return values
    try:
        array = pa.array(values, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        array = pa.array([None if _is_nothing(value) else str(value) for value in _each(values)], pa.string())
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _each(values: Any) -> Iterable[Any]:
    return values.tolist() if isinstance(values, pd.Series | np.ndarray) else values


def _is_nothing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _unreadable(table: pa.Table, error: Exception) -> DataError:
    kinds = ", ".join(f"{name}: {table.field(name).type}" for name in table.column_names)
    return DataError(f"the rows cannot be read: {short(str(error), most=200)}", fix=f"look at {short(kinds, most=400)}")


Marks: TypeAlias = dict[str, dict[str, np.ndarray]]  # field of Counts -> column -> in which rows (B,), where in any


def _marks(
    table: pa.Table,
    columns: Mapping[str, np.ndarray],
    encoded: Encoded,
    preprocessor: Preprocessor,
    data: DataConfig,
) -> Marks:
    marks: Marks = {kind: {} for kind in KINDS}
    gaps = {name: is_gap(columns[name]) for name in table.column_names}
    for index, category in enumerate(preprocessor.categorical):
        marks["unseen"][category.column] = (encoded.x_cat[:, index] == UNSEEN) & ~gaps[category.column]
    for name, gap in gaps.items():
        if gap.any():
            missing = gap & _is_missing(table.column(name), data)
            marks["missing"][name], marks["unreadable"][name] = missing, gap & ~missing
    return {kind: {name: mask for name, mask in masks.items() if mask.any()} for kind, masks in marks.items()}


def _is_missing(column: pa.ChunkedArray, data: DataConfig) -> np.ndarray:
    """Where a value is missing, and not only unreadable (B,)."""
    array = plain(column)
    return (clean_text(array, data) if is_text(array) else array).is_null().to_numpy()


def _count(marks: Marks, columns: Mapping[str, np.ndarray], sizes: Sequence[int]) -> list[Counts]:
    """What was met in each group of rows."""
    counts = [Counts(rows=size) for size in sizes]
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - np.array(sizes, np.int64)
    for kind, masks in marks.items():
        for name, mask in masks.items():
            sums = np.append(0, np.cumsum(mask))
            numbers = sums[ends] - sums[starts]
            for group in np.flatnonzero(numbers):
                getattr(counts[group], kind)[name] = int(numbers[group])
                if kind == "unseen":
                    first = starts[group] + int(np.argmax(mask[starts[group] : ends[group]]))
                    counts[group].examples[name] = str(columns[name][first])
    return counts
