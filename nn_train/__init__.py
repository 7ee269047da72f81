"""Train, evaluate and report a neural network on a table, on one process or many.

from nn_train import Engine, load_config
metrics = Engine(load_config("configs/telco.yaml")).run()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nn_train.config import load_config
    from nn_train.engine import Engine

__all__ = ["Engine", "load_config"]


def __getattr__(name: str) -> Any:
    """Import what is asked for and no more: settings are checked without waiting for torch."""
    if name == "Engine":
        from nn_train.engine import Engine

        return Engine
    if name == "load_config":
        from nn_train.config import load_config

        return load_config
    raise AttributeError(f"module 'nn_train' has no attribute '{name}'")
