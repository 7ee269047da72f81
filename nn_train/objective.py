"""From logits to a loss, always on logits and always a sum over rows."""

import dataclasses

import torch.nn.functional as F
from torch import Tensor

from nn_train.schema import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Cross-entropy for classes, squared error for standardised regression targets.

    The caller divides by the number of rows of the *global* batch, so that every row weighs the
    same however the batch was cut.
    """

    task: Task

    def loss_sum(self, logits: Tensor, y: Tensor) -> Tensor:
        """From logits (B, D) and y (B,) to the sum of the rows' losses, a float32 scalar."""
        logits = logits.float()
        if self.task == "binary":
            return F.binary_cross_entropy_with_logits(logits.squeeze(-1), y.float(), reduction="sum")
        if self.task == "multiclass":
            return F.cross_entropy(logits, y, reduction="sum")
        return F.mse_loss(logits.squeeze(-1), y, reduction="sum")
