"""The lifecycle of a run, stage by stage; the one place where all parts are put together."""

import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from nn_train.attempts import Fence, Fenced, Launched
from nn_train.checkpoint import newest_step
from nn_train.environment import describe_environment, git_diff
from nn_train.errors import Stopped, UserError
from nn_train.evaluation import Decision, choose_decision, judge, prediction_frame, write_predictions
from nn_train.importance import permutation_importance
from nn_train.overfit import overfit_one_batch
from nn_train.preparation import PreparedData, prepare_data
from nn_train.run_folder import (
    clear,
    holds_run,
    own,
    read_config,
    read_json,
    refuse_other_run,
    start_folder,
    write_file,
    write_json,
    write_status,
)
from nn_train.runtime import StopSignal, set_up_logging, start_runtime
from nn_train.schema import SPLITS, Split
from nn_train.settings import Config
from nn_train.terminal import ProgressBar, print_metrics, print_schema
from nn_train.tracking import MetricsFile, NullTracker, WandbTracker, open_tracker
from nn_train.training import Training, build_network

logger = logging.getLogger("nn_train")
Predictions = dict[Split, tuple[np.ndarray, np.ndarray]]  # logits (R, D) and targets (R,) of a split
JUDGED: tuple[Split, ...] = ("val", "test")
PREDICTION_FILES: dict[Split, str] = {"val": "predictions_val.parquet", "test": "predictions.parquet"}


