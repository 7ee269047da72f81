"""One training whose wandb meets a mishap on the way; started by the tests.

usage: run_tracked.py MISHAP words..., where MISHAP is the name of a signal, which wandb's processes get at the third
step, or the path of a folder that takes the place of the run's wandb folder.
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from nn_train import tracking
from nn_train.engine import Engine
from nn_train.train import leave, main

MISHAP = sys.argv[1]
train, log = Engine.train, tracking.WandbTracker.log


def send(number: signal.Signals) -> None:
    """Signal wandb's processes, which start in their own time."""
    deadline = time.monotonic() + 60
    while not (processes := [p for p in psutil.Process().children(recursive=True) if "wandb" in p.name()]):
        assert time.monotonic() < deadline, "wandb has no process"
        time.sleep(0.01)
    for process in processes:
        process.send_signal(number)


def log_and_send(self: tracking.WandbTracker, record: dict[str, Any]) -> None:
    """Log a line; with that of the third step comes the signal, once: the step is judged as well."""
    if record["step"] == 3 and record["split"] == "train":
        send(signal.Signals[MISHAP])
    log(self, record)


def train_elsewhere(self: Engine) -> None:
    """Train with another wandb folder."""
    (self.run_dir / "wandb").symlink_to(MISHAP)
    train(self)


if __name__ == "__main__":
    tracking.FINISH_S = 3
    if Path(MISHAP).is_absolute():
        Engine.train = train_elsewhere  # type: ignore[method-assign]
    else:
        tracking.WandbTracker.log = log_and_send  # type: ignore[method-assign]
    leave(main(sys.argv[2:]))
