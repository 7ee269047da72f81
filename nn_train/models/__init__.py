"""The networks. To add one: a file with the class, and a line in MODELS.

Shape legend: B rows, N numeric inputs, C categorical inputs, E width of an encoding, D outputs.
"""

from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from nn_train.models.mlp import MLP, MLPPLE
from nn_train.settings import ModelConfig

MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "mlp-ple": MLPPLE,
}


def build_model(
    config: ModelConfig, *, bins: Sequence[np.ndarray], cardinalities: Sequence[int], num_outputs: int
) -> nn.Module:
    """Build the network that maps x_num (B, N) and x_cat (B, C) to logits (B, D)."""
    return MODELS[config.name](config, bins=bins, cardinalities=cardinalities, num_outputs=num_outputs)
