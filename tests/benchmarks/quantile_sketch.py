"""Quantiles of a large column: an even sample of rows, as this project keeps, beside KLL sketches of `datasketches`.

    pip install -e '.[bench]'
    python tests/benchmarks/quantile_sketch.py [--rows 10000000] [--columns 8] [--repeats 5]

Rows come in pieces and in 20 parts, each with a sketch or sample of its own, which are then merged. The 1,000 quantiles
that a scaler is fitted on are asked for; `off` is by how much of all rows the worst of them lies beside its true rank,
the mean over columns and repeats. `ns` are per value, `bytes` per column.
"""

import argparse
import time

import datasketches
import numpy as np

from nn_train.survey import SAMPLE_ROWS

PIECE_ROWS = 1 << 16
NUM_PARTS = 20
LEVELS = np.linspace(0.0005, 0.9995, 1000)


def off(found: np.ndarray, ordered: np.ndarray) -> float:
    """The largest distance in rank, as a share of the rows, between LEVELS and where the quantiles found lie."""
    low, high = (np.searchsorted(ordered, found, side=side) / len(ordered) for side in ("left", "right"))
    return float(np.maximum(np.maximum(low - LEVELS, LEVELS - high), 0).max())


def by_sample(table: np.ndarray, chances: np.ndarray, num_rows: int) -> tuple[np.ndarray, int]:
    """Quantiles (columns, levels) from the rows with the smallest chances, and the bytes that are kept of a column."""
    parts = []
    for part in np.array_split(np.arange(len(table)), NUM_PARTS):
        kept, kept_chances = table[:0], chances[:0]
        for start in range(part[0], part[-1] + 1, PIECE_ROWS):
            piece = slice(start, min(start + PIECE_ROWS, part[-1] + 1))
            kept, kept_chances = thin(
                np.concatenate([kept, table[piece]]), np.concatenate([kept_chances, chances[piece]]), num_rows
            )
        parts.append((kept, kept_chances))
    rows, _ = thin(*(np.concatenate(columns) for columns in zip(*parts, strict=True)), num_rows)
    return np.quantile(rows, LEVELS, axis=0).T, rows[:, 0].nbytes


def thin(rows: np.ndarray, chances: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows with the smallest chances."""
    if len(rows) <= num_rows:
        return rows, chances
    kept = np.argpartition(chances, num_rows)[:num_rows]
    return rows[kept], chances[kept]


def by_kll(table: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Quantiles (columns, levels) from KLL sketches, and the bytes of one."""
    found, size = [], 0
    for column in table.T:
        whole = datasketches.kll_doubles_sketch(k)
        for part in np.array_split(column, NUM_PARTS):
            sketch = datasketches.kll_doubles_sketch(k)
            for start in range(0, len(part), PIECE_ROWS):
                sketch.update(part[start : start + PIECE_ROWS])
            whole.merge(sketch)
        found.append(whole.get_quantiles(LEVELS))
        size = len(whole.serialize())
    return np.array(found), size


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    ways = {f"sample of {SAMPLE_ROWS[0]:,}": lambda table, chances: by_sample(table, chances, SAMPLE_ROWS[0])}
    for k in (200, 1000, 4000):
        ways[f"KLL, k={k}"] = lambda table, chances, k=k: by_kll(table, k)
    found: dict[str, list[tuple[float, float, int]]] = {way: [] for way in ways}
    for seed in range(arguments.repeats):
        draw = np.random.default_rng(seed)
        table = draw.lognormal(size=(arguments.rows, arguments.columns))
        ordered = np.sort(table, axis=0)
        chances = draw.random(len(table))  # in a run the hashes of the rows, which are there for the split
        for way, find in ways.items():
            started_s = time.perf_counter()
            quantiles, size = find(table, chances)
            ns = 1e9 * (time.perf_counter() - started_s) / table.size
            worst = np.mean([off(mine, truth) for mine, truth in zip(quantiles, ordered.T, strict=True)])
            found[way].append((float(worst), ns, size))
    print(f"{arguments.rows:,} rows, {arguments.columns} columns, mean of {arguments.repeats} repeats")
    print(f"{'':22}{'off':>10}{'ns':>8}{'bytes':>12}")
    for way, turns in found.items():
        worst, ns, size = (float(np.mean(values)) for values in zip(*turns, strict=True))
        print(f"{way:22}{100 * worst:>8.3f} %{ns:>8.1f}{size:>12,.0f}")


if __name__ == "__main__":
    main()
