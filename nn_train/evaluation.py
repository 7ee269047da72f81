"""Every row of a split exactly once over all processes, and the judgement of what comes out."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.batch_plan import cut
from nn_train.calibration import choose_threshold, fit_temperature, probabilities
from nn_train.metrics import compute_metrics
from nn_train.packed import ResidentRows
from nn_train.preprocessor import Preprocessor
from nn_train.run_folder import write_file
from nn_train.runtime import Runtime
from nn_train.settings import EvaluationConfig

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def predict_logits(
    network: nn.Module, rows: ResidentRows, *, num_outputs: int, runtime: Runtime, block_rows: int
) -> Tensor:
    """Logits of all rows in their order, (R, D) float32 on every process; a collective.

    Rows are cut into blocks of `block_rows` whatever the number of processes, and whole blocks are
    dealt to processes: the same block gives the same bits wherever it is computed. `network` is the
    bare one: DDP's forward may hold a collective, and processes have different numbers of blocks.

    Raises:
        AssertionError: the processes together did not return each row once.
    """
    num_rows = len(rows)
    blocks = [(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    shares = [blocks[first:last] for first, last in cut(len(blocks), runtime.num_processes)]
    counts = [sum(stop - start for start, stop in share) for share in shares]
    parts = [torch.zeros((0, num_outputs), device=runtime.device)]
    for start, stop in shares[runtime.rank]:
        batch = rows.slice(start, stop)
        parts.append(network(batch.x_num, batch.x_cat).float())
    logits = torch.cat(parts)
    if runtime.num_processes > 1:
        padded = torch.zeros((max(counts), num_outputs), device=runtime.device)
        padded[: len(logits)] = logits
        gathered = runtime.accelerator.gather(padded).view(runtime.num_processes, max(counts), num_outputs)
        logits = torch.cat([gathered[rank, :count] for rank, count in enumerate(counts)])
    assert len(logits) == num_rows, f"evaluated {len(logits)} of {num_rows} rows"
    return logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """How logits become probabilities and decisions; chosen on the validation rows."""

    temperature: float
    threshold: float

    def predict(self, logits: np.ndarray, preprocessor: Preprocessor) -> np.ndarray:
        """Probability of the positive class (B,), of every class (B, C), or values in the target's unit (B,)."""
        task = preprocessor.target.task
        if task == "regression":
            return preprocessor.decode_target(logits[:, 0])
        return probabilities(logits[:, 0] if task == "binary" else logits, self.temperature, task=task)


def choose_decision(
    logits: np.ndarray, y: np.ndarray, preprocessor: Preprocessor, config: EvaluationConfig
) -> Decision:
    """Fit the temperature, then the threshold, on the validation rows."""
    task = preprocessor.target.task
    if task == "regression":
        return Decision(temperature=1.0, threshold=0.5)
    flat = logits[:, 0] if task == "binary" else logits
    temperature = fit_temperature(flat, y, task=task) if config.calibration == "temperature" else 1.0
    threshold = 0.5
    if task == "binary":
        threshold = choose_threshold(y, probabilities(flat, temperature, task=task), config.threshold_metric)
    return Decision(temperature=temperature, threshold=threshold)


def judge(logits: np.ndarray, y: np.ndarray, preprocessor: Preprocessor, decision: Decision) -> dict[str, float]:
    """All metrics of a split, in the target's own unit."""
    target = preprocessor.target
    truth = preprocessor.decode_target(y) if target.task == "regression" else y
    prediction = decision.predict(logits, preprocessor)
    return compute_metrics(truth, prediction, task=target.task, threshold=decision.threshold)


def prediction_frame(
    logits: np.ndarray, truth: "pd.DataFrame", preprocessor: Preprocessor, decision: Decision
) -> "pd.DataFrame":
    """`truth` (row, ids, target) with the prediction and the probability of each class beside it."""
    import pandas as pd  # once training is done: not before the first step

    target = preprocessor.target
    values = decision.predict(logits, preprocessor)
    frame: dict[str, Any] = {}
    if target.task == "regression":
        frame["prediction"] = values
    else:
        table = np.stack([1 - values, values], axis=1) if target.task == "binary" else values
        chosen = (values >= decision.threshold).astype(int) if target.task == "binary" else table.argmax(axis=1)
        frame["prediction"] = np.array(target.classes)[chosen]
        frame |= {f"p_{name}": table[:, index] for index, name in enumerate(target.classes)}
    return pd.concat([truth.reset_index(drop=True), pd.DataFrame(frame)], axis=1)


def write_predictions(path: Path, frame: "pd.DataFrame") -> None:
    """Write predictions as Parquet, whole."""
    write_file(path, frame.to_parquet(None, index=False))
