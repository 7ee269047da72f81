"""The command line: `python -m launch COMMAND ...`; each command is one function that takes its words."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from nn_train.errors import ConfigError, UserError, error_from_os

# command -> (the function that does it, what it does); imported when it is asked for, so that all answer at once
COMMANDS = {
    "run": ("launch.local:main", "launch on this machine, and again after a crash"),
    "submit": ("launch.submit:main", "queue on a Slurm cluster; code and config are frozen into the run folder"),
    "doctor": ("launch.doctor:main", "check this machine, or every node of a job, before the time is spent"),
    "ls": ("launch.look:ls", "runs in a folder: state, step, job"),
    "show": ("launch.look:show", "one run: its attempts, how each ended, its job"),
    "logs": ("launch.look:logs", "what the processes of a run say; -f follows"),
    "stop": ("launch.control:stop", "have a run save and end; a batch job is requeued and goes on later"),
    "cancel": ("launch.control:cancel", "have a run save and end for good"),
    "verify": ("launch.verify:main", "check the sums of a run's checkpoints"),
    "rehearse": ("launch.rehearse:main", "stop a run that trains and see it go on: what a preemption will cost"),
}
HELP = """\
usage: python -m launch COMMAND ...

Start a training on this machine or on a Slurm cluster, keep it going, and look after its runs.

{commands}

python -m launch COMMAND --help shows a command's options.

exit codes: 0 done; 2 your input or settings; 75 saved, and goes on; 93 given up: no progress twice in a row, or the
restarts are used up; 94 a newer attempt owns the run; 1 anything else
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items())))  # noqa: T201
        return 0
    try:
        return _find(words[0])(words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"error: {error_from_os(error)}", file=sys.stderr)  # noqa: T201
    except KeyboardInterrupt:
        return 130
    return 2


def _find(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise ConfigError(f"there is no command '{name}'; {hint}", fix="python -m launch --help")
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), function)


if __name__ == "__main__":
    sys.exit(main())
