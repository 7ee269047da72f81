"""Columns as one row of numbers, (B, E), for the layers behind; `column_E` says whose encoding each place holds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.models.categories import CategoryEncoding, CategoryTokens
from nn_train.models.numeric import embed_numbers
from nn_train.models.options import Options


class SideBySide(nn.Module):
    """x_num (B, N) and x_cat (B, C) -> (B, E): numbers, embedded or not, beside encoded categories."""

    def __init__(self, config: Options, *, bins: Sequence[np.ndarray], cardinalities: Sequence[int]):
        super().__init__()
        width = 1 if config.embedding == "none" else config.num_embedding
        self.numbers = embed_numbers(config, bins, width=width)
        self.categories = CategoryEncoding(
            cardinalities, one_hot_max=config.one_hot_max, hidden_share=config.embedding_dropout
        )
        self.column_E = [column for column in range(len(bins)) for _ in range(width)]
        self.column_E += [len(bins) + column for column in self.categories.column_E]

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """Encode every column."""
        numbers_BE = x_num if self.numbers is None else self.numbers(x_num).flatten(1)
        return torch.cat([numbers_BE, *self.categories(x_cat)], dim=1)


class Tokens(nn.Module):
    """x_num (B, N) and x_cat (B, C) -> (B, (N + C) W): a vector of W numbers for each column, laid side by side."""

    def __init__(self, config: Options, *, bins: Sequence[np.ndarray], cardinalities: Sequence[int]):
        super().__init__()
        self.numbers = embed_numbers(config, bins, width=config.width)
        self.categories = (
            CategoryTokens(cardinalities, config.width, hidden_share=config.embedding_dropout)
            if cardinalities
            else None
        )
        self.column_E = [column for column in range(len(bins) + len(cardinalities)) for _ in range(config.width)]

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """Encode every column."""
        parts = [] if self.numbers is None else [self.numbers(x_num).flatten(1)]
        return torch.cat([*parts, *([] if self.categories is None else [self.categories(x_cat).flatten(1)])], dim=1)
