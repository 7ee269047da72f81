"""The estimators: scikit-learn's own checks, real tables, several processes, and a process left as it was."""

import copy
import json
import logging
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from sklearn.base import BaseEstimator, clone
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils import Tags
from sklearn.utils.estimator_checks import (
    check_classifiers_train,
    check_dict_unchanged,
    check_fit_idempotent,
    check_methods_sample_order_invariance,
    check_methods_subset_invariance,
    check_regressors_train,
    check_sample_weight_equivalence_on_dense_data,
    parametrize_with_checks,
)

from nn_train import TabularClassifier, TabularRegressor, load_bundle
from nn_train.estimator import KEYS, OWN, PLAIN
from nn_train.settings import SECTIONS
from tests.conftest import ROOT, make_table

FAST: dict[str, Any] = {"model": "mlp", "width": 16, "num_blocks": 1, "random_state": 0}
TINY = FAST | {"max_epochs": 20, "global_batch_size": 32, "peak_lr": 0.01}
# embeddings of numbers give other last bits for other numbers of rows, and scikit-learn asks for the same to 1e-7
CHECKED = TINY | {"settings": ["model.embedding=none"]}
EXCEPTIONS = {
    "check_sample_weight_equivalence_on_dense_data": "its nine rows are fewer than a split needs; and a weight of two "
    "is not the row twice, since validation rows are drawn by row, and preprocessor and validation metric count "
    "rows (a weight of zero is no row: test_rows_of_weight_zero_are_not_there)",
}


@pytest.fixture(autouse=True)
def own_temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary files of a test go into a folder of its own; a short path, as the launcher's sockets need one."""
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.setenv("TMPDIR", path)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield Path(path)


def left_in(folder: Path) -> list[str]:
    """What lies there, but for the cache that torch makes where an optimizer is first used."""
    return [path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")]


@pytest.fixture(scope="module")
def telco() -> tuple[pd.DataFrame, pd.Series]:
    table = pd.read_csv(ROOT / "data" / "telco.csv").sample(700, random_state=0)
    return table.drop(columns="churn"), table["churn"]


# ---- scikit-learn's checks


@parametrize_with_checks(
    [TabularClassifier(**CHECKED), TabularRegressor(**CHECKED)], expected_failed_checks=lambda _: EXCEPTIONS
)
def test_scikit_learn_checks(estimator: BaseEstimator, check: Callable[[BaseEstimator], None]) -> None:
    check(estimator)


class NumericClassifier(TabularClassifier):
    """Says that it takes numbers alone: scikit-learn then does not round the values that it checks with."""

    def __sklearn_tags__(self) -> Tags:
        return plain_tags(super().__sklearn_tags__())


class NumericRegressor(TabularRegressor):
    """The same for values."""

    def __sklearn_tags__(self) -> Tags:
        return plain_tags(super().__sklearn_tags__())


def plain_tags(tags: Tags) -> Tags:
    tags.input_tags.string = tags.input_tags.categorical = False
    return tags


ROUNDED = (
    check_dict_unchanged,
    check_fit_idempotent,
    check_methods_sample_order_invariance,
    check_methods_subset_invariance,
)


@pytest.mark.parametrize("check", (*ROUNDED, check_classifiers_train), ids=lambda check: check.__name__)
def test_checks_of_a_classifier_with_numbers_as_they_are(check: Callable[[str, BaseEstimator], None]) -> None:
    check("NumericClassifier", NumericClassifier(**CHECKED))


@pytest.mark.parametrize("check", (*ROUNDED, check_regressors_train), ids=lambda check: check.__name__)
def test_checks_of_a_regressor_with_numbers_as_they_are(check: Callable[[str, BaseEstimator], None]) -> None:
    check("NumericRegressor", NumericRegressor(**CHECKED))


def test_the_exception_is_one() -> None:
    with pytest.raises(ValueError, match="9 rows with a target are too few"):
        check_sample_weight_equivalence_on_dense_data("TabularClassifier", TabularClassifier(**TINY))


def test_parameters_are_settings() -> None:
    for key in (*KEYS.values(), *PLAIN, *OWN):
        section, _, name = key.partition(".")
        assert name in SECTIONS[section].model_fields, key
    for estimator in (TabularClassifier, TabularRegressor):
        documented = re.findall(r"^        (\w+): ", estimator.__doc__ or "", re.MULTILINE)
        assert set(documented) >= set(estimator().get_params())


# ---- real tables


@pytest.mark.parametrize(
    ("load", "estimator", "least"),
    [
        (load_breast_cancer, TabularClassifier, 0.92),
        (load_wine, TabularClassifier, 0.92),
        (load_diabetes, TabularRegressor, 0.25),
    ],
    ids=["breast_cancer", "wine", "diabetes"],
)
def test_it_learns(load: Callable[..., Any], estimator: type[Any], least: float) -> None:
    X, y = load(return_X_y=True, as_frame=True)
    classes = y if estimator is TabularClassifier else None
    train, test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=0, stratify=classes)
    model = estimator(model="mlp", width=64, random_state=0, settings=["model.embedding=none"]).fit(train, y_train)
    assert model.score(test, y_test) > least
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.bundle_.schema.target.name == "target"  # as the series is called


