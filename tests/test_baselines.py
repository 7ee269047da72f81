"""Baselines on real tables of scikit-learn, and on tables with something missing."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import nn_train.baselines
from nn_train import load_config
from nn_train.baselines import (
    BaselineData,
    BaselineResult,
    BaselineRows,
    check_baselines,
    choose_baselines,
    fit_baselines,
)
from nn_train.calibration import choose_threshold
from nn_train.errors import ConfigError
from nn_train.metrics import BY_TASK, compute_metrics
from nn_train.settings import ReportConfig
from nn_train.verdict import describe_verdict, find_rival

NO_CATEGORIES: tuple[int, ...] = ()


def split(
    x_num: np.ndarray, y: np.ndarray, *, x_cat: np.ndarray | None = None, cardinalities: tuple[int, ...] = NO_CATEGORIES
) -> BaselineData:
    """70, 15 and 15 % of the rows."""
    codes = np.zeros((len(y), 0)) if x_cat is None else x_cat
    order = np.random.default_rng(0).permutation(len(y))
    parts = np.split(order, [int(0.7 * len(y)), int(0.85 * len(y))])
    rows = [
        BaselineRows(x_num=x_num[part].astype(np.float32), x_cat=codes[part].astype(np.int32), y=y[part])
        for part in parts
    ]
    return BaselineData(train=rows[0], val=rows[1], test=rows[2], cardinalities=cardinalities)


def fit(data: BaselineData, task: str, *, seed: int = 0, threshold_metric: str = "f1") -> dict[str, BaselineResult]:
    num_classes = 0 if task == "regression" else int(max(data.train.y.max(), data.test.y.max(), 1)) + 1
    names = ["mean" if task == "regression" else "majority", "linear", "hist_gradient_boosting"]
    return fit_baselines(
        data, task=task, num_classes=num_classes, seed=seed, threshold_metric=threshold_metric, names=names
    )


def numbers(results: dict[str, BaselineResult]) -> dict[str, tuple]:
    return {name: (str(result.val), str(result.test)) for name, result in results.items()}


def mixed_table(num_rows: int = 1200, *, cardinality: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three numbers and a category, and a score that two of the numbers and the category make."""
    rng = np.random.default_rng(seed)
    x_num = rng.normal(size=(num_rows, 3))
    x_cat = np.minimum(rng.geometric(0.3 if cardinality < 10 else 0.05, num_rows) + 1, cardinality - 1)
    effects = rng.normal(size=cardinality)
    score = x_num[:, 0] - x_num[:, 1] + 1.5 * effects[x_cat] + 0.3 * rng.normal(size=num_rows)
    return np.column_stack([x_num, score]), x_cat[:, None]


TABLES = {
    "binary": (load_breast_cancer, "majority"),
    "multiclass": (load_digits, "majority"),
    "regression": (load_diabetes, "mean"),
}


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[BaselineData, dict[str, BaselineResult]]]:
    results = {}
    for task, (load, _) in TABLES.items():
        x, y = load(return_X_y=True)
        kept = slice(0, 600)  # of the digits: a tree per class and round takes its time
        data = split(x[kept], y[kept])
        results[task] = (data, fit(data, task))
    return results


@pytest.mark.parametrize("task", TABLES)
def test_names_and_metrics(task: str, fitted: dict) -> None:
    _, results = fitted[task]
    assert list(results) == [TABLES[task][1], "linear", "hist_gradient_boosting"]
    for result in results.values():
        assert set(BY_TASK[task]) <= set(result.val)
        assert list(result.val) == list(result.test)
        assert result.seconds >= 0


