"""The folder of a finished run, read for a comparison: it may be anybody's, so that every value is looked at.

A folder that is not what it should be is a RunFolderError that names the file and the value.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from nn_train.comparison import JudgedRun
from nn_train.config import load_config
from nn_train.errors import ConfigError, RunFolderError, short
from nn_train.metrics import selection_metric
from nn_train.resampling import Rows, compute_metrics_once
from nn_train.run_folder import portable
from nn_train.schema import TargetSpec, Task
from nn_train.settings import Config, flatten
from nn_train.timeline import is_number

NEEDED = ("metrics.json", "config.yaml", "predictions.parquet")
OTHER_RUN = "name the folder of a finished run: it holds metrics.json, config.yaml and predictions.parquet"
AGAIN = "name another run, or train this one again with checkpoint.resume=never"
CLOSE = 1e-6  # relative: metrics.json holds the values that the predictions give, to rounding


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


Model = TypeVar("Model", bound=_Strict)
Count = Annotated[int, Field(ge=0, lt=2**53)]


class _Selection(_Strict):
    metric: str
    value: FiniteFloat | None = None
    step: Count


class _Seconds(_Strict):
    train: FiniteFloat | None = None


class _Streamed(_Strict):
    rows: dict[str, Count] = {}
    approximate: list[str] = []


class Metrics(_Strict):
    """What a comparison reads of metrics.json."""

    task: Task
    test: dict[str, FiniteFloat | None]
    selection: _Selection | None = None
    seconds: _Seconds = _Seconds()
    model: str = ""
    num_parameters: Count | None = None
    processes: Count | None = None
    streamed: _Streamed | None = None

    @property
    def not_exact(self) -> list[str]:
        """The test metrics that come from histograms."""
        return self.streamed.approximate if self.streamed is not None and "test" in self.streamed.rows else []


class _Data(_Strict):
    fingerprint: str = ""


class _Status(_Strict):
    state: str
    step: Count = 0


class _Environment(_Strict):
    device: str = ""
    commit: str = ""
    dirty: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A number of the validation rows over a training: steps, seconds since the start and values, (E,) each."""

    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FinishedRun:
    """A run to be compared; `curves` are by name, `loss` and the metric that chose the weights."""

    folder: str
    config: Config
    settings: dict[str, Any]
    metrics: Metrics
    judged: JudgedRun
    curves: dict[str, Curve]
    selection: str
    num_steps: int | None
    device: str
    commit: str

    @property
    def name(self) -> str:
        """The run's name in this comparison."""
        return self.judged.name


def read_finished_run(folder: str, name: str) -> FinishedRun:
    """Read a run folder.

    Raises:
        RunFolderError: it is no run, or an unfinished one, or a file of it is damaged.
    """
    run_dir = Path(folder).expanduser()
    status = _read_status(run_dir)
    metrics = _read(run_dir / "metrics.json", Metrics)
    config, selection = _read_config(run_dir / "config.yaml", metrics.task)
    if config.data.task not in ("auto", metrics.task):
        raise RunFolderError(
            f"the task is {metrics.task}, and config.yaml says {config.data.task}",
            where=str(run_dir / "metrics.json"),
            fix=AGAIN,
        )
    numbers, rows, classes = read_predictions(
        run_dir / "predictions.parquet",
        TargetSpec(
            name=config.data.target_name,
            task=metrics.task,
            columns=config.data.targets if config.data.is_several else (),
        ),
    )
    _refuse_other_predictions(run_dir, rows, metrics)
    data = _read(run_dir / "data.json", _Data, default=_Data())
    environment = _read(run_dir / "environment.json", _Environment, default=_Environment())
    judged = JudgedRun(name=name, numbers=numbers, rows=rows, classes=classes, fingerprint=data.fingerprint)
    return FinishedRun(
        folder=folder,
        config=config,
        settings=flatten_settings(config),
        metrics=metrics,
        judged=judged,
        curves=read_curves(run_dir / "metrics.jsonl"),
        selection=selection,
        num_steps=status.step or None,
        device=environment.device,
        commit=environment.commit[:12] + (" and changes" if environment.dirty else ""),
    )


def _read_status(run_dir: Path) -> _Status:
    """Where a finished run stands; an unfinished one is refused."""
    if not run_dir.is_dir():
        raise RunFolderError("there is no such run folder", where=str(run_dir), fix=OTHER_RUN)
    present = [name for name in NEEDED if (run_dir / name).is_file()]
    if "config.yaml" not in present:
        raise RunFolderError("this is no run folder: it holds no config.yaml", where=str(run_dir), fix=OTHER_RUN)
    status = _read(run_dir / "status.json", _Status, default=_Status(state="done"))
    missing = [name for name in NEEDED if name not in present]
    if status.state != "done" or missing:
        state = f"its state is {short(status.state)}" if status.state != "done" else f"it holds no {missing[0]}"
        raise RunFolderError(
            f"this run is not finished: {state}",
            where=str(run_dir),
            fix="start it again with the same command, or wait",
        )
    return status


def _read_config(path: Path, task: Task) -> tuple[Config, str]:
    """The settings, and the metric that chose the weights."""
    try:
        config = load_config(path)
        quantiles = config.train.quantiles if config.train.loss == "quantile" else ()
        name, num_targets = config.train.selection_metric, len(config.data.targets)
        return config, selection_metric(name, task, quantiles=quantiles, num_targets=num_targets)
    except ConfigError as error:
        raise RunFolderError(
            f"the run has a config that this version cannot read: {short(error.what, 400)}", where=str(path), fix=AGAIN
        ) from None


