"""A table of any size in a folder of shards: what is there is kept, the rest is made by several processes.

`_best.json` beside the shards holds the best scores that any model can reach on all rows of the table.
"""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from nn_train.crew import owned_folder
from nn_train.ending import say
from nn_train.errors import DataError, RunFolderError
from nn_train.known_target import KnownTarget, Tally
from nn_train.run_folder import read_json, write_json
from nn_train.source_table import Source, read_source
from nn_train.table_files import fingerprint
from nn_train.table_shards import (
    PROBABILITY,
    RECIPE_KEY,
    TARGET,
    Ended,
    Job,
    Maker,
    Recipe,
    draw_rows,
    open_shard,
)

BEST_FILE = "_best.json"  # the underscore keeps it from being read as a table
SOURCE_FILE = ".source.arrow"  # the processes read it, and it goes with them
SHARD_NAME = re.compile(r"part-(\d{5})\.parquet")
SAMPLE_ROWS = 100_000  # of the source, by which slope and offset of the target are chosen
SPARE = 1.02  # of the disk, for what an estimate misses
LOOK_EVERY_S = 0.2
LINE_EVERY_S = 10.0


def make_table(
    *,
    rows: int,
    folder: Path,
    source: str | None,
    shard_rows: int,
    seed: int,
    noise: float,
    probability: bool,
    workers: int,
) -> dict[str, Any]:
    """Make the table, or go on with it; what `_best.json` then holds.

    Raises:
        DataError: the source cannot be read or copied.
        RunFolderError: the folder holds something else, or the disk has no room.
    """
    with owned_folder(folder, "table", other="--out OTHER"):
        numbers = _look_around(folder)
        found = read_source(source)
        _refuse_taken_names(found, probability)
        source_file = folder / SOURCE_FILE
        try:
            _write_source(found, source_file)
            recipe = Recipe(
                seed=seed,
                source=found.name,
                digest=fingerprint([source_file]),
                noise=noise,
                shard_rows=shard_rows,
                with_probability=probability,
            )
            target = _fit_target(found, seed)
            maker = Maker(folder=folder, source_file=source_file, recipe=recipe, facts=found.facts, target=target)
            del found
            return _complete(maker, _plan(maker, rows, numbers), rows, workers)
        finally:
            source_file.unlink(missing_ok=True)


