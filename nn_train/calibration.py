"""From logits to probabilities and decisions; temperature and threshold are fitted on validation rows.

Shapes: B rows, C classes; binary logits are (B,), multiclass logits (B, C).
"""

import numpy as np

from nn_train.costs import least_cost_threshold
from nn_train.schema import Task

LOWEST, HIGHEST = 0.05, 20.0
LEAST = 1e-12  # a probability that is told apart from 0


def probabilities(logits: np.ndarray, temperature: float, *, task: Task) -> np.ndarray:
    """Probability of the positive class (B,), or of every class (B, C); float64."""
    from scipy.special import expit, softmax  # for the process that judges: not before the first step

    scaled = logits.astype(np.float64) / temperature
    return expit(scaled) if task == "binary" else softmax(scaled, axis=1)


def before_temperature(p: np.ndarray, temperature: float) -> np.ndarray:
    """The probabilities at temperature 1, from those of `probabilities`: (B,), or (B, C)."""
    from scipy.special import expit, logit, softmax  # once training is done

    if p.ndim == 1:
        return expit(logit(np.clip(p, LEAST, 1 - LEAST)) * temperature)
    return softmax(np.log(np.clip(p, LEAST, None)) * temperature, axis=1)


def fit_temperature(logits: np.ndarray, y: np.ndarray, *, task: Task) -> float:
    """The temperature with the least log-loss on these rows. Source: Guo et al. 2017.

    One parameter that keeps the order of the scores, so no ranking metric moves. Its logarithm has
    a standard normal prior: too weak to be seen from a hundred rows on, it keeps a few rows without
    an error from driving the temperature to zero. 1 where the logits are not finite.
    """
    from scipy.optimize import minimize_scalar  # once training is done
    from scipy.special import log_softmax

    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = values / np.exp(log_temperature)
        if task == "binary":
            of_row = np.logaddexp(0.0, np.where(y == 1, -scaled, scaled))
        else:
            of_row = -log_softmax(scaled, axis=1)[np.arange(len(y)), y]
        return float(np.mean(of_row)) + log_temperature**2 / (2 * len(y))

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def choose_threshold(y: np.ndarray, p: np.ndarray, metric: str, *, costs: np.ndarray | None = None) -> float:
    """The cut between decisions that is best by `metric` on these rows; a row at the cut is positive.

    Where mistakes have `costs` (2, 2), it follows from these alone.

    Candidates lie half-way between neighbouring scores, 0 and 1 included. Among equals the one
    nearest to a half is taken; a half where there is one class, or one score, or a score that is no number, and
    where `metric` is `no`.
    """
    if costs is not None:
        return least_cost_threshold(costs)
    if metric == "no" or not np.isfinite(p).all() or np.ptp(p) == 0 or np.ptp(y) == 0:
        return 0.5
    scores = np.unique(np.append(p, (0.0, 1.0)))
    # neighbours may be so close that the half-way point rounds to the lower one
    cuts = np.maximum((scores[1:] + scores[:-1]) / 2, np.nextafter(scores[:-1], 1))
    cuts = np.append(cuts, (0.0, 0.5))
    values = _decision_values(y, p, cuts, metric)
    best = cuts[values >= values.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _decision_values(y: np.ndarray, p: np.ndarray, cuts: np.ndarray, metric: str) -> np.ndarray:
    """The metric of the decisions at every cut, from sorted scores: a call per cut would take minutes."""
    num_positive, num_negative = np.sum(y == 1), np.sum(y != 1)
    missed = np.searchsorted(np.sort(p[y == 1]), cuts)
    spared = np.searchsorted(np.sort(p[y != 1]), cuts)
    hits, false_alarms = num_positive - missed, num_negative - spared
    if metric == "accuracy":
        return (hits + spared) / len(y)
    if metric == "balanced_accuracy":
        return (hits / num_positive + spared / num_negative) / 2
    if metric == "f1":
        return 2 * hits / (2 * hits + false_alarms + missed)
    assert metric == "matthews_corrcoef", metric
    # the product over the classes' shares, which are floats: counts would overflow
    chosen = (hits + false_alarms) / len(y)
    spread = np.sqrt(chosen * (1 - chosen) * (num_positive / len(y)) * (num_negative / len(y)))
    covariance = hits / len(y) - chosen * (num_positive / len(y))
    return np.divide(covariance, spread, out=np.zeros(len(cuts)), where=spread > 0)
