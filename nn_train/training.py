"""The training stage: network, optimizer and data put together, resumed and saved."""

import logging
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nn_train.batch_plan import BatchPlan, Share, check_slices, share_batch
from nn_train.checkpoint import (
    Checkpoint,
    cpu_copy,
    decode_checkpoint,
    encode_checkpoint,
    read_newest,
    write_checkpoint,
)
from nn_train.errors import TrainingError
from nn_train.evaluation import Decision, predict_logits
from nn_train.gradients import build_gradients
from nn_train.loop import Hooks, Trainer, TrainState, count_steps
from nn_train.metrics import metric_value, selection_metric
from nn_train.models import build_model
from nn_train.objective import Objective
from nn_train.optim import build_optimizer, lr_at_step
from nn_train.packed import ResidentRows
from nn_train.preparation import PreparedData
from nn_train.runtime import Runtime, seed_everything
from nn_train.settings import Config

logger = logging.getLogger("nn_train")
EXTENDABLE = ("max_epochs", "max_steps", "max_time")


def build_network(config: Config, data: PreparedData) -> nn.Module:
    """The network for the prepared columns, its first weights drawn from run.seed."""
    seed_everything(config.run.seed)
    fitted = data.preprocessor
    return build_model(
        config.model,
        bins=fitted.bins,
        cardinalities=fitted.cardinalities,
        num_outputs=fitted.target.num_outputs,
    )


