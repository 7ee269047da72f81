"""How logits become probabilities and decisions."""

import dataclasses
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nn_train.calibration import probabilities
from nn_train.costs import cheapest
from nn_train.curves import Curve, bend, check_curves
from nn_train.preprocessor import Preprocessor

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """How probabilities are calibrated, and what is decided by them.

    By a temperature, then by `curves` if there are any: one for a binary task, or one for each class. A binary task
    is decided by the threshold, which follows from `costs` where these are given; several classes by the highest
    probability, or by the least expected cost. `costs` are by true class, then by predicted class.
    """

    temperature: float
    threshold: float
    curves: tuple[Curve, ...] = ()
    costs: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any], *, num_classes: int, num_outputs: int) -> Self:
        """Read what `dataclasses.asdict` gave.

        Raises:
            ValueError, KeyError, TypeError: it is damaged, or of another number of classes.
        """
        temperature, threshold = (float(values[name]) for name in ("temperature", "threshold"))
        if not (0 < temperature < float("inf") and 0 <= threshold <= 1):
            raise ValueError("no temperature and threshold")
        curves = tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in values.get("curves", ()))
        check_curves(curves, num_outputs)
        costs = tuple(tuple(map(float, row)) for row in values.get("costs", ()))
        if costs and (np.shape(costs) != (num_classes, num_classes) or not np.isfinite(costs).all()):
            raise ValueError(f"no costs of {num_classes} classes")
        return cls(temperature=temperature, threshold=threshold, curves=curves, costs=costs)

    @property
    def cost_table(self) -> np.ndarray | None:
        """The costs (C, C), if there are any."""
        return np.array(self.costs) if self.costs else None

    def predict(self, logits: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        """Probability of the positive class (B,), of every class (B, C), or values in the target's unit (B,).

        Of quantiles the middle one is the value; several targets have a value each (B, T).
        """
        target, task = preprocessor.target, preprocessor.target.task
        if task == "regression":
            values = self.values(logits, preprocessor)
            return values if target.columns else values[:, target.middle]
        p = probabilities(logits[:, 0] if task == "binary" else logits, self.temperature, task=task)
        return bend(p, self.curves) if self.curves else p

    def values(self, logits: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        """Values, or quantiles, of a regression in the target's unit (B, D).

        Quantiles are sorted, so that none of a row lies above a higher one. Source: Chernozhukov et al. 2010.
        """
        return preprocessor.decode_target(np.sort(logits, axis=1) if preprocessor.target.quantiles else logits)

    def scores(self, logits: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        """Probability of every class (B, C) for both kinds of classes, or values in the target's unit (B,).

        Of quantiles all (B, Q), of several targets each (B, T).
        """
        if preprocessor.target.quantiles:
            return self.values(logits, preprocessor)
        values = self.predict(logits, preprocessor)
        return np.stack([1 - values, values], axis=1) if preprocessor.target.task == "binary" else values

    def choose(self, scores: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        """Place of the predicted class (B,) int64 for `scores` (B, C): by the threshold where there are two."""
        if preprocessor.target.task == "binary":
            return (scores[:, 1] >= self.threshold).astype(np.int64)
        return scores.argmax(axis=1) if self.cost_table is None else cheapest(scores, self.cost_table)

    def frame(self, logits: np.ndarray, preprocessor: Preprocessor) -> "pd.DataFrame":
        """`prediction`, and `p_CLASS` for each class or `q_LEVEL` for each quantile; prediction_NAME of several."""
        import pandas as pd  # for what is judged or predicted: not before the first step

        scores = self.scores(logits, preprocessor)
        if preprocessor.target.task == "regression":
            return pd.DataFrame(value_columns(scores, preprocessor))
        classes = preprocessor.target.classes
        frame: dict[str, Any] = {"prediction": np.array(classes)[self.choose(scores, preprocessor)]}
        frame |= {f"p_{name}": scores[:, index] for index, name in enumerate(classes)}
        return pd.DataFrame(frame)


def value_columns(scores: np.ndarray, preprocessor: Preprocessor) -> dict[str, np.ndarray]:
    """The columns of a regression's predictions, of what `Decision.scores` gives."""
    target = preprocessor.target
    if target.columns:
        return {name: np.ascontiguousarray(part) for name, part in zip(target.prediction_names, scores.T, strict=True)}
    if not target.quantiles:
        return {"prediction": scores}
    parts = {name: np.ascontiguousarray(scores[:, place]) for place, name in enumerate(target.quantile_names)}
    return {"prediction": np.ascontiguousarray(scores[:, target.middle])} | parts
