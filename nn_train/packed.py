"""Packed rows: the columns as a few arrays in an Arrow file, and resident tensors to index.

Preprocessing runs once per (data, settings, code); its outcome is a folder of the cache that
appears whole or not at all. Processes wait for the one that does the work on a file lock, never
inside a collective, so no process-group time-out is ever involved.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor

DONE_FILE = "complete"
ROWS_FILE = "rows.arrow"
BATCH_ROWS = 16_384


class RowEncoder(Protocol):
    """Turns raw Arrow rows into x_num (B, N), x_cat (B, C) and y (B,)."""

    def __call__(self, rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode one batch."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows on the device: x_num (B, N) float32, x_cat (B, C) int64, y (B,)."""

    x_num: Tensor
    x_cat: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidentRows:
    """The rows of a split on the device, indexed by position."""

    x_num: Tensor
    x_cat: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: Tensor) -> Batch:
        """Gather rows by position, (B,) int64 on the device."""
        return Batch(
            x_num=self.x_num.index_select(0, positions),
            x_cat=self.x_cat.index_select(0, positions),
            y=self.y.index_select(0, positions),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Neighbouring rows, without a copy."""
        return Batch(x_num=self.x_num[start:stop], x_cat=self.x_cat[start:stop], y=self.y[start:stop])


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Let one process fill `folder` by `build(temporary folder)`; the others wait for it.

    Returns True if this call did the work.

    Raises:
        Whatever `build` raises; nothing but an empty lock file is left behind then.
    """
    if (folder / DONE_FILE).exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
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


def pack_rows(table: datasets.Dataset, encode: RowEncoder, folder: Path, *, fingerprint: str) -> None:
    """Encode every row of `table` through `datasets` and write the packed rows into `folder`."""
    first = encode(table.with_format("arrow")[:1])
    # Arrow has no lists of no values: a table without numeric, or categorical, inputs has no such column
    lists = {
        name: datasets.Sequence(datasets.Value(kind), length=array.shape[1])
        for name, kind, array in (("x_num", "float32", first[0]), ("x_cat", "int32", first[1]))
        if array.shape[1]
    }
    features = datasets.Features(lists | {"y": datasets.Value(str(first[2].dtype))})

    def encode_batch(rows: pa.Table) -> pa.Table:
        x_num, x_cat, y = encode(rows)
        arrays = {"x_num": x_num, "x_cat": x_cat}
        columns = {name: _fixed_lists(arrays[name]) for name in lists}
        return pa.table(columns | {"y": pa.array(y)}, schema=features.arrow_schema)

    table.with_format("arrow").map(
        encode_batch,
        batched=True,
        batch_size=BATCH_ROWS,
        remove_columns=table.column_names,
        features=features,
        new_fingerprint=fingerprint,
        cache_file_name=str(folder / ROWS_FILE),
        writer_batch_size=BATCH_ROWS,
    )


def _fixed_lists(array: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def load_rows(folder: Path, positions: np.ndarray, *, device: torch.device) -> ResidentRows:
    """Read the packed rows at `positions` (in that order) onto the device."""
    table = datasets.Dataset.from_file(str(folder / ROWS_FILE)).data.table

    def lists(name: str, dtype: type) -> np.ndarray:
        if name not in table.column_names:
            return np.zeros((len(positions), 0), dtype)
        array = table.column(name).combine_chunks()
        return array.flatten().to_numpy().reshape(len(array), -1)[positions]

    return ResidentRows(
        x_num=torch.from_numpy(lists("x_num", np.float32)).to(device),
        x_cat=torch.from_numpy(lists("x_cat", np.int32)).to(device, torch.int64),
        y=torch.from_numpy(table.column("y").to_numpy()[positions]).to(device),
    )
