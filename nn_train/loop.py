"""The training loop: plain PyTorch over callables; it knows no file, network or tracker.

Conventions: `state.step` counts finished optimizer steps; hooks see 1, 2, 3, ...
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from nn_train.batch_plan import BatchPlan
from nn_train.errors import TrainingError
from nn_train.gradients import Gradients
from nn_train.metrics import is_better
from nn_train.optim import lr_at_step
from nn_train.runtime import Runtime
from nn_train.settings import Config


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """All that changes in training besides weights and optimizer; a checkpoint holds it."""

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    elapsed_s: float = 0.0
    finished: str = ""  # why training is over: max_epochs, max_steps, max_time, early_stopping; empty while it is not


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls; every one on every process.

    `evaluate` returns the validation loss and the value of the selection metric, the same on all.
    """

    evaluate: Callable[[TrainState], float]
    keep_best: Callable[[], None]
    log: Callable[[dict[str, Any]], None]
    save: Callable[[TrainState], None]
    stop_requested: Callable[[], bool]


def count_steps(config: Config, plan: BatchPlan) -> int:
    """Optimizer steps of the whole training: what the epochs hold, or train.max_steps if that is less."""
    steps = config.train.max_epochs * plan.steps_per_epoch
    return min(steps, config.train.max_steps or steps)


