"""What one pass over a part of a large table finds out: counts, ranges, levels, and a sample of its rows.

Surveys of parts add up to that of the table, whatever the parts were and whoever surveyed them: counts and levels are
exact, distinct numbers are estimated from their smallest hashes, and the sample holds the rows with the smallest ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nn_train.row_hash import SAMPLE_SALT, TRAIN, mix, shares
from nn_train.row_weights import check_weights, row_weigher
from nn_train.run_folder import read_json, write_file, write_json
from nn_train.schema import SPLITS, ColumnSpec, TableSchema
from nn_train.settings import DataConfig
from nn_train.values import as_text, finite, is_text, plain, read_dates, read_levels, read_numbers

SAMPLE_ROWS = (1 << 17, 1 << 15, 1 << 15)  # by split: scales and bins are learned from the train rows among them
NUM_SMALLEST = 1024  # hashes from which distinct numbers are estimated, within some three of a hundred
MOST_LEVELS = 1_000_000  # of a column that are counted; beyond, the rarest are forgotten
SPLIT_COLUMN, CHANCE_COLUMN = "split", "chance"


@dataclasses.dataclass(kw_only=True)
class ColumnFacts:
    """A column in the rows with a target: `smallest` are hashes of its values, if they are numbers or dates."""

    num_missing: int = 0
    num_unread: int = 0  # rows in which something stands that is none of the column's kind
    first_unread: tuple[str, str] | None = None  # the place of the first one, and what stands there
    num_infinite: int = 0
    smallest: list[int] = dataclasses.field(default_factory=list)
    levels: dict[str, int] = dataclasses.field(default_factory=dict)  # of all rows
    train_levels: dict[str, int] = dataclasses.field(default_factory=dict)
    num_missing_train: int = 0

    @property
    def num_distinct(self) -> int:
        """Distinct values: exact for levels, and for numbers while they are few."""
        if self.levels:
            return len(self.levels)
        if len(self.smallest) < NUM_SMALLEST:
            return len(self.smallest)
        return round((NUM_SMALLEST - 1) / (self.smallest[-1] / 2**64))


@dataclasses.dataclass(kw_only=True)
class Survey:
    """A part of a table, or all of it. `moments` are by target and split the number, mean and squared deviations."""

    num_rows: int = 0
    num_without_target: int = 0
    rows: list[int] = dataclasses.field(default_factory=lambda: [0] * len(SPLITS))
    columns: dict[str, ColumnFacts] = dataclasses.field(default_factory=dict)
    classes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    moments: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)
    train_weight: float = 0.0
    bad_parts: dict[str, str] = dataclasses.field(default_factory=dict)  # of a unit: part -> what is wrong with it
    sample: pa.Table | None = None

    def add(self, other: "Survey") -> None:
        """Take in the survey of the rows that follow."""
        self.num_rows += other.num_rows
        self.num_without_target += other.num_without_target
        self.rows = [a + b for a, b in zip(self.rows, other.rows, strict=True)]
        for name, facts in other.columns.items():
            self.columns[name] = _joined(self.columns.get(name, ColumnFacts()), facts)
        for name, counts in other.classes.items():
            own = self.classes.get(name, [0] * len(SPLITS))
            self.classes[name] = [a + b for a, b in zip(own, counts, strict=True)]
        for name, moments in other.moments.items():
            own = self.moments.get(name, [[0.0, 0.0, 0.0]] * len(SPLITS))
            self.moments[name] = [_add_moments(a, b) for a, b in zip(own, moments, strict=True)]
        self.train_weight += other.train_weight
        parts = [sample for sample in (self.sample, other.sample) if sample is not None]
        self.sample = pa.concat_tables(parts, promote_options="permissive") if len(parts) > 1 else parts[0]

    def thin_sample(self) -> None:
        """Keep of each split's sampled rows those with the smallest chances, as many as a sample has."""
        if self.sample is None:
            return
        split, chance = (self.sample.column(name).to_numpy() for name in (SPLIT_COLUMN, CHANCE_COLUMN))
        kept = np.zeros(len(split), bool)
        for place, most in enumerate(SAMPLE_ROWS):
            rows = np.flatnonzero(split == place)
            if len(rows) > most:
                rows = rows[np.argpartition(chance[rows], most)[:most]]
            kept[rows] = True
        if not kept.all():
            self.sample = self.sample.filter(pa.array(kept))

    def save(self, folder: Path, name: str) -> None:
        """Write it as NAME.json and NAME.parquet, whole."""
        values = dataclasses.asdict(dataclasses.replace(self, sample=None))
        stream = pa.BufferOutputStream()
        if self.sample is not None:
            pq.write_table(self.sample, stream)
            write_file(folder / f"{name}.parquet", stream.getvalue().to_pybytes())
        write_json(folder / f"{name}.json", values)

    @classmethod
    def load(cls, folder: Path, name: str) -> "Survey":
        """Read what `save` wrote."""
        values = read_json(folder / f"{name}.json")
        values["columns"] = {column: ColumnFacts(**facts) for column, facts in values["columns"].items()}
        file = folder / f"{name}.parquet"
        return cls(**values | {"sample": pq.read_table(file) if file.exists() else None})


