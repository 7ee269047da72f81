"""Multilayer perceptrons over encoded columns; both return logits, never probabilities."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.models.embeddings import CategoryEncoding, piecewise_linear
from nn_train.settings import ModelConfig


def hidden_layers(num_inputs: int, num_outputs: int, config: ModelConfig) -> nn.Sequential:
    """Blocks of linear, ReLU and dropout, and a linear head."""
    layers: list[nn.Module] = []
    for _ in range(config.num_blocks):
        layers += [nn.Linear(num_inputs, config.width), nn.ReLU(), nn.Dropout(config.dropout)]
        num_inputs = config.width
    return nn.Sequential(*layers, nn.Linear(num_inputs, num_outputs))


class MLP(nn.Module):
    """Scaled numbers beside encoded categories, through hidden layers."""

    def __init__(
        self, config: ModelConfig, *, bins: Sequence[np.ndarray], cardinalities: Sequence[int], num_outputs: int
    ):
        super().__init__()
        self.categories = CategoryEncoding(cardinalities, one_hot_max=config.one_hot_max)
        self.layers = hidden_layers(len(bins) + self.categories.num_outputs, num_outputs, config)

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """x_num (B, N) float32, x_cat (B, C) int64 -> logits (B, D)."""
        return self.layers(torch.cat([x_num, *self.categories(x_cat)], dim=1))


class MLPPLE(nn.Module):
    """Piecewise-linear embeddings of the numbers beside encoded categories, through hidden layers."""

    def __init__(
        self, config: ModelConfig, *, bins: Sequence[np.ndarray], cardinalities: Sequence[int], num_outputs: int
    ):
        super().__init__()
        self.numbers = piecewise_linear(bins, config.num_embedding) if bins else None
        self.categories = CategoryEncoding(cardinalities, one_hot_max=config.one_hot_max)
        num_inputs = len(bins) * config.num_embedding + self.categories.num_outputs
        self.layers = hidden_layers(num_inputs, num_outputs, config)

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """x_num (B, N) float32, x_cat (B, C) int64 -> logits (B, D)."""
        numbers_BE = self.numbers(x_num).flatten(1) if self.numbers is not None else x_num
        return self.layers(torch.cat([numbers_BE, *self.categories(x_cat)], dim=1))
