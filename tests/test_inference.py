"""What a column is taken for, how its values are read, and the task."""

import datetime
import decimal
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nn_train.errors import DataError
from nn_train.inference import infer_schema
from nn_train.schema import ColumnSpec, TableSchema
from nn_train.settings import DataConfig
from nn_train.table import read_table
from nn_train.values import parse_number, typed_frame

NUM_ROWS = 120
RNG = np.random.default_rng(0)
TARGET = ["yes" if row % 3 else "no" for row in range(NUM_ROWS)]


def cycle(*values: Any) -> list[Any]:
    """The values over and over, one per row."""
    return [values[row % len(values)] for row in range(NUM_ROWS)]


def infer(cells: dict[str, Any], /, *, split: dict[str, Any] | None = None, **settings: Any) -> TableSchema:
    """The schema of columns beside a target `y` and a feature that is never dropped."""
    table = pa.table({"x": cycle(0.5, 1.5, -2.25), **cells} | ({} if "y" in cells else {"y": TARGET}))
    return infer_schema(table, DataConfig(path="none.csv", target="y", **settings), **(split or {}))


def spec_of(values: Any, name: str = "a", **settings: Any) -> ColumnSpec:
    """What is inferred of one column."""
    return next(spec for spec in infer({name: values}, **settings).columns if spec.name == name)


def typed(values: Any, **settings: Any) -> list[Any]:
    """The typed values of one column, None where missing."""
    table = pa.table({"a": values, "x": cycle(0.5, 1.5, -2.25), "y": TARGET})
    data = DataConfig(path="none.csv", target="y", **settings)
    column = typed_frame(table, infer_schema(table, data), data)["a"]
    return [None if pd.isna(value) else value for value in column]


def write(tmp_path: Path, cells: dict[str, list[Any]], /, **settings: Any) -> tuple[pa.Table, DataConfig]:
    """Columns as a CSV, read back."""
    path = tmp_path / "t.csv"
    pd.DataFrame(cells).to_csv(path, index=False)
    data = DataConfig(path=str(path), target="y", **settings)
    return read_table(data), data