def test_a_search_over_a_pipeline(telco: tuple[pd.DataFrame, pd.Series]) -> None:
    X, y = telco
    fill = make_column_transformer(
        (SimpleImputer(strategy="most_frequent"), make_column_selector(dtype_exclude="number")),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    pipeline = make_pipeline(fill, TabularClassifier(**TINY))
    grid = {"tabularclassifier__width": np.array([1, 32]), "tabularclassifier__settings": [["optim.beta1=0.9"]]}
    search = GridSearchCV(pipeline, grid, scoring="roc_auc", cv=2, error_score="raise").fit(X, y)
    width = search.best_params_["tabularclassifier__width"]
    assert search.best_score_ > 0.75
    assert set(search.predict(X)) == {"No", "Yes"}
    assert search.best_estimator_[-1].bundle_.info["config"]["model"]["width"] == width


@pytest.mark.campaign  # each of joblib's processes imports all there is
def test_cross_validation_in_several_processes(telco: tuple[pd.DataFrame, pd.Series]) -> None:
    model = TabularClassifier(**FAST, max_epochs=3)
    alone, together = (cross_val_score(model, *telco, cv=2, n_jobs=n, error_score="raise") for n in (1, 2))
    assert alone.tolist() == together.tolist()


def test_the_bundle_predicts_the_same(telco: tuple[pd.DataFrame, pd.Series], tmp_path: Path) -> None:
    X, y = telco
    model = TabularClassifier(**FAST, max_epochs=4, run_dir=tmp_path / "run").fit(X, y)
    found = load_bundle(tmp_path / "run").predict(X)
    assert found["prediction"].tolist() == model.predict(X).tolist()
    assert np.array_equal(found[["p_No", "p_Yes"]].to_numpy(), model.predict_proba(X))
    assert np.array_equal(model.classes_[model.predict_proba(X).argmax(axis=1)], model.predict(X))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "done"
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_threshold_is_tuned_where_it_is_asked_for(telco: tuple[pd.DataFrame, pd.Series]) -> None:
    X, y = telco
    model = TabularClassifier(**FAST, max_epochs=4, settings=["evaluation.threshold_metric=f1"]).fit(X, y)
    threshold = model.bundle_.decision.threshold
    assert threshold != 0.5
    assert np.array_equal(model.predict(X) == "Yes", model.predict_proba(X)[:, 1] >= threshold)


# ---- several processes


def test_two_processes_train_the_same_network(
    telco: tuple[pd.DataFrame, pd.Series], own_temp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    X, y = telco
    alone = TabularClassifier(**FAST, max_epochs=3, dropout=0.0).fit(X, y, sample_weight=np.arange(len(y)) % 3 + 1)
    together = clone(alone).set_params(processes=2).fit(X, y, sample_weight=np.arange(len(y)) % 3 + 1)
    assert together.predict_proba(X) == pytest.approx(alone.predict_proba(X), abs=1e-5)
    assert vars(together).keys() == vars(alone).keys()
    assert (together.n_iter_, together.classes_.tolist()) == (alone.n_iter_, alone.classes_.tolist())
    assert capfd.readouterr() == ("", "")
    assert left_in(own_temp) == []


def test_a_mistake_that_only_the_processes_find(telco: tuple[pd.DataFrame, pd.Series], own_temp: Path) -> None:
    with pytest.raises(ValueError, match=r"train.global_batch_size=1 cannot feed 2 processes\n  mend: "):
        TabularClassifier(**FAST, processes=2, global_batch_size=1).fit(*telco)
    assert left_in(own_temp) == []


def test_a_mistake_in_the_rows_is_found_before_processes_start(telco: tuple[pd.DataFrame, pd.Series]) -> None:
    X, y = telco
    started_s = time.monotonic()
    with pytest.raises(ValueError, match="'tenure' holds an infinite number in row 4"):
        TabularClassifier(**FAST, processes=2).fit(X.assign(tenure=[*X["tenure"][:3], np.inf, *X["tenure"][4:]]), y)
    assert time.monotonic() - started_s < 10


INTERRUPTED = """
import pandas as pd
from nn_train import TabularClassifier
table = pd.read_csv({table!r})
TabularClassifier(width=64, max_epochs=10**6, early_stopping="no", processes={processes}).fit(
    table.drop(columns="churn"), table["churn"])
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interrupt_ends_a_fit(processes: int, own_temp: Path) -> None:
    code = INTERRUPTED.format(table=str(ROOT / "data" / "telco.csv"), processes=processes)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 120
        while not any('"val"' in file.read_text() for file in own_temp.glob("nn_train-*/run/metrics.jsonl")):
            assert time.monotonic() < deadline_s
            assert child.poll() is None, child.communicate()
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert out == ""
    assert left_in(own_temp) == []


# ---- weights


def test_rows_of_weight_zero_are_not_there(telco: tuple[pd.DataFrame, pd.Series]) -> None:
    X, y = telco
    weight = np.where(np.arange(len(y)) % 3 == 0, 0.0, 2.5)
    weighed = TabularClassifier(**FAST, max_epochs=3).fit(X, y, sample_weight=weight)
    fewer = TabularClassifier(**FAST, max_epochs=3).fit(X[weight > 0], y[weight > 0])
    assert np.array_equal(weighed.predict_proba(X), fewer.predict_proba(X))


def test_weights_count() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    y = np.repeat([0.0, 10.0], 200)  # nothing in X tells them apart
    means = [
        TabularRegressor(**TINY).fit(X, y, sample_weight=weight).predict(X).mean()
        for weight in (None, np.repeat([1.0, 20.0], 200), np.repeat([20.0, 1.0], 200))
    ]
    # the validation rows, which count alike, choose the epoch: it is one of the first
    assert means[2] + 1 < means[0] < means[1] - 1


@pytest.mark.parametrize(
    ("weight", "match"),
    [([-1.0] + [1.0] * 39, "negative"), ([1.0] * 39, "shape"), ([np.nan] * 40, "NaN"), ([1e-30] + [1.0] * 39, "1e-12")],
)
def test_weights_that_are_none(weight: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        TabularRegressor(**TINY).fit(np.arange(80.0).reshape(40, 2) % 7, np.arange(40.0), sample_weight=weight)


# ---- labels


@pytest.mark.parametrize(
    "labels",
    [
        ["no", "yes"],
        ["yes", "zebra"],  # the project would count yes as positive, scikit-learn the last
        [-1, 1],
        [False, True],
        [1.0, 2.0, 7.0],
        ["NA", "", "null"],  # words that mean nothing in a table
        [" a", "a ", "a"],
        [10, 9, 100],
        ["y", "Y", "n", "N"],
    ],
    ids=str,
)
def test_labels_come_back_as_they_were(labels: list[Any]) -> None:
    X = np.random.default_rng(0).normal(size=(80, 3))
    position = np.digitize(X[:, 0], np.quantile(X[:, 0], np.linspace(0, 1, len(labels) + 1)[1:-1]))
    y = np.array(sorted(labels))[position]
    model = TabularClassifier(**TINY | {"max_epochs": 60}, early_stopping="no").fit(X, y)
    assert model.classes_.tolist() == sorted(labels)
    assert model.classes_.dtype == y.dtype == model.predict(X).dtype
    assert model.score(X, y) > 0.8
    assert model.predict_proba(X).argmax(axis=1).tolist() == np.searchsorted(model.classes_, model.predict(X)).tolist()
    assert model.predict_proba(X).sum(axis=1) == pytest.approx(1)


def test_a_class_with_one_row_is_learned() -> None:
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = np.array(["a", "b"] * 19 + ["b", "rare"])
    model = TabularClassifier(**TINY).fit(X, y)
    assert model.classes_.tolist() == ["a", "b", "rare"]
    assert model.predict_proba(X).shape == (40, 3)


# ---- columns


def test_columns_of_every_kind() -> None:
    table = make_table(300, task="regression").assign(empty=np.nan, same=1)
    table.index = table.index[::-1]
    table["colour"] = table["colour"].astype("category")
    y = table.pop("y").rename("size")  # a column has that name already
    model = TabularRegressor(**TINY | {"max_epochs": 40}).fit(table, y)
    assert model.score(table, y) > 0.5
    assert model.bundle_.features == ("size", "age", "colour", "member", "day")
    assert model.bundle_.schema.target.name == "_size"
    assert model.n_features_in_ == 7
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table[table.columns[::-1]])


def test_names_that_are_none_are_counted() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    model = TabularRegressor(**TINY).fit(pd.DataFrame(X, columns=[7, 8]), X[:, 0])
    assert model.bundle_.features == ("x0", "x1")
    assert np.array_equal(model.predict(X), model.predict(pd.DataFrame(X, columns=[7, 8])))


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"width": 0}, ValueError, "model.width"),
        ({"settings": ["train.max_epoch=3"]}, ValueError, "did you mean 'train.max_epochs'"),
        ({"settings": "train.max_epochs=3"}, ValueError, "a list of"),
        ({"settings": {"train": 3}}, ValueError, "holds no keys"),
        ({"settings": ["data.path=x.csv"]}, ValueError, "data.path, which fit decides"),
        ({"settings": {"run": {"dir": "x"}}}, ValueError, "run.dir, which fit decides"),
        ({"processes": 0}, ValueError, "processes=0"),
        ({"processes": "two"}, ValueError, "processes='two'"),
        ({"peak_lr": 10.0, "settings": ["optim.weight_decay=1e38"]}, RuntimeError, "not finite"),
    ],
    ids=str,
)
def test_a_mistake_in_the_parameters(options: dict[str, Any], kind: type[Exception], match: str) -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(kind, match=match):
        TabularRegressor(**TINY | options).fit(X, X[:, 0])


def test_parameters_lie_over_settings() -> None:
    X = np.random.default_rng(0).normal(size=(40, 2))
    nested = {"model": {"width": 8}, "train": {"max_epochs": 2}}
    for settings in (nested, ["model.width=8", "train.max_epochs=2"]):
        model = TabularRegressor(model="mlp", max_epochs=3, early_stopping="no", settings=settings).fit(X, X[:, 0])
        config = model.bundle_.info["config"]
        assert (config["model"]["width"], config["train"]["max_epochs"], model.n_iter_) == (8, 3, 3)
    assert nested == {"model": {"width": 8}, "train": {"max_epochs": 2}}


# ---- a run folder that is kept


def test_a_run_folder_goes_on_or_is_refused(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    model = TabularRegressor(**TINY, run_dir=tmp_path / "run")
    first = model.fit(X, X[:, 0]).predict(X)
    attempts = [json.loads(line)["event"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert np.array_equal(model.fit(X, X[:, 0]).predict(X), first)
    again = [json.loads(line)["event"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert again == attempts  # it was finished
    assert model.n_iter_ > 0
    with pytest.raises(ValueError, match="this folder holds a run with other settings"):
        model.fit(X, X[:, 1])
    model.set_params(settings=["checkpoint.resume=never"]).fit(X, X[:, 1])
    assert not np.array_equal(model.predict(X), first)


def test_a_report_and_test_rows_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(100, 2))
    words = ["report.page=true", "split.test=0.2", "report.dpi=40"]
    model = TabularRegressor(**TINY, run_dir=tmp_path / "run", settings=words).fit(X, X[:, 0])
    assert (tmp_path / "run" / "report.html").exists()
    assert model.bundle_.info["metrics"]["test"]["r2"] > 0.5


# ---- what is left behind


def state_of_process() -> dict[str, Any]:
    logger = logging.getLogger("nn_train")
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": torch.get_num_threads(),
        "environment": dict(os.environ),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "torch": torch.get_rng_state().tolist(),
        "grad": torch.is_grad_enabled(),
        "groups": torch.distributed.is_initialized(),
        "log": (list(logger.handlers), logger.level, logger.propagate),
        "folder": os.getcwd(),
    }


def test_a_fit_leaves_nothing_behind(
    own_temp: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")  # what the runtime drops
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state()  # of an Engine in a test before this one
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    X = np.random.default_rng(0).normal(size=(60, 2))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    before, files = state_of_process(), sorted(tmp_path.rglob("*"))
    with torch.no_grad():
        TabularRegressor(**TINY).fit(X, X[:, 0])
    with pytest.raises(ValueError, match="infinite"):
        TabularRegressor(**TINY).fit(np.where(X == X[3, 1], np.inf, X), X[:, 0])
    after = state_of_process()
    torch.set_num_threads(threads)
    assert after == before
    assert Accelerator().mixed_precision == accelerator.mixed_precision == "bf16"
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.rglob("*")) == files
    assert left_in(own_temp) == []


def test_verbose_shows_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    X = np.random.default_rng(0).normal(size=(60, 2))
    before = list(logging.getLogger("nn_train").handlers)
    TabularRegressor(**TINY, verbose=True).fit(X, X[:, 0])
    said = capsys.readouterr().out
    assert "60 rows, target 'target': regression" in said
    assert "validation metrics (9 rows)" in said
    assert logging.getLogger("nn_train").handlers == before


def test_threads_fit_one_after_another() -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))
    models = [TabularRegressor(**TINY | {"random_state": seed}) for seed in range(3)]
    expected = [clone(model).fit(X, X[:, 0]).predict(X) for model in models]
    threads = [threading.Thread(target=model.fit, args=(X, X[:, 0])) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model, values in zip(models, expected, strict=True):
        assert np.array_equal(model.predict(X), values)


def test_random_state_decides() -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))

    def fit(seed: Any) -> list[float]:
        return TabularRegressor(**TINY | {"random_state": seed}).fit(X, X[:, 0]).predict(X).tolist()

    assert fit(1) == fit(np.int64(1)) != fit(2)
    assert fit(np.random.RandomState(3)) == fit(np.random.RandomState(3))
    shared = np.random.RandomState(3)
    assert fit(shared) != fit(shared)
    np.random.seed(0)
    assert fit(None) != fit(None)


def test_a_fitted_estimator_travels(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(60, 3))
    model = TabularClassifier(**TINY).fit(X, np.where(X[:, 0] > 0, "up", "down"))
    joblib.dump(model, tmp_path / "model")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model"), copy.deepcopy(model)):  # noqa: S301
        assert np.array_equal(other.predict_proba(X), model.predict_proba(X))
        assert other.predict(X).tolist() == model.predict(X).tolist()
        assert vars(other).keys() == vars(model).keys()
    with pytest.raises(NotFittedError):
        clone(model).predict(X)
    with pytest.raises(NotFittedError):
        pickle.loads(pickle.dumps(clone(model))).predict(X)  # noqa: S301


def test_the_readme_shows_what_works(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = next(block for block in blocks if "TabularClassifier" in block)
    (tmp_path / "data").symlink_to(ROOT / "data")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.8
    assert (tmp_path / "runs" / "churn" / "bundle.zip").exists()
