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
    engine = Engine(load_config(None, [*words, "train.max_steps=300"]))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["importance"]
    assert list(found["columns"]) == ["size", "colour", "noise"]
    assert found["num_rows"] == 225
    assert found["columns"]["colour"]["mean"] > 5 * found["columns"]["colour"]["std"] > 0
    assert abs(found["columns"]["noise"]["mean"]) < 0.1 * found["columns"]["size"]["mean"]
    error = found["error_by_top_column"]
    assert bool(error) == (task == "regression")
    if error:
        assert error["column"] == "size" and sum(error["rows"]) == 225
        edges = [float(part) for label in error["labels"] for part in label.split(" to ")]
        assert edges == sorted(edges)  # in the unit of the table
        assert edges[0] >= size.min() - 0.01 and edges[-1] <= size.max() * 1.001
