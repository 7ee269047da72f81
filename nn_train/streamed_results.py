"""The judgement of a split whose scores are too many to hold: one pass that judges and writes predictions on its way.

Shapes: B rows, D outputs.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from nn_train.decision import Decision
from nn_train.packed import PackedRows, truth_file
from nn_train.parquet_rows import RowReader
from nn_train.predictions_file import open_predictions, prediction_columns
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.runtime import Runtime
from nn_train.schema import Split
from nn_train.streamed_metrics import Accumulator
from nn_train.streaming import add_block, share_sums, start_sums
from nn_train.training import Training

TURN_CELLS = 1 << 18  # logits of a process that are gathered at a time; at least a block

Block = tuple[int, int]


def stream_split(training: Training, split: Split, decision: Decision, file: Path) -> Accumulator:
    """Predict every row of a split into `file`, and hand back what gives its metrics; a collective.

    The rows are taken in turns of neighbouring blocks, some for each process, so that the main process writes them in
    order and holds one turn.
    """
    runtime, data, fitted = training.runtime, training.data, training.data.preprocessor
    rows = data.rows(split, device=runtime.device, placement=training.config.data.placement)
    seen = start_sums(fitted, decision)
    turns = deal_turns(
        len(rows), training.config.train.eval_batch_size, runtime.num_processes, width=fitted.target.num_outputs
    )
    with ExitStack() as stack:
        desk = runtime.on_main(lambda: _open_desk(stack, truth_file(data.folder, split), file, fitted, decision))
        for shares in turns:
            own = _judge_blocks(training, rows, shares[runtime.rank], seen, decision)
            every = _gather(own, shares, runtime)
            runtime.on_main(functools.partial(desk, every) if desk else lambda: None)
        runtime.on_main(training.check_owner)  # before the file appears: all of it may have taken hours
    share_sums(seen, runtime)
    assert seen.num_rows == len(rows), f"evaluated {seen.num_rows} of {len(rows)} rows"
    return seen


def deal_turns(num_rows: int, block_rows: int, num_processes: int, *, width: int) -> Iterator[list[list[Block]]]:
    """Turn by turn the blocks (start, stop) of each process, which follow one another; about 2**18 logits a process."""
    each = max(TURN_CELLS // (block_rows * width), 1)
    blocks = [(start, min(start + block_rows, num_rows)) for start in range(0, num_rows, block_rows)]
    for first in range(0, len(blocks), each * num_processes):
        starts = range(first, first + each * num_processes, each)
        yield [blocks[start : start + each] for start in starts]


@torch.no_grad()
def _judge_blocks(
    training: Training, rows: PackedRows, blocks: list[Block], seen: Accumulator, decision: Decision
) -> np.ndarray:
    """Logits (B, D) of neighbouring blocks."""
    fitted = training.data.preprocessor
    parts = [np.zeros((0, fitted.target.num_outputs), np.float32)]
    for start, stop in blocks:
        pulse.beat()
        batch = rows.slice(start, stop)
        logits = training.network(batch.x_num, batch.x_cat).float().cpu().numpy()
        add_block(seen, logits, batch.y.cpu().numpy(), fitted, decision)
        parts.append(logits)
    return np.concatenate(parts)


def _gather(logits: np.ndarray, shares: list[list[Block]], runtime: Runtime) -> np.ndarray:
    """The logits of a turn, in order, on the main process; a collective."""
    if runtime.num_processes == 1:
        return logits
    sizes = [sum(stop - start for start, stop in share) for share in shares]
    padded = torch.zeros((max(sizes), logits.shape[1]), device=runtime.device)
    padded[: len(logits)] = torch.from_numpy(logits).to(runtime.device)
    gathered = runtime.gather(padded).view(len(sizes), *padded.shape)
    if not runtime.is_main:
        return logits
    return np.concatenate([part[:size].cpu().numpy() for part, size in zip(gathered, sizes, strict=True)])


def _open_desk(
    stack: ExitStack, truth: Path, file: Path, preprocessor: Preprocessor, decision: Decision
) -> Callable[[np.ndarray], None]:
    """What writes the next rows' predictions beside their truth: of the main process."""
    write, reader = stack.enter_context(open_predictions(file)), RowReader(truth)
    stack.callback(reader.close)

    def take(logits: np.ndarray) -> None:
        pulse.beat()
        beside = reader.take(len(logits)).replace_schema_metadata(None)
        columns = prediction_columns(decision.scores(logits, preprocessor), preprocessor, decision)
        write(pa.table({name: beside.column(name) for name in beside.column_names} | columns))

    return take


def describe_streamed(
    seen: Mapping[Split, Accumulator],
    places: Mapping[Split, np.ndarray],
    *,
    exact_rows: int,
    fitted: list[str],
    measured: list[str],
) -> dict[str, Any]:
    """For metrics.json, which metrics of which splits are exact; empty where all are.

    `places` are those of the rows that stand for a split: what is `fitted` on validation rows, and what is `measured`.
    """
    if not seen:
        return {}
    first = next(iter(seen.values()))
    bounds = {split: found.auc_bound() for split, found in seen.items()}
    return {
        "streamed": {
            "exact_rows": exact_rows,
            "rows": {split: found.num_rows for split, found in seen.items()},
            "approximate": list(first.approximate),
            "bins": first.num_bins,
            "roc_auc_within": bounds if "roc_auc" in first.approximate else None,
            "sample_rows": {split: len(chosen) for split, chosen in places.items()},
            "fitted_on_sample": fitted if "val" in places else [],
            "measured_on_sample": measured,
        }
    }
