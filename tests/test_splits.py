"""Splits: every row in one place, by the rule that was asked for, the same on every start."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_train.config import load_config
from nn_train.errors import ConfigError, DataError
from nn_train.schema import SPLITS, Task
from nn_train.settings import SplitConfig
from nn_train.splits import Splits, load_splits, save_splits
from nn_train.splitting import make_splits

NUM_ROWS = 1000
RNG = np.random.default_rng(0)
CLASSES = RNG.choice(["a", "b", "c"], p=[0.7, 0.25, 0.05], size=NUM_ROWS)


def split(
    target: Any = CLASSES, *, column: Any = None, sizes: Any = None, keeps_rare: bool = False, **settings: Any
) -> Splits:
    """The splits of a target; `column` holds the group, time or split column `c`."""
    values = np.asarray(target)
    task: Task = "regression" if values.dtype.kind == "f" else "multiclass"
    given = {} if column is None else {"column": "c"}
    return make_splits(
        SplitConfig(**{**given, **settings}),
        target=values,
        task=task,
        column=None if column is None else pd.Series(column),
        sizes=sizes,
        keeps_rare=keeps_rare,
        where="table.csv",
    )


def refuse(*arguments: Any, **settings: Any) -> str:
    """The message of the refusal."""
    with pytest.raises(DataError) as caught:
        split(*arguments, **settings)
    assert caught.value.where == "table.csv" and caught.value.fix
    return str(caught.value)


def check_complete(splits: Splits, num_rows: int) -> None:
    """Each row is in one split, and each split is in the order of the table."""
    parts = [getattr(splits, name) for name in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_rows))
    assert all(len(part) and part.dtype == np.int64 and (np.diff(part) > 0).all() for part in parts)


# --- random -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "column"),
    [
        ("random", None),
        ("group", np.arange(NUM_ROWS) % 7),
        ("time", np.arange(NUM_ROWS)[::-1]),
        ("column", np.where(np.arange(NUM_ROWS) % 5, "train", "val")),
    ],
)
def test_no_test_rows_where_none_are_wanted(method: str, column: Any) -> None:
    splits = split(method=method, column=column, val=0.2, test=0.0)
    assert len(splits.test) == 0
    assert splits.test.dtype == np.int64
    assert 100 <= len(splits.val) <= 300
    assert sorted([*splits.train, *splits.val]) == list(range(NUM_ROWS))
    with pytest.raises(DataError, match="no rows for test"):
        split(method="column", column=np.where(np.arange(NUM_ROWS) % 5, "train", "val"))


def test_two_groups_are_enough_without_test_rows() -> None:
    splits = split(method="group", column=["a", "b"] * 500, test=0.0)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (500, 500, 0)
    assert "holds 1 group(s); two are needed" in refuse(method="group", column=["a"] * 1000, test=0.0)


def test_rows_of_rare_classes_train_where_that_is_asked_for() -> None:
    target = ["a"] * 60 + ["b"] * 37 + ["twice"] * 2 + ["once"]
    assert "class 'once' has 1 rows; each of train, val and test needs one" in refuse(target)
    assert "class 'once' has 1 rows; each of train and val needs one" in refuse(target, test=0.0)
    splits = split(target, keeps_rare=True)
    check_complete(splits, 100)
    assert {97, 98, 99} <= set(splits.train.tolist())
    assert split(target[:97], keeps_rare=True).val.tolist() == split(target[:97]).val.tolist()
    assert "only 8 rows have a class with 3 rows or more" in refuse(
        ["a"] * 8 + ["b", "c"], keeps_rare=True, val=0.5, test=0.4
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 4), min_size=5, max_size=12),
    test=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=60, deadline=None)
def test_each_class_can_be_learned_whatever_is_drawn(seed: int, sizes: list[int], test: float) -> None:
    target = np.repeat([f"c{index}" for index in range(len(sizes) + 1)], [*sizes, 40])
    splits = split(target, keeps_rare=True, seed=seed, test=test, val=0.3)
    assert set(target[splits.train]) == set(target)
    assert sorted(np.concatenate([splits.train, splits.val, splits.test]).tolist()) == list(range(len(target)))


def test_random_splits_hold_each_class_in_its_share() -> None:
    splits = split(val=0.2, test=0.15)
    check_complete(splits, NUM_ROWS)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (650, 200, 150)
    for name, share in (("train", 0.65), ("val", 0.2), ("test", 0.15)):
        for letter in "abc":
            expected = share * (letter == CLASSES).sum()
            assert abs((CLASSES[getattr(splits, name)] == letter).sum() - expected) <= 1


@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=12),
    val=st.floats(0.05, 0.45),
    test=st.floats(0.05, 0.45),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None, database=None)
def test_any_shares_of_any_classes_are_kept(counts: list[int], val: float, test: float, seed: int) -> None:
    target = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts)).astype(str)
    try:
        splits = split(target, val=val, test=test, seed=seed)
    except DataError as error:  # tiny classes and large shares: a class may have no row left to train on
        assert "occurs in the" in error.what or "too few" in error.what
        return
    check_complete(splits, len(target))
    assert len(splits.val) == max(round(val * len(target)), 1)
    assert len(splits.test) == max(round(test * len(target)), 1)
    share = len(splits.test) / len(target)
    rest = np.setdiff1d(np.arange(len(target)), splits.test)
    sizes = np.unique(target[rest], return_counts=True)[1]
    for name, count in enumerate(counts):
        if min(len(splits.test), len(rest)) >= len(counts):
            assert abs((target[splits.test] == str(name)).sum() - share * count) < 1
        if min(len(splits.val), len(splits.train)) >= len(sizes) and sizes.min() > 1:
            part = len(splits.val) / len(rest) * (target[rest] == str(name)).sum()
            assert abs((target[splits.val] == str(name)).sum() - part) < 1


@pytest.mark.parametrize("test", [0.0, 0.15])
@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_each_row_that_is_not_for_the_test_validates_in_one_fold(num_folds: int, test: float) -> None:
    found = [split(folds=num_folds, fold=fold, test=test) for fold in range(num_folds)]
    for splits in found:
        assert len(splits.train) + len(splits.val) + len(splits.test) == NUM_ROWS
        assert splits.test.tolist() == split(test=test).test.tolist()
    rest = np.setdiff1d(np.arange(NUM_ROWS), found[0].test)
    assert np.sort(np.concatenate([splits.val for splits in found])).tolist() == rest.tolist()
    for letter in "abc":
        counts = [(letter == CLASSES[splits.val]).sum() for splits in found]
        assert max(counts) - min(counts) <= 1
    other = split(folds=num_folds, test=test, seed=5)
    assert other.val.tolist() != found[0].val.tolist()


def test_folds_keep_groups_whole() -> None:
    groups = pd.Series(np.random.default_rng(0).integers(0, 40, NUM_ROWS))
    found = [split(column=groups, method="group", folds=4, fold=fold) for fold in range(4)]
    rest = np.setdiff1d(np.arange(NUM_ROWS), found[0].test)
    assert np.sort(np.concatenate([splits.val for splits in found])).tolist() == rest.tolist()
    for splits in found:
        owners = [set(groups[part]) for part in (splits.train, splits.val, splits.test)]
        assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
        assert 0.7 < len(splits.val) / (len(rest) / 4) < 1.3


def test_more_folds_than_groups_are_refused() -> None:
    groups = pd.Series(np.arange(NUM_ROWS) % 5)
    assert "groups cannot make 6 folds" in refuse(column=groups, method="group", folds=6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["split.folds=3", "split.fold=3"], "split.fold=3 is none of split.folds=3"),
        (["split.fold=1"], "split.fold=1 is none of split.folds=no"),
        (["split.folds=3", "split.method=time", "split.column=day"], "goes with split.method=random or group"),
        (["split.folds=1"], "split.folds"),
    ],
)
def test_folds_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.path=t.csv", "data.target=y", *words])


def test_a_seed_gives_the_same_split_and_another_seed_another() -> None:
    first, again, other = split(seed=1), split(seed=1), split(seed=2)
    assert all((getattr(first, name) == getattr(again, name)).all() for name in SPLITS)
    assert set(first.test) != set(other.test)


def test_numbers_are_split_at_random() -> None:
    splits = split(RNG.normal(size=NUM_ROWS))
    check_complete(splits, NUM_ROWS)
    assert (len(splits.val), len(splits.test)) == (150, 150)
    assert len(set(np.diff(splits.test))) > 5


def test_the_smallest_table_that_can_be_split() -> None:
    check_complete(split(["a", "b"] * 5), 10)
    assert "9 rows with a target are too few to split" in refuse(["a", "b", "a"] * 3)


def test_shares_that_leave_nothing_to_train_on() -> None:
    message = refuse(["a", "b"] * 5, val=0.9, test=0.05)
    assert "split.val=0.9 and split.test=0.05 leave none of the 10 rows to train on" in message


def test_a_class_with_two_rows_is_refused_and_one_with_three_is_split() -> None:
    assert "class 'z' has 2 rows" in refuse([*["a", "b"] * 20, "z", "z"])
    check_complete(split([*["a", "b"] * 20, "z", "z", "z"]), 43)


# --- group ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", [3, 4, 10, 300])
def test_no_group_is_in_two_splits(num_groups: int) -> None:
    groups = RNG.integers(0, num_groups, NUM_ROWS)
    splits = split(method="group", column=groups)
    check_complete(splits, NUM_ROWS)
    parts = [set(groups[getattr(splits, name)]) for name in SPLITS]
    assert sum(map(len, parts)) == len(set(groups))
    if num_groups == 300:
        assert abs(len(splits.val) - 150) < 10 and abs(len(splits.test) - 150) < 10


def test_a_large_group_goes_to_train() -> None:
    groups = ["large"] * 700 + [f"g{row // 10}" for row in range(300)]
    for seed in range(5):
        splits = split(method="group", column=groups, seed=seed)
        assert set(range(700)) <= set(splits.train)
        assert abs(len(splits.val) - 150) <= 10 and abs(len(splits.test) - 150) <= 10


def test_groups_may_be_missing_and_of_very_different_sizes() -> None:
    check_complete(split(method="group", column=["a"] * 400 + [None] * 598 + ["b", "b"]), NUM_ROWS)


def test_the_seed_chooses_the_groups() -> None:
    groups = np.arange(NUM_ROWS) // 10
    first, again, other = (split(method="group", column=groups, seed=seed) for seed in (1, 1, 2))
    assert (first.test == again.test).all() and set(first.test) != set(other.test)


def test_too_few_groups() -> None:
    assert "column 'c' holds 2 group(s); three are needed" in refuse(method="group", column=["a", "b"] * 500)


# --- time -------------------------------------------------------------------------------------------------------------

DAYS = pd.Series(pd.date_range("2020-01-01", periods=NUM_ROWS))


@pytest.mark.parametrize(
    "times",
    [
        DAYS,
        DAYS.dt.tz_localize("Europe/Berlin"),
        DAYS.dt.date,
        DAYS.dt.strftime("%Y-%m-%d"),
        DAYS.dt.strftime("%d/%m/%Y"),
        DAYS.dt.strftime("%d.%m.%Y %H:%M"),
        pd.Series(range(NUM_ROWS)),
        pd.Series(range(NUM_ROWS)).astype(str),  # as text 1000 comes before 2
        pd.Series(np.linspace(-5.5, 5.5, NUM_ROWS)).astype(str).astype(object),
    ],
)
def test_the_last_rows_in_time_are_the_test_rows(times: pd.Series) -> None:
    order = np.random.default_rng(3).permutation(NUM_ROWS)
    splits = split(method="time", column=times.iloc[order].reset_index(drop=True))
    check_complete(splits, NUM_ROWS)
    assert set(order[splits.train]) == set(range(700))
    assert set(order[splits.val]) == set(range(700, 850))
    assert set(order[splits.test]) == set(range(850, NUM_ROWS))


def test_rows_of_one_time_stay_in_the_order_of_the_table() -> None:
    splits = split(method="time", column=[7] * NUM_ROWS)
    assert (np.concatenate([splits.train, splits.val, splits.test]) == np.arange(NUM_ROWS)).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [("", "'' in row 21"), (None, "nothing in row 21"), ("soon", "'soon' in row 21"), (np.nan, "nothing in row 21")],
)
def test_a_row_without_a_time_is_named(value: Any, message: str) -> None:
    times = [str(day) for day in DAYS.dt.date]
    times[20] = value
    assert message in refuse(method="time", column=times)
    numbers = ["1"] * 20 + [value] + ["2"] * 979
    assert message in refuse(method="time", column=numbers)


def test_a_row_is_named_by_its_place_in_the_table() -> None:
    """Rows without a target are not split; the index of the column still counts them."""
    times = pd.Series(range(NUM_ROWS), dtype=float)
    times[500] = np.nan
    config = SplitConfig(method="time", column="c")
    with pytest.raises(DataError, match="row 501"):
        make_splits(config, target=CLASSES[400:], task="multiclass", column=times.iloc[400:])


# --- column and files -------------------------------------------------------------------------------------------------


def test_words_of_a_column_choose_the_split() -> None:
    words = ["train", "Training ", "VAL", "valid", "validation", "dev", "test", " Testing", "train", "train"]
    splits = split(np.arange(10.0), method="column", column=words)
    assert splits.train.tolist() == [0, 1, 8, 9]
    assert splits.val.tolist() == [2, 3, 4, 5]
    assert splits.test.tolist() == [6, 7]


def test_another_word_is_named_with_its_row() -> None:
    words = ["train"] * 800 + ["val"] * 100 + ["test"] * 99 + ["holdout"]
    assert "column 'c' has 'holdout' in row 1000, not train, val or test" in refuse(method="column", column=words)
    assert "has nothing in row 1000" in refuse(method="column", column=[*words[:-1], None])
    assert "has '0.0' in row 1" in refuse(method="column", column=np.zeros(NUM_ROWS))


def test_an_empty_split_is_refused() -> None:
    words = ["train"] * 900 + ["val"] * 100
    assert "split.method=column leaves no rows for test" in refuse(method="column", column=words)
    files = {"method": "files", "val_path": "v", "test_path": "t"}
    assert "split.method=files leaves no rows for val" in refuse(sizes=(900, 0, 100), **files)


def test_files_keep_their_rows() -> None:
    splits = split(method="files", val_path="v.csv", test_path="t.csv", sizes=(700, 200, 100))
    check_complete(splits, NUM_ROWS)
    assert (splits.val == np.arange(700, 900)).all()


def test_a_class_that_the_network_cannot_have_learned() -> None:
    words = ["train"] * 8 + ["val"] * 4 + ["test"] * 4
    target = ["a", "b"] * 7 + ["a", "z"]
    assert "class 'z' occurs in the test rows and not in the train rows" in refuse(
        target, method="column", column=words
    )
    assert "all train rows have the class 'a'" in refuse(["a"] * 16, method="column", column=words)


# --- file -------------------------------------------------------------------------------------------------------------


def test_splits_are_saved_without_pickle_and_loaded_equal(tmp_path: Path) -> None:
    splits, path = split(), tmp_path / "splits.npz"
    save_splits(splits, path)
    loaded = load_splits(path)
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(splits, name))
        assert getattr(loaded, name).dtype == np.int64
    content = path.read_bytes()
    save_splits(splits, path)
    assert path.read_bytes() == content
    with np.load(path, allow_pickle=False) as arrays:
        assert set(arrays) == set(SPLITS)
