"""How near is the training loop to what the network costs by itself? Ratios, all taken in one run.

    python tests/benchmarks/loop_speed.py [--steps 300] [--memory GIB] [section.key=value ...]

From the disk, with a table larger than the memory that all of this gets (root, and a cgroup of its own):

    python tests/benchmarks/loop_speed.py --memory 1 data.path=FOLDER data.target=late data.placement=disk \
        train.shuffle=blocks train.global_batch_size=1024 model.name=mlp

Loops over the packed rows, of telco where no table is named, on one thread, taken in turns; the median of the turns
counts:
  limit         the same network, optimizer and clipping on one fixed resident batch: nothing but compute
  loop          the project's own Trainer: data order, gather, seeds, guard, logging
  loop_exact    the same with train.gradient_reduction=exact
  loop_compiled the same with train.compile=true, once it is compiled; with --compile, needs a C++ compiler
  per_row       DataLoader(TensorDataset, shuffle=True), which collates row by row, and the same step
  data          the project's own batches alone, without a network
  data_per_row  the per-row loader's batches alone
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.gradients import build_gradients
from nn_train.loop import Hooks, Trainer, TrainState
from nn_train.optim import build_optimizer
from nn_train.training import Training, build_network

TURNS = 7


def limit_memory(gib: float) -> Path:
    """Put this process into a cgroup of its own, of version 1 or 2, with so much memory, cached files included."""
    root = Path("/sys/fs/cgroup/memory")
    is_first = root.is_dir()
    group = (root if is_first else root.parent) / f"loop_speed_{os.getpid()}"
    group.mkdir()
    limit = group / ("memory.limit_in_bytes" if is_first else "memory.max")
    limit.write_text(str(int(gib * 2**30)))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return group


def build_engine(folder: str, arguments: argparse.Namespace) -> Engine:
    """An engine whose data are prepared, with the benchmark's batch."""
    words = [f"run.dir={folder}/run", f"train.max_steps={arguments.steps}", "train.max_epochs=100000"]
    engine = Engine(load_config(None, [*words, "tracking.mode=disabled", *arguments.words]))
    engine.prepare()
    return engine


def own_loop(engine: Engine, *, exact: bool, compiled: bool = False) -> Callable[[], None]:
    """The Trainer, without evaluations and checkpoints: both happen between steps and cost what they cost."""
    training: Training = engine.training
    forward = torch.compile(training.network) if compiled else training.network
    model, optimizer = engine.runtime.accelerator.prepare(
        forward, build_optimizer(training.network, engine.config.optim)
    )
    gradients = build_gradients(
        engine.runtime,
        model,
        rows=training.rows,
        plan=training.plan,
        objective=training.objective,
        share=training.share,
        canonical_slices=engine.config.train.canonical_slices if exact else None,
    )
    hooks = Hooks(
        updated=lambda step: None,
        evaluate=lambda state: 0.0,
        keep_best=lambda: None,
        log=lambda record: None,
        save=lambda state: None,
        settle=lambda: None,
        must_end=lambda: False,
        restore=lambda state: None,
        stop_requested=lambda: False,
        tell=lambda event, **values: None,
    )
    config = engine.config.model_copy(update={"train": engine.config.train.model_copy(update={"eval_every": 10**9})})

    def run() -> None:
        Trainer(
            engine.runtime,
            model,
            optimizer,
            gradients=gradients,
            plan=training.plan,
            config=config,
            metric=training.metric,
            hooks=hooks,
        ).run(TrainState())

    return run


Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


def plain_step(engine: Engine) -> Step:
    """The same step written out."""
    training, config = engine.training, engine.config
    network = build_network(config, engine.data)
    optimizer = build_optimizer(network, config.optim)
    parameters = list(network.parameters())

    def step(x_num: torch.Tensor, x_cat: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = training.objective.loss_sum(network(x_num, x_cat), y) / len(y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def fixed_batch(engine: Engine, steps: int, step: Step) -> Callable[[], None]:
    """One resident batch again and again."""
    training = engine.training
    batch = training.rows.take(torch.arange(engine.training.plan.global_batch_size) % len(training.rows))

    def run() -> None:
        for _ in range(steps):
            step(batch.x_num, batch.x_cat, batch.y)

    return run


def per_row_loader(engine: Engine, steps: int, step: Step | None) -> Callable[[], None]:
    """Batches of a per-row loader, with a step or alone."""
    rows, size = engine.training.rows, engine.training.plan.global_batch_size

    def run() -> None:
        loader = DataLoader(TensorDataset(rows.x_num, rows.x_cat, rows.y), batch_size=size, shuffle=True)
        done = 0
        while True:
            for batch in loader:
                if step is not None:
                    step(*batch)
                done += 1
                if done == steps:
                    return

    return run


def own_batches(engine: Engine, steps: int) -> Callable[[], None]:
    """The project's own batches alone."""
    training = engine.training

    def run() -> None:
        for step in range(steps):
            training.rows.take(torch.from_numpy(training.plan.rows(step)))

    return run


def main() -> None:
    """Print rows per second of each loop and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--only", default="", help="names of loops, with commas between them")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", type=float, metavar="GIB")
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    logging.getLogger("nn_train").addHandler(logging.NullHandler())
    torch.set_flush_denormal(True)  # a batch that is learned by heart ends in such numbers, which take a CPU far longer
    with tempfile.TemporaryDirectory() as folder:
        if arguments.memory is not None:
            build_engine(folder, arguments).close()  # packed before, with all the memory there is
            limit_memory(arguments.memory)
        engine = build_engine(folder, arguments)
        step = plain_step(engine)
        loops = {
            "limit": fixed_batch(engine, arguments.steps, step),
            "loop": own_loop(engine, exact=False),
            "loop_exact": own_loop(engine, exact=True),
            "per_row": per_row_loader(engine, arguments.steps, step),
            "data": own_batches(engine, arguments.steps),
            "data_per_row": per_row_loader(engine, arguments.steps, None),
        }
        if arguments.compile:
            loops["loop_compiled"] = own_loop(engine, exact=False, compiled=True)
        # a loader row by row holds the whole table, which is more than there is memory
        only = arguments.only or (",".join(loops) if arguments.memory is None else "limit,loop,data")
        loops = {name: run for name, run in loops.items() if name in only.split(",")}
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(arguments.turns + 1):
            for name, run in loops.items():
                started = time.perf_counter()
                run()
                if turn:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - started)
        engine.close()
    plan, size = engine.training.plan, engine.training.plan.global_batch_size
    # the last batch of an epoch is short; the fixed batch never is
    rows = {name: arguments.steps * plan.num_rows / plan.steps_per_epoch for name in loops}
    rows["limit"] = float(arguments.steps * size)
    speed = {name: rows[name] / statistics.median(times) for name, times in seconds.items()}
    print(f"batch {size}, {torch.get_num_threads()} thread, {arguments.steps} steps, median of {arguments.turns} turns")
    print(f"packed train rows: {engine.data.packed_bytes('train') / 2**20:,.0f} MiB")
    for name, value in speed.items():
        print(
            f"  {name:12s} {value:14,.0f} rows/s   slowest / fastest turn {max(seconds[name]) / min(seconds[name]):.2f}"
        )
    for one, other in (
        ("loop", "limit"),
        ("loop", "per_row"),
        ("data", "data_per_row"),
        ("loop_exact", "loop"),
        ("loop_compiled", "loop"),
    ):
        if one in speed and other in speed:
            print(f"{f'{one} / {other}':21s} {speed[one] / speed[other]:.3f}")


if __name__ == "__main__":
    main()
