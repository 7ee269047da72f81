"""The bootstrap of test rows: a run's metrics over many resamples of its rows, all of them at once.

A resample is a row of weights: how often it holds each test row. Every metric is written as a function of
such weights, so that nothing is sorted or gathered more than once. The formulas are those of `metrics.py`.

Shapes: R rows, S resamples, C classes, G groups of rows with the same score; weights are (S, R), float64.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Self

import numpy as np
from scipy import sparse

from nn_train.schema import Task

LEVEL = 0.95
# Rows x resamples x rankings that one run may cost: about 5 s on one core.
BUDGET = 40_000_000
LEAST_ROWS = 2_000
MOST_RANKED_CLASSES = 20  # a ranking per class: with more of them ROC AUC is left out
CHUNK = 2_000_000  # weights in memory at a time
Values = dict[str, np.ndarray]  # metric -> (S,)
Measure = Callable[[np.ndarray], Values]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Test rows and what a run predicts for them.

    Classes: `y` and `prediction` are codes (R,), `p` the probability of each class (R, C), the positive one last
    where there are two. Regression: `y` and `prediction` are values (R,), or of several targets (R, T), and `p` is
    (R, 0).
    """

    task: Task
    y: np.ndarray
    prediction: np.ndarray
    p: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def take(self, places: np.ndarray) -> Self:
        """These rows alone, in this order."""
        parts = {name: getattr(self, name)[places] for name in ("y", "prediction", "p")}
        return dataclasses.replace(self, **parts)

    def by_target(self) -> list[Self]:
        """The rows with each of several targets."""
        pairs = zip(self.y.T, self.prediction.T, strict=True)
        return [dataclasses.replace(self, y=y, prediction=prediction) for y, prediction in pairs]


def row_losses(rows: Rows) -> dict[str, np.ndarray]:
    """What each row costs or earns, (R,); `accuracy`, `log_loss`, `brier_score`, `mae` and `mape` are their means.

    `mse` is the square of RMSE. Of several targets they are means over errors in deviations of each target.
    """
    if rows.y.ndim == 2:
        deviation = np.where(rows.y.std(axis=0) > 0, rows.y.std(axis=0), 1.0)
        errors = np.abs(rows.y - rows.prediction) / deviation
        return {"mse": (errors**2).mean(axis=1), "mae": errors.mean(axis=1)}
    if rows.task == "regression":
        error = np.abs(rows.y - rows.prediction)
        losses = {"mse": error**2, "mae": error}
        return losses | ({"mape": error / rows.y} if (rows.y > 0).all() else {})
    eps = np.finfo(rows.p.dtype).eps
    losses = {
        "log_loss": -np.log(np.clip(rows.p[np.arange(len(rows)), rows.y], eps, 1 - eps)),
        "accuracy": (rows.y == rows.prediction).astype(np.float64),
    }
    return losses | ({"brier_score": (rows.p[:, 1] - rows.y) ** 2} if rows.task == "binary" else {})


def build_measure(rows: Rows) -> Measure:
    """The task's main metrics as one function of weights (S, R); NaN where a resample does not define one.

    Of several targets each metric is the mean of theirs.
    """
    if rows.y.ndim == 2:
        every = [build_measure(part) for part in rows.by_target()]

        def measure_all(weights: np.ndarray) -> Values:
            found = [measure(weights) for measure in every]
            shared = [name for name in found[0] if all(name in values for values in found)]
            return {name: np.mean([values[name] for values in found], axis=0) for name in shared}

        return measure_all
    parts = [_measure_means(rows)]
    if rows.task == "regression":
        parts += [_measure_moments(rows), _measure_median(rows)]
    elif rows.task == "binary":
        parts += [_measure_decisions(rows), _measure_ranking(rows.y == 1, rows.p[:, 1])]
    else:
        parts += [_measure_decisions(rows)]
        if rows.p.shape[1] <= MOST_RANKED_CLASSES:
            parts += [_measure_one_vs_rest(rows)]

    def measure(weights: np.ndarray) -> Values:
        values: Values = {}
        with np.errstate(all="ignore"):
            for part in parts:
                values |= part(weights)
        return values

    return measure


