"""What each column means: inferred from its values, overridden by the config; and columns as typed values.

The whole table is looked at, since a type is no more than a way of reading; whatever is *fitted*
(scales, levels, bins) is fitted later, on the train rows alone. How a single value is read depends
on that value and the schema alone, so that any batch of rows reads as the whole table does.
"""

import dataclasses
import difflib
import functools
import json
import math
import re
import shlex
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nn_train.errors import DataError
from nn_train.schema import ColumnSpec, Kind, TableSchema, TargetSpec, Task
from nn_train.settings import DataConfig
from nn_train.table import name_row

BOOLEAN_PAIRS = [frozenset(pair) for pair in (("yes", "no"), ("true", "false"), ("t", "f"), ("y", "n"), ("0", "1"))]
PLAIN_NUMBER = re.compile(r"[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|inf(inity)?)", re.IGNORECASE | re.ASCII)
WRITTEN_NUMBER = re.compile(r"([-+]?)[$€£¥]?\s?(\d{1,3}(?:,\d{3})+|\d+)(\.\d*)?\s?%?", re.ASCII)
CLOCK = re.compile(r"(?:(\d+) days?,? )?(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+", re.ASCII)
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
DAY_FIRST = re.compile(r"^((1[3-9]|2\d|3[01])[-/]\d{1,2}[-/]\d{2,4}|\d{1,2}\.\d{1,2}\.\d{2,4})\b", re.ASCII)
# dates that nanoseconds can hold; outside lie 9999-12-31, 0001-01-01 and the like, which stand for "none"
FIRST_DATE, LAST_DATE = np.datetime64("1678-01-01", "us"), np.datetime64("2262-01-01", "us")
ID_NAME = re.compile(
    r"(^|[_\s.-])(id|ids|uuid|guid|key|index|idx|rowid|row)$|^unnamed|^column_\d+$|^__index_level_\d+__$", re.IGNORECASE
)
ID_NAME_CAMEL = re.compile(r"[a-z]I[Dd]$")
NUMERIC_SHARE = 0.9  # a text column that is mostly numbers, or dates, is taken for such with a mistake in it
ONE_WORD_SHARE = 0.5  # if all the rest is one and the same word, half of the rows are enough
DATE_SHARE = 0.95
ID_SHARE = 0.95
FEW_ROWS = 30  # fewer distinct values than this are no sign of an id
MOST_CLASSES = 20  # whole numbers with more distinct values are a quantity, not classes
MOST_TEXT_CLASSES = 1000
FREE_TEXT_WORDS = 4
SAMPLE = 2000  # distinct values that are looked at where a share is enough
LARGEST_EXACT = 2**53  # larger whole numbers are not told apart as float64

Rows: TypeAlias = datasets.Dataset | pa.Table


def infer_schema(
    table: Rows, data: DataConfig, *, split_column: str | None = None, split_column_is_feature: bool = False
) -> TableSchema:
    """Decide the kind of every column and the task.

    Raises:
        DataError: naming the column, and the row where there is one, and how to mend it.
    """
    rows = _as_arrow(table)
    _check_names(rows.column_names, data, split_column)
    target, has_target = _infer_target(rows.column(data.target), data)
    excluded = dict.fromkeys(data.drop, "data.drop") | dict.fromkeys(data.id, "data.id")
    excluded |= {name: "data.columns" for name, kind in data.columns.items() if kind == "drop"}
    if split_column is not None and not split_column_is_feature:
        excluded[split_column] = "split column"
    present = rows if has_target.all() else rows.filter(pa.array(has_target))
    positions = np.flatnonzero(has_target)
    columns = []
    for name in rows.column_names:
        if name == data.target:
            continue
        spec = _infer_column(_Column(name, present.column(name), data, positions), reason=excluded.get(name, ""))
        if spec.is_id and name == split_column and split_column_is_feature:
            spec = ColumnSpec(**{**vars(spec), "is_id": False, "dropped": ""})
        columns.append(spec)
    if all(spec.dropped for spec in columns):
        reasons = "; ".join(f"{spec.name}: {spec.dropped}" for spec in columns) or "the table holds the target alone"
        raise DataError(
            f"no feature is left ({reasons})",
            where=data.path,
            fix="drop less, or data.columns.NAME=keep for one of them",
        )
    return TableSchema(
        columns=tuple(columns),
        target=target,
        num_rows=len(positions),
        num_rows_without_target=len(has_target) - len(positions),
    )


