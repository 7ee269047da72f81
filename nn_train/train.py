"""Script entry: words -> config -> Engine. Run it as a script, as a module, or under any launcher."""

import argparse
import gc
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.config import dump_config, load_config, parse_words
from nn_train.config_help import USAGE, help_text, schema_text
from nn_train.errors import ConfigError, PassingError, Stopped, UserError, error_from_os
from nn_train.settings import Config

# 75 is sysexits.h's EX_TEMPFAIL: saved, and to be gone on with; launchers start such a run again
DONE, FAILED, USER_ERROR, STOPPED = 0, 1, 2, 75
DEBUG_WORDS = ("data.max_rows=2000", "train.max_steps=30", "tracking.mode=disabled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a column's name must not end a training on an ASCII terminal
    debug = "--debug" in words
    try:
        options = parse_arguments(words)
        if options.help:
            return _say(help_text())
        if options.write_schema:
            Path(options.write_schema).write_text(schema_text(), encoding="utf-8")
            return DONE
        config = resolve_config(options)
        if options.print_config:
            return _say(dump_config(config))
        return _train(config, debug=debug)
    except UserError as error:
        return _fail(error, debug=debug)
    except BrokenPipeError:
        return FAILED
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", code=FAILED)
    except OSError as error:
        return _fail(error_from_os(error), debug=debug)


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for an option that does not exist."""
    parser = argparse.ArgumentParser(
        prog="train.py", usage=USAGE, add_help=False, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--config")
    parser.add_argument("--debug", action="store_true")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--write-schema")
    parser.add_argument("overrides", nargs="*")
    try:
        options, unknown = parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError(str(error), fix="--help shows the options") from None
    if unknown:
        raise ConfigError(
            f"unknown option {unknown[0]}", fix="--help shows the options; settings are section.key=value words"
        )
    return options


def resolve_config(options: argparse.Namespace) -> Config:
    """The config that the options name, checked. Raises ConfigError."""
    words = list(options.overrides)
    if options.debug:
        words += _debug_words(options)
    return load_config(options.config, words)


def _debug_words(options: argparse.Namespace) -> list[str]:
    """What --debug sets, where the user sets nothing."""
    given = parse_words(options.overrides)
    words = [
        word for word in DEBUG_WORDS if word.partition("=")[0].split(".")[1] not in given.get(word.split(".")[0], {})
    ]
    if not given.get("run", {}).keys() & {"name", "dir"}:
        # a folder of its own: only there may it replace what it finds
        words += [f"run.name={load_config(options.config, options.overrides).name}-debug", "checkpoint.resume=never"]
    return words


def _train(config: Config, *, debug: bool) -> int:
    gc.disable()  # of what these imports make nothing is garbage, and looking for some takes a fifth of their time
    from nn_train.engine import Engine
    from nn_train.runtime import leave_world

    gc.enable()
    try:
        Engine(config, debug=debug).run()
    except Stopped as stopped:
        return _say(str(stopped), code=STOPPED)
    finally:
        leave_world()
    return DONE


def _say(text: str, *, code: int = DONE) -> int:
    if _is_main():
        print(text)  # noqa: T201 - this is the command line
    return code


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _fail(error: UserError, *, debug: bool) -> int:
    """One message, from the main process; the others give it the time to show it before a launcher ends all."""
    if debug:
        traceback.print_exception(error)
    elif _is_main():
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    else:
        time.sleep(2)
    return FAILED if isinstance(error, PassingError) else USER_ERROR


def leave(code: int) -> NoReturn:
    """End the process; of several that trained together at once, since everything is written and closed by now.

    gloo's threads sometimes abort the process while the interpreter is taken down (exit code -6, "terminate
    called without an active exception"), and a launcher would take a run that has saved for one that crashed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
