"""Encodings of categorical and numeric inputs."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from rtdl_num_embeddings import PiecewiseLinearEmbeddings
from torch import Tensor, nn


def embedding_width(cardinality: int) -> int:
    """Width of a category's embedding: 1.6 c^0.56, 50 at most. Source: fast.ai's rule."""
    return min(50, round(1.6 * cardinality**0.56))


class CategoryEncoding(nn.Module):
    """x_cat (B, C) codes -> (B, E): small categories one-hot, large ones embedded.

    Code 0 (unseen) is all zeros in a one-hot, and starts as zeros in an embedding: a level that
    training never showed moves no logit.
    """

    offset_C: Tensor

    def __init__(self, cardinalities: Sequence[int], *, one_hot_max: int):
        super().__init__()
        self.one_hot = [index for index, c in enumerate(cardinalities) if c <= one_hot_max]
        self.embedded = [index for index, c in enumerate(cardinalities) if c > one_hot_max]
        self.embeddings = nn.ModuleList()
        for index in self.embedded:
            embedding = nn.Embedding(cardinalities[index], embedding_width(cardinalities[index]))
            nn.init.zeros_(embedding.weight[0])
            self.embeddings.append(embedding)
        # code k of a one-hot column stands in column offset + k - 1; all zeros share the column in front
        widths = [cardinalities[index] - 1 for index in self.one_hot]
        self.num_one_hot = sum(widths)
        offsets = torch.tensor([sum(widths[:i]) for i in range(len(widths))], dtype=torch.int64)
        self.register_buffer("offset_C", offsets, persistent=False)
        self.num_outputs = self.num_one_hot + sum(embedding_width(cardinalities[index]) for index in self.embedded)

    def forward(self, x_cat: Tensor) -> list[Tensor]:
        """The encodings of all columns, to be laid side by side."""
        parts_BE = []
        if self.one_hot:
            codes_BC = x_cat if not self.embedded else x_cat[:, self.one_hot]
            columns_BC = torch.where(codes_BC > 0, codes_BC + self.offset_C, 0)
            ones_BE = x_cat.new_zeros((x_cat.shape[0], self.num_one_hot + 1), dtype=torch.float32)
            parts_BE.append(ones_BE.scatter_(1, columns_BC, 1.0)[:, 1:])
        parts_BE += [embed(x_cat[:, i]) for i, embed in zip(self.embedded, self.embeddings, strict=True)]
        return parts_BE


def piecewise_linear(bins: Sequence[np.ndarray], num_embedding: int) -> nn.Module:
    """x_num (B, N) -> (B, N, E): linear inside each bin, trained per column.

    Source: Gorishniy et al. 2022; version B is that of TabM (2024).
    """
    edges = [torch.from_numpy(np.array(column)) for column in bins]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*just two bin edges")  # a column of one bin is plainly linear
        return PiecewiseLinearEmbeddings(edges, num_embedding, activation=False, version="B")
