"""Preprocessing: fitted on the train rows alone, the same in any process, and never NaN."""

import dataclasses
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rtdl_num_embeddings import compute_bins
from scipy.stats import norm
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from nn_train import preprocessor
from nn_train.config import load_config
from nn_train.errors import DataError
from nn_train.preparation import prepare_data
from nn_train.preprocessing import bin_edges, fit_preprocessor, level_rows
from nn_train.preprocessor import BEND, DATE_PARTS, LARGEST, MISSING, NUM_RESERVED, UNSEEN, WILDEST, Preprocessor
from nn_train.schema import ColumnSpec, TableSchema, TargetSpec
from nn_train.settings import DataConfig, PreprocessConfig
from nn_train.splits import load_splits
from nn_train.values import parse_number, typed_frame
from tests.conftest import ROOT, make_table

SCALERS = ("quantile", "standard", "robust", "robust-clip", "none")
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
        "min_level_rows": st.sampled_from(["auto", 1, 5]),
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
    splits = load_splits(before.folder / "splits.npz")
    np.testing.assert_array_equal(np.sort(np.concatenate([splits.val, splits.test])), rest)
    wanted = before.preprocessor.to_bytes()

    @settings(deadline=None, max_examples=40, database=None)
    @given(changes=CHANGES)
    def check(changes: list) -> None:
        possible = [change for change in changes if change[0] != "y" or task == "regression"]
        after = prepare(tmp_path, apply_changes(frame, possible, rest), *words)
        assert after.preprocessor.to_bytes() == wanted
        encoded = after.rows("train")
        assert encoded.x_num.equal(before.rows("train").x_num)

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


def test_every_scaler_of_the_settings_says_what_it_has_learned() -> None:
    assert get_args(PreprocessConfig.model_fields["scaler"].annotation) == SCALERS == tuple(preprocessor.SCALERS)


@pytest.mark.parametrize("scaler", SCALERS)
def test_a_forged_scaler_is_refused(scaler: str) -> None:
    fitted = fit(typed(200), scaler=scaler)
    names = preprocessor.SCALERS[scaler]
    other = "robust-clip" if scaler == "quantile" else "quantile"
    for name in (other, "Robust-Clip", "", None):
        with pytest.raises(ValueError, match="the arrays are not those of the scaler"):
            Preprocessor.from_bytes(dataclasses.replace(fitted, scaler=name).to_bytes())
    for name in names:
        damaged = fitted.arrays[name].copy()
        damaged.flat[0] = np.nan
        for arrays in (fitted.arrays | {name: damaged}, fitted.arrays | {name: damaged[..., 1:]}):
            with pytest.raises(ValueError, match=r"not finite|columns, and there are"):
                Preprocessor.from_bytes(dataclasses.replace(fitted, arrays=arrays).to_bytes())
        rest = {other: array for other, array in fitted.arrays.items() if other != name}
        with pytest.raises((ValueError, KeyError)):
            Preprocessor.from_bytes(dataclasses.replace(fitted, arrays=rest).to_bytes())
    for scale in (0.0, -1.0) if "scale" in names else ():
        arrays = fitted.arrays | {"scale": np.full_like(fitted.arrays["scale"], scale)}
        with pytest.raises(ValueError, match="a scale is not above zero"):
            Preprocessor.from_bytes(dataclasses.replace(fitted, arrays=arrays).to_bytes())


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


def bent(raw: np.ndarray, center: float, factor: float) -> np.ndarray:
    """The formula of RealMLP's authors."""
    x = factor * (raw - center)
    return x / np.sqrt(1 + (x / 3) ** 2)


def test_robust_scaling_with_a_smooth_clip_is_the_authors() -> None:
    train, other = numbers(), numbers(seed=1)
    other[:3] = [[1e4], [-1e4], [0.0]]
    fitted = fit_numbers(train, scaler="robust-clip")
    got = fitted.transform(frame_of(other)).x_num
    for index, column in enumerate(train.T):
        low, middle, high = np.percentile(column, [25, 50, 75])
        want = bent(other[:, index], middle, 1 / (high - low))
        np.testing.assert_allclose(got[:, index], want, rtol=1e-6, atol=1e-9)
    assert np.abs(got).max() <= BEND == 3
    gaps = np.where(np.random.default_rng(2).random(train.shape) < 0.2, np.nan, train)  # counts for nothing
    holes = fit_numbers(gaps, scaler="robust-clip").arrays
    for index, column in enumerate(gaps.T):
        alone = fit_numbers(column[~np.isnan(column)], scaler="robust-clip").arrays
        for name in ("center", "scale"):
            assert holes[name][index] == alone[name][0]


