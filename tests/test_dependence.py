"""Partial dependence: the curves are those of a table in which the column holds one value in every row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from nn_train.decision import Decision
from nn_train.dependence import MOST_CLASSES, MOST_LEVELS, MOST_ROWS, NUM_POINTS, partial_dependence
from nn_train.importance import Predict, take_evenly
from nn_train.models import build_model
from nn_train.packed import Batch, PackedRows
from nn_train.preprocessor import Encoded, Preprocessor
from nn_train.schema import Task
from tests.test_models import small_config
from tests.test_preprocessing import KINDS, SCALERS, fit, typed

NUM_ROWS = 700
DECISION = Decision(temperature=1.4, threshold=0.5)


def as_rows(encoded: Encoded) -> PackedRows:
    assert encoded.y is not None
    return PackedRows(
        x_num=torch.from_numpy(encoded.x_num),
        x_cat=torch.from_numpy(encoded.x_cat.astype(np.int64)),
        y=torch.from_numpy(encoded.y),
    )


def predictor(fitted: Preprocessor) -> Predict:
    """A network whose random weights make every input count, bins included."""
    torch.manual_seed(0)
    network = build_model(
        small_config("mlp", num_numbers=len(fitted.numeric), width=32, num_embedding=4, one_hot_max=5, dropout=0),
        bins=fitted.bins,
        cardinalities=fitted.cardinalities,
        num_outputs=fitted.target.num_outputs,
        task=fitted.target.task,
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)

    @torch.no_grad()
    def predict(batch: Batch) -> np.ndarray:
        return DECISION.predict(network(batch.x_num, batch.x_cat).numpy(), fitted)

    return predict


def setter(column: str, frame: pd.DataFrame) -> Callable[[str], Any]:
    """From a label of the curve to the value in the table that it stands for."""
    if column == "day":
        return pd.Timestamp
    return float if frame[column].dtype.kind == "f" else str


@pytest.mark.parametrize(
    ("task", "scaler"), [("binary", "quantile"), ("multiclass", "quantile"), *(("regression", s) for s in SCALERS)]
)
def test_a_curve_is_that_of_a_table_with_one_value_in_every_row(task: Task, scaler: str) -> None:
    frame = typed(NUM_ROWS, task=task)
    frame.loc[3, "day"] = pd.NaT
    fitted = fit(frame, task=task, scaler=scaler, num_bins=8)
    rows, predict = as_rows(fitted.transform(frame)), predictor(fitted)
    found = partial_dependence(rows, fitted, predict, columns=list(KINDS))
    assert [entry["column"] for entry in found["columns"]] == list(KINDS)
    positions = np.unique(np.linspace(0, NUM_ROWS - 1, MOST_ROWS).round().astype(int))
    assert found["num_rows"] == len(positions) == MOST_ROWS
    assert len(found["outputs"]) == (3 if task == "multiclass" else 1)
    classes = list(fitted.target.classes)
    followed = [classes.index(name) for name in found["outputs"]] if task == "multiclass" else [0]
    for entry in found["columns"]:
        value_of, column = setter(entry["column"], frame), entry["column"]
        for at, label in enumerate(entry["labels"]):
            changed = frame.iloc[positions].copy()
            changed[column] = None if label == "missing" else value_of(label)
            changed[column] = changed[column].astype(frame[column].dtype)
            encoded = as_rows(fitted.transform(changed))
            expected = predict(encoded.slice(0, MOST_ROWS)).reshape(MOST_ROWS, -1)[:, followed]
            scale = np.abs(expected).max()
            for name, values in (
                ("mean", expected.mean(axis=0)),
                ("low", np.quantile(expected, 0.1, axis=0)),
                ("high", np.quantile(expected, 0.9, axis=0)),
            ):
                shown = np.array(entry[name])[:, at]
                assert np.abs(shown - values).max() < 2e-3 * scale, (column, label, name)


def test_numbers_are_followed_over_their_middle_and_levels_by_their_frequency() -> None:
    frame = typed(NUM_ROWS)
    frame["size"] = np.where(frame["size"].isna(), np.nan, np.random.default_rng(0).lognormal(sigma=2, size=NUM_ROWS))
    frame["colour"] = np.random.default_rng(1).permutation([f"c{n}" for n in range(1, 38) for _ in range(n)][:NUM_ROWS])
    fitted = fit(frame)
    found = partial_dependence(as_rows(fitted.transform(frame)), fitted, predictor(fitted), columns=list(KINDS))
    size, age, colour, member, day = found["columns"]
    assert len(size["labels"]) == NUM_POINTS + 1 and size["labels"][-1] == "missing" and size["x"][-1] is None
    assert size["x"][:-1] == sorted(size["x"][:-1])
    low, high = np.nanquantile(frame["size"], (0.025, 0.975))
    assert low * 0.9 < size["x"][0] < low * 1.1 and high * 0.9 < size["x"][-2] < high * 1.1
    assert all(
        label == f"{x:g}" and float(label) in set(frame["age"])
        for label, x in zip(age["labels"], age["x"], strict=True)
    )
    counts = frame["colour"].value_counts()
    assert len(colour["labels"]) == MOST_LEVELS and set(colour["labels"]) <= set(counts.index[:15])
    assert sorted(member["labels"]) == ["no", "yes"] and member["x"] == [None, None]
    assert day["labels"] == sorted(day["labels"]) and set(day["labels"]) <= set(frame["day"].dt.strftime("%Y-%m-%d"))


def test_a_number_of_few_values_is_followed_over_all_of_them() -> None:
    frame = typed(NUM_ROWS)
    frame["age"] = np.where(np.arange(NUM_ROWS) == 5, 3.0, np.where(np.arange(NUM_ROWS) % 2, 0.0, 1.0))
    fitted = fit(frame)
    found = partial_dependence(as_rows(fitted.transform(frame)), fitted, predictor(fitted), columns=["age"])
    assert found["columns"][0]["labels"] == ["0", "1", "3"]


def test_of_many_classes_the_most_frequent_are_followed() -> None:
    frame = typed(NUM_ROWS, task="multiclass")
    frame["y"] = np.random.default_rng(0).choice(["low", "mid", "high"], p=[0.2, 0.1, 0.7], size=NUM_ROWS)
    fitted = fit(frame, task="multiclass")
    found = partial_dependence(as_rows(fitted.transform(frame)), fitted, predictor(fitted), columns=["age"])
    assert found["outputs"] == ["high", "low", "mid"][:MOST_CLASSES]
    assert np.allclose(np.sum(found["columns"][0]["mean"], axis=0), 1)  # all three classes there are


def test_rows_are_taken_from_the_whole_split() -> None:
    rows = PackedRows(x_num=torch.zeros(1000, 0), x_cat=torch.zeros(1000, 0), y=torch.arange(1000))
    assert take_evenly(rows, 4).y.tolist() == [0, 333, 666, 999]
    assert take_evenly(rows, 5000).y.tolist() == list(range(1000))
