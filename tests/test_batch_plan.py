"""The order of the rows: each once an epoch, the same global batches for any number of processes."""

import dataclasses
import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_train import batch_plan
from nn_train.batch_plan import (
    BatchPlan,
    BlockPlan,
    Share,
    batch_size,
    cut,
    derive_seed,
    epoch_order,
    plan_batches,
    share_batch,
    slice_rows,
)
from nn_train.errors import ConfigError
from nn_train.evaluation import deal_blocks
from nn_train.loop import count_steps
from nn_train.optim import lr_at_step
from nn_train.settings import Config, DataConfig, OptimConfig, TrainConfig

counts = st.integers(1, 300)
seeds = st.integers(0, 2**32 - 1)
batches = st.one_of(st.integers(1, 12), counts)


@st.composite
def block_plans(draw: st.DrawFn) -> BlockPlan:
    """An order in blocks, with windows of one batch and of all, and shards without a row."""
    num_shards = draw(st.integers(1, 9))
    return BlockPlan(
        num_rows=draw(counts),
        global_batch_size=num_shards * draw(st.integers(1, 12)),
        seed=draw(seeds),
        num_shards=num_shards,
        window_rows=draw(st.integers(1, 400)),
    )


plans = st.one_of(st.builds(BatchPlan, num_rows=counts, global_batch_size=batches, seed=seeds), block_plans())
GOLDEN_BLOCKS = [[0, 10, 8, 13, 20, 12], [4, 5, 6, 17, 15, 18], [9, 7, 2, 16, 14, 21], [1, 3, 19, 22, 11]]


def clear_orders() -> None:
    for cached in (epoch_order, batch_plan._window, batch_plan._block_order):
        cached.cache_clear()


LIGHT = settings(max_examples=300, deadline=None, database=None)
GOLDEN_ROWS = [[4, 6, 7, 2], [9, 1, 5, 3], [8, 0]]
GOLDEN_SEED = 4529435921577843265


