"""Fits the preprocessor: scales, fill values, levels and bins, learned from the train rows alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from nn_train.errors import DataError, short
from nn_train.preprocessor import (
    DATE_PARTS,
    FINEST,
    LARGEST,
    CategoricalInput,
    NumericInput,
    Preprocessor,
    fill_gaps,
    numeric_matrix,
    scale_numbers,
)
from nn_train.schema import ColumnSpec, TableSchema, Task
from nn_train.settings import PreprocessConfig

BEYOND = 0.9  # share of later rows outside of the train rows' range that tells what only grows
FEWEST_LATER = 30
FEWEST_LEVEL_ROWS, MOST_LEVEL_ROWS = 5, 500  # that a level of a category needs, by the rows of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFacts:
    """What is known of all train rows, where only a sample of them is there to fit on.

    `levels` are by column the levels and their rows, `has_missing` the columns with a gap, `target` the mean and
    deviation of a regression's.
    """

    num_rows: int
    levels: Mapping[str, Mapping[str, int]]
    has_missing: frozenset[str]
    target: tuple[Any, Any]


def fit_preprocessor(
    train: pd.DataFrame,
    schema: TableSchema,
    config: PreprocessConfig,
    *,
    has_tree_bins: bool = False,
    where: str = "",
    facts: TrainFacts | None = None,
    later: pd.DataFrame | None = None,
) -> Preprocessor:
    """Learn scaling, fill values, levels and bins from the typed train rows; errors name the table by `where`.

    With `facts` of all train rows, `train` is a sample of them. `later` are validation rows of a split by time: numbers
    that lie beyond the train rows there are left out, if the settings say so.

    Bins are quantiles, or with `has_tree_bins` what a decision tree splits a column at to tell the target.

    Raises:
        DataError: no column is left that tells the train rows apart.
    """
    dropped: dict[str, str] = {}
    numeric, raw = _choose_numeric(train, schema.features, config, dropped, facts)
    if later is not None and config.growing == "drop":
        numeric, raw = _without_growing(numeric, raw, later, schema.features, dropped)
    target = schema.target.take(train)
    make_edges = _tree_edges(target, schema.target.task) if has_tree_bins else bin_edges
    arrays = _fit_numeric(raw, config, make_edges) if numeric else {}
    categorical = _choose_categories(train, schema.features, config, dropped, facts)
    if not numeric and not categorical:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise DataError(
            f"no feature is left after preprocessing ({short(reasons, most=400)})",
            where=where,
            fix="lower preprocess.min_level_rows or drop less",
        )
    is_regression = schema.target.task == "regression"
    centres = (0.0, 1.0)
    if is_regression:
        centres = _centre(target.astype(np.float64)) if facts is None else facts.target
    return Preprocessor(
        scaler=config.scaler,
        numeric=numeric,
        categorical=categorical,
        target=schema.target,
        target_mean=centres[0],
        target_std=centres[1],
        dropped=dropped,
        arrays=arrays,
    )


def _centre(target: np.ndarray) -> tuple[Any, Any]:
    """Mean and deviation of the train rows' target (R,), two numbers, or of several (R, T), two tuples of such."""
    if target.ndim == 2:
        means, deviations = zip(*map(_centre, np.ascontiguousarray(target.T)), strict=True)
        return means, deviations
    is_constant = np.ptp(target) == 0  # the mean of equal numbers may be another one by rounding
    mean = float(target[0] if is_constant else target.mean())
    return mean, (0.0 if is_constant else float(target.std())) or 1.0  # of denormal numbers it is 0


def _choose_numeric(
    train: pd.DataFrame,
    features: tuple[ColumnSpec, ...],
    config: PreprocessConfig,
    dropped: dict[str, str],
    facts: TrainFacts | None,
) -> tuple[tuple[NumericInput, ...], np.ndarray]:
    inputs = [
        NumericInput(column=spec.name, part=part)
        for spec in features
        if spec.kind in ("numeric", "date")
        for part in (DATE_PARTS if spec.kind == "date" else ("",))
    ]
    columns = {name: train[name].to_numpy() for name in {column.column for column in inputs}}
    raw = numeric_matrix(columns, tuple(inputs), num_rows=len(train))
    kept = []
    for index, column in enumerate(inputs):
        present = raw[:, index][~np.isnan(raw[:, index])]
        if not len(present):
            dropped[column.name] = "no value in the train rows"
        elif _span(present, config.scaler) <= max(config.near_constant, FINEST):
            dropped[column.name] = "near-constant in the train rows"
        else:
            has_missing = len(present) < len(raw) or (facts is not None and column.column in facts.has_missing)
            has_indicator = has_missing and config.indicators and column.part in ("", "days")
            inputs[index] = dataclasses.replace(column, has_indicator=has_indicator)
            kept.append(index)
    return tuple(inputs[index] for index in kept), raw[:, kept]


