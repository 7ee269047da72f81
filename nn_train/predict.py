"""Script entry: predict the rows of a table with a trained network, on one process or many."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.ending import DONE, leave, option_parser, read_options, run_command
from nn_train.errors import ConfigError
from nn_train.settings import READING_KEYS

ABOUT = "Predict the rows of a table with a trained network, on one process or many."
EXAMPLES = """examples:
  python nn_train/predict.py --run runs/telco --input new.csv --output scores.parquet
  python nn_train/predict.py --run runs/telco --input 'day/*.csv' --output scores.csv --keep name data.delimiter=';'
  accelerate launch --multi_gpu --num_processes 2 nn_train/predict.py --run runs/telco --input big/ --output out.parquet

The output holds, for each row in the table's order: its number, ids, the target where the table has it, the decision by
the run's threshold, and calibrated probabilities. It appears whole, or not at all."""


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist or is missing."""
    parser = option_parser("predict.py", ABOUT, EXAMPLES)
    parser.add_argument("--run", metavar="RUN", help="run folder, or a bundle.zip")
    parser.add_argument("--input", metavar="TABLE", help="file, folder or glob of tables, as data.path")
    parser.add_argument("--output", metavar="FILE", help="where to: .parquet, .csv or .jsonl")
    parser.add_argument("--keep", default="", metavar="A,B", help="columns of the table to keep beside the predictions")
    parser.add_argument("--summary", metavar="FILE", help="write counts and metrics as JSON as well")
    parser.add_argument(
        "--piece-rows", type=int, metavar="N", help="rows held at a time (default: 65536, fewer of wide tables)"
    )
    parser.add_argument("--allow-custom", action="store_true", help="import the code of a custom network")
    parser.add_argument(
        "reading", nargs="*", metavar="data.KEY=VALUE", help=f"how the table is read: {', '.join(READING_KEYS)}"
    )
    options = read_options(parser, words, required=("run", "input", "output"))
    if options.piece_rows is not None and options.piece_rows < 1:
        raise ConfigError(f"--piece-rows={options.piece_rows} is no number of rows", fix="--piece-rows=65536")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict what the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(parse_arguments(words)), interrupted="interrupted; nothing was written")


def _run(options: argparse.Namespace) -> int:
    from nn_train.runtime import leave_world  # torch: not for --help and mistakes
    from nn_train.table_prediction import predict_table

    try:
        predict_table(
            run=options.run,
            table=options.input,
            output=Path(options.output),
            reading=options.reading,
            keep=[name for name in options.keep.split(",") if name],
            summary=Path(options.summary) if options.summary else None,
            piece_rows=options.piece_rows,
            allow_custom=options.allow_custom,
        )
    finally:
        leave_world()
    return DONE


if __name__ == "__main__":
    leave(main())
