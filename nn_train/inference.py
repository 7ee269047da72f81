"""What each column means: inferred from its values, overridden by the config; and columns as typed values.

The whole table is looked at, since a type is no more than a way of reading; whatever is *fitted*
(scales, levels, bins) is fitted later, on the train rows alone.
"""

import difflib
import re
from typing import Any, NoReturn

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
DATE_PATTERN = re.compile(
    r"^(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}[ -][A-Za-z]{3,9}[ -]\d{2,4})"
    r"([ T]\d{1,2}:\d{2}.*)?$"
)
DAY_FIRST = re.compile(r"^(1[3-9]|2\d|3[01])[-/.]\d{1,2}[-/.]\d{2,4}")
ID_NAME = re.compile(
    r"(^|[_\s.-])(id|ids|uuid|guid|key|index|idx|rowid|row)$|[a-z]I[Dd]$|^unnamed|^column_\d+$", re.IGNORECASE
)
ID_NAME_CAMEL = re.compile(r"[a-z]I[Dd]$")
NUMERIC_SHARE = 0.9  # a text column that is mostly numbers is taken for numbers with a mistake in them
DATE_SHARE = 0.95
ID_SHARE = 0.95
FEW_ROWS = 30  # fewer distinct values than this are no sign of an id
MOST_CLASSES = 20  # whole numbers with more distinct values are a quantity, not classes
MOST_TEXT_CLASSES = 1000
FREE_TEXT_WORDS = 4

Rows = datasets.Dataset | pa.Table


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
    columns = []
    for name in rows.column_names:
        if name == data.target:
            continue
        spec = _infer_column(name, present.column(name), data, reason=excluded.get(name, ""))
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
        num_rows=int(has_target.sum()),
        num_rows_without_target=int((~has_target).sum()),
    )


def typed_frame(table: Rows, schema: TableSchema, data: DataConfig) -> pd.DataFrame:
    """Columns by their kind: float64, text with None, or datetime64; the target as text or float64."""
    rows = _as_arrow(table)
    values = {spec.name: _typed(rows.column(spec.name), spec.kind, data) for spec in schema.features}
    target = schema.target
    if target.name in rows.column_names:
        column = rows.column(target.name)
        values[target.name] = (
            _typed(column, "numeric", data) if target.task == "regression" else _class_names(column, data)
        )
    return pd.DataFrame(values)


def _as_arrow(table: Rows) -> pa.Table:
    return table.with_format("arrow")[:] if isinstance(table, datasets.Dataset) else table


# --- values -----------------------------------------------------------------------------------------------------------


