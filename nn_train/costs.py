"""What a wrong decision costs, and the decision of the least expected cost.

Shapes: B rows, C classes; costs are (C, C) float64, by true class and then by predicted class.
"""

import difflib
from collections.abc import Mapping

import numpy as np

from nn_train.errors import ConfigError, short
from nn_train.schema import TargetSpec

MISTAKES = ("false_positive", "false_negative")
Setting = Mapping[str, float | Mapping[str, float]]


def read_costs(setting: Setting | None, target: TargetSpec) -> np.ndarray | None:
    """The costs of evaluation.costs for these classes; None where none are set.

    Raises:
        ConfigError: they do not fit the task or its classes.
    """
    if setting is None:
        return None
    if target.task == "regression":
        raise ConfigError("evaluation.costs are for classes, and the target is a number", fix="evaluation.costs=no")
    costs = 1 - np.eye(len(target.classes))
    for name, value in setting.items():
        if isinstance(value, Mapping):
            for other, cost in value.items():
                costs[_place(name, target), _place(other, target)] = cost
        elif target.task == "binary":
            costs[(0, 1) if name == MISTAKES[0] else (1, 0)] = value
        else:
            raise ConfigError(
                f"evaluation.costs.{name} is for two classes, and there are {len(target.classes)}",
                fix="evaluation.costs={TRUE_CLASS: {PREDICTED_CLASS: COST}}",
            )
    for code, name in enumerate(target.classes):
        if (np.delete(costs[code], code) < costs[code, code]).any():
            raise ConfigError(
                f"evaluation.costs: a right '{short(name)}' costs more than a wrong decision",
                fix="give each class its least cost where it is predicted rightly",
            )
    if not (costs > np.diag(costs)[:, None]).any():
        raise ConfigError("evaluation.costs: no wrong decision costs more than a right one", fix="evaluation.costs=no")
    return costs


def _place(name: str, target: TargetSpec) -> int:
    same = [place for place, other in enumerate(target.classes) if name in (other, other.lower())]
    if len(same) == 1:
        return same[0]
    shown = ", ".join(target.classes[:20]) + (", ..." if len(target.classes) > 20 else "")
    near = difflib.get_close_matches(name, target.classes, n=1, cutoff=0.5) or list(target.classes[-1:])
    raise ConfigError(
        f"evaluation.costs names the class '{short(name)}'; the classes are {short(shown, most=400)}",
        fix=f"evaluation.costs={{{near[0]}: {{PREDICTED_CLASS: COST}}}}",
    )


def least_cost_threshold(costs: np.ndarray) -> float:
    """The probability of the positive class from which to call it so costs no more, as expected. Source: Elkan 2001."""
    alarm, miss = costs[0, 1] - costs[0, 0], costs[1, 0] - costs[1, 1]
    return float(alarm / (alarm + miss))


def cheapest(p: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """The class (B,) of the least expected cost for probabilities (B, C); the first among equals."""
    return (p @ costs).argmin(axis=1)


def mean_cost(y: np.ndarray, decided: np.ndarray, costs: np.ndarray) -> float:
    """What the decisions (B,) cost a row on average."""
    return float(costs[y, decided].mean())
