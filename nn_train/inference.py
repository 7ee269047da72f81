"""What each column means: inferred from its values, overridden by the config.

The whole table is looked at, since a type is no more than a way of reading; whatever is *fitted*
(scales, levels, bins) is fitted later, on the train rows alone.
"""

import dataclasses
import difflib
import functools
import math
import re
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nn_train.errors import DataError, short
from nn_train.inference_target import BOOLEAN_PAIRS, MOST_CLASSES, NUMERIC_SHARE, infer_targets
from nn_train.row_weights import check_weights
from nn_train.schema import ColumnSpec, Kind, TableSchema
from nn_train.settings import DataConfig
from nn_train.table import name_row
from nn_train.values import (
    DATE,
    Rows,
    as_arrow,
    as_text,
    clean_text,
    column_word,
    is_bytes,
    is_text,
    listed,
    parse_number,
    plain,
    read_dates,
    read_numbers,
    shell_word,
)

DECIMAL_COMMA = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+", re.ASCII)
DAY_FIRST = re.compile(r"^((1[3-9]|2\d|3[01])[-/]\d{1,2}[-/]\d{2,4}|\d{1,2}\.\d{1,2}\.\d{2,4})\b", re.ASCII)
ID_NAME = re.compile(
    r"(^|[_\s.-])(id|ids|uuid|guid|key|index|idx|rowid|row)$|^unnamed|^column_\d+$|^__index_level_\d+__$", re.IGNORECASE
)
ID_NAME_CAMEL = re.compile(r"[a-z]I[Dd]$")
ONE_WORD_SHARE = 0.5  # if all the rest is one and the same word, half of the rows are enough
DATE_SHARE = 0.95
ID_SHARE = 0.95
FEW_ROWS = 30  # fewer distinct values than this are no sign of an id
FREE_TEXT_WORDS = 4
SAMPLE = 2000  # distinct values that are looked at where a share is enough
LARGEST_EXACT = 2**53  # larger whole numbers are not told apart as float64


def infer_schema(
    table: Rows, data: DataConfig, *, split_column: str | None = None, split_column_is_feature: bool = False
) -> TableSchema:
    """Decide the kind of every column and the task.

    Raises:
        DataError: naming the column, and the row where there is one, and how to mend it.
    """
    rows = as_arrow(table)
    _check_names(rows.column_names, data, split_column)
    target, has_target = infer_targets(rows, data)
    excluded = dict.fromkeys(data.drop, "data.drop") | dict.fromkeys(data.id, "data.id")
    excluded |= {name: "data.columns" for name, kind in data.columns.items() if kind == "drop"}
    if split_column is not None and not split_column_is_feature:
        excluded[split_column] = "split column"
    if data.weight is not None:
        check_weights(rows.column(data.weight), has_target, data)
        excluded.setdefault(data.weight, "data.weight")  # as an id it stands beside the predictions
    present = rows if has_target.all() else rows.filter(pa.array(has_target))
    positions = np.flatnonzero(has_target)
    columns = []
    for name in rows.column_names:
        if name in data.targets:
            continue
        spec = _infer_column(Column(name, present.column(name), data, positions), reason=excluded.get(name, ""))
        if spec.dropped.startswith("id-like") and name == split_column and split_column_is_feature:
            spec = ColumnSpec(**{**vars(spec), "is_id": False, "dropped": ""})
        columns.append(spec)
    if all(spec.dropped for spec in columns):
        reasons = "; ".join(f"{spec.name}: {spec.dropped}" for spec in columns) or "the table holds the target alone"
        raise DataError(
            f"no feature is left ({short(reasons, most=400)})",
            where=data.path,
            fix="drop less, or data.columns.NAME=keep for one of them",
        )
    return TableSchema(
        columns=tuple(columns),
        target=target,
        num_rows=len(positions),
        num_rows_without_target=len(has_target) - len(positions),
    )


