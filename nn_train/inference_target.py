"""What is to be predicted: the task and its classes, inferred from the target or set by the config."""

import re
from typing import NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa

from nn_train.errors import DataError, short
from nn_train.schema import TargetSpec, Task
from nn_train.settings import DataConfig
from nn_train.table import name_row
from nn_train.values import (
    WHOLE_WITH_POINT,
    as_objects,
    is_bytes,
    listed,
    parse_number,
    read_levels,
    read_numbers,
    shell_word,
)

BOOLEAN_PAIRS = [frozenset(pair) for pair in (("yes", "no"), ("true", "false"), ("t", "f"), ("y", "n"), ("0", "1"))]
NUMERIC_SHARE = 0.9  # a text column that is mostly numbers, or dates, is taken for such with a mistake in it
MOST_CLASSES = 20  # whole numbers with more distinct values are a quantity, not classes
MOST_TEXT_CLASSES = 1000
LARGEST_TARGET = 1e100  # the sum of the squares of larger ones would leave float64


def infer_target(array: pa.ChunkedArray, data: DataConfig) -> tuple[TargetSpec, np.ndarray]:
    """The task with its classes, and which rows have a target."""
    if pa.types.is_nested(array.type) or is_bytes(array.type):
        _refuse_target(f"holds {array.type}, which is neither number nor text", data)
    names = as_objects(read_levels(array, data))
    numbers = read_numbers(array, data)
    present = names.notna().to_numpy()
    if not present.any():
        _refuse_target("has no value in any row", data)
    counts = names[present].value_counts()
    if len(counts) == 1:
        _refuse_target(f"is '{short(counts.index[0])}' in every row; there is nothing to learn", data)
    task = data.task if data.task != "auto" else _guess_task(numbers[present], len(counts))
    if task == "regression":
        _check_numbers(names, numbers, data)
        return TargetSpec(name=data.target_name, task=task), np.isfinite(numbers)
    if task == "binary" and len(counts) != 2:
        _refuse_target(f"holds {len(counts)} classes, and data.task=binary needs two", data, fix="data.task=multiclass")
    _check_classes(names, counts, data)
    are_numbers = not np.isnan(numbers[present]).any()
    classes = sorted(counts.index, key=lambda name: _class_rank(name, is_number=are_numbers))
    if data.positive is not None:
        classes = _positive_last(classes, task, data)
    return TargetSpec(name=data.target_name, task=task, classes=tuple(classes)), present


def infer_targets(rows: pa.Table, data: DataConfig) -> tuple[TargetSpec, np.ndarray]:
    """As `infer_target`, also for several: a row has a target where each of them has a value."""
    if not data.is_several:
        return infer_target(rows.column(data.targets[0]), data)
    masks = []
    for name in data.targets:
        _, present = infer_target(rows.column(name), data.model_copy(update={"target": name, "task": "regression"}))
        masks.append(present)
    present = np.logical_and.reduce(masks)
    if not present.any():
        _refuse_target("are in no row all there", data)
    return TargetSpec(name=data.target_name, task="regression", columns=data.targets), present


def _guess_task(numbers: np.ndarray, num_classes: int) -> Task:
    if num_classes == 2:
        return "binary"
    is_number = ~np.isnan(numbers)
    if not is_number.all():
        # numbers with a text among them: read as numbers, so that the text is named as a mistake
        is_mistake = is_number.mean() >= NUMERIC_SHARE and len(np.unique(numbers[is_number])) > MOST_CLASSES
        return "regression" if is_mistake else "multiclass"
    is_whole = (numbers[np.isfinite(numbers)] % 1 == 0).all()
    most = min(MOST_CLASSES, len(numbers) // 10)
    return "multiclass" if is_whole and num_classes <= most else "regression"


def _class_rank(name: str, *, is_number: bool) -> tuple[float, str]:
    """Numbers by their value; other words by the alphabet, but yes behind no and true behind false."""
    return (parse_number(name) if is_number else name.lower() in ("yes", "true", "y", "t"), name)


def _positive_last(classes: list[str], task: Task, data: DataConfig) -> list[str]:
    positive = re.sub(WHOLE_WITH_POINT, r"\1", data.positive or "")
    if task != "binary" or positive not in classes:
        _refuse_target(
            f"has the classes {listed(classes)}; data.positive={data.positive} is none of two",
            data,
            fix=f"{shell_word('data.positive', classes[-1])}, or leave it out",
        )
    return [name for name in classes if name != positive] + [positive]


def _check_numbers(names: pd.Series, numbers: np.ndarray, data: DataConfig) -> None:
    is_text = names.notna().to_numpy() & np.isnan(numbers)
    is_infinite = np.isinf(numbers)
    is_huge = np.isfinite(numbers) & (np.abs(numbers) > LARGEST_TARGET)
    checks = (
        (is_text, "which is no number", "correct it, or data.task=multiclass"),
        (is_infinite & (data.infinite == "error"), "which is infinite", "correct it, or data.infinite=missing"),
        (is_huge, "which is too large to learn", "correct it, or give the target in another unit"),
    )
    for wrong, what, fix in checks:
        if wrong.any():
            row = int(np.argmax(wrong))
            _refuse_target(f"holds '{short(names.iloc[row])}' in {name_row(data, row)}, {what}", data, fix=fix)


def _check_classes(names: pd.Series, counts: pd.Series, data: DataConfig) -> None:
    if len(counts) > 2 and frozenset(counts.index.str.lower()) in BOOLEAN_PAIRS:
        _refuse_target(
            f"has the classes {listed(list(counts.index))}, which differ in case only",
            data,
            fix="write each class in one way",
        )
    if len(counts) > MOST_TEXT_CLASSES or len(counts) > 0.5 * counts.sum():
        _refuse_target(
            f"holds {len(counts)} classes in {int(counts.sum())} rows",
            data,
            fix="another data.target, or data.task=regression",
        )
    if counts.min() == 1 and data.rare_classes == "error":
        single = str(counts.idxmin())
        row = int(np.argmax((names == single).to_numpy()))
        _refuse_target(
            f"has the class '{short(single)}' in one row only ({name_row(data, row)}); it cannot be learned and judged",
            data,
            fix="correct or remove that row, merge the class with another, or data.rare_classes=keep to learn it only",
        )


def _refuse_target(what: str, data: DataConfig, *, fix: str = "another data.target") -> NoReturn:
    raise DataError(f"the target '{short(data.target_name)}' {what}", where=data.path, fix=fix)
