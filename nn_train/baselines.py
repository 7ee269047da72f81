"""What a network must beat: the majority or mean, a linear model, gradient boosting, on the same split.

They see the columns that the network sees, fitted on the same train rows and judged by the same
metrics; a decision threshold is chosen on the validation rows, as for the network, or follows from the same costs.
LightGBM, CatBoost and XGBoost stand beside them where they are installed, with their own defaults.
"""

import dataclasses
import importlib
import importlib.util
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from nn_train.calibration import choose_threshold
from nn_train.crew import usable_cores
from nn_train.errors import ConfigError, short
from nn_train.metrics import compute_metrics
from nn_train.pulse import pulse
from nn_train.schema import SPLITS, Task

MOST_LEVELS_HIST = 255  # HistGradientBoosting's limit for one categorical column
MOST_CLASSES_HIST = 30  # it grows one tree per class and round
MOST_ROWS_LINEAR = 200_000
MANY_ROWS = 50_000  # from here on every core is worth its waiting
# baseline -> the library that must be installed for it
LIBRARIES = {"lightgbm": "lightgbm", "catboost": "catboost", "xgboost": "xgboost"}
logger = logging.getLogger("nn_train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineRows:
    """Rows of a split: x_num (B, N) float32 with NaN gaps, x_cat (B, C) int32 codes, y (B,), or (B, T) of several."""

    x_num: np.ndarray
    x_cat: np.ndarray
    y: np.ndarray

    def sample(self, most_rows: int, *, seed: int) -> "BaselineRows":
        """All rows, or that many at random: the first ones of a sorted table may be of one class."""
        if len(self.y) <= most_rows:
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self.y), most_rows, replace=False))
        return BaselineRows(x_num=self.x_num[chosen], x_cat=self.x_cat[chosen], y=self.y[chosen])


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineData:
    """The three splits and the number of codes of each categorical input."""

    train: BaselineRows
    val: BaselineRows
    test: BaselineRows
    cardinalities: tuple[int, ...]

    def of_target(self, place: int) -> "BaselineData":
        """The same rows with one of several targets."""
        parts = {name: getattr(self, name) for name in SPLITS}
        one = {name: dataclasses.replace(rows, y=rows.y[:, place]) for name, rows in parts.items()}
        return dataclasses.replace(self, **one)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """Metrics on validation and test rows (empty where there are none), the seconds of fitting, and the predictions.

    `val_prediction` and `test_prediction` are as metrics take them; `threshold` is that of a binary task.
    """

    val: dict[str, float]
    test: dict[str, float]
    seconds: float
    threshold: float
    val_prediction: np.ndarray
    test_prediction: np.ndarray


Predict = Callable[[BaselineRows], np.ndarray]
Fit = Callable[[BaselineData, Task, int, int], Predict]


def choose_baselines(setting: bool | tuple[str, ...], task: Task) -> list[str]:
    """The baselines that report.baselines asks for: all that can be fitted here, or those that are named."""
    plainest = "mean" if task == "regression" else "majority"
    every = [name for name in FITS if name in (plainest, "linear", "hist_gradient_boosting", *LIBRARIES)]
    if not isinstance(setting, bool):
        asked = {plainest if name in ("majority", "mean") else name for name in setting}
        return [name for name in every if name in asked]
    return [name for name in every if setting and (name not in LIBRARIES or is_installed(name))]


def is_installed(name: str) -> bool:
    """Is the library of a baseline there? Whether it also works is found out when it is used."""
    return name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name]) is not None


def check_baselines(setting: bool | tuple[str, ...]) -> None:
    """Raise ConfigError where a baseline is named whose library is not installed."""
    missing = [name for name in (() if isinstance(setting, bool) else setting) if not is_installed(name)]
    if missing:
        raise ConfigError(
            f"report.baselines names {', '.join(missing)}, and no such library is installed",
            fix="pip install 'nn-train[boosting]', or report.baselines=true for what is installed",
        )


