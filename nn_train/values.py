"""Columns as typed values: numbers, text, dates.

How a single value is read depends on that value and the schema alone, so that any batch of rows
reads as the whole table does.
"""

import math
import re
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from nn_train.errors import short
from nn_train.schema import ColumnSpec, Levels, TableSchema
from nn_train.settings import DataConfig

if TYPE_CHECKING:
    import datasets

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
MICROSECONDS = {"D": 86_400_000_000, "s": 1_000_000, "ms": 1_000}  # in one tick; what others hold always fits

VALUES_TOGETHER = 2**16

Rows: TypeAlias = "datasets.Dataset | pa.Table"


def typed_frame(table: Rows, schema: TableSchema, data: DataConfig) -> pd.DataFrame:
    """Columns by their kind: float64, text with None, or datetime64; the target as text or float64."""
    columns = typed_columns(table, schema, data)
    return pd.DataFrame({name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()})


def typed_columns(table: Rows, schema: TableSchema, data: DataConfig) -> dict[str, np.ndarray]:
    """As `typed_frame`, without the frame, which for a few rows takes longer than all else."""
    rows = as_arrow(table)
    levels = _typed_levels(rows, [spec for spec in schema.features if spec.kind in ("categorical", "boolean")], data)
    values = {
        spec.name: levels[spec.name] if spec.name in levels else _typed(rows.column(spec.name), spec, data)
        for spec in schema.features
    }
    target = schema.target
    for name in target.names if set(target.names) <= set(rows.column_names) else ():
        column = rows.column(name)
        is_number = target.task == "regression"
        values[name] = finite(read_numbers(column, data)) if is_number else _objects(read_levels(column, data))
    return values


def short_columns(rows: pa.Table, schema: TableSchema, data: DataConfig) -> dict[str, np.ndarray | Levels]:
    """As `typed_columns`, with columns of levels in short: faster for many rows of few levels."""
    values: dict[str, np.ndarray | Levels] = {}
    for spec in schema.features:
        is_level = spec.kind in ("categorical", "boolean")
        values[spec.name] = (
            read_short(rows.column(spec.name), spec, data) if is_level else _typed(rows.column(spec.name), spec, data)
        )
    for name in schema.target.names:
        if schema.target.task == "regression":
            values[name] = finite(read_numbers(rows.column(name), data))
        else:
            values[name] = _objects(read_levels(rows.column(name), data))
    return values


def read_short(column: pa.ChunkedArray, spec: ColumnSpec, data: DataConfig) -> Levels:
    """A column of levels in short; a level may be there under several of its spellings' names."""
    encoded = pc.dictionary_encode(plain(column).combine_chunks())
    levels = read_levels(pa.chunked_array([encoded.dictionary]), data)
    names = (pc.utf8_lower(levels) if spec.kind == "boolean" else levels).to_pylist()
    places = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    missing = [place for place, name in enumerate(names) if name is None]
    if missing:
        places = np.where(np.isin(places, missing), -1, places)
    return Levels(names=tuple(name or "" for name in names), places=places)


def as_arrow(table: Rows) -> pa.Table:
    """The rows as an Arrow table."""
    return table if isinstance(table, pa.Table) else table.with_format("arrow")[:]


def as_text(value: pa.Scalar) -> str:
    """A value for a message; of a date that Python has no word for, its number of days or ticks."""
    try:
        return str(value.as_py())
    except (OverflowError, ValueError):
        return str(value.cast(pa.int64() if value.type.bit_width == 64 else pa.int32()).as_py())


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
    return [level_name(value) for value in values]


def level_name(value: float) -> str:
    """A finite number as a category: a whole one without a point."""
    return str(int(value)) if value.is_integer() else repr(value)


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
        return _microseconds(array).to_numpy()
    text = read_levels(array, data)
    return _by_distinct(text, lambda values: parse_dates(values, day_first=day_first), pa.timestamp("us")).to_numpy()


def _microseconds(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dates and timestamps as timestamps in microseconds; null where they would not fit."""
    kind = array.type
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    if unit in MICROSECONDS:
        ticks = (array.cast(pa.int32()) if unit == "D" else array).cast(pa.int64())
        most = 2**62 // MICROSECONDS[unit]
        fits = pc.and_(pc.greater_equal(ticks, -most), pc.less_equal(ticks, most))
        array = pc.if_else(fits, array, pa.scalar(None, kind))
    return array.cast(pa.timestamp("us"), safe=False)


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
    return pd.Series(_objects(text), dtype=object)


def _objects(text: pa.ChunkedArray) -> np.ndarray:
    return text.to_numpy().astype(object, copy=False)


def _typed(array: pa.ChunkedArray, spec: ColumnSpec, data: DataConfig) -> np.ndarray:
    if spec.kind == "numeric":
        return finite(read_numbers(array, data))
    dates = read_dates(array, data, day_first=spec.day_first)
    in_range = (dates >= FIRST_DATE) & (dates < LAST_DATE)
    return np.where(in_range, dates, np.datetime64("NaT")).astype("datetime64[ns]")


def _typed_levels(rows: pa.Table, specs: list[ColumnSpec], data: DataConfig) -> dict[str, np.ndarray]:
    """Columns of levels. Short ones of a type are read as one: Arrow's calls would take longer than their values."""
    groups: dict[tuple[pa.DataType, bool], list[str]] = {}
    for spec in specs:
        groups.setdefault((rows.column(spec.name).type, spec.kind == "boolean"), []).append(spec.name)
    num_together = max(1, VALUES_TOGETHER // max(1, rows.num_rows))
    values: dict[str, np.ndarray] = {}
    for (kind, is_boolean), names in groups.items():
        for start in range(0, len(names), num_together):
            some = names[start : start + num_together]
            column = pa.chunked_array([chunk for name in some for chunk in rows.column(name).chunks], kind)
            levels = read_levels(column, data)
            objects = _objects(pc.utf8_lower(levels) if is_boolean else levels)
            values |= dict(zip(some, np.split(objects, len(some)), strict=True))
    return values


def is_bytes(kind: pa.DataType) -> bool:
    """Is it a type of raw bytes?"""
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def listed(names: list[str]) -> str:
    """Names for a message, thirty at most."""
    return short(", ".join(names[:30]) + (", ..." if len(names) > 30 else ""), most=400)


def shell_word(key: str, value: str) -> str:
    """`key=value` as it is typed in a shell, where `value` is a name, not YAML."""
    is_plain = re.fullmatch(r"[^\W\d]\w*", value)
    return short(shlex.quote(f"{key}={value if is_plain else _in_yaml(value)}"), most=250)


def column_word(name: str, kind: str) -> str:
    """`data.columns.NAME=kind` as it is typed in a shell, whatever the name."""
    if "=" not in name and name.isprintable():
        return short(shlex.quote(f"data.columns.{name}={kind}"), most=250)
    return short(shlex.quote(f"data.columns={{{_in_yaml(name)}: {kind}}}"), most=250)


def _in_yaml(text: str) -> str:
    """The text in double quotes, with escapes for what cannot be typed."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=text.isprintable(), width=10**9).strip()
