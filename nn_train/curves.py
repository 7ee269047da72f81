"""Isotonic calibration: a rising curve from the network's probabilities to those that the validation rows show.

The steps of an isotonic regression are joined by straight lines between their middles, so that the order of the rows
stays as it was, and a curve is a few points that `numpy.interp` reads. Of several classes each has a curve against
the rest, and the probabilities of a row are divided by their sum.

Shapes: B rows, C classes. Sources: Zadrozny and Elkan 2002; for the middles, Oron and Flournoy 2017.
"""

from typing import TypeAlias

import numpy as np

from nn_train.schema import Task

Curve: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # rising from 0 to 1; the probabilities there
STRAIGHT: Curve = ((0.0, 1.0), (0.0, 1.0))
STEEPEST = 20.0  # as the lowest temperature: what rises faster rests on a few rows, and would magnify rounding
NUM_HALVINGS = 50


def fit_curves(p: np.ndarray, y: np.ndarray, *, task: Task) -> tuple[Curve, ...]:
    """One curve of a binary task's positive class, p (B,), or one of each class, p (B, C)."""
    if task == "binary":
        return (fit_curve(p, y == 1),)
    return tuple(fit_curve(p[:, code], y == code) for code in range(p.shape[1]))


def fit_curve(p: np.ndarray, hit: np.ndarray) -> Curve:
    """The curve from probabilities (B,) to the share of hits (B,).

    It never reaches 0 or 1, which as many rows as these cannot tell. Straight where all rows hit, or none, and where a
    probability is no number.
    """
    from scipy.optimize import isotonic_regression  # once training is done

    if not np.isfinite(p).all() or hit.all() or not hit.any():
        return STRAIGHT
    places, group = np.unique(p.astype(np.float64), return_inverse=True)
    rows = np.bincount(group).astype(np.float64)
    shares = np.bincount(group, weights=hit) / rows
    starts = isotonic_regression(shares, weights=rows).blocks[:-1]
    blocks = [
        [float(total) for total in totals]
        for totals in zip(*(np.add.reduceat(v, starts) for v in (rows, rows * places, rows * shares)), strict=True)
    ]
    middles = _pool(blocks)
    least = 1 / (len(p) + 2)
    x = np.array([place for place, _ in middles])
    known = np.clip([share for _, share in middles], least, 1 - least)
    inner = (x > 0) & (x < 1)
    x, known = x[inner], known[inner]
    if not len(x):
        return STRAIGHT
    # beyond the outer middles a line goes on to certainty, or as far as the steepest one comes
    low = max(least / 2, known[0] - STEEPEST * x[0])
    high = min(1 - least / 2, known[-1] + STEEPEST * (1 - x[-1]))
    return (0.0, *map(float, x), 1.0), (float(low), *map(float, known), float(high))


def _pool(blocks: list[list[float]]) -> list[tuple[float, float]]:
    """Middle and share of each block [rows, sum of probabilities, hits]; neighbours on too steep a line become one."""
    pooled: list[list[float]] = []
    for block in blocks:
        current = list(block)
        while pooled:
            last = pooled[-1]
            run = current[1] / current[0] - last[1] / last[0]
            rise = current[2] / current[0] - last[2] / last[0]
            if rise <= STEEPEST * run:
                break
            current = [a + b for a, b in zip(pooled.pop(), current, strict=True)]
        pooled.append(current)
    return [(total / rows, hits / rows) for rows, total, hits in pooled]


def check_curves(curves: tuple[Curve, ...], num_outputs: int) -> None:
    """Raise ValueError where they are none of `fit_curves` for so many outputs."""
    if len(curves) not in (0, num_outputs):
        raise ValueError(f"{len(curves)} curves for {num_outputs} outputs")
    for x, share in (np.array(curve, dtype=np.float64) for curve in curves):
        is_rising = x[0] == 0 and x[-1] == 1 and (np.diff(x) > 0).all() and (np.diff(share) >= 0).all()
        if not (is_rising and share[0] >= 0 and share[-1] <= 1):
            raise ValueError("a calibration curve does not rise from 0 to 1")


def bend(p: np.ndarray, curves: tuple[Curve, ...]) -> np.ndarray:
    """Calibrated probabilities, as `p`: of the positive class (B,), or of every class (B, C)."""
    if p.ndim == 1:
        return np.interp(p, *curves[0])
    bent = np.stack([np.interp(p[:, code], *curve) for code, curve in enumerate(curves)], axis=1)
    return bent / bent.sum(axis=1, keepdims=True)


def unbend(p: np.ndarray, curves: tuple[Curve, ...]) -> np.ndarray:
    """The probabilities that `bend` made `p` of: what a picture of before and after needs."""
    backwards = [(share, x) for x, share in curves]
    if p.ndim == 1:
        return np.interp(p, *backwards[0])

    def undo(total: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(p[:, code] * total, *curve) for code, curve in enumerate(backwards)], axis=1)

    # what they were divided by is not kept; but only one number makes the probabilities before add up to one
    low, high = np.zeros(len(p)), np.full(len(p), float(p.shape[1]))
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        is_less = undo(middle).sum(axis=1) < 1
        low, high = np.where(is_less, middle, low), np.where(is_less, high, middle)
    return undo(high)
