"""Costs of decisions: how they are written, what is decided by them, and what they are refused for."""

import json

import numpy as np
import pytest

from nn_train import load_bundle, load_config
from nn_train.costs import cheapest, least_cost_threshold, mean_cost, read_costs
from nn_train.errors import ConfigError
from nn_train.metrics import compute_metrics
from nn_train.schema import TargetSpec
from nn_train.settings import EvaluationConfig
from tests.conftest import TinyRun

TWO = TargetSpec(name="y", task="binary", classes=("no", "yes"))
THREE = TargetSpec(name="y", task="multiclass", classes=("low", "mid", "high"))


def test_both_ways_to_write_costs_of_two_classes_mean_the_same() -> None:
    named = read_costs({"false_positive": 1.0, "false_negative": 5.0}, TWO)
    table = read_costs({"no": {"yes": 1.0}, "yes": {"no": 5.0}}, TWO)
    assert named is not None and table is not None
    np.testing.assert_array_equal(named, [[0, 1], [5, 0]])
    np.testing.assert_array_equal(named, table)
    assert least_cost_threshold(named) == pytest.approx(1 / 6)
    assert read_costs(None, TWO) is None


def test_the_threshold_is_where_both_decisions_cost_the_same() -> None:
    costs = np.array([[0.0, 3.0], [7.0, 1.0]])
    cut = least_cost_threshold(costs)
    alarm, silence = np.array([1 - cut, cut]) @ costs[:, 1], np.array([1 - cut, cut]) @ costs[:, 0]
    assert alarm == pytest.approx(silence)


def test_several_classes_are_decided_by_the_least_expected_cost() -> None:
    costs = read_costs({"high": {"low": 10.0}}, THREE)
    assert costs is not None
    p = np.array([[0.5, 0.3, 0.2], [0.8, 0.15, 0.05], [0.1, 0.2, 0.7]])
    expected = [[sum(row[t] * costs[t, d] for t in range(3)) for d in range(3)] for row in p]
    np.testing.assert_array_equal(cheapest(p, costs), np.argmin(expected, axis=1))
    assert cheapest(p, costs)[0] != p[0].argmax()  # `low` would miss a `high`
    y = np.array([0, 0, 2])
    values = compute_metrics(y, p, task="multiclass", costs=costs)
    assert values["mean_cost"] == pytest.approx(costs[y, cheapest(p, costs)].mean())
    assert values["accuracy"] == pytest.approx((y == cheapest(p, costs)).mean())
    plain = compute_metrics(y, p, task="multiclass")
    assert {name: values[name] for name in ("log_loss", "roc_auc", "top_2_accuracy")} == {
        name: plain[name] for name in ("log_loss", "roc_auc", "top_2_accuracy")
    }
    assert mean_cost(y, y, costs) == 0


REFUSED = {
    "a word": ({"evaluation.costs": "cheap"}, "give {false_positive"),
    "another mistake": ({"evaluation.costs.false_alarm": 3}, "give {false_positive"),
    "less than nothing": ({"evaluation.costs.false_positive": -1}, "from 0 to"),
    "a truth value": ({"evaluation.costs.false_positive": True}, "from 0 to"),
    "a metric as well": (
        {"evaluation.costs.false_positive": 3, "evaluation.threshold_metric": "f1"},
        "each choose the decisions",
    ),
    "a number to predict": ({"evaluation.costs.false_positive": 3, "data.task": "regression"}, "are for classes"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_settings_that_make_no_costs_are_refused(how: str) -> None:
    settings, words = REFUSED[how]
    with pytest.raises(ConfigError, match=words):
        load_config(None, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


MISFITS = {
    "an unknown class": ({"yes": {"perhaps": 2.0}}, TWO, "names the class 'perhaps'"),
    "two classes of three": ({"false_positive": 2.0}, THREE, "is for two classes, and there are 3"),
    "a right decision that costs more": ({"yes": {"yes": 9.0}}, TWO, "a right 'yes' costs more"),
    "no cost": ({"false_positive": 0.0, "false_negative": 0.0}, TWO, "no wrong decision costs more"),
    "a number": ({"false_positive": 2.0}, TargetSpec(name="y", task="regression"), "are for classes"),
}


@pytest.mark.parametrize("how", MISFITS)
def test_costs_that_do_not_fit_the_classes_are_refused(how: str) -> None:
    setting, target, words = MISFITS[how]
    with pytest.raises(ConfigError, match=words):
        read_costs(setting, target)


def test_what_auto_means() -> None:
    assert EvaluationConfig().threshold_by == "f1"
    assert EvaluationConfig(costs={"false_positive": 2.0}).threshold_by == "no"
    assert EvaluationConfig(threshold_metric="accuracy").threshold_by == "accuracy"


WORDS = {
    "binary": ("evaluation.costs={false_positive: 1, false_negative: 4}",),
    "multiclass": ("evaluation.costs={high: {low: 9, mid: 6}}",),
}


@pytest.mark.parametrize("task", WORDS)
def test_a_run_decides_by_its_costs_and_says_so(task: str, tiny_run: TinyRun) -> None:
    run = tiny_run(task, *WORDS[task], "evaluation.calibration=isotonic", "report.page=true", "report.dpi=40")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["decision"]["costs"]
    assert metrics["test"]["mean_cost"] >= 0
    bundle = load_bundle(run)
    assert bundle.decision.costs == tuple(map(tuple, metrics["decision"]["costs"]))
    assert bundle.info["format"] == 2
    if task == "binary":
        assert bundle.decision.threshold == pytest.approx(0.2)
    page = (run / "report.html").read_text()
    assert "least expected cost" in page
    assert "isotonic" in page


def test_a_class_that_is_not_there_is_told_before_training(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="names the class 'perhaps'"):
        tiny_run("binary", "evaluation.costs={perhaps: {no: 2}}")