class Engine:
    """One run: `prepare`, `train`, `evaluate`, `report`, or all of them by `run`.

    Every process of a run makes one and calls the same stages. Files are written by the main
    process alone. A run that is finished already is not trained again: the stages then hand back
    what its folder holds.
    """

    def __init__(self, config: Config, *, debug: bool = False):
        set_up_logging()
        self.config = config
        self.debug = debug
        self.run_dir = config.run_dir
        self.is_finished = False
        self._done: set[str] = set()
        self.seconds: dict[str, float] = {}
        self._tracker: NullTracker | WandbTracker = NullTracker()
        self._stack = ExitStack()
        self._metrics_file = MetricsFile(self.run_dir / "metrics.jsonl")
        self._fence: Fence | None = None

    def run(self) -> dict[str, Any]:
        """All stages; the content of metrics.json.

        Raises:
            UserError: what the user can mend, the same on every process.
            Stopped: the run was asked to stop and saved its state.
        """
        self.prepare()
        self.train()
        metrics = self.evaluate()
        self.report()
        return metrics

    def prepare(self) -> PreparedData:
        """Read, split, fit and pack the table, or find it packed; then open the run folder."""
        started_s = time.monotonic()
        tracks = self.config.tracking.mode != "disabled"
        self.runtime = start_runtime(self.config.train, log_with="wandb" if tracks else None)
        self.data = self.runtime.on_every_rank(lambda: prepare_data(self.config))
        self.training = Training(
            self.config,
            self.data,
            self.runtime,
            record=self._record,
            check_owner=self._check_owner,
            checkpoint_written=lambda step: self._write_status("running", step=step),
        )
        print_schema(self.data.schema)
        for warning in self.data.info["warnings"]:
            logger.warning("warning: %s", warning)
        if self.data.schema.num_rows_without_target:
            logger.warning("warning: %d rows without a target were dropped", self.data.schema.num_rows_without_target)
        logger.info("rows: %s%s", _counts(self.data.info["rows"]), " (found packed)" if self.data.was_cached else "")
        try:
            self.is_finished = self.runtime.broadcast(self.runtime.on_main(self._claim_folder) or False)
        except BaseException:
            self.close()
            raise
        self.seconds["prepare"] = time.monotonic() - started_s
        self._done = {"prepare"}
        return self.data

    def _require(self, stage: str) -> None:
        """A stage whose work is missing would judge random weights, or nothing."""
        if not self.is_finished and stage not in self._done:
            raise UserError(f"this stage needs what {stage}() leaves", fix=f"call {stage}() of this Engine first")

    def _claim_folder(self) -> bool:
        """Open the run folder for this run, alone; True if the run in it is finished already."""
        config, run_dir = self.config, self.run_dir
        existed = run_dir.exists()
        holds_run(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._own(run_dir)
            if holds_run(run_dir):  # looked at again: another process may have started one
                launched = Launched.from_environment(run_dir)
                # what an earlier attempt of the same launch did is this run's own, also where it was to start over
                if config.checkpoint.resume == "auto" or (launched is not None and launched.goes_on):
                    return self._go_on()
                clear(run_dir)
            environment = describe_environment(
                num_processes=self.runtime.num_processes, device=str(self.runtime.device)
            )
            files = [*self.data.files(), ("environment.json", json.dumps(environment, indent=2).encode())]
            start_folder(run_dir, config, files=[*files, ("git.diff", git_diff().encode())])
        except OSError:
            if not existed:
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        return False

    def _go_on(self) -> bool:
        """Take the run in the folder up again; True if it is finished already."""
        config, previous = self.config, read_config(self.run_dir)
        refuse_other_run(self.run_dir, previous, config, fingerprint=self.data.info["fingerprint"])
        parts = [
            (c.train.max_epochs, c.train.max_steps, c.train.max_time, c.evaluation, c.report)
            for c in (previous, config)
        ]
        if parts[0] == parts[1] and self._is_done():
            return True
        (self.run_dir / "report.html").unlink(missing_ok=True)  # it speaks of the run as it was
        start_folder(self.run_dir, config, files=[], step=newest_step(self.run_dir / "checkpoints"))
        return False

    def _is_done(self) -> bool:
        status = self.run_dir / "status.json"
        has_report = (self.run_dir / "report.html").exists() and (self.run_dir / "metrics.json").exists()
        return has_report and status.exists() and read_json(status)["state"] == "done"

    def _own(self, run_dir: Path) -> None:
        if self._fence is None:
            self._fence = self._stack.enter_context(own(run_dir))

    def _check_owner(self) -> None:
        """Main process only. Raises Fenced where a newer attempt owns the run: nothing is published then."""
        assert self._fence is not None
        self._fence.check()

    def _write_status(self, state: str, *, step: int, reason: str = "") -> None:
        self._check_owner()
        write_status(self.run_dir, state, reason=reason, step=step)

    def train(self) -> None:
        """Train from the newest checkpoint, or from the start, until the end.

        Raises:
            Stopped: on SIGTERM, Ctrl-C or the launcher's stop file, after a checkpoint was written.
        """
        self._require("prepare")
        if self.is_finished:
            logger.info("this run is finished; another: run.name=NEW, once more: checkpoint.resume=never")
            return
        launched = Launched.from_environment(self.run_dir)
        with self._failure_noted(), StopSignal(launched.stop_file if launched else None) as stop:
            if self.debug:
                self._check_can_learn()
            self.training.restore(self.run_dir / "checkpoints")
            state = self.training.state
            self._open_records()
            logger.info("%s  (%d train rows a pass)", self.training.share, len(self.training.rows))
            logger.info(
                "network %s, %s weights, on %s, %s",
                self.config.model.name,
                f"{self.training.num_parameters:,}",
                self.runtime.device,
                f"from step {state.step}" if state.step else "from the start",
            )
            total_steps = self.training.total_steps
            self.bar = ProgressBar(total_steps=total_steps, first_step=state.step, is_main=self.runtime.is_main)
            try:
                is_done = self.training.run(self.run_dir / "checkpoints", stop_requested=lambda: stop.requested)
            finally:
                self.bar.close()
        self.seconds["train"] = state.elapsed_s
        if not is_done:
            reason = stop.name or "stopped by another process of the run"
            self.runtime.on_main(lambda: self._write_status("stopped", reason=reason, step=state.step))
            self.close()
            raise Stopped(f"stopped at step {state.step}; the same command goes on from there")
        logger.info(
            "trained %d steps in %.1f s (%s); best %s %.4f at step %d",
            state.step,
            state.elapsed_s,
            state.finished.replace("_", " "),
            self.training.metric,
            state.best_value,
            state.best_step,
        )
        self._done.add("train")

    def _open_records(self) -> None:
        if self.runtime.is_main:
            self._metrics_file.rewind(self.training.state.step)
            self._tracker = open_tracker(
                self.runtime.accelerator,
                self.config,
                run_dir=self.run_dir,
                run_id=read_json(self.run_dir / "environment.json")["run_id"],
                records=self._metrics_file.read(),
            )

    def _record(self, record: dict[str, Any]) -> None:
        """Take in one line of metrics.jsonl."""
        if self.runtime.is_main:
            self._check_owner()
            self._metrics_file.write(record)
            self._tracker.log(record)
            self.bar.show(record, metric=self.training.metric)

    def _check_can_learn(self) -> None:
        rows = self.training.rows
        batch = rows.slice(0, min(64, len(rows)))
        network = build_network(self.config, self.data).to(self.runtime.device)
        result = overfit_one_batch(network, batch, objective=self.training.objective, optim=self.config.optim)
        logger.info(
            "overfit one batch: loss %.4f -> %.4f: %s",
            result.first_loss,
            result.last_loss,
            "the network can learn"
            if result.can_learn
            else "the network does NOT memorise 64 rows; look at optim and model",
        )

    def evaluate(self) -> dict[str, Any]:
        """Judge the best weights on validation and test rows, beside the baselines.

        Returns what metrics.json holds; processes other than the main one get no baselines.
        """
        self._require("train")
        if self.is_finished:
            return read_json(self.run_dir / "metrics.json")
        started_s = time.monotonic()
        with self._failure_noted():
            self.training.load_best()
            arrays: Predictions = {split: self._predict(split) for split in JUDGED}  # every rank: collective
            fitted = self.data.preprocessor
            logits, y = arrays["val"]
            decision = choose_decision(logits, y, fitted, self.config.evaluation)
            self.metrics: dict[str, Any] = {"task": fitted.target.task}
            self.metrics |= {split: judge(*pair, fitted, decision) for split, pair in arrays.items()}
            if self.runtime.is_main:
                baselines = self._fit_baselines() if self.config.report.baselines else {}
                self.seconds["evaluate"] = time.monotonic() - started_s
                self.metrics |= self._summary(decision) | {"baselines": baselines}
                self.metrics["importance"] = self._measure_importance(decision)
                self._write_results(arrays, decision)
        self._done.add("evaluate")
        return self.metrics

    def _predict(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Logits (R, D) and targets (R,) of a split; a collective."""
        rows = self.data.rows(split, device=self.runtime.device)
        return self.training.logits(rows).cpu().numpy(), rows.y.cpu().numpy()

    def _summary(self, decision: Decision) -> dict[str, Any]:
        state = self.training.state
        return {
            "rows": self.data.info["rows"],
            "decision": {**dataclasses.asdict(decision), "threshold_metric": self.config.evaluation.threshold_metric},
            "selection": {
                "metric": self.training.metric,
                "value": state.best_value,
                "step": state.best_step,
                "epoch": round(self.training.plan.epoch_at(state.best_step), 4),
            },
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "processes": self.runtime.num_processes,
            "model": self.config.model.name,
            "num_parameters": self.training.num_parameters,
        }

    def _fit_baselines(self) -> dict[str, Any]:
        # scikit-learn's models, for the main process once training is done: not before the first step
        from nn_train.baselines import BaselineData, BaselineRows, fit_baselines

        fitted = self.data.preprocessor
        target = fitted.target
        parts = {}
        for split in SPLITS:
            rows = self.data.rows(split, device=torch.device("cpu"))
            y = rows.y.numpy()
            parts[split] = BaselineRows(
                x_num=fitted.with_gaps(rows.x_num.numpy(), rows.x_cat.numpy()),
                x_cat=rows.x_cat.numpy().astype(np.int32),
                y=fitted.decode_target(y) if target.task == "regression" else y,
            )
        results = fit_baselines(
            BaselineData(**parts, cardinalities=fitted.cardinalities),
            task=target.task,
            num_classes=len(target.classes),
            seed=self.config.run.seed,
            threshold_metric=self.config.evaluation.threshold_metric,
        )
        return {name: {"test": r.test, "val": r.val, "seconds": r.seconds} for name, r in results.items()}

    @torch.no_grad()
    def _measure_importance(self, decision: Decision) -> dict[str, Any] | None:
        if not self.config.report.importance:
            return None
        fitted, network = self.data.preprocessor, self.training.network
        result = permutation_importance(
            self.data.rows("test", device=self.runtime.device),
            fitted,
            lambda batch: decision.predict(network(batch.x_num, batch.x_cat).float().cpu().numpy(), fitted),
            metric=self.training.metric,
            seed=self.config.run.seed,
        )
        return result.to_json()

    def _write_results(self, arrays: Predictions, decision: Decision) -> None:
        # rank 0 only: writes files
        self._check_owner()
        fitted = self.data.preprocessor
        write_file(self.run_dir / "model.safetensors", save(self.training.best))
        for split, (logits, _) in arrays.items():
            frame = prediction_frame(logits, self.data.truth(split), fitted, decision)
            write_predictions(self.run_dir / PREDICTION_FILES[split], frame)
        write_json(self.run_dir / "metrics.json", self.metrics)
        state = self.training.state
        self._write_status("done", reason=state.finished, step=state.step)

    def report(self) -> Path:
        """Draw the plots and the page from the run folder alone; the path of the page."""
        self._require("evaluate")
        page = self.run_dir / "report.html"
        if self.runtime.is_main and not self.is_finished:
            with self._failure_noted():
                from nn_train.report import write_report  # matplotlib and pandas: not before the first step

                self._check_owner()
                write_report(self.run_dir, dpi=self.config.report.dpi)
                self._tracker.log_report(self.run_dir, _flat_metrics(self.metrics))
        if self.runtime.is_main:
            print_metrics(read_json(self.run_dir / "metrics.json"))
            logger.info("run folder: %s", self.run_dir)
            logger.info("report:     %s", page)
        self.close()
        return page

    def close(self) -> None:
        """Let go of the run folder and the tracker, where `report` was not the last stage that was called."""
        self._tracker.close()
        self._tracker = NullTracker()
        self._metrics_file.close()
        self._stack.close()
        self._fence = None

    @contextmanager
    def _failure_noted(self) -> Iterator[None]:
        """Leave `failed` and the reason in status.json when a stage does not come to its end."""
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            reason = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            if self.runtime.is_main:
                with suppress(OSError, Fenced):
                    # the step that a checkpoint holds: what came after it is lost
                    self._write_status("failed", reason=reason, step=newest_step(self.run_dir / "checkpoints"))
            self.close()
            raise


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in rows.items())


def _flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    return {f"{split}/{name}": value for split in JUDGED for name, value in metrics[split].items()}
