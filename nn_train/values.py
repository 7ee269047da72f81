"""Columns as typed values: numbers, text, dates.

How a single value is read depends on that value and the schema alone, so that any batch of rows
reads as the whole table does.
"""

import json
import math
import re
import shlex
from collections.abc import Callable
from typing import Any, TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nn_train.schema import ColumnSpec, TableSchema
from nn_train.settings import DataConfig

PLAIN_NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf(inity)?)", re.IGNORECASE | re.ASCII)
WRITTEN_NUMBER = re.compile(r"([-+]?)[$€£¥]?\s?(\d{1,3}(?:,\d{3})+|\d+)(\.\d*)?\s?%?", re.ASCII)
CLOCK = re.compile(r"(?:(\d+) days?,? )?(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", re.ASCII)
WHOLE_WITH_POINT = r"^([-+]?\d+)\.0*$"
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2})|\d{1,2}[ -][A-Za-z]{3,9}[ -](\d{4}|\d{2}))"
    r"([ T]\d{1,2}:\d{2}.*)?",
    re.ASCII,
)
CHOSEN_DATE = re.compile(
    rf"{DATE.pattern}|\d{{4}}([-/]\d{{1,2}})?|\d{{8}}|[A-Za-z]{{3,9}}\.? (\d{{1,2}},? )?\d{{4}}", re.ASCII
)
DAY_MONTH_YEAR = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4}|\d{2})([ T]\d{1,2}:\d{2}.*)?", re.ASCII)
# dates that nanoseconds can hold; outside lie 9999-12-31, 0001-01-01 and the like, which stand for "none"
FIRST_DATE, LAST_DATE = np.datetime64("1678-01-01", "us"), np.datetime64("2262-01-01", "us")

Rows: TypeAlias = datasets.Dataset | pa.Table


def typed_frame(table: Rows, schema: TableSchema, data: DataConfig) -> pd.DataFrame:
    """Columns by their kind: float64, text with None, or datetime64; the target as text or float64."""
    rows = as_arrow(table)
    values = {spec.name: _typed(rows.column(spec.name), spec, data) for spec in schema.features}
    target = schema.target
    if target.name in rows.column_names:
        column = rows.column(target.name)
        is_number = target.task == "regression"
        values[target.name] = finite(read_numbers(column, data)) if is_number else as_objects(read_levels(column, data))
    return pd.DataFrame(values)


def as_arrow(table: Rows) -> pa.Table:
    """The rows as an Arrow table."""
    return table.with_format("arrow")[:] if isinstance(table, datasets.Dataset) else table