@given(num_rows=counts, batch=counts, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_row_exactly_once(num_rows: int, batch: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(num_rows=num_rows, global_batch_size=batch, seed=seed)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    rows = np.concatenate([plan.rows(step) for step in steps])
    assert sorted(rows) == list(range(num_rows))


@given(plan=block_plans(), epoch=st.integers(0, 3))
def test_an_epoch_in_blocks_holds_every_row_exactly_once(plan: BlockPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.rows(step) for step in steps]
    assert sorted(np.concatenate(batches)) == list(range(plan.num_rows))
    assert all(len(rows) == plan.global_batch_size for rows in batches[:-1])


@given(plan=block_plans(), step=st.integers(0, 99))
def test_a_shard_gives_each_whole_batch_its_share(plan: BlockPlan, step: int) -> None:
    rows = plan.rows(step)
    if len(rows) == plan.global_batch_size:
        shards = cut(plan.num_rows, plan.num_shards)
        for (first, last), part in zip(shards, rows.reshape(plan.num_shards, -1), strict=True):
            assert ((first <= part) & (part < last)).all()


def test_blocks_come_in_another_order_every_epoch_and_are_mixed() -> None:
    plan = BlockPlan(num_rows=64_000, global_batch_size=256, seed=1, num_shards=16, window_rows=8192)
    epochs = [np.concatenate([plan.rows(step) for step in range(k * 250, k * 250 + 250)]) for k in (0, 1)]
    assert not np.array_equal(*epochs)
    # the rows that follow one another in a shard's part of a batch are no neighbours in the table
    part = plan.rows(3)[:16]
    assert plan.block_rows == 64 and len(set(part // plan.block_rows)) > 4
    assert (np.diff(part) != 1).all()


def test_the_order_in_blocks_is_the_same_today_as_when_a_checkpoint_was_written() -> None:
    plan = BlockPlan(num_rows=23, global_batch_size=6, seed=0, num_shards=2, window_rows=12)
    assert [plan.rows(step).tolist() for step in range(4)] == GOLDEN_BLOCKS


def test_the_order_is_chosen_by_the_size_of_the_table_and_by_nothing_of_the_machine() -> None:
    def choose(num_bytes: int, **changes: Any) -> BatchPlan:
        options = {"shuffle": "auto", "num_shards": "auto", "window_rows": 1024, "global_batch_size": 96}
        return plan_batches(num_rows=1000, num_bytes=num_bytes, seed=0, **options | changes)

    assert type(choose(1 << 30)) is BatchPlan and type(choose(1 << 40, shuffle="full")) is BatchPlan
    for plan in (choose(1 + (1 << 30)), choose(1, shuffle="blocks")):
        assert isinstance(plan, BlockPlan) and plan.num_shards == 32
    assert choose(1, shuffle="blocks", num_shards=3) == dataclasses.replace(plan, num_shards=3)
    assert choose(1, shuffle="blocks", global_batch_size=1024) == dataclasses.replace(
        plan, num_shards=64, global_batch_size=1024
    )
    with pytest.raises(ConfigError, match="num_canonical_shards=7 does not divide the 96 rows") as caught:
        choose(1, shuffle="blocks", num_shards=7)
    assert "train.num_canonical_shards=auto" in caught.value.fix


@given(num_rows=st.integers(0, 500), parts=st.integers(1, 20))
def test_parts_cover_all_rows_and_differ_by_at_most_one(num_rows: int, parts: int) -> None:
    bounds = cut(num_rows, parts)
    sizes = [stop - start for start, stop in bounds]
    assert sum(sizes) == num_rows
    assert max(sizes) - min(sizes) <= 1
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))


def test_epochs_and_seeds_have_different_orders() -> None:
    plan = BatchPlan(num_rows=100, global_batch_size=100, seed=1)
    other = BatchPlan(num_rows=100, global_batch_size=100, seed=2)
    assert not np.array_equal(plan.rows(0), plan.rows(1))
    assert not np.array_equal(plan.rows(0), other.rows(0))


def test_the_order_is_the_same_today_as_when_a_checkpoint_was_written() -> None:
    plan = BatchPlan(num_rows=10, global_batch_size=4, seed=0)
    assert [plan.rows(step).tolist() for step in range(3)] == GOLDEN_ROWS
    assert derive_seed(0, 1, 2) == GOLDEN_SEED


@given(batch=st.integers(1, 5000), processes=st.integers(1, 64), micro=st.integers(1, 600))
def test_micro_batches_hold_the_share_of_every_process(batch: int, processes: int, micro: int) -> None:
    if batch < processes:
        with pytest.raises(ConfigError, match=f"cannot feed {processes} processes"):
            share_batch(batch, processes, micro_batch_size=micro)
        return
    share = share_batch(batch, processes, micro_batch_size=micro)
    assert share.micro_batch_size <= micro
    largest = max(stop - start for start, stop in cut(batch, processes))
    assert share.micro_batch_size * share.num_micro_steps >= largest
    assert max(stop - start for start, stop in cut(largest, share.num_micro_steps)) <= micro


def test_the_derived_batch_is_told_in_one_line() -> None:
    assert str(share_batch(256, 2, micro_batch_size=64)) == "global 256 = 2 processes x micro 64 x accumulation 2"
    assert str(share_batch(256, 1)) == "global 256 = 1 process x micro 256 x accumulation 1"


@pytest.mark.parametrize("processes", [3, 5, 16])
def test_exact_mode_refuses_processes_that_cannot_share_the_slices(processes: int) -> None:
    with pytest.raises(ConfigError, match="start 1, 2, 4, 8 processes"):
        slice_rows(256, 8, processes)
    assert slice_rows(256, 8, 4) == slice_rows(250, 8, 1) == 32


def test_exact_mode_refuses_a_micro_batch_below_a_slice() -> None:
    with pytest.raises(ConfigError, match="less than a slice of 32 rows"):
        slice_rows(256, 8, 2, micro_batch_size=31)
    assert slice_rows(256, 8, 2, micro_batch_size=32) == 32


def test_the_batch_grows_with_the_rows_and_a_number_is_kept() -> None:
    sizes = [batch_size("auto", rows) for rows in (1, 2799, 2800, 4931, 10_000, 50_000, 108_000, 10**9)]
    assert sizes == [32, 32, 64, 128, 256, 512, 1024, 1024]
    assert batch_size(7, 10**6) == 7


# --- over processes and micro-steps -----------------------------------------------------------------------------------


def micro_batches(plan: BatchPlan, step: int, share: Share) -> Iterator[list[np.ndarray]]:
    """The rows of each micro-step of each process, cut as `FastGradients` cuts them."""
    for rank in range(share.num_processes):
        part = plan.part(step, rank=rank, num_processes=share.num_processes)
        yield [part[low:high] for low, high in cut(len(part), share.num_micro_steps)]


@st.composite
def shared_plans(draw: st.DrawFn) -> tuple[BatchPlan, list[Share]]:
    """A plan, and its global batch shared in every way that 1 to 8 processes can."""
    plan = draw(plans)
    batch = plan.global_batch_size
    micro = draw(st.one_of(st.none(), st.integers(1, batch)))
    return plan, [share_batch(batch, processes, micro_batch_size=micro) for processes in range(1, min(batch, 8) + 1)]


@LIGHT
@given(case=shared_plans(), epoch=st.integers(0, 3))
def test_any_number_of_processes_sees_the_same_global_batches(case: tuple[BatchPlan, list[Share]], epoch: int) -> None:
    plan, shares = case
    for share in shares:
        seen: list[np.ndarray] = []
        for step in range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch):
            parts = list(micro_batches(plan, step, share))
            assert [len(part) for part in parts] == [share.num_micro_steps] * share.num_processes  # or DDP would hang
            assert max(len(rows) for part in parts for rows in part) <= share.micro_batch_size
            seen.append(np.concatenate(list(itertools.chain.from_iterable(parts))))
            assert seen[-1].tolist() == plan.rows(step).tolist()
            assert len(seen[-1]) == plan.size(step)
        assert sorted(np.concatenate(seen)) == list(range(plan.num_rows))


@LIGHT
@given(plan=block_plans(), step=st.integers(0, 600))
def test_a_process_looks_at_no_other_shards_than_its_own(plan: BlockPlan, step: int) -> None:
    looked_at = []

    class Watched(BlockPlan):
        def window(self, epoch: int, window: int, first: int, last: int) -> tuple[np.ndarray, ...]:
            looked_at.append((first, last))
            return super().window(epoch, window, first, last)

    watched = Watched(**dataclasses.asdict(plan))
    for processes in range(1, 9):
        for rank in range(processes):
            looked_at.clear()
            watched.part(step, rank=rank, num_processes=processes)
            is_dealt = plan.num_shards % processes == 0 and plan.size(step) == plan.global_batch_size
            assert looked_at == [cut(plan.num_shards, processes)[rank] if is_dealt else (0, plan.num_shards)]


@LIGHT
@given(plan=plans, power=st.integers(0, 6), step=st.integers(0, 2000))
def test_exact_mode_sees_the_same_slices_on_any_number_of_processes(plan: BatchPlan, power: int, step: int) -> None:
    num_slices = 2**power
    rows = plan.rows(step)
    want = [rows[start:stop].tolist() for start, stop in cut(len(rows), num_slices)]
    assert list(itertools.chain.from_iterable(want)) == rows.tolist()
    for processes in (2**k for k in range(min(power, 3) + 1)):
        assert slice_rows(len(rows), num_slices, processes) == max(map(len, want))
        each = num_slices // processes
        bounds = [cut(len(rows), num_slices)[rank * each : (rank + 1) * each] for rank in range(processes)]
        assert [rows[start:stop].tolist() for part in bounds for start, stop in part] == want


# --- going on ---------------------------------------------------------------------------------------------------------


@LIGHT
@given(plan=plans, stop=st.integers(0, 600), num_steps=st.integers(1, 20), order=st.randoms(use_true_random=False))
def test_a_plan_that_goes_on_at_any_step_gives_the_rest_of_the_order(
    plan: BatchPlan, stop: int, num_steps: int, order: random.Random
) -> None:
    steps = list(range(stop, stop + num_steps))
    want = {step: plan.rows(step).tolist() for step in range(max(stop - 5, 0), stop + num_steps)}
    clear_orders()
    again = dataclasses.replace(plan)
    assert [again.rows(step).tolist() for step in steps] == [want[step] for step in steps]
    order.shuffle(steps)  # whatever was asked before
    assert all(plan.rows(step).tolist() == want[step] for step in steps)


def test_a_fresh_process_gives_the_rest_of_the_order() -> None:
    cases = [(1, 1, 0, 0), (300, 7, 2**32 - 1, 43), (257, 64, 5, 6), (100, 300, 1, 9), (1000, 256, 123, 1023)]
    code = (
        "import json, sys; from nn_train.batch_plan import BatchPlan;"
        "plans = [(BatchPlan(num_rows=n, global_batch_size=b, seed=s), at) for n, b, s, at in json.loads(sys.argv[1])];"
        "print(json.dumps([[plan.rows(at + k).tolist() for k in range(5)] for plan, at in plans]))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(cases)], capture_output=True, text=True, check=True)
    for (num_rows, batch, seed, at), rows in zip(cases, json.loads(done.stdout), strict=True):
        plan = BatchPlan(num_rows=num_rows, global_batch_size=batch, seed=seed)
        assert [plan.rows(step).tolist() for step in range(at + 5)][at:] == rows


# --- learning rate ----------------------------------------------------------------------------------------------------

rates = st.builds(
    OptimConfig,
    peak_lr=st.floats(1e-300, 10),
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup_steps=st.one_of(st.integers(0, 50), st.integers(0, 10**9)),
)


@LIGHT
@given(config=rates, total=st.integers(1, 10**9), place=st.floats(0, 1), near=st.integers(-3, 3))
def test_the_learning_rate_is_finite_and_within_its_bounds(
    config: OptimConfig, total: int, place: float, near: int
) -> None:
    for step in {max(base + near, 0) for base in (0, config.warmup_steps, int(place * total), total)}:
        value = lr_at_step(step, config, total_steps=total)
        assert math.isfinite(value) and 0 <= value <= config.peak_lr * (1 + 2**-52)
        assert value == lr_at_step(step, config.model_copy(), total_steps=total)
        if step < total and not (config.schedule != "constant" and total - step < 1e-6 * total):
            assert value > 0


@LIGHT
@given(config=rates, total=st.integers(1, 400), warmup=st.integers(0, 50))
def test_the_learning_rate_rises_to_its_peak_and_then_stays_or_falls_to_zero(
    config: OptimConfig, total: int, warmup: int
) -> None:
    config = config.model_copy(update={"warmup_steps": warmup})
    values = [lr_at_step(step, config, total_steps=total) for step in range(max(total, warmup) + 1)]
    rise, rest = values[: max(warmup, 1)], values[warmup:]
    assert rise == sorted(rise) and rise == pytest.approx(
        [config.peak_lr * (step + 1) / max(warmup, 1) for step in range(len(rise))], rel=1e-15
    )
    if config.schedule == "constant":
        assert set(rest) == {config.peak_lr}
    else:
        assert rest == sorted(rest, reverse=True) and rest[0] == config.peak_lr
        if total > warmup:
            assert values[total] <= 1e-15 * config.peak_lr
            assert lr_at_step(10 * total, config, total_steps=total) == values[total]  # and does not rise again


@LIGHT
@given(optim=rates, case=shared_plans(), epochs=st.integers(1, 4), max_steps=st.one_of(st.none(), st.integers(1, 99)))
def test_the_learning_rate_of_a_row_does_not_depend_on_the_number_of_processes(
    optim: OptimConfig, case: tuple[BatchPlan, list[Share]], epochs: int, max_steps: int | None
) -> None:
    plan, shares = case
    schedules = set()
    for share in shares:
        train = TrainConfig(
            global_batch_size=plan.global_batch_size,
            micro_batch_size=share.micro_batch_size,
            max_epochs=epochs,
            max_steps=max_steps,
        )
        config = Config(data=DataConfig(path="t.csv", target="y"), optim=optim, train=train)
        total = count_steps(config, plan)
        assert total == min(epochs * plan.steps_per_epoch, max_steps or epochs * plan.steps_per_epoch)
        schedules.add(tuple(lr_at_step(step, optim, total_steps=total) for step in range(total)))
    assert len(schedules) == 1


# --- evaluation -------------------------------------------------------------------------------------------------------


@LIGHT
@given(num_rows=st.integers(0, 3000), block=st.integers(1, 400), processes=st.integers(1, 8))
def test_an_evaluation_sees_every_row_once_in_the_same_blocks(num_rows: int, block: int, processes: int) -> None:
    shares = deal_blocks(num_rows, block, processes)
    assert len(shares) == processes
    blocks = list(itertools.chain.from_iterable(shares))
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(num_rows))
    assert all(0 < stop - start <= block for start, stop in blocks)
    assert blocks == deal_blocks(num_rows, block, 1)[0]  # a block is the same wherever it is computed
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
