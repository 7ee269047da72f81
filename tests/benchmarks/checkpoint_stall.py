"""How long a checkpoint holds the training up, beside the write that it no longer waits for.

usage: python tests/benchmarks/checkpoint_stall.py [WIDTH ...]

For networks of several widths: the same state is copied and handed to the writing thread (what training pays now), and
written to the end (what it paid before), in turns. Prints medians and their ratio. The copy is timed with the thread
idle, as it is where checkpoints are further apart than a write takes.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nn_train.checkpoint import Checkpoint, cpu_copy
from nn_train.loop import TrainState
from nn_train.saving import Saver

TURNS = 7


def measure(width: int, folder: Path) -> tuple[int, float, float]:
    """Size of a checkpoint (bytes), seconds that training waits, and seconds until it is on the disk."""
    network = nn.Sequential(nn.Linear(100, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(8, 100)).sum().backward()
    optimizer.step()
    best = cpu_copy(network.state_dict())
    told: list[dict[str, float]] = []
    saver = Saver(
        folder, keep_last=2, max_age_s=None, check_owner=lambda: None, tell=lambda event, **values: told.append(values)
    )
    stalls, writes = [], []
    for step in range(1, TURNS + 1):
        started_s = time.perf_counter()
        saver.put(
            Checkpoint(
                state=TrainState(step=step),
                model=network.state_dict(),
                best=best,
                optimizer=dict(optimizer.state_dict()),
                extra={},
            )
        )
        stalls.append(time.perf_counter() - started_s)
        saver.finish()
        writes.append(time.perf_counter() - started_s)
    saver.close()
    return int(told[-1]["bytes"]), statistics.median(stalls), statistics.median(writes)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    print("| width | checkpoint MB | training waits ms | on the disk after ms | ratio |\n|---|---|---|---|---|")
    for width in [int(word) for word in sys.argv[1:]] or [64, 384, 1024, 2048]:
        with tempfile.TemporaryDirectory(prefix="stall") as folder:
            size, stall_s, write_s = measure(width, Path(folder))
        print(f"| {width} | {size / 1e6:.2f} | {stall_s * 1e3:.2f} | {write_s * 1e3:.1f} | {write_s / stall_s:.0f} |")


if __name__ == "__main__":
    main()
