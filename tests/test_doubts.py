"""What an expert would doubt: each doubt on a table made for it, and none on tables that are as they should be."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris

import nn_train.doubts
from nn_train.config import load_config
from nn_train.doubts import doubt_calibration, doubt_size, find_doubts
from nn_train.inference import infer_schema
from nn_train.preprocessing import fit_preprocessor
from nn_train.splits import Splits
from nn_train.splitting import make_splits
from nn_train.values import typed_frame
from tests.conftest import ROOT, TinyRun, make_table

BY_TIME = ("split.method=time", "split.column=day")


def look(table: pd.DataFrame, *words: str, target: str = "y", splits: Splits | None = None) -> list[str]:
    """The doubts about a table."""
    config = load_config(None, ["data.path=table.csv", f"data.target={target}", *words])
    rows, column = pa.Table.from_pandas(table, preserve_index=False), config.split.column
    schema = infer_schema(rows, config.data, split_column=column, split_column_is_feature=True)
    frame = typed_frame(rows, schema, config.data)
    y = frame[target].to_numpy()
    found = splits or make_splits(
        config.split,
        target=y if schema.target.task == "regression" else y.astype(str),
        task=schema.target.task,
        column=None if column is None else table[column].reset_index(drop=True),
    )
    fitted = fit_preprocessor(frame.iloc[found.train], schema, config.preprocess)
    encoded = fitted.transform(frame)
    return find_doubts(frame, encoded, found, schema, preprocessor=fitted, config=config)


@pytest.mark.parametrize("num_rows", [150, 1000])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_clean_table_raises_none(task: str, num_rows: int) -> None:
    for seed in range(3):
        assert look(make_table(num_rows, task=task, seed=seed)) == []


def test_real_tables_raise_none() -> None:
    assert look(pd.read_csv(ROOT / "data" / "telco.csv"), target="churn") == []
    for load in (load_breast_cancer, load_iris, load_diabetes):
        assert look(load(as_frame=True).frame, target="target") == []


LEAKS = {
    "binary": lambda y, rng: (y == "yes") * 2.0 + rng.random(len(y)),
    "multiclass": lambda y, rng: y.str.upper(),
    "regression": lambda y, rng: np.exp(y),
}


@pytest.mark.parametrize("task", LEAKS)
def test_a_column_that_gives_the_target_is_named(task: str) -> None:
    table = make_table(600, task=task)
    (doubt,) = look(table.assign(twin=LEAKS[task](table["y"], np.random.default_rng(0))))
    assert "a column alone nearly gives the target" in doubt
    assert "'twin' (" in doubt
    assert "'data.drop=[twin]'" in doubt


def test_a_gap_that_gives_the_target_is_named() -> None:
    table = make_table(600)
    (doubt,) = look(table.assign(left=np.where(table["y"] == "yes", np.nan, np.arange(600) % 7)))
    assert "nearly gives the target" in doubt
    assert "'left'" in doubt


def test_copies_of_train_rows_among_the_test_rows_are_counted() -> None:
    table = make_table(600)
    doubled = pd.concat([table, table.iloc[:90]], ignore_index=True)
    splits = Splits(train=np.arange(400), val=np.arange(400, 500), test=np.arange(500, 690))
    (doubt,) = look(doubled, splits=splits)
    assert "90 of 190 test rows have the very features of a train row" in doubt
    few = table[["colour", "member", "y"]]  # of so few levels that rows must be alike
    assert look(few) == []


def test_what_only_grows_under_a_split_by_time_is_named() -> None:
    table = make_table(800)
    order = table["day"].rank(method="first").to_numpy()
    doubts = look(table.assign(counter=order / 3.0), *BY_TIME)
    assert len(doubts) == 1
    assert "beyond the train rows' range in 'day." in doubts[0]
    assert "mend: 'data.drop=[day,counter]'" in doubts[0]
    assert "'counter' (100%)" in doubts[0]


def test_a_column_that_has_moved_is_named() -> None:
    table = make_table(800)
    is_late = table["day"] > table["day"].quantile(0.85)
    rng = np.random.default_rng(0)
    moved = table.assign(rate=rng.normal(size=800) + 2 * is_late, shop=np.where(is_late, "b", "a"))
    moved["shop"] = np.where(rng.random(800) < 0.2, "c", moved["shop"])
    doubts = look(moved, *BY_TIME, "data.drop=day")
    assert len(doubts) == 1
    assert "distributed otherwise than the train rows" in doubts[0]
    assert "'rate' (" in doubts[0]
    assert "'shop' (" in doubts[0]
    assert "'age'" not in doubts[0]


def test_a_feature_that_numbers_the_rows_is_named() -> None:
    numbers = np.random.default_rng(0).permutation(600) + 40_000
    (doubt,) = look(make_table(600).assign(customer=numbers))
    assert "'customer' (600 whole numbers, each once)" in doubt
    (doubt,) = look(
        make_table(600).assign(code=[f"c{place // 2 * 2 - place // 7}" for place in range(600)]),
        "preprocess.min_level_rows=1",
    )
    assert "'code' (" in doubt


def test_a_rare_class_is_named() -> None:
    table = make_table(3000)
    keep = (table["y"] == "no") | (np.arange(3000) % 40 == 0)
    (doubt,) = look(table[keep])
    assert "class 'yes' has" in doubt
    assert "accuracy says little" in doubt


def test_a_large_table_is_looked_at_on_fewer_rows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn_train.doubts, "MOST_ROWS", 1000)
    table = make_table(4000)
    (doubt,) = look(table.assign(twin=LEAKS["binary"](table["y"], np.random.default_rng(0))))
    assert "(on 2,200 of 4,000 rows)" in doubt


def test_few_rows_for_many_weights_or_columns_are_doubted() -> None:
    assert "97,000 weights learn from 300 train rows" in doubt_size(300, 97_000, 10)[0]
    assert "200 columns for 300 train rows" in doubt_size(300, 900, 200)[0]
    assert doubt_size(4931, 96_865, 19) == doubt_size(300, 2_000, 10) == []
    assert "follows 999 validation rows closely" in doubt_calibration(999)[0] and doubt_calibration(1000) == []


def test_a_run_keeps_its_doubts_and_shows_them(tiny_run: TinyRun) -> None:
    run = tiny_run("binary", "model.width=256", "report.page=true", "report.dpi=40", num_rows=300)
    (doubt,) = json.loads((run / "metrics.json").read_text())["warnings"]
    assert "weights learn from" in doubt
    assert "weights learn from" in (run / "report.html").read_text()
    # `day` has no time of day, so that its hour is left out: nobody needs to be told
    assert json.loads((run / "data.json").read_text())["warnings"] == []