def _measure_means(rows: Rows) -> Measure:
    losses = row_losses(rows)
    table = np.stack(list(losses.values()), axis=1)

    def measure(weights: np.ndarray) -> Values:
        values = dict(zip(losses, (weights @ table / len(rows)).T, strict=True))
        if "mse" in values:
            values["rmse"] = np.sqrt(values.pop("mse"))
        return values

    return measure


def _measure_decisions(rows: Rows) -> Measure:
    num_classes, is_binary = rows.p.shape[1], rows.task == "binary"

    def indicator(codes: np.ndarray, which: np.ndarray) -> sparse.csr_array:
        ones = which.astype(np.float64)
        return sparse.csr_array((ones, (codes, np.arange(len(codes)))), shape=(num_classes, len(codes)))

    every = np.ones(len(rows), dtype=bool)
    indicators = [
        indicator(rows.y, every),
        indicator(rows.prediction, every),
        indicator(rows.y, rows.y == rows.prediction),
    ]

    def measure(weights: np.ndarray) -> Values:
        true, chosen, hits = (counts @ weights.T / len(rows) for counts in indicators)  # shares, (C, S)
        is_mixed = (true > 0).sum(axis=0) > 1
        recall = np.where(true > 0, hits / true, 0).sum(axis=0) / (true > 0).sum(axis=0)
        values = {"balanced_accuracy": np.where(is_mixed, recall, np.nan)}
        f1 = 2 * hits / (true + chosen)
        if is_binary:
            return values | {"f1": f1[1]}
        values["f1_macro"] = np.nansum(f1, axis=0) / (true + chosen > 0).sum(axis=0)
        covariance = hits.sum(axis=0) - (true * chosen).sum(axis=0)
        spread = np.sqrt((1 - (true**2).sum(axis=0)) * (1 - (chosen**2).sum(axis=0)))
        correlation = np.where((chosen > 0).sum(axis=0) > 1, covariance / spread, 0)
        return values | {"matthews_corrcoef": np.where(is_mixed, correlation, np.nan)}

    return measure


def _measure_ranking(y: np.ndarray, score: np.ndarray) -> Measure:
    """ROC AUC and average precision of positives `y` (R,); rows with the same score count as one step of the curve."""
    order = np.argsort(score, kind="stable")
    is_first = np.append(True, np.diff(score[order]) > 0)
    starts, y_sorted = np.flatnonzero(is_first), y[order]

    def measure(weights: np.ndarray) -> Values:
        both = weights[:, order]
        positive = both * y_sorted
        if len(starts) < len(order):
            both, positive = (np.add.reduceat(values, starts, axis=1) for values in (both, positive))  # (S, G)
        negative = both - positive
        num_positive, num_negative = positive.sum(axis=1), negative.sum(axis=1)
        won = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
        found = num_positive[:, None] - positive.cumsum(axis=1) + positive
        precision = found / (len(y) - both.cumsum(axis=1) + both)
        earned = np.where(positive > 0, positive * precision, 0).sum(axis=1)
        return {"roc_auc": won / (num_positive * num_negative), "average_precision": earned / num_positive}

    return measure


def _measure_one_vs_rest(rows: Rows) -> Measure:
    """ROC AUC, mean over the classes that a resample holds and does not consist of."""
    parts = [_measure_ranking(rows.y == code, rows.p[:, code]) for code in range(rows.p.shape[1])]

    def measure(weights: np.ndarray) -> Values:
        areas = np.stack([part(weights)["roc_auc"] for part in parts])
        return {"roc_auc": np.nansum(areas, axis=0) / np.isfinite(areas).sum(axis=0)}

    return measure


