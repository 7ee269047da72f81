"""The column that says how much each row weighs in training."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from nn_train.errors import DataError, short
from nn_train.settings import DataConfig
from nn_train.table import name_row
from nn_train.values import as_text, is_bytes, plain, read_numbers

# float32 holds the sum of a batch's weighted losses within these; only the ratio of two weights matters
LEAST_WEIGHT, MOST_WEIGHT = 1e-12, 1e12


def check_weights(column: pa.ChunkedArray, has_target: np.ndarray, data: DataConfig) -> None:
    """Refuse weights that are none; rows without a target may hold anything.

    Raises:
        DataError: naming the column, the row, and how to mend it.
    """
    name = f"column '{short(data.weight or '')}'"
    array = plain(column)
    if pa.types.is_nested(array.type) or is_bytes(array.type) or pa.types.is_boolean(array.type):
        raise DataError(
            f"{name} holds {short(str(array.type))}, and weights are numbers",
            where=data.path,
            fix="another data.weight",
        )
    weights = read_numbers(column, data)
    is_unread = np.isnan(weights)
    checks = (
        (np.isinf(weights), "which is infinite", "correct it"),
        (weights < 0, "which is negative", "correct it; 0 leaves a row out of the training"),
        (
            ((weights > 0) & (weights < LEAST_WEIGHT)) | (weights > MOST_WEIGHT),
            f"which is neither 0 nor from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}",
            "scale all weights by one number: only their ratios matter",
        ),
        (is_unread, "which is no number", "correct it, or another data.weight"),
    )
    for wrong, what, fix in checks:
        row = _first(wrong & has_target)
        if row is None:
            continue
        place = name_row(data, row)
        value = as_text(array[row])
        if is_unread[row] and (not array[row].is_valid or _is_missing(value, data)):
            raise DataError(
                f"{name} has no weight in {place}",
                where=data.path,
                fix="give every row one: 1 as usual, 0 to leave it out",
            )
        raise DataError(f"{name} holds the weight '{short(value)}' in {place}, {what}", where=data.path, fix=fix)


def refuse_all_zero(weights: np.ndarray, data: DataConfig, *, rows: str) -> None:
    """Raise a DataError where no row weighs anything."""
    if not weights.any():
        raise DataError(
            f"column '{short(data.weight or '')}' has the weight 0 in {rows}; there is nothing to learn from",
            where=data.path,
            fix="correct it, another data.weight, or data.weight=null",
        )


def row_weigher(data: DataConfig) -> Callable[[pa.Table], np.ndarray] | None:
    """From raw rows to their weights (B,) float32, as they are packed; None where all weigh the same."""
    name = data.weight
    if name is None:
        return None

    # a row without a target may hold any number, and is never trained on
    return lambda rows: np.clip(read_numbers(rows.column(name), data), 0, MOST_WEIGHT).astype(np.float32)


def _first(wrong: np.ndarray) -> int | None:
    return int(np.argmax(wrong)) if wrong.any() else None


def _is_missing(value: str, data: DataConfig) -> bool:
    return value.strip() in {word.strip() for word in data.missing_values}
