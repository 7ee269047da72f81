"""The training as scikit-learn's estimators: fit, predict, predict_proba, and all that builds upon them.

Every fit is a run like any other: its rows become a table, an Engine trains on it, and the run's bundle predicts.
"""

import copy
import math
import numbers
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags, assert_all_finite, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from nn_train.bundle import BUNDLE_FILE, read_bundle
from nn_train.config import check_config, parse_words
from nn_train.errors import ConfigError, PassingError, TrainingError, UserError, WorldError
from nn_train.fitting import fit_apart, fit_here
from nn_train.incoming import as_table
from nn_train.settings import DataConfig
from nn_train.tracking import MetricsFile
from nn_train.values import read_levels

TABLE_FILE = "rows.parquet"
Settings = dict[str, dict[str, Any]]  # section -> key -> value
# parameter -> the setting of the same meaning
KEYS = {
    "model": "model.name",
    "width": "model.width",
    "num_blocks": "model.num_blocks",
    "dropout": "model.dropout",
    "peak_lr": "optim.peak_lr",
    "weight_decay": "optim.weight_decay",
    "global_batch_size": "train.global_batch_size",
    "max_epochs": "train.max_epochs",
    "early_stopping": "train.early_stopping",
    "validation_fraction": "split.val",
}
# what a fit does without, unless it is asked for
PLAIN = {
    "data.rare_classes": "keep",
    "split.test": 0.0,
    "evaluation.threshold_metric": "no",
    "tracking.mode": "disabled",
    "report.page": False,
    "report.baselines": False,
    "report.importance": False,
}
# what fit itself decides
OWN = ("data.path", "data.format", "data.target", "data.task", "data.positive", "data.weight", "split.val_path",
       "split.test_path", "run.dir", "run.seed")  # fmt: skip


