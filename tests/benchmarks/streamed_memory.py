"""Peak memory of a run whose validation and test rows are many: it must not grow with them.

usage: python tests/benchmarks/streamed_memory.py [--rows 2000000 8000000] [--exact-rows 500000]

Each size runs in a process of its own, through the stages of a run: a few training steps with a validation, the
judgement with baselines and importance, the predictions and the page. A small real table is packed, and its
validation and test rows are written over and over until there are as many as asked for. Anonymous memory is what the
process holds itself; pages of mapped files are the system's, and are dropped where it needs the room.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from nn_train import Engine, load_config
from nn_train.packed import COLUMNS, features_file, rows_file, truth_file
from nn_train.preparation import PreparedData
from nn_train.schema import Split
from tests.conftest import make_table

PIECE_ROWS = 500_000
LARGE: tuple[Split, ...] = ("val", "test")


def grow(data: PreparedData, folder: Path, num_rows: int) -> PreparedData:
    """The same packed rows, with validation and test rows repeated up to `num_rows`; never held as a whole."""
    shutil.copytree(data.folder, folder)
    for split in LARGE:
        for column in COLUMNS:
            file = rows_file(folder, split, column)
            if file.exists():
                small = np.load(file)
                large = np.lib.format.open_memmap(file, "w+", dtype=small.dtype, shape=(num_rows, *small.shape[1:]))
                for start in range(0, num_rows, PIECE_ROWS):
                    stop = min(start + PIECE_ROWS, num_rows)
                    large[start:stop] = small[np.arange(start, stop) % len(small)]
                large.flush()
        for file in (truth_file(folder, split), features_file(folder, split)):
            if file.exists():
                table = pq.read_table(file)
                with pq.ParquetWriter(file, table.schema) as writer:
                    for start in range(0, num_rows, PIECE_ROWS):
                        places = np.arange(start, min(start + PIECE_ROWS, num_rows)) % len(table)
                        writer.write_table(table.take(pa.array(places)))
    rows = data.info["rows"] | dict.fromkeys(LARGE, num_rows)
    return dataclasses.replace(data, folder=folder, info=data.info | {"rows": rows})


def held_bytes() -> int:
    """Anonymous memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def peak(found: dict[str, float], name: str) -> Iterator[None]:
    """Note the largest anonymous memory while the block runs, in MB, and its seconds."""
    is_over, most, began_s = threading.Event(), [held_bytes()], time.monotonic()

    def watch() -> None:
        while not is_over.wait(0.01):
            most[0] = max(most[0], held_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        found[f"{name}_mb"] = round(most[0] / 1e6)
        found[f"{name}_s"] = round(time.monotonic() - began_s, 1)


def measure(num_rows: int, exact_rows: int) -> dict[str, float]:
    """Peak memory of each stage of a run with so many validation rows, and as many test rows."""
    found: dict[str, float] = {"rows": num_rows}
    with tempfile.TemporaryDirectory() as folder:
        make_table(4_000).to_csv(f"{folder}/table.csv", index=False)
        words = [f"data.path={folder}/table.csv", "data.target=y", f"data.cache_dir={folder}/cache",
                 f"run.dir={folder}/run", "data.placement=disk", "model.name=mlp", "model.width=16",
                 "train.max_epochs=1", "tracking.mode=disabled", f"evaluation.exact_rows={exact_rows}"]  # fmt: skip
        engine = Engine(load_config(None, words))
        engine.prepare()
        engine.data = engine.training.data = grow(engine.data, Path(folder) / "large", num_rows)
        engine.training.val_rows = engine.data.rows("val", placement="disk")
        found["start_mb"] = round(held_bytes() / 1e6)
        for stage in (engine.train, engine.evaluate, engine.report):
            with peak(found, stage.__name__):
                stage()
        written = pq.read_metadata(f"{folder}/run/predictions.parquet").num_rows
        assert written == num_rows, written
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 8_000_000])
    parser.add_argument("--exact-rows", type=int, default=500_000)
    options = parser.parse_args()
    if len(options.rows) == 1:
        print(json.dumps(measure(options.rows[0], options.exact_rows)))
    else:
        for size in options.rows:
            command = [sys.executable, __file__, "--rows", str(size), "--exact-rows", str(options.exact_rows)]
            subprocess.run(command, check=True)