@pytest.mark.parametrize("split_name", ["val", "test"])
@pytest.mark.parametrize("name", ["linear", "hist_gradient_boosting"])
def test_models_beat_the_majority_and_the_mean(name: str, split_name: str, fitted: dict) -> None:
    values = {task: getattr(fitted[task][1][name], split_name) for task in TABLES}
    plain = {task: getattr(fitted[task][1][TABLES[task][1]], split_name) for task in TABLES}
    assert values["binary"]["roc_auc"] > 0.95 > plain["binary"]["roc_auc"] == 0.5
    assert values["binary"]["log_loss"] < 0.7 * plain["binary"]["log_loss"]
    assert values["binary"]["accuracy"] > 0.9 > plain["binary"]["accuracy"]
    assert values["multiclass"]["accuracy"] > 0.85 > 0.3 > plain["multiclass"]["accuracy"]
    assert values["multiclass"]["log_loss"] < 0.3 * plain["multiclass"]["log_loss"]
    assert values["regression"]["rmse"] < 0.9 * plain["regression"]["rmse"]
    assert values["regression"]["r2"] > 0.25 > 0.02 > plain["regression"]["r2"]


def test_the_plainest_models_by_hand(fitted: dict) -> None:
    data, results = fitted["regression"]
    want = compute_metrics(data.test.y, np.full(len(data.test.y), data.train.y.mean()), task="regression")
    assert results["mean"].test == pytest.approx(want, nan_ok=True)
    data, results = fitted["binary"]
    want = compute_metrics(data.test.y, np.full(len(data.test.y), data.train.y.mean()), task="binary")
    assert results["majority"].test == pytest.approx(want, nan_ok=True)
    data, results = fitted["multiclass"]
    shares = np.bincount(data.train.y) / len(data.train.y)
    want = compute_metrics(data.test.y, np.tile(shares, (len(data.test.y), 1)), task="multiclass")
    assert results["majority"].test == pytest.approx(want, nan_ok=True)


