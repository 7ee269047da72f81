"""From logits to probabilities and decisions; both knobs are fitted on validation rows.

Shapes: B rows, C classes; binary logits are (B,), multiclass logits (B, C).
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from nn_train.metrics import DECISION_METRICS
from nn_train.schema import Task

LOWEST, HIGHEST = 0.05, 20.0  # a validation split without errors would drive the temperature to zero
MOST_THRESHOLDS = 512


def probabilities(logits: np.ndarray, temperature: float, *, task: Task) -> np.ndarray:
    """Probability of the positive class (B,), or of every class (B, C); float64."""
    scaled = logits.astype(np.float64) / temperature
    return expit(scaled) if task == "binary" else softmax(scaled, axis=1)


def fit_temperature(logits: np.ndarray, y: np.ndarray, *, task: Task) -> float:
    """The temperature with the least log-loss on these rows. Source: Guo et al. 2017.

    One parameter that keeps the order of the scores, so no ranking metric moves. 1 where the
    logits are not finite.
    """
    values = logits.astype(np.float64)
    if not np.isfinite(values).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = values / np.exp(log_temperature)
        if task == "binary":
            return float(np.mean(np.logaddexp(0.0, np.where(y == 1, -scaled, scaled))))
        return float(-np.mean(log_softmax(scaled, axis=1)[np.arange(len(y)), y]))

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def choose_threshold(y: np.ndarray, p: np.ndarray, metric: str) -> float:
    """The cut between decisions that is best by `metric` on these rows; a row at the cut is positive.

    Candidates lie half-way between neighbouring scores. Among equals the one nearest to a half is taken.
    """
    scores = np.unique(p[np.isfinite(p)])
    if len(scores) < 2 or y.min() == y.max():
        return 0.5
    if len(scores) > MOST_THRESHOLDS:
        scores = np.unique(np.quantile(scores, np.linspace(0, 1, MOST_THRESHOLDS)))
    cuts = np.append((scores[1:] + scores[:-1]) / 2, 0.5)
    values = np.array([DECISION_METRICS[metric](y, (p >= cut).astype(int)) for cut in cuts])
    best = cuts[values >= values.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])
