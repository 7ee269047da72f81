"""The order of the rows: each once an epoch, the same global batches for any number of processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nn_train.batch_plan import BatchPlan, check_slices, cut, derive_seed, share_batch
from nn_train.errors import ConfigError

counts = st.integers(1, 300)
GOLDEN_ROWS = [[4, 6, 7, 2], [9, 1, 5, 3], [8, 0]]
GOLDEN_SEED = 4529435921577843265


@given(num_rows=counts, batch=counts, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_row_exactly_once(num_rows: int, batch: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(num_rows=num_rows, global_batch_size=batch, seed=seed)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    rows = np.concatenate([plan.rows(step) for step in steps])
    assert sorted(rows) == list(range(num_rows))


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
        check_slices(8, processes)
    check_slices(8, 4)
