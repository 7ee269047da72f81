"""Which rows train, choose and judge; decided before anything is fitted, and saved with the run."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from nn_train.errors import DataError
from nn_train.run_folder import write_file
from nn_train.schema import SPLITS, Split, Task
from nn_train.settings import SplitConfig

WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
LEAST_ROWS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Row positions of each split, int64, each in the order of the table."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def make_splits(
    config: SplitConfig,
    *,
    target: np.ndarray,
    task: Task,
    column: pd.Series | None = None,
    sizes: tuple[int, ...] | None = None,
) -> Splits:
    """Share out the rows.

    Args:
        config: the method, the shares and the seed.
        target: classes as text or values as float64, one per row (R,); none missing.
        task: what the target is.
        column: the group, time or split values of these methods, one per row.
        sizes: for separate files, the rows of the train, validation and test table.

    Raises:
        DataError: too few rows, a column that cannot be used, or a split that would stay empty or
            hold a class that the network cannot have learned.
    """
    num_rows = len(target)
    if config.method == "files":
        assert sizes is not None
        parts = np.split(np.arange(num_rows), np.cumsum(sizes)[:-1])
        splits = Splits(**dict(zip(SPLITS, parts, strict=True)))
    elif config.method == "column":
        splits = _by_column(_given(column), config)
    elif config.method == "group":
        splits = _by_group(_given(column), config)
    elif config.method == "time":
        splits = _by_time(_given(column), config)
    else:
        splits = _at_random(target, task, config)
    _check(splits, target, task, config)
    return splits


def save_splits(splits: Splits, path: Path) -> None:
    """Write the positions as plain arrays, whole."""
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{split: getattr(splits, split) for split in SPLITS})
    write_file(path, stream.getvalue())


def load_splits(path: Path) -> Splits:
    """Read what `save_splits` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Splits(**{split: arrays[split] for split in SPLITS})


def _given(column: pd.Series | None) -> pd.Series:
    assert column is not None
    return column.reset_index(drop=True)


def _sizes(num_rows: int, config: SplitConfig) -> tuple[int, int]:
    return max(round(num_rows * config.val), 1), max(round(num_rows * config.test), 1)


def _at_random(target: np.ndarray, task: Task, config: SplitConfig) -> Splits:
    num_rows = len(target)
    if num_rows < LEAST_ROWS:
        raise DataError(f"{num_rows} rows with a target are too few to split", fix=f"give {LEAST_ROWS} rows or more")
    num_val, num_test = _sizes(num_rows, config)
    strata = None
    if task != "regression":
        classes, counts = np.unique(target, return_counts=True)
        if counts.min() < len(SPLITS):
            raise DataError(
                f"class '{classes[counts.argmin()]}' has {counts.min()} rows; each of train, val and test needs one",
                fix="drop or merge that class, or give more rows of it",
            )
        if min(num_val, num_test) >= len(classes):
            strata = target
    rest, test = train_test_split(np.arange(num_rows), test_size=num_test, stratify=strata, random_state=config.seed)
    train, val = train_test_split(
        rest, test_size=num_val, stratify=None if strata is None else strata[rest], random_state=config.seed
    )
    return Splits(train=np.sort(train), val=np.sort(val), test=np.sort(test))


def _by_group(groups: pd.Series, config: SplitConfig) -> Splits:
    codes, names = pd.factorize(groups, use_na_sentinel=False)
    if len(names) < len(SPLITS):
        raise DataError(
            f"column '{config.column}' holds {len(names)} group(s); three are needed to split by it",
            fix="split.method=random, or another split.column",
        )
    sizes = np.bincount(codes)
    order = np.random.default_rng(config.seed).permutation(len(names))
    wanted = dict(zip(("test", "val"), reversed(_sizes(len(codes), config)), strict=True))
    owner = np.zeros(len(names), dtype=np.int64)
    position = 0
    for index, split in enumerate(("test", "val"), start=1):  # whole groups, until the share is filled
        filled = 0
        while position < len(names) - (3 - index) and (
            filled == 0 or filled + sizes[order[position]] / 2 <= wanted[split]
        ):
            filled += sizes[order[position]]
            owner[order[position]] = index
            position += 1
    of_row = owner[codes]
    return Splits(train=np.flatnonzero(of_row == 0), val=np.flatnonzero(of_row == 2), test=np.flatnonzero(of_row == 1))


def _by_time(times: pd.Series, config: SplitConfig) -> Splits:
    if times.isna().any():
        row = int(np.argmax(times.isna().to_numpy()))
        raise DataError(
            f"column '{config.column}' has no time in row {row + 1}, which split.method=time needs",
            fix="drop such rows, or another split.column",
        )
    order = np.argsort(times.to_numpy(), kind="stable")
    num_val, num_test = _sizes(len(times), config)
    first_test = len(times) - num_test
    first_val = max(first_test - num_val, 0)
    return Splits(
        train=np.sort(order[:first_val]), val=np.sort(order[first_val:first_test]), test=np.sort(order[first_test:])
    )


def _by_column(words: pd.Series, config: SplitConfig) -> Splits:
    chosen = words.astype("string").str.strip().str.lower().map(WORDS)
    if chosen.isna().any():
        row = int(np.argmax(chosen.isna().to_numpy()))
        raise DataError(
            f"column '{config.column}' says '{words.iloc[row]}' in row {row + 1}, not train, val or test",
            fix="mend the column, or another split.column",
        )
    return Splits(**{split: np.flatnonzero((chosen == split).to_numpy()) for split in SPLITS})


def _check(splits: Splits, target: np.ndarray, task: Task, config: SplitConfig) -> None:
    for split in SPLITS:
        if not len(getattr(splits, split)):
            raise DataError(
                f"split.method={config.method} leaves no rows for {split}",
                fix="change split.val, split.test or split.method, or give more rows",
            )
    if task == "regression":
        return
    known = np.unique(target[splits.train])
    for split in ("val", "test"):
        missing = np.setdiff1d(target[getattr(splits, split)], known)
        if len(missing):
            raise DataError(
                f"class '{missing[0]}' occurs in the {split} rows and not in the train rows",
                fix="another split.seed or split.method, or drop that class",
            )
    if len(known) < 2:
        raise DataError(f"all train rows have the class '{known[0]}'", fix="another split.seed or split.method")
