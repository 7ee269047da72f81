"""Rows of a table, piece by piece, to logits: dealt out to processes, put back in order, counted and judged.

Shapes: B rows, D outputs.
"""

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
import torch

from nn_train.bundle import Bundle
from nn_train.errors import WorldError
from nn_train.incoming import KINDS, Counts, encode_rows
from nn_train.metrics import compute_metrics, quantile_metrics
from nn_train.preprocessor import Encoded
from nn_train.runtime import Runtime
from nn_train.settings import EXACT_ROWS, DataConfig
from nn_train.streamed_metrics import Accumulator
from nn_train.streamed_values import build_accumulator
from nn_train.table_stream import ahead


class Judge:
    """Metrics over rows that come piece by piece, on the main process alone.

    Up to `most` rows, or so many fewer of several outputs, their scores are held, and every metric is exact; of more
    rows nothing is held, and those that `approximate` names come from histograms.
    """

    def __init__(self, bundle: Bundle, *, most: int | None = None):
        target = bundle.preprocessor.target
        settings = bundle.info["config"].get("evaluation", {})  # which an older run has without the size
        self.bundle = bundle
        self.most = max((most or settings.get("exact_rows", EXACT_ROWS)) // target.num_outputs, 1)
        self.num_rows = 0
        self.held: list[tuple[np.ndarray, np.ndarray]] = []
        self.seen: Accumulator | None = None

    @property
    def approximate(self) -> list[str]:
        """The metrics that are not exact."""
        return [] if self.seen is None else list(self.seen.approximate)

    def add(self, y: np.ndarray, values: np.ndarray) -> None:
        """Take in targets (B,), or several (B, T), and what `Decision.predict` gives, or quantiles (B, Q).

        Rows without a known target are left out.
        """
        is_known = ~np.isnan(y).reshape(len(y), -1).any(axis=1) if y.dtype.kind == "f" else y >= 0
        y, values = y[is_known], values[is_known]
        self.num_rows += len(y)
        if self.seen is not None:
            self.seen.add(y, values)
            return
        # probabilities of many classes take much room and no more digits; a number in its own unit may need them all
        is_wide = values.ndim == 2 and bool(self.bundle.classes)
        self.held.append((y, values.astype(np.float32) if is_wide else values))
        if self.num_rows > self.most:
            self.seen = self._start()
            for truth, said in self.held:
                self.seen.add(truth, said.astype(np.float64))
            self.held = []

    def _start(self) -> Accumulator:
        fitted, decision = self.bundle.preprocessor, self.bundle.decision
        return build_accumulator(
            fitted.target,
            mean=fitted.target_mean,
            deviation=fitted.target_std,
            threshold=decision.threshold,
            costs=decision.cost_table,
        )

    def metrics(self) -> dict[str, float]:
        """Every metric of the task; empty where no row has a known target."""
        if not self.num_rows:
            return {}
        if self.seen is not None:
            return self.seen.metrics()
        truth, values = (np.concatenate(parts) for parts in zip(*self.held, strict=True))
        values = values.astype(np.float64)
        decision, target = self.bundle.decision, self.bundle.preprocessor.target
        if target.quantiles:
            found = compute_metrics(truth, values[:, target.middle], task=target.task)
            return found | quantile_metrics(truth, values, target.quantiles)
        return compute_metrics(
            truth, values, task=self.bundle.task, threshold=decision.threshold, costs=decision.cost_table
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turn:
    """A piece for each process: its sizes, the pieces themselves on the main process, and this one's own, encoded."""

    sizes: list[int]
    tables: list[pa.Table]
    encoded: Encoded | None
    counts: Counts


def score_pieces(
    pieces: Iterable[pa.Table],
    bundle: Bundle,
    runtime: Runtime,
    *,
    data: DataConfig,
    take: Callable[[pa.Table, np.ndarray], object],
) -> Counts:
    """Predict the rows of `pieces`, which every process must be given alike, read as `data` says; a collective.

    Piece i is encoded and predicted by process i mod processes, a thread ahead of the network. The main process calls
    `take` with each piece and its logits (B, D), in order. Returns what was met on the way, over all processes.

    Raises:
        DataError: a column that is needed is missing, or a piece cannot be read.
        WorldError: the processes were given different rows.
    """
    counts = Counts()

    def take_all(turn: _Turn, parts: list[np.ndarray]) -> None:
        for table, logits in zip(turn.tables, parts, strict=True):
            take(table, logits)

    with closing(ahead(_turns(pieces, bundle, runtime, data))) as turns:
        while True:
            turn = runtime.on_every_rank(lambda: next(turns, None))
            _refuse_other_rows(turn.sizes if turn else [], runtime)
            if turn is None:
                return _sum_counts(counts, bundle.features, runtime)
            logits = runtime.on_every_rank(functools.partial(_own_logits, turn, bundle))
            parts = _gather(logits, turn.sizes, runtime)
            counts.add(turn.counts)
            runtime.on_main(functools.partial(take_all, turn, parts))


def _turns(pieces: Iterable[pa.Table], bundle: Bundle, runtime: Runtime, data: DataConfig) -> Iterator[_Turn]:
    source = iter(pieces)
    while tables := list(itertools.islice(source, runtime.num_processes)):
        encoded, counts = None, Counts()
        if runtime.rank < len(tables):
            table = tables[runtime.rank]
            encoded, counts = encode_rows(table, bundle.preprocessor, bundle.schema, data)
        yield _Turn(
            sizes=[len(table) for table in tables],
            tables=tables if runtime.is_main else [],
            encoded=encoded,
            counts=counts,
        )


def _own_logits(turn: _Turn, bundle: Bundle) -> np.ndarray:
    if turn.encoded is None:
        return np.zeros((0, bundle.preprocessor.target.num_outputs), np.float32)
    return bundle.logits(turn.encoded)


def _refuse_other_rows(sizes: list[int], runtime: Runtime) -> None:
    """Raise WorldError where another process reads pieces of other sizes; a collective."""
    width = runtime.num_processes
    own = torch.tensor(sizes + [-1] * (width - len(sizes)), dtype=torch.int64, device=runtime.device)
    if (runtime.gather(own).view(width, width) != own).any():
        raise WorldError("the processes read different rows", fix="give every node the same table")


def _gather(logits: np.ndarray, sizes: list[int], runtime: Runtime) -> list[np.ndarray]:
    """The logits of every piece, in order; a collective."""
    if runtime.num_processes == 1:
        return [logits]
    padded = torch.zeros((max(*sizes, 1), logits.shape[1]), device=runtime.device)
    padded[: len(logits)] = torch.from_numpy(logits).to(runtime.device)
    gathered = runtime.gather(padded).view(runtime.num_processes, *padded.shape).cpu().numpy()
    return [gathered[rank, :size] for rank, size in enumerate(sizes)]


def _sum_counts(counts: Counts, features: Sequence[str], runtime: Runtime) -> Counts:
    """The counts of all processes; a collective. The examples are the main process's own."""
    own = [[counts.rows] * len(features), *([getattr(counts, kind)[name] for name in features] for kind in KINDS)]
    rows, *parts = runtime.sum(torch.tensor(own, dtype=torch.int64, device=runtime.device)).tolist()
    found = {
        kind: Counter({n: c for n, c in zip(features, part, strict=True) if c})
        for kind, part in zip(KINDS, parts, strict=True)
    }
    return Counts(rows=rows[0], examples=counts.examples, **found)
