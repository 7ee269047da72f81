"""The training stage: network, optimizer and data put together, resumed and saved."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nn_train.averaging import build_average
from nn_train.batch_plan import Share, batch_size, plan_batches, share_batch, slice_rows
from nn_train.checkpoint import Checkpoint, cpu_copy, decode_checkpoint, read_newest
from nn_train.decision import Decision
from nn_train.errors import ConfigError, RunFolderError, TrainingError
from nn_train.evaluation import predict_logits
from nn_train.gradients import Gradients, build_gradients
from nn_train.loop import Hooks, Trainer, TrainState, count_steps
from nn_train.metrics import QUANTILE_METRICS, metric_value, quantile_metrics, selection_metric
from nn_train.models import build_model
from nn_train.models.custom import check_custom
from nn_train.network_choice import resolve_model
from nn_train.objective import Objective, weigh_classes
from nn_train.optim import build_optimizer, lr_at_step
from nn_train.own_metrics import load_metric
from nn_train.packed import PackedRows
from nn_train.preparation import PreparedData
from nn_train.runtime import Runtime, seed_everything
from nn_train.sampling import even_places, held_rows
from nn_train.saving import Saver, Tell
from nn_train.settings import Config, ModelConfig
from nn_train.step_profile import Profile
from nn_train.streamed_metrics import Accumulator
from nn_train.streaming import rows_at, stream_metrics

logger = logging.getLogger("nn_train")
EXTENDABLE = ("max_epochs", "max_steps", "max_time")


def resolve_config(config: Config, data: PreparedData, *, device_type: str) -> Config:
    """The config with the network's settings as they are for these rows on this device, without `auto`.

    Raises:
        ConfigError: they do not fit the table.
    """
    model = resolve_model(
        config.model,
        num_rows=data.num_rows("train"),
        num_numbers=len(data.preprocessor.numeric),
        device_type=device_type,
    )
    return config.model_copy(update={"model": model})


def build_network(config: Config, data: PreparedData) -> nn.Module:
    """The network for the prepared columns, its first weights drawn from run.seed.

    What is `auto` in `config` still, as where no training resolved it, is chosen for this machine.
    """
    config = resolve_config(config, data, device_type="cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(config.run.seed)
    fitted = data.preprocessor
    network = build_model(
        config.model,
        bins=fitted.bins,
        cardinalities=fitted.cardinalities,
        num_outputs=fitted.target.num_outputs,
        task=fitted.target.task,
    )
    if config.model.target is not None:
        check_custom(
            network,
            config.model.target,
            num_numbers=len(fitted.numeric),
            cardinalities=fitted.cardinalities,
            num_outputs=fitted.target.num_outputs,
        )
    return network


class Training:
    """Everything between packed rows and the best weights; every method runs on every process.

    `model` is the network that a run goes on with; None: as the settings say, for these rows on this device.
    """

    def __init__(
        self,
        config: Config,
        data: PreparedData,
        runtime: Runtime,
        *,
        record: Callable[[dict[str, Any]], None] = lambda line: None,
        check_owner: Callable[[], None] = lambda: None,
        tell: Tell = lambda event, **values: None,
        model: ModelConfig | None = None,
    ):
        if model is None:
            config = resolve_config(config, data, device_type=runtime.device.type)
        else:
            config = config.model_copy(update={"model": model})
        self.config = config
        self.data = data
        self.runtime = runtime
        self.record = record
        self.check_owner = check_owner  # raises where a newer attempt owns the run
        self.tell = tell  # on the main process: checkpoints, skipped steps, and what else belongs in a timeline
        target = data.preprocessor.target
        if problem := config.train.misfit(target.task):
            raise ConfigError(problem[0], fix=problem[1])
        self.objective = Objective(
            task=target.task,
            loss=config.train.loss,
            label_smoothing=config.train.label_smoothing,
            focal_gamma=config.train.focal_gamma,
            huber_delta=config.train.huber_delta,
            quantiles=target.quantiles,
        )
        self.metric = selection_metric(
            config.train.selection_metric, target.task, quantiles=target.quantiles, num_targets=len(target.names)
        )
        own_metric = load_metric(config.train.selection_metric)
        self.own_metrics = {} if own_metric is None else {self.metric: own_metric}  # the user's
        self.rows = self._weighed(data.rows("train", device=runtime.device, placement=config.data.placement))
        self.val_rows = data.rows("val", device=runtime.device, placement=config.data.placement)
        self.plan = plan_batches(
            num_rows=len(self.rows),
            num_bytes=data.packed_bytes("train"),
            global_batch_size=batch_size(config.train.global_batch_size, len(self.rows)),
            seed=config.run.seed,
            shuffle=config.train.shuffle,
            num_shards=config.train.num_canonical_shards,
            window_rows=config.train.shuffle_window,
        )
        self.share = self._share()
        self.network = build_network(config, data)
        self.state = TrainState()
        self._resumed: Checkpoint | None = None
        self._saver: Saver | None = None
        self.best = cpu_copy(self.network.state_dict())

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return count_steps(self.config, self.plan)

    @property
    def num_parameters(self) -> int:
        """Weights that are trained."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _weighed(self, rows: PackedRows) -> PackedRows:
        """The train rows with the weight of their class times their own; as they are where neither is asked for."""
        classes = self.data.preprocessor.target.classes
        if not classes:
            return rows
        counts = np.bincount(rows.y.cpu().numpy(), minlength=len(classes))
        by_class = weigh_classes(self.config.train.class_weights, classes, counts)
        if by_class is None:
            return rows
        weight = torch.from_numpy(by_class.astype(np.float32)).to(rows.y.device).index_select(0, rows.y)
        return dataclasses.replace(rows, weight=weight if rows.weight is None else rows.weight * weight)

    def _share(self) -> Share:
        train, whole, processes = self.config.train, self.plan.global_batch_size, self.runtime.num_processes
        micro = None if train.micro_batch_size == "auto" else train.micro_batch_size
        if train.gradient_reduction == "exact":
            micro = slice_rows(whole, train.canonical_slices, processes, micro_batch_size=micro)
        return share_batch(whole, processes, micro_batch_size=micro)

    def restore(self, checkpoints: Path) -> None:
        """Go on from the newest valid checkpoint, if there is one; the main process reads it for all."""
        files = self.runtime.broadcast(self.runtime.on_main(lambda: read_newest(checkpoints)))
        try:
            self._resumed = None if files is None else decode_checkpoint(files)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"the newest checkpoint is whole, and holds something else than a training's state: {error}",
                where=str(checkpoints),
                fix="remove it, or checkpoint.resume=never to start over",
            ) from None
        if self._resumed is None:
            return
        self.network.load_state_dict(self._resumed.model)
        self.best = self._resumed.best
        self.state = self._resumed.state
        is_over_time = self.config.train.max_time is not None and self.state.elapsed_s >= self.config.train.max_time
        if self.state.finished in EXTENDABLE and not (self.state.finished == "max_time" and is_over_time):
            self.state.finished = ""  # the loop finds out again, under limits that may have been raised

    def run(self, checkpoints: Path, *, stop_requested: Callable[[], bool], profile_into: Path | None = None) -> bool:
        """Train until the end or a stop request; True if training is finished.

        Under train.profile what is measured goes into the folder `profile_into`.
        """
        profile = None
        if self.config.train.profile and profile_into is not None:
            profile = Profile(self.runtime, profile_into, check_owner=self.check_owner)
        if self.runtime.is_main:
            self._saver = Saver(
                checkpoints,
                keep_last=self.config.checkpoint.keep_last,
                max_age_s=self.config.checkpoint.max_age,
                check_owner=self.check_owner,
                tell=self.tell,
            )
        forward: nn.Module = torch.compile(self.network) if self.config.train.compile else self.network  # type: ignore[assignment]
        optimizer = build_optimizer(self.network, self.config.optim, device=self.runtime.device)
        self.model, self.optimizer = self.runtime.wrap(forward, optimizer)
        self.average = build_average(self.network, self.optimizer.optimizer, self.config.optim)
        if self._resumed is not None:
            self._restore_optimizer(self._resumed)
        trainer = Trainer(
            self.runtime,
            self.model,
            self.optimizer,
            gradients=self.gradients(self.model),
            plan=self.plan,
            config=self.config,
            metric=self.metric,
            profile=profile,
            hooks=Hooks(
                updated=self.average.update,
                evaluate=self._evaluate,
                keep_best=self._keep_best,
                log=self.record,
                save=self._save,
                settle=self._settle,
                must_end=lambda: self._saver is not None and self._saver.must_end,
                restore=lambda state: self._go_back(checkpoints, state),
                stop_requested=stop_requested,
                tell=self.tell if self.runtime.is_main else lambda event, **values: None,
            ),
        )
        return trainer.run(self.state)

    def close(self) -> None:
        """Write no checkpoint any more."""
        if self._saver is not None:
            self._saver.close()

    def gradients(self, model: nn.Module) -> Gradients:
        """The gradients of a global batch under `model`, the network as Accelerate prepared it."""
        train = self.config.train
        return build_gradients(
            self.runtime,
            model,
            rows=self.rows,
            plan=self.plan,
            objective=self.objective,
            share=self.share,
            canonical_slices=train.canonical_slices if train.gradient_reduction == "exact" else None,
            is_compressed=train.gradient_compression == "bf16",
        )

    def _restore_optimizer(self, checkpoint: Checkpoint) -> None:
        groups = checkpoint.optimizer
        self.optimizer.optimizer.load_state_dict({"state": groups["state"], "param_groups": groups["param_groups"]})
        if self.runtime.accelerator.scaler is not None and groups["scaler"]:
            self.runtime.accelerator.scaler.load_state_dict(groups["scaler"])
        self.average.load(checkpoint.average)

    def _start_optimizer_over(self) -> None:
        first = build_optimizer(self.network, self.config.optim, device=self.runtime.device)
        self.optimizer.optimizer.load_state_dict(first.state_dict())  # groups count too, under schedulefree
        self.average.load({})

    def _keep_best(self) -> None:
        with self.average.judged():
            self.best = cpu_copy(self.network.state_dict())

    def _evaluate(self, state: TrainState) -> float:
        started_s = time.monotonic()
        with self.average.judged():
            loss, select = self._judge_val()
        if not math.isfinite(loss):  # every rank: all know the loss of all rows
            raise TrainingError(
                f"the validation loss after step {state.step} is not finite: the weights are broken",
                fix="lower optim.peak_lr or optim.weight_decay, or set train.grad_clip",
            )
        value = self.runtime.broadcast(self.runtime.on_main(select))
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

    def _judge_val(self) -> tuple[float, Callable[[], float]]:
        """The loss of the validation rows, and what finds out the selection metric; a collective."""
        rows, most = self.val_rows, self.config.evaluation.exact_rows
        if len(rows) <= most:
            logits = self.logits(rows)
            loss = float(self.objective.plain.loss_sum(logits, rows.y.to(logits.device))) / len(rows)
            return loss, lambda: self._selection_value(logits, rows.y)
        loss, seen = self.stream(rows, Decision(temperature=1.0, threshold=0.5))
        if not self.own_metrics:
            return loss, lambda: seen.metrics()[self.metric]
        sample = rows_at(rows, even_places(len(rows), held_rows(len(rows), most)))
        sampled = self.logits(sample)
        return loss, lambda: self._selection_value(sampled, sample.y)

    def _selection_value(self, logits: Tensor, y: Tensor) -> float:
        fitted = self.data.preprocessor
        task = fitted.target.task
        truth, decision = y.cpu().numpy(), Decision(temperature=1.0, threshold=0.5)
        if self.metric in QUANTILE_METRICS:
            values = decision.values(logits.cpu().numpy(), fitted)
            return quantile_metrics(fitted.decode_target(truth), values, fitted.target.quantiles)[self.metric]
        if self.own_metrics:
            return self.own_values(logits.cpu().numpy(), truth, decision)[self.metric]
        prediction = decision.predict(logits.cpu().numpy(), fitted)
        return metric_value(
            self.metric, fitted.decode_target(truth) if task == "regression" else truth, prediction, task=task
        )

    def own_values(self, logits: np.ndarray, y: np.ndarray, decision: Decision) -> dict[str, float]:
        """The user's own metric of a split, by its name; empty where there is none."""
        if not self.own_metrics:
            return {}
        fitted = self.data.preprocessor
        truth = fitted.decode_target(y) if fitted.target.task == "regression" else y
        prediction = decision.predict(logits, fitted)
        return {name: measure(truth, prediction) for name, measure in self.own_metrics.items()}

    def logits(self, rows: PackedRows) -> Tensor:
        """Logits of all rows under the current weights, (R, D); a collective."""
        return predict_logits(
            self.network,
            rows,
            num_outputs=self.data.preprocessor.target.num_outputs,
            runtime=self.runtime,
            block_rows=self.config.train.eval_batch_size,
        )

    def stream(self, rows: PackedRows, decision: Decision) -> tuple[float, Accumulator]:
        """The mean loss of rows too many to hold their logits, and what gives their metrics; a collective."""
        return stream_metrics(
            self.network,
            rows,
            self.data.preprocessor,
            decision,
            loss_sum=self.objective.plain.loss_sum,
            runtime=self.runtime,
            block_rows=self.config.train.eval_batch_size,
        )

    def load_best(self) -> None:
        """Put the best weights into the network."""
        self.network.load_state_dict(self.best)
        self.network.eval()

    def _save(self, state: TrainState) -> None:
        """Copy the state on the main process; a thread of it writes the checkpoint while training goes on."""
        if self._saver is None:
            return
        optimizer = dict(self.optimizer.optimizer.state_dict())
        scaler = self.runtime.accelerator.scaler
        self._saver.put(
            Checkpoint(
                state=state,
                model=self.network.state_dict(),
                best=self.best,
                optimizer=optimizer | {"scaler": scaler.state_dict() if scaler is not None else None},
                average=self.average.state(),
                extra={
                    "processes": self.runtime.num_processes,
                    "global_batch_size": self.plan.global_batch_size,
                },
            )
        )

    def _settle(self) -> None:
        """Wait until the main process has written what was saved; what went wrong there is raised on every process."""
        self.runtime.on_main(lambda: self._saver.finish() if self._saver is not None else None)

    def _go_back(self, checkpoints: Path, state: TrainState) -> None:
        """Put weights, optimizer and `state` back to the newest checkpoint, or to the start where there is none."""
        self.runtime.on_main(lambda: self._saver.wait() if self._saver is not None else None)
        skipped = state.skipped
        self.restore(checkpoints)
        found = self._resumed
        if found is None:
            self.network.load_state_dict(build_network(self.config, self.data).state_dict())
            self.best = cpu_copy(self.network.state_dict())
            self._start_optimizer_over()
        else:
            self._restore_optimizer(found)
        for field in dataclasses.fields(TrainState):
            setattr(state, field.name, getattr(found.state if found else TrainState(), field.name))
        state.skipped = skipped
        self.state = state