def test_the_smooth_clip_scales_a_column_whose_quartiles_coincide_by_half_its_span() -> None:
    values = np.zeros(100)
    values[:10] = np.arange(-2, 8) * 100.0
    got = fit_numbers(values, scaler="robust-clip").transform(frame_of(values)).x_num[:, 0]
    np.testing.assert_allclose(got, bent(values, 0, 2 / 900), rtol=1e-6)
    with pytest.raises(DataError, match="near-constant"):  # the authors' third case: a column of one value says nothing
        fit_numbers(np.full(100, 7.0), scaler="robust-clip", near_constant=0)


def test_bent_numbers_come_back_to_their_unit() -> None:
    values = numbers()
    fitted = fit_numbers(values, scaler="robust-clip")
    np.testing.assert_allclose(fitted.unscale(fitted.transform(frame_of(values)).x_num), values, rtol=1e-5)
    center, scale = fitted.arrays["center"], fitted.arrays["scale"]
    far = center + scale * np.array([[30.0], [-300.0], [1e9], [-1e90]])
    back = (fitted.unscale(fitted.transform(frame_of(far)).x_num) - center) / scale
    np.testing.assert_allclose(back[:2], [[30] * 3, [-300] * 3], rtol=0.01)
    np.testing.assert_allclose(back[2:], [[LARGEST] * 3, [-LARGEST] * 3], rtol=1e-6)  # float32 tells no more


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
        most = BEND if scaler == "robust-clip" else LARGEST
        assert got[0].tolist() == [most, -most, most]
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

LIGHT = settings(max_examples=120, deadline=None, database=None)
# around the edges of float64 and float32, and of what is cut
EDGES = [
    0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1e-310, 1e-160, 1e-100, 1e-46, 1e-45, 1e-40, 1e-38, 1e-30, 1e-7, 1.0, 1e6,
    1e7, 3.4e38, 3.5e38, -3.5e38, 1e39, 1e99, 1e100, 1.1e100, 1e154, 1e155, 1.7e308, -1.7e308, np.inf, -np.inf,
    np.nan,
]  # fmt: skip
LONG = ["x" * 20_000, "é水" * 3000, "word " * 5000, "a" * 300 + "\n", "\0", "\ufeff", "e\u0301"]
WILD = st.one_of(st.floats(width=64), st.floats(width=32), st.floats(-3, 3), st.sampled_from(EDGES))
LEVEL = st.one_of(st.none(), st.sampled_from(["a", "b"]), st.text(max_size=3), st.sampled_from(LONG))
DATE = st.one_of(
    st.none(),
    st.datetimes(pd.Timestamp("1678-01-02"), pd.Timestamp("2261-12-31")),
    st.sampled_from([pd.Timestamp("1678-01-01"), pd.Timestamp("2261-12-31 23:59:59.999999"), pd.Timestamp(0)]),
)
NEAR = st.one_of(st.sampled_from([1.0, 1e-300, 1e-40, 1e-7, 1e30, 3e38, 1e90]), st.floats(0, 1e90))


@st.composite
def wild_column(draw: st.DrawFn, values: st.SearchStrategy, num_rows: int) -> list:
    """Few values over many rows: constant and empty columns, ties, and one wild value among others come up as well."""
    pool = draw(st.lists(values, min_size=1, max_size=draw(st.sampled_from([1, 2, 3, num_rows]))))
    if draw(st.integers(0, 5)) == 0:
        return [pool[0]] + [None if isinstance(pool[0], str | None) else pool[-1]] * (num_rows - 1)
    return [pool[row * 7 % len(pool)] for row in range(num_rows)]


@st.composite
def near_column(draw: st.DrawFn, num_rows: int) -> list[float]:
    """Numbers that hardly differ, in any unit."""
    unit, base = draw(NEAR), draw(st.sampled_from([0.0, 1.0, -1e8, 1e16]))
    return [unit * (base + row % draw(st.sampled_from([2, 7]))) for row in range(num_rows)]


