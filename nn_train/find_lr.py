"""Script entry: look for a learning rate by a range test, and draw it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.config import load_config, refuse_foreign_code
from nn_train.ending import leave, option_parser, read_options, run_command, say
from nn_train.errors import ConfigError

LOW, HIGH, STEPS = 1e-6, 10.0, 200
LEAST_STEPS = 20
EXAMPLES = """examples:
  python -m nn_train.find_lr --config configs/telco.yaml
  python -m nn_train.find_lr data.path=my.csv data.target=y optim.name=sgd --output lr/

A training of its own, from first weights, in which the learning rate rises from step to step; it ends where the loss
explodes. find_lr.png and find_lr.csv go into the run folder, or into --output; no run is started or changed.
The suggestion is where the loss falls fastest: set it as optim.peak_lr."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Look for a learning rate as the command line says; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(parse_arguments(words)), interrupted="interrupted; nothing was written")


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist or is out of range."""
    parser = option_parser("python -m nn_train.find_lr", "Look for a learning rate: the loss while it rises.", EXAMPLES)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="section.key=value", help="settings, as of train.py")
    add("--config", metavar="FILE", help="the run's YAML (default: configs/telco.yaml)")
    add("--output", metavar="DIR", type=Path, help="folder of the picture and the table (default: the run folder)")
    add("--low", metavar="LR", type=_positive(float), default=LOW, help=f"first learning rate (default {LOW:g})")
    add("--high", metavar="LR", type=_positive(float), default=HIGH, help=f"last learning rate (default {HIGH:g})")
    add("--steps", metavar="N", type=_positive(int), default=STEPS, help=f"steps between them (default {STEPS})")
    options = read_options(parser, words, fix="--help shows the options; settings are section.key=value words")
    if options.low >= options.high or options.steps < LEAST_STEPS:
        raise ConfigError(
            f"there is no range to test from {options.low:g} to {options.high:g} in {options.steps} steps",
            fix=f"--low below --high, and --steps {LEAST_STEPS} or more",
        )
    return options


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


def _run(options: argparse.Namespace) -> int:
    refuse_foreign_code(options.config, options.overrides)
    config = load_config(options.config, options.overrides)
    from nn_train.eager_torch import put_off_compiler  # torch: not for --help and mistakes

    put_off_compiler()
    from nn_train.lr_range import find_lr

    output = None if options.output is None else options.output.expanduser()
    picture = find_lr(config, low=options.low, high=options.high, num_steps=options.steps, output=output)
    return say(str(picture))


if __name__ == "__main__":
    leave(main())
