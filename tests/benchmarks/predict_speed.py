"""Rows per second and peak memory of predict.py on tables of 1 and 10 million rows, against the bare forward.

python tests/benchmarks/predict_speed.py [ROWS ...]

The limit is the same network's forward over rows that are encoded and in memory, on one thread. The table is
data/telco.csv over and over, as Parquet.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from nn_train import load_bundle  # noqa: E402

TRAIN = [
    "tracking.mode=disabled",
    "report.baselines=false",
    "report.importance=false",
    "train.max_epochs=3",
    "model.name=mlp",
]
LIMIT_ROWS = 1_000_000
PREDICT = """
import resource, sys
sys.path.insert(0, sys.argv.pop(1))
from nn_train.predict import main
code = main(sys.argv[1:])
print("peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
sys.exit(code)
"""


def main() -> None:
    """Print the table."""
    sizes = [int(word) for word in sys.argv[1:]] or [1_000_000, 10_000_000]
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        train = [sys.executable, str(ROOT / "nn_train" / "train.py"), *TRAIN, f"run.dir={run}"]
        subprocess.run([*train, f"data.cache_dir={folder / 'cache'}"], check=True, stdout=subprocess.DEVNULL)
        source = pd.read_csv(ROOT / "data" / "telco.csv")
        print(f"{'rows':>12} {'rows/s':>10} {'of the limit':>13} {'peak MB':>8}")
        for size in sizes:
            table = folder / f"{size}.parquet"
            write_table(source, table, size)
            limit = forward_limit(run, source)
            words = ["--run", str(run), "--input", str(table), "--output", str(folder / "scores.parquet")]
            command = [sys.executable, "-c", PREDICT, str(ROOT), *words, "--summary", str(folder / "summary.json")]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            limit = (limit + forward_limit(run, source)) / 2  # before and after, on a machine that is not alone
            found = json.loads((folder / "summary.json").read_text())
            peak_mb = done.stdout.split()[-1]
            speed = found["rows_per_s"]
            print(f"{found['rows']:>12,} {speed:>10,.0f} {speed / limit:>13.2f} {peak_mb:>8}", flush=True)
            table.unlink()
        print(f"limit: {limit:,.0f} rows/s, {torch.get_num_threads()} thread, torch {torch.__version__}")


def write_table(source: pd.DataFrame, path: Path, num_rows: int) -> None:
    """`source` over and over, `num_rows` rows of it."""
    piece = pa.Table.from_pandas(source.drop(columns="churn"), preserve_index=False)
    with pq.ParquetWriter(path, piece.schema) as writer:
        left = num_rows
        while left > 0:
            writer.write_table(piece.slice(0, left))
            left -= len(piece)


def forward_limit(run: Path, source: pd.DataFrame) -> float:
    """Rows per second of the forward alone."""
    bundle = load_bundle(run)
    encoded = bundle.encode(source)
    bundle.logits(encoded)
    rounds = LIMIT_ROWS // len(source)
    started_s = time.perf_counter()
    for _ in range(rounds):
        bundle.logits(encoded)
    return rounds * len(source) / (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
