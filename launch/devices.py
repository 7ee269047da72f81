"""How many processes and CPU threads a machine should get, without the seconds that importing torch takes."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nn_train.errors import UserError

MOST_THREADS = 8  # by default, of one process: on small networks more of them wait for each other

_TRUE = {"1", "true", "yes", "y", "t", "on"}  # what Accelerate takes as true
_DEVICE_ID = re.compile(r"[0-9]+|(?:GPU|MIG)-.+")


@dataclass(frozen=True)
class Share:
    """How a machine is shared out.

    Attributes:
        processes: processes to start.
        threads: CPU threads of each.
        is_cpu: whether they compute on the CPU.
        reason: one line for people.
    """

    processes: int
    threads: int
    is_cpu: bool
    reason: str


def count_gpus(environment: Mapping[str, str], *, dev: Path = Path("/dev")) -> int:
    """Count the GPUs that a process with this environment would see, NVIDIA's or AMD's.

    A list of devices in the environment is taken at its word; without one the device files are counted.
    """
    if environment.get("ACCELERATE_USE_CPU", "").strip().lower() in _TRUE:
        return 0
    has_rocm = (dev / "kfd").exists()
    variables = ["CUDA_VISIBLE_DEVICES", *(["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"] if has_rocm else [])]
    lists = [environment[name] for name in variables if name in environment]
    if lists:
        return min(map(_count_listed, lists))  # each of them hides devices
    return _count_entries(dev, r"nvidia[0-9]+") or (_count_entries(dev / "dri", r"renderD[0-9]+") if has_rocm else 0)


def _count_listed(text: str) -> int:
    """Count as CUDA does: up to the first entry that is no device, so that `-1` and `NoDevFiles` are none."""
    devices: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not _DEVICE_ID.fullmatch(entry):
            break
        devices.append(entry)
    if len(set(devices)) < len(devices):
        return 0  # CUDA shows no device when one is named twice
    if any(device.startswith("MIG-") for device in devices):
        return 1  # a process sees only one MIG slice, however many are named
    return len(devices)


def _count_entries(folder: Path, pattern: str) -> int:
    try:
        return sum(bool(re.fullmatch(pattern, name)) for name in os.listdir(folder))
    except OSError:
        return 0


def count_cpus(*, root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: its affinity, bounded by the CPU quota of its control group.

    Args:
        root: where `proc` and `sys` are.
    """
    # macOS has no affinity
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # rounded down: a thread too many is stopped for the rest of each period, and the others wait for it
    return max(1, min([allowed, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas, in CPUs, of this process's control groups and those above them, which bound it as well."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers  # version 2 has no controllers in this line
        inner = Path(group.lstrip("/"))
        for folder in (inner, *inner.parents):  # in a container the inner ones may be missing: it sees its own as "/"
            yield from _quota(mount / folder)


def _quota(folder: Path) -> Iterator[float]:
    fields = _read(folder / "cpu.max").split() or [
        *_read(folder / "cpu.cfs_quota_us").split(),
        *_read(folder / "cpu.cfs_period_us").split(),
    ]
    if len(fields) == 2 and all(field.isdigit() for field in fields):  # without a quota: "max", or -1 in version 1
        quota, period = map(int, fields)
        if period:
            yield quota / period


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""


def share_machine(*, processes: int | None, threads: int | None, gpus: int, cpus: int) -> Share:
    """Share a machine out: a process for each GPU; without GPUs one, since small networks gain nothing from more.

    Args:
        processes: as asked for; None chooses.
        threads: of each process, as asked for; None chooses so that all together are no more than the CPUs.
        gpus: GPUs here.
        cpus: CPUs here.

    Raises:
        UserError: if what is asked for is impossible here.
    """
    for name, value in (("processes", processes), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{value} {name} were asked for", where="this machine", fix=f"ask for at least 1 of {name}")
    if gpus and processes and processes > gpus:
        raise UserError(
            f"{processes} processes were asked for, and each needs a GPU of its own: {_count(gpus, 'GPU')} here",
            where="this machine",
            fix=f"ask for at most {gpus}, or compute on the CPU: --cpu, or ACCELERATE_USE_CPU=true",
        )
    processes = processes or gpus or 1
    threads = threads or max(1, min(cpus // processes, MOST_THREADS))
    return Share(processes, threads, is_cpu=not gpus, reason=_explain(processes, threads, gpus, cpus))


def _explain(processes: int, threads: int, gpus: int, cpus: int) -> str:
    reason = f"{_count(processes, 'process')} x {_count(threads, 'thread')}: {_count(cpus, 'CPU')}, "
    reason += _count(gpus, "GPU") if gpus else "no GPU"
    if gpus > processes:
        reason += f" ({gpus - processes} unused)"
    if processes * threads > cpus:
        reason += f"; more {'processes' if processes > cpus else 'threads'} than CPUs, so they take turns"
    return reason


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
