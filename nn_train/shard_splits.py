"""Which split a row of a large table belongs to, told from the row alone, without a look at the others."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nn_train.errors import ConfigError, DataError, short
from nn_train.row_hash import SAMPLE_SALT, TEST, TRAIN, VAL, deal_splits, row_hashes, shares, text_hashes
from nn_train.schema import SPLITS, TableSchema
from nn_train.settings import Config
from nn_train.shards import PartReader, ShardError, Unit
from nn_train.splitting import WORDS
from nn_train.table import name_row
from nn_train.values import read_dates, read_levels, read_numbers

TIMES = 1 << 20  # that the ends of the splits by time are found from, about


class Dealer:
    """Gives every row its split: by chance, by a hash of its group, by its word, by its time, or by its file."""

    def __init__(self, config: Config, schema: TableSchema, cuts: tuple[float, float] | None):
        self.config = config
        self.schema = schema
        self.cuts = cuts

    def deal(self, piece: pa.Table, hashes: np.ndarray, unit: Unit) -> np.ndarray:
        """The split of each row as its place in SPLITS (B,) int8.

        Raises:
            DataError: a row's word or time tells none.
        """
        split = self.config.split
        if split.method == "random":
            return deal_splits(hashes, split)
        if split.method == "files":
            assert unit.split is not None
            return np.full(len(piece), SPLITS.index(unit.split), np.int8)
        column = piece.column(split.column or "")
        if split.method == "time":
            return self._by_time(column)
        levels = pc.dictionary_encode(read_levels(column, self.config.data).combine_chunks())
        names = levels.dictionary.to_pylist()
        places = pc.fill_null(levels.indices, len(names)).to_numpy(zero_copy_only=False)
        if split.method == "group":  # rows without a group are one
            return deal_splits(text_hashes([*names, "\0"], seed=split.seed), split)[places]
        return self._by_word([*names, ""], places)

    def _by_word(self, names: list[str], places: np.ndarray) -> np.ndarray:
        words = [WORDS.get(name.strip().lower()) for name in names]
        dealt = np.array([-1 if word is None else SPLITS.index(word) for word in words], np.int8)[places]
        if (dealt < 0).any():
            row = int(np.argmax(dealt < 0))
            raise DataError(
                f"column '{self.config.split.column}' has '{short(names[places[row]])}' in "
                f"{name_row(self.config.data, row)}, not train, val or test",
                where=self.config.data.path,
                fix="correct the column, or another split.column",
            )
        return dealt

    def _by_time(self, column: pa.ChunkedArray) -> np.ndarray:
        assert self.cuts is not None
        times = read_times(column, self.schema, self.config)
        if np.isnan(times).any():
            row = int(np.argmax(np.isnan(times)))
            raise DataError(
                f"column '{self.config.split.column}' has no time in {name_row(self.config.data, row)}",
                where=self.config.data.path,
                fix="drop such rows, or another split.column",
            )
        first, second = self.cuts
        return np.where(times < first, TRAIN, np.where(times < second, VAL, TEST)).astype(np.int8)


def read_times(column: pa.ChunkedArray, schema: TableSchema, config: Config) -> np.ndarray:
    """Numbers as they are and dates in microseconds (B,) float64; NaN where there is none."""
    name, data = config.split.column, config.data
    spec = next(spec for spec in schema.columns if spec.name == name)
    if spec.kind == "date":
        dates = read_dates(column, data, day_first=spec.day_first)
        return np.where(np.isnat(dates), np.nan, dates.astype(np.int64).astype(np.float64))
    if spec.kind != "numeric":
        raise ConfigError(
            f"split.column='{short(name or '')}' holds neither dates nor numbers, and a large table is split by such",
            fix="another split.column, or data.preparation=whole",
        )
    return read_numbers(column, data)


def find_cuts(units: list[Unit], schema: TableSchema, config: Config, *, num_rows: int) -> tuple[float, float]:
    """Where validation and test begin, from the times of rows drawn by chance over the whole table.

    `num_rows` are about those of the table, so that no more times are held of a larger one.
    """
    split, drawn, reader = config.split, [np.zeros(0)], PartReader(config.data)
    for unit in units:
        for part in unit.parts:
            row = unit.row_of(part)
            try:
                for piece in reader.read(unit, part, columns=[split.column or ""]):
                    seed, file = split.seed, unit.file_number
                    hashes = row_hashes(seed=seed, file_number=file, first_row=row, num_rows=len(piece))
                    kept = shares(hashes, SAMPLE_SALT) < TIMES / max(num_rows, 1)
                    drawn.append(read_times(piece.column(0), schema, config)[kept])
                    row += len(piece)
            except ShardError:
                if config.data.bad_shards == "stop":
                    raise
    times = np.sort(np.concatenate(drawn))
    times = times[~np.isnan(times)]
    if not len(times):
        raise DataError(f"column '{split.column}' holds no time", where=config.data.path, fix="another split.column")
    ends = [int(len(times) * share) for share in (1 - split.val - split.test, 1 - split.test)]
    first, second = (float(times[end]) if end < len(times) else np.inf for end in ends)
    return first, second
