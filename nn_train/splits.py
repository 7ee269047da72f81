"""Which rows train, choose and judge, as they are saved with the run; `splitting.py` decides it."""

import dataclasses
import io
from pathlib import Path

import numpy as np

from nn_train.run_folder import write_file
from nn_train.schema import SPLITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """Row positions of each split, int64, each in the order of the table."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def save_splits(splits: Splits, path: Path) -> None:
    """Write the positions as plain arrays, whole."""
    stream = io.BytesIO()
    np.savez(stream, **{split: getattr(splits, split) for split in SPLITS})
    write_file(path, stream.getvalue())


def load_splits(path: Path) -> Splits:
    """Read what `save_splits` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Splits(**{split: arrays[split] for split in SPLITS})
