"""Every row of a split exactly once over all processes, and the judgement of what comes out."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.batch_plan import cut
from nn_train.calibration import choose_threshold, fit_temperature, probabilities
from nn_train.costs import read_costs
from nn_train.curves import bend, fit_curves
from nn_train.decision import Decision
from nn_train.metrics import compute_metrics, quantile_metrics
from nn_train.packed import PackedRows
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.run_folder import write_file
from nn_train.runtime import Runtime
from nn_train.settings import EvaluationConfig

if TYPE_CHECKING:
    import pandas as pd


def deal_blocks(num_rows: int, block_rows: int, num_processes: int) -> list[list[tuple[int, int]]]:
    """The blocks (start, stop) of each process: cut alike whatever the number of processes, and dealt out in order."""
    blocks = [(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    return [blocks[first:last] for first, last in cut(len(blocks), num_processes)]


@torch.no_grad()
def predict_logits(
    network: nn.Module, rows: PackedRows, *, num_outputs: int, runtime: Runtime, block_rows: int
) -> Tensor:
    """Logits of all rows in their order, (R, D) float32 on every process; a collective.

    Rows are cut into blocks of `block_rows` whatever the number of processes, and whole blocks are
    dealt to processes: the same block gives the same bits wherever it is computed. `network` is the
    bare one: DDP's forward may hold a collective, and processes have different numbers of blocks.

    Raises:
        AssertionError: the processes together did not return each row once.
    """
    num_rows = len(rows)
    shares = deal_blocks(num_rows, block_rows, runtime.num_processes)
    counts = [sum(stop - start for start, stop in share) for share in shares]
    parts = [torch.zeros((0, num_outputs), device=runtime.device)]
    for start, stop in shares[runtime.rank]:
        pulse.beat()
        batch = rows.slice(start, stop)
        parts.append(network(batch.x_num, batch.x_cat).float())
    logits = torch.cat(parts)
    if runtime.num_processes > 1:
        padded = torch.zeros((max(counts), num_outputs), device=runtime.device)
        padded[: len(logits)] = logits
        gathered = runtime.gather(padded).view(runtime.num_processes, max(counts), num_outputs)
        logits = torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)])
    assert len(logits) == num_rows, f"evaluated {len(logits)} of {num_rows} rows"
    return logits


def choose_decision(
    logits: np.ndarray, y: np.ndarray, preprocessor: Preprocessor, config: EvaluationConfig
) -> Decision:
    """Fit the calibration, then the threshold, on the validation rows; a threshold of costs needs no row.

    Raises:
        ConfigError: evaluation.costs do not fit the classes.
    """
    task = preprocessor.target.task
    costs = read_costs(config.costs, preprocessor.target)
    if task == "regression":
        return Decision(temperature=1.0, threshold=0.5)
    flat = logits[:, 0] if task == "binary" else logits
    temperature = fit_temperature(flat, y, task=task) if config.calibration == "temperature" else 1.0
    p, curves = probabilities(flat, temperature, task=task), ()
    if config.calibration == "isotonic":
        curves = fit_curves(p, y, task=task)
        p = bend(p, curves)
    threshold = 0.5
    if task == "binary":
        threshold = choose_threshold(y, p, config.threshold_by, costs=costs)
    rows = () if costs is None else tuple(tuple(map(float, row)) for row in costs)
    return Decision(temperature=temperature, threshold=threshold, curves=curves, costs=rows)


def judge(logits: np.ndarray, y: np.ndarray, preprocessor: Preprocessor, decision: Decision) -> dict[str, float]:
    """All metrics of a split, in the target's own unit."""
    target = preprocessor.target
    truth = preprocessor.decode_target(y) if target.task == "regression" else y
    prediction = decision.predict(logits, preprocessor)
    found = compute_metrics(
        truth, prediction, task=target.task, threshold=decision.threshold, costs=decision.cost_table
    )
    if target.quantiles:
        found |= quantile_metrics(truth, decision.values(logits, preprocessor), target.quantiles)
    return found


def prediction_frame(
    logits: np.ndarray, truth: "pd.DataFrame", preprocessor: Preprocessor, decision: Decision
) -> "pd.DataFrame":
    """`truth` (row, ids, target) with the prediction and the probability of each class beside it."""
    import pandas as pd  # once training is done: not before the first step

    return pd.concat([truth.reset_index(drop=True), decision.frame(logits, preprocessor)], axis=1)


def write_predictions(path: Path, frame: "pd.DataFrame") -> None:
    """Write predictions as Parquet, whole."""
    write_file(path, frame.to_parquet(None, index=False))