def _joined(a: ColumnFacts, b: ColumnFacts) -> ColumnFacts:
    return ColumnFacts(
        num_missing=a.num_missing + b.num_missing,
        num_missing_train=a.num_missing_train + b.num_missing_train,
        num_unread=a.num_unread + b.num_unread,
        first_unread=a.first_unread or b.first_unread,
        num_infinite=a.num_infinite + b.num_infinite,
        smallest=np.unique(np.array([*a.smallest, *b.smallest], np.uint64))[:NUM_SMALLEST].tolist(),
        levels=_added(a.levels, b.levels),
        train_levels=_added(a.train_levels, b.train_levels),
    )


def _added(a: dict[str, int], b: Mapping[str, int]) -> dict[str, int]:
    if len(a) < len(b):
        a, b = dict(b), a
    for name, count in b.items():
        a[name] = a.get(name, 0) + count
    least = 1
    while len(a) > MOST_LEVELS:
        a = {name: count for name, count in a.items() if count > least}
        least *= 2
    return a


def _add_moments(a: list[float], b: list[float]) -> list[float]:
    """Number, mean and sum of squared deviations of both together. Source: Chan, Golub and LeVeque 1983."""
    number = a[0] + b[0]
    if not number:
        return a
    step = b[1] - a[1]
    return [number, a[1] + step * b[0] / number, a[2] + b[2] + step**2 * a[0] * b[0] / number]


def survey_piece(
    piece: pa.Table,
    schema: TableSchema,
    data: DataConfig,
    *,
    split: np.ndarray,
    hashes: np.ndarray,
    name_row: Callable[[int], str],
    chance_below: float,
) -> Survey:
    """Look at a piece of the table.

    Args:
        piece: raw rows.
        schema: what the first look at the table found; columns it dropped for good are not surveyed.
        data: how values are read.
        split: places in SPLITS, by row.
        hashes: of the rows.
        name_row: a row of the piece for a person.
        chance_below: rows with a higher chance will not be in the sample.
    """
    target = {name: _read_target(piece.column(name), schema, data) for name in schema.target.names}
    has_target = np.logical_and.reduce([is_there for _, is_there in target.values()])
    found = Survey(num_rows=len(piece), num_without_target=int((~has_target).sum()))
    train = has_target & (split == TRAIN)
    found.rows = [int((has_target & (split == which)).sum()) for which in range(len(SPLITS))]
    for name, (values, _) in target.items():
        parts = [values[has_target & (split == which)] for which in range(len(SPLITS))]
        if schema.target.task == "regression":
            found.moments[name] = [_moments(part) for part in parts]
        else:
            for which, part in enumerate(parts):
                for level, count in zip(*np.unique(part.astype(str), return_counts=True), strict=True):
                    found.classes.setdefault(str(level), [0] * len(SPLITS))[which] = int(count)
    for spec in schema.columns:
        if not spec.dropped or spec.dropped == "constant":
            column = piece.column(spec.name)
            found.columns[spec.name] = _facts(column, spec, data, has_target, train, name_row=name_row)
    if (weigh := row_weigher(data)) is not None:
        check_weights(piece.column(data.weight or ""), has_target, data)
        found.train_weight = float(weigh(piece)[train].sum(dtype=np.float64))
    chance = shares(hashes, SAMPLE_SALT)
    kept = np.flatnonzero(has_target & (chance < chance_below))
    rows = piece.take(pa.array(kept))
    names = [f"column {number}" for number in range(rows.num_columns)]  # whatever the table calls its own
    sample = rows.rename_columns(names)
    for name, values in ((SPLIT_COLUMN, split), (CHANCE_COLUMN, chance)):
        sample = sample.append_column(name, pa.array(values[kept]))
    found.sample = sample
    return found