def _is_text(array: pa.ChunkedArray) -> bool:
    kind = array.type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(array: pa.ChunkedArray) -> bool:
    kind = array.type
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _plain(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries and nulls as what they stand for."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _text(array: pa.ChunkedArray, data: DataConfig) -> pa.ChunkedArray:
    """Text without spaces around it; null where it is a word for a missing value."""
    array = _plain(array)
    if pa.types.is_boolean(array.type):
        return array.cast(pa.string())
    if _is_number(array):
        return pa.chunked_array([pa.array(_number_names(array))], type=pa.string())
    if not _is_text(array):
        return array.cast(pa.string())
    trimmed = pc.utf8_trim_whitespace(array)
    words = pa.array([word.strip() for word in data.missing_values], type=trimmed.type)
    return pc.if_else(pc.is_in(trimmed, value_set=words), pa.scalar(None, trimmed.type), trimmed)


def _number_names(array: pa.ChunkedArray) -> list[str | None]:
    """Whole numbers without a point, so that 1 and 1.0 are one level."""
    values = array.cast(pa.float64()).to_numpy()
    return [None if np.isnan(v) else str(int(v)) if v.is_integer() else repr(float(v)) for v in map(float, values)]


def _numbers(array: pa.ChunkedArray, data: DataConfig) -> np.ndarray:
    """float64 with NaN where nothing, or no number, stands; infinities are kept."""
    array = _plain(array)
    if _is_number(array) or pa.types.is_boolean(array.type):
        return array.cast(pa.float64(), safe=False).to_numpy().copy()
    text = _text(array, data)
    try:
        return text.cast(pa.float64()).to_numpy().copy()
    except pa.ArrowInvalid:
        return pd.to_numeric(text.to_pandas(), errors="coerce").to_numpy(np.float64)


def _dates(array: pa.ChunkedArray, data: DataConfig) -> pd.Series:
    """datetime64 without a time zone, NaT where nothing stands."""
    array = _plain(array)
    if pa.types.is_temporal(array.type):
        values = pd.to_datetime(array.to_pandas(), errors="coerce", utc=True)
        return values.dt.tz_localize(None)
    text = _text(array, data).to_pandas()
    distinct = pd.Series(text.dropna().unique(), dtype=object)
    day_first = bool(distinct.astype(str).str.match(DAY_FIRST).any())
    parsed = pd.to_datetime(distinct, errors="coerce", format="mixed", dayfirst=day_first, utc=True)
    return text.map(dict(zip(distinct, parsed.dt.tz_localize(None), strict=True))).astype("datetime64[ns]")


def _typed(array: pa.ChunkedArray, kind: Kind, data: DataConfig) -> Any:
    if kind == "numeric":
        numbers = _numbers(array, data)
        numbers[np.isinf(numbers)] = np.nan
        return numbers
    if kind == "date":
        return _dates(array, data).to_numpy()
    return _text(array, data).to_pandas().astype(object).to_numpy()


def _class_names(array: pa.ChunkedArray, data: DataConfig) -> np.ndarray:
    """Classes as text; numbers in one spelling, so that `1` and `1.0` are one class."""
    text = _text(array, data)
    if _is_text(_plain(array)):
        try:
            text = pa.chunked_array([pa.array(_number_names(text.cast(pa.float64())))], type=pa.string())
        except pa.ArrowInvalid:
            pass
    return text.to_pandas().astype(object).to_numpy()


# --- columns ----------------------------------------------------------------------------------------------------------


def _infer_column(name: str, array: pa.ChunkedArray, data: DataConfig, *, reason: str) -> ColumnSpec:
    array = _plain(array)
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        return ColumnSpec(
            name=name,
            kind="categorical",
            num_missing=array.null_count,
            num_distinct=0,
            dropped=reason or f"holds {array.type}, which is neither number, text nor date",
        )
    text = _text(array, data) if not pa.types.is_floating(array.type) else array
    num_missing = text.null_count
    distinct = pc.unique(text.drop_null())
    if pa.types.is_floating(array.type):
        num_missing = int(np.isnan(_numbers(array, data)).sum())
    facts: dict[str, Any] = {"name": name, "num_missing": num_missing, "num_distinct": len(distinct)}
    if len(distinct):
        facts["example"] = str(distinct[0].as_py())[:40]
    if reason:
        return ColumnSpec(
            **facts, kind=_guess_kind(array, text, distinct, data), dropped=reason, is_id=reason == "data.id"
        )
    if num_missing == len(array):
        raise DataError(f"column '{name}' has no value in any row", where=data.path, fix=f"data.drop=[{name}]")
    chosen = data.columns.get(name)
    if chosen not in (None, "keep"):
        _refuse_infinite(name, array, data, kind=chosen)
        return ColumnSpec(**facts, kind=chosen)  # type: ignore[arg-type]
    kind = _guess_kind(array, text, distinct, data)
    _refuse_mistakes(name, array, text, kind, data)
    _refuse_infinite(name, array, data, kind=kind)
    if len(distinct) == 1:
        # with gaps, only whether the value is there tells rows apart: a category
        return ColumnSpec(
            **facts, kind="categorical" if num_missing else kind, dropped="" if num_missing else "constant"
        )
    if chosen == "keep":
        return ColumnSpec(**facts, kind=kind)
    dropped = _why_id(name, array, kind, distinct, num_missing, data)
    return ColumnSpec(**facts, kind=kind, dropped=dropped, is_id=dropped.startswith("id-like"))


def _guess_kind(array: pa.ChunkedArray, text: pa.ChunkedArray, distinct: pa.Array, data: DataConfig) -> Kind:
    if pa.types.is_boolean(array.type):
        return "boolean"
    if pa.types.is_temporal(array.type) and not pa.types.is_duration(array.type):
        return "date"
    if not len(distinct):
        return "categorical"
    if len(distinct) == 2:
        words = [str(value.as_py()).lower() for value in distinct]
        if frozenset(word.removesuffix(".0") for word in words) in BOOLEAN_PAIRS:
            return "boolean"
    if _is_number(array):
        return "numeric"
    numbers = pd.to_numeric(pd.Series(distinct.to_pylist(), dtype=object), errors="coerce")
    if numbers.notna().all():
        return "numeric"
    if numbers.notna().mean() < 0.5:
        values = pd.Series(distinct.to_pylist()[:2000], dtype=object).astype(str)
        is_date = values.str.match(DATE_PATTERN)
        if is_date.mean() >= DATE_SHARE:
            parsed = pd.to_datetime(values[is_date], errors="coerce", format="mixed", utc=True)
            if parsed.notna().mean() >= DATE_SHARE:
                return "date"
    return "categorical"


def _refuse_mistakes(name: str, array: pa.ChunkedArray, text: pa.ChunkedArray, kind: Kind, data: DataConfig) -> None:
    """A column of numbers with a few texts in it is a mistake in the table, not a category."""
    if kind != "categorical" or not _is_text(array):
        return
    values = text.to_pandas()
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values.notna() & numbers.isna()
    num_present = int(values.notna().sum())
    is_mistake = wrong.sum() == 1 or numbers.nunique() > MOST_CLASSES
    if num_present < 3 or not is_mistake or numbers.notna().sum() < NUMERIC_SHARE * num_present:
        return
    row = int(np.argmax(wrong.to_numpy()))
    word = values.iloc[row]
    more = f" ({int(wrong.sum())} rows hold no number)" if wrong.sum() > 1 else ""
    raise DataError(
        f"column '{name}' holds numbers, and the text '{word}' in {_where(data, array, row, values)}{more}",
        where=data.path,
        fix=f"mend it, or data.columns.{name}=numeric (text is then missing) or categorical",
    )


def _refuse_infinite(name: str, array: pa.ChunkedArray, data: DataConfig, *, kind: str | None) -> None:
    if kind != "numeric" or data.infinite == "missing":
        return
    infinite = np.isinf(_numbers(array, data))
    if infinite.any():
        row = int(np.argmax(infinite))
        raise DataError(
            f"column '{name}' holds an infinite number in {_where(data, array, row, None)}",
            where=data.path,
            fix="mend it, or data.infinite=missing",
        )


def _where(data: DataConfig, array: pa.ChunkedArray, row: int, values: Any) -> str:
    """The row's place in the files; rows without a target are not in `array`, so the count is then only of rows."""
    return name_row(data, row)


def _why_id(
    name: str, array: pa.ChunkedArray, kind: Kind, distinct: pa.Array, num_missing: int, data: DataConfig
) -> str:
    num_present = len(array) - num_missing
    if num_present <= FEW_ROWS or len(distinct) < ID_SHARE * num_present:
        return ""
    if kind == "categorical":
        words = np.mean([len(str(value.as_py()).split()) for value in distinct[:200]])
        if words > FREE_TEXT_WORDS:
            return "free text"
        return f"id-like: {len(distinct)} distinct values in {num_present} rows"
    if kind != "numeric" or len(distinct) < num_present:
        return ""
    numbers = _numbers(array, data)
    steps = np.diff(numbers[~np.isnan(numbers)])
    is_counter = bool((steps == 1).all() or (steps == -1).all())
    is_whole = bool((numbers[~np.isnan(numbers)] % 1 == 0).all())
    if is_whole and (is_counter or ID_NAME.search(name) or ID_NAME_CAMEL.search(name)):
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
            raise DataError(
                f"there is no column '{name}'; the columns are {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}",
                where=data.path,
                fix=f"{key}={near[0]}"
                if key in ("data.target", "split.column")
                else f"mend {key}; near it is '{near[0]}'",
            )
    if data.target in data.columns or data.target == split_column:
        key = "data.columns" if data.target in data.columns else "split.column"
        raise DataError(
            f"{key} names the target '{data.target}'", where=data.path, fix="data.task says how to read the target"
        )


# --- target -----------------------------------------------------------------------------------------------------------


def _infer_target(array: pa.ChunkedArray, data: DataConfig) -> tuple[TargetSpec, np.ndarray]:
    """The task with its classes, and which rows have a target."""
    array = _plain(array)
    names = pd.Series(_class_names(array, data), dtype=object)
    present = names.notna()
    if not present.any():
        _refuse_target("has no value in any row", data)
    counts = names[present].value_counts()
    if len(counts) == 1:
        _refuse_target(f"is '{counts.index[0]}' in every row; there is nothing to learn", data)
    numbers = pd.to_numeric(names[present], errors="coerce")
    task = data.task if data.task != "auto" else _guess_task(numbers, counts)
    if task == "regression":
        _check_numbers(names, present, data)
        return TargetSpec(name=data.target, task=task), present.to_numpy()
    if task == "binary" and len(counts) != 2:
        _refuse_target(f"holds {len(counts)} classes, and data.task=binary needs two", data, fix="data.task=multiclass")
    _check_classes(names, counts, data)
    classes = sorted(counts.index, key=_class_order(numbers.notna().all()))
    if data.positive is not None:
        if task != "binary" or data.positive not in classes:
            _refuse_target(
                f"has the classes {', '.join(classes[:10])}; data.positive={data.positive} is none of two",
                data,
                fix=f"data.positive={classes[-1]}, or leave it out",
            )
        classes = [name for name in classes if name != data.positive] + [data.positive]
    return TargetSpec(name=data.target, task=task, classes=tuple(classes)), present.to_numpy()


def _guess_task(numbers: pd.Series, counts: pd.Series) -> Task:
    if len(counts) == 2:
        return "binary"
    if not numbers.notna().all():
        # numbers with a text among them: read as numbers, so that the text is named as a mistake
        is_mistake = numbers.notna().mean() >= NUMERIC_SHARE and numbers.nunique() > MOST_CLASSES
        return "regression" if is_mistake else "multiclass"
    is_whole = bool((numbers[np.isfinite(numbers)] % 1 == 0).all())
    most = min(MOST_CLASSES, len(numbers) // 10)
    return "multiclass" if is_whole and len(counts) <= most else "regression"


def _class_order(are_numbers: bool) -> Any:
    return float if are_numbers else lambda name: (name.lower() in ("yes", "true", "y", "t"), name)


def _check_numbers(names: pd.Series, present: pd.Series, data: DataConfig) -> None:
    numbers = pd.to_numeric(names, errors="coerce")
    for wrong, what in ((present & numbers.isna(), "which is no number"), (np.isinf(numbers), "which is infinite")):
        if wrong.any():
            row = int(np.argmax(wrong.to_numpy()))
            _refuse_target(
                f"holds '{names.iloc[row]}' in {name_row(data, row)}, {what}",
                data,
                fix="mend it, or data.task=multiclass",
            )


def _check_classes(names: pd.Series, counts: pd.Series, data: DataConfig) -> None:
    if len(counts) > MOST_TEXT_CLASSES or len(counts) > 0.5 * counts.sum():
        _refuse_target(
            f"holds {len(counts)} classes in {int(counts.sum())} rows",
            data,
            fix="another data.target, or data.task=regression",
        )
    if counts.min() == 1:
        single = str(counts.index[int(np.argmin(counts.to_numpy()))])
        row = int(np.argmax((names == single).to_numpy()))
        _refuse_target(
            f"has the class '{single}' in one row only ({name_row(data, row)}); it cannot be learned and judged",
            data,
            fix="mend or remove that row, or merge the class with another",
        )


def _refuse_target(what: str, data: DataConfig, *, fix: str = "another data.target") -> NoReturn:
    raise DataError(f"the target '{data.target}' {what}", where=data.path, fix=fix)
