"""Two processes of one thread each beside one: rows per second, the share of communication, and what memory they map.

    python tests/benchmarks/two_processes.py [--steps 60] [--turns 3] data.path=FOLDER data.target=late [...]

Runs are started by torchrun in turns, at a global batch of 8192 unless a setting says otherwise. Rows per second are
those of the second half of a run's steps, by the clock of metrics.jsonl; phases are those of train.profile in a run of
its own. Two runs of one process each at the same time, which never meet, show what this machine's cores, caches and
memory give to two: no two that train together can be faster.
`mapped` sums, over the processes, the share of the packed files that each has in memory: `Rss` counts a page once for
every process that has it, `Pss` divides it among them. One copy for all is a Pss that does not grow with processes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
TRAIN = """
import sys
from nn_train.config import load_config
from nn_train.ending import leave
from nn_train.engine import Engine
from nn_train.runtime import leave_world
engine = Engine(load_config(None, sys.argv[1:]))
engine.prepare()
engine.train()
engine.close()
leave_world()
leave(0)
"""


def start(num_processes: int, place: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start so many processes on the CPU, of one thread each, that prepare and train; their errors are in a pipe."""
    script = place / "train.py"
    if not script.exists():
        script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, str(script), *words], env=environment, **quiet)


def train(num_processes: int, folder: Path, words: list[str], *, steps: int) -> dict[str, float]:
    """Rows per second of a run, and the most that its processes had mapped of packed files, in MB."""
    process = start(num_processes, folder.parent, [f"run.dir={folder}", *words])
    most = {"rss": 0.0, "pss": 0.0}
    while True:
        try:
            _, errors = process.communicate(timeout=1)
            break
        except subprocess.TimeoutExpired:
            found = mapped(process.pid)
            most = {name: max(most[name], found[name]) for name in most}
    if process.returncode:
        sys.exit(errors.decode())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["split"] == "train" and line["step"] > steps // 2]
    return most | {"rows": statistics.median(line["rows_per_s"] for line in logged)}


def mapped(pid: int) -> dict[str, float]:
    """What the processes below `pid` have in memory of packed files together, in MB."""
    total = {"rss": 0.0, "pss": 0.0}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            maps = process.memory_maps(grouped=True)
        except psutil.Error:
            continue
        for part in maps:
            if Path(part.path).name.startswith("train.") and part.path.endswith(".npy"):
                total["rss"] += part.rss / 1e6
                total["pss"] += part.pss / 1e6
    return total


def main() -> None:
    """Print a line for each number of processes, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("words", nargs="+")
    arguments = parser.parse_args()
    words = ["train.global_batch_size=8192", "model.name=mlp", "tracking.mode=disabled", "train.max_epochs=100000"]
    words += ["checkpoint.every_time=no", "train.eval_every=1000000"]
    words += [f"train.max_steps={arguments.steps}", "tracking.log_every_steps=5", *arguments.words]
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    apart: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        words.append(f"data.cache_dir={place}/cache")
        for turn in range(arguments.turns):
            for number in found:
                found[number].append(train(number, place / f"{number}-{turn}", words, steps=arguments.steps))
            with ThreadPoolExecutor(2) as pool:
                own = [place / f"apart-{turn}-{number}" for number in range(2)]
                both = pool.map(lambda folder: train(1, folder, words, steps=arguments.steps), own)
                apart.append(sum(one["rows"] for one in both))
        train(2, place / "profiled", [*words, "train.profile=true"], steps=arguments.steps)
        shares = json.loads((place / "profiled" / "profile.json").read_text())["shares"]
    print(f"{arguments.steps} steps, median of {arguments.turns} turns")
    speed = {number: statistics.median(turn["rows"] for turn in turns) for number, turns in found.items()}
    for number, turns in found.items():
        rss, pss = (max(turn[kind] for turn in turns) for kind in ("rss", "pss"))
        values = " ".join(f"{turn['rows']:,.0f}" for turn in turns)
        print(f"{number} processes {speed[number]:>12,.0f} rows/s   {values}")
        print(f"{'':11} packed rows in memory: Rss {rss:,.0f} MB, Pss {pss:,.0f} MB")
    alone = statistics.median(apart)
    print(f"2 that never meet {alone:>5,.0f} rows/s   {' '.join(f'{value:,.0f}' for value in apart)}")
    print(f"ratio {speed[2] / speed[1]:.2f}; of two that never meet {alone / speed[1]:.2f}")
    print("of a step of two: " + ", ".join(f"{phase} {100 * share:.1f} %" for phase, share in shares.items()))


if __name__ == "__main__":
    main()
