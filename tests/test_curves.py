"""Isotonic calibration: what is out of shape comes right, nothing changes its place, and the way back is known."""

import numpy as np
import pytest
from scipy.special import expit, softmax

from nn_train.curves import STEEPEST, STRAIGHT, bend, check_curves, fit_curve, fit_curves, unbend


def simulate(task: str, num_rows: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that no temperature could mend, and classes."""
    rng = np.random.default_rng(seed)
    if task == "binary":
        z = 2 * rng.normal(size=num_rows)
        return expit(z), (rng.random(num_rows) < expit(0.4 * z - 1.5)).astype(int)
    z = 2 * rng.normal(size=(num_rows, 4))
    truth = softmax(0.5 * z + np.array([1, 0, 0, -1]), axis=1)
    return softmax(z, axis=1), (truth.cumsum(axis=1) > rng.random((num_rows, 1))).argmax(axis=1)


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    table = p if p.ndim == 2 else np.stack([1 - p, p], axis=1)
    return float(-np.log(table[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_other_rows_of_the_same_kind_are_predicted_better(task: str) -> None:
    curves = fit_curves(*simulate(task, 3000), task=task)
    check_curves(curves, 1 if task == "binary" else 4)
    p, y = simulate(task, 3000, seed=1)
    bent = bend(p, curves)
    assert log_loss(bent, y) < log_loss(p, y) - 0.05
    shares = bent.sum(axis=1) if task == "multiclass" else np.ones(1)
    np.testing.assert_allclose(shares, 1)
    means = bent.mean(axis=0)
    want = np.bincount(y)[1] / len(y) if task == "binary" else np.bincount(y) / len(y)
    np.testing.assert_allclose(means, want, atol=0.03 if task == "binary" else 0.06)  # divided by their sum


@pytest.mark.parametrize("num_rows", [20, 300, 5000])
def test_no_row_changes_its_place_and_none_is_certain(num_rows: int) -> None:
    p, y = simulate("binary", num_rows)
    bent = bend(p, fit_curves(p, y, task="binary"))
    order = np.argsort(p)
    assert (np.diff(bent[order]) > 0).all()
    ends = bend(np.array([0.0, 1.0]), fit_curves(p, y, task="binary"))
    assert 0 < ends[0] < ends[1] < 1


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_what_is_bent_can_be_unbent(task: str) -> None:
    p, y = simulate(task, 500)
    curves = fit_curves(p, y, task=task)
    np.testing.assert_allclose(unbend(bend(p, curves), curves), p, atol=1e-9)


def test_no_line_is_steeper_than_the_lowest_temperature() -> None:
    rng = np.random.default_rng(0)
    p = 0.5 + 1e-4 * rng.random(400)
    x, share = fit_curve(p, p > 0.50005)
    assert (np.diff(share) <= STEEPEST * np.diff(x) + 1e-12).all()
    p, y = simulate("binary", 60)
    x, share = fit_curve(p, y == 1)
    assert (np.diff(share) <= STEEPEST * np.diff(x) + 1e-12).all()


def test_a_straight_line_where_nothing_can_be_fitted() -> None:
    p = np.array([0.1, 0.4, 0.8])
    assert fit_curve(p, np.zeros(3, bool)) == fit_curve(p, np.ones(3, bool)) == STRAIGHT
    assert fit_curve(np.array([0.1, np.nan, 0.8]), np.array([True, False, True])) == STRAIGHT
    assert fit_curve(np.array([0.0, 1.0]), np.array([False, True])) == STRAIGHT


BAD = {
    "one too many": (STRAIGHT, STRAIGHT),
    "it falls": (((0.0, 0.5, 1.0), (0.0, 0.9, 0.5)),),
    "it stops": (((0.0, 0.5), (0.0, 1.0)),),
    "more than one": (((0.0, 1.0), (0.0, 1.5)),),
    "no number": (((0.0, 1.0), (0.0, float("nan"))),),
    "two lengths": (((0.0, 0.5, 1.0), (0.0, 1.0)),),
}


@pytest.mark.parametrize("how", BAD)
def test_other_curves_are_refused(how: str) -> None:
    with pytest.raises(ValueError):
        check_curves(BAD[how], 1)
