"""A bundle as one torch module: raw numbers, dates and codes of a batch -> probabilities, with nothing but tensors.

It does again what `preprocessor.py` and `decision.py` do with pandas, numpy and SciPy, in operations that other
runtimes know, and in float64 up to the network's own inputs; `export_check.py` compares the two.

Shapes: B rows, N numeric inputs, K quantiles, D outputs, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.bundle import Bundle
from nn_train.preprocessor import BEND, LARGEST, NUM_RESERVED, WILDEST, NumericInput
from nn_train.values import FIRST_DATE, LAST_DATE, MICROSECONDS

DAY, HOUR = MICROSECONDS["D"], MICROSECONDS["D"] // 24
SQRT_2_PI = 2.50662827463100050242
# numerator and denominator for the middle, then for the tails; the highest power first
RATIONALS = np.array(
    [
        (0, 0, 0, 0, -59.9633501014107895267, 98.0010754185999661536, -56.6762857469070293439, 13.9312609387279679503,
         -1.23916583867381258016),
        (1, 1.95448858338141759834, 4.67627912898881538453, 86.3602421390890590575, -225.462687854119370527,
         200.260212380060660359, -82.0372256168333339912, 15.9056225126211695515, -1.18331621121330003142),
        (4.05544892305962419923, 31.5251094599893866154, 57.1628192246421288162, 44.0805073893200834700,
         14.6849561928858024014, 2.18663306850790267539, -0.140256079171354495875, -0.0350424626827848203418,
         -8.57456785154685413611e-4),
        (1, 15.7799883256466749731, 45.3907635128879210584, 41.3172038254672030440, 15.0425385692907503408,
         2.50464946208309415979, -0.142182922854787788574, -0.0380806407691578277194, -9.33259480895457427372e-4),
    ]
)  # fmt: skip


def number(value: float | tuple[float, ...]) -> Tensor:
    """A constant, or several: the way of a Python number into an exported graph may lead through float32."""
    return torch.tensor(value, dtype=torch.float64)


class Scorer(nn.Module):
    """Columns by name, a tensor (B,) each -> probabilities (B, C), or values in the target's unit (B,), float64.

    A number is float64 with NaN for missing; a date is int64 microseconds since 1970 in UTC, where the least int64
    and whatever lies outside 1678 to 2261 is missing; a category or yes/no is the int64 code of its level.
    """

    def __init__(self, bundle: Bundle):
        super().__init__()
        fitted = bundle.preprocessor
        self.network = bundle.network
        self.numeric = fitted.numeric
        self.categories = [column.column for column in fitted.categorical]
        self.has_quantiles = bool(fitted.target.quantiles)
        self.is_wide = bool(fitted.target.quantiles or fitted.target.columns)
        self.task, self.temperature = bundle.task, bundle.decision.temperature
        self.target_mean, self.target_std = fitted.target_mean, fitted.target_std
        curves = [(np.array(x), np.array(y)) for x, y in bundle.decision.curves]
        self.curves = Lines(curves) if curves else None
        if self.numeric:
            arrays = {name: torch.from_numpy(array.copy()) for name, array in fitted.arrays.items()}
            is_quantile = "quantiles" in arrays
            self.scaler = (
                QuantileScaler(fitted.arrays["quantiles"], fitted.arrays["shares"])
                if is_quantile
                else AffineScaler(arrays["center"], arrays["scale"], is_bent=fitted.is_bent)
            )
            self.fill_N1: Tensor
            self.register_buffer("fill_N1", arrays["fill"].double()[:, None])

    def forward(self, columns: dict[str, Tensor]) -> Tensor:
        """Encode, run the network, decide."""
        num_rows = next(iter(columns.values())).shape[0]
        codes = [columns[name] for name in self.categories]
        x_num = torch.zeros((num_rows, 0))
        if self.numeric:
            raw_NB = stack_numbers(columns, self.numeric)
            is_missing_NB = ~(raw_NB.abs() < number(np.inf))
            raw_NB = torch.where(is_missing_NB, number(0), raw_NB)
            raw_NB = torch.maximum(torch.minimum(raw_NB, number(WILDEST)), number(-WILDEST))
            raw_NB = torch.where(raw_NB.abs() < number(1 / WILDEST), number(0), raw_NB)
            x_num = torch.where(is_missing_NB, self.fill_N1, self.scaler(raw_NB)).float().T
            codes += [is_missing_NB[i].long() + NUM_RESERVED for i, c in enumerate(self.numeric) if c.has_indicator]
        x_cat = torch.stack(codes, dim=1) if codes else torch.zeros((num_rows, 0), dtype=torch.int64)
        return self.decide(self.network(x_num, x_cat).double())

    def decide(self, logits: Tensor) -> Tensor:
        """What `Decision.scores` makes of logits (B, D)."""
        if self.task == "regression":
            if self.has_quantiles:
                logits = logits.sort(dim=1).values
            if self.is_wide:
                return logits * number(self.target_std) + number(self.target_mean)
            return logits[:, 0] * number(self.target_std) + number(self.target_mean)
        if self.task == "multiclass":
            p_BC = torch.softmax(logits / number(self.temperature), dim=1)
            if self.curves is None:
                return p_BC
            bent_BC = self.curves(p_BC.T).T
            return bent_BC / bent_BC.sum(dim=1, keepdim=True)
        positive_B = torch.sigmoid(logits[:, 0] / number(self.temperature))
        if self.curves is not None:
            positive_B = self.curves(positive_B[None])[0]
        return torch.stack([number(1) - positive_B, positive_B], dim=1)


def stack_numbers(columns: Mapping[str, Tensor], inputs: Sequence[NumericInput]) -> Tensor:
    """The unscaled numbers (N, B) float64, NaN where missing."""
    dates = list(dict.fromkeys(column.column for column in inputs if column.part))
    parts = date_parts(torch.stack([columns[name] for name in dates])) if dates else {}
    return torch.stack([parts[c.part][dates.index(c.column)] if c.part else columns[c.column] for c in inputs])


def date_parts(microseconds: Tensor) -> dict[str, Tensor]:
    """Parts of dates, float64, NaN where there is no date; by whole numbers alone, and so to the microsecond.

    Source: Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days: years that begin on the
    first of March, in eras of 400 years.
    """
    first, last = int(FIRST_DATE.astype(np.int64)), int(LAST_DATE.astype(np.int64))
    is_date = (microseconds >= first) & (microseconds < last)
    ticks = torch.where(is_date, microseconds, 0)
    of_day = ticks % DAY
    days = (ticks - of_day) // DAY
    since_march = days + 719_468  # since 0000-03-01, above zero for every date
    of_era = since_march % 146_097
    year_of_era = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    march_month = (5 * of_year + 2) // 153
    month = torch.where(march_month < 10, march_month + 3, march_month - 9)
    year = year_of_era + 400 * (since_march // 146_097) + (month <= 2).long()
    parts = {
        "year": year,
        "month": month,
        "day": of_year - (153 * march_month + 2) // 5 + 1,
        "weekday": (days + 3) % 7,  # Monday is 0, and 1970-01-01 was a Thursday
        "hour": of_day // HOUR,
    }
    numbers = {name: part.double() for name, part in parts.items()} | {"days": ticks.double() / number(DAY)}
    return {name: torch.where(is_date, part, number(np.nan)) for name, part in numbers.items()}


class AffineScaler(nn.Module):
    """(N, B) -> (N, B): less the center, over the scale, cut at LARGEST, and perhaps bent towards BEND."""

    center_N1: Tensor
    scale_N1: Tensor

    def __init__(self, center: Tensor, scale: Tensor, *, is_bent: bool):
        super().__init__()
        self.is_bent = is_bent
        self.register_buffer("center_N1", center.double()[:, None])
        self.register_buffer("scale_N1", scale.double()[:, None])

    def forward(self, raw_NB: Tensor) -> Tensor:
        """Scale every number."""
        scaled_NB = (raw_NB - self.center_N1) / self.scale_N1
        scaled_NB = torch.maximum(torch.minimum(scaled_NB, number(LARGEST)), number(-LARGEST))
        if not self.is_bent:
            return scaled_NB
        share_NB = scaled_NB / number(BEND)
        return scaled_NB / torch.sqrt(number(1) + share_NB * share_NB)


class Lines(nn.Module):
    """(N, B) -> (N, B): each row along a curve of its own, as numpy.interp reads it.

    Of equal places the last counts, and beyond the outer ones the values there.
    """

    edges_NK: Tensor
    lines_3NK: Tensor

    def __init__(self, curves: Sequence[tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        count = max(len(x) for x, _ in curves)
        self.num_halvings = count.bit_length()
        edges_NK = np.full((len(curves), 2**self.num_halvings - 1), np.inf)
        # by the number of places at or below a number: where its line starts, at which value, and how steep it is
        starts, levels, slopes = (np.zeros((len(curves), count + 1)) for _ in range(3))
        for row, (x, y) in enumerate(curves):
            edges_NK[row, : len(x)] = x
            starts[row, 1 : len(x) + 1], levels[row, 1 : len(x) + 1], levels[row, 0] = x, y, y[0]
            width = np.diff(x)
            np.divide(np.diff(y), width, out=slopes[row, 1 : len(x)], where=width > 0)
        self.register_buffer("edges_NK", torch.from_numpy(edges_NK))
        self.register_buffer("lines_3NK", torch.from_numpy(np.stack([starts, levels, slopes])))

    def forward(self, x_NB: Tensor) -> Tensor:
        """The values there."""
        place_NB = torch.zeros_like(x_NB, dtype=torch.int64)
        for step in (2**power for power in reversed(range(self.num_halvings))):
            reaches = torch.gather(self.edges_NK, 1, place_NB + (step - 1)) <= x_NB
            place_NB = torch.where(reaches, place_NB + step, place_NB)
        start, level, slope = (torch.gather(line, 1, place_NB) for line in self.lines_3NK)
        return slope * (x_NB - start) + level


class QuantileScaler(nn.Module):
    """(N, B) -> (N, B): the normal quantile of the share of train values below each number."""

    def __init__(self, quantiles: np.ndarray, shares: np.ndarray):
        super().__init__()
        self.lines = Lines(list(zip(quantiles.T, shares.T, strict=True)))

    def forward(self, raw_NB: Tensor) -> Tensor:
        """Scale every number."""
        return normal_quantile(self.lines(raw_NB))


def normal_quantile(p: Tensor) -> Tensor:
    """The inverse of the standard normal distribution, for 1.3e-14 < p < 1 - 1.3e-14 (a share of fewer rows than that).

    Source: the coefficients of Stephen Moshier's Cephes library (ndtri), which are SciPy's too, so that a number
    scaled here has, but for the last bit of a logarithm, the value it had in training.
    """
    one, edge = number(1), number(np.exp(-2))
    is_upper = p > one - edge
    tail = torch.where(is_upper, one - p, p)
    middle = tail - number(0.5)
    square = middle * middle
    x = torch.sqrt(number(-2) * torch.log(tail))
    z = one / x
    variable = torch.stack([square, square, z, z])
    value = torch.zeros_like(variable)
    for power in torch.from_numpy(RATIONALS.T[:, :, None, None].copy()):  # Horner's scheme, on all four
        value = value * variable + power
    central = middle + middle * (square * value[0] / value[1])
    far = x - torch.log(x) / x - z * value[2] / value[3]
    return torch.where(tail > edge, central * number(SQRT_2_PI), torch.where(is_upper, far, -far))
