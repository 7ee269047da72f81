"""Metrics of whole splits, computed once from gathered predictions with scikit-learn.

scikit-learn takes most of a second to import, so its metrics come at their first use. The two that
choose the best weights by default are its formulas written out, with the same bits: no training
waits for the import.

Conventions: B rows, C classes. `y` holds class codes (B,) or values in the target's own unit (B,);
`prediction` holds the positive class's probability (B,), every class's probability (B, C),
values (B,), or sorted values of quantiles (B, Q). A metric that is not defined for the rows at hand is NaN.
Several targets have y and values (B, T): a metric is then the mean of theirs.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nn_train.costs import cheapest, mean_cost
from nn_train.errors import ConfigError
from nn_train.schema import Task

if TYPE_CHECKING:
    from sklearn import metrics as sk
else:

    class _AtFirstUse:
        def __getattr__(self, name: str) -> Any:
            from sklearn import metrics  # not before the first step

            return getattr(metrics, name)

    sk = _AtFirstUse()

NAN = float("nan")
OWN_METRIC = re.compile(r"-?[\w.]+:[\w.]+")  # module:function, a `-` in front where less is better
LOWER_IS_BETTER = frozenset(
    {
        *("log_loss", "brier_score", "expected_calibration_error", "mean_cost"),
        *("rmse", "mae", "median_absolute_error", "mape", "pinball_loss", "interval_width"),
    }
)
NUM_CALIBRATION_BINS = 15
NUM_WORST_ROWS = 50  # that a report shows one by one
Metric = Callable[[np.ndarray, np.ndarray], float]


def ks_statistic(y: np.ndarray, p: np.ndarray) -> float:
    """Furthest that the positives' scores lie above the negatives': the one-sided Kolmogorov-Smirnov distance.

    A ranking that is upside down gets 0, not 1.
    """
    false_rate, true_rate, _ = sk.roc_curve(y, p)
    return float(np.max(true_rate - false_rate))


def lift_at_10_percent(y: np.ndarray, p: np.ndarray) -> float:
    """Share of positives among the tenth of the rows with the highest scores, over their share among all.

    Rows whose score ties with the last of that tenth count in proportion.
    """
    num_chosen = max(round(0.1 * len(y)), 1)
    cutoff = np.partition(p, -num_chosen)[-num_chosen]
    above, tied = p > cutoff, p == cutoff
    positives = y[above].sum() + y[tied].mean() * (num_chosen - above.sum())
    return float(positives / num_chosen / y.mean())


def expected_calibration_error(hit: np.ndarray, confidence: np.ndarray) -> float:
    """Mean distance between confidence and frequency over equal-width bins, weighted by rows.

    Source: Guo et al. 2017, with 15 bins.
    """
    bins = np.minimum((confidence * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights=hit - confidence, minlength=NUM_CALIBRATION_BINS)
    return float(np.abs(gap).sum() / len(hit))


def _both_classes(y: np.ndarray) -> bool:
    return 0 < y.sum() < len(y)


def _balanced_accuracy(y: np.ndarray, decision: np.ndarray) -> float:
    return float(sk.balanced_accuracy_score(y, decision)) if np.ptp(y) > 0 else NAN


def _matthews_corrcoef(y: np.ndarray, decision: np.ndarray) -> float:
    """Decisions that are all the same count as 0, as usual; rows that are all of one class have no value."""
    return float(sk.matthews_corrcoef(y, decision)) if np.ptp(y) > 0 else NAN


def log_losses(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The log-loss of each row, (B,)."""
    table = p if p.ndim == 2 else np.stack([1 - p, p], axis=1)
    eps = np.finfo(table.dtype).eps
    truth = y[:, None] == np.arange(table.shape[1])
    return -np.sum(np.where(truth, np.log(np.clip(table, eps, 1 - eps)), 0), axis=1)


def _log_loss(y: np.ndarray, p: np.ndarray) -> float:
    """scikit-learn's `log_loss`, to the bit."""
    return float(np.mean(log_losses(y, p)))


def _rmse(y: np.ndarray, prediction: np.ndarray) -> float:
    """scikit-learn's `root_mean_squared_error`, to the bit: it adds up a column, which rounds otherwise than a row."""
    return float(np.sqrt(np.mean(((y - prediction) ** 2)[:, None], axis=0))[0])


def _one_vs_rest_auc(y: np.ndarray, p: np.ndarray) -> float:
    """Mean over the classes that occur and do not fill the split."""
    parts = [sk.roc_auc_score(y == c, p[:, c]) for c in range(p.shape[1]) if _both_classes(y == c)]
    return float(np.mean(parts)) if parts else NAN


def _top_2_accuracy(y: np.ndarray, p: np.ndarray) -> float:
    order = np.argsort(-p, axis=1, kind="stable")[:, :2]
    return float((order == y[:, None]).any(axis=1).mean())


