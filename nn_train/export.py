"""Script entry: write a trained network, with its preprocessing, for programs that have none of this project."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.ending import leave, option_parser, read_options, run_command, say
from nn_train.errors import ConfigError

FORMATS = {".onnx": "onnx", ".pt2": "torch"}
ABOUT = "Write a trained network, with its preprocessing, as one file for other programs."
EXAMPLES = """examples:
  python -m nn_train.export --run runs/telco --output model.onnx
  python -m nn_train.export --run runs/telco/bundle.zip --output model.pt2

Raw columns go in by their names, any number of rows at a time: numbers (NaN is missing), dates (microseconds since 1970
in UTC; the least int64 is missing), categories and yes/no as text ("" is missing). Out come probabilities and the
decision by the run's threshold, or values in the target's unit. A .pt2 takes codes in place of texts."""


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist, is missing or fits no format."""
    parser = option_parser("python -m nn_train.export", ABOUT, EXAMPLES)
    parser.add_argument("--run", metavar="RUN", help="run folder, or a bundle.zip")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where to: .onnx or .pt2")
    parser.add_argument("--format", choices=list(FORMATS.values()), help="default: by the ending of the file")
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="write without comparing it with the bundle on the run's test rows and on made ones (1e-5)",
    )
    parser.add_argument("--allow-custom", action="store_true", help="import the code of a custom network")
    options = read_options(parser, words, required=("run", "output"))
    options.format = options.format or FORMATS.get(options.output.suffix.lower())
    if options.format is None:
        raise ConfigError(
            f"'{options.output.suffix}' is the ending of no format",
            where=str(options.output),
            fix="--output FILE.onnx or FILE.pt2, or --format onnx",
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Export what the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(parse_arguments(words)), interrupted="interrupted; nothing was written")


def _run(options: argparse.Namespace) -> int:
    from nn_train.export_file import export_run  # torch: not for --help and mistakes

    return say(
        export_run(
            options.run, options.output, form=options.format, check=options.check, allow_custom=options.allow_custom
        )
    )


if __name__ == "__main__":
    leave(main())
