"""The metrics of `metrics.py` for classes, from rows that come block by block, in memory that does not grow with them.

What is a sum over rows is exact: a line of sums is kept for each block, and lines are added up without rounding, so
that the order of the blocks, and who saw which, changes no bit. What needs all scores comes from counts of scores in
bins (`score_bins.py`); `approximate` names it.

Shapes: B rows, C classes; `truth` and `prediction` are as in `metrics.py`.
"""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np

from nn_train import score_bins
from nn_train.costs import cheapest
from nn_train.metrics import NAN, NUM_CALIBRATION_BINS, log_losses

MOST_BINS, LEAST_BINS = 1 << 20, 1 << 8
MOST_CELLS = 1 << 21  # of all counts together: many classes, or targets, share them


class Accumulator:
    """Sums of blocks and counts of scores; `lines` (blocks, K) float64 and `counts` int64 are all that it holds.

    Those of several processes are added up by laying their lines one after another and summing their counts. The last
    `num_lows` numbers of a line are no sums: of them the lowest one counts.
    """

    approximate: tuple[str, ...] = ()

    def __init__(self, *, num_sums: int, num_counts: int, num_bins: int, num_lows: int = 0):
        self.num_sums = num_sums
        self.num_lows = num_lows
        self.num_bins = num_bins
        self.counts = np.zeros(num_counts, np.int64)
        self._lines: list[np.ndarray] = []

    @property
    def lines(self) -> np.ndarray:
        """A line for each block: rows, rows whose prediction is no number, and the sums of the others."""
        return np.array(self._lines).reshape(-1, 2 + self.num_sums + self.num_lows)

    @property
    def num_rows(self) -> int:
        """Rows that were taken in."""
        return int(self.lines[:, 0].sum())

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Take in a block."""
        if not len(truth):
            return
        is_number = np.isfinite(prediction).reshape(len(truth), -1).all(axis=1)
        found = self._count(truth, prediction) if is_number.all() else np.zeros(self.num_sums + self.num_lows)
        self._lines.append(np.array([len(truth), np.sum(~is_number), *found], np.float64))

    def merge(self, other: Self) -> None:
        """Take in what another one has seen."""
        self.load(np.concatenate([self.lines, other.lines]), self.counts + other.counts)

    def load(self, lines: np.ndarray, counts: np.ndarray) -> None:
        """Hold these in place of its own."""
        self._lines, self.counts = list(lines), counts

    def metrics(self) -> dict[str, float]:
        """Every metric of the task, by the names of `compute_metrics`; all NaN where a prediction is no number."""
        values = self._metrics(*self.totals())
        return dict.fromkeys(values, NAN) if self.lines[:, 1].any() else values

    def totals(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Rows, sums and lowest values of all blocks; NaN in place of sums where a prediction is no number."""
        lines = self.lines
        sums = np.array([total(values) for values in lines[:, 2 : 2 + self.num_sums].T])
        lows = lines[:, 2 + self.num_sums :].min(axis=0, initial=np.inf)
        return int(lines[:, 0].sum()), sums if not lines[:, 1].any() else np.full(len(sums), NAN), lows

    def auc_bound(self) -> float:
        """How far ROC AUC can be off; NaN where there is none."""
        return NAN

    def by_target(self) -> dict[str, dict[str, float]]:
        """Every metric of each of several targets, by its name; empty where there is none."""
        return {}

    def _count(self, truth: np.ndarray, prediction: np.ndarray) -> Sequence[float] | np.ndarray:
        raise NotImplementedError

    def _metrics(self, num_rows: int, sums: np.ndarray, lows: np.ndarray) -> dict[str, float]:
        raise NotImplementedError


def total(values: np.ndarray) -> float:
    """The sum, rounded once."""
    return math.fsum(values) if np.isfinite(values).all() else float(np.sum(values))


def share(part: float, whole: float) -> float:
    """Part of a whole; NaN of nothing."""
    return float(part / whole) if whole else NAN