@st.composite
def wild_frames(draw: st.DrawFn) -> pd.DataFrame:
    """Typed columns with anything in them: `a` and `b` numbers, `c` levels, `e` yes or no, `d` dates."""
    n = draw(st.integers(1, 30))
    dates = pd.Series(draw(wild_column(DATE, n)), dtype="datetime64[us]").astype("datetime64[ns]")
    return pd.DataFrame(
        {
            "a": np.array(draw(wild_column(WILD, n)), dtype=np.float64),
            "b": np.array(draw(st.one_of(near_column(n), wild_column(WILD, n))), dtype=np.float64),
            "c": np.array(draw(wild_column(LEVEL, n)), dtype=object),
            "d": dates,
            "e": np.array(draw(wild_column(st.sampled_from(["no", "yes", None, "maybe"]), n)), dtype=object),
            "y": np.array(draw(wild_column(WILD.filter(lambda y: abs(y) <= WILDEST), n)), dtype=np.float64),
        }
    )


WILD_KINDS = {"a": "numeric", "b": "numeric", "c": "categorical", "d": "date", "e": "boolean"}


def check_fitted(fitted: Preprocessor) -> None:
    """What was learned is finite, and safe to divide by, also in float32."""
    for name, array in fitted.arrays.items():
        assert np.isfinite(array).all(), name
    assert np.isfinite(fitted.target_mean) and 0 < fitted.target_std < np.inf
    if "scale" in fitted.arrays:
        assert (fitted.arrays["scale"] > 0).all()
    if "shares" in fitted.arrays:
        assert ((fitted.arrays["shares"] > 0) & (fitted.arrays["shares"] < 1)).all()
    for edges in fitted.bins:
        assert len(edges) >= 2 and edges.dtype == np.float32 and np.isfinite(edges).all()
        assert (np.diff(edges) > 0).all() and np.isfinite(1 / np.diff(edges)).all()


def check_encoded(fitted: Preprocessor, frame: pd.DataFrame, *, is_train: bool) -> None:
    """What leaves is finite, within bounds and known, whatever comes in; and so is the way back."""
    encoded = fitted.transform(frame)
    assert encoded.x_num.dtype == np.float32 and encoded.x_num.shape == (len(frame), len(fitted.numeric))
    assert np.isfinite(encoded.x_num).all() and np.abs(encoded.x_num).max(initial=0) <= LARGEST
    assert encoded.x_cat.dtype == np.int32 and encoded.x_cat.shape == (len(frame), len(fitted.cardinalities))
    assert (encoded.x_cat >= 0).all() and (encoded.x_cat < np.array(fitted.cardinalities)).all()
    if fitted.numeric:
        assert np.isfinite(fitted.unscale(encoded.x_num)).all()
    gaps = fitted.with_gaps(encoded.x_num, encoded.x_cat)
    assert (np.isnan(gaps) | (gaps == encoded.x_num)).all()
    assert encoded.y is not None and not np.isnan(encoded.y).any()  # far values of other rows are refused by their inf
    if is_train:
        assert np.abs(encoded.y).max() <= len(frame) + 1
        assert np.isfinite(fitted.decode_target(encoded.y)).all()


@LIGHT
@given(train=wild_frames(), other=wild_frames(), options=SETTINGS, near_constant=st.sampled_from([0.0, 1e-6]))
def test_nothing_but_finite_numbers_and_known_codes_leaves(
    train: pd.DataFrame, other: pd.DataFrame, options: dict, near_constant: float
) -> None:
    try:
        fitted = fit(train, WILD_KINDS, near_constant=near_constant, **options)
    except DataError:
        return  # no column tells the rows apart
    check_fitted(fitted)
    check_encoded(fitted, train, is_train=True)
    check_encoded(fitted, other, is_train=False)
    no_date = pd.Series(pd.NaT, index=other.index, dtype="datetime64[ns]")
    nothing = other.assign(a=np.nan, b=np.nan, c=None, e=None, d=no_date)
    check_encoded(fitted, nothing, is_train=False)
    assert fitted.transform(other.iloc[:0]).x_num.shape == (0, len(fitted.numeric))


