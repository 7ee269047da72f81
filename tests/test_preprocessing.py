"""Preprocessing: fitted on the train rows alone, the same in any process, and never NaN."""

import dataclasses
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from nn_train.config import load_config
from nn_train.errors import DataError
from nn_train.preparation import prepare_data
from nn_train.preprocessing import bin_edges, fit_preprocessor
from nn_train.preprocessor import DATE_PARTS, LARGEST, MISSING, NUM_RESERVED, UNSEEN, Preprocessor
from nn_train.schema import ColumnSpec, TableSchema, TargetSpec
from nn_train.settings import PreprocessConfig
from tests.conftest import ROOT, make_table

SCALERS = ("quantile", "standard", "robust", "none")
KINDS = {"size": "numeric", "age": "numeric", "colour": "categorical", "member": "boolean", "day": "date"}
CLASSES = {"binary": ("no", "yes"), "multiclass": ("low", "mid", "high"), "regression": ()}


def schema_of(kinds: dict[str, Any], task: Any = "regression") -> TableSchema:
    columns = (ColumnSpec(name=name, kind=kind, num_missing=0, num_distinct=2) for name, kind in kinds.items())
    target = TargetSpec(name="y", task=task, classes=CLASSES[task])
    return TableSchema(columns=tuple(columns), target=target, num_rows=1)


def typed(num_rows: int, *, seed: int = 0, task: str = "regression") -> pd.DataFrame:
    """`make_table` as `typed_frame` gives it."""
    frame = make_table(num_rows, seed=seed, task=task).astype({"age": np.float64, "day": "datetime64[ns]"})
    return frame.astype({"colour": object, "member": object} | ({} if task == "regression" else {"y": object}))


def fit(
    frame: pd.DataFrame, kinds: dict[str, Any] = KINDS, *, task: Any = "regression", **options: Any
) -> Preprocessor:
    data = frame if "y" in frame else frame.assign(y=np.arange(len(frame), dtype=np.float64))
    return fit_preprocessor(data, schema_of(kinds, task), PreprocessConfig(**options))


