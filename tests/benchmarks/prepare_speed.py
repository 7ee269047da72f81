"""Rows per second and memory of preparing a large table, beside pandas with scikit-learn's ColumnTransformer.

    python tests/benchmarks/prepare_speed.py TABLE ... [--pandas 1] [--csv]

A TABLE is a folder of `nn_train/make_table.py`, say of 1M and 10M rows. Ours is the whole preparation from Parquet to
packed rows, in a process of its own that starts helpers on the other cores, and then a second start of the same, which
finds the rows. The other one reads the first so many shards by pandas, splits them, and fits and applies the same
steps: quantiles to a normal distribution with a mean for gaps and their indicators, codes of levels. With --csv a
table is prepared once more from one CSV file, written before.

Memory is the highest sum over a program's processes of what each holds alone (USS), looked at ten times a second:
pages of mapped files, which the system can drop, do not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
OURS = """
import sys
from nn_train.config import load_config
from nn_train.preparation import prepare_data
data = prepare_data(load_config(words=sys.argv[1:]))
assert data.info["rows"]["train"]
"""
PANDAS = """
import sys
import numpy as np, pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer
frame = pd.concat([pd.read_parquet(name) for name in sys.argv[2:]], ignore_index=True)
target = frame.pop("late") == "yes"
hours = pd.to_datetime(frame.pop("time_hour"))
for part in ("year", "month", "day", "day_of_week", "hour"):
    frame[f"hour.{part}"] = getattr(hours.dt, part)
frame["hour.days"] = hours.astype("int64")
train, rest = train_test_split(np.arange(len(frame)), test_size=0.3, stratify=target, random_state=0)
numbers = [name for name in frame if pd.api.types.is_numeric_dtype(frame[name])]
levels = [name for name in frame if name not in numbers]
quantiles = QuantileTransformer(n_quantiles=1000, output_distribution="normal", subsample=10**9)
steps = ColumnTransformer([
    ("numbers", make_pipeline(quantiles, SimpleImputer(add_indicator=True)), numbers),
    ("levels", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, min_frequency=500), levels),
])
steps.fit(frame.iloc[train])
for name, rows in (("train", train), ("rest", rest)):
    np.save(f"{sys.argv[1]}/{name}.npy", steps.transform(frame.iloc[rows]).astype(np.float32))
"""


def watch(command: list[str]) -> tuple[float, float]:
    """Seconds that a program takes, and the highest sum of what its processes hold, in MB."""
    started_s = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(_held, _family(process.pid))))
        time.sleep(0.1)
    assert process.returncode == 0, command
    return time.perf_counter() - started_s, peak / 1e6


def _family(pid: int) -> list[psutil.Process]:
    try:
        own = psutil.Process(pid)
        return [own, *own.children(recursive=True)]
    except psutil.Error:
        return []


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().uss
    except psutil.Error:
        return 0


def shards_of(table: Path) -> list[Path]:
    """The files of a table, in their order."""
    return sorted(table.glob("part-*.parquet"))


def count_rows(shards: list[Path]) -> int:
    """Rows of some shards."""
    return sum(pq.read_metadata(shard).num_rows for shard in shards)


def write_csv(shards: list[Path], file: Path) -> Path:
    """All shards as one CSV file."""
    schema = pq.read_schema(shards[0]).remove_metadata()
    with pa_csv.CSVWriter(file, schema) as writer:
        for shard in shards:
            writer.write_table(pq.read_table(shard).replace_schema_metadata(None))
    return file


def measure(table: Path, cache: Path, *, num_rows: int) -> str:
    """A line of our preparation of a table, and of a second start."""
    words = [f"data.path={table}", "data.target=late", f"data.cache_dir={cache}", "data.preparation=stream"]
    seconds, held = watch([sys.executable, "-c", OURS, *words])
    again, _ = watch([sys.executable, "-c", OURS, *words])
    name = "ours" if table.is_dir() else "ours, one CSV file"
    return f"{name:24}{num_rows:>12,}{seconds:>9.1f}{num_rows / seconds:>10,.0f}{held:>8,.0f}{again:>10.1f}"


def main() -> None:
    """Print a line for each table, and one for pandas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE")
    parser.add_argument("--pandas", type=int, default=1, help="shards that pandas reads")
    parser.add_argument("--csv", action="store_true")
    arguments = parser.parse_args()
    print(f"{'':24}{'rows':>12}{'seconds':>9}{'rows/s':>10}{'MB':>8}{'again, s':>10}")
    with tempfile.TemporaryDirectory() as place:
        if arguments.pandas:
            shards = shards_of(arguments.tables[0])[: arguments.pandas]
            num_rows = count_rows(shards)
            seconds, held = watch([sys.executable, "-c", PANDAS, place, *map(str, shards)])
            print(f"{'pandas, scikit-learn':24}{num_rows:>12,}{seconds:>9.1f}{num_rows / seconds:>10,.0f}{held:>8,.0f}")
        for number, table in enumerate(arguments.tables):
            num_rows = count_rows(shards_of(table))
            print(measure(table, Path(place) / f"{number}", num_rows=num_rows), flush=True)
            if arguments.csv:
                file = write_csv(shards_of(table), Path(place) / f"{number}.csv")
                print(measure(file, Path(place) / f"{number}-csv", num_rows=num_rows), flush=True)


if __name__ == "__main__":
    main()