def fit_baselines(
    data: BaselineData,
    *,
    task: Task,
    num_classes: int,
    seed: int,
    threshold_metric: str,
    names: Sequence[str] | None = None,
    costs: np.ndarray | None = None,
) -> dict[str, BaselineResult]:
    """Fit and judge baselines, by default all that can be fitted here.

    One whose library fails is left out with a warning: it must not cost the run its judgement.
    """
    results = {}
    for name in choose_baselines(True, task) if names is None else names:
        pulse.beat()
        try:
            results[name] = _fit_one(
                FITS[name], data, task, num_classes, seed=seed, threshold_metric=threshold_metric, costs=costs
            )
        except Exception as error:
            if name not in LIBRARIES:
                raise
            reason = short(f"{type(error).__name__}: {error}", most=200)
            logger.warning("warning: the baseline %s was left out, since its library failed: %s", name, reason)
    return results


def _fit_one(
    fit: Fit,
    data: BaselineData,
    task: Task,
    num_classes: int,
    *,
    seed: int,
    threshold_metric: str,
    costs: np.ndarray | None,
) -> BaselineResult:
    started_s = time.monotonic()
    # on the few rows of a quick start more threads wait for each other, and with one sums keep their order
    with threadpool_limits(limits=count_threads(len(data.train.y))), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict = _fit_targets(fit, data, seed) if data.train.y.ndim == 2 else fit(data, task, num_classes, seed)
        seconds = time.monotonic() - started_s
        val = predict(data.val)
        test = predict(data.test) if len(data.test.y) else val[:0]
    threshold = 0.5
    if task == "binary":
        threshold = choose_threshold(data.val.y, val, threshold_metric, costs=costs)

    def judge(rows: BaselineRows, prediction: np.ndarray) -> dict[str, float]:
        return compute_metrics(rows.y, prediction, task=task, threshold=threshold, costs=costs)

    return BaselineResult(
        val=judge(data.val, val),
        test=judge(data.test, test) if len(test) else {},
        seconds=round(seconds, 3),
        threshold=threshold,
        val_prediction=val,
        test_prediction=test,
    )


def _fit_targets(fit: Fit, data: BaselineData, seed: int) -> Predict:
    """A model for each of several targets, predictions (B, T)."""
    models = [fit(data.of_target(place), "regression", 0, seed) for place in range(data.train.y.shape[1])]
    return lambda rows: np.stack([predict(rows) for predict in models], axis=1)


def count_threads(num_rows: int) -> int:
    """Threads to fit on so many rows: one, or the cores that this process may use."""
    return 1 if num_rows < MANY_ROWS else usable_cores()


