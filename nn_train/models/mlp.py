"""Plain layers: a linear model, and a multilayer perceptron."""

from itertools import chain, pairwise

from torch import nn

from nn_train.models.inputs import SideBySide
from nn_train.models.options import Options
from nn_train.schema import Task


def linear_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """One linear layer, (B, E) -> (B, D): a linear or logistic regression, or with embeddings an additive model."""
    return nn.Linear(len(inputs.column_E), num_outputs)


def mlp_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """Blocks of linear, ReLU and dropout, and a linear head, (B, E) -> (B, D)."""
    widths = [len(inputs.column_E), *[config.width] * config.num_blocks]
    blocks = [(nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)) for before, after in pairwise(widths)]
    return nn.Sequential(*chain(*blocks), nn.Linear(widths[-1], num_outputs))
