"""What a network must beat: the majority or mean, a linear model, gradient boosting, on the same split.

They see the columns that the network sees, fitted on the same train rows and judged by the same
metrics; a decision threshold is chosen on the validation rows, as for the network.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, hstack
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from nn_train.calibration import choose_threshold
from nn_train.metrics import compute_metrics
from nn_train.schema import Task

MOST_LEVELS_HIST = 255  # HistGradientBoosting's limit for one categorical column
MOST_CLASSES_HIST = 30  # it grows one tree per class and round
MOST_ROWS_LINEAR = 200_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineRows:
    """Rows of a split: x_num (B, N) float32 with NaN gaps, x_cat (B, C) int32 codes, y (B,)."""

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """Metrics on validation and test rows, and the seconds of fitting."""

    val: dict[str, float]
    test: dict[str, float]
    seconds: float


Predict = Callable[[BaselineRows], np.ndarray]


def fit_baselines(
    data: BaselineData, *, task: Task, num_classes: int, seed: int, threshold_metric: str
) -> dict[str, BaselineResult]:
    """Fit and judge every baseline. Keys: majority or mean, linear, hist_gradient_boosting."""
    results = {}
    fits: dict[str, Callable[[], Predict]] = {
        "mean" if task == "regression" else "majority": lambda: _fit_dummy(data, task, num_classes),
        "linear": lambda: _fit_linear(data, task, num_classes, seed),
        "hist_gradient_boosting": lambda: _fit_boosting(data, task, num_classes, seed),
    }
    for name, fit in fits.items():
        started_s = time.monotonic()
        # one thread: on the few rows of a quick start more threads wait for each other, and sums keep their order
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            predict = fit()
            seconds = time.monotonic() - started_s
            val, test = predict(data.val), predict(data.test)
        threshold = choose_threshold(data.val.y, val, threshold_metric) if task == "binary" else 0.5
        results[name] = BaselineResult(
            val=compute_metrics(data.val.y, val, task=task, threshold=threshold),
            test=compute_metrics(data.test.y, test, task=task, threshold=threshold),
            seconds=round(seconds, 3),
        )
    return results


def _fit_dummy(data: BaselineData, task: Task, num_classes: int) -> Predict:
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

    def features(rows: BaselineRows) -> np.ndarray:
        return np.concatenate([rows.x_num, rows.x_cat.astype(np.float32)], axis=1)

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
    model = chosen(**options).fit(features(train), train.y, X_val=features(val), y_val=val.y)
    if task == "regression":
        return lambda rows: model.predict(features(rows))
    return lambda rows: _class_probabilities(model, features(rows), task, num_classes)


def _class_probabilities(model: Any, features: Any, task: Task, num_classes: int) -> np.ndarray:
    """Probabilities in the order of the class codes; a class that the train rows lack gets none."""
    known = model.predict_proba(features)
    p = np.zeros((known.shape[0], num_classes))
    p[:, np.asarray(model.classes_, dtype=int)] = known
    return p[:, 1] if task == "binary" else p