def is_text(array: pa.ChunkedArray) -> bool:
    """Does the column hold text?"""
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def plain(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """One type for one meaning: dictionaries as their values, times and durations as seconds, NaN as null."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return plain(array.cast(kind.value_type))
    if pa.types.is_null(kind):
        return array.cast(pa.string())
    if pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        ticks = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).cast(pa.float64(), safe=False)
        return pc.divide(ticks, float(np.timedelta64(1, "s") / np.timedelta64(1, kind.unit)))
    if pa.types.is_floating(kind):
        array = array.cast(pa.float64())
        return pc.if_else(pc.is_nan(array), pa.scalar(None, pa.float64()), array)
    return array


def clean_text(array: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Text without spaces around it; null where it is a word for a missing value."""
    trimmed = pc.utf8_trim_whitespace(array)
    words = pa.array([word.strip() for word in data.missing_values], type=trimmed.type)
    return pc.if_else(pc.is_in(trimmed, value_set=words), pa.scalar(None, trimmed.type), trimmed)


def read_levels(array: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Categories or classes as text; whole numbers without a point, so that 1 and 1.0 are one level."""
    array = plain(array)
    if is_text(array):
        return pc.replace_substring_regex(clean_text(array, data), WHOLE_WITH_POINT, r"\1")
    if pa.types.is_floating(array.type):
        return _by_distinct(array, _float_names, pa.string())
    if pa.types.is_decimal(array.type):
        return _by_distinct(array, lambda values: [f"{value.normalize():f}" for value in values], pa.string())
    return array.cast(pa.string())


def _float_names(values: list[float]) -> list[str]:
    return [str(int(value)) if value.is_integer() else repr(value) for value in values]


def read_numbers(array: pa.ChunkedArray, data: DataConfig) -> np.ndarray:
    """float64 with NaN where nothing, or no number, stands; infinities are kept."""
    array = plain(array)
    if pa.types.is_temporal(array.type):
        return np.full(len(array), np.nan)
    if not is_text(array):
        return array.cast(pa.float64(), safe=False).to_numpy()
    text = clean_text(array, data)
    try:
        return text.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return _by_distinct(text, lambda values: [parse_number(value) for value in values], pa.float64()).to_numpy()


def parse_number(text: str) -> float:
    """A number as people write it: `1e-3`, `1,234.5`, `$12`, `12%` or `12:30` (in seconds); NaN if it is none."""
    if PLAIN_NUMBER.fullmatch(text):
        return float(text)
    if written := WRITTEN_NUMBER.fullmatch(text):
        sign, whole, fraction = written.groups(default="")
        return float(f"{sign}{whole.replace(',', '')}{fraction}")
    if clock := CLOCK.fullmatch(text):
        days, hours, minutes, seconds = (float(part) for part in clock.groups(default="0"))
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return math.nan


def read_dates(array: pa.ChunkedArray, data: DataConfig, *, day_first: bool) -> np.ndarray:
    """datetime64[us] in UTC, NaT where nothing, or no date, stands."""
    array = plain(array)
    if pa.types.is_temporal(array.type):
        return array.cast(pa.timestamp("us"), safe=False).to_numpy()
    text = read_levels(array, data)
    return _by_distinct(text, lambda values: parse_dates(values, day_first=day_first), pa.timestamp("us")).to_numpy()


def parse_dates(texts: list[str], *, day_first: bool) -> np.ndarray:
    """Dates as people write them, datetime64[us] in UTC; NaT for what is none."""
    known = pd.Series([_iso_date(text, day_first=day_first) for text in texts], dtype=object)
    parsed = pd.to_datetime(known, errors="coerce", format="mixed", utc=True)
    return parsed.dt.tz_localize(None).to_numpy("datetime64[us]")


def _iso_date(text: str, *, day_first: bool) -> str | None:
    """`13/02/2024 10:30` as `2024-02-13 10:30`, which pandas reads fast; None if it is no date."""
    if written := DAY_MONTH_YEAR.fullmatch(text):
        first, second, year, clock = written.groups(default="")
        is_day_first = int(first) > 12 or (day_first and int(second) <= 12)
        day, month = (first, second) if is_day_first else (second, first)
        if len(year) == 2:
            year = f"20{year}" if year < "69" else f"19{year}"  # as POSIX does
        return f"{year}-{month:0>2}-{day:0>2}{clock}"
    return text if CHOSEN_DATE.fullmatch(text) else None


def _by_distinct(array: pa.ChunkedArray, parse: Callable[[list[Any]], Any], kind: pa.DataType) -> pa.ChunkedArray:
    """`parse`, called on the list of distinct values, laid over all values; null stays null."""
    distinct = pc.unique(array.drop_null())
    return pc.take(pa.array(parse(distinct.to_pylist()), type=kind), pc.index_in(array, distinct))


def finite(numbers: np.ndarray) -> np.ndarray:
    """NaN in place of an infinity."""
    return np.where(np.isinf(numbers), np.nan, numbers)


def as_objects(text: pa.ChunkedArray) -> pd.Series:
    """Text as Python strings, with None where nothing stands."""
    return pd.Series(text.to_numpy(), dtype=object)


def _typed(array: pa.ChunkedArray, spec: ColumnSpec, data: DataConfig) -> np.ndarray | pd.Series:
    if spec.kind == "numeric":
        return finite(read_numbers(array, data))
    if spec.kind == "date":
        dates = read_dates(array, data, day_first=spec.day_first)
        in_range = (dates >= FIRST_DATE) & (dates < LAST_DATE)
        return np.where(in_range, dates, np.datetime64("NaT")).astype("datetime64[ns]")
    levels = read_levels(array, data)
    return as_objects(pc.utf8_lower(levels) if spec.kind == "boolean" else levels)


def is_bytes(kind: pa.DataType) -> bool:
    """Is it a type of raw bytes?"""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def listed(names: list[str]) -> str:
    """Names for a message, thirty at most."""
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def shell_word(key: str, value: str) -> str:
    """`key=value` as it is typed in a shell, where `value` is a name, not YAML."""
    is_plain = re.fullmatch(r"[^\W\d]\w*", value)
    return shlex.quote(f"{key}={value if is_plain else json.dumps(value, ensure_ascii=False)}")