def _pearson_r(y: np.ndarray, prediction: np.ndarray) -> float:
    return float(np.corrcoef(y, prediction)[0, 1]) if np.ptp(y) > 0 and np.ptp(prediction) > 0 else NAN


# From a probability alone.
SCORE_METRICS: dict[str, Metric] = {
    "roc_auc": lambda y, p: float(sk.roc_auc_score(y, p)) if _both_classes(y) else NAN,
    "average_precision": lambda y, p: float(sk.average_precision_score(y, p)) if y.any() else NAN,
    "log_loss": _log_loss,
    "brier_score": lambda y, p: float(np.mean((p - y) ** 2)),
    "expected_calibration_error": expected_calibration_error,
    "ks_statistic": lambda y, p: ks_statistic(y, p) if _both_classes(y) else NAN,
    "lift_at_10_percent": lambda y, p: lift_at_10_percent(y, p) if y.any() else NAN,
}
# From a decision; under a binary task at a threshold.
DECISION_METRICS: dict[str, Metric] = {
    "accuracy": lambda y, d: float(sk.accuracy_score(y, d)),
    "balanced_accuracy": _balanced_accuracy,
    "f1": lambda y, d: float(sk.f1_score(y, d, zero_division=NAN)),
    "precision": lambda y, d: float(sk.precision_score(y, d, zero_division=NAN)),
    "recall": lambda y, d: float(sk.recall_score(y, d, zero_division=NAN)),
    "matthews_corrcoef": _matthews_corrcoef,
}
MULTICLASS_METRICS: dict[str, Metric] = {
    "accuracy": lambda y, p: float(sk.accuracy_score(y, p.argmax(1))),
    "balanced_accuracy": lambda y, p: _balanced_accuracy(y, p.argmax(1)),
    "f1_macro": lambda y, p: float(sk.f1_score(y, p.argmax(1), average="macro", zero_division=0)),
    "f1_weighted": lambda y, p: float(sk.f1_score(y, p.argmax(1), average="weighted", zero_division=0)),
    "log_loss": _log_loss,
    "matthews_corrcoef": lambda y, p: _matthews_corrcoef(y, p.argmax(1)),
    "roc_auc": _one_vs_rest_auc,
    "top_2_accuracy": _top_2_accuracy,
    "expected_calibration_error": lambda y, p: expected_calibration_error((p.argmax(1) == y).astype(float), p.max(1)),
}
# Those of several classes that depend on the decided one alone.
DECIDED_METRICS = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "matthews_corrcoef")
REGRESSION_METRICS: dict[str, Metric] = {
    "rmse": _rmse,
    "mae": lambda y, v: float(sk.mean_absolute_error(y, v)),
    "median_absolute_error": lambda y, v: float(sk.median_absolute_error(y, v)),
    "r2": lambda y, v: float(sk.r2_score(y, v)) if len(y) > 1 and np.ptp(y) > 0 else NAN,
    "pearson_r": _pearson_r,
    "mape": lambda y, v: float(np.mean(np.abs((y - v) / y))) if (y > 0).all() else NAN,
}
QUANTILE_METRICS = (
    "pinball_loss",
    "interval_coverage",
    "interval_width",
)  # beside those of the middle quantile
BY_TASK: dict[Task, dict[str, Metric]] = {
    "binary": SCORE_METRICS | DECISION_METRICS,
    "multiclass": MULTICLASS_METRICS,
    "regression": REGRESSION_METRICS,
}


def quantile_metrics(y: np.ndarray, values: np.ndarray, quantiles: Sequence[float]) -> dict[str, float]:
    """How good values (B, Q) of quantiles are: the mean pinball loss, and the interval from the first to the last.

    Its coverage, the share of the rows inside it, should be the distance of the two levels; NaN for a single quantile.
    """
    if not np.isfinite(values).all():
        return dict.fromkeys(QUANTILE_METRICS, NAN)
    levels, error = np.asarray(quantiles), y[:, None] - values
    low, high = values[:, 0], values[:, -1]
    is_interval = len(quantiles) > 1
    return {
        "pinball_loss": float(np.maximum(levels * error, (levels - 1) * error).mean()),
        "interval_coverage": float(((low <= y) & (y <= high)).mean()) if is_interval else NAN,
        "interval_width": float((high - low).mean()) if is_interval else NAN,
    }


