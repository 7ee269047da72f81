"""One step of the weights: learning rate, gradients of the global batch, clipping, optimizer.

Written out in plain PyTorch, since Accelerate's wrappers look at signatures, versions and packages at every step, and
a small network's step is short beside that.
"""

import copy
import math
from collections.abc import Callable
from typing import Self

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from nn_train.gradients import Gradients
from nn_train.optim import lr_at_step
from nn_train.pulse import pulse
from nn_train.runtime import Runtime
from nn_train.settings import Config
from nn_train.step_profile import Laps


class Stepper:
    """Changes the weights by the rows of a step; `updated` hears of it, by the number of steps that are finished."""

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        *,
        gradients: Gradients,
        config: Config,
        total_steps: int,
        updated: Callable[[int], None],
    ):
        self.parameters = list(model.parameters())
        self.gradients = gradients
        self.optim = config.optim
        self.clip = config.train.grad_clip
        self.total_steps = total_steps
        self.updated = updated
        self.optimizer = optimizer.optimizer  # whose groups are others after a return to a checkpoint
        # a loss scale belongs to the wrapper, which leaves the weights alone where a scaled gradient overflowed
        self.has_scaler = runtime.accelerator.scaler is not None
        self.updater = optimizer if self.has_scaler else self.optimizer
        self.unscale = lambda: runtime.accelerator.unscale_gradients(optimizer)
        self.apply = self._apply

    def __call__(self, step: int, *, is_guarded: bool) -> tuple[Tensor, Tensor]:
        """Loss and gradient norm; where `is_guarded`, a norm that is not finite leaves the weights as they are."""
        lr = lr_at_step(step, self.optim, total_steps=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter in self.parameters:
            parameter.grad = None
        is_broken = pulse.mark("step", step)
        loss = self.gradients.compute(step, is_broken=is_broken)
        return loss, self.apply(step, is_guarded)

    def watched(self, laps: Laps) -> Self:
        """The same steps with their parts timed."""
        found = copy.copy(self)
        found.gradients = self.gradients.watched(laps)
        found.apply = laps.timed("optimizer", self.apply)
        return found

    def _apply(self, step: int, is_guarded: bool) -> Tensor:
        """Change the weights by the gradients that are there; their norm before they were clipped."""
        if self.has_scaler:
            self.unscale()  # before clipping, which would clip scaled gradients otherwise
        norm = self._clip()
        # under fp16 it is the scaler that skips, and that has to see the overflow to find its size
        if self.has_scaler or not is_guarded or math.isfinite(norm):
            self.updater.step()
            self.updated(step + 1)
        return norm

    def _clip(self) -> Tensor:
        if self.clip is not None:
            return torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