@pytest.mark.parametrize("column", list(WILD_KINDS))
@pytest.mark.parametrize("scaler", SCALERS)
def test_a_column_without_any_value_is_dropped_and_the_others_stay(scaler: str, column: str) -> None:
    frame = typed(60).rename(columns={"size": "a", "age": "b", "colour": "c", "day": "d", "member": "e"})
    empty = frame.assign(**{column: None}).astype({column: frame[column].dtype})
    fitted = fit(empty, WILD_KINDS, scaler=scaler)
    names = {part.column for part in fitted.numeric} | {level.column for level in fitted.categorical}
    assert names == set(WILD_KINDS) - {column}
    assert any(name.split(".")[0] == column for name in fitted.dropped)
    check_fitted(fitted)
    for rows in (empty, frame, frame.assign(**{name: None for name in "ab"}).astype({"a": float, "b": float})):
        check_encoded(fitted, rows, is_train=False)


NUMBER_TEXTS = [
    "1e400", "-1e400", "1e-400", "5e-324", "9" * 400, "0." + "0" * 400 + "1", "inf", "-Infinity", "nan", "NA", "",
    "1,5",
]  # fmt: skip
TICKS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.integers(-(10**18), 10**18), st.integers(0, 10**10))
DAYS = st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1), st.integers(-(10**6), 10**6), st.integers(0, 30_000))


@st.composite
def wild_tables(draw: st.DrawFn) -> pa.Table:
    """Columns as they are read, with dates from before the world and after it, and numbers that no float64 holds."""
    n = draw(st.integers(2, 30))
    unit = draw(st.sampled_from(["s", "ms", "us", "ns"]))
    zone = draw(st.sampled_from([None, "UTC", "+05:30"]))
    dates = draw(
        st.one_of(
            wild_column(DAYS, n).map(lambda days: pa.array(days, pa.int32()).cast(pa.date32())),
            wild_column(TICKS, n).map(lambda ticks: pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, zone))),
            wild_column(st.sampled_from([*FAR_DATES, "2024-02-29", "1.5.2023 12:30", None]), n).map(pa.array),
        )
    )
    whole = wild_column(st.one_of(st.none(), st.integers(0, 2**64 - 1), st.integers(0, 3)), n)
    texts = wild_column(st.one_of(st.sampled_from([*NUMBER_TEXTS, None]), WILD.map(repr)), n)
    return pa.table(
        {
            "a": draw(st.one_of(texts.map(lambda column: pa.array(column, pa.string())), texts.map(_as_floats))),
            "b": draw(whole.map(lambda column: pa.array(column, pa.uint64()))),
            "c": pa.array(draw(wild_column(LEVEL, n)), pa.string()),
            "d": dates if dates.type != pa.null() else dates.cast(pa.string()),
            "e": draw(wild_column(st.sampled_from([True, False, None]), n).map(lambda e: pa.array(e, pa.bool_()))),
            "y": np.arange(n) % 5.0,
        }
    )


FAR_DATES = [
    "0001-01-01", "1677-12-31", "1678-01-01", "2261-12-31", "2262-01-01", "9999-12-31", "0000-00-00", "99999999",
]  # fmt: skip


def _as_floats(texts: list[str | None]) -> pa.Array:
    """float32 or what of it can be read."""
    return pa.array([math.nan if text is None else parse_number(text) for text in texts], pa.float64())


@LIGHT
@given(train=wild_tables(), other=wild_tables(), options=SETTINGS)
def test_the_same_from_columns_as_they_are_read(train: pa.Table, other: pa.Table, options: dict) -> None:
    schema, data = schema_of(WILD_KINDS), DataConfig(path="t.parquet", target="y", infinite="missing")
    frames = [typed_frame(table, schema, data) for table in (train, other)]
    try:
        fitted = fit(frames[0], WILD_KINDS, **options)
    except DataError:
        return
    check_fitted(fitted)
    check_encoded(fitted, frames[0], is_train=True)
    check_encoded(fitted, frames[1], is_train=False)


@pytest.mark.parametrize(
    ("scaler", "unit", "base"), [("standard", 1e4, 1e18), ("robust", 1e-17, 0.0), ("robust-clip", 1e-17, 0.0)]
)
def test_numbers_that_hardly_differ_are_scaled_as_others_are(scaler: str, unit: float, base: float) -> None:
    values = np.random.default_rng(0).normal(size=900)  # scikit-learn takes `near` for a constant, and keeps its unit
    near = base + unit * values
    want = fit_numbers(values, scaler=scaler).transform(frame_of(values)).x_num
    got = fit_numbers(near, scaler=scaler, near_constant=0).transform(frame_of(near)).x_num
    np.testing.assert_allclose(got, want, atol=0.05)


