"""A run for somebody else's Python process: inside it, and gone without a trace; or in several processes of its own."""

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from nn_train.config import dump_config, project_root
from nn_train.ending import STOPPED, USER_ERROR
from nn_train.engine import Engine
from nn_train.errors import Stopped, UserError
from nn_train.preparation import prepare_data
from nn_train.run_folder import read_json, write_file
from nn_train.settings import Config

logger = logging.getLogger("nn_train")
TURN = threading.Lock()  # seeds, threads and Accelerate's state are the whole process's: one run at a time
SHARED: tuple[dict[str, Any], ...] = (
    PartialState._shared_state,
    AcceleratorState._shared_state,
    GradientState._shared_state,
)
SHOWN_LINES = 40
PATIENCE_S = 60.0  # for an orderly end of the launcher, once it was asked for


def fit_here(config: Config, *, verbose: bool) -> None:
    """Run all stages in this process, which then is as it was before.

    Raises:
        UserError: what the user can mend.
        KeyboardInterrupt: on Ctrl-C.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "this process is one of several that were started together", fix="call fit in one, with processes=N"
        )
    with TURN, _as_it_was(verbose=verbose):
        _run(config)
        if torch.cuda.is_available():
            gc.collect()  # the parts of a run hold each other, and the device's memory


def _run(config: Config) -> None:
    engine = Engine(config)
    try:
        engine.run()
    except Stopped:
        _pass_signal_on(config)
    finally:
        engine.close()


def _pass_signal_on(config: Config) -> NoReturn:
    """Give the signal that ended a training to whom it was meant for, now that the training no longer hears it."""
    reason = read_json(config.run_dir / "status.json")["reason"]
    if reason in signal.Signals.__members__:
        signal.raise_signal(signal.Signals[reason])
    raise KeyboardInterrupt


@contextmanager
def _as_it_was(*, verbose: bool) -> Iterator[None]:
    """Put back what a run changes for the whole process: seeds, threads, environment, logging, Accelerate's state."""
    shared = [dict(state) for state in SHARED]
    environment, num_threads = dict(os.environ), torch.get_num_threads()
    seeds = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with ExitStack() as stack:
        stack.enter_context(_log(verbose=verbose))
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.enable_grad())
        try:
            yield
        finally:
            random.setstate(seeds[0])
            np.random.set_state(seeds[1])
            torch.set_num_threads(num_threads)
            for name in os.environ.keys() | environment.keys():
                if name not in environment:
                    del os.environ[name]
                elif os.environ.get(name) != environment[name]:
                    os.environ[name] = environment[name]
            for state, values in zip(SHARED, shared, strict=True):
                state.clear()
                state.update(values)


@contextmanager
def _log(*, verbose: bool) -> Iterator[None]:
    """What a run says: as in a run of its own, or nothing."""
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    if not verbose:
        logger.addHandler(logging.NullHandler())  # one that is there keeps the run from setting up its own
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


def fit_apart(config: Config, *, processes: int, folder: Path, verbose: bool) -> None:
    """Run all stages in processes that the launcher starts on this machine; `folder` holds what it needs for that.

    The rows are packed here, so that mistakes in them are this process's own errors.

    Raises:
        UserError: what the user can mend.
        RuntimeError: the processes were stopped, or failed.
        KeyboardInterrupt: on Ctrl-C; the processes have ended by then.
    """
    with TURN, _log(verbose=verbose):
        prepare_data(config)
    file = folder / "config.yaml"
    write_file(file, dump_config(config))
    words = ["run", "--processes", str(processes), "--", "--config", str(file)]
    child = subprocess.Popen(
        [sys.executable, "-m", "launch", *words],
        cwd=project_root(),  # where no other module of that name comes first
        env=os.environ | {"TMPDIR": str(folder)},  # torch leaves files there
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        said = _follow(child, verbose=verbose)
    finally:
        _end(child)
    if child.returncode == USER_ERROR:
        raise UserError(_reason(said))
    if child.returncode == STOPPED:
        raise RuntimeError("the processes were asked to stop, and saved their state")
    if child.returncode:
        raise RuntimeError("\n".join([f"the processes failed (exit code {child.returncode}):", *said]))


def _follow(child: subprocess.Popen[str], *, verbose: bool) -> list[str]:
    """Read what a child says to its end, and hand back the last lines."""
    assert child.stdout is not None
    lines: deque[str] = deque(maxlen=SHOWN_LINES)
    for line in child.stdout:
        lines.append(line.rstrip())
        if verbose:
            print(line, end="", flush=True)  # noqa: T201 - it was asked for, and a notebook shows no other output
    child.wait()
    return list(lines)


def _end(child: subprocess.Popen[str]) -> None:
    """Have a child that still runs end its processes, and itself."""
    if child.poll() is None:
        child.terminate()
        try:
            child.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()  # what it started dies with it
            child.communicate()
    if child.stdout is not None:
        child.stdout.close()


def _reason(said: list[str]) -> str:
    """The error that a process showed, from the launcher's words about it."""
    lines = [line.removeprefix("  | ") for line in said]
    starts = [index for index, line in enumerate(lines) if line.startswith("error: ")]
    if not starts:
        return "\n".join(lines)
    error = lines[starts[-1] :]
    end = next((index for index, line in enumerate(error) if line.startswith("attempt ")), len(error))
    return "\n".join(error[:end]).removeprefix("error: ")
