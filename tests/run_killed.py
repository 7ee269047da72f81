"""One training that is killed again and again and started again, each time in a forked process.

usage: run_killed.py KILLS words..., where KILLS is a JSON list of ["step", n] (right after step n)
or ["write", n, k] (in the checkpoint of step n or later, before its k-th file is written; beyond the
last file: before the folder gets its name). Every attempt after the last kill runs to the end.
"""

import json
import os
import signal
import sys
from pathlib import Path

from nn_train import checkpoint, loop
from nn_train.config import load_config
from nn_train.engine import Engine


def die() -> None:
    """End as a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_after_step(step: int) -> None:
    """Arm the loop."""
    update = loop.Trainer._update

    def armed(self: loop.Trainer, at: int) -> object:
        result = update(self, at)
        return die() if at + 1 >= step else result

    loop.Trainer._update = armed  # type: ignore[method-assign, assignment]


def kill_in_write(step: int, file: int) -> None:
    """Arm the checkpoint writer."""
    write_checkpoint, write_file, replace = checkpoint.write_checkpoint, checkpoint.write_file, os.replace
    files = 0

    def armed_file(path: Path, content: bytes | str) -> None:
        nonlocal files
        files += 1
        if files == file:
            half = content[: len(content) // 2]
            path.write_bytes(half if isinstance(half, bytes) else half.encode())
            die()
        write_file(path, content)

    def armed_replace(source: Path, target: Path) -> None:
        if Path(target).name.startswith("step-"):
            die()
        replace(source, target)

    def armed(folder: Path, content: dict[str, bytes], **options: int) -> Path:
        if options["step"] >= step:
            checkpoint.write_file = armed_file
            os.replace = armed_replace  # type: ignore[assignment]
        return write_checkpoint(folder, content, **options)  # type: ignore[arg-type]

    import nn_train.training

    nn_train.training.write_checkpoint = armed  # type: ignore[assignment]


def attempt(words: list[str], kill: list | None) -> None:
    """One process of the training."""
    if kill is not None:
        {"step": kill_after_step, "write": kill_in_write}[kill[0]](*kill[1:])
    engine = Engine(load_config(None, words))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()


if __name__ == "__main__":
    for planned in [*json.loads(sys.argv[1]), None]:
        child = os.fork()
        if child == 0:
            try:
                attempt(sys.argv[2:], planned)
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(planned, "->", os.waitstatus_to_exitcode(status), flush=True)
        if planned is not None and os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"the kill {planned} never came")
        if planned is None:
            sys.exit(os.waitstatus_to_exitcode(status))
