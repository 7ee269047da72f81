"""Calibration: a temperature that is known comes back, and the threshold is the best there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from sklearn import metrics as sk

from nn_train.calibration import HIGHEST, LOWEST, choose_threshold, fit_temperature, probabilities

NUM_ROWS = 20_000
SCORES = {
    "f1": sk.f1_score,
    "balanced_accuracy": sk.balanced_accuracy_score,
    "accuracy": sk.accuracy_score,
    "matthews_corrcoef": sk.matthews_corrcoef,
}


def simulate(task: str, temperature: float, *, num_rows: int = NUM_ROWS, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Labels that are drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    if task == "binary":
        truth = 2 * rng.normal(size=num_rows) - 0.5
        return (temperature * truth).astype(np.float32), (rng.random(num_rows) < expit(truth)).astype(int)
    truth = 2 * rng.normal(size=(num_rows, 5))
    y = (softmax(truth, axis=1).cumsum(axis=1) < rng.random((num_rows, 1))).sum(axis=1)
    return (temperature * truth).astype(np.float32), np.minimum(y, 4)


def log_loss(logits: np.ndarray, y: np.ndarray, temperature: float, task: str) -> float:
    scaled = logits.astype(np.float64) / temperature
    table = np.stack([np.zeros(len(y)), scaled], axis=1) if task == "binary" else scaled
    return float(-np.mean(log_softmax(table, axis=1)[np.arange(len(y)), y]))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("temperature", [0.3, 0.8, 1.0, 1.7, 6.0])
def test_a_known_temperature_is_recovered(task: str, temperature: float) -> None:
    logits, y = simulate(task, temperature)
    found = fit_temperature(logits, y, task=task)
    assert found == pytest.approx(temperature, rel=0.05)
    # and it is where the log-loss is least
    losses = {factor: log_loss(logits, y, found * factor, task) for factor in (0.97, 1.0, 1.03)}
    assert losses[1.0] == min(losses.values())


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("num_rows", [3, 20, 1000])
@pytest.mark.parametrize("temperature", [0.2, 0.9, 1.1, 8.0])
def test_log_loss_on_the_fitted_rows_never_rises(task: str, num_rows: int, temperature: float) -> None:
    for seed in range(5):
        logits, y = simulate(task, temperature, num_rows=num_rows, seed=seed)
        found = fit_temperature(logits, y, task=task)
        assert LOWEST <= found <= HIGHEST
        assert log_loss(logits, y, found, task) <= log_loss(logits, y, 1.0, task)
        if num_rows == 1000 and temperature in (0.2, 8.0):
            assert log_loss(logits, y, found, task) < 0.9 * log_loss(logits, y, 1.0, task)


def test_probabilities_equal_sigmoid_and_softmax_and_keep_the_order() -> None:
    binary, _ = simulate("binary", 1.0, num_rows=500)
    many, _ = simulate("multiclass", 1.0, num_rows=500)
    for temperature in (0.4, 1.0, 7.0):
        p = probabilities(binary, temperature, task="binary")
        assert p.dtype == np.float64 and p.shape == (500,)
        np.testing.assert_allclose(p, 1 / (1 + np.exp(-binary.astype(np.float64) / temperature)))
        np.testing.assert_array_equal(np.argsort(p, kind="stable"), np.argsort(binary, kind="stable"))
        table = probabilities(many, temperature, task="multiclass")
        assert table.dtype == np.float64
        np.testing.assert_allclose(table.sum(axis=1), 1)
        powers = np.exp(many.astype(np.float64) / temperature)
        np.testing.assert_allclose(table, powers / powers.sum(axis=1, keepdims=True))
        np.testing.assert_array_equal(np.argsort(table, axis=1), np.argsort(many, axis=1))


def test_probabilities_of_extreme_logits() -> None:
    assert probabilities(np.array([-3e38, 0, 3e38], dtype=np.float32), 0.05, task="binary").tolist() == [0, 0.5, 1]
    table = probabilities(np.array([[3e38, -3e38, 0]], dtype=np.float32), 0.05, task="multiclass")
    assert table.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_rows_without_an_error_do_not_drive_the_temperature_to_zero(task: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    margins = rng.random(20) + 0.5
    y = np.arange(20) % 2 if task == "binary" else np.arange(20) % 3
    logits = scale * (margins * (2 * y - 1) if task == "binary" else margins[:, None] * np.eye(3)[y])
    found = fit_temperature(logits.astype(np.float32), y, task=task)
    assert 0.1 < found <= 1.0
    assert log_loss(logits, y, found, task) <= log_loss(logits, y, 1.0, task)


def test_few_rows_without_an_error_do_not_make_new_rows_overconfident() -> None:
    """Without the prior these fits would raise the log-loss of new rows from 0.2 to 0.5."""
    before, after = [], []
    for seed in range(100):
        logits, y = simulate("binary", 1.0, num_rows=515, seed=seed)
        logits, y = 3 * logits, (np.random.default_rng(seed).random(515) < expit(3 * logits)).astype(int)
        found = fit_temperature(logits[:15], y[:15], task="binary")
        before.append(log_loss(logits[15:], y[15:], 1.0, "binary"))
        after.append(log_loss(logits[15:], y[15:], found, "binary"))
    assert np.mean(after) < 1.2 * np.mean(before)


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_logits_that_say_nothing_leave_the_temperature_alone(task: str) -> None:
    y = np.array([0, 1, 1])
    shape = (3,) if task == "binary" else (3, 4)
    assert fit_temperature(np.zeros(shape, dtype=np.float32), y, task=task) == pytest.approx(1.0, abs=1e-3)
    broken = np.full(shape, np.nan, dtype=np.float32)
    assert fit_temperature(broken, y, task=task) == 1.0
    assert fit_temperature(np.full(shape, np.inf), y, task=task) == 1.0


def test_all_rows_wrong_stay_within_the_bounds() -> None:
    assert fit_temperature(np.array([5.0, -5.0] * 500), np.array([0, 1] * 500), task="binary") <= HIGHEST


# --- threshold --------------------------------------------------------------------------------------------------------


def best_by_brute_force(y: np.ndarray, p: np.ndarray, metric: str) -> float:
    """Over every decision that a cut from 0 to 1 can make; by scikit-learn."""
    cuts = np.unique(np.concatenate([p, [0.0, np.nextafter(p.max(), 2)]]))
    return max(SCORES[metric](y, (p >= cut).astype(int)) for cut in cuts[cuts <= 1])


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize("kind", ["good", "useless", "upside down", "ties", "rare", "many"])
def test_the_threshold_is_the_best_there_is(metric: str, kind: str) -> None:
    rng = np.random.default_rng(len(kind))
    num_rows = 530 if kind == "many" else 60
    y = (rng.random(num_rows) < (0.1 if kind == "rare" else 0.4)).astype(int)
    y[:2] = (0, 1)
    signal = {"useless": 0.0, "upside down": -2.0}.get(kind, 1.0)
    p = expit(signal * y + rng.normal(size=num_rows))
    p = np.round(p, 1) if kind == "ties" else p
    cut = choose_threshold(y, p, metric)
    assert 0 <= cut <= 1
    assert SCORES[metric](y, (p >= cut).astype(int)) == pytest.approx(best_by_brute_force(y, p, metric), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 5e-324, 0.1, 0.3, np.nextafter(0.3, 1), 0.5, 0.9, 1.0])),
        min_size=2,
        max_size=12,
    ),
    metric=st.sampled_from(list(SCORES)),
)
def test_the_threshold_is_the_best_there_is_on_any_rows(rows: list[tuple[bool, float]], metric: str) -> None:
    y, p = np.array([row[0] for row in rows]).astype(int), np.array([row[1] for row in rows])
    cut = choose_threshold(y, p, metric)
    if y.min() == y.max() or p.min() == p.max():
        assert cut == 0.5
    else:
        got = SCORES[metric](y, (p >= cut).astype(int))
        assert got == pytest.approx(best_by_brute_force(y, p, metric), abs=1e-12)


def test_among_equals_the_cut_nearest_to_a_half() -> None:
    y = np.array([0, 0, 1, 1])
    assert choose_threshold(y, np.array([0.1, 0.2, 0.8, 0.9]), "f1") == 0.5
    assert choose_threshold(y, np.array([0.1, 0.2, 0.3, 0.4]), "accuracy") == pytest.approx(0.25)
    assert choose_threshold(y, np.array([0.1, 0.2, 0.3, 0.4]), "no") == 0.5
    assert choose_threshold(y, np.array([0.6, 0.7, 0.8, 0.9]), "balanced_accuracy") == pytest.approx(0.75)
    # 0.2 and 0.8 are as good as each other and as near: the lower one
    spread = np.array([0.1, 0.3, 0.7, 0.9])
    assert choose_threshold(np.array([0, 1, 0, 1]), spread, "accuracy") == pytest.approx(0.2)


def test_the_threshold_does_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, size=300), np.round(rng.random(300), 2)
    for metric in SCORES:
        want = choose_threshold(y, p, metric)
        for _ in range(5):
            order = rng.permutation(300)
            assert choose_threshold(y[order], p[order], metric) == want


@pytest.mark.parametrize("metric", SCORES)
def test_a_half_where_nothing_can_be_chosen(metric: str) -> None:
    p = np.array([0.1, 0.4, 0.8])
    assert choose_threshold(np.zeros(3, dtype=int), p, metric) == 0.5
    assert choose_threshold(np.ones(3, dtype=int), p, metric) == 0.5
    assert choose_threshold(np.array([0, 1, 1]), np.full(3, 0.3), metric) == 0.5
    assert choose_threshold(np.array([0, 1, 1]), np.array([0.1, np.nan, 0.8]), metric) == 0.5
    assert choose_threshold(np.array([1]), np.array([0.8]), metric) == 0.5


def test_a_million_rows_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, size=1_000_000)
    p = expit(2 * y - 1 + rng.normal(size=1_000_000))
    cut = choose_threshold(y, p, "matthews_corrcoef")
    assert cut == pytest.approx(0.5, abs=0.05)
    got = sk.matthews_corrcoef(y, p >= cut)
    assert all(got >= sk.matthews_corrcoef(y, p >= other) - 1e-12 for other in (0.4, 0.5, 0.6))
