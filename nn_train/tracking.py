"""Where numbers go: metrics.jsonl always, and wandb through Accelerate's trackers.

Only the main process writes. A tracker that fails is one warning and is left alone afterwards:
it can never stop a training.
"""

import json
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nn_train.run_folder import write_file
from nn_train.settings import Config

logger = logging.getLogger("nn_train")
# How long, and how often, wandb's server is waited for; what it did not get stays on disk for `wandb sync`.
START_S, FINISH_S, REQUEST_S, RETRIES, RETRY_S = 30, 60, 10, 3, 4


class MetricsFile:
    """metrics.jsonl: one line per logged step or evaluation, each step once, also after a resume."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the lines beyond `step` (they will be computed again) and a torn last line."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        write_file(self.path, "".join(f"{line}\n" for line in kept))

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; a number that is not finite becomes null."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")


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


def open_tracker(accelerator: Accelerator, config: Config, *, run_dir: Path, run_id: str) -> NullTracker | WandbTracker:
    """The tracker that tracking.mode asks for; nothing on processes other than the main one."""
    if config.tracking.mode == "disabled" or not accelerator.is_main_process:
        return NullTracker()
    return WandbTracker(accelerator, config, run_dir=run_dir, run_id=run_id)
