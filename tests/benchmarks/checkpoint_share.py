"""What share of a run do checkpoints cost, one a minute? Whole trainings on telco, with checkpoints and without.

    python tests/benchmarks/checkpoint_share.py [--seconds 20] [--turns 5] [section.key=value ...]

One a minute costs less than this machine's clock wanders in a minute. So a checkpoint is written every second, in every
other training of the same steps; the difference of the medians over the number of checkpoints is what one costs,
writing thread included, and over a minute it is the share. Evaluations are left out on both sides.
"""

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.timeline import read_events

ROOT = Path(__file__).resolve().parents[2]
MINUTE_S = 60.0


def train(folder: Path, words: list[str]) -> tuple[float, list[int]]:
    """Seconds of a training, and the sizes of its checkpoints in bytes."""
    engine = Engine(load_config(None, [*words, f"run.dir={folder}"]))
    engine.prepare()
    started_s = time.perf_counter()
    engine.train()
    seconds = time.perf_counter() - started_s
    engine.close()
    return seconds, [event["bytes"] for event in read_events(folder) if event["event"] == "checkpoint"]


def main() -> None:
    """Print what one costs, and its share of a minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="that a training takes, about")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    logging.getLogger("nn_train").addHandler(logging.NullHandler())
    words = [
        f"data.path={ROOT}/data/telco.csv",
        "data.target=churn",
        "tracking.mode=disabled",
        "train.max_epochs=100000",
    ]
    words += ["train.eval_every=100000000", "train.early_stopping=no", *arguments.words]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        words.append(f"data.cache_dir={place}/cache")
        often, never = "checkpoint.every_time=1", "checkpoint.every_time=no"
        tried, _ = train(place / "tried", [*words, never, "train.max_steps=50"])
        steps = max(50, round(50 * arguments.seconds / tried))
        seconds: dict[str, list[float]] = {often: [], never: []}
        counts, sizes = [], []
        for turn in range(arguments.turns):
            for every in (often, never) if turn % 2 else (never, often):
                taken, written = train(place / f"{turn}-{every}", [*words, every, f"train.max_steps={steps}"])
                seconds[every].append(taken)
                if every == often:
                    counts.append(len(written) - 1)  # both write one at their end
                    sizes += written
    cost = (statistics.median(seconds[often]) - statistics.median(seconds[never])) / statistics.median(counts)
    for every, values in seconds.items():
        print(f"{every:28}{statistics.median(values):8.2f} s   {' '.join(f'{value:.2f}' for value in values)}")
    print(f"{statistics.median(counts):.0f} checkpoints of {statistics.median(sizes) / 1e6:.2f} MB in {steps} steps")
    print(f"one costs {1000 * cost:.1f} ms, which is {100 * cost / MINUTE_S:.3f} % of a minute")


if __name__ == "__main__":
    main()
