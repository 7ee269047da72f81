"""The gradient of one global batch, in two ways: `fast` (DDP's all-reduce) and `exact` (a fixed tree).

Both weigh every row by 1 / (rows of the global batch) or, where rows have weights, by its share of the
weights of the global batch: every process holds all rows and knows the batch, so that nothing is
exchanged for it. A step's gradient does not depend on the number of processes, on micro-batches, or on
a short last batch. Exact mode also fixes the
order of every addition: a global batch is cut into canonical slices, each has its own forward,
backward and dropout seed, and their gradients are summed in one binary tree whose lower levels lie
inside a process and whose upper levels are pairwise exchanges.
"""

import copy
import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from nn_train.batch_plan import BatchPlan, Share, cut, derive_seed
from nn_train.batches import Batches, deal_batches
from nn_train.objective import Objective
from nn_train.packed import Batch, PackedRows
from nn_train.pulse import pulse
from nn_train.runtime import Runtime
from nn_train.step_profile import Laps


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLoss:
    """The loss of rows.

    `sum` is that of the rows' losses, of one row at least; `weight` is what the sum over the global batch of a step is
    divided by.
    """

    sum: Callable[[Batch], Tensor]
    weight: Callable[[int], float]


class Gradients(Protocol):
    """Fills the parameters' gradients for the global batch of a step."""

    def compute(self, step: int, *, is_broken: bool = False) -> Tensor:
        """Leave the mean gradient in `.grad`; return this process's part of the loss, or all of it.

        `is_broken` makes this process's part not a number, for those who want to see what follows.
        """
        ...

    def global_loss(self, loss: Tensor) -> Tensor:
        """The mean loss of the global batch from what `compute` returned; a collective."""
        ...

    def watched(self, laps: Laps) -> Self:
        """The same gradients with their parts timed."""
        ...


def build_gradients(
    runtime: Runtime,
    model: nn.Module,
    *,
    rows: PackedRows,
    plan: BatchPlan,
    objective: Objective,
    share: Share,
    canonical_slices: int | None,
    is_compressed: bool = False,
) -> Gradients:
    """Exact gradients where `canonical_slices` is given, else fast ones, which may be compressed on their way."""

    def sum_loss(batch: Batch) -> Tensor:
        logits = model(batch.x_num, batch.x_cat)
        if batch.weight is None:
            return objective.loss_sum(logits, batch.y)
        return objective.weighted_sum(logits, batch.y, batch.weight)

    loss = BatchLoss(sum=sum_loss, weight=batch_weight(rows, plan))
    batches = deal_batches(rows, plan, rank=runtime.rank, num_processes=runtime.num_processes)
    if canonical_slices is None:
        # torchrun wraps the network of a single process too, which has nothing to send
        if is_compressed and runtime.num_processes > 1 and isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, reduce_in_bf16)
        any_row = rows.take(torch.zeros(1, dtype=torch.int64))
        return FastGradients(runtime, model, loss=loss, plan=plan, batches=batches, share=share, any_row=any_row)
    return ExactGradients(runtime, model, loss=loss, plan=plan, batches=batches, num_slices=canonical_slices)


def batch_weight(rows: PackedRows, plan: BatchPlan) -> Callable[[int], float]:
    """How much a global batch weighs: its rows, or the sum of their weights; 1 where that is zero, as the loss is then.

    Summed on the host in double precision, so that no step waits for the device and all processes have the same bits.
    """
    if rows.weight is None:
        return plan.size
    weight = rows.weight.cpu().numpy()
    return lambda step: float(weight[plan.rows(step)].astype(np.float64).sum()) or 1.0


def reduce_in_bf16(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[reportPrivateImportUsage]
    """Torch's own hook under another name: DDP refuses that name where there is no NCCL, and gloo sums bfloat16 too."""
    return bf16_compress_hook(group, bucket)  # type: ignore[arg-type]


class FastGradients:
    """Micro-batches accumulated locally, one all-reduce by DDP in the last backward.

    `any_row` is what a process without rows puts into its forward, where it weighs nothing.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        *,
        loss: BatchLoss,
        plan: BatchPlan,
        batches: Batches,
        share: Share,
        any_row: Batch,
    ):
        self.runtime = runtime
        self.model = model
        self.loss = loss
        self.plan = plan
        self.take = batches.mine
        self.backward = runtime.accelerator.backward
        self.any_row = any_row
        self.num_micro_steps = share.num_micro_steps
        if isinstance(model, DistributedDataParallel):
            self._settle_buckets()

    def _settle_buckets(self) -> None:
        """Two backwards that weigh nothing, so that DDP lays its buckets out before the first step.

        DDP sees in the first backward which weights are used, in the second in which order their gradients come, and
        orders its buckets by that in the forward that follows. With more than two processes the order of the additions
        follows from an element's place in its bucket: without this the first step of a run that goes on would sum in
        another order than the same step of a run that was not interrupted. Under a static graph the first backward
        must not be within no_sync either, as a step's may be.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        for _ in range(2):
            self.runtime.accelerator.backward(0.0 * self.loss.sum(self.any_row))
            self.model.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)

    def compute(self, step: int, *, is_broken: bool = False) -> Tensor:
        """Every process takes as many micro-steps as any other, the empty ones included."""
        runtime = self.runtime
        weight = self.loss.weight(step)
        mine = self.take(step)
        is_alone = runtime.num_processes == 1
        losses = []
        for index, (low, high) in enumerate(cut(len(mine), self.num_micro_steps)):
            runtime.seed_step(derive_seed(self.plan.seed, step, runtime.rank, index))
            is_last = index == self.num_micro_steps - 1
            # DDP decides in the forward whether the backward will reduce: both belong inside no_sync
            with nullcontext() if is_last else runtime.accelerator.no_sync(self.model):
                # a process without rows still takes part in the all-reduce: one row that weighs nothing
                loss = self.loss.sum(mine.part(low, high)) if high > low else 0.0 * self.loss.sum(self.any_row)
                loss = loss / weight if not is_broken else loss * torch.nan
                with pulse if is_last else nullcontext():
                    self.backward(loss if is_alone else loss * runtime.num_processes)  # DDP takes the processes' mean
            losses.append(loss.detach())
        return sum(losses[1:], start=losses[0])

    def global_loss(self, loss: Tensor) -> Tensor:
        """Sum the processes' parts."""
        return self.runtime.sum(loss)

    def watched(self, laps: Laps) -> Self:
        """These with their parts timed."""
        found = copy.copy(self)
        found.take = laps.timed("data", self.take)
        found.loss = dataclasses.replace(self.loss, sum=laps.timed("forward", self.loss.sum))
        reduces = self.runtime.num_processes > 1
        parameters = list(self.model.parameters())
        found.backward = laps.reducing(self.backward, parameters) if reduces else laps.timed("backward", self.backward)
        return found


