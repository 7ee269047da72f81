"""The launcher's own options, the same for `run`, `submit` and a batch script: read and checked."""

import argparse
import dataclasses
import difflib
import re
import shlex
from collections.abc import Sequence
from typing import NoReturn

from launch.target import Target, resolve_target
from nn_train.errors import ConfigError
from nn_train.settings import SECONDS

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a script is launched; every default is what most people want."""

    script: str | None = None
    run_dir: str | None = None
    processes: int | None = None
    threads: int | None = None
    cpu: bool = False
    max_restarts: int = 10
    lead_s: float | None = None
    grace_s: float = 600.0
    stop_signal: str = ""
    network_interface: str = ""
    accelerate_options: tuple[str, ...] = ()
    preload: bool = True

    def words(self) -> list[str]:
        """The options as words that `read_options` reads back; those with their default are left out."""
        flags = {"accelerate_options": "--accelerate", "lead_s": "--lead", "grace_s": "--grace"}
        words: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = flags.get(field.name, f"--{field.name.replace('_', '-')}")
            if isinstance(value, tuple):
                value = shlex.join(value)
            if isinstance(value, float):
                value = f"{value:.6f}".rstrip("0").rstrip(".")
            words.append(f"--no-{field.name}" if value is False else flag if value is True else f"{flag}={value}")
        return words


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are this project's errors: one message, the mend, exit code 2."""

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """Read the words. The value of an option may not be `--`, which argparse before Python 3.13 takes away."""
        for word in args:
            if word.startswith("--") and word.endswith("=--"):
                self.error(f"{word} is no value")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            message += self._hint(unknown.split()[0])
        raise ConfigError(message, fix=f"{self.prog} --help shows the options")

    def _hint(self, word: str) -> str:
        if not word.startswith("-"):
            return "; words for the script go after a lone --" if "--script" in self._option_string_actions else ""
        near = difflib.get_close_matches(word.partition("=")[0], self._option_string_actions, n=1)
        return f"; did you mean '{near[0]}'?" if near else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every way to launch shares."""
    parser.add_argument("--script", metavar="FILE", help="any script that uses Accelerate (default: nn_train/train.py)")
    parser.add_argument("--run-dir", metavar="DIR", help="run folder (default: the config's run.dir, or runs/SCRIPT)")
    parser.add_argument(
        "--processes", type=count, metavar="N", help="processes on each node (default: one per GPU, else 1)"
    )
    parser.add_argument(
        "--threads", type=count, metavar="N", help="CPU threads of a process (default: CPUs shared out)"
    )
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--max-restarts", type=int, default=10, metavar="N", help="crashed attempts that are started again (10)"
    )
    parser.add_argument(
        "--lead",
        dest="lead_s",
        type=_seconds,
        metavar="T",
        help="stop this long before the end (default: 2m, at most a tenth)",
    )
    parser.add_argument(
        "--grace",
        dest="grace_s",
        type=_seconds,
        default=600.0,
        metavar="T",
        help="longest wait for an orderly end (10m)",
    )
    parser.add_argument(
        "--stop-signal",
        default="",
        choices=STOP_SIGNALS,
        help="signal that tells a script to stop (default: stop file alone)",
    )
    parser.add_argument("--network-interface", default="", metavar="NAME", help="interface for gloo and NCCL, as ib0")
    parser.add_argument(
        "--no-preload",
        dest="preload",
        action="store_false",
        help="each process imports for itself, on CPU nodes as well",
    )
    parser.add_argument(
        "--accelerate", dest="accelerate_options", type=_words, default=(), metavar="WORDS",
        help="more options for accelerate launch, as one word: --accelerate='--mixed_precision bf16'",
    )  # fmt: skip


def options_from(parsed: argparse.Namespace) -> Options:
    """The shared options of a parsed command line."""
    return Options(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Options)})


def read_options(words: Sequence[str], *, task: str | None = None) -> tuple[Options, Target]:
    """Read `[OPTIONS --] WORDS`: without `--` all are the script's words.

    Raises:
        UserError: an option or setting that does not exist or has no sense.
    """
    own, script_words = split_words(words)
    parser = Parser(prog="slurm/train.sh", add_help=False, allow_abbrev=False)
    add_options(parser)
    options = options_from(parser.parse_args(own))
    return options, resolve_target(script_words, script=options.script, run_dir=options.run_dir, task=task)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The launcher's words and the script's, on either side of `--`."""
    words = list(words)
    if "--" not in words:
        return [], words
    at = words.index("--")
    return words[:at], words[at + 1 :]


def count(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration: write 90, 90s, 10m or 2h")
    return float(parts[1]) * SECONDS[parts[2] or "s"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))
