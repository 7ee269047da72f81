"""A large split judged block by block: no process holds its scores, and each adds up what it has seen.

Shapes: B rows, D outputs.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.decision import Decision
from nn_train.evaluation import deal_blocks
from nn_train.packed import PackedRows
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.runtime import Runtime
from nn_train.streamed_metrics import Accumulator, total
from nn_train.streamed_values import build_accumulator

LossSum = Callable[[Tensor, Tensor], Tensor]


def rows_at(rows: PackedRows, places: np.ndarray) -> PackedRows:
    """Some of the rows, in memory where all of them lie."""
    batch = rows.gather(torch.from_numpy(places))
    parts = {name: getattr(batch, name) for name in ("x_num", "x_cat", "y", "weight")}
    return dataclasses.replace(rows, **parts)


def start_sums(preprocessor: Preprocessor, decision: Decision) -> Accumulator:
    """An accumulator that has seen nothing."""
    return build_accumulator(
        preprocessor.target,
        mean=preprocessor.target_mean,
        deviation=preprocessor.target_std,
        threshold=decision.threshold,
        costs=decision.cost_table,
    )


def add_block(
    seen: Accumulator, logits: np.ndarray, y: np.ndarray, preprocessor: Preprocessor, decision: Decision
) -> None:
    """Take in logits (B, D) and targets as rows are packed with."""
    target = preprocessor.target
    truth = preprocessor.decode_target(y) if target.task == "regression" else y
    seen.add(truth, (decision.values if target.quantiles else decision.predict)(logits, preprocessor))


@torch.no_grad()
def stream_metrics(
    network: nn.Module,
    rows: PackedRows,
    preprocessor: Preprocessor,
    decision: Decision,
    *,
    loss_sum: LossSum,
    runtime: Runtime,
    block_rows: int,
) -> tuple[float, Accumulator]:
    """The mean loss of all rows, and what gives their metrics, the same on every process; a collective.

    Blocks are those of `predict_logits`, and no bit depends on how many processes there are.
    """
    seen, losses = start_sums(preprocessor, decision), []
    for start, stop in deal_blocks(len(rows), block_rows, runtime.num_processes)[runtime.rank]:
        pulse.beat()
        batch = rows.slice(start, stop)
        logits = network(batch.x_num, batch.x_cat).float()
        losses.append(float(loss_sum(logits, batch.y)))
        add_block(seen, logits.cpu().numpy(), batch.y.cpu().numpy(), preprocessor, decision)
    every = gather_lines(np.array(losses, np.float64)[:, None], runtime)
    share_sums(seen, runtime)
    assert seen.num_rows == len(rows), f"evaluated {seen.num_rows} of {len(rows)} rows"
    return total(every[:, 0]) / len(rows), seen


def share_sums(seen: Accumulator, runtime: Runtime) -> None:
    """Add up what all processes have seen, on each of them; a collective."""
    if runtime.num_processes == 1:
        return
    counts = runtime.sum(torch.from_numpy(seen.counts).to(runtime.device)).cpu().numpy()
    seen.load(gather_lines(seen.lines, runtime), counts)


def gather_lines(lines: np.ndarray, runtime: Runtime) -> np.ndarray:
    """Lines (L, K) of all processes, one after another; a collective."""
    if runtime.num_processes == 1:
        return lines
    lengths = runtime.gather(torch.tensor([len(lines)], device=runtime.device)).tolist()
    padded = torch.zeros((max(lengths), lines.shape[1]), dtype=torch.float64, device=runtime.device)
    padded[: len(lines)] = torch.from_numpy(lines).to(runtime.device)
    parts = runtime.gather(padded).view(len(lengths), *padded.shape).cpu().numpy()
    return np.concatenate([part[:length] for part, length in zip(parts, lengths, strict=True)])
