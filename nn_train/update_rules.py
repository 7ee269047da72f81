"""Optimizers that torch does not have as a whole: schedule-free AdamW, and Muon with AdamW for the rest.

All their state is in `state_dict()`, as tensors and plain numbers, so that a checkpoint holds it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from nn_train.errors import ConfigError

Groups = list[dict[str, Any]]


class ScheduleFree(Optimizer):
    """AdamW whose gradients are taken near the running average of its own iterates, which is what is to be judged.

    The model's weights are y = (1 - beta1) z + beta1 x, between the iterates z and their average x. x is computed where
    it is asked for, so that a look at it changes no bit of the training. The average weighs a step by the square of
    the highest learning rate so far. Source: Defazio et al. 2024; to the bit the authors' package `schedulefree` 1.4.1
    in its train mode, without its switching of the model between y and x.
    """

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[float, float], eps: float = 1e-8):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, defaults | {"updates": 0, "highest_lr": 0.0, "weight_sum": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not for this rule."""
        assert closure is None
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            group["updates"] += 1
            group["highest_lr"] = max(lr, group["highest_lr"])
            weight = group["highest_lr"] ** 2
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if weight else 0.0
            correction = 1 - beta2 ** group["updates"]
            for y in group["params"]:
                if y.grad is None:
                    continue
                state = self.state[y]
                if not state:
                    state["z"], state["exp_avg_sq"] = y.clone(), torch.zeros_like(y)
                square = state["exp_avg_sq"].mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                move = y.grad / (square / correction).sqrt_().add_(group["eps"])
                move.add_(y, alpha=group["weight_decay"])
                y.lerp_(state["z"], share).add_(move, alpha=lr * (beta1 * (1 - share) - 1))
                state["z"].sub_(move, alpha=lr)

    @torch.no_grad()
    def averages(self) -> list[tuple[Tensor, Tensor]]:
        """Each parameter with the average x of its iterates, which is the parameter itself before its first update."""
        return [
            (y, y.lerp(self.state[y]["z"], 1 - 1 / group["betas"][0]) if self.state.get(y) else y)
            for group in self.param_groups
            for y in group["params"]
        ]


class MuonWithAdamW(Optimizer):
    """torch's Muon for some matrices, and torch's AdamW for all other parameters.

    Muon's steps are made as large as AdamW's (by their root mean square), so that one learning rate suits both. The
    two work on the groups and the state of this optimizer. Source: Jordan et al. 2024; the size: Liu et al. 2025.

    Raises:
        ConfigError: torch is older than its Muon.
    """

    def __init__(
        self, matrices: Groups, rest: Groups, *, lr: float, betas: tuple[float, float], momentum: float, fused: bool
    ):
        muon = getattr(torch.optim, "Muon", None)
        if muon is None:
            raise ConfigError(
                f"optim.name=muon needs torch 2.9 or newer, and this is {torch.__version__}", fix="optim.name=adamw"
            )
        options = {"momentum": momentum, "adjust_lr_fn": "match_rms_adamw"}
        self.rules: tuple[Optimizer, ...] = (
            muon(matrices, lr=lr, **options),
            AdamW(rest, lr=lr, betas=betas, fused=fused),
        )
        super().__init__([group for rule in self.rules for group in rule.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; `closure` is not for this rule."""
        assert closure is None
        start = 0
        for rule in self.rules:
            stop = start + len(rule.param_groups)
            # a loaded state has put other groups in the place of the first ones
            rule.param_groups, rule.state = self.param_groups[start:stop], self.state
            rule.step()
            start = stop