def _fit_dummy(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    del seed  # the signature is that of every baseline
    if task == "regression":
        mean = DummyRegressor().fit(data.train.x_cat, data.train.y)
        return lambda rows: mean.predict(rows.x_cat)
    prior = DummyClassifier(strategy="prior").fit(data.train.x_cat, data.train.y)
    return lambda rows: _class_probabilities(prior, rows.x_cat, task, num_classes)


def _fit_linear(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    train = data.train.sample(MOST_ROWS_LINEAR, seed=seed)
    one_hot = OneHotEncoder(categories=[np.arange(cardinality) for cardinality in data.cardinalities], dtype=np.float32)
    has_categories = bool(data.cardinalities)
    if has_categories:
        one_hot.fit(train.x_cat)
    num_present = np.maximum(np.sum(~np.isnan(train.x_num), axis=0), 1)
    fill = np.nansum(train.x_num, axis=0, dtype=np.float64) / num_present

    def features(rows: BaselineRows) -> Any:
        numbers = np.where(np.isnan(rows.x_num), fill, rows.x_num).astype(np.float32)
        parts = [csr_matrix(numbers)] + ([one_hot.transform(rows.x_cat)] if has_categories else [])
        return hstack(parts, format="csr")

    scaler = StandardScaler(with_mean=False)
    if task == "regression":
        ridge = make_pipeline(scaler, Ridge(alpha=1.0, solver="sparse_cg")).fit(features(train), train.y)
        return lambda rows: ridge.predict(features(rows))
    logistic = make_pipeline(scaler, LogisticRegression(max_iter=500)).fit(features(train), train.y)
    return lambda rows: _class_probabilities(logistic, features(rows), task, num_classes)


def _fit_boosting(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    is_category = [False] * data.train.x_num.shape[1] + [c <= MOST_LEVELS_HIST for c in data.cardinalities]

    options = {
        "learning_rate": 0.05,
        "max_iter": 1000 if num_classes <= MOST_CLASSES_HIST else 100,
        "early_stopping": True,
        "categorical_features": is_category,
        "random_state": seed,
    }
    chosen = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    train, val = data.train, data.val
    # stopped on the validation rows, as the network is, so that it may learn from every train row
    model = chosen(**options).fit(_matrix(train), train.y, X_val=_matrix(val), y_val=val.y)
    return _predictor(model, _matrix, task, num_classes, classes=np.unique(train.y))


def _fit_lightgbm(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    lightgbm: Any = importlib.import_module("lightgbm")  # of the extra, and perhaps not there

    chosen = lightgbm.LGBMRegressor if task == "regression" else lightgbm.LGBMClassifier
    model = chosen(random_state=seed, n_jobs=count_threads(len(data.train.y)), verbose=-1)
    first = data.train.x_num.shape[1]
    categories = list(range(first, first + data.train.x_cat.shape[1]))
    model.fit(_matrix(data.train), data.train.y, categorical_feature=categories)
    return _predictor(model, _matrix, task, num_classes, classes=np.unique(data.train.y))


def _fit_xgboost(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    xgboost: Any = importlib.import_module("xgboost")  # of the extra, and perhaps not there

    kinds = ["q"] * data.train.x_num.shape[1] + ["c"] * data.train.x_cat.shape[1]
    chosen = xgboost.XGBRegressor if task == "regression" else xgboost.XGBClassifier
    threads = count_threads(len(data.train.y))
    model = chosen(random_state=seed, n_jobs=threads, enable_categorical=True, feature_types=kinds, verbosity=0)
    classes, codes = np.unique(data.train.y, return_inverse=True)  # it takes 0, 1, 2, ... without a gap
    model.fit(_matrix(data.train), data.train.y if task == "regression" else codes)
    return _predictor(model, _matrix, task, num_classes, classes=classes)


def _fit_catboost(data: BaselineData, task: Task, num_classes: int, seed: int) -> Predict:
    catboost: Any = importlib.import_module("catboost")  # of the extra, and perhaps not there
    import pandas as pd

    def frame(rows: BaselineRows) -> pd.DataFrame:
        numbers = {f"n{at}": rows.x_num[:, at] for at in range(rows.x_num.shape[1])}
        return pd.DataFrame(numbers | {f"c{at}": rows.x_cat[:, at] for at in range(rows.x_cat.shape[1])})

    chosen = catboost.CatBoostRegressor if task == "regression" else catboost.CatBoostClassifier
    threads = count_threads(len(data.train.y))
    model = chosen(random_seed=seed, thread_count=threads, verbose=False, allow_writing_files=False)
    categories = [f"c{at}" for at in range(data.train.x_cat.shape[1])]
    model.fit(frame(data.train), data.train.y, cat_features=categories, callbacks=[_Beat()])
    return _predictor(model, frame, task, num_classes, classes=np.unique(data.train.y))


class _Beat:
    """A sign of life after each of CatBoost's thousand trees."""

    def after_iteration(self, info: Any) -> bool:
        """Go on."""
        del info
        pulse.beat()
        return True


def _matrix(rows: BaselineRows) -> np.ndarray:
    """Numbers, then codes, as one array (B, N + C)."""
    return np.concatenate([rows.x_num, rows.x_cat.astype(np.float32)], axis=1)


def _predictor(
    model: Any, features: Callable[[BaselineRows], Any], task: Task, num_classes: int, *, classes: np.ndarray
) -> Predict:
    """`classes` are the codes that the train rows hold, in order."""
    if task == "regression":
        return lambda rows: np.asarray(model.predict(features(rows)), dtype=np.float64)
    return lambda rows: _in_order(model.predict_proba(features(rows)), classes, task, num_classes)


def _class_probabilities(model: Any, features: Any, task: Task, num_classes: int) -> np.ndarray:
    return _in_order(model.predict_proba(features), model.classes_, task, num_classes)


def _in_order(known: np.ndarray, classes: Any, task: Task, num_classes: int) -> np.ndarray:
    """Probabilities in the order of the class codes; a class that the train rows lack gets none."""
    p = np.zeros((known.shape[0], num_classes))
    p[:, np.asarray(classes, dtype=int)] = known
    return p[:, 1] if task == "binary" else p


FITS: dict[str, Fit] = {
    "majority": _fit_dummy,
    "mean": _fit_dummy,
    "linear": _fit_linear,
    "hist_gradient_boosting": _fit_boosting,
    "lightgbm": _fit_lightgbm,
    "catboost": _fit_catboost,
    "xgboost": _fit_xgboost,
}