# --- kinds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (cycle("1", "-2.5", "+3e-2", ".5", "7."), "numeric"),
        (cycle("1", "2", "3"), "numeric"),
        (cycle("1,234.50", "12", "1,000,000"), "numeric"),
        (cycle("12%", "3.5 %"), "numeric"),
        (cycle("$1,200", "€ 3.50"), "numeric"),
        (cycle("12:30", "09:05:30", "2 days 01:00:00"), "numeric"),
        (pa.array(cycle(1, 2, None)), "numeric"),
        (pa.array(cycle(decimal.Decimal("1.50"), decimal.Decimal("2.00"), None)), "numeric"),
        (pa.array(cycle(datetime.time(12, 30), None, datetime.time(1))), "numeric"),
        (pa.array(cycle(datetime.timedelta(hours=1), datetime.timedelta(days=2))), "numeric"),
        (pa.array(np.array(cycle(1, 2, 3), dtype=np.float16)), "numeric"),
        (pa.array(cycle(2**64 - 1, 5, 7), pa.uint64()), "numeric"),
        (cycle("red", "green"), "categorical"),
        (cycle("01234", "90210"), "categorical"),
        (cycle("1.2.3", "10.0.19"), "categorical"),
        (cycle("10.0.0.1", "10.0.0.2"), "categorical"),
        (pa.array(cycle("red", None)).dictionary_encode(), "categorical"),
        (pa.array(cycle("red", "green"), pa.large_string()), "categorical"),
        (cycle("yes", "no"), "boolean"),
        (cycle("Yes", "no", "NO ", "yes"), "boolean"),
        (cycle("true", "False", "TRUE"), "boolean"),
        (cycle("t", "f"), "boolean"),
        (cycle("Y", "N"), "boolean"),
        (cycle("0", "1"), "boolean"),
        (cycle("0.0", "1", "1.0"), "boolean"),
        (pa.array(cycle(0, 1)), "boolean"),
        (pa.array(cycle(0.0, 1.0, None)), "boolean"),
        (pa.array(cycle(True, False, None)), "boolean"),
        (cycle("2024-01-05", "2024-02-29"), "date"),
        (cycle("2024-01-05 10:30:00", "2024-02-29T23:59"), "date"),
        (cycle("13/02/2024", "01/02/2024"), "date"),
        (cycle("2/13/2024", "1/2/2024"), "date"),
        (cycle("5.3.2024", "06.03.2024"), "date"),
        (cycle("5 Mar 2024", "31-Dec-2023"), "date"),
        (pa.array(cycle(datetime.date(2024, 1, 5), datetime.date(2024, 2, 29))), "date"),
        (pa.array(cycle(*pd.date_range("2024-03-31", periods=5, freq="h", tz="Europe/Berlin"))), "date"),
    ],
)
def test_the_kind_of_a_column(values: Any, kind: str) -> None:
    spec = spec_of(values)
    assert (spec.kind, spec.dropped) == (kind, "")


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("a", cycle("same"), "constant"),
        ("a", cycle("7"), "constant"),
        ("a", pa.array(cycle(2.5)), "constant"),
        ("a", [f"customer {row}" for row in range(NUM_ROWS)], "id-like"),
        ("a", [f"{row:05d}" for row in range(NUM_ROWS)], "id-like"),
        ("a", [str(row) for row in range(NUM_ROWS)], "id-like"),
        ("a", list(range(NUM_ROWS, 0, -1)), "id-like"),
        ("customer_id", (RNG.permutation(NUM_ROWS) * 7).tolist(), "id-like"),
        ("CustomerID", (RNG.permutation(NUM_ROWS) * 7).tolist(), "id-like"),
        ("__index_level_0__", RNG.permutation(NUM_ROWS).tolist(), "id-like"),
        ("account", (2**60 + RNG.permutation(10**6)[:NUM_ROWS]).tolist(), "id-like"),
        ("a", [f"this is what customer {row} wrote to us" for row in range(NUM_ROWS)], "free text"),
        ("a", [[1, 2]] * NUM_ROWS, "holds list<item: int64>"),
        ("a", [{"b": 1}] * NUM_ROWS, "holds struct<b: int64>"),
        ("a", [b"bytes"] * NUM_ROWS, "holds binary"),
    ],
)
def test_columns_that_are_no_features(name: str, values: Any, why: str) -> None:
    spec = spec_of(values, name=name)
    assert spec.dropped.startswith(why)
    assert spec.is_id == why.startswith("id-like")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a", np.sort(RNG.permutation(10**6)[:NUM_ROWS]).tolist()),  # sorted, and no counter
        ("a", RNG.permutation(10**6)[:NUM_ROWS].tolist()),
        ("paid", RNG.permutation(10**6)[:NUM_ROWS].tolist()),  # ends in "id", and is none
        ("humid", RNG.permutation(10**6)[:NUM_ROWS].tolist()),
        ("a", (RNG.permutation(NUM_ROWS) + 0.5).tolist()),
        ("a", np.repeat(np.arange(NUM_ROWS // 2), 2).tolist()),
        ("a", pd.date_range("2024-01-01", periods=NUM_ROWS).tolist()),
    ],
)
def test_features_that_only_look_like_ids(name: str, values: Any) -> None:
    assert spec_of(values, name=name).dropped == ""


def test_few_rows_are_no_sign_of_an_id() -> None:
    table = pa.table({"code": [f"c{row}" for row in range(20)], "y": TARGET[:20]})
    assert infer_schema(table, DataConfig(path="t.csv", target="y")).columns[0].dropped == ""


def test_a_constant_with_gaps_is_a_category() -> None:
    for values in (cycle("x", ""), cycle("5", "NA"), pa.array(cycle(5.0, None)), pa.array(cycle(5.0, math.nan))):
        spec = spec_of(values)
        assert (spec.kind, spec.dropped, spec.num_missing, spec.num_distinct) == ("categorical", "", NUM_ROWS // 2, 1)


def test_words_for_missing_values_with_spaces_around_them() -> None:
    values = cycle("1", " NA ", "", "  ", "null", "2", "n/a ", "NaN", "None", "3")
    assert spec_of(values).num_missing == 7 * NUM_ROWS // 10
    assert typed(values)[:10] == [1.0, None, None, None, None, 2.0, None, None, None, 3.0]
    assert typed(cycle("1", "?", "2"), missing_values=("?", ""))[:3] == [1.0, None, 2.0]
    assert typed(cycle("NA", "SA", "EU"), missing_values=("",))[:3] == ["NA", "SA", "EU"]
    assert typed(pa.array(cycle("NA", "SA", None)))[:3] == [None, "SA", None]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (cycle("1,234.50", "-12", "$7", "12.5%", "1e3", "00:01:30"), [1234.5, -12.0, 7.0, 12.5, 1000.0, 90.0]),
        (pa.array(cycle(datetime.time(0, 1, 30), datetime.time(1))), [90.0, 3600.0]),
        (pa.array(cycle(datetime.timedelta(days=1), None, datetime.timedelta(hours=2))), [86400.0, None, 7200.0]),
        (pa.array(cycle(decimal.Decimal("1.25"), None, decimal.Decimal("-2.5"))), [1.25, None, -2.5]),
        (cycle("Yes", "no", "YES "), ["yes", "no", "yes"]),
        (cycle("1.0", "0", "", "1"), ["1", "0", None, "1"]),
        (pa.array(cycle(True, None, False)), ["true", None, "false"]),
        (cycle("00501", "10001"), ["00501", "10001"]),
        (cycle("red ", "red", " blue"), ["red", "red", "blue"]),
    ],
)
def test_values_are_read_by_their_kind(values: Any, expected: list[Any]) -> None:
    found = typed(values, columns={"a": "categorical"} if values[0] == "1.0" else {})
    assert found[: len(expected)] == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (cycle("2024-02-01", "", "2024-02-01 10:30"), ["2024-02-01", None, "2024-02-01 10:30"]),
        (cycle("01/02/2024", "13/02/2024"), ["2024-02-01", "2024-02-13"]),  # the 13 tells: day first
        (cycle("01/02/2024", "02/13/2024"), ["2024-01-02", "2024-02-13"]),
        (cycle("01.02.2024", "03.02.2024"), ["2024-02-01", "2024-02-03"]),
        (cycle("2024-02-01", "13/02/2024"), ["2024-02-01", "2024-02-13"]),  # ISO stays ISO among day-first dates
        (cycle("31/12/69", "1/12/24 9:05"), ["1969-12-31", "2024-12-01 09:05"]),
        (cycle("2024-02-01T00:30:00+02:00", "2024-02-01T00:30:00Z"), ["2024-01-31 22:30", "2024-02-01 00:30"]),
        (cycle("5 Mar 2024", "06 April 2024"), ["2024-03-05", "2024-04-06"]),
        (cycle("9999-12-31", "0001-01-01", "2024-02-01"), [None, None, "2024-02-01"]),
        (pa.array(cycle(datetime.datetime(9999, 12, 31), datetime.datetime(2024, 2, 1))), [None, "2024-02-01"]),
        (pa.array(cycle(datetime.date(2024, 2, 1), None)), ["2024-02-01", None]),
        (pa.array(cycle(pd.Timestamp("2024-02-01 00:30", tz="Europe/Berlin"), None)), ["2024-01-31 23:30", None]),
    ],
)
def test_dates_are_read_as_utc(values: Any, expected: list[str | None]) -> None:
    found = typed(values, columns={"a": "date"})
    assert found[: len(expected)] == [None if text is None else pd.Timestamp(text) for text in expected]


