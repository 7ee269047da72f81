"""Packed rows: a few arrays for each split, in files that are mapped into memory, or on the device.

Preprocessing runs once per (data, settings, code); its outcome is a folder of the cache that
appears whole or not at all. Processes wait for the one that does the work on a file lock, never
inside a collective, so no process-group time-out is ever involved. The processes of a node map the
same files, so that they hold one copy of a table between them.
"""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from nn_train.errors import DataError
from nn_train.placement import Placement
from nn_train.schema import Split
from nn_train.together import acquire

DONE_FILE = "complete"
COLUMNS = ("x_num", "x_cat", "y", "weight")
CPU = torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows: x_num (B, N) float32, x_cat (B, C) int64, y (B,), weight (B,) float32 if rows have one.

    Several targets are y (B, T).
    """

    x_num: Tensor
    x_cat: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The same of every column."""
        return _each(self, change)

    def part(self, start: int, stop: int) -> "Batch":
        """Some of the rows, in memory of their own: kernels look at how an address is aligned, and sum by it."""
        if stop - start == len(self):
            return self
        return self.each(lambda column: column[start:stop].clone())


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedRows:
    """The rows of a split, taken by position; batches of them are on `device`.

    The columns lie on the device, or are mapped from the files. `placement` says which, and whether the mapped files
    are expected to stay in memory. Codes are int32 as in the files; in a copy on a CPU, which is small, int64.
    """

    x_num: Tensor
    x_cat: Tensor
    y: Tensor
    weight: Tensor | None = None
    device: torch.device = CPU
    placement: Placement = "device"

    def __len__(self) -> int:
        return len(self.y)

    def gather(self, positions: Tensor) -> Batch:
        """Rows by position, (B,) int64 on any device, where the columns lie and with codes as they are there."""
        places = _sent(positions, self.y.device)
        return _each(self, lambda column: column.index_select(0, places))

    def take(self, positions: Tensor) -> Batch:
        """Rows by position, on the device."""
        return on_device(self.gather(positions), self.device)

    def slice(self, start: int, stop: int) -> Batch:
        """Neighbouring rows, on the device: without a copy where they lie there."""
        return on_device(_each(self, lambda column: column[start:stop]), self.device)


def _each(rows: Batch | PackedRows, change: Callable[[Tensor], Tensor]) -> Batch:
    weight = None if rows.weight is None else change(rows.weight)
    return Batch(x_num=change(rows.x_num), x_cat=change(rows.x_cat), y=change(rows.y), weight=weight)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, with int64 codes."""
    batch = batch.each(lambda column: _sent(column, device))
    return dataclasses.replace(batch, x_cat=batch.x_cat.long())


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; to a GPU by a copy that the host does not wait for, which needs pinned memory."""
    if tensor.device.type == device.type:  # a device without a number, as Accelerate names a single one, equals none
        return tensor
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Let one process fill `folder` by `build(temporary folder)`; the others wait for it.

    Returns True if this call did the work.

    Raises:
        Whatever `build` raises; nothing but an empty lock file is left behind then.
    """
    if (folder / DONE_FILE).exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with acquire(FileLock(f"{folder}.lock")):
        if (folder / DONE_FILE).exists():
            return False
        temporary = folder.with_name(f".{folder.name}.building")  # the lock makes it this process's own
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a build that was killed
            temporary.mkdir()
            build(temporary)
            (temporary / DONE_FILE).touch()
            shutil.rmtree(folder, ignore_errors=True)  # one without the done file
            os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def build_together(folder: Path, build: Callable[[Path], None]) -> bool:
    """As `build_once`, with all processes that come at the work: `build` shares it out, and returns when all is done.

    They work in the folder itself, whose done file comes last, and what a crash leaves there is gone on with. Returns
    True if this call took part.
    """
    if (folder / DONE_FILE).exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    build(folder)
    (folder / DONE_FILE).touch()
    return True


def rows_file(folder: Path, split: Split, column: str) -> Path:
    """Where a column of a split's packed rows lies: an array as NumPy writes it, a row after the other."""
    return folder / f"{split}.{column}.npy"


def truth_file(folder: Path, split: Split) -> Path:
    """Row numbers, id columns and target of a split's rows."""
    return folder / f"{split}.truth.parquet"


def features_file(folder: Path, split: Split) -> Path:
    """The features of a split's rows as the table holds them: what the report shows of the worst."""
    return folder / f"{split}.features.parquet"


class RowsWriter:
    """Files of a split's packed rows, made in their full size, whose parts are written by any process at its place."""

    def __init__(self, folder: Path, split: Split, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]):
        """`shapes` and `dtypes` are by column those of the whole file."""
        self.files = {name: rows_file(folder, split, name) for name in shapes}
        self.shapes = shapes
        self.dtypes = dtypes

    def make(self) -> None:
        """Make the files, whose rows are nothing yet; one of its full size may have rows already, and stays."""
        for name, file in self.files.items():
            row_bytes = math.prod(self.shapes[name]) * np.dtype(self.dtypes[name]).itemsize
            if not file.exists() or file.stat().st_size <= row_bytes:
                np.lib.format.open_memmap(file, mode="w+", dtype=self.dtypes[name], shape=self.shapes[name]).flush()

    def write(self, first_row: int, columns: Mapping[str, np.ndarray]) -> None:
        """Put rows to their place."""
        for name, values in columns.items():
            whole = np.dtype(self.dtypes[name])
            row_bytes = whole.itemsize * math.prod(self.shapes[name][1:])
            data = np.ascontiguousarray(values, dtype=whole)
            with self.files[name].open("r+b") as stream:
                size = self.files[name].stat().st_size - row_bytes * self.shapes[name][0]
                stream.seek(size + first_row * row_bytes)
                stream.write(data.data)

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for file in self.files.values():
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())


def save_rows(folder: Path, split: Split, columns: Mapping[str, np.ndarray]) -> None:
    """Write the packed rows of a split: x_num (R, N) float32, x_cat (R, C) int32, y and, if there are any, weights."""
    for name, values in columns.items():
        np.save(rows_file(folder, split, name), values, allow_pickle=False)


def packed_bytes(folder: Path, split: Split) -> int:
    """Size of a split's packed rows in their files."""
    files = (rows_file(folder, split, name) for name in COLUMNS)
    return sum(file.stat().st_size for file in files if file.exists())


def load_rows(folder: Path, split: Split, *, device: torch.device = CPU, placement: Placement = "device") -> PackedRows:
    """The packed rows of a split, in the order of the table.

    Raises:
        DataError: the files are not as they were written.
    """
    is_on_device = placement == "device"
    is_own = is_on_device and device.type == "cpu"  # to a GPU, the processes of a node copy what they map together

    def read(column: str) -> Tensor:
        tensor = torch.from_numpy(_open(rows_file(folder, split, column), is_mapped=not is_own))
        return tensor.to(device) if is_on_device else tensor

    x_cat = read("x_cat")
    return PackedRows(
        x_num=read("x_num"),
        x_cat=x_cat.long() if is_own else x_cat,
        y=read("y"),
        weight=read("weight") if rows_file(folder, split, "weight").exists() else None,
        device=device,
        placement=placement,
    )


def _open(file: Path, *, is_mapped: bool) -> np.ndarray:
    try:
        if not is_mapped:
            return np.load(file, allow_pickle=False)
        values = np.load(file, mmap_mode="c", allow_pickle=False)  # as if it could be written: torch insists on that
        return values if values.size else np.array(values)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"the packed rows are damaged: {error}",
            where=str(file),
            fix=f"remove the folder {file.parent}, and they are packed again",
        ) from None