def test_a_column_that_differs_by_rounding_has_two_bin_edges_at_least() -> None:
    values = np.full(7, 6.603157e32)
    values[0] = np.nextafter(values[0], np.inf)
    for scaler in SCALERS[:-1]:
        fitted = fit_numbers(values, scaler=scaler, near_constant=0)
        check_fitted(fitted)


@pytest.mark.parametrize(
    ("train", "far"),
    [([0.0, 5e-324, 0.0], 5e-324), ([1e-200, 2e-200, 3e-200], 2e-200), ([1e100, -1e100, 0.0], 1e100)],
)
def test_targets_of_any_unit_are_standardised_to_finite_numbers(train: list[float], far: float) -> None:
    frame = typed(90).assign(y=np.tile(train, 30))
    fitted = fit(frame)
    check_encoded(fitted, frame, is_train=True)
    y = fitted.transform(frame.assign(y=far)).y
    assert y is not None and np.isfinite(y).all()


@settings(LIGHT, max_examples=40)
@given(rows=wild_frames(), scaler=st.sampled_from(SCALERS))
def test_a_row_is_encoded_the_same_alone_and_among_others(rows: pd.DataFrame, scaler: str) -> None:
    frame = typed(60).rename(columns={"size": "a", "age": "b", "colour": "c", "day": "d", "member": "e"})
    fitted = fit(frame, WILD_KINDS, scaler=scaler)
    whole = fitted.transform(rows)
    for index in range(len(rows)):
        alone = fitted.transform(rows.iloc[[index]])
        assert alone.x_num.tobytes() == whole.x_num[index].tobytes()
        assert alone.x_cat.tobytes() == whole.x_cat[index].tobytes()


# ---- buckets, and bins that know the target


def test_a_category_of_many_levels_goes_into_buckets_and_so_does_what_was_never_seen() -> None:
    levels = np.array([f"level {number}" for number in range(60)] * 5, dtype=object)
    frame = pd.DataFrame({"many": levels, "few": np.where(np.arange(300) % 3, "a", "b").astype(object)})
    frame.loc[7, "many"] = None
    kinds = {"many": "categorical", "few": "categorical"}
    fitted = fit(frame, kinds, max_levels=50, hash_buckets=16)
    many, few = fitted.categorical
    assert (many.num_buckets, many.levels, few.num_buckets, few.levels) == (16, (), 0, ("a", "b"))
    assert fitted.cardinalities == (18, 4)
    assert many.labels[0] == "bucket 1" and len(many.labels) == 16
    codes = fitted.transform(frame).x_cat[:, 0]
    assert codes[7] == MISSING and (np.delete(codes, 7) >= NUM_RESERVED).all()
    assert len(set(codes.tolist())) == 17
    by_hand = int.from_bytes(hashlib.blake2b(b"level 3", digest_size=8).digest(), "little") % 16
    assert codes[3] == NUM_RESERVED + by_hand  # on every machine
    new = fitted.transform(frame.assign(many="never seen")).x_cat[:, 0]
    assert len(set(new.tolist())) == 1 and new[0] >= NUM_RESERVED
    again = Preprocessor.from_bytes(fitted.to_bytes())
    assert again == fitted or again.categorical == fitted.categorical
    assert fit(frame, kinds, max_levels=50).categorical[0].num_buckets == 0
    assert fit(frame, kinds, max_levels=60, hash_buckets=16).categorical[0].num_buckets == 0


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.filterwarnings("ignore:.*just two bin edges")
def test_tree_bins_are_the_authors_and_follow_the_target(task: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=4000)
    high, low = values > 1.5, values < -0.5
    target = {
        "binary": np.where(high, "yes", "no").astype(object),
        "multiclass": np.where(high, "high", np.where(low, "low", "mid")).astype(object),
        "regression": np.where(high, 500.0, 0.0) + rng.normal(size=4000),
    }[task]
    frame = pd.DataFrame({"size": values, "noise": rng.normal(size=4000), "y": target})
    kinds = {"size": "numeric", "noise": "numeric"}
    data = schema_of(kinds, task)
    found = fit_preprocessor(frame, data, PreprocessConfig(num_bins=8), has_tree_bins=True)
    x_num = found.transform(frame).x_num
    place = float(np.quantile(x_num[:, 0], (values <= 1.5).mean()))
    assert np.abs(found.bins[0] - place).min() < 0.01  # an edge where the target jumps
    assert all(2 <= len(edges) <= 9 for edges in found.bins)
    if task == "regression":
        y = torch.from_numpy((target.astype(float) - target.mean()) / target.std())
    else:
        y = torch.from_numpy(pd.factorize(target, sort=True)[0])
    options = {"min_samples_leaf": 64, "min_impurity_decrease": 1e-4, "random_state": 0}
    theirs = compute_bins(torch.from_numpy(x_num), n_bins=8, tree_kwargs=options, y=y, regression=task == "regression")
    for ours, other in zip(found.bins, theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-6)
    other = fit_preprocessor(frame, data, PreprocessConfig(num_bins=8))
    assert not np.array_equal(other.bins[0], found.bins[0])