def test_a_chosen_date_may_be_written_in_more_ways_but_never_depends_on_today() -> None:
    values = cycle("20240131", "2024", "2024-02", "now", "today", "12:30", "Jan 2024")
    dates = ["2024-01-31", "2024-01-01", "2024-02-01", None, None, None, "2024-01-01"]
    found = typed(values, columns={"a": "date"})
    assert found[:7] == [None if text is None else pd.Timestamp(text) for text in dates]
    assert typed(pa.array(cycle(20240131, 20240201)), columns={"a": "date"})[1] == pd.Timestamp("2024-02-01")


def test_any_batch_of_rows_reads_as_the_whole_table_does() -> None:
    columns = {
        "day": ["01/02/2024"] * 60 + ["13/02/2024"] * 60,
        "amount": ["12"] * 60 + ["1,200"] * 60,
        "code": ["1.0"] * 60 + ["A1"] * 60,
        "flag": ["Yes"] * 60 + ["no"] * 60,
        "gaps": [""] * 60 + ["3"] * 30 + ["4"] * 30,
        "y": ["01"] * 40 + ["2.0"] * 40 + ["b"] * 40,
    }
    table = pa.table(columns)
    data = DataConfig(path="none.csv", target="y")
    schema = infer_schema(table, data)
    whole = typed_frame(table, schema, data)
    parts = [typed_frame(table.slice(start, 10), schema, data) for start in range(0, NUM_ROWS, 10)]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
    assert all((part.dtypes == whole.dtypes).all() for part in parts)
    assert schema.target.classes == ("01", "2", "b")


