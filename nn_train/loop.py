"""The training loop: plain PyTorch over callables; it knows no file, network or tracker.

Conventions: `state.step` counts finished optimizer steps; hooks see 1, 2, 3, ...
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from nn_train.batch_plan import BatchPlan
from nn_train.errors import TrainingError
from nn_train.gradients import Gradients
from nn_train.metrics import is_better
from nn_train.optim import lr_at_step
from nn_train.pulse import pulse
from nn_train.runtime import Runtime
from nn_train.settings import Config
from nn_train.step_profile import Profile
from nn_train.stepping import Stepper

logger = logging.getLogger("nn_train")
MAX_SKIPS = 10  # broken steps in a row: more than that is no matter of single rows
SHOWN_ROWS = 5


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """All that changes in training besides weights and optimizer; a checkpoint holds it."""

    step: int = 0
    best_value: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    elapsed_s: float = 0.0
    finished: str = ""  # why training is over: max_epochs, max_steps, max_time, early_stopping; empty while it is not
    skipped: list[int] = dataclasses.field(default_factory=list)  # steps whose rows change no weight; counted from 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls; every one on every process.

    `updated` hears of each update of the weights, by the number of steps that are finished then. `evaluate` returns
    the value of the selection metric, the same on all. `save` returns once the state is copied; `settle` when it is on
    the disk, and raises what went wrong there; `must_end` says that it would raise now.
    `restore` puts weights, optimizer and state back to the newest checkpoint.
    """

    updated: Callable[[int], None]
    evaluate: Callable[[TrainState], float]
    keep_best: Callable[[], None]
    log: Callable[[dict[str, Any]], None]
    save: Callable[[TrainState], None]
    settle: Callable[[], None]
    must_end: Callable[[], bool]
    restore: Callable[[TrainState], None]
    stop_requested: Callable[[], bool]
    tell: Callable[..., None]


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
        profile: Profile | None = None,
    ):
        self.runtime = runtime
        self.model = model
        self.gradients = gradients
        self.plan = plan
        self.config = config
        self.metric = metric
        self.hooks = hooks
        self.total_steps = count_steps(config, plan)
        self.profile = profile
        self.stepper = Stepper(
            runtime,
            model,
            optimizer,
            gradients=gradients,
            config=config,
            total_steps=self.total_steps,
            updated=hooks.updated,
        )
        self.make_step: Callable[..., tuple[Tensor, Tensor]] = self.stepper
        self.eval_steps = plan.steps_per_epoch if config.train.eval_every == "epoch" else config.train.eval_every
        # reading a number off a GPU waits for it: there, look for non-finite ones only when a line is logged,
        # unless broken steps are to be left out, before they change a weight
        sees_all = runtime.device.type == "cpu" or config.train.non_finite == "skip"
        self.guard_steps = 1 if sees_all else config.tracking.log_every_steps
        self.guard_until = 0  # after a return to a checkpoint every step is looked at, up to where it was found broken
        self.agree_steps = 1 if runtime.num_processes == 1 else config.train.check_every_steps

    def run(self, state: TrainState) -> bool:
        """Train until the end or a stop request; True if training is finished."""
        self.model.train()
        self.saved_s = time.monotonic()
        if self.profile is not None:
            left = 0 if state.finished else self.total_steps - state.step
            self.make_step = self.profile.around(self.stepper, self.stepper.watched, num_steps=left)
        self._start_clocks(state)
        while True:
            if not state.finished and state.step >= self.total_steps:
                state.finished = "max_steps" if self.total_steps == self.config.train.max_steps else "max_epochs"
            if state.finished:
                state.elapsed_s = self._elapsed_s()
                if self._save(state):
                    break
            elif self._step(state):
                if self._is_evaluated(state.step):
                    self._evaluate(state)
                if self._should_stop(state) and self._save(state):
                    break
        self._settle(state)
        if self.profile is not None:
            self.profile.finish()
        return bool(state.finished)

    def _start_clocks(self, state: TrainState) -> None:
        self.started_s = self.logged_s = time.monotonic()
        self.elapsed_before_s = state.elapsed_s
        self.logged_step = state.step
        self.last_update: tuple[Tensor, Tensor] | None = None

    def _step(self, state: TrainState) -> bool:
        """Make one step; False if the training is back at a checkpoint instead."""
        step = state.step
        loss, grad_norm = self._nothing() if step in state.skipped else self._update(step)
        state.step += 1
        self.last_update = None if step in state.skipped else (loss, grad_norm)
        is_logged = state.step % self.config.tracking.log_every_steps == 0
        is_looked_at = is_logged or self._is_evaluated(state.step) or self._looks_at(state.step)
        if is_looked_at and not self._is_whole(state):
            return False
        if is_logged or state.step == self.total_steps:
            self._log(loss, grad_norm, state)
        return True

    def _is_evaluated(self, step: int) -> bool:
        return step % self.eval_steps == 0 or step == self.total_steps

    def _nothing(self) -> tuple[Tensor, Tensor]:
        """The loss and gradient norm of a step that is left out."""
        nothing = torch.tensor(math.nan, device=self.runtime.device)
        return nothing, nothing

    def _update(self, step: int) -> tuple[Tensor, Tensor]:
        return self.make_step(step, is_guarded=self._looks_at(step + 1))

    def _save(self, state: TrainState) -> bool:
        """Save; False if the weights are broken, which must never take the place of good ones, and were put back."""
        if not self._is_whole(state):
            return False
        pulse.mark("snapshot", state.step)
        self.hooks.save(state)
        self.saved_s = time.monotonic()
        return True

    def _settle(self, state: TrainState) -> None:
        pulse.mark("saving", state.step)
        self.hooks.settle()

    def _looks_at(self, step: int) -> bool:
        """Is the gradient of this step (counted from 1) looked at before it changes a weight?"""
        return self.guard_steps == 1 or step <= self.guard_until

    def _is_whole(self, state: TrainState) -> bool:
        """Do what train.non_finite says if the last step was broken; False if the training is at a checkpoint now.

        Every process comes to the same end, since loss and gradient are those of the whole batch.

        Raises:
            TrainingError: it says stop, or too many steps in a row were broken.
        """
        if self.last_update is None:
            return True
        loss, grad_norm = self.last_update
        # fp16's loss scale finds its size by overflowing gradients: there the loss must tell
        watched = self.gradients.global_loss(loss) if self.config.train.mixed_precision == "fp16" else grad_norm
        with pulse:  # on a GPU it is here that a collective is waited for
            is_finite = math.isfinite(watched)
        if is_finite:
            return True
        step = state.step - 1
        error = self._describe(float(self.gradients.global_loss(loss)), float(grad_norm), state.step)
        policy = self.config.train.non_finite
        if policy == "stop" or all(step - back in state.skipped for back in range(1, MAX_SKIPS + 1)):
            raise error
        logger.warning("warning: %s: %s; train.non_finite=%s", error.where, error.what, policy)
        self.last_update = None
        is_known = self._looks_at(state.step)
        if is_known:  # else an earlier one may have broken the weights: that is found on the way back here
            state.skipped.append(step)
            rows = [int(row) for row in self.plan.rows(step)[:SHOWN_ROWS]]
            self.hooks.tell("skipped", step=state.step, rows=rows)
        if policy == "skip" or (is_known and state.step <= self.guard_until):
            return True
        self._go_back(state)
        return False

    def _go_back(self, state: TrainState) -> None:
        reached = self.guard_until = state.step
        pulse.mark("saving", state.step)
        self.hooks.restore(state)
        self._start_clocks(state)
        self.hooks.tell("restored", step=reached, to=state.step)

    def _describe(self, loss: float, grad_norm: float, step: int) -> TrainingError:
        rows = self.plan.rows(step - 1)
        return TrainingError(
            f"the loss or gradient of step {step} is not finite (loss {loss:g}, gradient norm {grad_norm:g})",
            where=f"train rows {', '.join(map(str, rows[:SHOWN_ROWS]))}, ... ({len(rows)} rows)",
            fix="lower optim.peak_lr, set train.grad_clip, look for extreme values in those rows, or go past them: "
            "train.non_finite=skip or restore",
        )

    def _log(self, loss: Tensor, grad_norm: Tensor, state: TrainState) -> None:
        now_s = time.monotonic()
        value = float(self.gradients.global_loss(loss))  # every rank: collective
        if not math.isfinite(value) and self.last_update is not None:
            raise self._describe(value, float(grad_norm), state.step)
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
        pulse.mark("evaluate", state.step)
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
            stop, timed_out, timed_save, must_end = self.runtime.any_rank(
                self.hooks.stop_requested(), out_of_time, timed_save, self.hooks.must_end()
            )
            if must_end:
                self._settle(state)
            is_due = is_due or timed_save
            if timed_out and not state.finished:
                if state.step % self.eval_steps:
                    if not self._is_whole(state):
                        return False
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