def selection_metric(name: str, task: Task, *, quantiles: Sequence[float] = (), num_targets: int = 1) -> str:
    """The metric that chooses the best weights.

    `auto` is log-loss, RMSE for numbers, pinball loss for quantiles, and for several targets, which have units of their
    own, R².

    Raises:
        ConfigError: the metric is not one of this task.
    """
    if OWN_METRIC.fullmatch(name):
        return own_metric_name(name)
    if quantiles and name in ("auto", "pinball_loss"):
        return "pinball_loss"
    if name == "auto" and num_targets > 1:
        return "r2"
    if name == "auto":
        return "rmse" if task == "regression" else "log_loss"
    name = "f1_macro" if (name, task) == ("f1", "multiclass") else name
    if name not in BY_TASK[task]:
        raise ConfigError(
            f"train.selection_metric={name} is not a metric of a {task} task",
            fix="train.loss=quantile"
            if (name, task) == ("pinball_loss", "regression")
            else f"one of {', '.join(BY_TASK[task])}",
        )
    return name


def own_metric_name(setting: str) -> str:
    """The name of a metric of the user's in records: that of its function, `neg_` in front where less is better."""
    name = re.split(r"[:.]", setting)[-1]
    is_taken = any(name in known for known in BY_TASK.values()) or name in (*QUANTILE_METRICS, "loss")
    return f"{'neg_' if setting.startswith('-') else ''}{'own_' if is_taken else ''}{name}"


def is_better(name: str, value: float, best: float) -> bool:
    """Is `value` better than `best`? NaN never is, and is beaten by any number."""
    if np.isnan(value):
        return False
    return bool(np.isnan(best)) or (value < best if name in LOWER_IS_BETTER else value > best)


def worst_first(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Positions of rows, those with the least probable true class or the largest residual first; ties in order.

    `scores` holds the probability of every class (B, C), also where there are two, or values (B,); of several targets,
    y (B, T), the sum of the squared residuals counts, each in deviations of its target.
    """
    if y.ndim == 2:
        deviation = np.where(y.std(axis=0) > 0, y.std(axis=0), 1.0)
        return np.argsort(-(((y - scores) / deviation) ** 2).sum(axis=1), kind="stable")
    return np.argsort(scores[np.arange(len(y)), y] if scores.ndim == 2 else -np.abs(y - scores), kind="stable")


def metric_value(name: str, y: np.ndarray, prediction: np.ndarray, *, task: Task) -> float:
    """One metric of a split; decisions of a binary task are taken at a half."""
    cut = 0.5 if task == "binary" and name in DECISION_METRICS else None
    return _value(BY_TASK[task][name], y, prediction, cut)


def compute_metrics(
    y: np.ndarray, prediction: np.ndarray, *, task: Task, threshold: float = 0.5, costs: np.ndarray | None = None
) -> dict[str, float]:
    """Every metric of the task. A binary task's decisions are at `threshold`, and at a half as `..._at_half`.

    With `costs` (C, C) several classes are decided by the least expected cost, and `mean_cost` is that of a row.
    """
    if task == "regression":
        return {name: _value(metric, y, prediction) for name, metric in REGRESSION_METRICS.items()}
    if task == "multiclass":
        return _multiclass_metrics(y, prediction, costs)
    values = {name: _value(metric, y, prediction) for name, metric in SCORE_METRICS.items()}
    for suffix, cut in (("", threshold), ("_at_half", 0.5)):
        values |= {f"{name}{suffix}": _value(metric, y, prediction, cut) for name, metric in DECISION_METRICS.items()}
    if costs is not None:
        values["mean_cost"] = _value(lambda y, d: mean_cost(y, d, costs), y, prediction, threshold)
    return values


def metrics_by_target(y: np.ndarray, values: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Every metric of each of several targets, by its name; y and values (B, T)."""
    pairs = zip(names, y.T, values.T, strict=True)
    return {name: compute_metrics(truth, said, task="regression") for name, truth, said in pairs}


def _multiclass_metrics(y: np.ndarray, p: np.ndarray, costs: np.ndarray | None) -> dict[str, float]:
    if costs is None or not np.isfinite(p).all():
        values = {name: _value(metric, y, p) for name, metric in MULTICLASS_METRICS.items()}
        return values if costs is None else values | {"mean_cost": NAN}
    chosen = cheapest(p, costs)
    decided = np.eye(len(costs))[chosen]
    values = {
        name: _value(metric, y, decided if name in DECIDED_METRICS else p)
        for name, metric in MULTICLASS_METRICS.items()
    }
    return values | {"mean_cost": mean_cost(y, chosen, costs)}


def _value(metric: Metric, y: np.ndarray, prediction: np.ndarray, cut: float | None = None) -> float:
    """A metric, of decisions at `cut` if given; NaN for predictions that are no numbers.

    Without scikit-learn's remarks on classes that a split or a prediction lacks.
    """
    if not np.isfinite(prediction).all():
        return NAN
    if y.ndim == 2:
        return float(np.mean([_value(metric, *pair) for pair in zip(y.T, prediction.T, strict=True)]))
    decided = prediction if cut is None else (prediction >= cut).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return metric(y, decided)
