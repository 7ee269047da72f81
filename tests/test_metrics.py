"""Metrics: equal to scikit-learn's or to arithmetic by hand, and NaN without a warning where they have no value."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import ks_2samp, pearsonr
from sklearn import metrics as sk

from nn_train.errors import ConfigError
from nn_train.metrics import (
    BY_TASK,
    DECISION_METRICS,
    LOWER_IS_BETTER,
    QUANTILE_METRICS,
    SCORE_METRICS,
    compute_metrics,
    expected_calibration_error,
    is_better,
    ks_statistic,
    lift_at_10_percent,
    metric_value,
    selection_metric,
)
from nn_train.schema import TASKS
from nn_train.settings import Metric

NAN = float("nan")
DECISIONS = {"accuracy", "balanced_accuracy", "f1", "precision", "recall", "matthews_corrcoef"}
KEYS = {
    "binary": {
        *("roc_auc", "average_precision", "log_loss", "brier_score", "expected_calibration_error"),
        *("ks_statistic", "lift_at_10_percent"),
        *DECISIONS,
        *(f"{name}_at_half" for name in DECISIONS),
    },
    "multiclass": {
        *("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "log_loss", "matthews_corrcoef", "roc_auc"),
        *("top_2_accuracy", "expected_calibration_error"),
    },
    "regression": {"rmse", "mae", "median_absolute_error", "r2", "pearson_r", "mape"},
}


def binary_rows(seed: int, num_rows: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(num_rows) < 0.3).astype(int)
    return y, np.clip(np.round(0.2 * y + 0.8 * rng.random(num_rows), 2), 0.001, 0.999)  # rounded: with ties


def multiclass_rows(seed: int, num_rows: int = 500, num_classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, num_classes, size=num_rows)
    p = rng.random((num_rows, num_classes)) + 0.5 * np.eye(num_classes)[y]
    return y, p / p.sum(axis=1, keepdims=True)


def slow_calibration_error(hit: np.ndarray, confidence: np.ndarray) -> float:
    total = 0.0
    for low in range(15):
        inside = (confidence * 15 >= low) & ((confidence * 15 < low + 1) | (low == 14))
        if inside.any():
            total += inside.sum() * abs(hit[inside].mean() - confidence[inside].mean())
    return total / len(hit)


def slow_lift(y: np.ndarray, p: np.ndarray, *, orders: int = 4000) -> float:
    """The mean over random orders of the rows that tie."""
    rng = np.random.default_rng(0)
    chosen = round(0.1 * len(y))
    hits = [y[np.lexsort((rng.random(len(y)), -p))[:chosen]].mean() for _ in range(orders)]
    return float(np.mean(hits) / y.mean())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.5, 0.37])
def test_binary_metrics_equal_scikit_learn(seed: int, threshold: float) -> None:
    y, p = binary_rows(seed)
    got = compute_metrics(y, p, task="binary", threshold=threshold)
    want = {
        "roc_auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "log_loss": -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)),
        "brier_score": sk.brier_score_loss(y, p),
        "expected_calibration_error": slow_calibration_error(y, p),
        "ks_statistic": ks_2samp(p[y == 0], p[y == 1], alternative="greater").statistic,
    }
    for suffix, cut in (("", threshold), ("_at_half", 0.5)):
        d = (p >= cut).astype(int)
        want |= {
            f"accuracy{suffix}": np.mean(y == d),
            f"balanced_accuracy{suffix}": sk.balanced_accuracy_score(y, d),
            f"f1{suffix}": sk.f1_score(y, d),
            f"precision{suffix}": np.sum(y & d) / np.sum(d),
            f"recall{suffix}": np.sum(y & d) / np.sum(y),
            f"matthews_corrcoef{suffix}": np.corrcoef(y, d)[0, 1],
        }
    lift = got.pop("lift_at_10_percent")
    assert got == pytest.approx(want, rel=1e-12)
    assert lift == pytest.approx(slow_lift(y, p), rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_multiclass_metrics_equal_scikit_learn(seed: int) -> None:
    y, p = multiclass_rows(seed)
    d = p.argmax(axis=1)
    want = {
        "accuracy": np.mean(y == d),
        "balanced_accuracy": np.mean([np.mean(d[y == c] == c) for c in range(4)]),
        "f1_macro": sk.f1_score(y, d, average="macro"),
        "f1_weighted": sk.f1_score(y, d, average="weighted"),
        "log_loss": -np.mean(np.log(p[np.arange(len(y)), y])),
        "matthews_corrcoef": sk.matthews_corrcoef(y, d),
        "roc_auc": sk.roc_auc_score(y, p, multi_class="ovr"),
        "top_2_accuracy": sk.top_k_accuracy_score(y, p, k=2),
        "expected_calibration_error": slow_calibration_error((y == d).astype(float), p.max(axis=1)),
    }
    assert compute_metrics(y, p, task="multiclass") == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_regression_metrics_equal_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = np.exp(rng.normal(size=301))
    v = y + rng.normal(size=301)
    want = {
        "rmse": np.sqrt(np.mean((y - v) ** 2)),
        "mae": sk.mean_absolute_error(y, v),
        "median_absolute_error": np.median(np.abs(y - v)),
        "r2": sk.r2_score(y, v),
        "pearson_r": pearsonr(y, v).statistic,
        "mape": sk.mean_absolute_percentage_error(y, v),
    }
    assert compute_metrics(y, v, task="regression") == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 128, 1000, 10_007])
@pytest.mark.parametrize("seed", range(3))
def test_the_metrics_that_choose_weights_by_default_are_scikit_learns_to_the_bit(num_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for num_classes, order in itertools.product((2, 3, 11), "CF"):
        y = rng.integers(0, num_classes, size=num_rows)
        logits = rng.normal(scale=rng.choice([1, 30, 1000]), size=(num_rows, num_classes))  # some of 0 and of 1
        p = np.asarray(softmax(logits, axis=1), order=order)
        labels = np.arange(num_classes)
        assert metric_value("log_loss", y, p, task="multiclass") == sk.log_loss(y, p, labels=labels)
        if num_classes == 2:
            assert metric_value("log_loss", y, p[:, 1], task="binary") == sk.log_loss(y, p[:, 1], labels=labels)
        p = p.astype(np.float32)  # of a baseline
        want = sk.log_loss(y, p, labels=labels)
        assert metric_value("log_loss", y, p, task="multiclass") == pytest.approx(want, rel=1e-6)
    for scale in (1, 1e-9, 1e150):
        y = rng.normal(size=num_rows) * scale
        v = y + rng.normal(size=num_rows) * scale
        assert metric_value("rmse", y, v, task="regression") == sk.root_mean_squared_error(y, v)


@pytest.mark.parametrize("task", TASKS)
def test_every_metric_has_its_key_is_a_plain_float_and_has_one_value(task: str) -> None:
    if task == "regression":
        y, prediction = np.arange(1.0, 41.0), np.arange(40.0) ** 1.1
    else:
        y, prediction = binary_rows(0) if task == "binary" else multiclass_rows(0)
    values = compute_metrics(y, prediction, task=task)
    assert set(values) == KEYS[task]
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    for name in BY_TASK[task]:
        assert metric_value(name, y, prediction, task=task) == values[name]


def test_decisions_at_half_do_not_move_with_the_threshold() -> None:
    y, p = binary_rows(1)
    low, high = (compute_metrics(y, p, task="binary", threshold=cut) for cut in (0.2, 0.8))
    assert all(low[f"{name}_at_half"] == high[f"{name}_at_half"] for name in DECISIONS)
    assert all(low[name] == high[name] for name in SCORE_METRICS)
    assert low["recall"] > low["recall_at_half"] > high["recall"]
    at_half = compute_metrics(y, p, task="binary")
    assert all(at_half[name] == at_half[f"{name}_at_half"] for name in DECISIONS)


def test_a_row_at_the_threshold_is_positive() -> None:
    values = compute_metrics(np.array([0, 1]), np.array([0.2, 0.7]), task="binary", threshold=0.7)
    assert values["recall"] == values["precision"] == 1.0


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_ks_is_the_furthest_lead_of_the_positives() -> None:
    y = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    p = np.arange(8) / 10
    assert ks_statistic(y, p) == pytest.approx(1.0 - 1 / 4)  # at 0.3: all positives, one of four negatives
    assert ks_statistic(y, np.full(8, 0.5)) == 0.0
    assert ks_statistic(np.array([0, 1]), np.array([0.1, 0.9])) == 1.0
    assert ks_statistic(np.array([1, 0]), np.array([0.1, 0.9])) == 0.0  # upside down
    ties = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9])
    assert ks_statistic(y, ties) == pytest.approx(3 / 4 - 1 / 4)


def test_lift_counts_tied_rows_in_proportion() -> None:
    y = np.zeros(20, dtype=int)
    y[:4] = 1
    p = np.linspace(1, 0, 20)
    assert lift_at_10_percent(y, p) == pytest.approx(1.0 / 0.2)  # both of the best two
    assert lift_at_10_percent(y[::-1].copy(), p) == 0.0
    p[1:5] = p[1]  # one sure positive, and four rows for one place, three of them positive
    assert lift_at_10_percent(y, p) == pytest.approx((1 + 3 / 4) / 2 / 0.2)
    assert lift_at_10_percent(y, np.full(20, 0.3)) == pytest.approx(1.0)
    assert lift_at_10_percent(np.array([0, 1, 1]), np.array([0.1, 0.9, 0.2])) == pytest.approx(1.5)  # a tenth is one


def test_calibration_error_by_hand() -> None:
    assert expected_calibration_error(np.array([1, 0, 1, 1]), np.full(4, 0.75)) == 0.0
    assert expected_calibration_error(np.array([1, 0]), np.array([1.0, 0.0])) == 0.0
    got = expected_calibration_error(np.array([1, 1, 0]), np.array([0.9, 0.5, 0.01]))
    assert got == pytest.approx((0.1 + 0.5 + 0.01) / 3)


def test_tied_classes_are_decided_as_the_decision_is() -> None:
    y = np.array([0, 1, 2])
    p = np.full((3, 3), 1 / 3)
    values = compute_metrics(y, p, task="multiclass")
    assert values["accuracy"] == pytest.approx(1 / 3)  # the first class
    assert values["top_2_accuracy"] == pytest.approx(2 / 3)  # the first two
    assert values["roc_auc"] == 0.5


# --- no value ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_in_a_binary_split(only: int) -> None:
    y, p = np.full(6, only), np.linspace(0.1, 0.9, 6)
    values = compute_metrics(y, p, task="binary")
    undefined = {name for name, value in values.items() if math.isnan(value)}
    expected = {"roc_auc", "ks_statistic", "balanced_accuracy", "matthews_corrcoef"}
    expected |= {"average_precision", "lift_at_10_percent", "recall"} if only == 0 else set()
    assert {name.removesuffix("_at_half") for name in undefined} == expected
    assert values["log_loss"] == pytest.approx(-np.mean(np.log(p if only else 1 - p)))
    assert values["brier_score"] == pytest.approx(np.mean((p - only) ** 2))


def test_constant_predictions_of_a_binary_task() -> None:
    y = np.array([0, 0, 0, 1])
    values = compute_metrics(y, np.full(4, 0.25), task="binary")
    assert values["roc_auc"] == 0.5
    assert values["average_precision"] == 0.25
    assert (values["ks_statistic"], values["lift_at_10_percent"]) == (0.0, 1.0)
    assert (values["accuracy"], values["balanced_accuracy"], values["matthews_corrcoef"]) == (0.75, 0.5, 0.0)
    assert math.isnan(values["precision"])
    assert (values["recall"], values["f1"]) == (0.0, 0.0)
    assert values["expected_calibration_error"] == 0.0


def test_neither_positives_nor_positive_decisions() -> None:
    values = compute_metrics(np.zeros(3, dtype=int), np.full(3, 0.1), task="binary")
    assert math.isnan(values["f1"])
    assert values["accuracy"] == 1.0


@pytest.mark.parametrize("y", [0, 1])
def test_a_single_binary_row(y: int) -> None:
    values = compute_metrics(np.array([y]), np.array([0.8]), task="binary")
    assert set(values) == KEYS["binary"]
    assert values["accuracy"] == y
    assert values["log_loss"] == pytest.approx(-np.log(0.8 if y else 0.2))
    assert math.isnan(values["roc_auc"])


def test_a_class_that_a_split_lacks() -> None:
    y, p = multiclass_rows(3)
    kept = y != 2
    y, p = y[kept], p[kept]
    values = compute_metrics(y, p, task="multiclass")
    assert values["roc_auc"] == pytest.approx(np.mean([sk.roc_auc_score(y == c, p[:, c]) for c in (0, 1, 3)]))
    assert values["log_loss"] == pytest.approx(-np.mean(np.log(p[np.arange(len(y)), y])))
    assert values["balanced_accuracy"] == pytest.approx(np.mean([np.mean(p[y == c].argmax(1) == c) for c in (0, 1, 3)]))
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("num_rows", [1, 5])
def test_one_class_in_a_multiclass_split(num_rows: int) -> None:
    y = np.full(num_rows, 1)
    p = np.tile([0.2, 0.5, 0.3], (num_rows, 1))
    values = compute_metrics(y, p, task="multiclass")
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {"roc_auc", "balanced_accuracy", "matthews_corrcoef"}
    assert values["log_loss"] == pytest.approx(-np.log(0.5))
    assert values["accuracy"] == values["top_2_accuracy"] == 1.0


def test_certain_but_wrong_probabilities_have_a_finite_log_loss() -> None:
    binary = compute_metrics(np.array([0, 1]), np.array([1.0, 0.0]), task="binary")
    many = compute_metrics(np.array([0, 1, 2]), np.eye(3)[[1, 2, 0]], task="multiclass")
    assert 30 < binary["log_loss"] < 40
    assert 30 < many["log_loss"] < 40


def test_regression_without_a_value() -> None:
    y = np.array([1.0, 2.0, 4.0])
    assert math.isnan(compute_metrics(y, np.full(3, 2.0), task="regression")["pearson_r"])
    constant = compute_metrics(np.full(3, 2.0), y, task="regression")
    assert math.isnan(constant["r2"]) and math.isnan(constant["pearson_r"])
    assert constant["mae"] == pytest.approx(1.0)
    single = compute_metrics(np.array([3.0]), np.array([2.0]), task="regression")
    assert {name for name, value in single.items() if math.isnan(value)} == {"r2", "pearson_r"}
    assert single["mape"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("least", [0.0, -1.0])
def test_mape_needs_targets_above_zero(least: float) -> None:
    values = compute_metrics(np.array([least, 2.0, 3.0]), np.array([1.0, 2.0, 4.0]), task="regression")
    assert math.isnan(values.pop("mape"))
    assert all(math.isfinite(value) for value in values.values())


@pytest.mark.parametrize("wrong", [NAN, math.inf])
@pytest.mark.parametrize("task", TASKS)
def test_predictions_that_are_no_numbers_have_no_metrics(task: str, wrong: float) -> None:
    y = np.array([0, 1, 2, 1]) if task == "multiclass" else np.array([0, 1, 0, 1])
    prediction = np.full((4, 3), 1 / 3) if task == "multiclass" else np.full(4, 0.4)
    prediction.flat[0] = wrong
    assert all(math.isnan(value) for value in compute_metrics(y, prediction, task=task).values())
    assert all(math.isnan(metric_value(name, y, prediction, task=task)) for name in BY_TASK[task])


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_is_better() -> None:
    assert is_better("log_loss", 0.1, 0.2) and not is_better("log_loss", 0.2, 0.1)
    assert is_better("roc_auc", 0.2, 0.1) and not is_better("roc_auc", 0.1, 0.2)
    for name in ("log_loss", "roc_auc"):
        assert not is_better(name, 0.3, 0.3)
        assert not is_better(name, NAN, 0.3)
        assert not is_better(name, NAN, NAN)
        assert is_better(name, 0.3, NAN)
        assert type(is_better(name, np.float64(0.3), NAN)) is bool
    assert not is_better("rmse", math.inf, 1.0) and is_better("rmse", 1.0, math.inf)


@pytest.mark.parametrize("task", TASKS)
def test_perfect_predictions_are_better_than_poor_ones_by_every_metric(task: str) -> None:
    rng = np.random.default_rng(0)
    if task == "regression":
        y = rng.random(200) + 1
        perfect, poor = y, rng.random(200)
    else:
        y = rng.integers(0, 2 if task == "binary" else 3, size=200)
        chances = rng.random((200, 3))
        perfect, poor = (y.astype(float), rng.random(200)) if task == "binary" else (np.eye(3)[y], chances)
        poor = poor if task == "binary" else poor / poor.sum(axis=1, keepdims=True)
    best, worse = (compute_metrics(y, prediction, task=task) for prediction in (perfect, poor))
    for name in BY_TASK[task]:
        assert is_better(name, best[name], worse[name]), name
    known = {name for metrics in BY_TASK.values() for name in metrics}
    assert LOWER_IS_BETTER <= known | {*QUANTILE_METRICS, "mean_cost"}


@pytest.mark.parametrize("task", TASKS)
def test_selection_metric(task: str) -> None:
    assert selection_metric("auto", task) == ("rmse" if task == "regression" else "log_loss")
    for name in get_args(Metric):
        if name == "auto":
            continue
        if name in BY_TASK[task]:
            assert selection_metric(name, task) == name
        elif (name, task) == ("f1", "multiclass"):
            assert selection_metric(name, task) == "f1_macro"
        else:
            with pytest.raises(ConfigError) as caught:
                selection_metric(name, task)
            assert f"train.selection_metric={name} is not a metric of a {task} task" in str(caught.value)
            of_quantiles = (name, task) == ("pinball_loss", "regression")
            mend = "train.loss=quantile" if of_quantiles else f"one of {', '.join(BY_TASK[task])}"
            assert f"mend: {mend}" in str(caught.value)


def test_every_name_of_the_setting_is_a_metric_of_some_task() -> None:
    known = {name for metrics in BY_TASK.values() for name in metrics}
    assert set(get_args(Metric)) - {"auto"} <= known | {"pinball_loss"}
    assert set(DECISION_METRICS) == DECISIONS
