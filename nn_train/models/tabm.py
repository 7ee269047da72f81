"""TabM: many perceptrons that share nearly all weights, trained at once. Source: Gorishniy et al. 2024.

`tabm-mini` gives each member a scaling of the inputs and a head of its own; `tabm` also scales and biases in every
layer.
"""

from itertools import chain, pairwise

from torch import Tensor, nn

from nn_train.models.inputs import SideBySide
from nn_train.models.members import Combine, MemberLinear, Scale, SharedLinear, Spread, start_scaling
from nn_train.models.options import Options
from nn_train.schema import Task


def tabm_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """(B, E) -> (B, K, D) in training, (B, D) else."""
    widths = _widths(config, inputs)
    blocks = []
    for index, (before, after) in enumerate(pairwise(widths)):
        draw_scale = (lambda: _start(config, inputs)) if index == 0 else None
        linear = SharedLinear(before, after, num_members=config.num_members, draw_scale=draw_scale)
        blocks.append((linear, nn.ReLU(), nn.Dropout(config.dropout)))
    return _with_ends(config, chain(*blocks), widths[-1], num_outputs=num_outputs, task=task)


def tabm_mini_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """(B, E) -> (B, K, D) in training, (B, D) else."""
    widths = _widths(config, inputs)
    blocks = [(nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)) for before, after in pairwise(widths)]
    first = Scale(_start(config, inputs))
    return _with_ends(config, [first, *chain(*blocks)], widths[-1], num_outputs=num_outputs, task=task)


def _widths(config: Options, inputs: SideBySide) -> list[int]:
    return [len(inputs.column_E), *[config.width] * config.num_blocks]


def _start(config: Options, inputs: SideBySide) -> Tensor:
    return start_scaling(config.num_members, inputs.column_E, has_embeddings=inputs.numbers is not None)


def _with_ends(
    config: Options, layers: "chain[nn.Module] | list[nn.Module]", width: int, *, num_outputs: int, task: Task
) -> nn.Module:
    head = MemberLinear(width, num_outputs, num_members=config.num_members)
    return nn.Sequential(Spread(config.num_members), *layers, head, Combine(task))
