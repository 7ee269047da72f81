"""What is to be run: the project's own training or any script, with its words and its run folder, checked."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from nn_train.config import project_root
from nn_train.errors import UserError
from nn_train.settings import Config
from nn_train.train import parse_arguments, resolve_config

TRAIN = project_root() / "nn_train" / "train.py"
TASK_MARK = "%a"  # stands for the index of an array's task, as in sbatch's own file names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A script, its words, and the run folder that they write into; `config` where it is the project's own."""

    script: Path
    words: tuple[str, ...]
    run_dir: Path
    config: Config | None = None


def resolve_target(
    words: Sequence[str], *, script: str | None = None, run_dir: str | None = None, task: str | None = None
) -> Target:
    """Check what would run, as far as that can be done without starting it.

    `task` is the index of an array's task: it takes the place of `%a` in every word, and where no word
    holds that mark it is appended to the run folder's name, so that no two tasks share one.

    Raises:
        UserError: a script that is not there, a setting that does not exist, a run folder that is a file.
    """
    has_mark = any(TASK_MARK in word for word in (*words, run_dir or ""))
    if task is not None:
        words = [word.replace(TASK_MARK, task) for word in words]
        run_dir = run_dir.replace(TASK_MARK, task) if run_dir else None
    suffix = f"-{task}" if task is not None and not has_mark else ""
    target = _own(words, run_dir, suffix) if script is None else _foreign(words, script, run_dir, suffix)
    check_folder(target.run_dir)
    return target


def _own(words: Sequence[str], run_dir: str | None, suffix: str) -> Target:
    options = parse_arguments([*words, *([f"run.dir={run_dir}"] if run_dir else [])])
    if options.help or options.print_config or options.write_schema:
        raise UserError("this only prints something", fix="python nn_train/train.py --help, without a launcher")
    config = resolve_config(options)
    folder = Path(f"{config.run_dir}{suffix}")
    place = f"run.dir={folder}"
    return Target(
        script=TRAIN, words=(*(word for word in words if word != place), place), run_dir=folder, config=config
    )


def _foreign(words: Sequence[str], script: str, run_dir: str | None, suffix: str) -> Target:
    file = Path(script).expanduser().absolute()
    if not file.is_file():
        raise UserError("there is no such script", where=str(file), fix="--script FILE")
    folder = Path(f"{Path(run_dir or f'runs/{file.stem}').expanduser().absolute()}{suffix}")
    return Target(script=file, words=tuple(words), run_dir=folder)


def check_folder(run_dir: Path) -> None:
    """Refuse a run folder that could not be written, without making it.

    Raises:
        UserError: it, or the nearest folder above it that exists, is a file or may not be written.
    """
    nearest = run_dir
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError("the run folder cannot be made: this is a file", where=str(nearest), fix="run.dir=FOLDER")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError("the run folder cannot be written", where=str(nearest), fix="run.dir=FOLDER that you own")