def test_the_threshold_is_chosen_on_the_validation_rows(fitted: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    data, results = fitted["binary"]
    seen = []

    def choose(y: np.ndarray, p: np.ndarray, metric: str, *, costs: np.ndarray | None) -> float:
        assert costs is None
        cut = choose_threshold(y, p, metric)
        seen.append((y, metric, cut, compute_metrics(y, p, task="binary", threshold=cut)))
        return cut

    monkeypatch.setattr(nn_train.baselines, "choose_threshold", choose)
    assert numbers(fit(data, "binary")) == numbers(results)
    assert [metric for _, metric, _, _ in seen] == ["f1"] * 3
    assert all(y is data.val.y for y, _, _, _ in seen)
    for (_, _, _, want), result in zip(seen, results.values(), strict=True):
        assert str(result.val) == str(want)
        assert result.val["f1"] >= result.val["f1_at_half"]


@pytest.mark.parametrize("task", ["binary", "regression"])
@pytest.mark.parametrize("cardinality", [6, 254, 255, 256, 257, 700])
def test_any_number_of_levels(task: str, cardinality: int) -> None:
    table, x_cat = mixed_table(cardinality=cardinality)
    x_cat[0] = cardinality - 1
    target = table[:, 3]
    y = (target > 0).astype(int) if task == "binary" else target
    results = fit(split(table[:, :3], y, x_cat=x_cat, cardinalities=(cardinality,)), task)
    for name in ("linear", "hist_gradient_boosting"):
        if task == "binary":
            assert results[name].test["roc_auc"] > 0.85
        else:
            assert results[name].test["r2"] > 0.6


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_without_numeric_columns(task: str) -> None:
    table, x_cat = mixed_table()
    level = x_cat[:, 0]
    y = {"binary": (level > 3).astype(int), "multiclass": level % 3, "regression": level + 0.1 * table[:, 0]}[task]
    results = fit(split(np.zeros((len(y), 0)), y, x_cat=x_cat, cardinalities=(6,)), task)
    for name in ("linear", "hist_gradient_boosting"):
        if task == "regression":
            assert results[name].test["r2"] > 0.9
        else:
            assert results[name].test["accuracy"] > 0.95


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_gaps(task: str) -> None:
    table, x_cat = mixed_table()
    rng = np.random.default_rng(1)
    x_num = np.where(rng.random((len(table), 3)) < 0.15, np.nan, table[:, :3])
    y = (table[:, 3] > 0).astype(int) if task == "binary" else table[:, 3]
    results = fit(split(x_num, y, x_cat=x_cat, cardinalities=(6,)), task)
    for name in ("linear", "hist_gradient_boosting"):
        if task == "binary":
            assert results[name].test["roc_auc"] > 0.8
        else:
            assert results[name].test["r2"] > 0.5


@pytest.mark.parametrize("absent", ["val", "test"])
def test_a_class_that_a_split_lacks(absent: str) -> None:
    x, y = load_digits(return_X_y=True)
    data = split(x[:500], y[:500] % 4)
    rows = getattr(data, absent)
    kept = rows.y != 2
    fewer = BaselineRows(x_num=rows.x_num[kept], x_cat=rows.x_cat[kept], y=rows.y[kept])
    results = fit(dataclasses.replace(data, **{absent: fewer}), "multiclass")
    for result in results.values():
        assert all(np.isfinite(value) for value in [*result.val.values(), *result.test.values()])
    assert results["hist_gradient_boosting"].test["accuracy"] > 0.8


def test_a_binary_split_of_one_class() -> None:
    x, y = load_breast_cancer(return_X_y=True)
    data = split(x, y)
    ones = data.val.y == 1
    val = BaselineRows(x_num=data.val.x_num[ones], x_cat=data.val.x_cat[ones], y=data.val.y[ones])
    results = fit(dataclasses.replace(data, val=val), "binary")
    assert np.isnan(results["linear"].val["roc_auc"])
    assert results["linear"].test["roc_auc"] > 0.95


def test_a_class_that_the_train_rows_lack_gets_no_probability() -> None:
    x, y = load_digits(return_X_y=True)
    data = split(x[:300], y[:300] % 3)  # codes 0, 1, 2 of four classes
    results = fit_baselines(data, task="multiclass", num_classes=4, seed=0, threshold_metric="f1", names=["linear"])
    assert results["linear"].test["accuracy"] > 0.7
    assert all(np.isfinite(value) for result in results.values() for value in result.test.values())


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_same_seed_gives_the_same_numbers(task: str) -> None:
    table, x_cat = mixed_table(600, cardinality=300)
    score = table[:, 3]
    y = {"binary": (score > 0).astype(int), "multiclass": np.digitize(score, [-1, 1]), "regression": score}[task]
    data = split(table[:, :3], y, x_cat=x_cat, cardinalities=(300,))
    assert numbers(fit(data, task, seed=3)) == numbers(fit(data, task, seed=3))


def test_the_linear_model_sees_rows_of_all_of_a_sorted_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn_train.baselines, "MOST_ROWS_LINEAR", 100)
    x, y = load_breast_cancer(return_X_y=True)
    data = split(x, y)
    order = np.argsort(data.train.y, kind="stable")
    train = BaselineRows(x_num=data.train.x_num[order], x_cat=data.train.x_cat[order], y=data.train.y[order])
    sampled = train.sample(100, seed=0)
    assert len(sampled.y) == len(sampled.x_num) == len(sampled.x_cat) == 100
    assert 0.4 < sampled.y.mean() < 0.8
    assert train.sample(10_000, seed=0) is train
    assert fit(dataclasses.replace(data, train=train), "binary")["linear"].test["roc_auc"] > 0.95


def test_wild_numbers() -> None:
    table, _ = mixed_table()
    x_num = table[:, :3].copy()
    x_num[::50, 2] = 1e6
    results = fit(split(x_num, (table[:, 3] > 0).astype(int)), "binary")
    assert results["linear"].test["roc_auc"] > 0.6
    assert results["hist_gradient_boosting"].test["roc_auc"] > 0.6


# --- libraries that may be there --------------------------------------------------------------------------------------

