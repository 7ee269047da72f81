"""One line of the preflight's table, what a run needs, and the words that reports are told in."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from launch.doctor_report import NodeReport

Level = Literal["ok", "warning", "FAILED"]
Reports = Sequence[NodeReport]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table; a cause and a mend where it is not ok."""

    check: str
    found: str
    level: Level = "ok"
    cause: str = ""
    mend: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a run will write, at the least."""

    size_bytes: int = 200_000_000
    inodes: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the nodes are judged by."""

    nodes: tuple[str, ...]
    gpus: int = 0
    """GPUs that each node needs at least."""
    processes: int | None = 1
    """Processes on each node; None: one per GPU."""
    need: Need = Need()
    seconds_left: float | None = None
    lead_s: float = 120.0
    port: int = 0
    tracking_mode: str = ""
    """wandb's mode; empty where nothing is known of it."""
    network_interface: str = ""
    run_dir: str = ""
    folder_error: str = ""
    """Why the run folder could not even be made."""


def group(reports: Iterable[NodeReport], value_of: Callable[[NodeReport], str]) -> dict[str, list[str]]:
    """Value -> the hosts that have it, the most common one first."""
    groups: dict[str, list[str]] = {}
    for report in reports:
        groups.setdefault(value_of(report), []).append(report.host)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def least(reports: Iterable[NodeReport], value_of: Callable[[NodeReport], int | None]) -> tuple[int, str] | None:
    """The least value that is known, and the host that has it."""
    return min(((value, r.host) for r in reports if (value := value_of(r)) is not None), default=None)


def tell_groups(groups: Mapping[str, Sequence[str]]) -> str:
    """Each value, and who has it."""
    return ", ".join(f"{value} on {tell_names(hosts)}" for value, hosts in groups.items())


def tell_hosts(reports: Reports) -> str:
    """The hosts of some reports."""
    return tell_names([report.host for report in reports])


def tell_names(hosts: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")


def tell_size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
