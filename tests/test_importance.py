"""Permutation importance: the columns that matter come first, the others are worth nothing."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train.config import load_config
from nn_train.engine import Engine
from tests.conftest import SMALL


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_columns_are_ranked_by_what_they_tell(tmp_path: Path, task: str) -> None:
    rng = np.random.default_rng(0)
    size, colour = rng.normal(50, 20, 1500), rng.choice(["red", "blue"], 1500)
    score = size / 20 + 0.8 * (colour == "red") + 0.1 * rng.normal(size=1500)
    frame = pd.DataFrame({"noise": rng.normal(size=1500), "size": size, "colour": colour})
    frame["y"] = score if task == "regression" else np.where(score > np.median(score), "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    words = [*SMALL, f"data.path={tmp_path / 't.csv'}", "data.target=y", f"run.dir={tmp_path / 'run'}"]
    words += ["report.importance=true", "train.max_steps=300", "split.val=0.2", "split.test=0.1"]
    engine = Engine(load_config(None, words))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["importance"]
    assert list(found["columns"]) == ["size", "colour", "noise"]
    assert found["num_rows"] == 300  # the validation rows
    assert found["columns"]["colour"]["mean"] > 5 * found["columns"]["colour"]["std"] > 0
    assert abs(found["columns"]["noise"]["mean"]) < 0.1 * found["columns"]["size"]["mean"]
    error = found["error_by_top_column"]
    assert bool(error) == (task == "regression")
    curves = json.loads((tmp_path / "run" / "explain.json").read_text())["dependence"]["columns"]
    assert [curve["column"] for curve in curves] == list(found["columns"])
    along_size, along_colour, along_noise = (np.array(curve["mean"][0]) for curve in curves)
    assert along_size[-1] - along_size[0] > 5 * np.ptp(along_noise)
    assert dict(zip(curves[1]["labels"], along_colour > along_colour.mean(), strict=True)) == {
        "red": True,
        "blue": False,
    }
    if error:
        assert error["column"] == "size" and sum(error["rows"]) == 300
        edges = [float(part) for label in error["labels"] for part in label.split(" to ")]
        assert edges == sorted(edges)  # in the unit of the table
        assert edges[0] >= size.min() - 0.01 and edges[-1] <= size.max() * 1.001
