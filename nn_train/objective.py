"""From logits to a loss, always on logits and always a sum over rows."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nn_train.errors import ConfigError
from nn_train.schema import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """The loss of a row: a pure function of its logits and its target, by the settings of the same names.

    Classes have cross-entropy or focal loss, standardised regression targets a squared, absolute or Huber
    error, or the mean pinball loss of the quantiles; several targets, y (B, T), the mean of theirs. The caller
    multiplies by the row's weight and divides by the weight of the *global* batch (its rows, where they have none),
    so that every row counts the same however the batch was cut.

    Logits (B, D) may also be those of K members, (B, K, D): a row's loss is then the mean of the members'
    losses, never the loss of their mean, by which they would learn as one.
    """

    task: Task
    loss: str = "auto"
    label_smoothing: float = 0.0
    focal_gamma: float = 2.0
    huber_delta: float = 1.0
    quantiles: tuple[float, ...] = ()

    @property
    def plain(self) -> "Objective":
        """The same loss of targets that are not smoothed, by which validation rows are judged."""
        return dataclasses.replace(self, label_smoothing=0.0)

    def loss_sum(self, logits: Tensor, y: Tensor) -> Tensor:
        """From logits and y (B,) to the sum of the rows' losses, a scalar in float32 or, like logits, more."""
        return self._loss(logits, y, reduction="sum")

    def weighted_sum(self, logits: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        """The sum of the rows' losses, each times its weight (B,)."""
        return (self.row_losses(logits, y) * weight).sum()

    def row_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Each row's loss, (B,)."""
        return self._loss(logits, y, reduction="none")

    def _loss(self, logits: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if logits.ndim == 3:
            num_members = logits.shape[1]
            losses = self._loss(logits.flatten(0, 1), y.repeat_interleave(num_members, dim=0), reduction="none")
            means = losses.view(-1, num_members).mean(dim=1)
            return means.sum() if reduction == "sum" else means
        if self.loss == "quantile":
            losses = self._pinball_loss(logits, y.to(logits.dtype))
            return losses.sum() if reduction == "sum" else losses
        if y.ndim == 2:
            losses = self._number_loss(logits, y.to(logits.dtype), reduction="none").mean(dim=-1)
            return losses.sum() if reduction == "sum" else losses
        if self.task == "regression":
            return self._number_loss(logits.squeeze(-1), y.to(logits.dtype), reduction=reduction)
        if self.loss == "focal":
            losses = self._cross_entropy(logits, y, reduction="none") * self._doubt(logits, y)
            return losses.sum() if reduction == "sum" else losses
        return self._cross_entropy(logits, y, reduction=reduction)

    def _number_loss(self, value: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        if self.loss == "mae":
            return F.l1_loss(value, y, reduction=reduction)
        if self.loss == "huber":
            return F.huber_loss(value, y, reduction=reduction, delta=self.huber_delta)
        return F.mse_loss(value, y, reduction=reduction)

    def _pinball_loss(self, values: Tensor, y: Tensor) -> Tensor:
        """From a value per quantile (B, Q) to the mean over the quantiles, (B,)."""
        levels = torch.tensor(self.quantiles, dtype=values.dtype, device=values.device)
        error = y.unsqueeze(-1) - values
        return torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1)

    def _cross_entropy(self, logits: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        smoothing = self.label_smoothing
        if self.task == "multiclass":
            return F.cross_entropy(logits, y, reduction=reduction, label_smoothing=smoothing)
        target = y.to(logits.dtype)
        if smoothing:
            target = target * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits.squeeze(-1), target, reduction=reduction)

    def _doubt(self, logits: Tensor, y: Tensor) -> Tensor:
        """(1 - p)^gamma, p the probability of the true class, (B,).

        By logarithms, since the power's own gradient is infinite at p = 1 where gamma is below 1.
        Source: Lin et al. 2017, equation 4.
        """
        if self.task == "binary":
            log_rest = F.logsigmoid(logits.squeeze(-1) * (1 - 2 * y.to(logits.dtype)))
        else:
            others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
            log_rest = others.logsumexp(dim=1) - logits.logsumexp(dim=1)
        return (self.focal_gamma * log_rest).exp()


def weigh_classes(
    setting: str | Mapping[str, float] | Sequence[float], classes: Sequence[str], counts: np.ndarray
) -> np.ndarray | None:
    """The weight of each class (K,) float64 by train.class_weights; None where all weigh the same.

    `counts` (K,) are the classes' train rows.

    Raises:
        ConfigError: a weight for a class that is not there, or another number of weights than of classes.
    """
    if setting in ("no", {}):
        return None
    if isinstance(setting, str):
        return counts.sum() / (len(classes) * np.maximum(counts, 1))
    if not isinstance(setting, Mapping):
        if len(setting) != len(classes):
            raise ConfigError(
                f"train.class_weights lists {len(setting)} weights, and there are {len(classes)} classes, in this "
                f"order: {_shown(classes)}",
                fix=f"list {len(classes)} numbers in that order, or name classes: "
                f"train.class_weights.{classes[-1]}=WEIGHT",
            )
        return np.array(setting, dtype=np.float64)
    weights = np.ones(len(classes))
    for name, weight in setting.items():
        weights[_place(name, classes)] = weight
    return weights


def _place(name: str, classes: Sequence[str]) -> int:
    """The class of that name: as it is written, or 1 for 1.0, or True for true."""
    same = [place for place, other in enumerate(classes) if other == name] or [
        place for place, other in enumerate(classes) if other.lower() == re.sub(r"\.0*$", "", name).lower()
    ]
    if len(same) == 1:
        return same[0]
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5) or [classes[-1]]
    raise ConfigError(
        f"train.class_weights names the class '{name}'; the classes are {_shown(classes)}",
        fix=f"train.class_weights.{near[0]}=WEIGHT",
    )


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
