"""Which rows train, choose and judge; decided before anything is fitted."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from nn_train.errors import DataError, short
from nn_train.inference import DAY_FIRST
from nn_train.schema import SPLITS, Split, Task
from nn_train.settings import SplitConfig
from nn_train.splits import Splits
from nn_train.values import parse_dates

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


def make_splits(
    config: SplitConfig,
    *,
    target: np.ndarray,
    task: Task,
    column: pd.Series | None = None,
    sizes: tuple[int, ...] | None = None,
    keeps_rare: bool = False,
    where: str = "",
) -> Splits:
    """Share out the rows.

    Args:
        config: the method, the shares and the seed.
        target: classes as text or values as float64, one per row (R,); none missing.
        task: what the target is.
        column: the group, time or split values of these methods, one per row; its index counts the
            rows of the table from 0.
        sizes: for separate files, the rows of the train, validation and test table.
        keeps_rare: rows of classes that are too few for every split train, where the method is random.
        where: what errors name as the place, the table's path.

    Raises:
        DataError: too few rows, a column that cannot be used, or a split that would stay empty or
            hold a class that the network cannot have learned.
    """
    try:
        if config.method == "random":
            splits = _at_random(target, task, config, keeps_rare=keeps_rare)
        else:
            splits = _share_out(config, target=target, column=column, sizes=sizes)
        _check(splits, target, task, config)
    except DataError as error:
        raise DataError(error.what, where=where, fix=error.fix) from None
    return splits


def _share_out(
    config: SplitConfig, *, target: np.ndarray, column: pd.Series | None, sizes: tuple[int, ...] | None
) -> Splits:
    if config.method == "files":
        assert sizes is not None
        parts = np.split(np.arange(len(target)), np.cumsum(sizes)[:-1])
        return Splits(**dict(zip(SPLITS, parts, strict=True)))
    assert column is not None
    return {"column": _by_column, "group": _by_group, "time": _by_time}[config.method](column, config)


def _filled(config: SplitConfig) -> tuple[Split, ...]:
    """The splits that must hold rows."""
    return SPLITS if config.test or config.method == "files" else ("train", "val")


def _sizes(num_rows: int, config: SplitConfig) -> tuple[int, int]:
    """Rows for validation and test."""
    num_val = max(round(num_rows * config.val), 1)
    num_test = max(round(num_rows * config.test), 1) if config.test else 0
    if num_rows < LEAST_ROWS:
        raise DataError(f"{num_rows} rows with a target are too few to split", fix=f"give {LEAST_ROWS} rows or more")
    if num_val + num_test >= num_rows:
        raise DataError(
            f"split.val={config.val} and split.test={config.test} leave none of the {num_rows} rows to train on",
            fix="lower split.val or split.test, or give more rows",
        )
    return num_val, num_test


def _at_random(target: np.ndarray, task: Task, config: SplitConfig, *, keeps_rare: bool) -> Splits:
    num_val, num_test = _sizes(len(target), config)
    classes, strata, counts = np.unique(
        target if task != "regression" else np.zeros(len(target)), return_inverse=True, return_counts=True
    )
    filled = _filled(config)
    if counts.min() < len(filled) and not keeps_rare:
        raise DataError(
            f"class '{short(classes[counts.argmin()])}' has {counts.min()} rows; each of "
            f"{', '.join(filled[:-1])} and {filled[-1]} needs one",
            fix="drop or merge that class, or give more rows of it; or data.rare_classes=keep to learn it only",
        )
    is_rare = counts[strata] < len(filled)
    rows = np.flatnonzero(~is_rare)
    if num_val + num_test >= len(rows):
        raise DataError(f"only {len(rows)} rows have a class with {len(filled)} rows or more", fix="give more rows")
    rest, test = _draw(rows, strata[rows], num_test, seed=config.seed)
    train, val = (
        _draw(rest, strata[rest], num_val, seed=config.seed)
        if config.folds is None
        else _take_fold(rest, strata[rest], config)
    )
    parts = {"train": np.append(train, np.flatnonzero(is_rare)), "val": val, "test": test}
    if keeps_rare:
        _give_back(parts, strata)
    return Splits(**{split: np.sort(part) for split, part in parts.items()})


def _take_fold(rows: np.ndarray, strata: np.ndarray, config: SplitConfig) -> tuple[np.ndarray, np.ndarray]:
    """Part `rows` into the rest and one fold: shuffled, sorted by class, and dealt out one by one."""
    assert config.folds is not None
    order = np.random.default_rng(config.seed).permutation(len(rows))
    order = order[np.argsort(strata[order], kind="stable")]
    is_val = np.zeros(len(rows), dtype=bool)
    is_val[order[config.fold :: config.folds]] = True
    return rows[~is_val], rows[is_val]


def _give_back(parts: dict[str, np.ndarray], strata: np.ndarray) -> None:
    """Let the train rows have one row of each class that was drawn away from them whole."""
    for split in ("val", "test"):
        for name in np.setdiff1d(strata[parts[split]], strata[parts["train"]]):
            row = parts[split][np.argmax(strata[parts[split]] == name)]
            parts[split] = parts[split][parts[split] != row]
            parts["train"] = np.append(parts["train"], row)


def _draw(rows: np.ndarray, strata: np.ndarray, count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Part `rows` into the rest and `count` drawn ones; each class in its share, where there is one row for each."""
    if not count:
        return rows, rows[:0]
    sizes = np.bincount(strata)
    num_classes = np.count_nonzero(sizes)
    can_stratify = sizes[sizes > 0].min() > 1 and min(count, len(rows) - count) >= num_classes
    rest, drawn = train_test_split(rows, test_size=count, stratify=strata if can_stratify else None, random_state=seed)
    return rest, drawn