def _read(path: Path, model: type[Model], *, default: Model | None = None) -> Model:
    """A JSON file, checked; `default` where there is none."""
    if default is not None and not path.is_file():
        return default
    try:
        return model.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(str(part) for part in wrong["loc"])
        what = f"{short(key)}: {wrong['msg'][0].lower()}{wrong['msg'][1:]}" if key else "it holds no keys with values"
        raise RunFolderError(f"this file of the run is damaged: {what}", where=str(path), fix=AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        what = short(str(error), 200)
        raise RunFolderError(f"this file of the run cannot be read: {what}", where=str(path), fix=AGAIN) from None


def read_predictions(path: Path, target: TargetSpec) -> tuple[np.ndarray, Rows, tuple[str, ...]]:
    """Row numbers (R,), in order, the rows themselves, and the classes.

    Raises:
        RunFolderError: the file is damaged, or holds something else than a run's predictions.
    """
    try:
        table = pq.ParquetFile(path).read()
        return _take_apart(table, target)
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
        what = short(str(error), 200)
        raise RunFolderError(f"the predictions cannot be used: {what}", where=str(path), fix=AGAIN) from None


def _take_apart(table: pa.Table, target: TargetSpec) -> tuple[np.ndarray, Rows, tuple[str, ...]]:
    """The arrays of a table of predictions. Raises ValueError that says what is wrong with it."""
    names, task = table.column_names, target.task
    for name in ("row", *target.truth_names, *target.prediction_names):
        if names.count(name) != 1:
            raise ValueError(f"there are {names.count(name)} columns '{name}'")
    if not len(table):
        raise ValueError("there are no rows")
    if not pa.types.is_integer(table.column("row").type):
        raise ValueError("the row numbers are no whole numbers")
    numbers = _numbers(table.column("row"), "row").astype(np.int64)
    order = np.argsort(numbers, kind="stable")
    numbers = numbers[order]
    if (np.diff(numbers) == 0).any():
        raise ValueError(f"row {numbers[:-1][np.diff(numbers) == 0][0]} is there twice")
    if task == "regression":
        p, classes = np.empty((len(table), 0)), ()
        wanted = (*target.truth_names, *target.prediction_names)
        numeric = {name: _numbers(table.column(name), name).astype(float) for name in wanted}
        y, decided = target.take_truth(numeric), target.take_prediction(numeric)
    else:
        places = range(names.index("prediction") + 1, len(names))  # ids come before, probabilities after
        classes = tuple(names[place].removeprefix("p_") for place in places)
        _check_classes(classes, [names[place] for place in places], task)
        p = np.stack([_numbers(table.column(place), names[place]).astype(float) for place in places], axis=1)
        if p.min() < 0 or p.max() > 1:
            raise ValueError("a probability is not between 0 and 1")
        y, decided = (_codes(table.column(name), classes, name) for name in ("target", "prediction"))
    return numbers, Rows(task=task, y=y[order], prediction=decided[order], p=p[order]), classes


def _check_classes(classes: tuple[str, ...], columns: list[str], task: Task) -> None:
    fits = len(classes) == 2 if task == "binary" else len(classes) >= 2
    if not fits or not all(name.startswith("p_") for name in columns) or len(set(classes)) < len(classes):
        raise ValueError(f"the columns of a {task} task's probabilities are missing, or others are there")


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    is_numeric = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if not is_numeric or column.null_count:
        raise ValueError(f"column '{short(name)}' holds something else than numbers")
    numbers = column.to_numpy()
    if not np.isfinite(numbers).all():
        raise ValueError(f"column '{short(name)}' holds numbers that are not finite")
    return numbers


def _codes(column: pa.ChunkedArray, classes: tuple[str, ...], name: str) -> np.ndarray:
    text = column.cast(pa.string())
    codes = pc.index_in(text, pa.array(classes, pa.string()))
    if codes.null_count:
        unknown = text.filter(pc.is_null(codes))[0].as_py()
        raise ValueError(f"column '{name}' holds '{short(str(unknown))}', and no column has its probability")
    return codes.to_numpy().astype(np.int64)


def _refuse_other_predictions(run_dir: Path, rows: Rows, metrics: Metrics) -> None:
    """A comparison that mixed the files of two runs would be worth nothing."""
    for name, value in compute_metrics_once(rows).items():
        known = None if name in metrics.not_exact else metrics.test.get(name)
        if known is not None and not abs(value - known) <= CLOSE * max(1.0, abs(known)):
            raise RunFolderError(
                f"metrics.json says that {name} is {known:.6g} on the test rows, and predictions.parquet that it is "
                f"{value:.6g}: they are not of the same run",
                where=str(run_dir),
                fix=AGAIN,
            )


def read_curves(path: Path) -> dict[str, Curve]:
    """What was logged of the validation rows, by name; lines that are torn or strange are passed over."""
    records: dict[int, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("split") == "val" and is_number(record.get("step")):
            records[int(record["step"])] = record  # of a step that was logged twice the later line counts
    found: dict[str, list[tuple[float, float, float]]] = {}
    for step, record in sorted(records.items()):
        elapsed_s = record.get("elapsed_s")
        for name, value in record.items():
            if is_number(value):
                found.setdefault(name, []).append((step, elapsed_s if is_number(elapsed_s) else np.nan, value))
    return {
        name: Curve(**dict(zip(("steps", "seconds", "values"), np.array(points, dtype=float).T, strict=True)))
        for name, points in found.items()
    }


def flatten_settings(config: Config) -> dict[str, Any]:
    """`section.key` -> value, or `section.key.name` where names are given values, as in data.columns; no folders."""
    flat: dict[str, Any] = {}
    for key, value in flatten(portable(config).model_dump(mode="json")).items():
        flat |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return flat
