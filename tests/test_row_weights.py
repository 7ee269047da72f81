"""A column that weighs rows: what it may hold, that it is no feature, and that it counts as it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError, DataError
from nn_train.preparation import PreparedData, prepare_data
from nn_train.schema import TASKS, Task
from nn_train.splits import load_splits
from tests.conftest import BARE, SMALL, make_table

CPU = torch.device("cpu")
NUM_ROWS = 200
WEIGHTS = np.random.default_rng(0).choice([0, 0.25, 1, 3], size=NUM_ROWS)
WORDS = (*SMALL, "data.target=y", "tracking.log_every_steps=1", "split.seed=3")


def write(path: Path, frame: pd.DataFrame) -> Path:
    frame.to_csv(path, index=False)
    return path


def weighted(path: Path, weights: Any = WEIGHTS, *, task: Task = "binary") -> Path:
    """A table whose column `w` weighs its rows."""
    return write(path, make_table(NUM_ROWS, task=task).assign(w=weights))


def prepare(path: Path, *words: str) -> PreparedData:
    return prepare_data(load_config(None, [*WORDS, f"data.path={path}", *words]))


def train(path: Path, run_dir: Path, *words: str) -> Engine:
    """Train in this process."""
    engine = Engine(load_config(None, [*WORDS, f"data.path={path}", f"run.dir={run_dir}", *words]))
    try:
        engine.prepare()
        engine.train()
        engine.evaluate()
    finally:
        engine.close()
    return engine


def losses(run_dir: Path, split: str = "train") -> np.ndarray:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["split"] == split])


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


# --- what the column may hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message", "fix"),
    [
        ("", "column 'w' has no weight in line 42 of table.csv", "give every row one"),
        ("NA", "column 'w' has no weight in line 42 of table.csv", "give every row one"),
        ("-1", "holds the weight '-1' in line 42 of table.csv, which is negative", "0 leaves a row out"),
        ("inf", "holds the weight 'inf' in line 42 of table.csv, which is infinite", "correct it"),
        ("-inf", "holds the weight '-inf' in line 42 of table.csv, which is infinite", "correct it"),
        ("much", "holds the weight 'much' in line 42 of table.csv, which is no number", "another data.weight"),
        ("1e13", "in line 42 of table.csv, which is neither 0 nor from 1e-12 to 1e+12", "scale all weights"),
        ("1e-300", "in line 42 of table.csv, which is neither 0 nor from 1e-12 to 1e+12", "scale all weights"),
    ],
)
def test_a_weight_that_is_none_is_named(tmp_path: Path, value: str, message: str, fix: str) -> None:
    weights = ["1.5"] * NUM_ROWS
    weights[40] = value
    for infinite in ("error", "missing"):
        with pytest.raises(DataError) as caught:
            prepare(weighted(tmp_path / "table.csv", weights), "data.weight=w", f"data.infinite={infinite}")
        assert message in str(caught.value) and fix in caught.value.fix


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0] * NUM_ROWS, "column 'w' has the weight 0 in every row"),
        ([""] * NUM_ROWS, "column 'w' has no weight in line 2 of table.csv"),
        (["2024-01-01"] * NUM_ROWS, "column 'w' holds the weight '2024-01-01' in line 2"),
        (
            [True, False] * (NUM_ROWS // 2),
            "column 'w' holds the weight 'True' in line 2 of table.csv, which is no number",
        ),
    ],
)
def test_a_column_without_weights_is_refused(tmp_path: Path, weights: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        prepare(weighted(tmp_path / "table.csv", weights), "data.weight=w")
    assert message in str(caught.value) and caught.value.fix


@pytest.mark.parametrize("value", [True, b"1", [1.0], pd.Timestamp("2024-01-01")])
def test_a_typed_column_that_holds_no_numbers_is_refused(tmp_path: Path, value: Any) -> None:
    make_table(NUM_ROWS).assign(w=[value] * NUM_ROWS).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="column 'w' holds") as caught:
        prepare(tmp_path / "table.parquet", "data.weight=w")
    assert "another data.weight" in caught.value.fix


def test_train_rows_that_all_weigh_nothing_are_refused(tmp_path: Path) -> None:
    parts = np.resize(["train", "train", "val", "test"], NUM_ROWS)
    frame = make_table(NUM_ROWS).assign(part=parts, w=(parts == "val").astype(int))
    path = write(tmp_path / "table.csv", frame)
    with pytest.raises(DataError, match="column 'w' has the weight 0 in every train row"):
        prepare(path, "data.weight=w", "split.method=column", "split.column=part")


def test_a_column_that_is_not_there_is_named_with_one_that_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no column 'W'(.|\n)*data\.weight=w"):
        prepare(weighted(tmp_path / "table.csv"), "data.weight=W")


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("data.weight=y", "data.target"),
        ("data.columns.w=numeric", "data.columns"),
        ("split.column=w", "split.column"),
    ],
)
def test_a_column_that_is_something_else_as_well_is_refused(word: str, other: str) -> None:
    words = ["data.target=y", "data.weight=w", "split.method=group", "split.column=g", word]
    with pytest.raises(ConfigError, match=f"is named by {other} as well"):
        load_config(words=words)


def test_rows_without_a_target_need_no_weight(tmp_path: Path) -> None:
    frame = make_table(NUM_ROWS).assign(w="2")
    frame.loc[40:43, "y"] = None
    frame.loc[40:43, "w"] = ["", "much", "-1", "inf"]
    prepared = prepare(write(tmp_path / "table.csv", frame), "data.weight=w")
    weight = prepared.rows("train", device=CPU).weight
    assert weight is not None and weight.unique().tolist() == [2]


def test_a_single_process_run_shows_the_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nn_train.train import main

    path = weighted(tmp_path / "table.csv", [-1, *[1] * (NUM_ROWS - 1)])
    words = [*WORDS, f"data.path={path}", f"run.dir={tmp_path / 'run'}"]
    assert main([*words, "data.weight=w"]) == 2
    shown = capsys.readouterr().err
    assert "error: " in shown and "'-1' in line 2 of table.csv, which is negative\n  mend: correct it" in shown
    assert main([*words, "data.drop=w", "train.class_weights={yes: 2, maybe: 3}"]) == 2
    shown = capsys.readouterr().err
    assert "train.class_weights names the class 'maybe'; the classes are no, yes" in shown
    assert main([*words, "data.drop=w", "train.class_weights=[1,2,3]"]) == 2
    shown = capsys.readouterr().err
    assert "train.class_weights lists 3 weights, and there are 2 classes, in this order: no, yes" in shown
    assert "mend: list 2 numbers in that order, or name classes: train.class_weights.yes=WEIGHT" in shown
    assert not (tmp_path / "run").exists()


# --- no feature -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_column_is_no_feature_and_is_packed_beside_the_target(tmp_path: Path, task: Task) -> None:
    path = weighted(tmp_path / "table.csv", task=task)
    as_feature, as_weight = prepare(path), prepare(path, "data.weight=w")
    without = prepare(path, "data.drop=w")
    assert len({prepared.folder for prepared in (as_feature, as_weight, without)}) == 3  # the cache's keys
    assert "w" in [spec.name for spec in as_feature.schema.features]
    assert "w" not in [spec.name for spec in as_weight.schema.features]
    assert {spec.name: spec.dropped for spec in as_weight.schema.columns}["w"] == "data.weight"
    inputs = (*as_weight.preprocessor.numeric, *as_weight.preprocessor.categorical)
    assert "w" not in {column.column for column in inputs}
    for split in ("train", "val", "test"):
        rows, plain = as_weight.rows(split, device=CPU), without.rows(split, device=CPU)
        assert rows.weight is not None and plain.weight is None
        assert rows.weight.tolist() == WEIGHTS[as_weight.truth(split)["row"]].astype(np.float32).tolist()
        assert rows.x_num.equal(plain.x_num) and rows.x_cat.equal(plain.x_cat) and rows.y.equal(plain.y)
        batch = rows.take(torch.tensor([3, 0]))
        assert batch.weight is not None and batch.weight.tolist() == rows.weight[[3, 0]].tolist()
        assert rows.slice(2, 5).weight is not None and plain.slice(2, 5).weight is None


def test_an_id_may_weigh_rows_and_stands_beside_the_predictions(tmp_path: Path) -> None:
    prepared = prepare(weighted(tmp_path / "table.csv"), "data.weight=w", "data.id=w")
    assert prepared.schema.id_columns == ("w",)
    assert "w" not in [spec.name for spec in prepared.schema.features]


def test_weights_of_separate_tables_are_read_from_each(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        weighted(tmp_path / f"{name}.csv", ["2"] * NUM_ROWS)
    words = ["data.weight=w", "split.method=files", f"split.val_path={tmp_path / 'val.csv'}"]
    words.append(f"split.test_path={tmp_path / 'test.csv'}")
    assert prepare(tmp_path / "train.csv", *words).rows("val", device=CPU).weight is not None
    weighted(tmp_path / "test.csv", ["2"] * 7 + ["-2"] + ["2"] * (NUM_ROWS - 8))
    with pytest.raises(DataError, match=r"'-2' in line 9 of test\.csv, which is negative"):
        prepare(tmp_path / "train.csv", *words)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("task", TASKS)
def test_weights_of_one_change_nothing(tmp_path: Path, task: Task, reduction: str) -> None:
    path = weighted(tmp_path / "table.csv", 1, task=task)
    words = (f"train.gradient_reduction={reduction}", "train.global_batch_size=37", "train.max_steps=30")
    train(path, tmp_path / "with", "data.weight=w", *words)
    train(path, tmp_path / "without", "data.drop=w", *words)
    # the weights of the network bit for bit, and so the validation losses
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert largest_difference(one, other) == 0
    assert losses(tmp_path / "with", "val").tolist() == losses(tmp_path / "without", "val").tolist()
    found, expected = losses(tmp_path / "with"), losses(tmp_path / "without")
    if (
        task == "multiclass"
    ):  # torch sums a cross-entropy in another order than a vector: the last bits of what is shown
        np.testing.assert_allclose(found, expected, rtol=5e-7)
    else:
        assert found.tolist() == expected.tolist()


def test_whole_weights_are_rows_that_occur_so_often(tmp_path: Path) -> None:
    # only numbers, not scaled: what is fitted on the train rows is then the same for both tables
    frame = make_table(NUM_ROWS).assign(size=lambda table: table["size"].fillna(0), age=lambda table: table["age"] / 50)
    frame = frame[["size", "age", "y"]].assign(part=np.resize(["train", "train", "train", "val", "test"], NUM_ROWS))
    times = np.where(frame["part"] == "train", np.random.default_rng(1).integers(0, 4, size=NUM_ROWS), 1)
    path = write(tmp_path / "weights.csv", frame.assign(w=times))
    often = write(tmp_path / "often.csv", frame.loc[frame.index.repeat(times)])
    words = (*BARE, "model.dropout=0", "preprocess.scaler=none", "split.method=column", "split.column=part",
             "train.global_batch_size=1000", "train.max_steps=40")  # fmt: skip
    first = train(path, tmp_path / "first", "data.weight=w", *words)
    second = train(often, tmp_path / "second", *words)
    assert len(second.training.rows) == times[frame["part"] == "train"].sum() != len(first.training.rows)
    np.testing.assert_allclose(losses(tmp_path / "first"), losses(tmp_path / "second"), rtol=1e-6)
    np.testing.assert_allclose(losses(tmp_path / "first", "val"), losses(tmp_path / "second", "val"), rtol=1e-6)


def test_the_first_loss_is_the_weighted_mean_and_the_validation_loss_the_plain_one(tmp_path: Path) -> None:
    path = weighted(tmp_path / "table.csv")
    words = ("data.weight=w", "train.class_weights=balanced", "train.label_smoothing=0.2", "train.max_steps=1",
             "train.global_batch_size=1000", "model.dropout=0")  # fmt: skip
    training = train(path, tmp_path / "run", *words).training
    rows, splits = training.rows, load_splits(training.data.folder / "splits.npz")
    y = rows.y.numpy()
    counts = np.bincount(y)
    expected = WEIGHTS[splits.train] * (len(y) / (2 * counts))[y]
    assert rows.weight is not None
    np.testing.assert_allclose(rows.weight.numpy(), expected, rtol=1e-6)
    # one step of AdamW: the network after it is in `training`, that before it is built again
    val = training.logits(training.val_rows).squeeze(-1).double()
    target = training.val_rows.y.double()
    plain = F.binary_cross_entropy_with_logits(val, target)
    assert losses(tmp_path / "run", "val") == pytest.approx(float(plain), rel=1e-6)

    from nn_train.training import build_network

    with torch.no_grad():
        logits = build_network(training.config, training.data)(rows.x_num, rows.x_cat).squeeze(-1).double().numpy()
    p, smooth = 1 / (1 + np.exp(-logits)), 0.8 * y + 0.1
    row_losses = -(smooth * np.log(p) + (1 - smooth) * np.log(1 - p))
    assert losses(tmp_path / "run") == pytest.approx((expected * row_losses).sum() / expected.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "words", "listed", "named"),
    [
        ("binary", (), "[0.5,3]", "{no: 0.5, yes: 3}"),
        ("binary", ("data.positive=no",), "[0.5,3]", "{yes: 0.5, no: 3}"),
        ("multiclass", ("data.weight=w",), "[4,1,0.25]", "{high: 4, mid: 0.25}"),
    ],
)
def test_weights_in_the_order_of_the_classes_train_as_those_by_name(
    tmp_path: Path, task: Task, words: tuple[str, ...], listed: str, named: str
) -> None:
    path = weighted(tmp_path / "table.csv", task=task)
    words = ("model.dropout=0", "train.max_steps=3", *words)
    one = train(path, tmp_path / "listed", f"train.class_weights={listed}", *words).training
    other = train(path, tmp_path / "named", f"train.class_weights={named}", *words).training
    plain = train(path, tmp_path / "plain", *words).training
    assert one.rows.weight is not None and other.rows.weight is not None
    assert torch.equal(one.rows.weight, other.rows.weight)
    assert losses(tmp_path / "listed").tolist() == losses(tmp_path / "named").tolist()
    # three steps by equal gradients lead to equal weights
    assert largest_difference(one.network.state_dict(), other.network.state_dict()) == 0
    assert largest_difference(one.network.state_dict(), plain.network.state_dict()) > 0


def test_class_weights_are_for_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", make_table(NUM_ROWS, task="regression"))
    for word in ("train.class_weights=balanced", "train.label_smoothing=0.1", "train.loss=focal"):
        for task in ("auto", "regression"):  # found out from the table, or said before it is read
            with pytest.raises(ConfigError, match=r"(is|are) for classes"):
                train(path, tmp_path / "run", word, f"data.task={task}")
    assert not (tmp_path / "run").exists()