@pytest.mark.parametrize(("rows", "least"), [(10, 5), (2_999, 5), (3_000, 6), (150_000, 300), (10**7, 500)])
def test_a_level_needs_more_rows_in_larger_tables(rows: int, least: int) -> None:
    assert level_rows("auto", rows) == least
    assert level_rows(1, rows) == 1


def test_where_no_level_has_so_many_rows_the_most_frequent_ones_are_kept() -> None:
    sizes = {"a": 12, "b": 10, "c": 9} | {f"rare{number}": 7 for number in range(1424)}
    frame = levels_frame([name for name, size in sizes.items() for _ in range(size)])
    assert level_rows("auto", len(frame)) == 19
    found = fit(frame, {"c": "categorical"}, min_level_rows="auto").categorical[0]
    assert found.levels == ("a", "b", "c")  # half of 19, rounded down, is 9
    few = levels_frame([f"level{number}" for number in range(5000) for _ in range(2)])
    with pytest.raises(DataError, match="no level has 5 train rows"):
        fit(few, {"c": "categorical"})


# --- what only grows with time ----------------------------------------------------------------------------------------


def growing_table() -> pd.DataFrame:
    """A year of rows in their order, with the number of the week, a counter that falls, and a date."""
    frame = make_table(900)
    day = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(900) * 365 // 900, unit="D")
    return frame.assign(day=day, week=day.day_of_year // 7, left=-np.arange(900) // 3, season=day.month % 4)


@pytest.mark.parametrize("preparation", ["whole", "stream"])
def test_what_only_grows_is_left_out_where_the_split_is_by_time(preparation: str, tmp_path: Path) -> None:
    words = ("split.method=time", "split.column=day", f"data.preparation={preparation}", "data.workers=1")
    frame = growing_table()
    prepared = prepare(tmp_path, frame, *words)
    dropped = prepared.preprocessor
    names = {number.name for number in dropped.numeric}
    assert {"size", "age", "season", "day.weekday", "day.day"} <= names
    for name in ("week", "left", "day.days"):
        assert name not in names and "beyond the train rows: it grows with time" in dropped.dropped[name]
    doubted = re.compile("rows lie beyond the train rows' range in .*day.days.*: what only grows")
    assert not doubted.search(" ".join(prepared.info["warnings"]))
    kept = prepare(tmp_path, frame, *words, "preprocess.growing=keep")
    assert {"week", "left", "day.days"} <= {number.name for number in kept.preprocessor.numeric}
    assert doubted.search(" ".join(kept.info["warnings"]))
    by_chance = prepare(tmp_path, frame, f"data.preparation={preparation}", "data.workers=1").preprocessor
    assert {"week", "left", "day.days"} <= {number.name for number in by_chance.numeric}


def test_what_grows_is_kept_where_nothing_else_is_left(tmp_path: Path) -> None:
    frame = growing_table()[["day", "left", "y"]].assign(day=lambda table: table["day"].dt.day_of_year)
    frame.to_csv(tmp_path / "table.csv", index=False)
    words = ["data.target=y", f"data.path={tmp_path / 'table.csv'}", "split.method=time", "split.column=day"]
    found = prepare_data(load_config(words=words)).preprocessor
    assert {number.name for number in found.numeric} == {"day", "left"}
