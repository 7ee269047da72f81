"""The learning-rate range test: the loss while the learning rate rises from far too small to far too large.

It is a training of its own that leaves no checkpoint; the suggestion is where the loss falls fastest.
Source: Smith 2015.
"""

import dataclasses
import io
import logging
import math
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from nn_train.errors import ConfigError, TrainingError
from nn_train.optim import build_optimizer
from nn_train.plots import BLUE, MUTED, ORANGE, PAPER, Plot, add_legend, build_figure
from nn_train.preparation import prepare_data
from nn_train.run_folder import LR_FILES, holds_run, write_file
from nn_train.runtime import set_up_logging, start_runtime
from nn_train.settings import Config
from nn_train.training import Training

logger = logging.getLogger("nn_train")
SMOOTHING = 0.95  # of the loss from step to step
WORSE = 4.0  # the test ends where the smoothed loss is this many times its least
LEAST_STEPS = 10
DPI = 150


@dataclasses.dataclass(frozen=True, kw_only=True)
class RangeTest:
    """Learning rate and loss of each step (S,); `suggestion` is NaN where the loss never fell."""

    lr: np.ndarray
    loss: np.ndarray

    @property
    def smooth(self) -> np.ndarray:
        """The running mean of the loss (S,), without the pull of its first value."""
        return smooth(self.loss)

    @property
    def suggestion(self) -> float:
        """The rate at which the smoothed loss falls fastest, before it is least."""
        curve = self.smooth
        end = int(np.argmin(curve)) + 1
        if end < LEAST_STEPS or curve[end - 1] >= curve[0]:
            return math.nan
        slope = np.gradient(curve, np.log(self.lr))
        return float(self.lr[int(np.argmin(slope[:end]))])


def smooth(values: np.ndarray) -> np.ndarray:
    """The running mean of values (S,), bias-corrected as Adam's moments are."""
    means, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * float(value)
        means.append(mean / (1 - SMOOTHING**count))
    return np.array(means)


def find_lr(config: Config, *, low: float, high: float, num_steps: int, output: Path | None) -> Path:
    """Run the test and write its picture and table into `output`, or into the run folder beside the run.

    Returns the picture's path.

    Raises:
        ConfigError: it was started on several processes.
        TrainingError: the very first losses are not finite.
    """
    set_up_logging()
    if output is None:
        holds_run(config.run_dir)  # raises where the folder is somebody else's
    folder = output or config.run_dir
    runtime = start_runtime(config.train)
    if runtime.num_processes > 1:
        raise ConfigError("the learning rate is looked for on one process", fix="python -m nn_train.find_lr ...")
    training = Training(config, prepare_data(config), runtime)
    found = run_range_test(training, low=low, high=high, num_steps=num_steps)
    folder.mkdir(parents=True, exist_ok=True)
    picture, table = (folder / name for name in LR_FILES)
    write_file(picture, draw(found))
    rows = pd.DataFrame({"lr": found.lr, "loss": found.loss, "smooth_loss": found.smooth})
    write_file(table, rows.to_csv(index=False))
    if math.isnan(found.suggestion):
        logger.info("the loss never fell: no suggestion; look at the picture, and at --low and --high")
    else:
        logger.info("suggestion: optim.peak_lr=%.2g", found.suggestion)
    return picture


def run_range_test(training: Training, *, low: float, high: float, num_steps: int) -> RangeTest:
    """Train from the first weights on, one step for each rate; ends early where the loss explodes."""
    config, runtime = training.config, training.runtime
    optimizer = build_optimizer(training.network, config.optim, device=runtime.device)
    model, optimizer = runtime.wrap(training.network, optimizer)
    gradients = training.gradients(model)
    model.train()
    rates, losses = np.geomspace(low, high, num_steps), []
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        optimizer.zero_grad(set_to_none=True)
        loss = float(gradients.compute(step))
        if not math.isfinite(loss):
            break
        losses.append(loss)
        curve = smooth(np.array(losses))
        if len(losses) >= LEAST_STEPS and curve[-1] > WORSE * curve.min():
            break
        _clip(model, config)
        optimizer.step()
    if len(losses) < LEAST_STEPS:
        raise TrainingError(
            f"the loss is not finite after {len(losses)} steps at learning rates up to {rates[len(losses)]:.2g}",
            fix="a smaller --low, or look for extreme values in the table",
        )
    return RangeTest(lr=rates[: len(losses)], loss=np.array(losses))


def _clip(model: nn.Module, config: Config) -> None:
    if config.train.grad_clip is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip)


def plot_range(found: RangeTest) -> Plot:
    """The loss against the learning rate, the suggestion marked."""
    has_one = not math.isnan(found.suggestion)
    title = f"Loss falls fastest at a learning rate of {found.suggestion:.2g}" if has_one else "The loss never fell"
    figure, [axes] = build_figure(title)
    axes.plot(found.lr, found.loss, color=MUTED, linewidth=0.8, alpha=0.6, label="loss of a step")
    axes.plot(found.lr, found.smooth, color=BLUE, linewidth=2, label="smoothed")
    if has_one:
        axes.axvline(found.suggestion, color=ORANGE, linestyle="--", label=f"suggestion {found.suggestion:.2g}")
    axes.set_xscale("log")
    low, high = float(found.smooth.min()), float(found.smooth[: len(found.lr) // 2 + 1].max())
    axes.set_ylim(low - 0.1 * (high - low or 1), high + 0.5 * (high - low or 1))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("train loss")
    add_legend(axes, loc="best")
    return Plot(figure=figure, title=title, numbers=f"{len(found.lr)} steps")


def draw(found: RangeTest) -> bytes:
    """The picture as PNG."""
    stream = io.BytesIO()
    plot_range(found).figure.savefig(stream, format="png", dpi=DPI, facecolor=PAPER)
    return stream.getvalue()