def fit_numbers(values: Any, **options: Any) -> Preprocessor:
    """A preprocessor of numeric columns a, b, ... from an array (B, N) or (B,)."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    return fit(frame_of(table), {name: "numeric" for name in frame_of(table)}, **options)


def frame_of(table: np.ndarray) -> pd.DataFrame:
    table = table[:, None] if table.ndim == 1 else table
    return pd.DataFrame({chr(97 + i): table[:, i].astype(np.float64) for i in range(table.shape[1])})


def levels_frame(levels: list[str | None], name: str = "c") -> pd.DataFrame:
    return pd.DataFrame({name: np.array(levels, dtype=object)})


def digest(preprocessor: Preprocessor, frame: pd.DataFrame) -> str:
    encoded = preprocessor.transform(frame)
    sha = hashlib.sha256()
    for array in (encoded.x_num, encoded.x_cat, encoded.y):
        assert array is not None
        sha.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return sha.hexdigest()


# --- fitted on the train rows alone -----------------------------------------------------------------------------------

ANY_NUMBER = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([math.nan, 1e308, -1e308, 5e-324, 1e9, 0.0])
)
ANY_DATE = st.one_of(st.none(), st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01")))
ANY_CHANGE = {
    "size": ANY_NUMBER,
    "age": ANY_NUMBER,
    "colour": st.one_of(st.none(), st.sampled_from(["red", "blue"]), st.text("abcé日 ,\"'", max_size=8)),
    "member": st.sampled_from(["yes", "no", None]),
    "day": ANY_DATE,
    "y": st.floats(-1e6, 1e6),
}
CHANGES = st.lists(
    st.sampled_from(list(ANY_CHANGE)).flatmap(
        lambda name: st.tuples(st.just(name), st.integers(0, 35), ANY_CHANGE[name])
    ),
    min_size=1,
    max_size=30,
)
SETTINGS = st.fixed_dictionaries(
    {
        "scaler": st.sampled_from(SCALERS),
        "imputation": st.sampled_from(["mean", "median"]),
        "indicators": st.booleans(),
        "min_level_rows": st.sampled_from([1, 5]),
        "num_bins": st.sampled_from([2, 8, 48]),
    }
)


def apply_changes(frame: pd.DataFrame, changes: list[tuple[str, int, Any]], rows: np.ndarray) -> pd.DataFrame:
    changed = frame.copy()
    for name, place, value in changes:
        column = changed[name].astype(object)
        column.iloc[rows[place % len(rows)]] = value
        changed[name] = column
    return changed.astype({name: dtype for name, dtype in frame.dtypes.items() if dtype.kind in "fM"})


@settings(deadline=None, max_examples=100)
@given(changes=CHANGES, options=SETTINGS, seed=st.integers(0, 3))
def test_other_rows_never_change_the_fitted_bytes(changes: list, options: dict, seed: int) -> None:
    frame = typed(120, seed=seed)
    order = np.random.default_rng(seed).permutation(120)
    train, rest = np.sort(order[:84]), order[84:]
    changed = apply_changes(frame, changes, rest)
    assert fit(changed.iloc[train], **options).to_bytes() == fit(frame.iloc[train], **options).to_bytes()


def prepare(folder: Path, frame: pd.DataFrame, *words: str) -> Any:
    path = folder / "table.csv"
    frame.to_csv(path, index=False)
    columns = [f"data.columns.{name}={kind}" for name, kind in KINDS.items()]
    return prepare_data(load_config(words=[f"data.path={path}", "data.target=y", *columns, *words]))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_other_rows_never_change_the_bytes_of_a_prepared_table(task: str, tmp_path: Path) -> None:
    frame = make_table(120, task=task).astype({"age": np.float64})
    frame["part"] = np.random.default_rng(0).permutation(["train"] * 84 + ["val"] * 18 + ["test"] * 18)
    rest = np.flatnonzero(frame["part"] != "train")
    words = (f"data.task={task}", "split.method=column", "split.column=part", "preprocess.num_bins=8")
    before = prepare(tmp_path, frame, *words)
    np.testing.assert_array_equal(np.sort(np.concatenate([before.splits.val, before.splits.test])), rest)
    wanted = before.preprocessor.to_bytes()

    @settings(deadline=None, max_examples=40, database=None)
    @given(changes=CHANGES)
    def check(changes: list) -> None:
        possible = [change for change in changes if change[0] != "y" or task == "regression"]
        after = prepare(tmp_path, apply_changes(frame, possible, rest), *words)
        assert after.preprocessor.to_bytes() == wanted
        encoded = after.rows("train", device="cpu")
        assert encoded.x_num.equal(before.rows("train", device="cpu").x_num)

    check()


def test_train_rows_do_change_the_fitted_bytes() -> None:
    frame = typed(120)
    changed = apply_changes(frame, [("size", 0, 3.0)], np.arange(1))
    assert fit(changed).to_bytes() != fit(frame).to_bytes()


def test_the_order_of_the_columns_is_that_of_the_table() -> None:
    fitted = fit(typed(200))
    assert [column.name for column in fitted.numeric] == [
        "size",
        "age",
        *(f"day.{p}" for p in DATE_PARTS if p != "hour"),
    ]
    assert [column.column for column in fitted.categorical] == ["colour", "member"]
    assert fitted.cardinalities == (6, 4, 4)  # four colours, two words, and where `size` is missing
    assert fitted.dropped == {"day.hour": "near-constant in the train rows"}


# --- saved ------------------------------------------------------------------------------------------------------------


def save(preprocessor: Preprocessor, folder: Path) -> Path:
    for name, content in preprocessor.to_bytes().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("task", CLASSES)
def test_saved_bytes_load_to_the_same_preprocessor(scaler: str, task: str, tmp_path: Path) -> None:
    fitted = fit(typed(200, task=task), task=task, scaler=scaler)
    loaded = Preprocessor.load(save(fitted, tmp_path))
    for field in dataclasses.fields(Preprocessor):
        if field.name != "arrays":
            assert getattr(loaded, field.name) == getattr(fitted, field.name), field.name
    assert loaded.to_bytes() == fitted.to_bytes() == fit(typed(200, task=task), task=task, scaler=scaler).to_bytes()
    other = typed(80, seed=1, task=task)
    assert digest(loaded, other) == digest(fitted, other)
    assert [edges.tolist() for edges in loaded.bins] == [edges.tolist() for edges in fitted.bins]


@pytest.mark.parametrize("kinds", [{"colour": "categorical"}, {"age": "numeric"}])
def test_a_preprocessor_of_one_kind_of_columns_loads(kinds: dict, tmp_path: Path) -> None:
    fitted = fit(typed(200), kinds)
    loaded = Preprocessor.load(save(fitted, tmp_path))
    assert digest(loaded, typed(50)) == digest(fitted, typed(50))
    assert loaded.transform(typed(50)).x_num.shape == (50, int("age" in kinds))
    assert loaded.transform(typed(50)).x_cat.shape == (50, int("colour" in kinds))
    assert len(loaded.bins) == int("age" in kinds)


def test_another_process_transforms_to_the_same_bits(tmp_path: Path) -> None:
    wanted = {}
    for scaler in SCALERS:
        (tmp_path / scaler).mkdir()
        fitted = fit(typed(300), scaler=scaler)
        save(fitted, tmp_path / scaler)
        wanted[scaler] = digest(fitted, typed(120, seed=1))
    code = """