def count_bins(parts: int) -> int:
    """Bins of each of so many counts: a power of two."""
    return 1 << min(max(MOST_CELLS // parts, LEAST_BINS).bit_length() - 1, MOST_BINS.bit_length() - 1)


def _calibration_gaps(hit: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Hits less confidence in each bin of `expected_calibration_error`, (15,)."""
    bins = np.minimum((confidence * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)
    return np.bincount(bins, weights=hit - confidence, minlength=NUM_CALIBRATION_BINS)


class BinaryAccumulator(Accumulator):
    """Of a binary task: counts by class and bin, and behind them decisions at the threshold and at a half."""

    approximate = ("roc_auc", "average_precision", "ks_statistic", "lift_at_10_percent")

    def __init__(self, *, threshold: float = 0.5, costs: np.ndarray | None = None):
        bins = count_bins(2)
        super().__init__(num_sums=2 + NUM_CALIBRATION_BINS, num_counts=2 * bins + 8, num_bins=bins)
        self.cuts = {"": threshold, "_at_half": 0.5}
        self.costs = costs

    def _count(self, truth: np.ndarray, prediction: np.ndarray) -> Sequence[float] | np.ndarray:
        y, p = truth.astype(np.int64), prediction
        np.add.at(self.counts, y * self.num_bins + score_bins.probability_bins(p, self.num_bins), 1)
        for place, cut in enumerate(self.cuts.values()):
            np.add.at(self.counts, 2 * self.num_bins + 4 * place + 2 * y + (p >= cut), 1)
        return [log_losses(y, p).sum(), ((p - y) ** 2).sum(), *_calibration_gaps(y, p)]

    def _scores(self) -> tuple[np.ndarray, np.ndarray]:
        negative, positive = self.counts[: 2 * self.num_bins].reshape(2, -1)
        return negative, positive

    def auc_bound(self) -> float:
        """How far ROC AUC can be off, whatever the order inside the bins."""
        return score_bins.auc_bound(*self._scores())

    def _metrics(self, num_rows: int, sums: np.ndarray, lows: np.ndarray) -> dict[str, float]:
        scores = self._scores()
        values = {
            "roc_auc": score_bins.roc_auc(*scores),
            "average_precision": score_bins.average_precision(*scores),
            "log_loss": share(sums[0], num_rows),
            "brier_score": share(sums[1], num_rows),
            "expected_calibration_error": share(np.abs(sums[2:]).sum(), num_rows),
            "ks_statistic": score_bins.ks_statistic(*scores),
            "lift_at_10_percent": score_bins.lift_at_10_percent(*scores),
        }
        tables = self.counts[2 * self.num_bins :].reshape(2, 2, 2)
        for suffix, table in zip(self.cuts, tables, strict=True):
            values |= {f"{name}{suffix}": value for name, value in _decision_metrics(table).items()}
        if self.costs is not None:
            values["mean_cost"] = share((self.costs * tables[0]).sum(), num_rows)
        return values


def _decision_metrics(table: np.ndarray) -> dict[str, float]:
    """From rows by true and decided class, (2, 2)."""
    (_, false_alarms), (missed, hits) = (map(float, row) for row in table)
    num_true, num_said = table.sum(axis=1), table.sum(axis=0)
    return {
        "accuracy": share(np.trace(table), table.sum()),
        "balanced_accuracy": float(np.mean(np.diag(table) / num_true)) if num_true.all() else NAN,
        "f1": share(2 * hits, 2 * hits + false_alarms + missed),
        "precision": share(hits, hits + false_alarms),
        "recall": share(hits, hits + missed),
        "matthews_corrcoef": _matthews(np.trace(table), num_true, num_said),
    }


def _matthews(num_right: float, num_true: np.ndarray, num_said: np.ndarray) -> float:
    """From rows that are decided rightly, and rows of each true and each decided class. Source: Gorodkin 2004.

    By shares, since products of counts of many rows would leave int64.
    """
    whole = num_true.sum()
    if np.count_nonzero(num_true) < 2:
        return NAN
    true, said = num_true / whole, num_said / whole
    spread = (1 - (true**2).sum()) * (1 - (said**2).sum())
    return (
        float((num_right / whole - (true * said).sum()) / math.sqrt(spread)) if np.count_nonzero(num_said) > 1 else 0.0
    )


class MulticlassAccumulator(Accumulator):
    """Of several classes: scores of each against the rest, and rows by true and decided class, and those in both."""

    approximate = ("roc_auc",)

    def __init__(self, *, num_classes: int, costs: np.ndarray | None = None):
        bins = count_bins(2 * num_classes)
        self.num_classes = num_classes
        self.costs = costs
        super().__init__(num_sums=3 + NUM_CALIBRATION_BINS, num_counts=num_classes * (2 * bins + 3), num_bins=bins)

    def _count(self, truth: np.ndarray, prediction: np.ndarray) -> Sequence[float] | np.ndarray:
        y, p = truth.astype(np.int64), prediction
        scores, step = self.num_classes * self.num_bins, max(MOST_CELLS // self.num_classes, 1)
        for start in range(0, len(y), step):
            part = p[start : start + step]
            bins = score_bins.probability_bins(part, self.num_bins) + np.arange(self.num_classes) * self.num_bins
            np.add.at(self.counts, bins.ravel(), 1)  # of all rows, and behind them those of the true class
            np.add.at(self.counts, scores + bins[np.arange(len(part)), y[start : start + step]], 1)
        best = p.argmax(axis=1)
        decided = best if self.costs is None else cheapest(p, self.costs)
        for place, codes in enumerate((y, decided, y[decided == y])):
            np.add.at(self.counts, 2 * scores + place * self.num_classes + codes, 1)
        first_two = np.argsort(-p, axis=1, kind="stable")[:, :2] == y[:, None]
        cost = 0.0 if self.costs is None else self.costs[y, decided].sum()
        gaps = _calibration_gaps((best == y).astype(float), p.max(axis=1))
        return [log_losses(y, p).sum(), first_two.sum(), cost, *gaps]

    def _by_class(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Counts of each class's rows and of the others, for those that occur and do not fill the rows."""
        every, own = self.counts[: 2 * self.num_classes * self.num_bins].reshape(2, self.num_classes, -1)
        pairs = ((a - o, o) for a, o in zip(every, own, strict=True))
        return [(other, own) for other, own in pairs if other.any() and own.any()]

    def auc_bound(self) -> float:
        """How far ROC AUC can be off, whatever the order inside the bins."""
        return _mean([score_bins.auc_bound(*pair) for pair in self._by_class()])

    def _metrics(self, num_rows: int, sums: np.ndarray, lows: np.ndarray) -> dict[str, float]:
        true, said, right = self.counts[2 * self.num_classes * self.num_bins :].reshape(3, -1).astype(np.float64)
        is_there, is_met = true > 0, (true > 0) | (said > 0)
        f1 = np.divide(2 * right, true + said, out=np.zeros(len(true)), where=is_met)
        values = {
            "accuracy": share(right.sum(), num_rows),
            "balanced_accuracy": float(np.mean(right[is_there] / true[is_there])) if is_there.sum() > 1 else NAN,
            "f1_macro": _mean(f1[is_met]),
            "f1_weighted": share((f1 * true).sum(), num_rows),
            "log_loss": share(sums[0], num_rows),
            "matthews_corrcoef": _matthews(right.sum(), true, said),
            "roc_auc": _mean([score_bins.roc_auc(*pair) for pair in self._by_class()]),
            "top_2_accuracy": share(sums[1], num_rows),
            "expected_calibration_error": share(np.abs(sums[3:]).sum(), num_rows),
        }
        return values if self.costs is None else values | {"mean_cost": share(sums[2], num_rows)}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else NAN
