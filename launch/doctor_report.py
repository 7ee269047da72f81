"""What a node is asked by the preflight, what it answers, and how the answer travels through srun's output.

A report goes out in lines `@doctor RANK TIME PART`, whose parts together are one JSON object. Loads no pydantic
unless a config is asked for: every node of every job imports this before it starts.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nn_train.errors import UserError

if TYPE_CHECKING:
    from nn_train.settings import Config

MARK = "@doctor"
PART_LENGTH = 700  # srun cuts longer lines in pieces, between which another node's may come
CODE = Path(__file__).resolve().parent.parent
TRAIN = str(CODE / "nn_train" / "train.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a node is asked to look at."""

    run_dir: str
    folder: str = ""
    """A folder in the run folder, there already, in which the nodes leave files for each other; none: they do not."""
    num_nodes: int = 1
    head_address: str = "127.0.0.1"
    head_name: str = ""
    port: int = 0
    """The port that the training's processes will meet at; 0: any."""
    tracking_mode: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What one node found; plain values."""

    rank: int
    host: str
    packages: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version, `python` among them; empty where it is missing."""
    code: str = ""
    code_path: str = ""
    gpus: int = 0
    """GPUs that a process would see, by the environment."""
    gpu_devices: int = 0
    """GPUs whose device files are there."""
    gpus_promised: int = 0
    """What Slurm says it gave."""
    cpus: int = 1
    cpus_promised: int = 0
    """What Slurm says it gave, no more than the host has."""
    folder_error: str = ""
    unseen: tuple[int, ...] = ()
    """Nodes whose files did not appear in the run folder."""
    file_system: str = ""
    free_bytes: int | None = None
    free_inodes: int | None = None
    temp_dir: str = ""
    temp_error: str = ""
    temp_free_bytes: int | None = None
    shm_bytes: int | None = None
    open_files: int = 0
    name_error: str = ""
    """Why names cannot be resolved here: the head's, or this host's own."""
    own_address: str = ""
    head_error: str | None = None
    """Why the head cannot be reached by TCP; None: not tried."""
    interfaces: tuple[str, ...] = ()
    is_port_free: bool | None = None
    free_port: int = 0
    """Another port that is free, on the head."""
    tracking_error: str | None = None
    """Why wandb's server cannot be reached; None: not tried."""
    clock_s: float = 0.0
    """How far this clock is before the reader's; filled in by the reader."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A report from its JSON values; those that this version does not know are left out, for code may differ."""
        names = {field.name for field in dataclasses.fields(cls)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        return cls(**known)


def patience_s(num_nodes: int) -> float:
    """How long a node waits for the others: they start later, and network file systems show files late."""
    return min(60.0, 8.0 + num_nodes / 4)


def config_of(script: str, words: Sequence[str]) -> "Config | None":
    """The config of an attempt of the project's own training; None for other scripts, or where it is wrong."""
    if script != TRAIN:
        return None
    from nn_train.train import parse_arguments, resolve_config  # half of this package's start, by pydantic

    try:
        return resolve_config(parse_arguments(list(words)))
    except UserError:
        return None


def split_parts(rank: int, values: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Lines that carry the values, each with the time at which it is asked for; without values the time alone."""
    text = json.dumps(values) if values is not None else ""
    for start in range(0, max(1, len(text)), PART_LENGTH):
        yield f"{MARK} {rank} {time.time():.4f} {text[start : start + PART_LENGTH]}\n"


def send(rank: int, values: Mapping[str, Any] | None = None) -> None:
    """Write the values to standard output; every line whole, whoever else writes there."""
    for line in split_parts(rank, values):
        os.write(1, line.encode())


@dataclasses.dataclass
class Collected:
    """What processes said within a limit: the JSON of each rank, how far its clock is before ours, all other lines."""

    reports: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    clocks: dict[int, float] = dataclasses.field(default_factory=dict)
    said: list[str] = dataclasses.field(default_factory=list)
    parts: dict[int, str] = dataclasses.field(default_factory=dict)

    def take(self, line: str, now_s: float) -> None:
        """Take one line in, that came at this time."""
        words = line.split(" ", 3)
        if len(words) != 4 or words[0] != MARK:
            self.said += [line.strip()] if line.strip() else []
            return
        rank, sent_s = int(words[1]), float(words[2])
        # every line comes late, by what its way took: the least late one says most of the clock
        self.clocks[rank] = max(self.clocks.get(rank, sent_s - now_s), sent_s - now_s)
        self.parts[rank] = self.parts.get(rank, "") + words[3]
        with contextlib.suppress(ValueError):  # more parts are to come
            self.reports[rank] = json.loads(self.parts[rank])

    def node_reports(self) -> list[NodeReport]:
        """The reports of nodes, in their order."""
        return [NodeReport.read(self.reports[rank] | {"clock_s": self.clocks[rank]}) for rank in sorted(self.reports)]


def collect(streams: Sequence[int], *, expected: int, limit_s: float) -> Collected:
    """Read lines from open files until all expected reports are there, all files end, or the limit is reached."""
    collected = Collected()
    buffers = dict.fromkeys(streams, b"")
    deadline_s = time.monotonic() + limit_s
    with selectors.PollSelector() as selector:  # epoll would refuse a plain file
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() and len(collected.reports) < expected:
            ready = selector.select(max(0.0, deadline_s - time.monotonic()))
            now_s = time.time()
            if not ready:
                break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fd)
                *lines, buffers[key.fd] = (buffers[key.fd] + (data or b"\n")).split(b"\n")
                for line in lines:
                    collected.take(line.decode(errors="replace"), now_s)
    return collected
