"""A residual network over encoded columns. Source: Gorishniy et al. 2021, section 3.2.

It normalises each row by itself (LayerNorm), where the authors' default, BatchNorm, lets rows see each other: a
gradient would then depend on how the global batch is cut into processes and micro-batches.
"""

from torch import Tensor, nn

from nn_train.models.inputs import SideBySide
from nn_train.models.options import Options
from nn_train.schema import Task


class Block(nn.Module):
    """(B, W) -> (B, W): what normalisation and two linear layers make of a row is added to it."""

    def __init__(self, config: Options):
        super().__init__()
        hidden = int(config.width * config.hidden_factor)
        self.branch = nn.Sequential(
            nn.LayerNorm(config.width),
            nn.Linear(config.width, hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, config.width),
            nn.Dropout(config.residual_dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.branch(x)


def resnet_layers(config: Options, inputs: SideBySide, *, num_outputs: int, task: Task) -> nn.Module:
    """A linear layer, residual blocks, and a head, (B, E) -> (B, D)."""
    return nn.Sequential(
        nn.Linear(len(inputs.column_E), config.width),
        *(Block(config) for _ in range(config.num_blocks)),
        nn.LayerNorm(config.width),
        nn.ReLU(),
        nn.Linear(config.width, num_outputs),
    )
