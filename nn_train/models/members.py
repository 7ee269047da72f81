"""Several members in one network: each has a loss of its own in training, and together they predict.

Shapes: K members. Operations, draws and names of weights are those of the package `tabm` (Apache-2.0).
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nn_train.schema import Task


def combine_members(logits: Tensor, task: Task) -> Tensor:
    """Logits (B, K, D) of members -> (B, D), whose probabilities are the mean of the members'; of numbers the mean.

    By logarithms, so that it holds where every member is certain.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if task == "regression":
        return logits.mean(dim=1)
    if task == "multiclass":
        return F.log_softmax(logits, dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])
    return F.logsigmoid(logits).logsumexp(dim=1) - F.logsigmoid(-logits).logsumexp(dim=1)


class Combine(nn.Module):
    """Member logits (B, K, D) as they are in training, and combined, (B, D), else."""

    def __init__(self, task: Task):
        super().__init__()
        self.task: Task = task

    def forward(self, logits: Tensor) -> Tensor:
        """Combine, but for training."""
        return logits if self.training else combine_members(logits, self.task)


class Spread(nn.Module):
    """(B, E) -> (B, K, E): the same row for each member, without a copy."""

    def __init__(self, num_members: int):
        super().__init__()
        self.num_members = num_members

    def forward(self, x: Tensor) -> Tensor:
        """Repeat every row."""
        return x.unsqueeze(1).expand(-1, self.num_members, -1)


def start_scaling(num_members: int, column_E: Sequence[int], *, has_embeddings: bool) -> Tensor:
    """The members' first view of a row, (K, E): each sees a column's places times one random number.

    That is normal where numbers are embedded, and else a sign, as the authors of TabM recommend.
    """
    parts = []
    for _, places in itertools.groupby(column_E):
        drawn = torch.empty(num_members, 1)
        drawn = drawn.normal_() if has_embeddings else drawn.bernoulli_(0.5).mul_(2).add_(-1)
        parts.append(drawn.expand(-1, len(list(places))))
    return torch.cat(parts, dim=1)


class Scale(nn.Module):
    """(B, K, E) -> (B, K, E), times weights of each member's own."""

    def __init__(self, weight_KE: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight_KE)

    def forward(self, x: Tensor) -> Tensor:
        """Scale every place."""
        return x * self.weight


class SharedLinear(nn.Module):
    """(B, K, E) -> (B, K, W): weights that all members share, between scales and a bias of each one's own.

    `draw_scale` gives the first scale, (K, E), which is ones without it. Source: Wen et al. 2020 (BatchEnsemble).
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        num_members: int,
        draw_scale: Callable[[], Tensor] | None = None,
    ):
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_outputs, num_inputs))
        nn.init.uniform_(self.weight, -bound, bound)
        self.r = nn.Parameter(torch.ones(num_members, num_inputs) if draw_scale is None else draw_scale())
        self.s = nn.Parameter(torch.ones(num_members, num_outputs))
        shared = torch.empty(num_outputs)
        nn.init.uniform_(shared, -bound, bound)
        self.bias = nn.Parameter(shared.repeat(num_members, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Scale, multiply, scale, shift."""
        return F.linear(x * self.r, self.weight) * self.s + self.bias


class MemberLinear(nn.Module):
    """(B, K, E) -> (B, K, W), by weights of each member's own."""

    def __init__(self, num_inputs: int, num_outputs: int, *, num_members: int):
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_members, num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_members, num_outputs))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each member's row by its weights."""
        return (x.transpose(0, 1) @ self.weight).transpose(0, 1) + self.bias
