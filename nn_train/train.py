"""Script entry: words -> config -> Engine. Run it as a script, as a module, or under any launcher."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a script: the project's root comes first, in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from nn_train.config import dump_config, load_config, parse_words, refuse_foreign_code
from nn_train.config_help import USAGE, help_text, schema_text
from nn_train.ending import DONE, STOPPED, leave, read_options, run_command, say
from nn_train.errors import Stopped
from nn_train.pulse import pulse
from nn_train.settings import Config

DEBUG_WORDS = ("data.max_rows=2000", "train.max_steps=30", "tracking.mode=disabled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(
        lambda: _run(words),
        debug="--debug" in words,
        interrupted="interrupted; the same command goes on from the last checkpoint",
    )


def _run(words: list[str]) -> int:
    options = parse_arguments(words)
    if options.help:
        return say(help_text())
    if options.write_schema:
        Path(options.write_schema).write_text(schema_text(), encoding="utf-8")
        return DONE
    config = resolve_config(options)
    if options.print_config:
        return say(dump_config(config))
    return _train(config, debug=options.debug)


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
    return read_options(parser, words, fix="--help shows the options; settings are section.key=value words")


def resolve_config(options: argparse.Namespace) -> Config:
    """The config that the options name, checked. Raises ConfigError."""
    words = list(options.overrides)
    refuse_foreign_code(options.config, words)
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
    if os.environ.get("WORLD_SIZE", "1") == "1":  # several processes tell of a mistake together, once they have met
        from nn_train.table_files import find_files, input_paths

        for key, path in input_paths(config):
            find_files(path, key=key)  # before torch is imported
    gc.disable()  # of what these imports make nothing is garbage, and looking for some takes a fifth of their time
    from nn_train.eager_torch import put_off_compiler

    if not config.train.compile:
        put_off_compiler()
    from nn_train.engine import Engine
    from nn_train.runtime import leave_world

    gc.freeze()  # nor will any of it be garbage later
    gc.enable()
    assert config.watchdog.floor is not None
    pulse.start(config.run_dir, floor_s=config.watchdog.floor, cap_s=config.watchdog.cap)
    try:
        Engine(config, debug=debug).run()
    except Stopped as stopped:
        return say(str(stopped), code=STOPPED)
    finally:
        leave_world()
        pulse.stop()
    return DONE


if __name__ == "__main__":
    leave(main())