class Training:
    """Everything between packed rows and the best weights; every method runs on every process."""

    def __init__(
        self,
        config: Config,
        data: PreparedData,
        runtime: Runtime,
        *,
        record: Callable[[dict[str, Any]], None],
        check_owner: Callable[[], None],
        checkpoint_written: Callable[[int], None],
    ):
        self.config = config
        self.data = data
        self.runtime = runtime
        self.record = record
        self.check_owner = check_owner  # raises where a newer attempt owns the run
        self.checkpoint_written = checkpoint_written
        self.objective = Objective(task=data.preprocessor.target.task)
        self.metric = selection_metric(config.train.selection_metric, data.preprocessor.target.task)
        self.rows = data.rows("train", device=runtime.device)
        self.val_rows = data.rows("val", device=runtime.device)
        self.plan = BatchPlan(
            num_rows=len(self.rows), global_batch_size=config.train.global_batch_size, seed=config.run.seed
        )
        self.share = self._share()
        self.network = build_network(config, data)
        self.state = TrainState()
        self._resumed: Checkpoint | None = None
        self.best = cpu_copy(self.network.state_dict())

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return count_steps(self.config, self.plan)

    @property
    def num_parameters(self) -> int:
        """Weights that are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _share(self) -> Share:
        train = self.config.train
        micro = None if train.micro_batch_size == "auto" else train.micro_batch_size
        if train.gradient_reduction == "exact":
            check_slices(train.canonical_slices, self.runtime.num_processes)
            micro = train.slice_rows
        return share_batch(train.global_batch_size, self.runtime.num_processes, micro_batch_size=micro)

    def restore(self, checkpoints: Path) -> None:
        """Go on from the newest valid checkpoint, if there is one; the main process reads it for all."""
        files = self.runtime.broadcast(self.runtime.on_main(lambda: read_newest(checkpoints)))
        self._resumed = None if files is None else decode_checkpoint(files)
        if self._resumed is None:
            return
        self.network.load_state_dict(self._resumed.model)
        self.best = self._resumed.best
        self.state = self._resumed.state
        is_over_time = self.config.train.max_time is not None and self.state.elapsed_s >= self.config.train.max_time
        if self.state.finished in EXTENDABLE and not (self.state.finished == "max_time" and is_over_time):
            self.state.finished = ""  # the loop finds out again, under limits that may have been raised

    def run(self, checkpoints: Path, *, stop_requested: Callable[[], bool]) -> bool:
        """Train until the end or a stop request; True if training is finished."""
        accelerator = self.runtime.accelerator
        forward: nn.Module = torch.compile(self.network) if self.config.train.compile else self.network  # type: ignore[assignment]
        with warnings.catch_warnings():
            # torch 2.13 renames DDP's broadcast_buffers, which Accelerate knows under that name
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            self.model, self.optimizer = accelerator.prepare(forward, build_optimizer(self.network, self.config.optim))
        if self._resumed is not None:
            self._restore_optimizer(self._resumed)
        trainer = Trainer(
            self.runtime,
            self.model,
            self.optimizer,
            gradients=build_gradients(
                self.runtime,
                self.model,
                rows=self.rows,
                plan=self.plan,
                objective=self.objective,
                share=self.share,
                canonical_slices=self._slices(),
            ),
            plan=self.plan,
            config=self.config,
            metric=self.metric,
            hooks=Hooks(
                evaluate=self._evaluate,
                keep_best=self._keep_best,
                log=self.record,
                save=lambda state: self._save(checkpoints, state),
                stop_requested=stop_requested,
            ),
        )
        return trainer.run(self.state)

    def _slices(self) -> int | None:
        return self.config.train.canonical_slices if self.config.train.gradient_reduction == "exact" else None

    def _restore_optimizer(self, checkpoint: Checkpoint) -> None:
        groups = checkpoint.optimizer
        self.optimizer.optimizer.load_state_dict({"state": groups["state"], "param_groups": groups["param_groups"]})
        if self.runtime.accelerator.scaler is not None and groups["scaler"]:
            self.runtime.accelerator.scaler.load_state_dict(groups["scaler"])

    def _keep_best(self) -> None:
        self.best = cpu_copy(self.network.state_dict())

    def _evaluate(self, state: TrainState) -> float:
        started_s = time.monotonic()
        logits = self.logits(self.val_rows)
        loss = float(self.objective.loss_sum(logits, self.val_rows.y)) / len(self.val_rows)
        if not math.isfinite(loss):  # every rank: all hold all logits
            raise TrainingError(
                f"the validation loss after step {state.step} is not finite: the weights are broken",
                fix="lower optim.peak_lr or optim.weight_decay, or set train.grad_clip",
            )
        value = self.runtime.broadcast(self.runtime.on_main(lambda: self._selection_value(logits, self.val_rows.y)))
        assert value is not None
        self.record(
            {
                "step": state.step,
                "epoch": round(self.plan.epoch_at(state.step), 4),
                "split": "val",
                "loss": loss,
                "lr": lr_at_step(state.step - 1, self.config.optim, total_steps=self.total_steps),
                "rows_per_s": round(len(self.val_rows) / max(time.monotonic() - started_s, 1e-9), 1),
                self.metric: value,
                "elapsed_s": round(state.elapsed_s, 3),
            }
        )
        return value

    def _selection_value(self, logits: Tensor, y: Tensor) -> float:
        fitted = self.data.preprocessor
        task = fitted.target.task
        truth = y.cpu().numpy()
        prediction = Decision(temperature=1.0, threshold=0.5).predict(logits.cpu().numpy(), fitted)
        return metric_value(
            self.metric, fitted.decode_target(truth) if task == "regression" else truth, prediction, task=task
        )

    def logits(self, rows: ResidentRows) -> Tensor:
        """Logits of all rows under the current weights, (R, D); a collective."""
        return predict_logits(
            self.network,
            rows,
            num_outputs=self.data.preprocessor.target.num_outputs,
            runtime=self.runtime,
            block_rows=self.config.train.eval_batch_size,
        )

    def load_best(self) -> None:
        """Put the best weights into the network."""
        self.network.load_state_dict(self.best)
        self.network.eval()

    def _save(self, folder: Path, state: TrainState) -> None:
        """Write a checkpoint on the main process; a failure there is raised on every process."""
        self.runtime.on_main(lambda: self._write(folder, state))

    def _write(self, folder: Path, state: TrainState) -> None:
        optimizer = dict(self.optimizer.optimizer.state_dict())
        scaler = self.runtime.accelerator.scaler
        checkpoint = Checkpoint(
            state=state,
            model=self.network.state_dict(),
            best=self.best,
            optimizer=optimizer | {"scaler": scaler.state_dict() if scaler is not None else None},
            extra={"processes": self.runtime.num_processes, "global_batch_size": self.config.train.global_batch_size},
        )
        write_checkpoint(
            folder,
            encode_checkpoint(checkpoint),
            step=state.step,
            keep_last=self.config.checkpoint.keep_last,
            check_owner=self.check_owner,
        )
        self.checkpoint_written(state.step)
