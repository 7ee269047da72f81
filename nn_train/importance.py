"""Permutation importance: what the metric loses when one column's values are dealt to other rows.

Measured on validation rows: no test row is looked at. They chose the weights as well, so that what is lost is no
unbiased figure; the order of the columns is what counts.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nn_train.metrics import LOWER_IS_BETTER, metric_value
from nn_train.packed import Batch, PackedRows
from nn_train.preprocessor import Preprocessor
from nn_train.sampling import even_places

NUM_REPEATS = 5
MOST_ROWS = 5_000
MOST_FORWARD_ROWS = 2_000_000  # over all columns and repeats: a wide table is looked at on fewer rows
NUM_BINS = 10

# From a batch to probabilities or values in the target's unit.
Predict = Callable[[Batch], np.ndarray]
Places = tuple[list[int], list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Loss of the metric by column, most important first, and the error along the first column."""

    metric: str
    num_rows: int
    num_repeats: int
    columns: dict[str, dict[str, float]]
    error_by_top_column: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return dataclasses.asdict(self)


def permutation_importance(
    rows: PackedRows, preprocessor: Preprocessor, predict: Predict, *, metric: str, seed: int
) -> Importance:
    """Measure every column on rows that training did not see; one process, no collectives. Source: Breiman 2001."""
    columns = input_places(preprocessor)
    batch = take_evenly(rows, min(MOST_ROWS, max(MOST_FORWARD_ROWS // (NUM_REPEATS * len(columns)), 100)))
    rng = np.random.Generator(np.random.Philox(key=seed))
    task = preprocessor.target.task
    y = batch.y.cpu().numpy()
    truth = preprocessor.decode_target(y) if task == "regression" else y
    prediction = predict(batch)
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    base = metric_value(metric, truth, prediction, task=task)
    found = {}
    for name, (numbers, codes) in columns.items():
        losses = [
            sign * (base - metric_value(metric, truth, predict(shuffled), task=task))
            for shuffled in _shuffles(batch, numbers, codes, rng)
        ]
        found[name] = {"mean": float(np.mean(losses)), "std": float(np.std(losses))}
    ranked = dict(sorted(found.items(), key=lambda item: -item[1]["mean"]))
    top = next(iter(ranked))
    is_number = task == "regression" and truth.ndim == 1  # several targets have units of their own
    error = np.abs(truth - prediction) if is_number else np.zeros(0)
    return Importance(
        metric=metric,
        num_rows=len(batch.y),
        num_repeats=NUM_REPEATS,
        columns=ranked,
        error_by_top_column=_error_by(top, columns[top], batch, preprocessor, error) if len(error) else {},
    )


def take_evenly(rows: PackedRows, most: int) -> Batch:
    """At most so many rows, spread over all: in a split by time, the first ones would be the oldest."""
    return rows.take(torch.from_numpy(even_places(len(rows), most)))


def input_places(preprocessor: Preprocessor) -> dict[str, Places]:
    """For each column of the table its places in x_num and in x_cat."""
    places: dict[str, Places] = {}
    for index, category in enumerate(preprocessor.categorical):
        places.setdefault(category.column, ([], []))[1].append(index)
    indicator = len(preprocessor.categorical)
    for index, number in enumerate(preprocessor.numeric):
        numbers, codes = places.setdefault(number.column, ([], []))
        numbers.append(index)
        if number.has_indicator:
            codes.append(indicator)
            indicator += 1
    return places


def _shuffles(batch: Batch, numbers: list[int], codes: list[int], rng: np.random.Generator) -> Iterator[Batch]:
    for _ in range(NUM_REPEATS):
        order = torch.from_numpy(rng.permutation(len(batch.y))).to(batch.y.device)
        yield Batch(x_num=_dealt(batch.x_num, numbers, order), x_cat=_dealt(batch.x_cat, codes, order), y=batch.y)


def _dealt(values: Tensor, places: list[int], order: Tensor) -> Tensor:
    if not places:
        return values
    shuffled = values.clone()
    shuffled[:, places] = values[order][:, places]
    return shuffled


def _error_by(
    column: str, places: Places, batch: Batch, preprocessor: Preprocessor, error: np.ndarray
) -> dict[str, Any]:
    """Mean absolute error by tenth of a number, or by level of a category."""
    numbers, codes = places
    if numbers:
        raw = preprocessor.unscale(batch.x_num.cpu().numpy())[:, numbers[-1]]
        edges = np.unique(np.quantile(raw, np.linspace(0, 1, NUM_BINS + 1)))
        which = np.clip(np.searchsorted(edges, raw, side="right") - 1, 0, max(len(edges) - 2, 0))
        labels = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
        labels = labels or [f"{edges[0]:.4g}"]
        name = preprocessor.numeric[numbers[-1]].name
    else:
        which = batch.x_cat[:, codes[0]].cpu().numpy()
        labels = ["unseen or rare", "missing", *preprocessor.categorical[codes[0]].labels]
        name = column
    rows = np.bincount(which, minlength=len(labels))
    sums = np.bincount(which, weights=error, minlength=len(labels))
    kept = [place for place in np.argsort(-rows, kind="stable")[: 2 * NUM_BINS] if rows[place]]
    kept = sorted(kept) if numbers else kept
    return {
        "column": name,
        "labels": [labels[place] for place in kept],
        "mean_absolute_error": [float(sums[place] / rows[place]) for place in kept],
        "rows": [int(rows[place]) for place in kept],
    }