EXTRA = ("lightgbm", "xgboost", "catboost")


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_an_installed_library_stands_beside_the_others(name: str, task: str) -> None:
    pytest.importorskip(name)
    table, x_cat = mixed_table(500)
    score = table[:, 3]
    y = {"binary": (score > 0).astype(int), "multiclass": np.digitize(score, [-1, 1]), "regression": score}[task]
    x_num = np.where(np.random.default_rng(1).random((500, 3)) < 0.1, np.nan, table[:, :3])
    data = split(x_num, y, x_cat=x_cat, cardinalities=(6,))
    num_classes = 0 if task == "regression" else 4  # of which the train rows lack one, or two
    results = fit_baselines(data, task=task, num_classes=num_classes, seed=0, threshold_metric="f1", names=[name])
    if task == "binary":
        assert results[name].test["roc_auc"] > 0.85
    elif task == "multiclass":
        assert results[name].test["accuracy"] > 0.65
        assert results[name].test_prediction.shape == (75, 4)
    else:
        assert results[name].test["r2"] > 0.6


def test_a_library_that_fails_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setitem(nn_train.baselines.FITS, "lightgbm", fail)
    monkeypatch.setattr(nn_train.baselines.logger, "propagate", True)
    table, _ = mixed_table(200)
    data = split(table[:, :3], (table[:, 3] > 0).astype(int))
    results = fit_baselines(
        data, task="binary", num_classes=2, seed=0, threshold_metric="f1", names=["majority", "lightgbm"]
    )
    assert list(results) == ["majority"]
    assert "the baseline lightgbm was left out" in caplog.text
    assert "libgomp.so.1" in caplog.text


def test_a_list_chooses_and_an_absent_library_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn_train.baselines, "is_installed", lambda name: name not in EXTRA)
    assert choose_baselines(True, "binary") == ["majority", "linear", "hist_gradient_boosting"]
    assert choose_baselines(False, "binary") == []
    assert choose_baselines(("linear", "majority"), "regression") == ["mean", "linear"]
    check_baselines(("linear",))
    with pytest.raises(ConfigError, match=r"names lightgbm, and no such library.*\n.*nn-train\[boosting\]"):
        check_baselines(("linear", "lightgbm"))


@pytest.mark.parametrize(
    ("word", "want"),
    [("no", False), ("yes", True), ("true", True), ("linear", ("linear",)), ("[linear,mean]", ("linear", "mean"))],
)
def test_the_switch_takes_a_word_or_a_list(word: str, want: object) -> None:
    assert load_config(None, [f"report.baselines={word}"]).report.baselines == want
    config = load_config(None, [f"report.baselines={word}"])
    assert ReportConfig.model_validate(config.report.model_dump(mode="json")).baselines == want


def test_the_best_baseline_is_the_rival() -> None:
    values = {"majority": 0.6, "linear": 0.39, "lightgbm": float("nan")}
    verdict = find_rival("log_loss", 0.41, values)
    assert verdict is not None
    assert (verdict["rival"], verdict["network_is_better_by"]) == ("linear", pytest.approx(-0.02))
    told = verdict | {"split": "test", "interval": [-0.03, -0.01]}
    line = describe_verdict(told, ["linear"])
    assert "the network LOSES by log_loss to linear: network 0.4100, linear 0.3900" in line
    assert "The difference is 0.02 (95 % interval 0.01 to 0.03, paired bootstrap of the test rows)." in line
    unsure = describe_verdict(told | {"interval": [-0.03, 0.01]}, ["linear"])
    assert unsure.startswith("the network is behind linear by log_loss") and unsure.endswith("no difference is shown.")
    assert "wins by roc_auc" in describe_verdict(
        (find_rival("roc_auc", 0.9, {"linear": 0.8}) or {}) | {"split": "val", "interval": None}, []
    )
    assert find_rival("log_loss", float("nan"), values) is None
