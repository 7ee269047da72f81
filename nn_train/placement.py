"""Where packed rows are kept while a run reads them: on the device, in memory, or on the disk."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Placement = Literal["device", "memory", "disk"]
SMALL_BYTES = 64 << 20  # on a CPU, up to here a copy of a process's own is faster, and costs nothing that counts
DEVICE_SHARE = 0.5  # of what is free on an accelerator: network, optimizer and activations need the rest
MEMORY_SHARE = 0.6  # of what is free in memory, where mapped files lie beside all else
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def choose_placement(
    setting: Literal["auto"] | Placement,
    *,
    num_bytes: int,
    device_type: str,
    free_on_device: Callable[[], int],
    free_in_memory: Callable[[], int] | None = None,
) -> Placement:
    """data.placement for packed rows of so many bytes.

    It changes no number of a run: where rows lie decides how fast they come, not which ones.
    """
    if setting != "auto":
        return setting
    if num_bytes <= (SMALL_BYTES if device_type == "cpu" else DEVICE_SHARE * free_on_device()):
        return "device"
    return "memory" if num_bytes <= MEMORY_SHARE * (free_in_memory or available_memory)() else "disk"


def available_memory() -> int:
    """Bytes that this process could still fill with data: what the machine has free, or less where a cgroup says so."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux counts what it could drop as available
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    return min([free, *_limits()])


def _limits() -> list[int]:
    """What cgroups allow this process, of versions 1 and 2: those of its own and of all above it."""
    found = [Path(name) for name in CGROUP_LIMITS]
    own = Path("/proc/self/cgroup")
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("/sys/fs/cgroup", "memory.max")
        )
        folder = Path(root + place)
        found += [above / name for above in (folder, *folder.parents) if str(above).startswith(root)]
    texts = [file.read_text(encoding="ascii").strip() for file in found if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]