def _without_growing(
    numeric: tuple[NumericInput, ...],
    raw: np.ndarray,
    later: pd.DataFrame,
    features: tuple[ColumnSpec, ...],
    dropped: dict[str, str],
) -> tuple[tuple[NumericInput, ...], np.ndarray]:
    """The inputs but those that only grow, or fall, with time: of later rows they tell nothing that was learned."""
    new = numeric_matrix({c.column: later[c.column].to_numpy() for c in numeric}, numeric, num_rows=len(later))
    kept = []
    for index, column in enumerate(numeric):
        known, values = (values[~np.isnan(values)] for values in (raw[:, index], new[:, index]))
        share = 0.0
        if len(values) >= FEWEST_LATER:
            share = max(float((values > known.max()).mean()), float((values < known.min()).mean()))
        if share < BEYOND:
            kept.append(index)
        else:
            dropped[column.name] = f"{share:.0%} of the validation rows lie beyond the train rows: it grows with time"
    if not kept and not any(spec.kind in ("categorical", "boolean") for spec in features):
        for column in numeric:
            del dropped[column.name]
        return numeric, raw
    return tuple(numeric[index] for index in kept), raw[:, kept]


def _span(values: np.ndarray, scaler: str) -> float:
    ends = np.array([values.min(), values.max()])
    if scaler == "none":  # what is left of the difference in the network's numbers
        ends = np.clip(ends, -LARGEST, LARGEST).astype(np.float32).astype(np.float64)
    return float(ends[1] - ends[0])


def _fit_numeric(
    raw: np.ndarray, config: PreprocessConfig, make_edges: Callable[[np.ndarray, int], np.ndarray]
) -> dict[str, np.ndarray]:
    num_rows = len(raw)
    arrays = _fit_quantiles(raw) if config.scaler == "quantile" else _fit_affine(raw, config.scaler)
    scaled = scale_numbers(raw, arrays, is_bent=config.scaler == "robust-clip")
    fill = np.nanmean(scaled, axis=0) if config.imputation == "mean" else np.nanmedian(scaled, axis=0)
    edges = [make_edges(column, min(config.num_bins, max(num_rows - 1, 1))) for column in fill_gaps(scaled, fill).T]
    return arrays | {
        "fill": fill,
        "bin_edges": np.concatenate(edges),
        "bin_counts": np.array([len(e) for e in edges], dtype=np.int64),
    }


