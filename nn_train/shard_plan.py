"""The first look at a large table: its units of work, what its columns mean, and how its rows are split and sampled."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa

from nn_train.errors import ConfigError, DataError
from nn_train.inference import infer_schema
from nn_train.run_folder import read_json, write_json
from nn_train.schema import TableSchema
from nn_train.settings import Config
from nn_train.shard_splits import find_cuts
from nn_train.shards import PartReader, ShardError, Unit, plan_units, row_bytes
from nn_train.survey import SAMPLE_ROWS
from nn_train.table import rows_named
from nn_train.table_files import num_bytes

LOOK_PARTS, LOOK_ROWS = 16, 8192  # what the first look sees: so many rows of so many parts
SPARE = 1.3  # a sample is drawn so much larger than it will be, since chance may give fewer rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the first look leaves to all: the units, what columns mean, and how rows are split and sampled."""

    units: list[Unit]
    columns: list[str]
    schema: TableSchema
    cuts: tuple[float, float] | None
    chance_below: float

    def save(self, folder: Path) -> None:
        """Write it as plan.json, whole."""
        values = {
            "units": [unit.to_json() for unit in self.units],
            "columns": self.columns,
            "schema": self.schema.to_json(),
            "cuts": self.cuts,
            "chance_below": self.chance_below,
        }
        write_json(folder / "plan.json", values)

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """Read what `save` wrote."""
        values = read_json(folder / "plan.json")
        return cls(
            units=[Unit.from_json(unit) for unit in values["units"]],
            columns=values["columns"],
            schema=TableSchema.from_json(values["schema"]),
            cuts=None if values["cuts"] is None else tuple(values["cuts"]),
            chance_below=values["chance_below"],
        )


def make_plan(config: Config, folder: Path) -> None:
    """Find the units, and what their columns mean from rows spread over all of them."""
    if config.data.max_rows is not None:
        raise ConfigError(
            "data.max_rows goes with a table that is prepared as a whole",
            fix="data.max_rows=no, data.preparation=whole, or a path of fewer files",
        )
    units = plan_units(config)
    parts = [(unit, part) for unit in units for part in unit.parts]
    places = np.unique(np.linspace(0, max(len(parts) - 1, 0), LOOK_PARTS).astype(int))
    chosen = [parts[place] for place in places if parts]  # Parquet files may have no row group
    reader = PartReader(config.data)
    looks: list[pa.Table] = []
    names: list[str] = []
    errors: list[ShardError] = []
    for unit, part in chosen:
        try:
            piece = next(reader.read(unit, part), None)
            if piece is None:  # a row group without a row, or a stretch beyond a file's end
                continue
            piece = piece.slice(0, LOOK_ROWS)
            looks.append(piece if not looks else piece.select(looks[0].column_names))
            first_row = unit.row_of(part)
            names += [f"row {first_row + row + 1} of {unit.file.name}" for row in range(len(piece))]
        except ShardError as error:
            errors.append(error)
            if config.data.bad_shards == "stop":
                raise
    if not looks or not sum(map(len, looks)):
        raise (
            errors[0] if errors else DataError("the table holds no rows", where=config.data.path, fix="data.path=FILE")
        )
    table = pa.concat_tables(looks, promote_options="permissive")
    split_column = config.split.column if config.split.method != "random" else None
    with rows_named(names.__getitem__):
        schema = infer_schema(
            table, config.data, split_column=split_column, split_column_is_feature=config.split.method == "time"
        )
    num_rows = _estimate_rows(units, table)
    _refuse_full_disk(config, folder, schema, num_rows)
    expected = max(most / share for most, share in zip(SAMPLE_ROWS, _shares(config), strict=True) if share)
    plan = Plan(
        units=units,
        columns=table.column_names,
        schema=schema,
        cuts=find_cuts(units, schema, config, num_rows=num_rows) if config.split.method == "time" else None,
        chance_below=min(1.0, SPARE * expected / max(num_rows, 1)),
    )
    plan.save(folder)


def _shares(config: Config) -> tuple[float, float, float]:
    val = config.split.val if config.split.folds is None else (1 - config.split.test) / config.split.folds
    is_random = config.split.method in ("random", "time", "group")
    return (1 - val - config.split.test, val, config.split.test) if is_random else (0.5, 0.1, 0.1)


def _estimate_rows(units: list[Unit], look: pa.Table) -> int:
    """Rows of all units: counted in Parquet's footers and in spans, told by the length of a row in other files."""
    counted = sum(unit.num_rows or 0 for unit in units)
    others = {unit.file_number: unit.file for unit in units if unit.num_rows is None}
    return counted + int(sum(map(num_bytes, others.values())) / row_bytes(look))


def _refuse_full_disk(config: Config, folder: Path, schema: TableSchema, num_rows: int) -> None:
    numbers = sum({"numeric": 1, "date": 6}.get(spec.kind, 0) for spec in schema.features)
    needed = num_rows * (4 * numbers + 4 * (len(schema.features)) + 8 + 4 * (config.data.weight is not None))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the packed rows need some {needed:,} bytes, and {free:,} are free",
            where=str(folder.parent),
            fix="data.cache_dir=FOLDER on a larger disk, or data.drop=COLUMNS",
        )
