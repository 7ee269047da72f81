"""The metrics of a regression from rows that come block by block: of one target, of several, or of quantiles.

Sums are taken of values less the train rows' mean, in units of their deviation, so that no digits are lost to a mean
that is far from zero.

Shapes: B rows, T targets, Q quantiles.
"""

import math
from collections.abc import Sequence

import numpy as np

from nn_train import score_bins
from nn_train.metrics import NAN, REGRESSION_METRICS, quantile_metrics
from nn_train.schema import TargetSpec
from nn_train.streamed_metrics import Accumulator, BinaryAccumulator, MulticlassAccumulator, count_bins, share

# of each target; `relative` is the absolute error over the true value
SUMS = ("y", "v", "yy", "vv", "yv", "squared", "absolute", "relative")
LOWS = ("y", "minus_y", "v", "minus_v")


class ValueAccumulator(Accumulator):
    """Of one target, or several, each with a mean and a deviation near its own; of quantiles the middle one counts."""

    approximate = ("median_absolute_error",)

    def __init__(self, target: TargetSpec, *, mean: np.ndarray, deviation: np.ndarray):
        self.target = target
        self.mean, self.deviation = mean.astype(np.float64), deviation.astype(np.float64)
        self.num_targets = len(self.mean)
        bins = count_bins(2 * self.num_targets)
        super().__init__(
            num_sums=len(SUMS) * self.num_targets + 3,  # and those of quantiles
            num_lows=len(LOWS) * self.num_targets,
            num_counts=bins * self.num_targets,
            num_bins=bins,
        )

    def _count(self, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
        y = truth.reshape(len(truth), -1).astype(np.float64)
        v = prediction.reshape(len(truth), -1)[:, self._places].astype(np.float64)
        error = (y - v) / self.deviation
        bins = score_bins.size_bins(np.abs(error), self.num_bins) + np.arange(self.num_targets) * self.num_bins
        np.add.at(self.counts, bins.ravel(), 1)
        a, b = (y - self.mean) / self.deviation, (v - self.mean) / self.deviation
        with np.errstate(all="ignore"):  # of a true value of zero nothing is made
            relative = np.abs((y - v) / y)
        sums = [part.sum(axis=0) for part in (a, b, a * a, b * b, a * b, error * error, np.abs(error), relative)]
        of_quantiles = np.zeros(3)
        if self.target.quantiles:
            found = quantile_metrics(truth, prediction, self.target.quantiles)
            of_quantiles = np.array(list(found.values())) * len(truth)
        lows = [part.min(axis=0) for part in (y, -y, v, -v)]
        return np.concatenate([*sums, of_quantiles, *lows])

    @property
    def _places(self) -> slice | list[int]:
        return slice(None) if self.target.columns else [self.target.middle]

    def _metrics(self, num_rows: int, sums: np.ndarray, lows: np.ndarray) -> dict[str, float]:
        every = list(self._every(num_rows, sums, lows))
        values = {name: float(np.mean([of_one[name] for of_one in every])) for name in REGRESSION_METRICS}
        if self.target.quantiles:
            names = ("pinball_loss", "interval_coverage", "interval_width")
            values |= {name: share(part, num_rows) for name, part in zip(names, sums[-3:], strict=True)}
        return values

    def by_target(self) -> dict[str, dict[str, float]]:
        """Every metric of each target, by its name."""
        parts = self._every(*self.totals())
        if self.lines[:, 1].any():  # a prediction is no number
            parts = [dict.fromkeys(part, NAN) for part in parts]
        return dict(zip(self.target.names, parts, strict=True))

    def _every(self, num_rows: int, sums: np.ndarray, lows: np.ndarray) -> list[dict[str, float]]:
        by_sum = sums[:-3].reshape(len(SUMS), -1).T
        counts = self.counts.reshape(self.num_targets, -1)
        parts = zip(by_sum, lows.reshape(len(LOWS), -1).T, counts, self.deviation, strict=True)
        return [_value_metrics(num_rows, *part) for part in parts]


def _value_metrics(
    num_rows: int, sums: np.ndarray, lows: np.ndarray, counts: np.ndarray, deviation: float
) -> dict[str, float]:
    if not num_rows:
        return dict.fromkeys(REGRESSION_METRICS, NAN)
    y, v, yy, vv, yv, squared, absolute, relative = (float(total) / num_rows for total in sums)
    low_y, minus_high_y, low_v, minus_high_v = lows
    varies, said_varies = -minus_high_y > low_y, -minus_high_v > low_v
    spread, said_spread = yy - y * y, vv - v * v
    pearson_r = NAN
    if varies and said_varies and spread > 0 and said_spread > 0:
        pearson_r = min(max((yv - y * v) / math.sqrt(spread * said_spread), -1.0), 1.0)
    return {
        "rmse": math.sqrt(squared) * deviation,
        "mae": absolute * deviation,
        "median_absolute_error": score_bins.median_size(counts) * deviation,
        "r2": 1 - squared / spread if num_rows > 1 and varies and spread > 0 else NAN,
        "pearson_r": pearson_r,
        "mape": relative if low_y > 0 else NAN,
    }


def build_accumulator(
    target: TargetSpec,
    *,
    mean: float | Sequence[float],
    deviation: float | Sequence[float],
    threshold: float = 0.5,
    costs: np.ndarray | None = None,
) -> Accumulator:
    """An empty one for what is predicted: it takes truths and predictions as metrics do, of quantiles all (B, Q)."""
    if target.task == "binary":
        return BinaryAccumulator(threshold=threshold, costs=costs)
    if target.task == "multiclass":
        return MulticlassAccumulator(num_classes=len(target.classes), costs=costs)
    return ValueAccumulator(target, mean=np.atleast_1d(mean), deviation=np.atleast_1d(deviation))
