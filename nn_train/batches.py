"""This process's rows of every step: gathered when they are asked for, or read ahead from the disk by a thread."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch

from nn_train.batch_plan import BatchPlan, BlockPlan, cut
from nn_train.packed import Batch, PackedRows, on_device


class Batches(Protocol):
    """What a process takes to the steps of a training."""

    def mine(self, step: int) -> Batch:
        """This process's rows of the global batch, on the device; perhaps none."""
        ...


def deal_batches(rows: PackedRows, plan: BatchPlan, *, rank: int, num_processes: int) -> Batches:
    """The batches of a process, read ahead where rows lie on the disk and the plan lets it keep to its own shards."""
    reads_ahead = rows.placement == "disk" and isinstance(plan, BlockPlan) and plan.num_shards % num_processes == 0
    kind = ReadAhead if reads_ahead else Gathered
    return kind(rows, plan, rank=rank, num_processes=num_processes)


class Gathered:
    """Rows gathered step by step."""

    def __init__(self, rows: PackedRows, plan: BatchPlan, *, rank: int, num_processes: int):
        self.rows = rows
        self.plan = plan
        self.rank = rank
        self.num_processes = num_processes

    def mine(self, step: int) -> Batch:
        """One contiguous part of the global batch for each process."""
        part = self.plan.part(step, rank=self.rank, num_processes=self.num_processes)
        return self.rows.take(torch.from_numpy(part))


class ReadAhead(Gathered):
    """Rows of a window of steps read together, in the order in which they lie, while the window before is used."""

    plan: BlockPlan

    def __init__(self, rows: PackedRows, plan: BatchPlan, *, rank: int, num_processes: int):
        super().__init__(rows, plan, rank=rank, num_processes=num_processes)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._coming: dict[tuple[int, int], Future[Batch]] = {}
        self._here: tuple[tuple[int, int], Batch] | None = None

    def mine(self, step: int) -> Batch:
        """A part of a window that is there or is waited for; the short last batch of an epoch is gathered."""
        plan = self.plan
        if not plan.is_dealt(step, self.num_processes):
            return super().mine(step)
        epoch, position = divmod(step, plan.steps_per_epoch)
        window, place = divmod(position, plan.steps_per_window)
        if self._here is None or self._here[0] != (epoch, window):
            self._here = None  # before the next one is there: no more than two windows are held
            self._here = (epoch, window), self._read(epoch, window)
        size = plan.global_batch_size // self.num_processes
        return on_device(self._here[1].part(place * size, (place + 1) * size), self.rows.device)

    def _read(self, epoch: int, window: int) -> Batch:
        """The window, and an order to read the one that follows."""
        coming = self._coming.pop((epoch, window), None)
        self._coming.clear()
        found = self._load(epoch, window) if coming is None else coming.result()
        is_last = (window + 1) * self.plan.steps_per_window >= self.plan.steps_per_epoch
        following = (epoch + 1, 0) if is_last else (epoch, window + 1)
        self._coming[following] = self._reader.submit(self._load, *following)
        return found

    def _load(self, epoch: int, window: int) -> Batch:
        """This process's rows of the whole batches of a window, one batch after the other."""
        plan = self.plan
        first, last = cut(plan.num_shards, self.num_processes)[self.rank]
        num_steps = plan.whole_steps(window)
        parts = plan.window(epoch, window, first, last)
        shards = np.stack([part[: num_steps * plan.rows_per_shard] for part in parts])
        order = shards.reshape(last - first, num_steps, plan.rows_per_shard).transpose(1, 0, 2).ravel()
        places = np.argsort(order)
        back = np.empty_like(places)
        back[places] = np.arange(len(places))
        found = self.rows.gather(torch.from_numpy(order[places]))
        by_step = torch.from_numpy(back)
        return found.each(lambda column: column.index_select(0, by_step))
