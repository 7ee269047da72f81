"""One process of a small all-reduce between nodes: is the sum right, how late, how fast. Run in a process of its own.

    python -m launch.doctor_allreduce REQUEST        REQUEST: JSON, see `Meeting`

The one module of this package that imports torch. What it found goes to standard output as a node's report does.
"""

import dataclasses
import datetime
import json
import os
import signal
import socket
import statistics
import sys
import time
from typing import Any

from launch.doctor_report import send

SMALL_ROUNDS, LARGE_ROUNDS = 50, 5
LARGE_BYTES = 16 * 2**20
JOIN_S = 60  # until all are there: each imports torch, which takes long from a network file system
ROUND_S = 15  # for one all-reduce
HARD_LIMIT_S = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and how the processes meet."""

    address: str
    port: int
    world_size: int
    backend: str
    rank: int | None = None
    """None: srun says it."""
    network_interface: str = ""

    def own_rank(self) -> int:
        """This process's rank."""
        return int(os.environ["SLURM_PROCID"]) if self.rank is None else self.rank

    def own_gpu(self) -> int:
        """The index of this process's GPU on its node."""
        return int(os.environ["SLURM_LOCALID"]) if self.rank is None else self.rank


def reduce_numbers(meeting: Meeting, rank: int) -> dict[str, Any]:
    """Meet, add known numbers up, measure, part."""
    import torch
    import torch.distributed as dist
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    device = torch.device("cuda", meeting.own_gpu()) if meeting.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    patience = datetime.timedelta(seconds=JOIN_S)
    store = TCPStore(meeting.address, meeting.port, meeting.world_size, rank == 0, timeout=patience)
    # all are waited for here, so that the limit of the all-reduces can be short
    store.set(f"here-{rank}", "1")
    store.wait([f"here-{other}" for other in range(meeting.world_size)], patience)
    dist.init_process_group(
        meeting.backend,
        store=store,
        rank=rank,
        world_size=meeting.world_size,
        timeout=datetime.timedelta(seconds=ROUND_S),
    )
    try:
        small_s, is_small_right = _measure(torch.zeros(1, device=device), rank, meeting.world_size, SMALL_ROUNDS)
        large = torch.zeros(LARGE_BYTES // 4, device=device)
        large_s, is_large_right = _measure(large, rank, meeting.world_size, LARGE_ROUNDS)
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return {
        "is_right": is_small_right and is_large_right,
        "latency_s": small_s,
        "bytes_per_s": LARGE_BYTES / large_s,
        "gpus": torch.cuda.device_count(),
    }


def _measure(values: Any, rank: int, world_size: int, rounds: int) -> tuple[float, bool]:
    """Median time of an all-reduce in seconds, and whether every sum was right."""
    import torch
    import torch.distributed as dist

    expected = world_size * (world_size + 1) / 2  # of rank + 1 over all ranks; exact in float32
    times_s, is_right = [], True
    for index in range(rounds + 2):
        values.fill_(rank + 1)
        started_s = time.perf_counter()
        dist.all_reduce(values)
        if values.is_cuda:
            torch.cuda.synchronize()
        if index >= 2:  # the first ones set connections up
            times_s.append(time.perf_counter() - started_s)
        is_right &= bool((values == expected).all())
    return statistics.median(times_s), is_right


def main() -> int:
    """Take part, and say what was found."""
    signal.alarm(HARD_LIMIT_S)
    meeting = Meeting(**json.loads(sys.argv[1]))
    rank = meeting.own_rank()
    if meeting.network_interface:
        os.environ |= {name: meeting.network_interface for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
    found: dict[str, Any] = {"rank": rank, "host": socket.gethostname(), "backend": meeting.backend}
    try:
        found |= reduce_numbers(meeting, rank)
    except Exception as error:  # whatever torch or a driver raises is the finding
        lines = str(error).strip().splitlines() or [type(error).__name__]
        found["error"] = lines[0][:300]
    send(rank, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