@given(st.text(alphabet="0123456789.,-+einfNa%$: ", max_size=12) | st.floats().map(repr))
@settings(max_examples=400, deadline=None)
def test_a_number_reads_the_same_alone_and_among_others(text: str) -> None:
    """Arrow reads whole columns of plain numbers, `parse_number` single values: they agree."""
    try:
        expected = pa.array([text]).cast(pa.float64())[0].as_py()
    except pa.ArrowInvalid:
        return
    np.testing.assert_equal(parse_number(text), expected)


CELLS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", " ", "NA", "1", "2", "3.5", "-7", "1,000", "inf", "nan", "yes", "No", "12:30", "50%", "007"]),
    st.sampled_from(["2024-01-05", "13/02/2024", "9999-12-31", "2024-13-45", "now", "1e400", "x", "\0", "é", "٣"]),
)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, st.sampled_from(["a", "b", "7"])), min_size=4, max_size=40),
    kinds=st.tuples(*[st.sampled_from(["numeric", "categorical", "boolean", "date", "keep", "auto"])] * 2),
    other=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_tables_are_refused_or_typed(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], kinds: tuple[str, str], other: list[Any]
) -> None:
    """Whatever a table holds: a clear refusal, or columns of the right type, also for rows not seen before."""
    names = ("a", "b", "y")
    table = pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)})
    unseen = pa.table({name: [row[i] for row in other] for i, name in enumerate(names)})
    chosen = {name: kind for name, kind in zip("ab", kinds, strict=True) if kind != "auto"}
    path = tmp_path_factory.getbasetemp() / "random.parquet"
    pq.write_table(table, path)
    data = DataConfig(path=str(path), target="y", columns=chosen, infinite="missing")
    try:
        schema = infer_schema(table, data)
    except DataError as error:
        assert error.fix and error.where == str(path)
        return
    for part in (table, unseen):
        frame = typed_frame(part, schema, data)
        assert len(frame) == len(part)
        for spec in schema.features:
            values = frame[spec.name]
            if spec.kind == "numeric":
                assert values.dtype == np.float64 and not np.isinf(values).any()
            elif spec.kind == "date":
                assert values.dtype == "datetime64[ns]"
            else:
                assert all(value is None or isinstance(value, str) for value in values)


