"""Where numbers go: metrics.jsonl always, and wandb through Accelerate's trackers.

Only the main process writes. A tracker that fails is one warning and is left alone afterwards:
it can never stop a training.
"""

import json
import logging
import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nn_train.run_folder import write_file, write_json
from nn_train.settings import Config

logger = logging.getLogger("nn_train")
# How long, and how often, wandb's server is waited for; what it did not get stays on disk for `wandb sync`.
STEP_FILE = "tracked.json"  # the last step that wandb had when it was last ended in order
START_S, FINISH_S, REQUEST_S, RETRIES, RETRY_S = 30, 60, 10, 3, 4


class MetricsFile:
    """metrics.jsonl: one line per logged step or evaluation, each step once, also after a resume."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step` (they will be computed again) and a torn last line.

        The file is then a new one that stays open: an older attempt that is still alive has the file
        before it in its hands, and cannot write into this one.
        """
        self.close()
        write_file(self.path, "".join(f"{line}\n" for line in self._lines_until(step)))
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._close = weakref.finalize(self, os.close, self._file)

    def _lines_until(self, step: int) -> list[str]:
        if not self.path.exists():
            return []
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        return kept

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; a number that is not finite becomes null."""
        assert self._file is not None, "rewind opens the file"
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        os.write(self._file, f"{json.dumps(finite)}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        """The lines that are there, as `write` took them."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._close()
            self._file = None


class NullTracker:
    """Tracks nothing."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def log_report(self, run_dir: Path, summary: dict[str, float]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WandbTracker:
    """One wandb run per training run, offline or online, under one id through every resume."""

    def __init__(self, accelerator: Accelerator, config: Config, *, run_dir: Path, run_id: str):
        os.environ.setdefault("WANDB_SILENT", "true")
        self.accelerator = accelerator
        self.is_broken = False
        self.step_file = run_dir / STEP_FILE
        self.last_step = 0
        options = {
            "id": run_id,
            "name": config.name,
            "dir": str(run_dir),
            "mode": config.tracking.mode,
            "resume": "allow" if config.tracking.mode == "online" else None,
        }
        self._try(
            lambda: accelerator.init_trackers(
                config.tracking.project,
                config=config.model_dump(mode="json"),
                init_kwargs={"wandb": options | {"settings": self._settings()}},
            )
        )

    @staticmethod
    def _settings() -> Any:
        import wandb

        bounds = {
            "finish_timeout": FINISH_S,  # begins when the requests below have come to their ends
            "finish_timeout_raises": True,
            "x_graphql_timeout_seconds": REQUEST_S,
            "x_graphql_retry_max": RETRIES,
            "x_graphql_retry_wait_max_seconds": RETRY_S,
        }
        known = {name: value for name, value in bounds.items() if name in wandb.Settings.model_fields}
        # a run that is still active failed before in the same Python process: never log into that one
        return wandb.Settings(console="off", silent=True, init_timeout=START_S, reinit="finish_previous", **known)

    def log(self, record: dict[str, Any]) -> None:
        """Log one line of metrics.jsonl under its split's name."""
        split = record["split"]
        values = {f"{split}/{k}": v for k, v in record.items() if k not in ("step", "split", "epoch")}
        self._try(lambda: self.accelerator.log(values | {"epoch": record["epoch"]}, step=record["step"]))
        self.last_step = record["step"]

    def catch_up(self, records: list[dict[str, Any]]) -> None:
        """Log again what came after the last orderly end: wandb may have lost it with a process that was killed.

        wandb keeps the first value of a step, so that one which did arrive is not there twice.
        """
        if not records:
            return
        safe_step = json.loads(self.step_file.read_text())["step"] if self.step_file.exists() else 0
        for record in records:
            if record["step"] > safe_step:
                self.log(record)
        self.last_step = max(self.last_step, records[-1]["step"])

    def log_report(self, run_dir: Path, summary: dict[str, float]) -> None:
        """Send the plots, the final metrics, and the model as an artifact."""

        def send() -> None:
            import wandb

            run = self.accelerator.get_tracker("wandb", unwrap=True)
            # under a name of their own: wandb puts the last value of what was logged while training over its like
            run.summary.update({f"final/{name}": value for name, value in summary.items()})
            plots = sorted((run_dir / "plots").glob("*.png"))
            run.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in plots})
            artifact = wandb.Artifact(f"model-{run.id}", type="model")
            for name in (
                "model.safetensors",
                "preprocessor.json",
                "preprocessor.safetensors",
                "config.yaml",
                "schema.json",
            ):
                artifact.add_file(str(run_dir / name))
            run.log_artifact(artifact)

        self._try(send)

    def close(self) -> None:
        """Finish the wandb run."""

        def finish() -> None:
            for tracker in self.accelerator.trackers:
                tracker.finish()
            if not self.is_broken:
                write_json(self.step_file, {"step": self.last_step})

        self._try(finish, always=True)

    def _try(self, work: Callable[[], Any], *, always: bool = False) -> None:
        if self.is_broken and not always:
            return
        try:
            work()
        except Exception as error:
            if not self.is_broken:
                logger.warning(
                    "tracking: wandb failed and is left alone from here (%s: %s)", type(error).__name__, error
                )
            self.is_broken = True


def open_tracker(
    accelerator: Accelerator, config: Config, *, run_dir: Path, run_id: str, records: list[dict[str, Any]]
) -> NullTracker | WandbTracker:
    """The tracker that tracking.mode asks for; nothing on processes other than the main one.

    `records` are the lines of metrics.jsonl that a run which goes on has already.
    """
    if config.tracking.mode == "disabled" or not accelerator.is_main_process:
        return NullTracker()
    tracker = WandbTracker(accelerator, config, run_dir=run_dir, run_id=run_id)
    tracker.catch_up(records)
    return tracker
