"""FT-Transformer: each column is a token, and so is the class; attention among them. Source: Gorishniy et al. 2021.

Shapes: T tokens, W their width, H heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nn_train.models.inputs import Tokens
from nn_train.models.options import Options
from nn_train.schema import Task


class ClassToken(nn.Module):
    """(B, T W) -> (B, 1 + T, W), the class token in front; `optim.py` spares it from decay."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        nn.init.uniform_(self.weight, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Part the columns again, and put the token in front of them."""
        tokens = x.unflatten(1, (-1, len(self.weight)))
        return torch.cat([self.weight.expand(x.shape[0], 1, -1).to(tokens.dtype), tokens], dim=1)


class Attention(nn.Module):
    """Queries (B, Q, W) and tokens (B, T, W) -> (B, Q, W)."""

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width) if num_heads > 1 else None
        self.dropout = nn.Dropout(dropout)
        for linear in (self.query, self.key, self.value, *([self.mix] if self.mix is not None else [])):
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attend to the tokens."""
        q, k, v = self._part(self.query(queries)), self._part(self.key(tokens)), self._part(self.value(tokens))
        shares_BHQT = self.dropout(F.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), dim=-1))
        x = (shares_BHQT @ v).transpose(1, 2).flatten(2)
        return x if self.mix is None else self.mix(x)

    def _part(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, H, T, W / H)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Feed(nn.Module):
    """(B, T, W) -> (B, T, W): a linear layer, ReGLU, dropout, a linear layer."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.widen = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token by itself."""
        value, gate = self.widen(x).chunk(2, dim=-1)
        return self.narrow(self.dropout(value * F.relu(gate)))


class Block(nn.Module):
    """Tokens (B, T, W) -> (B, T, W), or the class token alone, (B, 1, W), where it is the last block.

    Each half is normalised in front and added to what it came from; the very first normalisation is left out, without
    which the authors found the network not to train well.
    """

    def __init__(self, config: Options, *, is_first: bool, is_last: bool):
        super().__init__()
        width = config.width
        self.is_last = is_last
        self.attention = Attention(width, config.num_heads, config.attention_dropout)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = Feed(width, int(width * config.hidden_factor), config.dropout)
        self.attention_norm = None if is_first else nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then transform."""
        tokens = x if self.attention_norm is None else self.attention_norm(x)
        if self.is_last:
            x = x[:, :1]
        x = x + self.dropout(self.attention(tokens[:, :1] if self.is_last else tokens, tokens))
        return x + self.dropout(self.feed(self.feed_norm(x)))


def transformer_layers(config: Options, inputs: Tokens, *, num_outputs: int, task: Task) -> nn.Module:
    """Blocks over the tokens and a head on the class token, (B, T W) -> (B, D)."""
    last = config.num_blocks - 1
    return nn.Sequential(
        ClassToken(config.width),
        *(Block(config, is_first=index == 0, is_last=index == last) for index in range(config.num_blocks)),
        nn.Flatten(1),
        nn.LayerNorm(config.width),
        nn.ReLU(),
        nn.Linear(config.width, num_outputs),
    )
