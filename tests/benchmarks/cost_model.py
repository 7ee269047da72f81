"""What would a run take on 8, 64 and 512 GPUs? Costs measured here, what is assumed of the GPUs, and the sum of both.

    python tests/benchmarks/cost_model.py [--rows 1e9] [--epochs 3] data.path=FOLDER data.target=late [...]

Measured, on one thread, on the packed rows of the table (one of make_table.py, say) and the network of the settings:
  step       seconds of a step whatever its rows, and of each row of it: a line through steps of 1 to 4,096 rows
  jitter     how much longer than the median the slowest of 8, 64 and 512 steps is: what others would wait for
  gather     seconds that a row takes from its place in an order of blocks, and from the mapped files, to a batch
  forward    seconds that a row takes in an evaluation
  prepare    seconds that a row takes from Parquet to packed rows, of one core
  start      seconds that 1, 2 and 4 processes on these cores take for one step on telco, from start to end
A step's cost whatever its rows is the time in which Python and torch ask for some hundred kernels; a GPU's host asks
for the same ones. The arithmetic of a row is counted (torch's own counter), for the GPU's share of it.

Not measured, for want of GPUs, is what Gpu below says, with its sources.
"""

import argparse
import dataclasses
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from two_processes import start

from nn_train.batch_plan import BatchPlan, plan_batches
from nn_train.batches import Gathered
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.gradients import build_gradients
from nn_train.optim import build_optimizer
from nn_train.packed import PackedRows
from nn_train.preparation import prepare_data
from nn_train.stepping import Stepper
from nn_train.training import Training

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 64, 256, 1024, 4096)
WORLDS = (8, 64, 512)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One H100 SXM of nodes of eight, by NVIDIA's data sheet of the H100 and of ConnectX-7, and what is assumed."""

    flops: float = 989e12  # of bf16, dense, by the data sheet
    used: float = 0.2  # assumed: layers of some hundred columns fill a GPU badly
    nvlink: float = 450e9  # bytes/s each way, by the data sheet
    network: float = 50e9  # bytes/s for each GPU: 400 Gbit/s
    meet_s: float = 20e-6  # assumed, of an all-reduce whatever its bytes, within a node
    hop_s: float = 10e-6  # assumed, for each doubling of the nodes
    cores: int = 12  # assumed: CPU cores for each GPU, as fast as those measured

    def all_reduce_s(self, num_bytes: float, world: int) -> float:
        """A ring: all but one part of the bytes goes out twice, by the slowest of the links."""
        nodes = math.ceil(world / 8)
        link = self.nvlink if nodes == 1 else min(self.nvlink, self.network)
        return self.meet_s + self.hop_s * math.log2(nodes) + 2 * (world - 1) / world * num_bytes / link


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What was measured; seconds, but for counts."""

    step: float
    row: float
    jitter: dict[int, float]
    gather: float
    forward: float
    prepare: float
    start: dict[int, float]
    flops_per_row: float
    num_weights: int


def time_each(make: Callable[[int], object], repeats: int) -> list[float]:
    """The seconds of each of so many calls."""
    found = []
    for place in range(repeats):
        started_s = time.perf_counter()
        make(place)
        found.append(time.perf_counter() - started_s)
    return found


def measure_steps(engine: Engine, size: int, repeats: int) -> list[float]:
    """Seconds of each of so many steps of `size` rows, as the loop makes them."""
    training: Training = engine.training
    plan = BatchPlan(num_rows=len(training.rows), global_batch_size=size, seed=0)
    model, optimizer = engine.runtime.accelerator.prepare(
        training.network, build_optimizer(training.network, engine.config.optim)
    )
    model.train()
    gradients = build_gradients(
        engine.runtime,
        model,
        rows=training.rows,
        plan=plan,
        objective=training.objective,
        share=training.share,
        canonical_slices=None,
    )
    stepper = Stepper(
        engine.runtime,
        model,
        optimizer,
        gradients=gradients,
        config=engine.config,
        total_steps=repeats + 10,
        updated=lambda step: None,
    )
    time_each(lambda step: stepper(step, is_guarded=False), 10)
    return time_each(lambda step: stepper(step + 10, is_guarded=False), repeats)


def count_flops(engine: Engine, size: int = 1024) -> float:
    """Of a row, forward and backward."""
    training = engine.training
    batch = training.rows.take(torch.arange(size) % len(training.rows))
    with FlopCounterMode(display=False) as counter:
        training.objective.loss_sum(training.network(batch.x_num, batch.x_cat), batch.y).backward()
    return counter.get_total_flops() / size


def measure_gather(engine: Engine) -> float:
    """Seconds for a row of a batch from mapped files that are in memory, its place in an order of blocks included."""
    rows: PackedRows = engine.data.rows("train", placement="disk")
    plan = plan_batches(
        num_rows=len(rows),
        num_bytes=0,
        global_batch_size=4096,
        seed=0,
        shuffle="blocks",
        num_shards=64,
        window_rows=2**18,
    )
    batches = Gathered(rows, plan, rank=0, num_processes=1)
    steps = min(300, len(rows) // plan.global_batch_size)
    for step in range(steps):
        batches.mine(step)
    # some steps pay for a whole window: the mean counts
    return float(np.mean(time_each(batches.mine, steps))) / plan.global_batch_size


def measure_forward(engine: Engine, size: int = 8192) -> float:
    """Seconds for a row of an evaluation."""
    training = engine.training
    batch = training.rows.take(torch.arange(size) % len(training.rows))
    training.network.eval()
    with torch.no_grad():
        return float(np.median(time_each(lambda _: training.network(batch.x_num, batch.x_cat), 20))) / size


def measure_prepare(words: list[str], place: Path) -> float:
    """Seconds of a core for a row."""
    started_s = time.perf_counter()
    data = prepare_data(load_config(None, [*words, f"data.cache_dir={place}/again", "data.preparation=stream"]))
    return (time.perf_counter() - started_s) * (os.cpu_count() or 1) / sum(data.info["rows"].values())


def measure_start(place: Path, world: int) -> float:
    """Seconds until all of so many processes have made one step, and are at their end."""
    words = [f"data.path={ROOT}/data/telco.csv", "data.target=churn", f"data.cache_dir={place}/telco"]
    words += ["train.max_steps=1", "tracking.mode=disabled"]
    found = []
    for turn in range(4):
        started_s = time.perf_counter()
        process = start(world, place, [*words, f"run.dir={place}/start-{world}-{turn}"])
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors.decode())
        found.append(time.perf_counter() - started_s)
    return float(np.median(found[1:]))  # the first one may pack the table


def measure(words: list[str], place: Path) -> Costs:
    """All costs; the table is packed first."""
    prepare = measure_prepare(words, place)
    words = [*words, f"data.cache_dir={place}/again", "data.preparation=stream"]
    engine = Engine(load_config(None, [*words, f"run.dir={place}/run"]))
    engine.prepare()
    steps = {size: measure_steps(engine, size, 400 if size < 1000 else 100) for size in SIZES}
    medians = np.array([np.median(seconds) for seconds in steps.values()])
    weights = 1 / medians  # errors of a share of each
    row, step = np.polyfit(np.array(SIZES), medians, 1, w=weights)
    many = np.array(measure_steps(engine, 64, 8000))
    # the mean of the largest of W steps, over the median: what a world of W waits for
    jitter = {
        world: float(many[: len(many) // world * world].reshape(-1, world).max(axis=1).mean() - np.median(many))
        for world in WORLDS
    }
    found = Costs(
        step=float(step),
        row=float(row),
        jitter=jitter,
        gather=measure_gather(engine),
        forward=measure_forward(engine),
        prepare=prepare,
        start={world: measure_start(place, world) for world in (1, 2, 4)},
        flops_per_row=count_flops(engine),
        num_weights=engine.training.num_parameters,
    )
    engine.close()
    return found


def predict(costs: Costs, gpu: Gpu, *, world: int, batch: int, rows: float, epochs: int) -> dict[str, float]:
    """Seconds of the parts of a run; those of a step are of the whole training."""
    steps = epochs * rows / batch
    mine = batch / world
    # the host asks for kernels while the GPU computes: the longer of both; rows are read ahead beside it
    asked = costs.step
    computed = mine * costs.flops_per_row / (gpu.flops * gpu.used)
    read = mine * costs.gather
    longest = max(asked, computed, read)
    return {
        "prepare": costs.prepare * rows / (world * gpu.cores),
        "start": costs.start[2],  # as here, a core for each process
        "host": asked * steps if longest == asked else 0.0,
        "arithmetic": computed * steps if longest == computed else 0.0,
        "reading": read * steps if longest == read else 0.0,
        "all-reduce": gpu.all_reduce_s(4 * costs.num_weights, world) * steps,
        "waiting": costs.jitter[world] * steps,
    }


def main() -> None:
    """Print what was measured, and a line for each number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1e9, help="of the run that is computed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    logging.getLogger("nn_train").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    words = ["model.name=mlp", "tracking.mode=disabled", "checkpoint.every_time=no", *arguments.words]
    with tempfile.TemporaryDirectory() as name:
        costs = measure(words, Path(name))
    gpu = Gpu()
    print(f"step {1e3 * costs.step:.2f} ms + {1e6 * costs.row:.2f} us a row ({costs.num_weights:,} weights, ", end="")
    print(f"{costs.flops_per_row / 1e6:.2f} MFLOP a row: {costs.flops_per_row / costs.row / 1e9:.0f} GFLOP/s)")
    print("the slowest of " + ", ".join(f"{world}: +{1e3 * late:.2f} ms" for world, late in costs.jitter.items()))
    print(f"a row: gather {1e6 * costs.gather:.3f} us, forward {1e6 * costs.forward:.2f} us, ", end="")
    print(f"prepare {1e6 * costs.prepare:.2f} us of a core")
    print("start of " + ", ".join(f"{world}: {seconds:.1f} s" for world, seconds in costs.start.items()))
    print(f"\n{arguments.rows:,.0f} rows, {arguments.epochs} epochs; minutes")
    names: list[str] = []
    for batch in (8192, 65_536, 524_288):
        for world in WORLDS:
            found = predict(costs, gpu, world=world, batch=batch, rows=arguments.rows, epochs=arguments.epochs)
            if not names:
                names = list(found)
                print(f"{'batch':>9}{'GPUs':>6}{'all':>9}" + "".join(f"{part:>12}" for part in names) + "  first limit")
            values = "".join(f"{seconds / 60:>12.2f}" for seconds in found.values())
            first = max(found, key=lambda part: found[part])
            print(f"{batch:>9,}{world:>6}{sum(found.values()) / 60:>9.1f}{values}  {first}")


if __name__ == "__main__":
    main()