def _fit_quantiles(raw: np.ndarray) -> dict[str, np.ndarray]:
    """Quantiles of each column, and the share of its values that lie below each, ties counted half.

    The quantiles are those of scikit-learn's QuantileTransformer. Its transform would send a value
    of many rows at the end of the range to that end, and lose small units to an absolute
    threshold; with mid-ranks such a value gets the middle of its quantiles.
    """
    num_quantiles = min(max(min(len(raw) // 30, 1000), 10), len(raw))
    quantiles = QuantileTransformer(n_quantiles=num_quantiles, subsample=10**9).fit(raw).quantiles_
    shares = np.empty_like(quantiles)
    for index, (column, found) in enumerate(zip(raw.T, quantiles.T, strict=True)):
        values = np.sort(column[~np.isnan(column)])
        ranks = np.searchsorted(values, found, "left") + np.searchsorted(values, found, "right")
        shares[:, index] = ranks / (2 * len(values))
    return {"quantiles": quantiles, "shares": shares}


def _fit_affine(raw: np.ndarray, scaler: str) -> dict[str, np.ndarray]:
    width = raw.shape[1]
    if scaler == "none":
        return {"center": np.zeros(width), "scale": np.ones(width)}
    deviation = np.nanstd(raw, axis=0)
    if scaler == "standard":
        fitted = StandardScaler().fit(raw)
        return {"center": fitted.mean_, "scale": _own_scale(fitted.scale_, deviation)}
    low, high = np.nanpercentile(raw, [25, 75], axis=0)
    if scaler == "robust-clip":
        # Source: Holzmueller et al. 2024, RealMLP-TD. Its third case, a column of one value alone, is dropped before.
        half_span = (np.nanmax(raw, axis=0) - np.nanmin(raw, axis=0)) / 2
        return {"center": np.nanmedian(raw, axis=0), "scale": np.where(high == low, half_span, high - low)}
    robust = RobustScaler().fit(raw)
    # a column whose quartiles coincide (mostly zeros, say) would keep its raw scale: use the deviation there
    return {"center": robust.center_, "scale": np.where(high == low, deviation, _own_scale(robust.scale_, high - low))}


def _own_scale(found: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """`scale` where scikit-learn takes a column for a constant one, by its rounding or an absolute threshold."""
    return np.where((found == 1) & (scale > 0), scale, found)


def bin_edges(values: np.ndarray, num_bins: int) -> np.ndarray:
    """Distinct quantiles of a scaled column, increasing, float32, two at least.

    The quantile bins of piecewise-linear encoding. Source: Gorishniy et al. 2022, section 3.2.1.
    """
    return _distinct(np.quantile(values, np.linspace(0, 1, num_bins + 1)))


def _distinct(edges: np.ndarray) -> np.ndarray:
    edges = edges.astype(np.float32)
    return np.unique(np.where(np.abs(edges) < FINEST, 0, edges))


def _tree_edges(target: np.ndarray, task: Task) -> Callable[[np.ndarray, int], np.ndarray]:
    """From a scaled column and a number of bins to edges: its range, and where a tree that sees it alone splits it.

    Source: Gorishniy et al. 2022, section 3.2.2; the tree's settings are those of the authors' TabM, but that a leaf
    of a small table may hold fewer rows.
    """
    options = {"min_samples_leaf": max(1, min(64, len(target) // 50)), "min_impurity_decrease": 1e-4, "random_state": 0}
    if task == "regression":
        mean, deviation = _centre(target.astype(np.float64))
        y = (target - np.asarray(mean)) / np.asarray(deviation)
    else:
        y = pd.factorize(target, sort=True)[0]

    def edges(column: np.ndarray, num_bins: int) -> np.ndarray:
        make = DecisionTreeRegressor if task == "regression" else DecisionTreeClassifier
        tree = make(max_leaf_nodes=max(num_bins, 2), **options).fit(column[:, None], y).tree_
        splits = tree.threshold[tree.children_left != tree.children_right]
        return _distinct(np.array([column.min(), *splits, column.max()]))

    return edges


def level_rows(setting: int | Literal["auto"], num_rows: int) -> int:
    """preprocess.min_level_rows for so many train rows."""
    return min(max(num_rows // 500, FEWEST_LEVEL_ROWS), MOST_LEVEL_ROWS) if setting == "auto" else setting


def _choose_categories(
    train: pd.DataFrame,
    features: tuple[ColumnSpec, ...],
    config: PreprocessConfig,
    dropped: dict[str, str],
    facts: TrainFacts | None,
) -> tuple[CategoricalInput, ...]:
    chosen = []
    least = level_rows(config.min_level_rows, len(train) if facts is None else facts.num_rows)
    for spec in features:
        if spec.kind not in ("categorical", "boolean"):
            continue
        if facts is None:
            counts = train[spec.name].value_counts()
            had_missing = bool(train[spec.name].isna().any())
        else:
            counts = pd.Series(dict(facts.levels[spec.name]), dtype=np.int64)
            had_missing = spec.name in facts.has_missing
        if config.hash_buckets and len(counts) > config.max_levels:
            buckets = config.hash_buckets
            chosen.append(CategoricalInput(column=spec.name, levels=(), had_missing=had_missing, num_buckets=buckets))
            continue
        fewest = least
        if config.min_level_rows == "auto":  # many levels, all alike: the most frequent ones, better than no column
            while fewest > max(FEWEST_LEVEL_ROWS, int(counts.max()) if len(counts) else 0):
                fewest = max(fewest // 2, FEWEST_LEVEL_ROWS)
        frequent = counts[counts >= fewest]
        levels = sorted(frequent.index, key=lambda level: (-int(frequent[level]), level))[: config.max_levels]
        has_rest = len(levels) < len(counts)
        if len(levels) + had_missing + has_rest >= 2:
            chosen.append(CategoricalInput(column=spec.name, levels=tuple(levels), had_missing=had_missing))
        elif has_rest:
            dropped[spec.name] = f"no level has {fewest} train rows"
        else:
            dropped[spec.name] = "constant in the train rows" if levels else "no value in the train rows"
    return tuple(chosen)