class _TabularEstimator(BaseEstimator):
    """What both estimators share."""

    _content: bytes  # of the bundle's file

    def __init__(  # noqa: PLR0913 - scikit-learn reads the parameters off it
        self,
        *,
        model: str | None = None,
        width: int | None = None,
        num_blocks: int | None = None,
        dropout: float | None = None,
        peak_lr: float | None = None,
        weight_decay: float | None = None,
        global_batch_size: int | None = None,
        max_epochs: int | None = None,
        early_stopping: int | str | None = None,
        validation_fraction: float | None = None,
        settings: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
        processes: int = 1,
        run_dir: str | Path | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.model = model
        self.width = width
        self.num_blocks = num_blocks
        self.dropout = dropout
        self.peak_lr = peak_lr
        self.weight_decay = weight_decay
        self.global_batch_size = global_batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.settings = settings
        self.processes = processes
        self.run_dir = run_dir
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """The bundle travels as the bytes of its file, which are checked when they are read."""
        state = dict(super().__getstate__())
        state.pop("bundle_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_content" in state:
            self.bundle_ = read_bundle(state["_content"], allow_custom=self._is_custom())

    def _rows(self, X: Any, y: Any, sample_weight: Any) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:
        """The rows that weigh something, their targets, and their weights if these differ."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        frame = self._frame(X, is_fit=True)
        y = column_or_1d(y, warn=True)
        check_consistent_length(frame, y)
        assert_all_finite(y, input_name="y")
        if pd.isna(y).any():
            raise ValueError(f"y holds no value in row {int(np.argmax(pd.isna(y)))}")
        if sample_weight is None:
            return frame, y, None
        weight = check_array(sample_weight, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
        if weight.shape != (len(frame),):
            raise ValueError(f"sample_weight has the shape {weight.shape}, and there are {len(frame)} rows")
        if (weight < 0).any():
            raise ValueError("sample_weight holds a negative weight")
        if not weight.any():
            raise ValueError("sample_weight is zero in every row; there is nothing to learn from")
        is_used = weight > 0
        frame, y, weight = frame[is_used], y[is_used], weight[is_used] / weight.max()
        return frame, y, weight if np.ptp(weight) else None

    def _frame(self, X: Any, *, is_fit: bool) -> pd.DataFrame:
        """The rows under the names of the columns that fit saw, or x0, x1, ... where these have none."""
        if isinstance(X, pd.DataFrame):
            validate_data(self, X, reset=is_fit, skip_check_array=True)
        else:
            options = {"dtype": None, "ensure_all_finite": False, "ensure_min_samples": 2 if is_fit else 1}
            X = pd.DataFrame(validate_data(self, X, reset=is_fit, **options))
        names = getattr(self, "feature_names_in_", [f"x{index}" for index in range(X.shape[1])])
        return X.set_axis(list(names), axis=1)

    def _settings(self) -> Settings:
        """What settings and parameters say, with what a fit does without; parameters come first."""
        given = self.settings or {}
        if isinstance(given, str):
            raise ConfigError("settings are a list of section.key=value words, or {section: {key: value}}")
        nested: Any = copy.deepcopy(dict(given)) if isinstance(given, Mapping) else parse_words(given)
        values: Settings = {}
        for section, keys in nested.items():
            if not isinstance(keys, Mapping):
                raise ConfigError(f"settings: '{section}' holds no keys", fix="settings={'train': {'max_epochs': 20}}")
            values[section] = dict(keys)
        for key in OWN:
            section, _, name = key.partition(".")
            if name in values.get(section, {}):
                raise ConfigError(f"settings hold {key}, which fit decides by its arguments", fix="leave it out")
        for key, value in PLAIN.items():
            section, _, name = key.partition(".")
            values.setdefault(section, {}).setdefault(name, value)
        for parameter, key in KEYS.items():
            section, _, name = key.partition(".")
            value = getattr(self, parameter)
            if value is not None:
                values.setdefault(section, {})[name] = value.item() if isinstance(value, np.generic) else value
        return values

    def _is_custom(self) -> bool:
        """Is it the user who named a class to be imported?"""
        return self._settings().get("model", {}).get("name") == "custom"

    def _seed(self) -> int:
        if isinstance(self.random_state, numbers.Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31))

    def _train(
        self, frame: pd.DataFrame, y: np.ndarray, weight: np.ndarray | None, *, settings: Settings, target: Any
    ) -> None:
        """Make a table of the rows, train on it, and take the bundle."""
        if not isinstance(self.processes, numbers.Integral) or self.processes < 1:
            raise ValueError(f"processes={self.processes!r} is no whole number of 1 or more")
        names = [str(name) for name in frame.columns]
        table = as_table(frame, names)
        seed, data = self._seed(), settings.setdefault("data", {})
        empty = {name: "drop" for name in names if table.column(name).null_count == len(table)}
        data["columns"] = empty | dict(data.get("columns") or {})  # a run refuses a column that holds nothing
        data["target"] = _free_name(target if isinstance(target, str) and target else "target", names)
        table = table.append_column(data["target"], pa.array(y))
        if weight is not None:
            data["weight"] = _free_name("sample_weight", table.column_names)
            table = table.append_column(data["weight"], pa.array(weight))
        with tempfile.TemporaryDirectory(prefix="nn_train-", ignore_cleanup_errors=True) as place:
            folder = Path(place)
            data["path"] = str(folder / TABLE_FILE)
            data.setdefault("cache_dir", str(folder / "cache"))
            settings.setdefault("split", {}).setdefault("seed", seed)
            run = settings.setdefault("run", {})
            run.setdefault("name", type(self).__name__)
            run |= {"dir": str(Path(self.run_dir or folder / "run").expanduser().absolute()), "seed": seed}
            pq.write_table(table, folder / TABLE_FILE)
            config = check_config(settings, where="")
            if self.processes == 1:
                fit_here(config, verbose=self.verbose)
            else:
                fit_apart(config, processes=self.processes, folder=folder, verbose=self.verbose)
            self._content = (config.run_dir / BUNDLE_FILE).read_bytes()
            records = MetricsFile(config.run_dir / "metrics.jsonl").read()
        self.bundle_ = read_bundle(self._content, allow_custom=self._is_custom())
        self.n_iter_ = math.ceil(records[-1]["epoch"])

    def _scores(self, X: Any) -> np.ndarray:
        """Probabilities of the bundle's classes (B, C), or values (B,)."""
        check_is_fitted(self)
        frame = self._frame(X, is_fit=False)
        with _ordinary_errors():
            return self.bundle_.predict_scores(frame)


class TabularClassifier(ClassifierMixin, _TabularEstimator):
    """A neural network that classifies the rows of a table: numbers, categories, dates, with gaps in them.

    Args:
        model: a network by its name. This and the next nine are settings of the project (model.name, model.width,
            model.num_blocks, model.dropout, optim.peak_lr, optim.weight_decay, train.global_batch_size,
            train.max_epochs, train.early_stopping, split.val); None: what `settings` say, or else the default.
        width: units of a hidden layer.
        num_blocks: hidden layers.
        dropout: share of hidden units that is silenced in a training step.
        peak_lr: highest learning rate.
        weight_decay: decoupled weight decay.
        global_batch_size: rows of one optimizer step, over all processes.
        max_epochs: most passes over the rows.
        early_stopping: stop after this many epochs without a better validation metric; "no" trains to the end.
        validation_fraction: share of the rows that chooses the best epoch; the others are learned from.
        settings: any other settings, as `section.key=value` words or `{section: {key: value}}`; parameters lie over
            them. Without them there are no test rows, baselines, report page or wandb run,
            and the class with the highest probability is predicted (evaluation.threshold_metric=f1 tunes a threshold).
        processes: how many train together on this machine; more than one are started by `python -m launch run`.
        run_dir: folder to keep the run in; None: a temporary one. The same rows and settings go on there, or are
            finished; other ones are refused.
        random_state: seed of the split, the weights, the order of the rows and dropout.
        verbose: show what a run shows.

    Attributes:
        bundle_: the trained network with its preprocessor and decision, see nn_train.load_bundle.
        classes_: the labels, sorted, as they were given to fit.
        n_iter_: passes over the rows that were begun.
        n_features_in_: columns of X.
        feature_names_in_: their names, where X was a table with names.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on the rows.

        Args:
            X: the rows, (B, F): a pandas DataFrame, whose columns may be of any kind, or an array.
            y: their labels, (B,).
            sample_weight: what each row weighs in the training loss, (B,); rows of weight 0 are left out. The
                preprocessor and the validation rows count every row once.

        Raises:
            ValueError: the rows, labels, weights or parameters cannot be trained on.
            RuntimeError: the training failed.
        """
        with _ordinary_errors():
            frame, labels, weight = self._rows(X, y, sample_weight)
            check_classification_targets(labels)
            classes, codes = np.unique(labels, return_inverse=True)
            if len(classes) < 2:
                raise ValueError(
                    f"{type(self).__name__} needs two classes or more, and all rows have the class {classes[0]!r}"
                )
            settings = self._settings()
            names = _class_names(classes, settings)
            data = settings.setdefault("data", {})
            data["task"] = "binary" if len(classes) == 2 else "multiclass"
            data["positive"] = names[1] if len(classes) == 2 else None
            self._train(
                frame, np.array(names, object)[codes], weight, settings=settings, target=getattr(y, "name", None)
            )
        self.classes_ = classes
        self._names = names
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (B, C), in the order of `classes_`."""
        scores = self._scores(X)
        return scores[:, [self.bundle_.classes.index(name) for name in self._names]]

    def predict(self, X: Any) -> np.ndarray:
        """Labels (B,), of the type that fit was given."""
        scores = self._scores(X)
        chosen = self.bundle_.decision.choose(scores, self.bundle_.preprocessor)
        places = np.array([self._names.index(name) for name in self.bundle_.classes])
        return self.classes_[places[chosen]]


class TabularRegressor(RegressorMixin, _TabularEstimator):
    """A neural network that predicts a number from the rows of a table: numbers, categories, dates, with gaps in them.

    Args:
        model: a network by its name. This and the next nine are settings of the project (model.name, model.width,
            model.num_blocks, model.dropout, optim.peak_lr, optim.weight_decay, train.global_batch_size,
            train.max_epochs, train.early_stopping, split.val); None: what `settings` say, or else the default.
        width: units of a hidden layer.
        num_blocks: hidden layers.
        dropout: share of hidden units that is silenced in a training step.
        peak_lr: highest learning rate.
        weight_decay: decoupled weight decay.
        global_batch_size: rows of one optimizer step, over all processes.
        max_epochs: most passes over the rows.
        early_stopping: stop after this many epochs without a better validation metric; "no" trains to the end.
        validation_fraction: share of the rows that chooses the best epoch; the others are learned from.
        settings: any other settings, as `section.key=value` words or `{section: {key: value}}`; parameters lie over
            them. Without them there are no test rows, baselines, report page or wandb run.
        processes: how many train together on this machine; more than one are started by `python -m launch run`.
        run_dir: folder to keep the run in; None: a temporary one. The same rows and settings go on there, or are
            finished; other ones are refused.
        random_state: seed of the split, the weights, the order of the rows and dropout.
        verbose: show what a run shows.

    Attributes:
        bundle_: the trained network with its preprocessor and decision, see nn_train.load_bundle.
        n_iter_: passes over the rows that were begun.
        n_features_in_: columns of X.
        feature_names_in_: their names, where X was a table with names.
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on the rows.

        Args:
            X: the rows, (B, F): a pandas DataFrame, whose columns may be of any kind, or an array.
            y: their values, (B,).
            sample_weight: what each row weighs in the training loss, (B,); rows of weight 0 are left out. The
                preprocessor and the validation rows count every row once.

        Raises:
            ValueError: the rows, values, weights or parameters cannot be trained on.
            RuntimeError: the training failed.
        """
        with _ordinary_errors():
            frame, values, weight = self._rows(X, y, sample_weight)
            values = check_array(values, ensure_2d=False, dtype=np.float64, input_name="y")
            settings = self._settings()
            settings.setdefault("data", {})["task"] = "regression"
            self._train(frame, values, weight, settings=settings, target=getattr(y, "name", None))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Values (B,), in the unit of the target; of quantiles the one nearest to the median."""
        scores = self._scores(X)
        return scores if scores.ndim == 1 else scores[:, self.bundle_.preprocessor.target.middle]

    def predict_quantiles(self, X: Any) -> np.ndarray:
        """Quantiles (B, Q), in the unit of the target and in order, after `settings=["train.loss=quantile"]`.

        Raises:
            ValueError: the estimator was fitted with another loss.
        """
        scores = self._scores(X)
        if scores.ndim == 1:
            raise ValueError("this estimator has learned no quantiles; settings=['train.loss=quantile'], and fit")
        return scores


def _class_names(classes: np.ndarray, settings: Settings) -> tuple[str, ...]:
    """A text for each label, as the table's reader will have it; numbered where labels would be lost or be one."""
    texts = [str(label) for label in classes.tolist()]
    words = settings.get("data", {}).get("missing_values")
    data = DataConfig(path="-", target="-", **({} if words is None else {"missing_values": words}))
    names = read_levels(pa.chunked_array([pa.array(texts)]), data).to_pylist()
    if None in names or len({name.lower() for name in names}) < len(names):
        names = [f"class_{index}" for index in range(len(classes))]
    return tuple(names)


def _free_name(name: str, taken: Sequence[str]) -> str:
    """A column's name that no other column has."""
    while name in taken:
        name = f"_{name}"
    return name


@contextmanager
def _ordinary_errors() -> Iterator[None]:
    """Raise what callers of other estimators expect: ValueError for their mistakes."""
    try:
        yield
    except UserError as error:
        where = "" if Path(error.where).name == TABLE_FILE else error.where
        text = str(UserError(error.what, where=where, fix=error.fix))
        kinds: dict[type[UserError], type[Exception]] = {
            PassingError: OSError,
            TrainingError: RuntimeError,
            WorldError: RuntimeError,
        }
        raise kinds.get(type(error), ValueError)(text) from None
