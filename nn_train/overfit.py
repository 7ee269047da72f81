"""Can the network learn at all? A fresh copy must be able to memorise one batch."""

import dataclasses

import torch
from torch import nn

from nn_train.objective import Objective
from nn_train.optim import build_optimizer
from nn_train.packed import Batch
from nn_train.settings import OptimConfig

NUM_STEPS = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverfitResult:
    """Mean loss of the one batch before and after."""

    first_loss: float
    last_loss: float

    @property
    def can_learn(self) -> bool:
        """Did the loss fall by nine tenths?"""
        return self.last_loss <= 0.1 * self.first_loss


def overfit_one_batch(model: nn.Module, batch: Batch, *, objective: Objective, optim: OptimConfig) -> OverfitResult:
    """Train `model` in place on one batch, without dropout, weights and label smoothing; on one process, alone."""
    model.eval()  # switches dropout off; gradients flow all the same
    optimizer = build_optimizer(model, optim)
    losses = []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = objective.plain.loss_sum(model(batch.x_num, batch.x_cat), batch.y) / len(batch.y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return OverfitResult(first_loss=losses[0], last_loss=losses[-1])
