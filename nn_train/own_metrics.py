"""Metrics that the user brings: `module:function`, imported where a training is to be selected by one, nowhere else.

A `-` in front says that less is better; its values are then negated, as scikit-learn's `neg_...` are. So a run says all
that its readers need to know, and none of them imports anything.
"""

import importlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from nn_train.errors import ConfigError, TrainingError, short
from nn_train.metrics import NAN, OWN_METRIC

OwnMetric = Callable[[np.ndarray, np.ndarray], float]


def load_metric(setting: str) -> OwnMetric | None:
    """The metric of train.selection_metric, greater being better; None where it is one of the project's.

    It is called with the truth (B,) and what `Decision.predict` gives: the positive class's probability (B,), every
    class's (B, C), or values (B,); classes are their places in the run's order.

    Raises:
        ConfigError: there is no such function, or its `greater_is_better` says otherwise.
    """
    if OWN_METRIC.fullmatch(setting) is None:
        return None
    path = setting.removeprefix("-")
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"train.selection_metric={setting} is not found: {short(str(error), 200)}",
            fix="module:function of an installed package, or of a folder that PYTHONPATH names",
        ) from None
    if not callable(found):
        raise ConfigError(
            f"train.selection_metric={setting} is no function", fix="def METRIC(truth, prediction) -> float"
        )
    function = cast(OwnMetric, found)
    sign = -1.0 if setting.startswith("-") else 1.0
    is_greater_better = getattr(found, "greater_is_better", sign > 0)
    if bool(is_greater_better) != (sign > 0):
        other = path if is_greater_better else f"-{path}"
        raise ConfigError(f"{path} says greater_is_better={is_greater_better}", fix=f"train.selection_metric={other}")

    def metric(truth: np.ndarray, prediction: np.ndarray) -> float:
        if not np.isfinite(prediction).all():
            return NAN
        try:
            return sign * float(function(truth, prediction))
        except Exception as error:  # whatever a stranger's function does
            what = short(f"{type(error).__name__}: {error}", 200)
            raise TrainingError(
                f"train.selection_metric={setting} failed on predictions {prediction.shape}: {what}",
                fix="def METRIC(truth, prediction) -> float, of arrays (rows,) and (rows,) or (rows, classes)",
            ) from error

    return metric
