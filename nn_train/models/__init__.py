"""The networks. To add one: a file with its layers, a line in MODELS, and its options in `settings.py`.

Shape legend: B rows, N numeric inputs, C categorical inputs, E width of an encoding, D outputs, K members.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from nn_train.models.custom import build_custom
from nn_train.models.inputs import SideBySide, Tokens
from nn_train.models.mlp import linear_layers, mlp_layers
from nn_train.models.realmlp import realmlp_layers
from nn_train.models.resnet import resnet_layers
from nn_train.models.tabm import tabm_layers, tabm_mini_layers
from nn_train.models.transformer import transformer_layers
from nn_train.schema import Task

CUSTOM = "custom"  # a class of the user's own
# how columns are encoded, and the layers behind
MODELS: dict[str, tuple[type[SideBySide | Tokens], Callable[..., nn.Module]]] = {
    "linear": (SideBySide, linear_layers),
    "mlp": (SideBySide, mlp_layers),
    "resnet": (SideBySide, resnet_layers),
    "ft-transformer": (Tokens, transformer_layers),
    "tabm": (SideBySide, tabm_layers),
    "tabm-mini": (SideBySide, tabm_mini_layers),
    "realmlp": (SideBySide, realmlp_layers),
}


class Network(nn.Module):
    """Encoded columns through layers: logits, never probabilities."""

    def __init__(self, inputs: SideBySide | Tokens, layers: nn.Module):
        super().__init__()
        self.inputs = inputs
        self.layers = layers

    @property
    def input_E(self) -> list[int]:
        """Which of the N + C inputs each place of the encoding holds."""
        return self.inputs.column_E

    def encode(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """What the layers see, (B, E)."""
        return self.inputs(x_num, x_cat)

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """x_num (B, N) float32, x_cat (B, C) int64 -> logits (B, D), or in training (B, K, D) where it has members."""
        return self.layers(self.encode(x_num, x_cat))


def build_model(
    config: Any,
    *,
    bins: Sequence[np.ndarray],
    cardinalities: Sequence[int],
    num_outputs: int,
    task: Task,
) -> nn.Module:
    """Build the network that maps x_num (B, N) and x_cat (B, C) to logits (B, D).

    `config` is one without `auto`, as `resolve_model` gives it. A custom network is imported by its path: the caller
    answers for that it is the user who named it.
    """
    if config.name == CUSTOM:
        return build_custom(
            config.target,
            dict(config.options),
            num_numbers=len(bins),
            cardinalities=cardinalities,
            num_outputs=num_outputs,
        )
    encoding, make_layers = MODELS[config.name]
    inputs = encoding(config, bins=bins, cardinalities=cardinalities)
    return Network(inputs, make_layers(config, inputs, num_outputs=num_outputs, task=task))
