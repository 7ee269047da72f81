"""Metrics from blocks and bins, against those of all scores at once by scikit-learn."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from nn_train.metrics import compute_metrics, metrics_by_target, quantile_metrics
from nn_train.schema import TargetSpec
from nn_train.streamed_metrics import Accumulator, BinaryAccumulator
from nn_train.streamed_values import ValueAccumulator, build_accumulator

BINARY = TargetSpec(name="y", task="binary", classes=("no", "yes"))
CLASSES = TargetSpec(name="y", task="multiclass", classes=("a", "b", "c", "d"))
VALUE = TargetSpec(name="y", task="regression")
WITHIN = {"roc_auc": 1e-4, "average_precision": 1e-4, "ks_statistic": 1e-3, "lift_at_10_percent": 1e-3}


def stream(target: TargetSpec, truth: np.ndarray, prediction: np.ndarray, *, block: int = 1000, **more) -> Accumulator:
    """Two accumulators that saw every second block each, merged."""
    told = {"mean": 10.0, "deviation": 3.0} | more
    parts = [build_accumulator(target, **told) for _ in range(2)]
    for place, start in enumerate(range(0, len(truth), block)):
        parts[place % 2].add(truth[start : start + block], prediction[start : start + block])
    parts[0].merge(parts[1])
    return parts[0]


def scores(kind: str, num_rows: int = 60_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=num_rows)
    logits = {
        "plain": 1.5 * signal,
        "rare": 2 * signal - 9,  # a positive in some thousand rows
        "narrow": 0.02 * signal - 1,  # a network that has learned next to nothing
        "ties": np.round(signal, 1),
        "two": np.where(signal > 0, 1.0, -1.0),
        "one": np.full(num_rows, 0.3),
        "extreme": 60 * signal,  # float64 gives 1 for many of them
        "upside_down": -signal,
    }[kind]
    true = {"extreme": 3 * signal, "upside_down": 2 * signal}.get(kind, logits)
    y = (rng.random(num_rows) < expit(true)).astype(np.int64)
    return y, expit(logits)


def compare(found: dict[str, float], exact: dict[str, float], within: dict[str, float]) -> None:
    assert list(found) == list(exact)
    for name, value in exact.items():
        bound = within.get(name.removesuffix("_at_half"), 1e-12 * max(abs(value), 1))
        assert found[name] == pytest.approx(value, abs=bound, rel=0, nan_ok=True), name


@pytest.mark.parametrize("kind", ["plain", "rare", "narrow", "ties", "two", "one", "extreme", "upside_down"])
def test_a_binary_task_has_the_metrics_of_all_scores(kind: str) -> None:
    y, p = scores(kind)
    costs = np.array([[0.0, 1.0], [5.0, 0.0]])
    seen = stream(BINARY, y, p, threshold=0.3, costs=costs)
    exact = compute_metrics(y, p, task="binary", threshold=0.3, costs=costs)
    compare(seen.metrics(), exact, WITHIN)
    assert abs(seen.metrics()["roc_auc"] - exact["roc_auc"]) <= seen.auc_bound() + 1e-12  # which holds for any rows
    assert seen.num_rows == len(y)


@pytest.mark.parametrize("kind", ["ties", "two", "one"])
def test_tied_scores_are_exact(kind: str) -> None:
    y, p = scores(kind)
    exact = compute_metrics(y, p, task="binary")
    compare(stream(BINARY, y, p).metrics(), exact, {})


@pytest.mark.parametrize("fill", [0, 1])
def test_rows_of_one_class_have_no_ranking(fill: int) -> None:
    y, p = np.full(50, fill), np.random.default_rng(0).random(50)
    compare(stream(BINARY, y, p).metrics(), compute_metrics(y, p, task="binary"), WITHIN | {"lift_at_10_percent": 1e-9})


@pytest.mark.parametrize("costs", [None, 1 - np.eye(4) + np.triu(np.ones((4, 4)), 1)])
@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0])
def test_several_classes_have_the_metrics_of_all_scores(spread: float, costs: np.ndarray | None) -> None:
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(40_000, 4)) - np.array([0, 0, 2, 50])  # the last class never comes
    y = (signal + rng.gumbel(size=signal.shape)).argmax(axis=1)
    p = softmax(spread * signal, axis=1)
    seen = stream(CLASSES, y, p, costs=costs)
    exact = compute_metrics(y, p, task="multiclass", costs=costs)
    compare(seen.metrics(), exact, WITHIN)
    assert abs(seen.metrics()["roc_auc"] - exact["roc_auc"]) <= seen.auc_bound() + 1e-12


def values(num_rows: int = 30_000, *, shift: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    truth = shift + 3 * rng.normal(size=num_rows)
    return truth, truth + rng.standard_t(2, size=num_rows)


@pytest.mark.parametrize("shift", [10.0, 100.0, 1e9])
def test_a_regression_has_the_metrics_of_all_values(shift: float) -> None:
    truth, said = values(shift=shift)
    found = stream(VALUE, truth, said, mean=shift + 0.1).metrics()
    exact = compute_metrics(truth, said, task="regression")
    for name, value in exact.items():
        bound = 1e-4 if name == "median_absolute_error" else 1e-9
        assert found[name] == pytest.approx(value, rel=bound, nan_ok=True), name


def test_a_median_of_zero_and_values_that_do_not_vary() -> None:
    truth = np.full(100, 2.0)
    found = stream(VALUE, truth, truth.copy()).metrics()
    exact = compute_metrics(truth, truth, task="regression")
    assert found == pytest.approx(exact, nan_ok=True)
    assert found["median_absolute_error"] == 0


def test_several_targets_have_their_own_and_the_mean() -> None:
    target = TargetSpec(name="a, b", task="regression", columns=("a", "b"))
    first, second = values(), values(shift=-500.0)
    truth, said = np.stack([first[0], second[0]], axis=1), np.stack([first[1], second[1]], axis=1)
    seen = stream(target, truth, said, mean=(10.0, -500.0), deviation=(3.0, 3.0))
    assert seen.metrics() == pytest.approx(compute_metrics(truth, said, task="regression"), rel=1e-4, nan_ok=True)
    assert isinstance(seen, ValueAccumulator)
    for name, exact in metrics_by_target(truth, said, target.columns).items():
        assert seen.by_target()[name] == pytest.approx(exact, rel=1e-4, nan_ok=True)


def test_quantiles_have_their_own_metrics_beside_those_of_the_middle_one() -> None:
    target = TargetSpec(name="y", task="regression", quantiles=(0.1, 0.5, 0.9))
    truth, said = values()
    every = np.stack([said - 2, said, said + 2.5], axis=1)
    exact = compute_metrics(truth, said, task="regression") | quantile_metrics(truth, every, target.quantiles)
    found = stream(target, truth, every).metrics()
    assert list(found) == list(exact)
    assert found == pytest.approx(exact, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize("target", [BINARY, VALUE])
def test_a_prediction_that_is_no_number_leaves_no_metric(target: TargetSpec) -> None:
    y, p = scores("plain", 500)
    p[77] = np.nan
    assert np.isnan(list(stream(target, y, p, block=100).metrics().values())).all()


def test_no_bit_depends_on_who_saw_which_block() -> None:
    y, p = scores("plain")
    one = BinaryAccumulator(threshold=0.3)
    for start in range(0, len(y), 1000):
        one.add(y[start : start + 1000], p[start : start + 1000])
    assert one.metrics() == stream(BINARY, y, p, threshold=0.3).metrics()


def test_nothing_but_a_line_for_each_block_grows_with_the_rows() -> None:
    y, p = scores("plain", 5_000)
    seen = BinaryAccumulator()
    size = seen.counts.nbytes
    for _ in range(20):
        seen.add(y, p)
    assert seen.counts.nbytes == size <= 1 << 25
    assert seen.lines.shape == (20, 19)


def test_half_a_billion_rows_overflow_nothing() -> None:
    y, p = scores("plain", 10_000)
    seen = BinaryAccumulator()
    seen.add(y, p)
    before = seen.metrics()
    seen.load(seen.lines * 50_000, seen.counts * 50_000)
    assert seen.metrics() == pytest.approx(before, rel=1e-6)
