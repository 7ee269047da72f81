"""The run folder: everything that a run is. Files in it appear whole or not at all."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from nn_train.attempts import Fence, Launched, claim, refuse_newer
from nn_train.config import check_config, dump_config, load_config
from nn_train.errors import ConfigError, RunFolderError
from nn_train.network_choice import is_resolution
from nn_train.settings import Config, ModelConfig, changed_keys
from nn_train.timeline import EVENTS_FILE

MODEL_FILE = (
    "model.json"  # the network's settings as the first start resolved them: a later one may be on another device
)
PROFILE_FILE, TRACE_FOLDER = "profile.json", "profile"  # of train.profile
# What a start writes before config.yaml: where it was killed in between, these are all there is.
START_FILES = (
    "schema.json",
    "data.json",
    "splits.npz",
    "preprocessor.json",
    "preprocessor.safetensors",
    "environment.json",
    "git.diff",
    MODEL_FILE,
)
# All that a run writes; `checkpoint.resume=never` removes these and nothing else.
OUTPUTS = (
    "checkpoints",
    "plots",
    "wandb",
    PROFILE_FILE,
    TRACE_FOLDER,
    "status.json",
    "tracked.json",
    EVENTS_FILE,
    "metrics.json",
    "metrics.jsonl",
    "explain.json",
    "predictions.parquet",
    "predictions_val.parquet",
    "report.html",
    "model.safetensors",
    "bundle.zip",
    *START_FILES,
    "config.yaml",  # the last one: without it the folder is no run's
)
LR_FILES = ("find_lr.png", "find_lr.csv")  # of python -m nn_train.find_lr, before any run or beside one
ENSEMBLE_FILE = "ensemble.json"  # in the folder that holds the runs of python -m nn_train.ensemble
LOCK_FILE = ".lock"
# What the launcher keeps beside the run; it may be there before the run is.
LAUNCH_FILES = ("attempts", "launch", "logs", EVENTS_FILE)


def write_file(path: Path, content: bytes | str, *, midway: Callable[[], object] = lambda: None) -> None:
    """Write a file whole: temporary name in the same folder, fsync, rename; `midway` is called when half is written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            data = memoryview(content.encode() if isinstance(content, str) else content)
            file.write(data[: len(data) // 2])
            file.flush()
            midway()
            file.write(data[len(data) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say by itself which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, values: Any) -> None:
    """Write plain values as JSON, whole; a number that is not finite becomes null."""
    write_file(path, json.dumps(_finite(values), indent=2, ensure_ascii=False) + "\n")


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises RunFolderError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(
            f"this file of the run cannot be read: {error}", where=str(path), fix="run.dir=NEW"
        ) from None


def write_status(run_dir: Path, state: str, *, reason: str = "", step: int = 0) -> None:
    """Say where the run stands: running, done, stopped or failed; `step` counts the steps that are safe."""
    write_json(run_dir / "status.json", {"state": state, "reason": reason, "step": step})


def is_finished(run_dir: Path, *, has_page: bool) -> bool:
    """Has the run in this folder come to its end, the page included where it has one?"""
    pages = ("report.html",) if has_page else ()
    present = all((run_dir / name).exists() for name in ("status.json", "metrics.json", *pages))
    return present and read_json(run_dir / "status.json")["state"] == "done"


@contextmanager
def own(run_dir: Path) -> Iterator[Fence]:
    """Hold the run folder for one training at a time; hands out the fence of this attempt.

    A process that no launcher started locks the folder, which the system lets go of when the process
    ends, and claims the next attempt. Under the launcher the attempt is claimed already: its number
    decides alone, since an older attempt behind a broken network may hold the lock for as long as it likes.

    Raises:
        RunFolderError: another process trains in this folder.
        Fenced: a newer attempt owns it.
    """
    launched = Launched.from_environment(run_dir)
    lock = FileLock(run_dir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if launched is None:
            raise RunFolderError(
                "another process trains in this run folder", where=str(run_dir), fix="wait for it, or set run.dir=OTHER"
            ) from None
    try:
        yield refuse_newer(run_dir, launched.number) if launched else Fence(run_dir, claim(run_dir).number)
    finally:
        lock.release()


def holds_run(run_dir: Path) -> bool:
    """Does a run live in the folder? False if there is nothing in it, or the rest of a start that was killed.

    Raises:
        RunFolderError: the folder holds something that is not a run.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise RunFolderError("the run folder is a file", where=str(run_dir), fix="run.dir=FOLDER")
    names = {path.name for path in run_dir.iterdir()} if run_dir.exists() else set()
    known = (*START_FILES, *LAUNCH_FILES, *LR_FILES, LOCK_FILE)
    if all(name in known or fnmatch(name, ".*.tmp") for name in names):
        return False
    if "config.yaml" not in names:
        raise RunFolderError(
            "the folder is not empty and holds no run", where=str(run_dir), fix="run.dir=NEW, or empty the folder"
        )
    return True


def read_config(run_dir: Path) -> Config:
    """The config of the run that lives in the folder.

    Raises:
        RunFolderError: the config is damaged, or of another version of this program.
    """
    try:
        return load_config(run_dir / "config.yaml")
    except ConfigError as error:
        raise RunFolderError(
            f"the run in this folder has a config that this version cannot read: {error.what}",
            where=str(run_dir),
            fix="run.dir=NEW, or checkpoint.resume=never to replace that run",
        ) from None


def read_model(run_dir: Path, asked: ModelConfig) -> ModelConfig | None:
    """The network that the run in the folder has, if there is one that `asked` could have become.

    Raises:
        RunFolderError: the folder's word on it is damaged.
    """
    file = run_dir / MODEL_FILE
    if not file.exists():
        return None
    try:
        found = ModelConfig.model_validate(read_json(file))
    except ValidationError:
        raise RunFolderError(
            "this file of the run holds no network's settings",
            where=str(file),
            fix="run.dir=NEW, or checkpoint.resume=never to replace that run",
        ) from None
    return found if is_resolution(found, asked) else None


def refuse_other_run(run_dir: Path, previous: Config, config: Config, *, fingerprint: str) -> None:
    """Refuse to go on with a run whose settings or data make its checkpoints meaningless.

    Raises:
        RunFolderError: with every key that differs, old -> new.
    """
    changed = changed_keys(portable(previous), portable(config))
    data_file = run_dir / "data.json"
    if not changed and data_file.exists() and read_json(data_file)["fingerprint"] != fingerprint:
        changed = [f"the content of {config.data.path}"]
    if changed:
        lines = "\n    ".join(changed)
        raise RunFolderError(
            f"this folder holds a run with other settings:\n    {lines}",
            where=str(run_dir),
            fix="run.name=NEW or run.dir=NEW for another run; checkpoint.resume=never to replace this one",
        )


def portable(config: Config) -> Config:
    """The config without the folders of its tables, whose content the fingerprint tells, and without data.placement."""
    values = config.model_dump(mode="json")
    values["data"] |= {"placement": "auto", "workers": "auto"}
    for section, key in (("data", "path"), ("split", "val_path"), ("split", "test_path")):
        if values[section][key]:
            values[section][key] = Path(values[section][key]).name
    return check_config(values, where="")


def clear(run_dir: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in OUTPUTS:
        for path in (run_dir / name, *run_dir.glob(f".{name}.*.tmp")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def start_folder(run_dir: Path, config: Config, *, files: Iterable[tuple[str, bytes]], step: int = 0) -> None:
    """Write what a run starts from; if that fails, nothing of a new run is left, and all of an old one.

    `step` is how far a run that goes on has come.

    Raises:
        OSError: the folder cannot be made or written.
    """
    existed, is_new = run_dir.exists(), not (run_dir / "config.yaml").exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name, content in files:
            write_file(run_dir / name, content)
        write_file(run_dir / "config.yaml", dump_config(config))
        write_status(run_dir, "running", step=step)
    except OSError:
        if is_new and existed:
            clear(run_dir)
        elif is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise
