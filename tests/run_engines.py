"""Several runs one after another in one world of processes; started by the tests under torch's agent.

usage: run_engines.py FILE, where FILE holds a JSON list of lists of `section.key=value` words.
"""

import json
import sys
from pathlib import Path

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.runtime import leave_world
from nn_train.train import leave

if __name__ == "__main__":
    for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        engine = Engine(load_config(None, words))
        engine.prepare()
        engine.train()
        engine.evaluate()
        engine.close()
    leave_world()
    leave(0)
