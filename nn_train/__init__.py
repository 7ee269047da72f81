"""Train, evaluate and report a neural network on a table, on one process or many.

from nn_train import Engine, load_config
metrics = Engine(load_config("configs/telco.yaml")).run()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn_train.bundle import load_bundle
    from nn_train.config import load_config
    from nn_train.engine import Engine
    from nn_train.ensemble_bundle import load_ensemble
    from nn_train.estimator import TabularClassifier, TabularRegressor

__all__ = ["Engine", "TabularClassifier", "TabularRegressor", "load_bundle", "load_config", "load_ensemble"]


def __getattr__(name: str) -> Any:
    """Import what is asked for and no more: settings are checked without waiting for torch."""
    if name == "Engine":
        from nn_train.engine import Engine

        return Engine
    if name == "load_config":
        from nn_train.config import load_config

        return load_config
    if name == "load_bundle":
        from nn_train.bundle import load_bundle

        return load_bundle
    if name == "load_ensemble":
        from nn_train.ensemble_bundle import load_ensemble

        return load_ensemble
    if name in ("TabularClassifier", "TabularRegressor"):
        from nn_train import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module 'nn_train' has no attribute '{name}'")
