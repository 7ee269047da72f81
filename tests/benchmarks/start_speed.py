"""How soon a run on a table that is packed already makes its first step, and how soon a mistake is told.

    python tests/benchmarks/start_speed.py [--turns 5] [section.key=value ...]

Programs are started in turns by `accelerate launch` as two processes on the CPU, one thread each; the median counts.
  empty     a script without a line, to its end
  torch     a script that imports torch, until that is done
  reduce    a script that makes an Accelerator and sums one number over the processes, until the sum is there
  step      a script that has Accelerate prepare a linear layer and AdamW, and makes one step: the least that trains
  train     this project on telco, until the first optimizer step is in metrics.jsonl
and by themselves, to their end:
  mistakes  `python nn_train/train.py` with a mistyped setting, a number out of range and a table that is not there
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"{ROOT}/configs/accelerate/cpu_2.yaml"]
TRAIN = str(ROOT / "nn_train" / "train.py")
IMPORT = """
import pathlib, sys, torch
pathlib.Path(sys.argv[1]).write_text("done")
"""
REDUCE = """
import pathlib, sys, torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
assert accelerator.reduce(torch.ones(1)).item() == 2
if accelerator.is_main_process:
    pathlib.Path(sys.argv[1]).write_text("done")
accelerator.end_training()
"""
STEP = """
import pathlib, sys, torch
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
layer = torch.nn.Linear(8, 1)
layer, optimizer = accelerator.prepare(layer, torch.optim.AdamW(layer.parameters()))
accelerator.backward(layer(torch.ones(4, 8)).sum())
optimizer.step()
if accelerator.is_main_process:
    pathlib.Path(sys.argv[1]).write_text("done")
accelerator.end_training()
"""
SCRIPTS = {"torch": IMPORT, "reduce": REDUCE, "step": STEP}
MISTAKES = {
    "mistyped setting": ["train.max_epoch=3"],
    "number out of range": ["train.max_epochs=-3"],
    "no such table": ["data.path=no/such.csv"],
}


def until(command: list[str], is_there: Callable[[], bool] | None = None) -> float:
    """Seconds from the start of a program to its end, or until something is there; then it is waited for."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # with it, every start would compile this project anew
    started_s = time.perf_counter()
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        while process.poll() is None and not (is_there and is_there()):
            time.sleep(0.005)
        took_s = time.perf_counter() - started_s
        if is_there and not is_there():
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} before its time")
        process.wait(timeout=120)
        return took_s
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def holds_text(file: Path) -> Callable[[], bool]:
    """Tells whether something is written to a file."""
    return lambda: file.exists() and file.stat().st_size > 0


def main() -> None:
    """Print a line for each program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.py").touch()
        for what, text in SCRIPTS.items():
            (folder / f"start_{what}.py").write_text(text)  # `torch.py` would be imported in place of torch
        words = [f"data.path={ROOT}/data/telco.csv", "data.target=churn", f"data.cache_dir={folder}/cache"]
        words += ["train.max_steps=1", "tracking.log_every_steps=1", "tracking.mode=disabled", *arguments.words]
        for turn in range(arguments.turns + 1):
            run = folder / f"run-{turn}"
            found = {"empty": until([*LAUNCH, str(folder / "empty.py")])}
            for what in SCRIPTS:
                done = folder / f"{what}-{turn}"
                found[what] = until([*LAUNCH, str(folder / f"start_{what}.py"), str(done)], holds_text(done))
            found["train"] = until([*LAUNCH, TRAIN, *words, f"run.dir={run}"], holds_text(run / "metrics.jsonl"))
            found |= {what: until([sys.executable, TRAIN, word]) for what, [word] in MISTAKES.items()}
            if turn:  # the first one packs the table, and reads programs from the disk
                for what, value in found.items():
                    seconds.setdefault(what, []).append(value)
    median = {what: statistics.median(values) for what, values in seconds.items()}
    print(f"{os.cpu_count()} CPU cores, median of {arguments.turns} turns")
    for what, values in seconds.items():
        print(f"{what:20}{median[what]:7.2f} s   {' '.join(f'{value:.2f}' for value in values)}")
    for other in ("empty", *SCRIPTS):
        print(f"train / {other:12}{median['train'] / median[other]:7.2f}")


if __name__ == "__main__":
    main()
