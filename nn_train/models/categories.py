"""Encodings of categories: codes, of which 0 is the unseen level, as vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

UNSEEN = 0


def embedding_width(cardinality: int) -> int:
    """Width of a category's embedding: 1.6 c^0.56, 50 at most. Source: fast.ai's rule."""
    return min(50, round(1.6 * cardinality**0.56))


def hide_levels(codes: Tensor, share: float) -> Tensor:
    """Codes (B, C), a `share` of them replaced by that of an unseen level, which thereby is trained too."""
    if not share:
        return codes
    return torch.where(torch.rand(codes.shape, device=codes.device) < share, UNSEEN, codes)


class CategoryEncoding(nn.Module):
    """x_cat (B, C) codes -> (B, E): small categories one-hot, large ones embedded.

    Code 0 (unseen) is all zeros in a one-hot, and starts as zeros in an embedding: a level that
    training never showed moves no logit. In training a share of embedded levels is taken for unseen ones.
    """

    offset_C: Tensor

    def __init__(self, cardinalities: Sequence[int], *, one_hot_max: int, hidden_share: float = 0.0):
        super().__init__()
        self.hidden_share = hidden_share
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
        sizes = [(index, cardinalities[index] - 1) for index in self.one_hot]
        sizes += [(index, embedding_width(cardinalities[index])) for index in self.embedded]
        self.column_E = [index for index, size in sizes for _ in range(size)]  # whose encoding each place holds

    def forward(self, x_cat: Tensor) -> list[Tensor]:
        """The encodings of all columns, to be laid side by side."""
        parts_BE = []
        if self.one_hot:
            codes_BC = x_cat if not self.embedded else x_cat[:, self.one_hot]
            columns_BC = torch.where(codes_BC > 0, codes_BC + self.offset_C, 0)
            ones_BE = x_cat.new_zeros((x_cat.shape[0], self.num_one_hot + 1), dtype=torch.float32)
            parts_BE.append(ones_BE.scatter_(1, columns_BC, 1.0)[:, 1:])
        if self.embedded:
            hidden_BC = hide_levels(x_cat, self.hidden_share) if self.training else x_cat
            parts_BE += [embed(hidden_BC[:, i]) for i, embed in zip(self.embedded, self.embeddings, strict=True)]
        return parts_BE


class CategoryTokens(nn.Module):
    """x_cat (B, C) -> (B, C, E): a vector of the level and one of the column, whatever the cardinality.

    An unseen level starts as zeros: what is left is the column's vector. Source: Gorishniy et al. 2021, section 3.3.
    """

    def __init__(self, cardinalities: Sequence[int], width: int, *, hidden_share: float = 0.0):
        super().__init__()
        self.hidden_share = hidden_share
        self.embeddings = nn.ModuleList([nn.Embedding(cardinality, width) for cardinality in cardinalities])
        bound = width**-0.5
        for embedding in self.embeddings:
            nn.init.uniform_(embedding.weight, -bound, bound)  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.empty(len(cardinalities), width))
        nn.init.uniform_(self.bias, -bound, bound)
        for embedding in self.embeddings:
            nn.init.zeros_(embedding.weight[UNSEEN])  # type: ignore[index]

    def forward(self, x_cat: Tensor) -> Tensor:
        """Embed every level."""
        codes_BC = hide_levels(x_cat, self.hidden_share) if self.training else x_cat
        tokens = [embed(codes_BC[:, index]) for index, embed in enumerate(self.embeddings)]
        return torch.stack(tokens, dim=1) + self.bias