def _measure_moments(rows: Rows) -> Measure:
    y, value = rows.y - rows.y.mean(), rows.prediction - rows.prediction.mean()
    with np.errstate(over="ignore"):
        table = np.stack([(rows.y - rows.prediction) ** 2, y, y**2, value, value**2, y * value], axis=1)

    def measure(weights: np.ndarray) -> Values:
        error, sum_y, sum_yy, sum_v, sum_vv, sum_yv = (weights @ table).T
        spread_y, spread_v = sum_yy - sum_y**2 / len(rows), sum_vv - sum_v**2 / len(rows)
        # a resample of one value: what is left is rounding
        spread_y = np.where(spread_y > 1e-12 * sum_yy, spread_y, np.nan)
        spread_v = np.where(spread_v > 1e-12 * sum_vv, spread_v, np.nan)
        correlation = (sum_yv - sum_y * sum_v / len(rows)) / np.sqrt(spread_y * spread_v)
        return {"r2": 1 - error / spread_y, "pearson_r": correlation}

    return measure


def _measure_median(rows: Rows) -> Measure:
    error = np.abs(rows.y - rows.prediction)
    order = np.argsort(error, kind="stable")
    ranked, middles = error[order], ((len(rows) + 1) // 2, len(rows) // 2 + 1)

    def measure(weights: np.ndarray) -> Values:
        reached = weights[:, order].cumsum(axis=1)
        low, high = (ranked[(reached < place).sum(axis=1)] for place in middles)
        return {"median_absolute_error": (low + high) / 2}

    return measure


def most_rows(rows: Rows, samples: int) -> int:
    """How many rows one resample may hold."""
    num_classes = rows.p.shape[1]
    rankings = num_classes if rows.task == "multiclass" and num_classes <= MOST_RANKED_CLASSES else 1
    rankings = rows.y.shape[1] if rows.y.ndim == 2 else rankings
    return max(LEAST_ROWS, BUDGET // (samples * rankings))


def draw_weights(num_rows: int, *, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of `samples` resamples of `num_rows` rows with replacement, a block of (S, R) at a time."""
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // num_rows)
    for start in range(0, samples, step):
        size = min(step, samples - start)
        draws = rng.integers(0, num_rows, size=(size, num_rows)) + np.arange(size)[:, None] * num_rows
        counts = np.bincount(draws.ravel(), minlength=size * num_rows)
        yield counts.reshape(size, num_rows).astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Metrics of a run on all its rows, and their values (S,) over the resamples of `num_drawn` rows each."""

    num_rows: int
    num_drawn: int
    estimates: dict[str, float]
    values: Values


def compute_metrics_once(rows: Rows) -> dict[str, float]:
    """The metrics on the rows as they are."""
    return _measure_once(build_measure(rows), len(rows))


def _measure_once(measure: Measure, num_rows: int) -> dict[str, float]:
    return {name: float(value[0]) for name, value in measure(np.ones((1, num_rows))).items()}


def bootstrap(rows: Rows, *, samples: int, seed: int) -> Samples:
    """Resample the rows with replacement; calls with the same seed and number of rows draw the same rows.

    So the values of two runs on the same rows in the same order are paired. Of more rows than `most_rows` as many
    are chosen at random; they are resampled, and the deviations from their own metrics are shrunk by the square root
    of (chosen rows / all rows), since that is how the spread of a mean, and of what behaves like one, depends on the
    number of rows.

    Source: Efron and Tibshirani 1993; for the fewer rows, Bickel, Götze and van Zwet 1997.
    """
    measure, num_rows = build_measure(rows), len(rows)
    estimates, num_drawn = _measure_once(measure, num_rows), min(num_rows, most_rows(rows, samples))
    if num_drawn < num_rows:
        chosen = np.random.default_rng([seed, 1]).choice(num_rows, num_drawn, replace=False)
        measure = build_measure(rows.take(np.sort(chosen)))
    blocks = [measure(weights) for weights in draw_weights(num_drawn, samples=samples, seed=seed)]
    values = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    if num_drawn < num_rows:
        centres, shrink = _measure_once(measure, num_drawn), np.sqrt(num_drawn / num_rows)
        # the chosen rows may have a metric more: MAPE is one where every target is positive
        values = {name: estimate + shrink * (values[name] - centres[name]) for name, estimate in estimates.items()}
    return Samples(num_rows=num_rows, num_drawn=num_drawn, estimates=estimates, values=values)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of the values (S,), by percentiles; None where a tenth of them or more is not defined."""
    finite = values[np.isfinite(values)]
    if len(finite) <= 0.9 * len(values):
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
