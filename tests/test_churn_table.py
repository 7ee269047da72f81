"""A small churn table as companies have them, end to end, by its path, its target and the columns to drop alone.

Identifier columns, a constant, holes in words and in numbers and in the target, and one customer in seven who leaves.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from nn_train import load_bundle, load_config
from nn_train.preparation import prepare_data
from tests.conftest import Start

FEATURES = ["gender", "age", "days_subscribed", "multi_screen", "weekly_mins", "night_mins", "videos", "days_inactive",
            "support_calls"]  # fmt: skip
DROPPED = ["customer_id", "phone_no", "year"]


def make_churn_table(num_rows: int = 1600, *, seed: int = 0) -> pd.DataFrame:
    """Customers of a made-up streaming service; who leaves follows from four of the columns, and from chance."""
    rng = np.random.default_rng(seed)
    calls = rng.poisson(1.5, num_rows)
    multi_screen = rng.random(num_rows) < 0.1
    weekly_mins = rng.normal(270, 80, num_rows).clip(0)
    days_inactive = rng.poisson(3, num_rows)
    score = -3.4 + 3.0 * (calls >= 4) + 2.6 * multi_screen + 2.8 * (weekly_mins > 370) + 0.25 * (days_inactive - 3)
    leaves = rng.random(num_rows) < 1 / (1 + np.exp(-score))
    table = pd.DataFrame(
        {
            "year": 2015,
            "customer_id": rng.choice(np.arange(100_000, 999_999), num_rows, replace=False),
            "phone_no": [f"{a}-{b:04}" for a, b in zip(rng.integers(300, 430, num_rows), range(num_rows), strict=True)],
            "gender": rng.choice(["Female", "Male"], num_rows),
            "age": rng.normal(39, 10, num_rows).round().clip(18, 82).astype(int),
            "days_subscribed": rng.integers(1, 244, num_rows),
            "multi_screen": np.where(multi_screen, "yes", "no"),
            "weekly_mins": weekly_mins.round(2),
            "night_mins": rng.normal(100, 20, num_rows).round().astype(int),
            "videos": rng.poisson(4.5, num_rows),
            "days_inactive": days_inactive.astype(float),
            "support_calls": calls,
            "churn": leaves.astype(float),
        }
    )
    table.loc[1, "customer_id"] = table.loc[0, "customer_id"]  # nobody's ids are perfect
    for name, count in (("gender", 24), ("days_inactive", 28), ("churn", 35)):
        table.loc[rng.choice(num_rows, count, replace=False), name] = np.nan
    table["churn"] = table["churn"].astype("Int64")  # as 0 and 1, or nothing
    return table


@pytest.fixture
def churn_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_churn.csv"
    make_churn_table().to_csv(path, index=False)
    return path


def test_three_settings_train_a_network_that_is_judged_beside_the_most_frequent_class(
    churn_file: Path, tmp_path: Path, start: Start
) -> None:
    done = start(f"data.path={churn_file}", "data.target=churn", f"data.drop=[{','.join(DROPPED)}]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not re.search(r"\w+Warning\b", done.stdout + done.stderr)
    assert "warning: 35 rows without a target were dropped" in done.stdout

    run = tmp_path / "runs" / "my_churn"
    metrics = json.loads((run / "metrics.json").read_text())
    network, majority = metrics["test"], metrics["baselines"]["majority"]["test"]
    test = pd.read_parquet(run / "predictions.parquet")
    truth = (test["target"].astype(str) == "1").to_numpy()
    assert majority["accuracy"] == pytest.approx(1 - truth.mean())
    assert majority["accuracy"] > 0.84  # so that accuracy says little,
    assert majority["roc_auc"] == 0.5
    assert network["roc_auc"] == pytest.approx(roc_auc_score(truth, test["p_1"]))  # and this says much
    assert network["roc_auc"] > 0.75
    assert network["average_precision"] > 2.5 * truth.mean()
    assert network["log_loss"] < majority["log_loss"] - 0.05
    assert "majority" in (run / "report.html").read_text()

    schema = {column["name"]: column for column in json.loads((run / "schema.json").read_text())["columns"]}
    assert [name for name, column in schema.items() if not column["dropped"]] == FEATURES
    assert schema["gender"]["num_missing"] + schema["days_inactive"]["num_missing"] > 40

    bundle = load_bundle(run)
    assert list(bundle.features) == FEATURES
    hollow = dict.fromkeys(FEATURES)  # nothing is known of this customer
    busy = {"support_calls": 6, "multi_screen": "yes", "weekly_mins": 420.0, "gender": None}
    quiet = {"support_calls": 1, "multi_screen": "no", "weekly_mins": 250.0, "gender": None}
    p = bundle.predict([hollow, hollow | busy, hollow | quiet])["p_1"].to_numpy()
    assert np.isfinite(p).all()
    assert p[1] > 0.6 > 0.3 > p[2]


def test_identifiers_and_constants_are_left_out_with_a_word_where_nothing_is_dropped(churn_file: Path) -> None:
    data = prepare_data(load_config(None, [f"data.path={churn_file}", "data.target=churn"]))
    assert [column.name for column in data.schema.features] == FEATURES
    assert set(data.schema.id_columns) == {"customer_id", "phone_no"}  # kept beside the predictions
    told = " ".join(data.info["warnings"])
    for name in DROPPED:
        assert f"column '{name}' was dropped" in told
