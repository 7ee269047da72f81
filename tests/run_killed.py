"""One training that meets a fault in each attempt and is started again, each time in a forked process.

usage: run_killed.py FAULTS words..., where FAULTS is a JSON list of faults as nn_train/faults.py reads them, each of
which kills. Every attempt after the last one runs to the end.
"""

import json
import os
import signal
import sys

from nn_train import faults
from nn_train.config import load_config
from nn_train.engine import Engine


def attempt(words: list[str], fault: str) -> None:
    """One process of the training."""
    os.environ[faults.VARIABLE] = fault
    engine = Engine(load_config(None, words))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()


if __name__ == "__main__":
    for planned in [*json.loads(sys.argv[1]), ""]:
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
        if planned and os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(f"the fault {planned} never came")
        if not planned:
            sys.exit(os.waitstatus_to_exitcode(status))