class ExactGradients:
    """Slices summed in a fixed binary tree: the same bits on 1, 2, 4, ... processes.

    The last element of a flat buffer carries the loss, so that it is summed in the same order.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: nn.Module,
        *,
        loss: BatchLoss,
        plan: BatchPlan,
        batches: Batches,
        num_slices: int,
    ):
        self.runtime = runtime
        self.model = model
        self.loss = loss
        self.plan = plan
        self.take = batches.mine
        self.backward = runtime.accelerator.backward
        self.exchange = self._exchange
        self.num_slices = num_slices
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.size = sum(p.numel() for p in self.parameters) + 1
        self.dtype = self.parameters[0].dtype
        self.free: list[Tensor] = []

    def compute(self, step: int, *, is_broken: bool = False) -> Tensor:
        """Sum this process's slices as they come, then exchange with the other processes."""
        weight = self.loss.weight(step)
        per_process = self.num_slices // self.runtime.num_processes
        first = self.runtime.rank * per_process
        mine = self.take(step)
        bounds = cut(self.plan.size(step), self.num_slices)
        before = bounds[first][0]  # the rows of the processes in front of this one
        partial: list[tuple[int, Tensor]] = []  # (slices summed, their sum), as in a binary counter
        for index in range(first, first + per_process):
            start, stop = bounds[index]
            buffer = self._slice_gradient(step, index, mine.part(start - before, stop - before), weight=weight)
            count = 1
            while partial and partial[-1][0] == count:
                _, left = partial.pop()
                self.free.append(buffer)
                buffer, count = left.add_(buffer), count * 2
            partial.append((count, buffer))
        if is_broken:
            partial[0][1].fill_(torch.nan)
        total = self.exchange(partial[0][1])
        self._point_gradients_at(total)
        self.free.append(total)
        return total[-1].clone()

    def _slice_gradient(self, step: int, index: int, batch: Batch, *, weight: float) -> Tensor:
        buffer = self._buffer()
        buffer.zero_()
        if len(batch):
            self._point_gradients_at(buffer)
            self.runtime.seed_step(derive_seed(self.plan.seed, step, index))
            with self.runtime.accelerator.no_sync(self.model):
                loss = self.loss.sum(batch) / weight
                self.backward(loss)
            buffer[-1] = loss.detach()
        return buffer

    def _buffer(self) -> Tensor:
        return self.free.pop() if self.free else torch.empty(self.size, dtype=self.dtype, device=self.runtime.device)

    def _point_gradients_at(self, buffer: Tensor) -> None:
        start = 0
        for parameter in self.parameters:
            parameter.grad = buffer[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def _exchange(self, buffer: Tensor) -> Tensor:
        """Recursive doubling: at each level partners swap their sums and both add the two.

        a + b is b + a to the bit, so all processes hold the same sum after log2(processes) levels.
        """
        distance = 1
        while distance < self.runtime.num_processes:
            partner = self.runtime.rank ^ distance
            received = self._buffer()
            swap = [dist.P2POp(dist.isend, buffer, partner), dist.P2POp(dist.irecv, received, partner)]
            with pulse:
                for request in dist.batch_isend_irecv(swap):
                    request.wait()
            buffer.add_(received)
            self.free.append(received)
            distance *= 2
        return buffer

    def global_loss(self, loss: Tensor) -> Tensor:
        """It is global already."""
        return loss

    def watched(self, laps: Laps) -> Self:
        """These with their parts timed; the buffers stay shared."""
        found = copy.copy(self)
        found.take = laps.timed("data", self.take)
        found.loss = dataclasses.replace(self.loss, sum=laps.timed("forward", self.loss.sum))
        found.backward = laps.timed("backward", self.backward)
        found.exchange = laps.timed("communication", self.exchange)
        return found
