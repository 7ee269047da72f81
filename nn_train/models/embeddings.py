"""Encodings of categorical and numeric inputs."""

from collections.abc import Sequence

import numpy as np
import torch
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


class PiecewiseLinear(nn.Module):
    """x_num (B, N) -> (B, N, E): linear inside each bin, trained per column.

    At the start it is a plain linear embedding, to which the bins add zeros.
    Source: Gorishniy et al. 2022; version B is that of TabM (2024). Operations, draws and names of
    weights are those of `rtdl_num_embeddings.PiecewiseLinearEmbeddings` (Apache-2.0), which imports
    scikit-learn on its way: most of a second of every start.
    """

    def __init__(self, bins: Sequence[Tensor], num_embedding: int):
        super().__init__()
        self.linear0 = LinearEmbeddings(len(bins), num_embedding)
        self.impl = BinEncoding(bins)
        self.linear = BinWeights(len(bins), self.impl.weight.shape[1], num_embedding)

    def forward(self, x_num: Tensor) -> Tensor:
        """Embed every number."""
        return self.linear0(x_num) + self.linear(self.impl(x_num))


class LinearEmbeddings(nn.Module):
    """x_num (B, N) -> (B, N, E), under the name by which `optim.py` spares it from decay."""

    def __init__(self, num_columns: int, num_embedding: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_columns, num_embedding))
        self.bias = nn.Parameter(torch.empty(num_columns, num_embedding))
        bound = num_embedding**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x_num: Tensor) -> Tensor:
        """Scale and shift a vector by each number."""
        return torch.addcmul(self.bias, self.weight, x_num[..., None])


class BinEncoding(nn.Module):
    """x_num (B, N) -> (B, N, K): how much of each bin lies below the number; K is the most bins of a column.

    The last bin of a column stands at the end and the others at the front, zeros between: the outer
    bins, which go on beyond their edges, are then in one place for all columns.
    """

    weight: Tensor
    bias: Tensor
    single_bin_mask: Tensor | None
    mask: Tensor | None

    def __init__(self, bins: Sequence[Tensor]):
        super().__init__()
        counts = torch.tensor([len(edges) - 1 for edges in bins])
        most = int(counts.max())
        self.register_buffer("weight", torch.zeros(len(bins), most))
        self.register_buffer("bias", torch.zeros(len(bins), most))
        is_single = counts == 1
        self.register_buffer("single_bin_mask", is_single if is_single.any() else None)
        # which places are bins: nothing reads it, and it stays so that saved weights keep their names
        is_bin = (torch.arange(most) < counts[:, None] - 1) | (torch.arange(most) == most - 1)
        self.register_buffer("mask", None if is_bin.all() else is_bin)
        for column, edges in enumerate(bins):
            width = edges.diff()
            assert (width > 0).all(), f"edges of column {column} do not increase"
            weight, bias = 1.0 / width, -edges[:-1] / width
            self.weight[column, -1], self.bias[column, -1] = weight[-1], bias[-1]
            self.weight[column, : len(width) - 1], self.bias[column, : len(width) - 1] = weight[:-1], bias[:-1]

    def forward(self, x_num: Tensor) -> Tensor:
        """Encode every number."""
        x = torch.addcmul(self.bias, self.weight, x_num[..., None])
        if x.shape[-1] == 1:
            return x
        last = x[..., -1:].clamp_min(0.0)
        if self.single_bin_mask is not None:
            last = torch.where(self.single_bin_mask[..., None], x[..., -1:], last)
        return torch.cat([x[..., :1].clamp_max(1.0), x[..., 1:-1].clamp(0.0, 1.0), last], dim=-1)


class BinWeights(nn.Module):
    """Encoded bins (B, N, K) -> (B, N, E), by weights of each column's own that start at zero."""

    def __init__(self, num_columns: int, num_bins: int, num_embedding: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_columns, num_bins, num_embedding))
        nn.init.uniform_(self.weight)  # drawn and thrown away by the authors: later weights are drawn after it
        nn.init.zeros_(self.weight)

    def forward(self, encoded: Tensor) -> Tensor:
        """Multiply each column's bins by its weights."""
        return (encoded.transpose(0, 1) @ self.weight).transpose(0, 1)


def piecewise_linear(bins: Sequence[np.ndarray], num_embedding: int) -> PiecewiseLinear:
    """The embedding for these bin edges, one array a column."""
    return PiecewiseLinear([torch.from_numpy(np.array(column)) for column in bins], num_embedding)
