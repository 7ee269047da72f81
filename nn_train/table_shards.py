"""Shards of a big table: rows drawn from a source, with noise, and a target whose best score is known.

A shard is a pure function of the recipe (seed, source, noise, rows of a shard) and its number: which process writes it,
and when, does not matter. Rows are drawn group by group, and a shorter shard is the beginning of the longer one: a
folder can be grown by the same command with more rows.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nn_train.errors import RunFolderError
from nn_train.known_target import KnownTarget, Tally
from nn_train.source_table import Facts
from nn_train.table_files import reason
from nn_train.whole_file import open_whole

TARGET, POSITIVE, NEGATIVE = "late", "yes", "no"
PROBABILITY = "p"
GROUP_ROWS = 131_072  # of a row group: what a process holds at a time
RECIPE_KEY = b"nn_train.make_table"
T = TypeVar("T")


class Ended(Exception):
    """The command is to end before its table is whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A shard that is to be written, or that is there and only to be counted."""

    number: int
    num_rows: int
    is_there: bool

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"part-{self.number:05d}.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the content of a shard depends on, beside its number."""

    seed: int
    source: str
    digest: str
    noise: float
    shard_rows: int
    with_probability: bool
    version: int = 1

    def as_text(self) -> str:
        """As the metadata of a shard hold it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Maker:
    """Makes the shards of one recipe; travels to other processes, which share the source's file."""

    folder: Path
    source_file: Path
    recipe: Recipe
    facts: tuple[Facts, ...]
    target: KnownTarget

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the table: it is read from its file again."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def source(self) -> pa.Table:
        """The source, mapped: its pages are in memory once, for all processes."""
        with pa.memory_map(str(self.source_file)) as file:
            return pa.ipc.open_file(file).read_all()

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The columns as written, with the recipe."""
        fields = [(known.name, known.type) for known in self.facts] + [(TARGET, pa.string())]
        fields += [(PROBABILITY, pa.float64())] if self.recipe.with_probability else []
        return pa.schema(fields, metadata={RECIPE_KEY: self.recipe.as_text()})

    def run(self, job: Job, note: Callable[[int], None]) -> Tally:
        """Write the shard, whole or not at all, or count what it holds; `note` is told of rows as they are done."""
        tally = Tally()
        if job.is_there:
            for group in self._read(job):
                tally.add(self.target.probability(group), pc.equal(group[TARGET], POSITIVE).to_numpy())
                note(group.num_rows)
            return tally
        with open_whole(self.folder / job.name) as file, self.open_writer(file) as writer:
            for start in range(0, job.num_rows, GROUP_ROWS):
                group, probability, is_yes = self.make_group(job, start)
                tally.add(probability, is_yes)
                writer.write_table(group)
                note(group.num_rows)
        return tally

    def open_writer(self, file: BinaryIO | pa.NativeFile) -> pq.ParquetWriter:
        """A writer of one shard."""
        repeating = [known.name for known in self.facts if not known.noisy]
        return pq.ParquetWriter(file, self.schema, compression="zstd", use_dictionary=[*repeating, TARGET])

    def make_group(self, job: Job, start: int) -> tuple[pa.Table, np.ndarray, np.ndarray]:
        """The rows of a shard from `start` on, one group: as written, their probabilities (N,), and which are "yes"."""
        # always the group of the full shard: of a shorter one the same rows are kept
        num_rows = min(GROUP_ROWS, self.recipe.shard_rows - start)
        rng = np.random.default_rng(np.random.SeedSequence(self.recipe.seed, spawn_key=(job.number, start)))
        rows = rng.integers(0, self.source.num_rows, size=num_rows)
        table = draw_rows(self.source, self.facts, rows, noise=self.recipe.noise, rng=rng)
        probability = self.target.probability(table)
        is_yes = rng.random(num_rows) < probability
        late = pa.array([NEGATIVE, POSITIVE]).take(pa.array(is_yes.astype(np.int32)))
        columns = [*table.columns, late] + ([pa.array(probability)] if self.recipe.with_probability else [])
        kept = min(num_rows, job.num_rows - start)
        return pa.table(columns, schema=self.schema).slice(0, kept), probability[:kept], is_yes[:kept]

    def _read(self, job: Job) -> Iterator[pa.Table]:
        names = [known.name for known in self.facts] + [TARGET]
        with open_shard(self.folder / job.name) as parquet:
            for number in range(parquet.num_row_groups):
                yield _whole(lambda number=number: parquet.read_row_group(number, names), self.folder / job.name)


def open_shard(path: Path) -> pq.ParquetFile:
    """A shard that is there. Raises RunFolderError where it is damaged."""
    return _whole(lambda: pq.ParquetFile(path), path)


def _whole(read: Callable[[], T], path: Path) -> T:
    try:
        return read()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        fix = "remove it: the same command writes it again"
        raise RunFolderError(f"the shard is damaged: {reason(error)}", where=str(path), fix=fix) from None


def draw_rows(
    source: pa.Table, facts: tuple[Facts, ...], rows: np.ndarray, *, noise: float, rng: np.random.Generator
) -> pa.Table:
    """These rows of the source as they are written; `noise`, in deviations, is for numbers of many values alone."""
    columns = {}
    for known in facts:
        column = source.column(known.name).chunk(0)
        columns[known.name] = _blur(column, known, rows, noise, rng) if known.noisy else column.take(pa.array(rows))
    return pa.table(columns)


def _blur(column: pa.Array, known: Facts, rows: np.ndarray, noise: float, rng: np.random.Generator) -> pa.Array:
    values = column.to_numpy()[rows]
    if noise:
        values = values + rng.standard_normal(len(rows), dtype=np.float32) * np.float64(noise * known.deviation)
        np.clip(values, known.low, known.high, out=values)
    is_missing = np.isnan(values)
    if known.is_whole:
        values = np.round(np.where(is_missing, 0.0, values))
    kind = cast(np.dtype, np.dtype(known.type.to_pandas_dtype()))
    return pa.array(values.astype(kind), mask=is_missing)