class Column:
    """One column's values in the rows that have a target; `positions` are these rows' places in the table."""

    def __init__(self, name: str, array: pa.ChunkedArray, data: DataConfig, positions: np.ndarray):
        self.name = name
        self.data = data
        self.positions = positions
        self.array = plain(array)
        self.is_text = is_text(self.array)
        if self.is_text:
            self.array = clean_text(self.array, data)

    @functools.cached_property
    def distinct(self) -> pa.Array:
        """Every value once, without null."""
        return pc.unique(self.array.drop_null())

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The values as float64, NaN where they are none."""
        return read_numbers(self.array, self.data)

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

    @property
    def example(self) -> str:
        """The first value, cut."""
        return as_text(self.distinct[0])[:40] if len(self.distinct) else ""

    def refuse(self, what: str, wrong: np.ndarray, *, fix: str) -> NoReturn:
        """Raise an error that names the first row of `wrong` and its value."""
        row = int(np.argmax(wrong))
        place = name_row(self.data, int(self.positions[row]))
        num_more = int(wrong.sum()) - 1
        more = f", and such in {num_more} more row{'s' * (num_more > 1)}" if num_more else ""
        what = what.format(value=short(as_text(self.array[row])))
        raise DataError(f"column '{short(self.name)}' {what} in {place}{more}", where=self.data.path, fix=fix)


def _infer_column(column: Column, *, reason: str) -> ColumnSpec:
    name, array = column.name, column.array
    spec = ColumnSpec(name=name, kind="categorical", num_missing=array.null_count, num_distinct=0)
    if pa.types.is_nested(array.type) or is_bytes(array.type):
        why = reason or f"holds {array.type}, which is neither number, text nor date"
        return dataclasses.replace(spec, dropped=why, is_id=reason == "data.id")
    spec = dataclasses.replace(spec, num_distinct=len(column.distinct), example=column.example)
    if reason:
        kind = _guess_kind(column)
        return dataclasses.replace(spec, kind=kind, dropped=reason, is_id=reason == "data.id")
    kind = _decide_kind(column)
    spec = dataclasses.replace(spec, kind=kind, day_first=kind == "date" and column.is_day_first)
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


def _decide_kind(column: Column) -> Kind:
    """The kind that the user chose or the values show, with errors for what such a column cannot hold."""
    data, name = column.data, column.name
    if not column.num_present:
        fix = column_word(name, "drop")
        raise DataError(f"column '{short(name)}' has no value in any row", where=data.path, fix=fix)
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


def _guess_kind(column: Column) -> Kind:
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


def _date_share(values: pa.ChunkedArray, column: Column) -> float:
    if not pc.any(pc.match_substring_regex(values, f"^{DATE.pattern}$")).as_py():
        return 0.0
    return float(np.mean(~np.isnan(read_dates(values, column.data, day_first=column.is_day_first))))


def _are_codes(distinct: pa.Array) -> bool:
    """Digits of one length, some with a leading zero: `01234` is a zip code, not a quantity."""
    length = len(distinct[0].as_py())
    is_code = pc.match_substring_regex(distinct, f"^[0-9]{{{length}}}$")
    return length > 1 and pc.all(is_code).as_py() and pc.any(pc.starts_with(distinct, "0")).as_py()


def _refuse_mistakes(column: Column, kind: Kind) -> None:
    """Numbers or dates with a few texts among them are a mistake in the table, not a category."""
    if not column.is_text or kind not in ("categorical", "date"):
        return
    if kind == "date":
        wrong = column.unread(read_dates(column.array, column.data, day_first=column.is_day_first))
        if wrong.any():
            fix = f"correct it, or {column_word(column.name, 'date')} (such a value is then missing) or categorical"
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
            fix=f"write them with a point, or {column_word(column.name, 'categorical')}",
        )
    if any(is_number) and len(sample) > 2:
        _refuse_text_among_numbers(column)


def _refuse_text_among_numbers(column: Column) -> None:
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
        fix=f"correct it, or list the text in data.missing_values, or {column_word(column.name, 'numeric')} "
        "(text is then missing) or categorical",
    )


def _refuse_unreadable(column: Column, kind: Kind) -> None:
    """A kind that the user chose and that no value has."""
    if kind == "numeric":
        wrong = column.unread(column.numbers)
    elif kind == "date":
        wrong = column.unread(read_dates(column.array, column.data, day_first=column.is_day_first))
    else:
        return
    if wrong.sum() == column.num_present:
        column.refuse(
            f"is to be {kind}, and no value of it is: '{{value}}'",
            wrong,
            fix=column_word(column.name, "categorical"),
        )


def _refuse_infinite(column: Column) -> None:
    infinite = np.isinf(column.numbers)
    if column.data.infinite == "error" and infinite.any():
        column.refuse("holds an infinite number", infinite, fix="correct it, or data.infinite=missing")


def _why_id(column: Column, kind: Kind) -> str:
    """Why a column tells rows apart instead of describing them; empty if it does not."""
    num_distinct, num_present = len(column.distinct), column.num_present
    if num_present <= FEW_ROWS or num_distinct < ID_SHARE * num_present:
        return ""
    if kind == "categorical":
        words = np.mean([len(str(value).split()) for value in column.distinct[:200].to_pylist()])
        if words > FREE_TEXT_WORDS:
            return "free text"
        return f"id-like: {num_distinct} distinct values in {num_present} rows"
    is_named_so = ID_NAME.search(column.name) or ID_NAME_CAMEL.search(column.name)
    numbers = column.numbers[~np.isnan(column.numbers)]
    if kind != "numeric" or not (numbers % 1 == 0).all() or (num_distinct < num_present and not is_named_so):
        return ""
    steps = np.diff(numbers)
    is_counter = (steps == 1).all() or (steps == -1).all()
    if is_counter or is_named_so or np.abs(numbers).max() > LARGEST_EXACT:
        return f"id-like: {num_distinct} distinct whole numbers in {num_present} rows"
    return ""


def _check_names(names: list[str], data: DataConfig, split_column: str | None) -> None:
    wanted = [("data.target", name) for name in data.targets]
    wanted += [("data.drop", name) for name in data.drop] + [("data.id", name) for name in data.id]
    wanted += [("data.columns", name) for name in data.columns]
    wanted += [("split.column", split_column)] if split_column is not None else []
    wanted += [("data.weight", data.weight)] if data.weight is not None else []
    for key, name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5) or names[-1:]
            is_single = key in ("split.column", "data.weight") or (key == "data.target" and not data.is_several)
            raise DataError(
                f"there is no column '{short(name)}'; the columns are {listed(names)}",
                where=data.path,
                fix=shell_word(key, near[0]) if is_single else f"change {key}; near it is '{short(near[0])}'",
            )
    if found := [name for name in data.targets if name in (*data.columns, split_column)]:
        key = "data.columns" if found[0] in data.columns else "split.column"
        raise DataError(
            f"{key} names the target '{short(found[0])}'",
            where=data.path,
            fix="data.task says how to read the target",
        )