def _by_group(groups: pd.Series, config: SplitConfig) -> Splits:
    codes, names = pd.factorize(groups, use_na_sentinel=False)
    num_needed = len(_filled(config))
    if len(names) < num_needed:
        raise DataError(
            f"column '{short(config.column or '')}' holds {len(names)} group(s); "
            f"{'three' if num_needed == 3 else 'two'} are needed to split by it",
            fix="split.method=random, or another split.column",
        )
    num_val, num_test = _sizes(len(codes), config)
    sizes = np.bincount(codes)
    order = np.random.default_rng(config.seed).permutation(len(names)).tolist()
    owner = np.full(len(names), "train", dtype="U5")
    for split, num_rows, num_left in (("test", num_test, 2), ("val", num_val, 1)):
        if not num_rows:
            continue
        free = [group for group in order if owner[group] == "train"]
        if split == "val" and config.folds is not None:
            owner[_fold_of_groups(free, sizes, config.folds)[config.fold]] = split
        else:
            owner[_take_groups(free, sizes, num_rows, most=len(free) - num_left)] = split
    return Splits(**{split: np.flatnonzero(owner[codes] == split) for split in SPLITS})


def _fold_of_groups(free: list[int], sizes: np.ndarray, num_folds: int) -> list[list[int]]:
    """Whole groups in folds of about as many rows: the largest first, each to the fold with the fewest."""
    if len(free) < num_folds:
        raise DataError(f"{len(free)} groups cannot make {num_folds} folds", fix=f"split.folds={max(len(free), 2)}")
    folds: list[list[int]] = [[] for _ in range(num_folds)]
    rows = [0] * num_folds
    for group in sorted(free, key=lambda group: -sizes[group]):
        smallest = rows.index(min(rows))
        folds[smallest].append(group)
        rows[smallest] += sizes[group]
    return folds


def _take_groups(free: list[int], sizes: np.ndarray, num_rows: int, *, most: int) -> list[int]:
    """Groups in the order of `free` that fill `num_rows` best, `most` at most; the smallest one if none fits."""
    taken: list[int] = []
    num_taken = 0
    for group in free:
        if len(taken) < most and num_taken + sizes[group] / 2 <= num_rows:
            taken.append(group)
            num_taken += sizes[group]
    return taken or [min(free, key=lambda group: sizes[group])]


def _by_time(column: pd.Series, config: SplitConfig) -> Splits:
    times = _times(column)
    if times.isna().any():
        row = int(np.argmax(times.isna().to_numpy()))
        raise DataError(
            f"column '{config.column}' has {_shown(column.iloc[row])} in row {column.index[row] + 1}, which is no time",
            fix="drop such rows, or another split.column",
        )
    num_val, num_test = _sizes(len(times), config)
    order = np.argsort(times.to_numpy(), kind="stable")
    parts = np.split(order, [len(times) - num_val - num_test, len(times) - num_test])
    return Splits(**{split: np.sort(part) for split, part in zip(SPLITS, parts, strict=True)})


def _times(column: pd.Series) -> pd.Series:
    """Numbers and dates as they are; text as the one or the other."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        return column
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().any():
        return numbers
    texts = ["" if pd.isna(value) else str(value).strip() for value in column]
    day_first = any(DAY_FIRST.match(text) for text in texts)
    return pd.Series(parse_dates(texts, day_first=day_first))


def _by_column(words: pd.Series, config: SplitConfig) -> Splits:
    chosen = words.map(lambda word: WORDS.get(str(word).strip().lower()))
    if chosen.isna().any():
        row = int(np.argmax(chosen.isna().to_numpy()))
        raise DataError(
            f"column '{config.column}' has {_shown(words.iloc[row])} in row {words.index[row] + 1}, "
            "not train, val or test",
            fix="correct the column, or another split.column",
        )
    return Splits(**{split: np.flatnonzero((chosen == split).to_numpy()) for split in SPLITS})


def _shown(value: Any) -> str:
    return "nothing" if pd.isna(value) else f"'{short(str(value))}'"


def _check(splits: Splits, target: np.ndarray, task: Task, config: SplitConfig) -> None:
    for split in _filled(config):
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
                f"class '{short(missing[0])}' occurs in the {split} rows and not in the train rows",
                fix="another split.seed or split.method, or drop that class",
            )
    if len(known) < 2:
        raise DataError(f"all train rows have the class '{short(known[0])}'", fix="another split.seed or split.method")