class Trainer:
    """One training: holds the parts that a step needs, and the clocks of logging and saving."""

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        *,
        gradients: Gradients,
        plan: BatchPlan,
        config: Config,
        metric: str,
        hooks: Hooks,
    ):
        self.runtime = runtime
        self.model = model
        self.parameters = list(model.parameters())
        self.optimizer = optimizer
        # Accelerate's wrapper looks for a package on the disk at every step; only a loss scale needs it
        self.updater = optimizer if runtime.accelerator.scaler is not None else optimizer.optimizer
        self.gradients = gradients
        self.plan = plan
        self.config = config
        self.metric = metric
        self.hooks = hooks
        self.total_steps = count_steps(config, plan)
        self.eval_steps = plan.steps_per_epoch if config.train.eval_every == "epoch" else config.train.eval_every
        # reading a number off a GPU waits for it: there, look for non-finite ones only when a line is logged
        self.guard_steps = 1 if runtime.device.type == "cpu" else config.tracking.log_every_steps
        self.agree_steps = 1 if runtime.num_processes == 1 else config.train.check_every_steps

    def run(self, state: TrainState) -> bool:
        """Train until the end or a stop request; True if training is finished."""
        self.model.train()
        self.started_s = self.saved_s = self.logged_s = time.monotonic()
        self.elapsed_before_s = state.elapsed_s
        self.logged_step = state.step
        self.last_update: tuple[Tensor, Tensor] | None = None
        while not state.finished:
            if state.step >= self.total_steps:
                state.finished = "max_steps" if self.total_steps == self.config.train.max_steps else "max_epochs"
                break
            loss, grad_norm = self._update(state.step)
            state.step += 1
            is_logged = state.step % self.config.tracking.log_every_steps == 0
            self.last_update = loss, grad_norm
            if is_logged or state.step % self.guard_steps == 0:
                self._guard(state.step)
            if is_logged or state.step == self.total_steps:
                self._log(loss, grad_norm, state)
            if state.step % self.eval_steps == 0 or state.step == self.total_steps:
                self._evaluate(state)
            if self._should_stop(state):
                self._save(state)
                return False
        state.elapsed_s = self._elapsed_s()
        self._save(state)
        return True

    def _update(self, step: int) -> tuple[Tensor, Tensor]:
        lr = lr_at_step(step, self.config.optim, total_steps=self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients.compute(step)
        # after backward, and after unscaling under fp16: earlier it would clip nothing
        limit = self.config.train.grad_clip
        grad_norm = self.runtime.accelerator.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
        assert grad_norm is not None
        if self.runtime.device.type != "cpu" or self.config.train.mixed_precision == "fp16" or grad_norm.isfinite():
            self.updater.step()
        return loss, grad_norm

    def _save(self, state: TrainState) -> None:
        if self.last_update is not None and state.step % self.guard_steps:
            self._guard(state.step)  # broken weights must never take the place of good ones
        self.hooks.save(state)
        self.saved_s = time.monotonic()

    def _guard(self, step: int) -> None:
        # every rank: the gradient is reduced already and the loss is reduced here, so all raise together or none
        assert self.last_update is not None
        loss, grad_norm = self.last_update
        # fp16's loss scale finds its size by overflowing gradients: there the loss must tell
        watched = self.gradients.global_loss(loss) if self.config.train.mixed_precision == "fp16" else grad_norm
        if not watched.isfinite():
            self._refuse(float(self.gradients.global_loss(loss)), grad_norm, step)

    def _refuse(self, loss: float, grad_norm: Tensor, step: int) -> NoReturn:
        rows = self.plan.rows(step - 1)
        raise TrainingError(
            f"the loss or gradient of step {step} is not finite (loss {loss:g}, gradient norm {float(grad_norm):g})",
            where=f"train rows {', '.join(map(str, rows[:5]))}, ... ({len(rows)} rows)",
            fix="lower optim.peak_lr, set train.grad_clip, or look for extreme values in those rows",
        )

    def _log(self, loss: Tensor, grad_norm: Tensor, state: TrainState) -> None:
        now_s = time.monotonic()
        value = float(self.gradients.global_loss(loss))  # every rank: collective
        if not math.isfinite(value):
            self._refuse(value, grad_norm, state.step)
        steps = state.step - self.logged_step
        rows = steps * self.plan.num_rows / self.plan.steps_per_epoch
        self.hooks.log(
            {
                "step": state.step,
                "epoch": round(self.plan.epoch_at(state.step), 4),
                "split": "train",
                "loss": value,
                "lr": lr_at_step(state.step - 1, self.config.optim, total_steps=self.total_steps),
                "rows_per_s": round(rows / max(now_s - self.logged_s, 1e-9), 1),
                "grad_norm": float(grad_norm),
                "elapsed_s": round(self._elapsed_s(), 3),
            }
        )
        self.logged_s, self.logged_step = time.monotonic(), state.step

    def _evaluate(self, state: TrainState) -> None:
        started_s = time.monotonic()
        state.elapsed_s = self._elapsed_s()
        self.model.eval()
        value = self.hooks.evaluate(state)
        self.model.train()
        if state.best_value is None or is_better(self.metric, value, state.best_value):
            state.best_value, state.best_step, state.evals_since_best = value, state.step, 0
            self.hooks.keep_best()
        else:
            state.evals_since_best += 1
        patience = self.config.train.early_stopping
        if patience is not None and state.evals_since_best >= patience:
            state.finished = "early_stopping"
        self.logged_s += time.monotonic() - started_s  # throughput is that of training

    def _should_stop(self, state: TrainState) -> bool:
        """Agree on stopping and on a checkpoint; True if this attempt must end before training does."""
        every_steps, every_s = self.config.checkpoint.every_steps, self.config.checkpoint.every_time
        is_due = every_steps is not None and state.step % every_steps == 0
        stop = False
        if state.step % self.agree_steps == 0:
            out_of_time = self.config.train.max_time is not None and self._elapsed_s() >= self.config.train.max_time
            timed_save = every_s is not None and time.monotonic() - self.saved_s >= every_s
            stop, timed_out, timed_save = self.runtime.any_rank(self.hooks.stop_requested(), out_of_time, timed_save)
            is_due = is_due or timed_save
            if timed_out and not state.finished:
                if state.step % self.eval_steps:
                    self._evaluate(state)
                state.finished = state.finished or "max_time"
        state.elapsed_s = self._elapsed_s()
        if state.finished:
            return False
        if is_due and not stop:
            self._save(state)
        return stop

    def _elapsed_s(self) -> float:
        return self.elapsed_before_s + time.monotonic() - self.started_s