# --- overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numeric", "categorical", "boolean", "date"])
def test_a_chosen_kind_is_taken(kind: str) -> None:
    spec = spec_of(cycle("20240131", "20240201"), columns={"a": kind})
    assert (spec.kind, spec.dropped) == (kind, "")


def test_columns_that_the_user_leaves_out_or_keeps() -> None:
    counter = [str(row) for row in range(NUM_ROWS)]
    columns = {"a": counter, "b": counter, "c": counter, "d": counter, "nested": [[1]] * NUM_ROWS}
    schema = infer(columns, drop=("a",), id=("b", "nested"), columns={"c": "drop", "d": "keep"})
    found = {spec.name: (spec.dropped, spec.is_id) for spec in schema.columns}
    assert found["a"] == ("data.drop", False)
    assert found["b"] == ("data.id", True)
    assert found["c"] == ("data.columns", False)
    assert found["d"] == ("", False)
    assert found["nested"] == ("data.id", True)
    assert schema.id_columns == ("b", "nested")
    assert [spec.name for spec in schema.features] == ["x", "d"]


def test_text_in_a_column_that_is_chosen_to_be_numeric_is_missing() -> None:
    assert typed(cycle("1", "two", "3"), columns={"a": "numeric"})[:3] == [1.0, None, 3.0]


def test_a_dropped_column_may_hold_anything() -> None:
    columns = {"a": [""] * NUM_ROWS, "b": cycle("inf", "1"), "c": cycle(*["1.5"] * 50, "two", *["2.5"] * 50)}
    assert len(infer(columns, drop=("a", "b", "c")).features) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "Y"}, "there is no column 'Y'; the columns are a b, x, y\n  mend: data.target=y"),
        ({"drop": ("ab",)}, "change data.drop; near it is 'a b'"),
        ({"id": ("zz",)}, "there is no column 'zz'"),
        ({"columns": {"a  b": "drop"}}, "change data.columns; near it is 'a b'"),
        ({"columns": {"y": "numeric"}}, "data.columns names the target 'y'"),
    ],
)
def test_names_that_do_not_exist(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    table, data = write(tmp_path, {"a b": cycle("1", "2"), "x": cycle("3", "4"), "y": TARGET})
    with pytest.raises(DataError) as caught:
        infer_schema(table, data.model_copy(update=settings))
    assert message in str(caught.value)


def test_the_split_column_is_no_feature_but_time_is() -> None:
    columns = {"when": list(range(NUM_ROWS))}
    group = infer(columns, split={"split_column": "when"})
    assert (group.columns[1].dropped, group.columns[1].is_id) == ("split column", False)
    time = infer(columns, split={"split_column": "when", "split_column_is_feature": True})
    assert (time.columns[1].dropped, time.columns[1].is_id) == ("", False)
    with pytest.raises(DataError, match=r"split\.column names the target"):
        infer(columns, split={"split_column": "y"})


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([*map(str, range(0, 200, 2)), "2O", *["3"] * 19], "holds numbers, and the text '2O' in line 102"),
        (
            cycle(*map(str, range(37)), "?", "4", "?"),
            "holds numbers, and the text '?' in line 39 of t.csv, and such in 5",
        ),
        (
            cycle("1.5", *["2"] * 39, "x"),
            "holds numbers, and the text 'x' in line 42 of t.csv, and such in 1 more row\n",
        ),
        (
            cycle(*["2024-01-05"] * 59, "unknown"),
            "holds dates, and 'unknown' in line 61 of t.csv, and such in 1 more row",
        ),
        (cycle("3,14", "2,5", "1"), "holds numbers with a decimal comma: '3,14' in line 2"),
        (cycle("1", "2", "inf", "3"), "holds an infinite number in line 4"),
        ([""] * NUM_ROWS, "column 'a b' has no value in any row\n  mend: 'data.columns.a b=drop'"),
    ],
)
def test_a_mistake_in_a_column_is_named_with_its_line(tmp_path: Path, column: list[str], message: str) -> None:
    if message.startswith("holds numbers, and the text 'x'"):
        column = [value if value == "x" else str(row) for row, value in enumerate(column)]
    table, data = write(tmp_path, {"a b": column, "x": cycle("3", "4"), "y": TARGET})
    with pytest.raises(DataError) as caught:
        infer_schema(table, data)
    assert message in str(caught.value)
    assert str(tmp_path / "t.csv") in str(caught.value)