def _read_target(column: pa.ChunkedArray, schema: TableSchema, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    if schema.target.task == "regression":
        numbers = read_numbers(column, data)
        return numbers, np.isfinite(numbers)
    levels = read_levels(column, data)
    return levels.to_numpy().astype(object), levels.is_valid().to_numpy()


def _moments(values: np.ndarray) -> list[float]:
    if not len(values):
        return [0.0, 0.0, 0.0]
    mean = float(values.mean())
    return [float(len(values)), mean, float(((values - mean) ** 2).sum())]


def _facts(
    column: pa.ChunkedArray,
    spec: ColumnSpec,
    data: DataConfig,
    has_target: np.ndarray,
    train: np.ndarray,
    *,
    name_row: Callable[[int], str],
) -> ColumnFacts:
    if spec.kind in ("categorical", "boolean"):
        levels = read_levels(column, data)
        levels = pc.utf8_lower(levels) if spec.kind == "boolean" else levels
        is_null = levels.is_null().to_numpy()
        return ColumnFacts(
            num_missing=int((is_null & has_target).sum()),
            num_missing_train=int((is_null & train).sum()),
            levels=_counts(levels, has_target),
            train_levels=_counts(levels, train),
        )
    values = read_numbers(column, data) if spec.kind == "numeric" else _days(column, spec, data)
    array = plain(column)
    is_gap = np.isnan(values)
    facts = ColumnFacts(num_missing=int((is_gap & has_target).sum()), num_missing_train=int((is_gap & train).sum()))
    if is_text(array):
        stands = read_levels(column, data).is_valid().to_numpy() & is_gap & has_target
        facts.num_unread = int(stands.sum())
        if facts.num_unread:
            row = int(np.argmax(stands))
            facts.first_unread = (name_row(row), as_text(array[row]))
            facts.num_missing -= facts.num_unread
    facts.num_infinite = int(np.isinf(values[has_target]).sum())
    values = finite(values)[has_target & ~is_gap]
    values = values[~np.isnan(values)]
    if len(values):
        hashes = mix((values + 0.0).view(np.uint64))
        if len(hashes) > 8 * NUM_SMALLEST:  # the smallest, some of them more than once
            hashes = np.partition(hashes, 8 * NUM_SMALLEST)[: 8 * NUM_SMALLEST]
            least = np.unique(hashes)
            hashes = least if len(least) >= NUM_SMALLEST else mix((values + 0.0).view(np.uint64))
        facts.smallest = np.unique(hashes)[:NUM_SMALLEST].tolist()
    return facts


def _days(column: pa.ChunkedArray, spec: ColumnSpec, data: DataConfig) -> np.ndarray:
    dates = read_dates(column, data, day_first=spec.day_first)
    return np.where(np.isnat(dates), np.nan, dates.astype(np.int64).astype(np.float64))


def _counts(levels: pa.ChunkedArray, rows: np.ndarray) -> dict[str, int]:
    found: Any = pc.value_counts(levels.filter(pa.array(rows)).drop_null())
    return dict(zip(found.field("values").to_pylist(), found.field("counts").to_pylist(), strict=True))
