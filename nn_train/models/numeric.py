"""Embeddings of numbers: x_num (B, N) -> (B, N, E), a part of its own for each column.

Operations, draws and names of weights are those of `rtdl_num_embeddings` (Apache-2.0), which imports scikit-learn on
its way (most of a second of every start) and which a bundle must do without; `tests/test_models.py` compares the two.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nn_train.models.options import Options


def embed_numbers(config: Options, bins: Sequence[np.ndarray], *, width: int) -> nn.Module | None:
    """The embedding that the settings name; None where numbers stay as they are, or there are none."""
    if config.embedding == "none" or not bins:
        return None
    return EMBEDDINGS[config.embedding](config, bins, width)


class PiecewiseLinear(nn.Module):
    """x_num (B, N) -> (B, N, E): linear inside each bin, trained per column.

    At the start it is a plain linear embedding, to which the bins add zeros.
    Source: Gorishniy et al. 2022; version B is that of TabM (2024).
    """

    def __init__(self, bins: Sequence[Tensor], num_embedding: int):
        super().__init__()
        self.linear0 = LinearEmbeddings(len(bins), num_embedding)
        self.impl = BinEncoding(bins)
        self.linear = ColumnLinear(len(bins), self.impl.weight.shape[1], num_embedding, has_bias=False)
        nn.init.zeros_(self.linear.weight)

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


class ColumnLinear(nn.Module):
    """(B, N, K) -> (B, N, E), by weights of each column's own."""

    def __init__(self, num_columns: int, num_inputs: int, num_outputs: int, *, has_bias: bool = True):
        super().__init__()
        bound = num_inputs**-0.5
        self.weight = nn.Parameter(torch.empty(num_columns, num_inputs, num_outputs))
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.empty(num_columns, num_outputs)) if has_bias else None
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, encoded: Tensor) -> Tensor:
        """Multiply each column's encoding by its weights."""
        embedded = (encoded.transpose(0, 1) @ self.weight).transpose(0, 1)
        return embedded if self.bias is None else embedded + self.bias


class LinearReLU(nn.Module):
    """x_num (B, N) -> (B, N, E): a linear embedding, and what is below zero cut off."""

    def __init__(self, num_columns: int, num_embedding: int):
        super().__init__()
        self.linear = LinearEmbeddings(num_columns, num_embedding)

    def forward(self, x_num: Tensor) -> Tensor:
        """Embed every number."""
        return F.relu(self.linear(x_num))


class Frequencies(nn.Module):
    """x_num (B, N) -> (B, N, 2 K): cosines and sines of trained frequencies; `optim.py` spares them from decay."""

    def __init__(self, num_columns: int, num_frequencies: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_columns, num_frequencies))
        nn.init.trunc_normal_(self.weight, 0.0, scale, a=-3 * scale, b=3 * scale)

    def forward(self, x_num: Tensor) -> Tensor:
        """Turn every number into waves."""
        angles = 2 * math.pi * self.weight * x_num[..., None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class Periodic(nn.Module):
    """x_num (B, N) -> (B, N, E): waves, a linear layer (`is_lite`: one for all columns) and ReLU.

    Sources: Gorishniy et al. 2022, section 3.3; lite: Gorishniy et al. 2024 (TabR).
    """

    def __init__(self, num_columns: int, num_embedding: int, *, num_frequencies: int, scale: float, is_lite: bool):
        super().__init__()
        self.periodic = Frequencies(num_columns, num_frequencies, scale)
        width = 2 * num_frequencies
        self.linear = nn.Linear(width, num_embedding) if is_lite else ColumnLinear(num_columns, width, num_embedding)

    def forward(self, x_num: Tensor) -> Tensor:
        """Embed every number."""
        return F.relu(self.linear(self.periodic(x_num)))


class ShiftedWaves(nn.Module):
    """x_num (B, N) -> (B, N, E): the number itself, and a linear layer of cosines with trained shifts.

    The embedding of RealMLP, "PBLD". Source: Holzmueller et al. 2024, appendix A.
    """

    def __init__(self, num_columns: int, num_embedding: int, *, num_frequencies: int, scale: float):
        super().__init__()
        self.frequencies = ShiftedFrequencies(num_columns, num_frequencies, scale)
        self.linear = ColumnLinear(num_columns, num_frequencies, num_embedding - 1)

    def forward(self, x_num: Tensor) -> Tensor:
        """Embed every number."""
        return torch.cat([x_num[..., None], self.linear(self.frequencies(x_num))], dim=-1)


class ShiftedFrequencies(nn.Module):
    """x_num (B, N) -> (B, N, K): cosines of trained frequencies and shifts; `optim.py` spares them from decay."""

    def __init__(self, num_columns: int, num_frequencies: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(scale * torch.randn(num_columns, num_frequencies))
        self.bias = nn.Parameter(math.pi * (2 * torch.rand(num_columns, num_frequencies) - 1))

    def forward(self, x_num: Tensor) -> Tensor:
        """Turn every number into waves."""
        return torch.cos(torch.addcmul(self.bias, 2 * math.pi * self.weight, x_num[..., None]))


def piecewise_linear(bins: Sequence[np.ndarray], num_embedding: int) -> PiecewiseLinear:
    """The embedding for these bin edges, one array a column."""
    return PiecewiseLinear([torch.from_numpy(np.array(column)) for column in bins], num_embedding)


def _linear(config: Options, bins: Sequence[np.ndarray], width: int) -> nn.Module:
    # in front of a linear layer a linear embedding adds nothing, save for a transformer's tokens
    return (LinearEmbeddings if config.name == "ft-transformer" else LinearReLU)(len(bins), width)


def _periodic(config: Options, bins: Sequence[np.ndarray], width: int) -> nn.Module:
    options = {"num_frequencies": config.num_frequencies, "scale": config.frequency_scale}
    if config.embedding == "pbld":
        return ShiftedWaves(len(bins), width, **options)
    return Periodic(len(bins), width, **options, is_lite=config.embedding == "periodic-lite")


# by the name in the settings; `ple-tree` differs in the bins alone, which the preprocessor holds
EMBEDDINGS: dict[str, Callable[[Options, Sequence[np.ndarray], int], nn.Module]] = {
    "linear": _linear,
    "ple": lambda config, bins, width: piecewise_linear(bins, width),
    "ple-tree": lambda config, bins, width: piecewise_linear(bins, width),
    "periodic": _periodic,
    "periodic-lite": _periodic,
    "pbld": _periodic,
}
