"""How well does an order in blocks shuffle? Nothing is trained: it is a matter of row numbers.

    python tests/benchmarks/shuffle_quality.py [--rows 2000000] [--batch 1024]

Tables in the worst orders: sorted by the target, and in runs of equal rows (the days of a log, say). Of each batch the
share of positive rows is taken, and its deviation over the batches is divided by that of rows drawn by chance: 1 is a
perfect shuffle, and much more is batches of like rows; less is batches that are more even than chance makes them.
`near` is the share of rows whose neighbour in the batch is one of the 1,000 nearest rows of the table.
"""

import argparse

import numpy as np

from nn_train.batch_plan import BatchPlan, plan_batches


def judge(plan: BatchPlan, positive: np.ndarray) -> tuple[float, float]:
    """The deviation of the batches' shares over that of chance, and the share of near neighbours."""
    steps = range(plan.num_rows // plan.global_batch_size)
    batches = [plan.rows(step) for step in steps]
    shares = np.array([positive[rows].mean() for rows in batches])
    p = positive.mean()
    chance = (p * (1 - p) / plan.global_batch_size) ** 0.5
    near = float(np.mean([np.mean(np.abs(np.diff(rows)) <= 1000) for rows in batches]))
    return float(shares.std() / chance), near


def main() -> None:
    """Print a line for each order and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=1024)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    num_rows = arguments.rows
    tables = {"sorted by the target": np.arange(num_rows) < 0.24 * num_rows}
    for length in (1000, 100_000):
        runs = rng.random(-(-num_rows // length)) < 0.24
        tables[f"in runs of {length:,} rows"] = np.repeat(runs, length)[:num_rows]
    orders = [("full", "auto", 262_144), *(("blocks", s, w) for s in (1, 8, 64) for w in (65_536, 262_144, 1_048_576))]
    print(
        f"{num_rows:,} rows, batch {arguments.batch}\n{'order':>28}"
        + "".join(f"{name:>28}" for name in tables)
        + "     near"
    )
    for shuffle, shards, window in orders:
        plan = plan_batches(
            num_rows=num_rows,
            num_bytes=0,
            global_batch_size=arguments.batch,
            seed=0,
            shuffle=shuffle,
            num_shards=shards,
            window_rows=window,
        )
        found = [judge(plan, positive) for positive in tables.values()]
        name = shuffle if shuffle == "full" else f"{shards} shards, window {window:,}"
        print(f"{name:>28}" + "".join(f"{ratio:>28.2f}" for ratio, _ in found) + f"{found[0][1]:>9.4f}", flush=True)


if __name__ == "__main__":
    main()