def test_the_line_of_a_mistake_counts_rows_without_a_target(tmp_path: Path) -> None:
    column = [*map(str, range(0, 200, 2)), "2O", *["3"] * 19]
    table, data = write(tmp_path, {"a": column, "y": ["", "", *TARGET[2:]]})
    with pytest.raises(DataError, match="in line 102 of"):
        infer_schema(table, data)


def test_words_in_many_rows_are_a_category_not_a_mistake() -> None:
    assert spec_of(cycle("1", "2", "3", "4+")).kind == "categorical"


def test_a_kind_that_no_value_has_is_refused(tmp_path: Path) -> None:
    for kind, what in (("numeric", "is to be numeric, and no value of it is: 'red' in line 2"), ("date", "to be date")):
        table, data = write(tmp_path, {"a": cycle("red", "blue"), "y": TARGET}, columns={"a": kind})
        with pytest.raises(DataError, match=what):
            infer_schema(table, data)


def test_infinities_may_be_taken_as_missing() -> None:
    assert typed(cycle("1", "inf", "-Infinity"), infinite="missing")[:3] == [1.0, None, None]
    assert typed(pa.array(cycle(1.0, math.inf, 2.0)), infinite="missing")[:3] == [1.0, None, 2.0]
    schema = infer({"y": pa.array([*np.arange(NUM_ROWS - 1) / 3, math.inf])}, infinite="missing")
    assert (schema.target.task, schema.num_rows, schema.num_rows_without_target) == ("regression", NUM_ROWS - 1, 1)


def test_no_feature_left() -> None:
    table = pa.table({"code": [f"c{row}" for row in range(NUM_ROWS)], "same": cycle("k"), "y": TARGET})
    with pytest.raises(DataError, match=r"no feature is left \(code: id-like.*; same: constant\)"):
        infer_schema(table, DataConfig(path="t.csv", target="y"))
    with pytest.raises(DataError, match="the table holds the target alone"):
        infer_schema(table.select(["y"]), DataConfig(path="t.csv", target="y"))


# --- target -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "settings", "task", "classes"),
    [
        (cycle("no", "yes"), {}, "binary", ("no", "yes")),
        (cycle("Yes", "No"), {}, "binary", ("No", "Yes")),
        (cycle("TRUE", "FALSE"), {}, "binary", ("FALSE", "TRUE")),
        (cycle("Y", "n"), {}, "binary", ("n", "Y")),
        (cycle("true", "wrong"), {}, "binary", ("wrong", "true")),
        (pa.array(cycle(True, False)), {}, "binary", ("false", "true")),
        (pa.array(cycle("b", "a")).dictionary_encode(), {}, "binary", ("a", "b")),
        (cycle("1", "0"), {}, "binary", ("0", "1")),
        (cycle("1", "0", "1.0"), {}, "binary", ("0", "1")),
        (pa.array(cycle(1.0, 0.0)), {}, "binary", ("0", "1")),
        (cycle("10", "2"), {}, "binary", ("2", "10")),
        (cycle("10", "2", "1"), {}, "multiclass", ("1", "2", "10")),
        (cycle("b", "c", "a"), {}, "multiclass", ("a", "b", "c")),
        (pa.array(cycle(2**60 + 1, 2**60 + 2, 5)), {}, "multiclass", ("5", str(2**60 + 1), str(2**60 + 2))),
        (pa.array(cycle(0.5, 1.5, 2.5)), {"task": "multiclass"}, "multiclass", ("0.5", "1.5", "2.5")),
        (cycle("0.5", "1.5", "2.5"), {}, "regression", ()),
        (cycle(*map(str, range(30))), {}, "regression", ()),
        (cycle("1", "2", "3"), {"task": "regression"}, "regression", ()),
        (cycle("1", "2"), {"task": "regression"}, "regression", ()),
        (cycle("$1,200.50", "$900.25", "7"), {}, "regression", ()),
        (cycle(*map(str, range(30))), {"task": "multiclass"}, "multiclass", tuple(map(str, range(30)))),
        (cycle("no", "yes"), {"task": "multiclass"}, "multiclass", ("no", "yes")),
        (cycle("no", "yes"), {"positive": "no"}, "binary", ("yes", "no")),
        (cycle("0", "1"), {"positive": "0.0"}, "binary", ("1", "0")),
    ],
)
def test_the_task_and_its_classes(target: Any, settings: dict[str, Any], task: str, classes: tuple[str, ...]) -> None:
    found = infer({"y": target}, **settings).target
    assert (found.task, found.classes) == (task, classes)


