"""Partial dependence: how the prediction moves along one column while all others stay as they are.

Shapes: B rows, K followed outputs. A point of the curve is a donor: a row whose encoded values of the column, date
parts and missing indicator included, are laid over all rows, so that they always belong together.
"""

import dataclasses
from typing import Any

import numpy as np
import torch

from nn_train.importance import Places, Predict, input_places, take_evenly
from nn_train.packed import Batch, PackedRows
from nn_train.preprocessor import MISSING, NUM_RESERVED, UNSEEN, Preprocessor
from nn_train.schema import TargetSpec
from nn_train.settings import EXACT_ROWS

NUM_COLUMNS = 6
NUM_POINTS = 20
MOST_LEVELS = 10
MOST_CLASSES = 3
MOST_ROWS = 500
MIDDLE = (0.025, 0.975)  # of a column's numbers: beyond lie too few rows to say anything
SPREAD = (0.1, 0.9)  # of the single rows' predictions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Donor:
    """A row whose value is given to all rows: its place, how the value reads, and on an axis where it is a number."""

    row: int
    label: str
    x: float | None = None


def partial_dependence(
    rows: PackedRows, preprocessor: Preprocessor, predict: Predict, *, columns: list[str], most_donors: int = EXACT_ROWS
) -> dict[str, Any]:
    """Mean and spread of the predictions at each value of these columns; one process, no collectives.

    Values are those of all rows, or of `most_donors` where there are more.

    Numbers and dates are followed over the quantiles of their middle 95 %, categories over their most frequent levels.
    Sources: Friedman 2001 (the mean); Goldstein et al. 2015 (the rows behind it).
    """
    batch = take_evenly(rows, MOST_ROWS)
    every = rows.slice(0, len(rows)) if len(rows) <= most_donors else take_evenly(rows, most_donors)
    names, followed = _outputs(preprocessor.target, every.y.cpu().numpy())
    places = input_places(preprocessor)
    found = []
    for column in columns:
        donors = _donors(column, places[column], every, preprocessor)
        values_GBK = np.stack([_predict(_laid_over(batch, every, d.row, places[column]), predict) for d in donors])
        values_GBK = values_GBK[:, :, followed]
        low, high = np.quantile(values_GBK, SPREAD, axis=1)
        found.append(
            {
                "column": column,
                "labels": [donor.label for donor in donors],
                "x": [donor.x for donor in donors],
                "mean": values_GBK.mean(axis=1).T.tolist(),
                "low": low.T.tolist(),
                "high": high.T.tolist(),
            }
        )
    return {"outputs": names, "num_rows": len(batch.y), "spread": SPREAD, "columns": found}


def _outputs(target: TargetSpec, y: np.ndarray) -> tuple[list[str], list[int]]:
    """What is followed, and its places: of many classes the most frequent, of several targets the first."""
    if target.task == "regression":
        return [target.names[0]], [0]
    if target.task == "binary":
        return [target.classes[1]], [0]
    counts = np.bincount(y, minlength=len(target.classes))
    chosen = np.argsort(-counts, kind="stable")[:MOST_CLASSES].tolist()
    return [target.classes[place] for place in chosen], chosen


def _predict(batch: Batch, predict: Predict) -> np.ndarray:
    prediction = predict(batch)
    return prediction if prediction.ndim == 2 else prediction[:, None]


def _laid_over(batch: Batch, every: Batch, row: int, places: Places) -> Batch:
    numbers, codes = places
    x_num, x_cat = batch.x_num.clone(), batch.x_cat.clone()
    x_num[:, numbers] = every.x_num[row, numbers]
    x_cat[:, codes] = every.x_cat[row, codes]
    return Batch(x_num=x_num, x_cat=x_cat, y=batch.y)


def _donors(column: str, places: Places, rows: Batch, preprocessor: Preprocessor) -> list[Donor]:
    numbers, codes = places
    if not numbers:
        return _level_donors(rows.x_cat[:, codes[0]].cpu().numpy(), preprocessor.categorical[codes[0]].labels)
    is_missing = np.zeros(len(rows.y), dtype=bool)
    for code in codes:
        is_missing = rows.x_cat[:, code].cpu().numpy() == NUM_RESERVED + 1
    present = np.flatnonzero(~is_missing)
    donors = []
    if len(present):
        # the last part of a date holds its days: by it, dates are in order
        chosen = _spread_over(rows.x_num[:, numbers[-1]].cpu().numpy(), present)
        taken = torch.from_numpy(chosen).to(rows.y.device)
        raw = preprocessor.unscale(rows.x_num[taken].cpu().numpy())[:, numbers[-1]]
        raw = np.where(np.abs(raw) < 1e-6 * np.abs(raw).max(), 0.0, raw)  # what scaling has left of a zero
        part = preprocessor.numeric[numbers[-1]].part
        donors = [
            Donor(row=int(row), label=_number_label(value, part), x=_axis_value(value, part))
            for row, value in zip(chosen, raw.tolist(), strict=True)
        ]
    if is_missing.any():
        donors.append(Donor(row=int(np.argmax(is_missing)), label="missing"))
    return donors


def _spread_over(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Rows at evenly spaced quantiles, one for each value; at all values where there are few."""
    order = present[np.argsort(values[present], kind="stable")]
    _, first = np.unique(values[order], return_index=True)
    if len(first) > NUM_POINTS:
        low, high = (share * (len(order) - 1) for share in MIDDLE)
        at = np.linspace(low, high, NUM_POINTS).round().astype(np.int64)
        _, first = np.unique(values[order[at]], return_index=True)
        first = at[first]
    return order[first]


def _axis_value(value: float, part: str) -> float:
    return round(value * 24) / 24 if part == "days" else float(f"{value:.6g}")  # days to the hour, as the label


def _number_label(value: float, part: str) -> str:
    if part != "days":
        return f"{part} {value:.6g}".strip()
    # scaled to float32 and back, a moment is some seconds off
    hour = np.datetime64(0, "h") + round(value * 24)
    return str(hour.astype("datetime64[D]")) if hour == hour.astype("datetime64[D]") else f"{hour}h"


def _level_donors(codes: np.ndarray, levels: tuple[str, ...]) -> list[Donor]:
    names = {UNSEEN: "unseen or rare", MISSING: "missing"}
    found, first, counts = np.unique(codes, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_LEVELS]
    return [
        Donor(row=int(first[at]), label=names.get(int(found[at])) or levels[found[at] - NUM_RESERVED]) for at in order
    ]