def typed_frame(table: Rows, schema: TableSchema, data: DataConfig) -> pd.DataFrame:
    """Columns by their kind: float64, text with None, or datetime64; the target as text or float64."""
    rows = _as_arrow(table)
    values = {spec.name: _typed(rows.column(spec.name), spec, data) for spec in schema.features}
    target = schema.target
    if target.name in rows.column_names:
        column = rows.column(target.name)
        is_number = target.task == "regression"
        values[target.name] = _finite(_numbers(column, data)) if is_number else _objects(_levels(column, data))
    return pd.DataFrame(values)


def _as_arrow(table: Rows) -> pa.Table:
    return table.with_format("arrow")[:] if isinstance(table, datasets.Dataset) else table


# --- values -----------------------------------------------------------------------------------------------------------


def _is_text(array: pa.ChunkedArray) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)


def _plain(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """One type for one meaning: dictionaries as their values, times and durations as seconds, NaN as null."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _plain(array.cast(kind.value_type))
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


def _text(array: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Text without spaces around it; null where it is a word for a missing value."""
    trimmed = pc.utf8_trim_whitespace(array)
    words = pa.array([word.strip() for word in data.missing_values], type=trimmed.type)
    return pc.if_else(pc.is_in(trimmed, value_set=words), pa.scalar(None, trimmed.type), trimmed)


def _levels(array: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Categories or classes as text; whole numbers without a point, so that 1 and 1.0 are one level."""
    array = _plain(array)
    if _is_text(array):
        return pc.replace_substring_regex(_text(array, data), WHOLE_WITH_POINT, r"\1")
    if pa.types.is_floating(array.type):
        return _by_distinct(array, _float_names, pa.string())
    if pa.types.is_decimal(array.type):
        return _by_distinct(array, lambda values: [f"{value.normalize():f}" for value in values], pa.string())
    return array.cast(pa.string())


def _float_names(values: list[float]) -> list[str]:
    return [str(int(value)) if value.is_integer() else repr(value) for value in values]


def _numbers(array: pa.ChunkedArray, data: DataConfig) -> np.ndarray:
    """float64 with NaN where nothing, or no number, stands; infinities are kept."""
    array = _plain(array)
    if pa.types.is_temporal(array.type):
        return np.full(len(array), np.nan)
    if not _is_text(array):
        return array.cast(pa.float64(), safe=False).to_numpy()
    text = _text(array, data)
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


def _dates(array: pa.ChunkedArray, data: DataConfig, *, day_first: bool) -> np.ndarray:
    """datetime64[us] in UTC, NaT where nothing, or no date, stands."""
    array = _plain(array)
    if pa.types.is_temporal(array.type):
        return array.cast(pa.timestamp("us"), safe=False).to_numpy()
    text = _levels(array, data)
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


def _finite(numbers: np.ndarray) -> np.ndarray:
    return np.where(np.isinf(numbers), np.nan, numbers)


def _objects(text: pa.ChunkedArray) -> pd.Series:
    return pd.Series(text.to_numpy(), dtype=object)


def _typed(array: pa.ChunkedArray, spec: ColumnSpec, data: DataConfig) -> np.ndarray | pd.Series:
    if spec.kind == "numeric":
        return _finite(_numbers(array, data))
    if spec.kind == "date":
        # `_infer_column` takes an example that tells the order of day and month, if there is one
        dates = _dates(array, data, day_first=bool(DAY_FIRST.match(spec.example)))
        in_range = (dates >= FIRST_DATE) & (dates < LAST_DATE)
        return np.where(in_range, dates, np.datetime64("NaT")).astype("datetime64[ns]")
    levels = _levels(array, data)
    return _objects(pc.utf8_lower(levels) if spec.kind == "boolean" else levels)


# --- columns ----------------------------------------------------------------------------------------------------------


class _Column:
    """One column's values in the rows that have a target; `positions` are these rows' places in the table."""

    def __init__(self, name: str, array: pa.ChunkedArray, data: DataConfig, positions: np.ndarray):
        self.name = name
        self.data = data
        self.positions = positions
        self.array = _plain(array)
        self.is_text = _is_text(self.array)
        if self.is_text:
            self.array = _text(self.array, data)

    @functools.cached_property
    def distinct(self) -> pa.Array:
        """Every value once, without null."""
        return pc.unique(self.array.drop_null())

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The values as float64, NaN where they are none."""
        return _numbers(self.array, self.data)

    @property
    def num_present(self) -> int:
        """Rows with a value."""
        return len(self.array) - self.array.null_count

    @functools.cached_property
    def is_day_first(self) -> bool:
        """Dates in text: some can only be read with the day before the month."""
        return self.is_text and pc.any(pc.match_substring_regex(self.distinct, DAY_FIRST.pattern)).as_py() is True

    def unread(self, values: np.ndarray) -> np.ndarray:
        """The rows in which something stands and `values` has NaN or NaT."""
        return np.isnan(values) & self.array.is_valid().to_numpy()

    def example(self, kind: Kind) -> str:
        """One value; of dates one that tells the order of day and month, if there is one."""
        values = self.distinct
        if kind == "date" and self.is_day_first:
            values = values.filter(pc.match_substring_regex(values, DAY_FIRST.pattern))
        return str(values[0].as_py())[:40] if len(values) else ""

    def refuse(self, what: str, wrong: np.ndarray, *, fix: str) -> NoReturn:
        """Raise an error that names the first row of `wrong` and its value."""
        row = int(np.argmax(wrong))
        place = name_row(self.data, int(self.positions[row]))
        num_more = int(wrong.sum()) - 1
        more = f", and such in {num_more} more row{'s' * (num_more > 1)}" if num_more else ""
        what = what.format(value=self.array[row].as_py())
        raise DataError(f"column '{self.name}' {what} in {place}{more}", where=self.data.path, fix=fix)


def _infer_column(column: _Column, *, reason: str) -> ColumnSpec:
    name, array = column.name, column.array
    spec = ColumnSpec(name=name, kind="categorical", num_missing=array.null_count, num_distinct=0)
    if pa.types.is_nested(array.type) or _is_bytes(array.type):
        why = reason or f"holds {array.type}, which is neither number, text nor date"
        return dataclasses.replace(spec, dropped=why, is_id=reason == "data.id")
    spec = dataclasses.replace(spec, num_distinct=len(column.distinct))
    if reason:
        kind = _guess_kind(column)
        example = column.example(kind)
        return dataclasses.replace(spec, kind=kind, example=example, dropped=reason, is_id=reason == "data.id")
    kind = _decide_kind(column)
    spec = dataclasses.replace(spec, kind=kind, example=column.example(kind))
    chosen = column.data.columns.get(name)
    if kind == chosen:
        return spec
    if len(column.distinct) == 1:
        # with gaps, whether the one value is there tells rows apart: a category
        has_gaps = spec.num_missing > 0
        return (
            dataclasses.replace(spec, kind="categorical") if has_gaps else dataclasses.replace(spec, dropped="constant")
        )
    dropped = "" if chosen == "keep" else _why_id(column, kind)
    return dataclasses.replace(spec, dropped=dropped, is_id=dropped.startswith("id-like"))


def _decide_kind(column: _Column) -> Kind:
    """The kind that the user chose or the values show, with errors for what such a column cannot hold."""
    data, name = column.data, column.name
    if not column.num_present:
        fix = _word(f"data.columns.{name}", "drop")
        raise DataError(f"column '{name}' has no value in any row", where=data.path, fix=fix)
    chosen = data.columns.get(name)
    if chosen is None or chosen in ("keep", "drop"):
        kind = _guess_kind(column)
        _refuse_mistakes(column, kind)
    else:
        kind = chosen
        _refuse_unreadable(column, kind)
    if kind == "numeric":
        _refuse_infinite(column)
    return kind


def _is_bytes(kind: pa.DataType) -> bool:
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(check(kind) for check in is_bytes)


def _guess_kind(column: _Column) -> Kind:
    if pa.types.is_boolean(column.array.type):
        return "boolean"
    if pa.types.is_temporal(column.array.type):
        return "date"
    if len(column.distinct) <= 8:  # two words, each in several spellings
        words = frozenset(str(value).lower().removesuffix(".0") for value in column.distinct.to_pylist())
        if words in BOOLEAN_PAIRS:
            return "boolean"
    if not column.is_text:
        return "numeric"
    sample: list[str] = column.distinct[:SAMPLE].to_pylist()
    if not sample:
        return "categorical"
    if not any(math.isnan(parse_number(value)) for value in sample) and not column.unread(column.numbers).any():
        return "categorical" if _are_codes(column.distinct) else "numeric"
    rows = column.array.drop_null()[:SAMPLE]
    share = max(_date_share(pa.chunked_array([sample]), column), _date_share(rows, column))
    return "date" if share >= DATE_SHARE else "categorical"


def _date_share(values: pa.ChunkedArray, column: _Column) -> float:
    if not pc.any(pc.match_substring_regex(values, f"^{DATE.pattern}$")).as_py():
        return 0.0
    return float(np.mean(~np.isnan(_dates(values, column.data, day_first=column.is_day_first))))


def _are_codes(distinct: pa.Array) -> bool:
    """Digits of one length, some with a leading zero: `01234` is a zip code, not a quantity."""
    length = len(distinct[0].as_py())
    is_code = pc.match_substring_regex(distinct, f"^[0-9]{{{length}}}$")
    return length > 1 and pc.all(is_code).as_py() and pc.any(pc.starts_with(distinct, "0")).as_py()


def _refuse_mistakes(column: _Column, kind: Kind) -> None:
    """Numbers or dates with a few texts among them are a mistake in the table, not a category."""
    if not column.is_text or kind not in ("categorical", "date"):
        return
    keep = f"data.columns.{column.name}"
    if kind == "date":
        wrong = column.unread(_dates(column.array, column.data, day_first=column.is_day_first))
        if wrong.any():
            fix = f"correct it, or {_word(keep, 'date')} (such a value is then missing) or categorical"
            column.refuse("holds dates, and '{value}'", wrong, fix=fix)
        return
    sample: list[str] = column.distinct[:SAMPLE].to_pylist()
    is_number = [not math.isnan(parse_number(value)) for value in sample]
    has_comma = [DECIMAL_COMMA.fullmatch(value) is not None for value in sample]
    if all(np.logical_or(is_number, has_comma)) and np.mean(has_comma) >= 0.5:
        wrong = pc.match_substring_regex(column.array, f"^({DECIMAL_COMMA.pattern})$").fill_null(False).to_numpy()
        column.refuse(
            "holds numbers with a decimal comma: '{value}'",
            wrong,
            fix=f"write them with a point, or {_word(keep, 'categorical')}",
        )
    if any(is_number) and len(sample) > 2:
        _refuse_text_among_numbers(column, keep)


def _refuse_text_among_numbers(column: _Column, keep: str) -> None:
    wrong = column.unread(column.numbers)
    num_distinct = len(np.unique(column.numbers[~np.isnan(column.numbers)]))
    num_words = len(pc.unique(column.array.filter(pa.array(wrong))))
    if not wrong.any() or not (wrong.sum() == 1 or num_distinct > MOST_CLASSES):
        return
    if 1 - wrong.sum() / column.num_present < (ONE_WORD_SHARE if num_words == 1 else NUMERIC_SHARE):
        return
    column.refuse(
        "holds numbers, and the text '{value}'",
        wrong,
        fix=f"correct it, or list the text in data.missing_values, or {_word(keep, 'numeric')} (text is then missing) "
        "or categorical",
    )


def _refuse_unreadable(column: _Column, kind: Kind) -> None:
    """A kind that the user chose and that no value has."""
    if kind == "numeric":
        wrong = column.unread(column.numbers)
    elif kind == "date":
        wrong = column.unread(_dates(column.array, column.data, day_first=column.is_day_first))
    else:
        return
    if wrong.sum() == column.num_present:
        column.refuse(
            f"is to be {kind}, and no value of it is: '{{value}}'",
            wrong,
            fix=_word(f"data.columns.{column.name}", "categorical"),
        )


def _refuse_infinite(column: _Column) -> None:
    infinite = np.isinf(column.numbers)
    if column.data.infinite == "error" and infinite.any():
        column.refuse("holds an infinite number", infinite, fix="correct it, or data.infinite=missing")


def _why_id(column: _Column, kind: Kind) -> str:
    """Why a column tells rows apart instead of describing them; empty if it does not."""
    num_distinct, num_present = len(column.distinct), column.num_present
    if num_present <= FEW_ROWS or num_distinct < ID_SHARE * num_present:
        return ""
    if kind == "categorical":
        words = np.mean([len(str(value).split()) for value in column.distinct[:200].to_pylist()])
        if words > FREE_TEXT_WORDS:
            return "free text"
        return f"id-like: {num_distinct} distinct values in {num_present} rows"
    if kind != "numeric" or num_distinct < num_present:
        return ""
    numbers = column.numbers[~np.isnan(column.numbers)]
    if not (numbers % 1 == 0).all():
        return ""
    steps = np.diff(numbers)
    is_counter = (steps == 1).all() or (steps == -1).all()
    is_named_so = ID_NAME.search(column.name) or ID_NAME_CAMEL.search(column.name)
    if is_counter or is_named_so or np.abs(numbers).max() > LARGEST_EXACT:
        return "id-like: a different whole number in every row"
    return ""


def _check_names(names: list[str], data: DataConfig, split_column: str | None) -> None:
    wanted = [("data.target", data.target)]
    wanted += [("data.drop", name) for name in data.drop] + [("data.id", name) for name in data.id]
    wanted += [("data.columns", name) for name in data.columns]
    wanted += [("split.column", split_column)] if split_column is not None else []
    for key, name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or names[-1:]
            is_single = key in ("data.target", "split.column")
            raise DataError(
                f"there is no column '{name}'; the columns are {_listed(names)}",
                where=data.path,
                fix=_word(key, near[0]) if is_single else f"change {key}; near it is '{near[0]}'",
            )
    if data.target in data.columns or data.target == split_column:
        key = "data.columns" if data.target in data.columns else "split.column"
        raise DataError(
            f"{key} names the target '{data.target}'", where=data.path, fix="data.task says how to read the target"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")


def _word(key: str, value: str) -> str:
    """`key=value` as it is typed in a shell, where `value` is a name, not YAML."""
    is_plain = re.fullmatch(r"[^\W\d]\w*", value)
    return shlex.quote(f"{key}={value if is_plain else json.dumps(value, ensure_ascii=False)}")


# --- target -----------------------------------------------------------------------------------------------------------


def _infer_target(array: pa.ChunkedArray, data: DataConfig) -> tuple[TargetSpec, np.ndarray]:
    """The task with its classes, and which rows have a target."""
    if pa.types.is_nested(array.type) or _is_bytes(array.type):
        _refuse_target(f"holds {array.type}, which is neither number nor text", data)
    names = _objects(_levels(array, data))
    numbers = _numbers(array, data)
    present = names.notna().to_numpy()
    if not present.any():
        _refuse_target("has no value in any row", data)
    counts = names[present].value_counts()
    if len(counts) == 1:
        _refuse_target(f"is '{counts.index[0]}' in every row; there is nothing to learn", data)
    task = data.task if data.task != "auto" else _guess_task(numbers[present], len(counts))
    if task == "regression":
        is_infinite = np.isinf(numbers) & (data.infinite == "error")
        _check_numbers(names, present & np.isnan(numbers), is_infinite, data)
        return TargetSpec(name=data.target, task=task), np.isfinite(numbers)
    if task == "binary" and len(counts) != 2:
        _refuse_target(f"holds {len(counts)} classes, and data.task=binary needs two", data, fix="data.task=multiclass")
    _check_classes(names, counts, data)
    are_numbers = not np.isnan(numbers[present]).any()
    classes = sorted(counts.index, key=lambda name: _class_rank(name, is_number=are_numbers))
    if data.positive is not None:
        classes = _positive_last(classes, task, data)
    return TargetSpec(name=data.target, task=task, classes=tuple(classes)), present


def _guess_task(numbers: np.ndarray, num_classes: int) -> Task:
    if num_classes == 2:
        return "binary"
    is_number = ~np.isnan(numbers)
    if not is_number.all():
        # numbers with a text among them: read as numbers, so that the text is named as a mistake
        is_mistake = is_number.mean() >= NUMERIC_SHARE and len(np.unique(numbers[is_number])) > MOST_CLASSES
        return "regression" if is_mistake else "multiclass"
    is_whole = (numbers[np.isfinite(numbers)] % 1 == 0).all()
    most = min(MOST_CLASSES, len(numbers) // 10)
    return "multiclass" if is_whole and num_classes <= most else "regression"


def _class_rank(name: str, *, is_number: bool) -> tuple[float, str]:
    """Numbers by their value; other words by the alphabet, but yes behind no and true behind false."""
    return (parse_number(name) if is_number else name.lower() in ("yes", "true", "y", "t"), name)


def _positive_last(classes: list[str], task: Task, data: DataConfig) -> list[str]:
    positive = re.sub(WHOLE_WITH_POINT, r"\1", data.positive or "")
    if task != "binary" or positive not in classes:
        _refuse_target(
            f"has the classes {_listed(classes)}; data.positive={data.positive} is none of two",
            data,
            fix=f"{_word('data.positive', classes[-1])}, or leave it out",
        )
    return [name for name in classes if name != positive] + [positive]


def _check_numbers(names: pd.Series, is_text: np.ndarray, is_infinite: np.ndarray, data: DataConfig) -> None:
    checks = (
        (is_text, "which is no number", "correct it, or data.task=multiclass"),
        (is_infinite, "which is infinite", "correct it, or data.infinite=missing"),
    )
    for wrong, what, fix in checks:
        if wrong.any():
            row = int(np.argmax(wrong))
            _refuse_target(f"holds '{names.iloc[row]}' in {name_row(data, row)}, {what}", data, fix=fix)


def _check_classes(names: pd.Series, counts: pd.Series, data: DataConfig) -> None:
    if len(counts) > 2 and frozenset(counts.index.str.lower()) in BOOLEAN_PAIRS:
        _refuse_target(
            f"has the classes {_listed(list(counts.index))}, which differ in case only",
            data,
            fix="write each class in one way",
        )
    if len(counts) > MOST_TEXT_CLASSES or len(counts) > 0.5 * counts.sum():
        _refuse_target(
            f"holds {len(counts)} classes in {int(counts.sum())} rows",
            data,
            fix="another data.target, or data.task=regression",
        )
    if counts.min() == 1:
        single = str(counts.idxmin())
        row = int(np.argmax((names == single).to_numpy()))
        _refuse_target(
            f"has the class '{single}' in one row only ({name_row(data, row)}); it cannot be learned and judged",
            data,
            fix="correct or remove that row, or merge the class with another",
        )


def _refuse_target(what: str, data: DataConfig, *, fix: str = "another data.target") -> NoReturn:
    raise DataError(f"the target '{data.target}' {what}", where=data.path, fix=fix)