def _look_around(folder: Path) -> list[int]:
    """The numbers of the shards that are there; what a killed process left half-written is removed."""
    for path in folder.glob(".part-*.tmp"):
        path.unlink(missing_ok=True)
    names = [path.name for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    shards = [match for match in map(SHARD_NAME.fullmatch, names) if match]
    if foreign := sorted(set(names) - {match.string for match in shards} - {BEST_FILE}):
        raise RunFolderError(f"the folder holds other files: {foreign[0]}", where=str(folder), fix="--out NEW")
    return [int(match.group(1)) for match in shards]


def _refuse_taken_names(source: Source, probability: bool) -> None:
    for name in (TARGET, PROBABILITY) if probability else (TARGET,):
        if name in source.table.column_names:
            what = f"the source has a column '{name}', which is what the made one is called"
            raise DataError(what, where=source.name, fix="rename or remove it in the source")


def _write_source(source: Source, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, source.table.schema.remove_metadata()) as writer:
        writer.write_table(source.table)


def _fit_target(source: Source, seed: int) -> KnownTarget:
    rng = np.random.default_rng(seed)
    rows = np.arange(source.table.num_rows)
    if len(rows) > SAMPLE_ROWS:
        rows = np.sort(rng.choice(rows, SAMPLE_ROWS, replace=False))
    return KnownTarget(source.facts, seed=seed).fit(draw_rows(source.table, source.facts, rows, noise=0.0, rng=rng))


def _plan(maker: Maker, rows: int, numbers: list[int]) -> list[Job]:
    """Every shard of the table. Raises RunFolderError where the folder holds shards of another one."""
    shard_rows, folder = maker.recipe.shard_rows, maker.folder
    best = folder / BEST_FILE
    if best.exists():
        _refuse_other_recipe(maker, json.dumps(read_json(best).get("recipe"), sort_keys=True), best)
    there = {number: _count_rows(maker, number) for number in numbers}
    jobs = []
    for number in range(math.ceil(rows / shard_rows)):
        num_rows = min(shard_rows, rows - number * shard_rows)
        jobs.append(Job(number=number, num_rows=num_rows, is_there=there.get(number) == num_rows))
    if len(jobs) < len(there) or any(there.get(job.number, 0) > job.num_rows for job in jobs):
        what = f"the folder holds more than {rows:,} rows of this table"
        raise RunFolderError(what, where=str(folder), fix="--rows as many or more, or --out NEW")
    return jobs


def _count_rows(maker: Maker, number: int) -> int:
    path = maker.folder / Job(number=number, num_rows=0, is_there=True).name
    with open_shard(path) as parquet:
        recipe = (parquet.schema_arrow.metadata or {}).get(RECIPE_KEY, b"").decode(errors="replace")
        _refuse_other_recipe(maker, recipe, path)
        return parquet.metadata.num_rows


def _refuse_other_recipe(maker: Maker, recipe: str, path: Path) -> None:
    if recipe == maker.recipe.as_text():
        return
    wanted = json.loads(maker.recipe.as_text())
    try:
        held = dict(json.loads(recipe))
    except (ValueError, TypeError):
        held = {}
    changed = [f"{key} {held.get(key)} -> {wanted[key]}" for key in wanted if held.get(key) != wanted[key]]
    raise RunFolderError(
        f"the folder holds a table of another recipe: {', '.join(changed) if held else 'none that is known'}",
        where=str(path),
        fix="--out NEW, or the options of that table",
    )


def _complete(maker: Maker, jobs: list[Job], rows: int, workers: int) -> dict[str, Any]:
    best = maker.folder / BEST_FILE
    if best.exists():
        known = read_json(best)
        if known.get("rows") == rows and all(job.is_there for job in jobs):
            return known
        best.unlink()  # it speaks of other rows than those that are there from now on
    _refuse_small_disk(maker, jobs)
    tally = Tally()
    with _progress(rows) as show:
        for part in _run_jobs(maker, jobs, min(workers, len(jobs)), show):
            tally.merge(part)
    recipe = json.loads(maker.recipe.as_text())
    values = {
        "rows": rows,
        "columns": [known.name for known in maker.facts],
        "target": TARGET,
        "seed": maker.recipe.seed,
        "source": maker.recipe.source,
        **tally.scores(),
        "recipe": recipe,
    }
    write_json(best, values)
    return values


def _refuse_small_disk(maker: Maker, jobs: list[Job]) -> None:
    """Estimate the bytes of all that is to be written from its first row group."""
    missing = [job for job in jobs if not job.is_there]
    if not missing:
        return
    group = maker.make_group(missing[0], 0)[0]
    sink = pa.BufferOutputStream()
    with maker.open_writer(sink) as writer:
        writer.write_table(group)
    needed = int(SPARE * sink.tell() / group.num_rows * sum(job.num_rows for job in missing))
    free = shutil.disk_usage(maker.folder).free
    if needed > free:
        raise RunFolderError(
            f"the shards need about {needed:,} bytes, and {free:,} are free",
            where=str(maker.folder),
            fix="free space, fewer --rows, or --out on another disk",
        )


def _run_jobs(maker: Maker, jobs: list[Job], workers: int, show: Callable[[int], None]) -> Iterator[Tally]:
    """What was counted in each shard, in their order, so that sums do not depend on the processes."""
    if workers == 1:
        done = _Count(show)
        for job in jobs:
            yield maker.run(job, done.add)
        return
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(maker, counter, stop))
    try:
        # workers start with the first job, and take over what is blocked: Ctrl-C must not end one that still imports
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            waiting: deque[Future[Tally]] = deque(pool.submit(_work, job) for job in jobs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while waiting:
            wait([waiting[0]], timeout=LOOK_EVERY_S)
            show(counter.value)
            if waiting[0].done():
                yield waiting.popleft().result()
    except BrokenProcessPool:
        fix = "fewer --workers; the same command goes on from here"
        raise RunFolderError("a process was ended from outside, perhaps for want of memory", fix=fix) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Count:
    """Rows that are done, in one process."""

    def __init__(self, show: Callable[[int], None]):
        self.value, self.show = 0, show

    def add(self, num_rows: int) -> None:
        self.value += num_rows
        self.show(self.value)


_own: dict[str, Any] = {}  # of a worker: what its jobs share


def _begin_worker(maker: Maker, counter: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is asked, and sets `stop`
    pa.set_cpu_count(1)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _own.update(maker=maker, counter=counter, stop=stop)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed: nobody waits for what this worker makes


def _work(job: Job) -> Tally:
    def note(num_rows: int) -> None:
        with _own["counter"].get_lock():
            _own["counter"].value += num_rows
        if _own["stop"].is_set():
            raise Ended

    return _own["maker"].run(job, note)


@contextmanager
def _progress(rows: int) -> Iterator[Callable[[int], None]]:
    """Show how many rows are done: a bar on a terminal, a line now and then elsewhere."""
    began_s = said_s = time.monotonic()
    if sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal:
        columns = (TextColumn("{task.completed:,.0f} of {task.total:,} rows"), BarColumn(None), TimeRemainingColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("rows", total=rows)
            yield lambda done: bar.update(task, completed=done)
        return

    def show(done: int) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if now_s - said_s >= LINE_EVERY_S:
            said_s = now_s
            say(f"{done:,} of {rows:,} rows, {done / (now_s - began_s):,.0f} rows/s")

    yield show
