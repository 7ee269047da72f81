"""The lifecycle of a run, stage by stage; the one place where all parts are put together."""

import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save

from nn_train import faults
from nn_train.attempts import Fence, Fenced, Launched
from nn_train.attributions import check_attributions
from nn_train.bundle import BUNDLE_FILE, make_bundle
from nn_train.checkpoint import newest_step
from nn_train.costs import read_costs
from nn_train.decision import Decision
from nn_train.environment import describe_environment, git_diff
from nn_train.errors import Stopped, UserError
from nn_train.evaluation import choose_decision, judge, prediction_frame, write_predictions
from nn_train.judging import (
    describe_bundle,
    describe_training,
    judge_baselines,
    judge_columns,
    judge_targets,
    known_metric,
    warn_of_size,
)
from nn_train.network_choice import describe_model
from nn_train.overfit import overfit_one_batch
from nn_train.preparation import PreparedData, prepare_data
from nn_train.pulse import pulse
from nn_train.run_folder import (
    MODEL_FILE,
    clear,
    holds_run,
    is_finished,
    own,
    read_config,
    read_json,
    read_model,
    refuse_other_run,
    start_folder,
    write_file,
    write_json,
    write_status,
)
from nn_train.runtime import StopSignal, set_up_logging, start_runtime
from nn_train.sampling import even_places, held_rows
from nn_train.schema import Split
from nn_train.settings import Config, ModelConfig
from nn_train.streaming import rows_at
from nn_train.terminal import ProgressBar, print_metrics, print_schema
from nn_train.timeline import append_event, describe, read_events, summarise
from nn_train.tracking import MetricsFile, NullTracker, WandbTracker, open_tracker
from nn_train.tracking_media import Media
from nn_train.training import Training, build_network

if TYPE_CHECKING:
    from nn_train.streamed_metrics import Accumulator

