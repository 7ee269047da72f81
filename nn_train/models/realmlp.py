"""RealMLP: a perceptron with the tuned defaults of Holzmueller et al. 2024.

Of their recipe this holds the network: embeddings by shifted waves, a trained scale of each input, the neural tangent
parametrisation, and activations that are trained. Their learning rates (0.04 for classes, 0.2 for numbers; 6 times that
for the scale, a tenth for biases and activations) are part of it: a weight is stored as a part of its value, and a step
of Adam then moves it by so many times the learning rate. `GAIN` is theirs over this project's default, 2e-3.
"""

import math
from itertools import chain, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nn_train.models.inputs import SideBySide
from nn_train.models.options import Options
from nn_train.schema import Task

GAIN: dict[Task, float] = {"binary": 20.0, "multiclass": 20.0, "regression": 100.0}
SCALE_FACTOR, SLOW_FACTOR = 6.0, 0.1


class FrontScale(nn.Module):
    """(B, E) -> (B, E), times 1 and what was learned; `optim.py` spares it from decay."""

    def __init__(self, width: int, gain: float):
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every place."""
        return x * (1 + self.gain * self.weight)


class TangentLinear(nn.Module):
    """(B, E) -> (B, W): standard normal weights over the root of E, as in the neural tangent parametrisation."""

    def __init__(self, num_inputs: int, num_outputs: int, *, gain: float, is_last: bool):
        super().__init__()
        self.gain, self.bias_gain = gain, gain * SLOW_FACTOR
        # the last layer starts at zero: the first step sees the mean of the target
        size = 0.0 if is_last else 1.0
        self.weight = nn.Parameter(size * torch.randn(num_outputs, num_inputs) / self.gain)
        self.bias = nn.Parameter(size * torch.randn(num_outputs) / self.bias_gain)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply and shift."""
        return F.linear(x, self.weight) * (self.gain / math.sqrt(x.shape[-1])) + self.bias_gain * self.bias


class TrainedActivation(nn.Module):
    """(B, W) -> (B, W): SELU for classes, Mish for numbers, each unit with a share of it that is learned from 1 on."""

    def __init__(self, width: int, *, task: Task, gain: float):
        super().__init__()
        self.gain = gain * SLOW_FACTOR
        self.activation = nn.Mish() if task == "regression" else nn.SELU()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Bend every unit."""
        return x + (1 + self.gain * self.weight) * (self.activation(x) - x)


def realmlp_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """The scale, blocks of linear, activation and dropout, and a head, (B, E) -> (B, D)."""
    gain = GAIN[task]
    widths = [len(inputs.column_E), *[config.width] * config.num_blocks]
    blocks = [
        (
            TangentLinear(before, after, gain=gain, is_last=False),
            TrainedActivation(after, task=task, gain=gain),
            nn.Dropout(config.dropout),
        )
        for before, after in pairwise(widths)
    ]
    head = TangentLinear(widths[-1], num_outputs, gain=gain, is_last=True)
    return nn.Sequential(FrontScale(widths[0], SCALE_FACTOR * gain), *chain(*blocks), head)
