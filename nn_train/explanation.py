"""What explain.json holds: the prediction along the most important columns, and what moved the worst test rows.

For the main process alone, once training is done; none of it is used to choose anything.
"""

import datetime
import logging
from typing import Any

import numpy as np
import pandas as pd
import torch

from nn_train.attributions import attribute, can_attribute
from nn_train.decision import Decision
from nn_train.dependence import NUM_COLUMNS, partial_dependence
from nn_train.errors import short
from nn_train.judging import batch_predictor
from nn_train.metrics import NUM_WORST_ROWS, worst_first
from nn_train.packed import features_file, truth_file
from nn_train.parquet_rows import rows_at_places
from nn_train.pulse import pulse
from nn_train.sampling import held_rows
from nn_train.training import Training

logger = logging.getLogger("nn_train")
NUM_ATTRIBUTED = 10
MOST_PARTS = 8  # columns of one row that are named


def explain(
    training: Training,
    decision: Decision,
    importance: dict[str, Any] | None,
    test: tuple[np.ndarray, np.ndarray] | None,
    places: np.ndarray | None = None,
) -> dict[str, Any]:
    """Partial dependence, raw values of the worst test rows, and their attributions; None for what is off.

    `test` holds logits (R, D) and targets (R,) of the test rows, if there are any; `places` say which rows these are,
    where they are not all.
    """
    worst = np.zeros(0, np.int64) if test is None else _worst_rows(training, decision, *test, places)
    top = list(importance["columns"])[:NUM_COLUMNS] if importance else []
    return {
        "dependence": _dependence(training, decision, top) if top else None,
        "worst": _raw_values(training, worst, top) if top and len(worst) else None,
        "attributions": _attributions(training, decision, worst[:NUM_ATTRIBUTED]),
    }


def _worst_rows(
    training: Training, decision: Decision, logits: np.ndarray, y: np.ndarray, places: np.ndarray | None
) -> np.ndarray:
    """Places of the worst test rows, or of the worst of those at `places`."""
    fitted = training.data.preprocessor
    is_regression = fitted.target.task == "regression"
    # as predictions.parquet has it
    truth = fitted.target.take_truth(_truth(training, places)).astype(float) if is_regression else y
    scores = decision.predict(logits, fitted) if is_regression else decision.scores(logits, fitted)
    worst = worst_first(truth, scores)[:NUM_WORST_ROWS]
    return worst if places is None else places[worst]


def _truth(training: Training, places: np.ndarray | None) -> pd.DataFrame:
    if places is None:
        return training.data.truth("test")
    return rows_at_places(truth_file(training.data.folder, "test"), places).to_pandas()


def _dependence(training: Training, decision: Decision, columns: list[str]) -> dict[str, Any]:
    pulse.mark("judge", pulse.step)
    predict = batch_predictor(training, decision)
    rows, exact_rows = training.val_rows, training.config.evaluation.exact_rows
    most = held_rows(len(rows), exact_rows)
    return partial_dependence(rows, training.data.preprocessor, predict, columns=columns, most_donors=most)


def _row_numbers(training: Training, positions: np.ndarray) -> list[int]:
    """Places in the input table of test rows, as predictions.parquet names them."""
    file = truth_file(training.data.folder, "test")
    return rows_at_places(file, positions, ["row"]).column("row").to_pylist()


def _raw_values(training: Training, positions: np.ndarray, columns: list[str]) -> dict[str, Any]:
    table = _features(training, columns, positions)
    return {
        "columns": columns,
        "rows": _row_numbers(training, positions),
        "values": [[value_text(value) for value in row] for row in table.itertuples(index=False, name=None)],
    }


def _features(training: Training, columns: list[str], positions: np.ndarray) -> pd.DataFrame:
    """Columns of some test rows as the table holds them, by kind: numbers, text or dates."""
    return rows_at_places(features_file(training.data.folder, "test"), positions, columns).to_pandas()


def _attributions(training: Training, decision: Decision, positions: np.ndarray) -> dict[str, Any] | None:
    if training.config.report.attributions == "no" or not can_attribute() or not len(positions):
        return None
    if not hasattr(training.network, "encode"):
        logger.warning("no attributions: a custom network has no encode() and layers, as the project's own have")
        return None
    data = training.data
    pulse.mark("judge", pulse.step)
    rows = data.rows("test", device=training.runtime.device, placement=training.config.data.placement)
    batch = rows.take(torch.from_numpy(positions))
    found = attribute(training.network, batch, data.preprocessor, decision)
    names = list(found["columns"])
    parts_BC = np.array([found["columns"][name] for name in names]).T
    orders = [np.argsort(-np.abs(parts), kind="stable")[:MOST_PARTS] for parts in parts_BC]
    table = _features(training, sorted({names[place] for order in orders for place in order}), positions)
    classes = data.preprocessor.target.classes
    described = []
    for at, (row, order) in enumerate(zip(_row_numbers(training, positions), orders, strict=True)):
        described.append(
            {
                "row": row,
                "class": classes[found["classes"][at]] if found["classes"] else None,
                "score": found["scores"][at],
                "base": found["bases"][at],
                "parts": [
                    {
                        "column": names[place],
                        "value": value_text(table[names[place]].iloc[at]),
                        "part": parts_BC[at, place],
                    }
                    for place in order.tolist()
                ],
                "num_rest": len(names) - len(order),
                "rest": float(parts_BC[at].sum() - parts_BC[at, order].sum()),
            }
        )
    return {"gap": found["gap"], "rows": described}


def value_text(value: Any) -> str:
    """A value of the table for a person: all digits of a number, a date without its midnight."""
    if pd.isna(value):
        return "missing"
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    if isinstance(value, datetime.datetime):
        return str(value).removesuffix(" 00:00:00")
    return short(str(value))
