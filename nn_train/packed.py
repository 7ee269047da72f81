"""Packed rows: the columns as a few arrays in an Arrow file, and resident tensors to index.

Preprocessing runs once per (data, settings, code); its outcome is a folder of the cache that
appears whole or not at all. Processes wait for the one that does the work on a file lock, never
inside a collective, so no process-group time-out is ever involved.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout
from torch import Tensor

from nn_train.pulse import pulse

DONE_FILE = "complete"
ROWS_FILE = "rows.arrow"
TRUTH_FILE = "truth.parquet"
TEST_FILE = "test_features.parquet"  # of the test rows alone: what the report shows of the worst of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows on the device: x_num (B, N) float32, x_cat (B, C) int64, y (B,), weight (B,) float32 if rows have one.

    Several targets are y (B, T).
    """

    x_num: Tensor
    x_cat: Tensor
    y: Tensor
    weight: Tensor | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidentRows:
    """The rows of a split on the device, indexed by position."""

    x_num: Tensor
    x_cat: Tensor
    y: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, positions: Tensor) -> Batch:
        """Gather rows by position, (B,) int64 on the device."""
        return Batch(
            x_num=self.x_num.index_select(0, positions),
            x_cat=self.x_cat.index_select(0, positions),
            y=self.y.index_select(0, positions),
            weight=None if self.weight is None else self.weight.index_select(0, positions),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Neighbouring rows, without a copy."""
        return Batch(
            x_num=self.x_num[start:stop],
            x_cat=self.x_cat[start:stop],
            y=self.y[start:stop],
            weight=None if self.weight is None else self.weight[start:stop],
        )


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Let one process fill `folder` by `build(temporary folder)`; the others wait for it.

    Returns True if this call did the work.

    Raises:
        Whatever `build` raises; nothing but an empty lock file is left behind then.
    """
    if (folder / DONE_FILE).exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _acquire(FileLock(f"{folder}.lock")):
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


def _acquire(lock: BaseFileLock) -> AcquireReturnProxy:
    while True:
        pulse.beat()  # the one that is waited for ends, or the watchdog ends it
        with suppress(Timeout):
            return lock.acquire(timeout=1.0)


def load_rows(folder: Path, positions: np.ndarray, *, device: torch.device) -> ResidentRows:
    """Read the packed rows at `positions` (in that order) onto the device."""
    with pa.memory_map(str(folder / ROWS_FILE)) as source:  # as `datasets` opens it, without its import
        table = pa.ipc.open_stream(source).read_all()

    # by DLPack, since Arrow's own `to_numpy` imports pandas
    def lists(name: str, dtype: type) -> np.ndarray:
        if name not in table.column_names:
            return np.zeros((len(positions), 0), dtype)
        array = table.column(name).combine_chunks()
        return np.from_dlpack(array.flatten()).reshape(len(array), -1)[positions]

    def numbers(name: str) -> Tensor:
        if pa.types.is_fixed_size_list(table.field(name).type):
            return torch.from_numpy(lists(name, np.float32)).to(device)
        return torch.from_numpy(np.from_dlpack(table.column(name).combine_chunks())[positions]).to(device)

    return ResidentRows(
        x_num=torch.from_numpy(lists("x_num", np.float32)).to(device),
        x_cat=torch.from_numpy(lists("x_cat", np.int32)).to(device, torch.int64),
        y=numbers("y"),
        weight=numbers("weight") if "weight" in table.column_names else None,
    )