import json, sys
from pathlib import Path
from tests.test_preprocessing import SCALERS, Preprocessor, digest, typed
frame = typed(120, seed=1)
print(json.dumps({name: digest(Preprocessor.load(Path(sys.argv[1]) / name), frame) for name in SCALERS}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert json.loads(done.stdout) == wanted


def test_a_level_may_hold_any_text(tmp_path: Path) -> None:
    words = ['"', "\\", "é日\U0001f600", "a,b", "", "null", "\x00\n"]
    fitted = fit(levels_frame(words * 5), {"c": "categorical"})
    loaded = Preprocessor.load(save(fitted, tmp_path))
    assert set(loaded.categorical[0].levels) == set(words)
    assert digest(loaded, levels_frame(words).assign(y=0.0)) == digest(fitted, levels_frame(words).assign(y=0.0))


# --- numbers ----------------------------------------------------------------------------------------------------------


def numbers(num_rows: int = 400, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.normal(5, 2, num_rows), np.exp(rng.normal(size=num_rows)), rng.random(num_rows) - 1e3])


def test_standard_and_robust_and_no_scaling_equal_scikit_learn() -> None:
    train, other = numbers(), numbers(seed=1)
    for scaler, want in (
        ("standard", StandardScaler().fit(train).transform(other)),
        ("robust", RobustScaler().fit(train).transform(other)),
        ("none", other),
    ):
        got = fit_numbers(train, scaler=scaler).transform(frame_of(other)).x_num
        np.testing.assert_array_equal(got, want.astype(np.float32))


def test_quantile_scaling_equals_scikit_learn() -> None:
    train, other = numbers(3000), numbers(1000, seed=1)
    plain = QuantileTransformer(n_quantiles=100, output_distribution="normal", subsample=10**9).fit(train)
    fitted = fit_numbers(train)
    np.testing.assert_allclose(fitted.arrays["quantiles"], plain.quantiles_, rtol=1e-12)
    got, want = fitted.transform(frame_of(other)).x_num, plain.transform(other)
    inside = np.abs(want) < 2  # scikit-learn puts the ends at 5.2, whatever the number of rows
    np.testing.assert_allclose(got[inside], want[inside], atol=0.01)
    of_train = fitted.transform(frame_of(train)).x_num
    np.testing.assert_allclose(of_train.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(of_train.std(axis=0), 1, atol=0.03)
    np.testing.assert_allclose([of_train.min(), of_train.max()], [norm.ppf(0.5 / 3000), -norm.ppf(0.5 / 3000)])
    order = np.argsort(train, axis=0)
    assert (np.diff(np.take_along_axis(of_train, order, axis=0), axis=0) >= 0).all()


@pytest.mark.parametrize(("num_rows", "num_quantiles"), [(6, 6), (150, 10), (3000, 100), (40_000, 1000)])
def test_number_of_quantiles(num_rows: int, num_quantiles: int) -> None:
    values = np.random.default_rng(0).normal(size=num_rows)
    assert fit_numbers(values).arrays["quantiles"].shape == (num_quantiles, 1)


@pytest.mark.parametrize("unit", [1e-7, 1.0, 1e12])
def test_a_value_of_many_rows_lies_in_the_middle_of_its_quantiles(unit: float) -> None:
    rng = np.random.default_rng(0)
    for side in (1, -1):
        values = side * unit * np.where(np.arange(9000) < 4500, 0.0, rng.random(9000) + 1e-9)
        got = fit_numbers(values, near_constant=0).transform(frame_of(np.array([0.0]))).x_num[0, 0]
        assert got == pytest.approx(side * norm.ppf(0.25), abs=0.01)
    months = np.arange(240) % 12 + 1
    got = fit_numbers(months).transform(frame_of(np.arange(1.0, 13.0))).x_num[:, 0]
    np.testing.assert_allclose(got, norm.ppf((np.arange(12) + 0.5) / 12), atol=0.25)  # ten quantiles for twelve values
    np.testing.assert_allclose(got[[0, -1]], norm.ppf([1 / 24, 23 / 24]), rtol=1e-6)


def test_the_quantiles_do_not_depend_on_the_unit() -> None:
    values = np.round(numbers(900)[:, 1], 1)
    want = fit_numbers(values).transform(frame_of(values)).x_num
    for unit in (1e-4, 1e7, 1e30):
        got = fit_numbers(values * unit).transform(frame_of(values * unit)).x_num
        np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize("wild", [1e9, 1e15, 1e300])
def test_one_wild_value_does_not_drown_the_others(wild: float) -> None:
    values = np.random.default_rng(0).normal(size=1000)
    spoiled = values.copy()
    spoiled[0] = wild
    want = fit_numbers(values).transform(frame_of(values)).x_num[1:, 0]
    got = fit_numbers(spoiled).transform(frame_of(values)).x_num[1:, 0]
    middle = np.abs(values[1:]) < 1.5
    assert np.abs(got - want)[middle].max() < 0.05
    assert np.corrcoef(got, want)[0, 1] > 0.99


def test_robust_scaling_of_a_column_whose_quartiles_coincide() -> None:
    values = np.zeros(100)
    values[:10] = np.arange(1, 11) * 100.0
    got = fit_numbers(values, scaler="robust").transform(frame_of(values)).x_num[:, 0]
    np.testing.assert_allclose(got, values / values.std(), rtol=1e-6)


@pytest.mark.parametrize("imputation", ["mean", "median"])
@pytest.mark.parametrize("scaler", SCALERS)
def test_missing_numbers_get_the_mean_or_the_median_of_the_scaled_ones(scaler: str, imputation: str) -> None:
    values = numbers(300)
    gaps = values.copy()
    gaps[::7, 1] = np.nan
    fitted = fit_numbers(gaps, scaler=scaler, imputation=imputation)
    assert [column.has_indicator for column in fitted.numeric] == [False, True, False]
    assert fitted.cardinalities == (4,)
    encoded = fitted.transform(frame_of(gaps))
    missing = np.isnan(gaps[:, 1])
    present = fitted.transform(frame_of(np.where(np.isnan(gaps), 1.0, gaps))).x_num[~missing, 1].astype(np.float64)
    want = present.mean() if imputation == "mean" else np.median(present)
    np.testing.assert_allclose(encoded.x_num[missing, 1], want, rtol=1e-4, atol=1e-5)
    assert encoded.x_cat[:, 0].tolist() == np.where(missing, 3, 2).tolist()
    # gaps in a column that had none in the train rows are filled, and have no indicator
    gaps[:5, 0] = np.nan
    later = fitted.transform(frame_of(gaps))
    assert later.x_cat.shape == (300, 1)
    np.testing.assert_allclose(later.x_num[:5, 0], fitted.arrays["fill"][0], rtol=1e-6)


def test_without_indicators() -> None:
    gaps = numbers(100)
    gaps[::7] = np.nan
    fitted = fit_numbers(gaps, indicators=False)
    assert fitted.cardinalities == ()
    assert fitted.transform(frame_of(gaps)).x_cat.shape == (100, 0)


@pytest.mark.parametrize("scaler", SCALERS)
def test_wild_values_are_cut(scaler: str) -> None:
    fitted = fit_numbers(numbers(), scaler=scaler)
    wild = frame_of(np.array([[1e308, -1e308, 1e300], [np.inf, -np.inf, 1e9], [5e-324, 0.0, -1e12]]))
    got = fitted.transform(wild).x_num
    assert np.isfinite(got).all() and np.abs(got).max() <= LARGEST
    if scaler != "quantile":
        assert got[0].tolist() == [LARGEST, -LARGEST, LARGEST]
    assert got[1, :2].tolist() == got[0, :2].tolist()


def test_near_constant_columns_are_dropped() -> None:
    table = np.column_stack([np.arange(50), np.full(50, 7), 1 + 1e-7 * np.arange(50) / 50, np.full(50, np.nan)])
    fitted = fit_numbers(table)
    assert [column.name for column in fitted.numeric] == ["a"]
    near = "near-constant in the train rows"
    assert fitted.dropped == {"b": near, "c": near, "d": "no value in the train rows"}
    assert fitted.transform(frame_of(table)).x_num.shape == (50, 1)
    assert [column.name for column in fit_numbers(table, near_constant=0).numeric] == ["a", "c"]
    assert [column.name for column in fit_numbers(table, near_constant=48.9).numeric] == ["a"]
    with pytest.raises(DataError, match="no feature is left after preprocessing"):
        fit_numbers(table, near_constant=50)


def test_a_column_that_the_cut_makes_constant_is_dropped() -> None:
    table = np.column_stack([np.arange(50.0), 1e9 + np.arange(50.0)])
    assert [column.name for column in fit_numbers(table, scaler="none").numeric] == ["a"]
    assert [column.name for column in fit_numbers(table, scaler="standard").numeric] == ["a", "b"]


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("side", [1, -1])
def test_zero_inflated_columns_have_valid_bins(scaler: str, share: float, side: int) -> None:
    rng = np.random.default_rng(0)
    values = np.where(rng.random(2000) < share, 0.0, side * np.exp(rng.normal(size=2000)))
    values[0] = side
    for num_bins in (2, 8, 48, 512):
        fitted = fit_numbers(values, scaler=scaler, num_bins=num_bins)
        (edges,) = fitted.bins
        assert edges.dtype == np.float32 and 2 <= len(edges) <= num_bins + 1
        assert np.isfinite(edges).all() and (np.diff(edges) > 0).all()
        scaled = fitted.transform(frame_of(values)).x_num
        assert (edges[0], edges[-1]) == (scaled.min(), scaled.max())


def test_bin_edges_are_quantiles() -> None:
    values = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    want = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(bin_edges(values, 4), want, rtol=1e-6)
    assert bin_edges(np.array([0.0, 1.0], dtype=np.float32), 1).tolist() == [0, 1]
    assert bin_edges(np.array([0, 1e-42, 1.0], dtype=np.float32), 2).tolist() == [0, 1]
    assert len(fit_numbers(np.arange(5), num_bins=48).bins[0]) == 5  # no more bins than rows allow


def test_the_bins_of_several_columns_are_told_apart() -> None:
    fitted = fit_numbers(np.column_stack([np.arange(101), np.arange(101) % 2, np.arange(101) % 5]), scaler="none")
    assert len(fitted.bins[0]) == 49
    assert fitted.bins[1].tolist() == [0, 1]
    assert {0, 1, 2, 3, 4} <= set(fitted.bins[2].tolist())


# --- dates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parts_of_a_date(unit: str) -> None:
    days = ["2024-02-29 13:30", "1969-12-31 00:00", "2000-01-01 06:00", None, "2023-07-03 23:59"]
    frame = pd.DataFrame({"d": pd.Series(pd.to_datetime(days)).astype(f"datetime64[{unit}]")})
    fitted = fit(frame, {"d": "date"}, scaler="none")
    assert [column.name for column in fitted.numeric] == [f"d.{part}" for part in DATE_PARTS]
    assert [column.has_indicator for column in fitted.numeric] == [False] * 5 + [True]
    encoded = fitted.transform(frame)
    want = [
        [2024, 2, 29, 3, 13, 19782 + 13.5 / 24],
        [1969, 12, 31, 2, 0, -1],
        [2000, 1, 1, 5, 6, 10957.25],
        [2023, 7, 3, 0, 23, 19541 + (24 - 1 / 60) / 24],
    ]
    np.testing.assert_allclose(encoded.x_num[[0, 1, 2, 4]], want, rtol=1e-6)
    np.testing.assert_allclose(encoded.x_num[3], np.mean(want, axis=0), rtol=1e-6)
    assert encoded.x_cat[:, 0].tolist() == [2, 2, 2, 3, 2]


def test_dates_that_are_all_missing_later() -> None:
    frame = typed(100)
    fitted = fit(frame)
    got = fitted.transform(frame.assign(day=pd.Series(np.full(100, np.datetime64("NaT", "ns")))))
    assert np.isfinite(got.x_num).all()


# --- categories -------------------------------------------------------------------------------------------------------


def test_codes_of_levels_unseen_and_missing() -> None:
    fitted = fit(levels_frame(["b"] * 9 + ["a"] * 7 + ["c"] * 7), {"c": "categorical"})
    assert fitted.categorical[0].levels == ("b", "a", "c")  # by frequency, then by name
    assert fitted.cardinalities == (5,)
    later = levels_frame(["a", "b", "c", "new", None, "A", ""])
    assert fitted.transform(later).x_cat[:, 0].tolist() == [3, 2, 4, UNSEEN, UNSEEN, UNSEEN, UNSEEN]
    with_gaps = fit(levels_frame(["b"] * 9 + ["a"] * 7 + [None]), {"c": "categorical"})
    assert with_gaps.transform(later).x_cat[:, 0].tolist() == [3, 2, UNSEEN, UNSEEN, MISSING, UNSEEN, UNSEEN]
    nan = levels_frame(["a", np.nan])  # type: ignore[list-item]
    assert with_gaps.transform(nan).x_cat[:, 0].tolist() == [3, MISSING]
    assert with_gaps.transform(levels_frame(["a", None]).astype("str")).x_cat[:, 0].tolist() == [3, MISSING]


def test_rare_levels_share_the_slot_of_unseen_ones() -> None:
    levels = ["a"] * 20 + ["b"] * 5 + ["c"] * 4 + ["d"]
    fitted = fit(levels_frame(levels), {"c": "categorical"})
    assert fitted.categorical[0].levels == ("a", "b")
    assert fitted.transform(levels_frame(["a", "b", "c", "d", "e"])).x_cat[:, 0].tolist() == [2, 3, 0, 0, 0]
    assert fit(levels_frame(levels), {"c": "categorical"}, min_level_rows=4).categorical[0].levels == ("a", "b", "c")
    every = fit(levels_frame(levels), {"c": "categorical"}, min_level_rows=1).categorical[0]
    assert every.levels == ("a", "b", "c", "d")
    one = fit(levels_frame(levels), {"c": "categorical"}, min_level_rows=6).categorical[0]
    assert one.levels == ("a",)


def test_most_levels() -> None:
    levels = [f"level {i:02}" for i in range(30) for _ in range(5 + i // 10)]
    fitted = fit(levels_frame(levels), {"c": "categorical"}, max_levels=12)
    assert fitted.categorical[0].levels == tuple(f"level {i:02}" for i in [*range(20, 30), 10, 11])
    assert fitted.cardinalities == (14,)
    assert fitted.transform(levels_frame(["level 12", "level 11"])).x_cat[:, 0].tolist() == [0, 13]


def test_categories_that_tell_nothing_are_dropped() -> None:
    frame = typed(40).assign(
        one="same",
        names=[f"name {i}" for i in range(40)],
        nothing=np.array([None] * 40, dtype=object),
        gaps=np.array(["same", None] * 20, dtype=object),
        rare_or_gap=np.array([*"abcd", *[None] * 36], dtype=object),
    )
    kinds = {name: "categorical" for name in ("one", "names", "nothing", "gaps", "rare_or_gap", "colour")}
    fitted = fit(frame, kinds)
    assert [column.column for column in fitted.categorical] == ["gaps", "rare_or_gap", "colour"]
    assert fitted.dropped == {
        "one": "constant in the train rows",
        "names": "no level has 5 train rows",
        "nothing": "no value in the train rows",
    }
    assert fitted.transform(frame).x_cat[:6, :2].tolist() == [[2, 0], [1, 0], [2, 0], [1, 0], [2, 1], [1, 1]]
    with pytest.raises(DataError, match=r"names: no level has 5 train rows"):
        fit(frame, {"names": "categorical"})


def test_more_levels_than_the_embedding_needs() -> None:
    levels = [f"level {i}" for i in range(3000) for _ in range(5)]
    fitted = fit(levels_frame(levels), {"c": "categorical"})
    assert fitted.cardinalities == (3002,)
    codes = fitted.transform(levels_frame(levels)).x_cat[:, 0]
    assert np.unique(codes).tolist() == list(range(NUM_RESERVED, 3002))


# --- gaps and target --------------------------------------------------------------------------------------------------


def test_with_gaps_puts_back_what_was_missing() -> None:
    frame = typed(300)
    frame.loc[frame.index[::11], "day"] = pd.NaT
    fitted = fit(frame)
    encoded = fitted.transform(frame)
    before = encoded.x_num.copy()
    gaps = fitted.with_gaps(encoded.x_num, encoded.x_cat)
    np.testing.assert_array_equal(encoded.x_num, before)  # a copy
    for index, column in enumerate(fitted.numeric):
        np.testing.assert_array_equal(np.isnan(gaps[:, index]), frame[column.column].isna(), err_msg=column.name)
    np.testing.assert_array_equal(np.where(np.isnan(gaps), before, gaps), before)


def test_with_gaps_without_any() -> None:
    fitted = fit_numbers(numbers())
    encoded = fitted.transform(frame_of(numbers()))
    np.testing.assert_array_equal(fitted.with_gaps(encoded.x_num, encoded.x_cat), encoded.x_num)
    only_levels = fit(typed(100), {"colour": "categorical"}).transform(typed(100))
    assert fit(typed(100), {"colour": "categorical"}).with_gaps(only_levels.x_num, only_levels.x_cat).shape == (100, 0)


def test_a_regression_target_is_standardised_by_the_train_rows_and_comes_back() -> None:
    train, other = typed(200), typed(100, seed=1)
    fitted = fit(train)
    y = fitted.transform(train).y
    assert y is not None and y.dtype == np.float32
    assert y.mean() == pytest.approx(0, abs=1e-6) and y.std() == pytest.approx(1, abs=1e-6)
    assert fitted.target_mean == pytest.approx(train["y"].mean())
    assert fitted.target_std == pytest.approx(train["y"].std(ddof=0))
    again = fitted.transform(other).y
    assert again is not None
    np.testing.assert_allclose(again, (other["y"] - train["y"].mean()) / train["y"].std(ddof=0), rtol=1e-5, atol=1e-6)
    decoded = fitted.decode_target(again)
    assert decoded.dtype == np.float64
    np.testing.assert_allclose(decoded, other["y"], rtol=1e-6, atol=1e-5)


def test_a_constant_target_stays_finite() -> None:
    frame = typed(90).assign(y=0.1)  # the deviation of 90 times 0.1 is 1e-17 by rounding
    fitted = fit(frame)
    assert fitted.target_std == 1.0
    y = fitted.transform(frame).y
    assert y is not None and np.abs(y).max() < 1e-6


def test_class_targets_are_codes_in_the_order_of_the_classes() -> None:
    frame = typed(100, task="multiclass")
    fitted = fit(frame, task="multiclass")
    y = fitted.transform(frame).y
    assert y is not None and y.dtype == np.int64
    assert np.array(CLASSES["multiclass"])[y].tolist() == frame["y"].tolist()
    assert (fitted.target_mean, fitted.target_std) == (0.0, 1.0)


def test_rows_without_a_target() -> None:
    frame = typed(100, task="binary")
    fitted = fit(frame, task="binary")
    assert fitted.transform(frame.drop(columns="y")).y is None
    gap = frame.assign(y=np.array([None, *frame["y"].iloc[1:]], dtype=object))
    y = fitted.transform(gap).y
    assert y is not None and y[0] == -1 and (y[1:] >= 0).all()
    numbers_gap = typed(50)
    numbers_gap.loc[3, "y"] = np.nan
    y = fit(typed(50)).transform(numbers_gap).y
    assert y is not None and np.isnan(y).tolist() == [i == 3 for i in range(50)]


def test_an_unknown_class_is_named() -> None:
    frame = typed(100, task="binary")
    fitted = fit(frame, task="binary")
    with pytest.raises(DataError, match=r"holds the class 'maybe', .* does not know") as caught:
        fitted.transform(frame.assign(y=np.array(["yes"] * 7 + ["maybe"] + ["no"] * 92, dtype=object)))
    assert "the classes are no, yes" in str(caught.value)


# --- anything ---------------------------------------------------------------------------------------------------------

WILD = st.one_of(st.floats(width=64), st.sampled_from([0.0, 1.0, -0.0, 1e308, -1e308, 1e-308, np.nan]))
LEVEL = st.one_of(st.none(), st.sampled_from(["a", "b"]), st.text(max_size=3))
DATE = st.one_of(st.none(), st.datetimes(pd.Timestamp("1678-01-02"), pd.Timestamp("2261-12-31")))
ROWS = st.lists(st.tuples(WILD, st.sampled_from([0.0, 2.0]), LEVEL, DATE), min_size=1, max_size=25)


def wild_frame(rows: list[tuple]) -> pd.DataFrame:
    columns = list(zip(*rows, strict=True))
    return pd.DataFrame(
        {
            "a": np.array(columns[0], dtype=np.float64),
            "b": np.array(columns[1], dtype=np.float64),
            "c": np.array(columns[2], dtype=object),
            "d": pd.Series(pd.to_datetime(pd.Series(columns[3], dtype="datetime64[us]"))),
            "y": np.arange(len(rows), dtype=np.float64),
        }
    )


@settings(deadline=None, max_examples=300)
@given(train=ROWS, other=ROWS, options=SETTINGS, near_constant=st.sampled_from([0.0, 1e-6]))
def test_nothing_but_finite_numbers_and_known_codes_leaves(
    train: list, other: list, options: dict, near_constant: float
) -> None:
    kinds = {"a": "numeric", "b": "numeric", "c": "categorical", "d": "date"}
    try:
        fitted = fit(wild_frame(train), kinds, near_constant=near_constant, **options)
    except DataError:
        return  # no column tells the rows apart
    for rows in (train, other):
        encoded = fitted.transform(wild_frame(rows))
        assert np.isfinite(encoded.x_num).all() and np.abs(encoded.x_num).max(initial=0) <= LARGEST
        assert encoded.x_num.shape == (len(rows), len(fitted.numeric))
        assert encoded.x_cat.shape == (len(rows), len(fitted.cardinalities))
        assert (encoded.x_cat >= 0).all() and (encoded.x_cat < np.array(fitted.cardinalities)).all()
    for edges in fitted.bins:
        assert len(edges) >= 2 and np.isfinite(edges).all()
        assert (np.diff(edges) > 0).all() and np.isfinite(1 / np.diff(edges)).all()


@settings(deadline=None, max_examples=100)
@given(rows=ROWS, scaler=st.sampled_from(SCALERS))
def test_a_row_is_encoded_the_same_alone_and_among_others(rows: list, scaler: str) -> None:
    frame = typed(60).rename(columns={"size": "a", "age": "b", "colour": "c", "day": "d"})
    fitted = fit(frame, {"a": "numeric", "b": "numeric", "c": "categorical", "d": "date"}, scaler=scaler)
    whole = fitted.transform(wild_frame(rows))
    for index in range(len(rows)):
        alone = fitted.transform(wild_frame(rows).iloc[[index]])
        assert alone.x_num.tobytes() == whole.x_num[index].tobytes()
        assert alone.x_cat.tobytes() == whole.x_cat[index].tobytes()
