"""Which rows a step sees: a pure function of (seed, step), the same on any number of processes.

A full order shuffles all rows of an epoch. An order in blocks is for tables that are read from the disk: the rows are
cut into canonical shards, of which each gives its part of every batch, so that a process needs to read its own shards
alone; in a shard, blocks of neighbouring rows come in a shuffled order, and the rows of a window of some of them are
shuffled once more.

Conventions: `step` counts finished optimizer steps, so the first batch is that of step 0. Row
numbers are positions among the train rows.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from typing import Literal

import numpy as np

from nn_train.errors import ConfigError


def derive_seed(*parts: int) -> int:
    """Mix whole numbers into one seed of 63 bits; equal parts give equal seeds on every machine."""
    text = ",".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def cut(num_rows: int, num_parts: int) -> list[tuple[int, int]]:
    """Cut `num_rows` into contiguous parts (start, stop) that differ by at most one row."""
    edges = [part * num_rows // num_parts for part in range(num_parts + 1)]
    return list(itertools.pairwise(edges))


# rows of the table's train split up to which a global batch has so many rows
BATCH_BY_ROWS = ((2_800, 32), (4_500, 64), (6_400, 128), (32_000, 256), (108_000, 512))
LARGEST_AUTO_BATCH = 1024


def batch_size(setting: int | Literal["auto"], num_rows: int) -> int:
    """Rows of a global batch by train.global_batch_size, for so many train rows.

    Source of `auto`: Y. Gorishniy, author of TabM, in AutoGluon's TabM.
    """
    if setting != "auto":
        return setting
    return next((size for most, size in BATCH_BY_ROWS if num_rows < most), LARGEST_AUTO_BATCH)


@functools.lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The shuffled rows of one epoch, (num_rows,) int64."""
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, epoch))).permutation(num_rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The order of the train rows. The last batch of an epoch holds what is left."""

    num_rows: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the rows."""
        return -(-self.num_rows // self.global_batch_size)

    def epoch_at(self, step: int) -> float:
        """Passes over the rows that are finished after `step` steps; whole at the end of an epoch."""
        return step / self.steps_per_epoch

    def size(self, step: int) -> int:
        """How many rows the global batch of `step` has."""
        start = step % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, self.num_rows - start)

    def rows(self, step: int) -> np.ndarray:
        """The rows of the global batch of `step`, (B,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch_size
        return epoch_order(self.seed, epoch, self.num_rows)[start : start + self.global_batch_size]

    def part(self, step: int, *, rank: int, num_processes: int) -> np.ndarray:
        """What a process has of them: neighbours, as many as the others have, but for one."""
        start, stop = cut(self.size(step), num_processes)[rank]
        return self.rows(step)[start:stop]


BLOCKS_IN_WINDOW = 8
MOST_SHARDS = 64  # that `auto` takes: a process for each of them would still read its own rows alone
FULL_ORDER_BYTES = 1 << 30  # packed train rows up to here are shuffled as a whole where train.shuffle is auto


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockPlan(BatchPlan):
    """An order in blocks.

    A shard gives each batch `global_batch_size / num_shards` rows; what is left over, and less than that of each, makes
    the last batch of an epoch.
    """

    num_shards: int
    window_rows: int

    @property
    def rows_per_shard(self) -> int:
        """Rows that a shard gives to a batch."""
        return self.global_batch_size // self.num_shards

    @property
    def steps_per_window(self) -> int:
        """Batches that are made of the same windows."""
        return max(1, self.window_rows // self.global_batch_size)

    @property
    def block_rows(self) -> int:
        """Neighbouring rows that stay together until they are in a window."""
        return max(1, self.steps_per_window * self.rows_per_shard // BLOCKS_IN_WINDOW)

    def rows(self, step: int) -> np.ndarray:
        """The rows of the global batch of `step`, (B,) int64, those of a shard after those of the one before it."""
        return self._of_shards(step, 0, self.num_shards)

    def part(self, step: int, *, rank: int, num_processes: int) -> np.ndarray:
        """What a process has of them; where the shards can be dealt out it looks at no other shards than its own."""
        if not self.is_dealt(step, num_processes):
            return super().part(step, rank=rank, num_processes=num_processes)
        return self._of_shards(step, *cut(self.num_shards, num_processes)[rank])

    def is_dealt(self, step: int, num_processes: int) -> bool:
        """Are the rows of each process those of some shards? Not those of the short last batch of an epoch."""
        return self.size(step) == self.global_batch_size and self.num_shards % num_processes == 0

    def _of_shards(self, step: int, first: int, last: int) -> np.ndarray:
        epoch, position = divmod(step, self.steps_per_epoch)
        window, place = divmod(position, self.steps_per_window)
        start = place * self.rows_per_shard
        parts = self.window(epoch, window, first, last)
        return np.concatenate([part[start : start + self.rows_per_shard] for part in parts])

    def whole_steps(self, window: int) -> int:
        """Batches of a window to which every shard gives its whole part."""
        length = self.steps_per_window * self.rows_per_shard
        return min(length, self.num_rows // self.num_shards - window * length) // self.rows_per_shard

    def window(self, epoch: int, window: int, first: int, last: int) -> tuple[np.ndarray, ...]:
        """What each of the shards from `first` to before `last` gives to the batches of a window of steps.

        They are (rows,) int64 in the order in which they are used.
        """
        return _window(self, epoch, window, first, last)


@functools.lru_cache(maxsize=4)
def _window(plan: BlockPlan, epoch: int, window: int, first: int, last: int) -> tuple[np.ndarray, ...]:
    length = plan.steps_per_window * plan.rows_per_shard
    bounds = cut(plan.num_rows, plan.num_shards)
    parts = []
    for shard in range(first, last):
        first_row, end_row = bounds[shard]
        blocks, ends = _block_order(plan.seed, epoch, shard, end_row - first_row, plan.block_rows)
        start, stop = window * length, min((window + 1) * length, end_row - first_row)
        low, high = np.searchsorted(ends, [start, stop - 1], side="right") if start < stop else (0, -1)
        places = [
            np.arange(size) + block * plan.block_rows
            for block, size in zip(
                blocks[low : high + 1], np.diff(ends[low : high + 1], prepend=ends[low - 1] if low else 0), strict=True
            )
        ]
        before = int(ends[low - 1]) if low else 0
        rows = np.concatenate([np.zeros(0, np.int64), *places])[start - before : stop - before] + first_row
        rng = np.random.Generator(np.random.Philox(key=derive_seed(plan.seed, epoch, shard, window)))
        parts.append(rng.permutation(rows))
    return tuple(parts)


@functools.lru_cache(maxsize=1024)
def _block_order(seed: int, epoch: int, shard: int, num_rows: int, block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The blocks of a shard in the order of an epoch, and how many of its rows are used up at the end of each."""
    num_blocks = -(-num_rows // block_rows)
    blocks = np.random.Generator(np.random.Philox(key=derive_seed(seed, epoch, shard))).permutation(num_blocks)
    sizes = np.full(num_blocks, block_rows)
    sizes[blocks == num_blocks - 1] -= num_blocks * block_rows - num_rows
    return blocks, np.cumsum(sizes)


def plan_batches(
    *,
    num_rows: int,
    num_bytes: int,
    global_batch_size: int,
    seed: int,
    shuffle: Literal["auto", "full", "blocks"],
    num_shards: int | Literal["auto"],
    window_rows: int,
) -> BatchPlan:
    """The order of the train rows; `num_bytes` is their size as they are packed.

    Nothing of the machine counts, so that a run may go on elsewhere.

    Raises:
        ConfigError: the shards do not divide the batch.
    """
    if shuffle == "full" or (shuffle == "auto" and num_bytes <= FULL_ORDER_BYTES):
        return BatchPlan(num_rows=num_rows, global_batch_size=global_batch_size, seed=seed)
    if num_shards == "auto":
        num_shards = math.gcd(global_batch_size, MOST_SHARDS)
    if global_batch_size % num_shards:
        raise ConfigError(
            f"train.num_canonical_shards={num_shards} does not divide the {global_batch_size} rows of a global batch",
            fix="train.num_canonical_shards=auto, or a train.global_batch_size that it divides",
        )
    return BlockPlan(
        num_rows=num_rows,
        global_batch_size=global_batch_size,
        seed=seed,
        num_shards=num_shards,
        window_rows=window_rows,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """How one global batch is shared: `global = processes x micro x accumulation`, rounded up."""

    global_batch_size: int
    num_processes: int
    micro_batch_size: int
    num_micro_steps: int

    def __str__(self) -> str:
        return (
            f"global {self.global_batch_size} = {self.num_processes} process{'es' if self.num_processes > 1 else ''}"
            f" x micro {self.micro_batch_size} x accumulation {self.num_micro_steps}"
        )


def share_batch(global_batch_size: int, num_processes: int, *, micro_batch_size: int | None = None) -> Share:
    """Derive micro-batches and accumulation; `micro_batch_size` is the most rows of one forward.

    Raises:
        ConfigError: fewer rows in the global batch than processes.
    """
    if global_batch_size < num_processes:
        raise ConfigError(
            f"train.global_batch_size={global_batch_size} cannot feed {num_processes} processes",
            fix=f"train.global_batch_size={num_processes} or more, or start fewer processes",
        )
    most = -(-global_batch_size // num_processes)
    num_micro_steps = -(-most // (micro_batch_size or most))
    return Share(
        global_batch_size=global_batch_size,
        num_processes=num_processes,
        micro_batch_size=-(-most // num_micro_steps),
        num_micro_steps=num_micro_steps,
    )


def slice_rows(
    global_batch_size: int, num_slices: int, num_processes: int, *, micro_batch_size: int | None = None
) -> int:
    """Most rows of one canonical slice of exact mode, which a process takes at a time.

    Raises:
        ConfigError: `num_processes` is not a power of two that divides `num_slices`, so that the slices cannot be laid
            over the processes as whole subtrees; or a slice is more than `micro_batch_size`.
    """
    rows = -(-global_batch_size // num_slices)
    if micro_batch_size is not None and micro_batch_size < rows:
        raise ConfigError(
            f"train.micro_batch_size={micro_batch_size} is less than a slice of {rows} rows in exact mode",
            fix="raise train.canonical_slices, or train.micro_batch_size=auto",
        )
    if num_processes & (num_processes - 1) or num_slices % num_processes:
        allowed = [str(2**k) for k in range(num_slices.bit_length()) if num_slices % 2**k == 0]
        raise ConfigError(
            f"train.gradient_reduction=exact cuts a batch into {num_slices} slices, which {num_processes} processes "
            "cannot share evenly",
            fix=f"start {', '.join(allowed)} processes, or change train.canonical_slices",
        )
    return rows