logger = logging.getLogger("nn_train")
Predictions = dict[Split, tuple[np.ndarray, np.ndarray]]  # logits (R, D) and targets (R,) of a split
Places = dict[Split, np.ndarray]  # of rows in a split
Truths = dict[Split, np.ndarray]  # several targets (R, T) in their own unit
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
        self._began_s = time.monotonic()
        faults.arm()

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
        check_attributions(self.config)
        if self.config.report.baselines not in (True, False):
            from nn_train.baselines import check_baselines  # scikit-learn's models, where some are named

            check_baselines(self.config.report.baselines)
        tracks = self.config.tracking.mode != "disabled"
        pulse.mark("start")
        self.runtime = start_runtime(self.config.train, log_with="wandb" if tracks else None)
        self.data = self.runtime.on_every_rank(lambda: prepare_data(self.config))
        read_costs(self.config.evaluation.costs, self.data.schema.target)  # a mistake in them is told before training
        self.training = Training(
            self.config,
            self.data,
            self.runtime,
            record=self._record,
            check_owner=self._check_owner,
            tell=self._tell,
            model=self.runtime.broadcast(self.runtime.on_main(self._kept_model)),
        )
        print_schema(self.data.schema)
        for warning in (*self.data.info["warnings"], *warn_of_size(self.training)):
            logger.warning("warning: %s", warning)
        if self.data.schema.num_rows_without_target:
            logger.warning("warning: %d rows without a target were dropped", self.data.schema.num_rows_without_target)
        logger.info("rows: %s%s", _counts(self.data.info["rows"]), " (found packed)" if self.data.was_cached else "")
        try:
            self.is_finished = self.runtime.broadcast(self.runtime.on_main(self._claim_folder) or False)
        except BaseException:
            self.close()
            raise
        pulse.write_stacks_into(self.run_dir / "logs")
        self.seconds["prepare"] = time.monotonic() - started_s
        self._done = {"prepare"}
        return self.data

    def _require(self, stage: str) -> None:
        """A stage whose work is missing would judge random weights, or nothing."""
        if not self.is_finished and stage not in self._done:
            raise UserError(f"this stage needs what {stage}() leaves", fix=f"call {stage}() of this Engine first")

    def _goes_on(self) -> bool:
        """Is there a run in the folder that this start takes up again?"""
        if not holds_run(self.run_dir):
            return False
        launched = Launched.from_environment(self.run_dir)
        # what an earlier attempt of the same launch did is this run's own, also where it was to start over
        return self.config.checkpoint.resume == "auto" or (launched is not None and launched.goes_on)

    def _kept_model(self) -> ModelConfig | None:
        """The network of the run in the folder, which stays what it is on every device; None for a new run."""
        return read_model(self.run_dir, self.config.model) if self._goes_on() else None

    def _claim_folder(self) -> bool:
        """Open the run folder for this run, alone; True if the run in it is finished already."""
        config, run_dir = self.config, self.run_dir
        existed = run_dir.exists()
        holds_run(run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._own(run_dir)
            if self._goes_on():  # looked at again: another process may have started one
                return self._go_on()
            if holds_run(run_dir):
                self._clear()
            environment = describe_environment(
                num_processes=self.runtime.num_processes, device=str(self.runtime.device)
            )
            files = [*self.data.files(), ("environment.json", json.dumps(environment, indent=2).encode())]
            start_folder(run_dir, config, files=[*files, ("git.diff", git_diff().encode()), self._model_file()])
        except OSError:
            if not existed:
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        self._tell_start(0)
        return False

    def _model_file(self) -> tuple[str, bytes]:
        return MODEL_FILE, self.training.config.model.model_dump_json(indent=2).encode()

    def _clear(self) -> None:
        """Remove the run that is there, and keep what the launcher noted of this attempt."""
        assert self._fence is not None
        own = [event for event in read_events(self.run_dir) if event["attempt"] == self._fence.number]
        clear(self.run_dir)
        for event in own:
            append_event(self.run_dir, **event)

    def _tell_start(self, step: int) -> None:
        prepare_s = round(time.monotonic() - self._began_s, 3)
        self._tell("start", step=step, processes=self.runtime.num_processes, prepare_s=prepare_s)

    def _go_on(self) -> bool:
        """Take the run in the folder up again; True if it is finished already."""
        config, previous = self.config, read_config(self.run_dir)
        refuse_other_run(self.run_dir, previous, config, fingerprint=self.data.info["fingerprint"])
        parts = [
            (c.train.max_epochs, c.train.max_steps, c.train.max_time, c.evaluation, c.report)
            for c in (previous, config)
        ]
        if parts[0] == parts[1] and is_finished(self.run_dir, has_page=config.report.page):
            return True
        (self.run_dir / "report.html").unlink(missing_ok=True)  # page and pictures speak of the run as it was
        shutil.rmtree(self.run_dir / "plots", ignore_errors=True)
        step = newest_step(self.run_dir / "checkpoints")
        start_folder(self.run_dir, config, files=[self._model_file()], step=step)
        self._tell_start(step)
        return False

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

    def _tell(self, event: str, **values: Any) -> None:
        """Note an event in the run's timeline, on the main process; some change more than that."""
        if not self.runtime.is_main or self._fence is None:
            return
        self._check_owner()
        if event in ("train", "checkpoint"):
            write_status(self.run_dir, "running", step=values["step"])
        elif event == "stop":
            write_status(self.run_dir, "stopped", step=values["step"], reason=values["reason"])
        elif event == "restored":
            self._metrics_file.rewind(values["to"])
        append_event(self.run_dir, event, attempt=self._fence.number, **values)

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
                describe_model(self.training.config.model),
                f"{self.training.num_parameters:,}",
                self.runtime.device,
                f"from step {state.step}" if state.step else "from the start",
            )
            total_steps = self.training.total_steps
            self.bar = ProgressBar(total_steps=total_steps, first_step=state.step, is_main=self.runtime.is_main)
            try:
                is_done = self.training.run(
                    self.run_dir / "checkpoints", stop_requested=lambda: stop.requested, profile_into=self.run_dir
                )
            finally:
                self.bar.close()
        self.seconds["train"] = state.elapsed_s
        reason = stop.name or "stopped by another process of the run"
        with self._failure_noted():
            self.runtime.on_main(lambda: self._tell_end(is_done, reason))
        if not is_done:
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

    def _tell_end(self, is_done: bool, reason: str) -> None:
        state = self.training.state
        if is_done:
            self._tell("trained", step=state.step, elapsed_s=round(state.elapsed_s, 3), why=state.finished)
        else:
            self._tell("stop", step=state.step, reason=reason)

    def _open_records(self) -> None:
        if self.runtime.is_main:
            step = self.training.state.step
            self._check_owner()
            reached = self._metrics_file.rewind(step)
            self._tell("train", step=step, repeats=max(0, reached - step))
            self._tracker = open_tracker(
                self.runtime.accelerator,
                self.training.config,
                run_dir=self.run_dir,
                run_id=read_json(self.run_dir / "environment.json")["run_id"],
                metric=self.training.metric,
                read_records=self._metrics_file.read,
                check_owner=self._check_owner,
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
        network = build_network(self.training.config, self.data).to(self.runtime.device)
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

        Returns what metrics.json holds, and nothing of a split without rows; processes other than the main one get no
        baselines.
        """
        self._require("train")
        if self.is_finished:
            return read_json(self.run_dir / "metrics.json")
        started_s = time.monotonic()
        with self._failure_noted():
            pulse.mark("judge", self.training.state.step)
            self.training.load_best()
            judged: list[Split] = [split for split in JUDGED if self.data.num_rows(split)]
            places = self._sampled(judged)
            # every rank: collectives
            arrays: Predictions = {split: self._predict(split, places.get(split)) for split in judged}
            fitted = self.data.preprocessor
            logits, y = arrays["val"]
            decision = choose_decision(logits, y, fitted, self.config.evaluation)
            streamed = self._stream(places, decision)
            self.metrics: dict[str, Any] = {"task": fitted.target.task}
            self.metrics |= {split: {} for split in JUDGED}
            self.metrics |= {
                split: (streamed[split].metrics() if split in streamed else judge(*pair, fitted, decision))
                | self.training.own_values(*pair, decision)
                for split, pair in arrays.items()
            }
            if self.runtime.is_main:
                own: dict[Split, np.ndarray] = {}
                own |= {split: decision.predict(logits, fitted) for split, (logits, _) in arrays.items()}
                beside = judge_baselines(
                    self.data,
                    self.config,
                    metric=known_metric(self.training),
                    own=own,
                    places=places,
                    known=self.metrics,
                    decision=decision,
                    own_metrics=self.training.own_metrics,
                )
                if fitted.target.columns:
                    truth: Truths = {s: fitted.decode_target(y) for s, (_, y) in arrays.items() if s not in streamed}
                    self.metrics["targets"] = judge_targets(truth, own, fitted.target)
                    self.metrics["targets"] |= {split: seen.by_target() for split, seen in streamed.items()}
                self.seconds["evaluate"] = time.monotonic() - started_s
                self.metrics |= describe_training(self.training, decision, seconds=self.seconds)
                self.metrics |= beside | {"importance": judge_columns(self.training, decision)}
                self.metrics |= self._describe_streamed(streamed, places)
                self._explain(decision, arrays.get("test"), places.get("test"))
                self._write_results(arrays, decision)
                self._tell("evaluated", seconds=round(time.monotonic() - started_s, 3))
        self._done.add("evaluate")
        return self.metrics

    def _sampled(self, judged: list[Split]) -> Places:
        """Splits whose scores are too many to hold, with the places of the rows that stand for them."""
        most = self.config.evaluation.exact_rows
        sizes: dict[Split, int] = {split: self.data.num_rows(split) for split in judged}
        return {split: even_places(size, held_rows(size, most)) for split, size in sizes.items() if size > most}

    def _stream(self, places: Places, decision: Decision) -> "dict[Split, Accumulator]":
        """Judge and write the predictions of all rows of these splits; a collective."""
        if not places:
            return {}
        from nn_train.streamed_results import stream_split  # where a split is that large

        self.runtime.on_main(self._check_owner)
        return {
            split: stream_split(self.training, split, decision, self.run_dir / PREDICTION_FILES[split])
            for split in places
        }

    def _describe_streamed(self, streamed: "dict[Split, Accumulator]", places: Places) -> dict[str, Any]:
        if not streamed:
            return {}
        from nn_train.streamed_results import describe_streamed

        config, task = self.config.evaluation, self.data.schema.target.task
        fitted = ["calibration"] if task != "regression" and config.calibration != "no" else []
        fitted += ["threshold"] if task == "binary" and config.threshold_by != "no" else []
        own = list(self.training.own_metrics)
        return describe_streamed(streamed, places, exact_rows=config.exact_rows, fitted=fitted, measured=own)

    def _predict(self, split: Split, places: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Logits (R, D) and targets (R,) of a split, or of its rows at `places`; a collective."""
        rows = self.data.rows(split, device=self.runtime.device, placement=self.config.data.placement)
        rows = rows if places is None else rows_at(rows, places)
        return self.training.logits(rows).cpu().numpy(), rows.y.cpu().numpy()

    def _explain(
        self, decision: Decision, test: tuple[np.ndarray, np.ndarray] | None, places: np.ndarray | None
    ) -> None:
        # rank 0 only: writes a file
        from nn_train.explanation import explain  # pandas: not before the first step

        explanation = explain(self.training, decision, self.metrics["importance"], test, places)
        self._check_owner()
        write_json(self.run_dir / "explain.json", explanation)

    def _write_results(self, arrays: Predictions, decision: Decision) -> None:
        # rank 0 only: writes files
        self._check_owner()
        fitted = self.data.preprocessor
        weights = save(self.training.best)
        write_file(self.run_dir / "model.safetensors", weights)
        run_id = read_json(self.run_dir / "environment.json")["run_id"]
        info = describe_bundle(self.training, self.metrics, run_id=run_id)
        bundle = make_bundle(
            weights=weights, preprocessor=fitted, schema=self.data.schema, decision=decision, info=info
        )
        write_file(self.run_dir / BUNDLE_FILE, bundle)
        for split, (logits, _) in arrays.items():
            if self.data.num_rows(split) > len(logits):  # written row by row, when they were judged
                continue
            frame = prediction_frame(logits, self.data.truth(split), fitted, decision)
            write_predictions(self.run_dir / PREDICTION_FILES[split], frame)
        write_json(self.run_dir / "metrics.json", self.metrics)
        state = self.training.state
        self._write_status("done", reason=state.finished, step=state.step)

    def report(self) -> Path:
        """Draw the plots and the page from the run folder alone, if report.page asks for it; the path of the page."""
        self._require("evaluate")
        page = self.run_dir / "report.html"
        if self.runtime.is_main and not self.is_finished:
            with self._failure_noted():
                started_s = time.monotonic()
                pulse.mark("report", self.training.state.step)
                self._check_owner()
                if self.config.report.page:
                    from nn_train.report import write_report  # matplotlib and pandas: not before the first step

                    write_report(self.run_dir, dpi=self.config.report.dpi)
                self._tracker.log_report(_flat_metrics(self.metrics), self._collect_media)
                self._tell("reported", seconds=round(time.monotonic() - started_s, 3))
        if self.runtime.is_main:
            print_metrics(read_json(self.run_dir / "metrics.json"))
            logger.info("%s", describe(summarise(read_events(self.run_dir))))
            logger.info("run folder: %s", self.run_dir)
            if self.config.report.page:
                logger.info("report:     %s", page)
        self.close()
        return page

    def _collect_media(self) -> Media:
        from nn_train.report_media import collect_media  # for a tracker alone

        pulse.beat()
        return collect_media(self.run_dir, num_rows=self.config.tracking.num_rows)

    def close(self) -> None:
        """Let go of the run folder and the tracker, where `report` was not the last stage that was called."""
        if "prepare" in self._done:
            pulse.mark("end", pulse.step)
            self.training.close()
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
            pulse.mark("end", pulse.step)
            self.training.close()
            if self.runtime.is_main:
                with suppress(OSError, Fenced):
                    # the step that a checkpoint holds: what came after it is lost
                    step = newest_step(self.run_dir / "checkpoints")
                    self._tell("failed", step=step, why=reason)
                    self._write_status("failed", reason=reason, step=step)
            self.close()
            raise


def _counts(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {split}" for split, count in rows.items())


def _flat_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    return {f"{split}/{name}": value for split in JUDGED for name, value in metrics[split].items()}
