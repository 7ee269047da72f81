"""How a command ends: its exit code, and one message where something is the user's to mend. Imports no torch."""

import argparse
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from nn_train.errors import ConfigError, PassingError, UserError, error_from_os

# 75 is sysexits.h's EX_TEMPFAIL: saved, and to be gone on with; launchers start such a run again
DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 75


def run_command(work: Callable[[], int], *, debug: bool = False, interrupted: str = "interrupted") -> int:
    """The exit code of `work`; what is the user's to mend becomes a message, with a traceback under `debug`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a column's name must not end a command on an ASCII terminal
    try:
        return work()
    except UserError as error:
        return _fail(error, debug=debug)
    except BrokenPipeError:
        return FAILED
    except KeyboardInterrupt:
        return say(interrupted, code=FAILED)
    except OSError as error:
        return _fail(error_from_os(error), debug=debug)


def option_parser(
    prog: str,
    about: str,
    examples: str,
    *,
    formatter: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter,
) -> argparse.ArgumentParser:
    """A parser for `read_options`, whose --help ends with examples: it raises, and takes no shortened option."""
    return argparse.ArgumentParser(
        prog=prog,
        description=about,
        epilog=examples,
        formatter_class=formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def read_options(
    parser: argparse.ArgumentParser,
    words: Sequence[str],
    *,
    required: Sequence[str] = (),
    fix: str = "--help shows the options",
) -> argparse.Namespace:
    """Read a command line. Raises ConfigError for an option that does not exist, is missing, or has a wrong value."""
    try:
        options, unknown = parser.parse_known_intermixed_args(list(words))
    except argparse.ArgumentError as error:
        raise ConfigError(str(error), fix="--help shows the options") from None
    missing = [f"--{name}" for name in required if not getattr(options, name)]
    if unknown or missing:
        what = f"unknown option {unknown[0]}" if unknown else f"{', '.join(missing)} is missing"
        raise ConfigError(what, fix=fix)
    return options


def say(text: str, *, code: int = DONE) -> int:
    """Print a line from the main process; hands back the exit code."""
    if is_main():
        print(text, flush=True)  # noqa: T201 - this is the command line
    return code


def is_main() -> bool:
    """Is this process the one that speaks?"""
    return os.environ.get("RANK", "0") == "0"


def _fail(error: UserError, *, debug: bool) -> int:
    """One message, from the main process; the others give it the time to show it before a launcher ends all.

    Where none does, the mistake is this process's alone, and nobody else says what it was.
    """
    if debug:
        traceback.print_exception(error)
    else:
        time.sleep(0 if is_main() else 2)
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    return FAILED if isinstance(error, PassingError) else USER_ERROR


def leave(code: int) -> NoReturn:
    """End the process; of several that worked together at once, since everything is written and closed by now.

    gloo's threads sometimes abort the process while the interpreter is taken down (exit code -6, "terminate
    called without an active exception"), and a launcher would take a run that has saved for one that crashed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
