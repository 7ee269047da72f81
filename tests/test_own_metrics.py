"""Metrics of the user's: imported where the user names them, called, and seen in what a run leaves."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nn_train.config import load_config
from nn_train.errors import ConfigError, TrainingError
from nn_train.metrics import own_metric_name, selection_metric
from nn_train.own_metrics import load_metric
from nn_train.report_run import build_leaderboard, read_run
from nn_train.train import main
from tests.conftest import PAGE, SMALL

SOURCE = """
import numpy as np

def gap(truth, prediction):
    return np.abs(truth - prediction).mean()

gap.greater_is_better = False

def hits(truth, prediction):
    return ((prediction > 0.5) == truth).mean()

def fails(truth, prediction):
    raise KeyError("no")

number = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's that no other test has imported."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_metric_is_called_with_its_sign(package: str) -> None:
    truth, p = np.array([0, 1, 1]), np.array([0.2, 0.9, 0.4])
    hits, gap = load_metric(f"{package}:hits"), load_metric(f"-{package}:gap")
    assert hits is not None and hits(truth, p) == pytest.approx(2 / 3)
    assert gap is not None and gap(truth, p) == pytest.approx(-0.3)
    assert np.isnan(hits(truth, np.array([0.2, np.nan, 0.4])))
    assert load_metric("roc_auc") is None


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("{}:gap", "says greater_is_better=False"),
        ("{}:nothing", "is not found"),
        ("{}_not_there:gap", "is not found"),
        ("{}:number", "is no function"),
    ],
)
def test_what_is_no_metric_is_refused(package: str, setting: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_metric(setting.format(package))


def test_a_metric_that_fails_is_named(package: str) -> None:
    metric = load_metric(f"{package}:fails")
    assert metric is not None
    with pytest.raises(TrainingError, match=r"fails failed on predictions \(2,\): KeyError"):
        metric(np.zeros(2), np.zeros(2))


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("a.b:gini", "gini"),
        ("-a:gini", "neg_gini"),
        ("-a:B.c", "neg_c"),
        ("a:rmse", "own_rmse"),
        ("-a:loss", "neg_own_loss"),
    ],
)
def test_names_in_records_tell_the_direction_and_are_nobody_elses(setting: str, name: str) -> None:
    assert own_metric_name(setting) == name == selection_metric(setting, "binary")


def test_a_run_selected_by_an_own_metric_and_its_config_in_somebody_elses_hands(
    package: str, table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [*SMALL, *PAGE, f"data.path={table_file}", "data.target=y", "train.max_steps=4", "train.eval_every=1"]
    own = f"train.selection_metric=-{package}:gap"
    switches = ["report.importance=true", "report.baselines=[majority,linear]"]
    assert main([*words, f"run.dir={run}", own, *switches]) == 0, capsys.readouterr().err
    assert "neg_gap" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = [line["neg_gap"] for line in lines if line["split"] == "val"]
    assert metrics["selection"]["metric"] == "neg_gap"
    assert metrics["selection"]["value"] == max(values) < 0
    assert metrics["test"]["neg_gap"] < 0 and metrics["importance"]["metric"] == "log_loss"
    assert all(metrics["baselines"][name]["test"]["neg_gap"] < 0 for name in ("majority", "linear"))
    assert build_leaderboard(read_run(run))[0][0] == "neg_gap"
    # the config of a run imports nothing by itself; to read it imports nothing either
    del sys.modules[package]
    assert main(["--config", str(run / "config.yaml"), f"run.dir={tmp_path / 'other'}"]) == 2
    assert f"would import -{package}:gap" in capsys.readouterr().err
    assert load_config(run / "config.yaml").train.selection_metric == f"-{package}:gap"
    assert package not in sys.modules
    assert not (tmp_path / "other").exists()
    again = ["--config", str(run / "config.yaml"), f"run.dir={tmp_path / 'other'}", own, "report.page=false"]
    assert main(again) == 0


@pytest.mark.parametrize("word", ["a b:c", "a:", ":c", "a:b:c", "rmsee"])
def test_a_name_that_is_neither_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.selection_metric"):
        load_config(words=[f"train.selection_metric={word}"])