def test_classes_of_a_frame_are_those_of_the_schema() -> None:
    for target in (cycle("1", "0.0", "", "1.0", "0"), pa.array(cycle(1.0, 0.0, None, 1.0, 0.0))):
        table = pa.table({"x": cycle(0.5, 1.5, 2.5), "y": target})
        data = DataConfig(path="none.csv", target="y")
        assert typed_frame(table, infer_schema(table, data), data)["y"].tolist()[:5] == ["1", "0", None, "1", "0"]


def test_rows_without_a_target_are_counted() -> None:
    schema = infer({"y": cycle("a", "b", "NA", " ")})
    assert (schema.num_rows, schema.num_rows_without_target) == (NUM_ROWS // 2, NUM_ROWS // 2)
    schema = infer({"y": pa.array([*np.arange(NUM_ROWS - 10) / 3, *[None] * 5, *[math.nan] * 5], from_pandas=False)})
    assert (schema.target.task, schema.num_rows, schema.num_rows_without_target) == ("regression", NUM_ROWS - 10, 10)


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ([""] * NUM_ROWS, {}, "has no value in any row"),
        (cycle("k"), {}, "is 'k' in every row; there is nothing to learn"),
        (["a", *cycle("b", "c")[1:]], {}, "has the class 'a' in one row only (line 2 of t.csv)"),
        ([f"c{row}" for row in range(NUM_ROWS)], {}, "holds 120 classes in 120 rows"),
        (cycle("yes", "Yes", "no"), {}, "differ in case only"),
        (cycle("a", "b", "c"), {"task": "binary"}, "holds 3 classes, and data.task=binary needs two"),
        (
            cycle("a", "b"),
            {"positive": "c"},
            "has the classes a, b; data.positive=c is none of two\n  mend: data.positive=b",
        ),
        (cycle("a", "b"), {"task": "regression"}, "holds 'a' in line 2 of t.csv, which is no number"),
        ([*map(str, np.arange(119) / 3), "oops"], {}, "holds 'oops' in line 121 of t.csv, which is no number"),
        ([*map(str, np.arange(119) / 3), "inf"], {}, "holds 'inf' in line 121 of t.csv, which is infinite"),
    ],
)
def test_a_target_that_cannot_be_learned(
    tmp_path: Path, target: list[str], settings: dict[str, Any], message: str
) -> None:
    table, data = write(tmp_path, {"x": cycle("3", "4"), "y": target}, **settings)
    with pytest.raises(DataError) as caught:
        infer_schema(table, data)
    assert f"the target 'y' {message}" in str(caught.value) or message in str(caught.value)


def test_a_target_of_lists() -> None:
    with pytest.raises(DataError, match="the target 'y' holds list<item: int64>"):
        infer({"y": [[1]] * NUM_ROWS})
