"""What one node finds out about itself before a training: versions, code, devices, folders, limits. Imports no torch.

    python -m launch.doctor_node PLAN        PLAN: path of an attempt's plan, or a request as JSON

One process on each node, under srun or alone. It judges nothing: what it found goes to standard output
(see `launch.doctor_report`). Every wait has an end.
"""

import contextlib
import dataclasses
import json
import os
import platform
import re
import resource
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.devices import count_cpus, count_gpus
from launch.doctor_meet import describe, meet, resolve, try_connect
from launch.doctor_report import CODE, TRAIN, NodeReport, Request, config_of, patience_s, send
from launch.freeze import digest_tree
from launch.place import choose_port, is_port_free
from nn_train.errors import UserError

HARD_LIMIT_S = 90  # the system ends the process then, whatever it waits for
PACKAGES = ("torch", "accelerate", "datasets", "pandas", "numpy", "scikit-learn", "wandb")


def examine(request: Request, *, rank: int, environment: Mapping[str, str]) -> NodeReport:
    """Look at everything here."""
    deadline_s = time.monotonic() + patience_s(request.num_nodes)
    return NodeReport(
        rank=rank,
        host=socket.gethostname(),
        packages=find_versions(),
        code=f"{digest_tree(CODE / 'nn_train')[:12]} {digest_tree(CODE / 'launch')[:12]}",
        code_path=str(CODE),
        gpus=count_gpus(environment),
        gpu_devices=count_gpus({}),
        gpus_promised=_promised(environment, "GPUS"),
        cpus=count_cpus(),
        cpus_promised=min(_promised(environment, "CPUS"), os.cpu_count() or 1),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        interfaces=tuple(name for _, name in socket.if_nameindex()),
        **_look_at_folders(Path(request.run_dir)),
        **_look_at_names(request),
        **(_look_from_head(request, environment) if rank == 0 else {}),
        **meet(request, rank=rank, deadline_s=deadline_s),
    )


def find_versions() -> dict[str, str]:
    """Versions of Python and of the libraries, from what is installed and not by importing it.

    The names of the folders that pip leaves beside each package say them; `importlib.metadata` is asked only for
    what has none, for loading it takes longer than all else here.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        with contextlib.suppress(OSError):
            for name in os.listdir(place or "."):
                parts = re.fullmatch(r"(.+?)-(.+)\.dist-info", name)
                if parts:  # of two the first one is imported
                    found.setdefault(parts[1].lower().replace("_", "-"), parts[2])
    versions = {name: found.get(name) or _ask_metadata(name) for name in PACKAGES}
    return {"python": platform.python_version(), **versions}


def _ask_metadata(package: str) -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _promised(environment: Mapping[str, str], what: str) -> int:
    given = environment.get(f"SLURM_{what}_ON_NODE", "")
    return int(given) if given.isdigit() and "SLURM_JOB_ID" in environment else 0


def _look_at_folders(run_dir: Path) -> dict[str, Any]:
    temp_dir = tempfile.gettempdir()
    free_bytes, free_inodes = free_space(run_dir)
    return {
        "file_system": file_system(run_dir),
        "free_bytes": free_bytes,
        "free_inodes": free_inodes,
        "temp_dir": temp_dir,
        "temp_error": _try_file(temp_dir),
        "temp_free_bytes": free_space(Path(temp_dir))[0],
        "shm_bytes": _total_bytes(Path("/dev/shm")),
    }


def free_space(folder: Path) -> tuple[int | None, int | None]:
    """Free bytes and inodes of a folder's file system, or of the nearest one above it that exists; None: unknown."""
    try:
        found = os.statvfs(_nearest(folder))
    except OSError:
        return None, None
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None  # some have no inodes to count


def _nearest(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))


def _total_bytes(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize


def file_system(folder: Path) -> str:
    """The type of a folder's file system, as `nfs4`; empty where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        place = _nearest(folder).resolve()
    except OSError:
        return ""
    around = [(len(mount[1]), mount[2]) for mount in mounts if place.is_relative_to(mount[1].replace("\\040", " "))]
    # of several mounts at one place the last one covers the others
    longest = max((length for length, _ in around), default=0)
    return next((kind for length, kind in reversed(around) if length == longest), "")


def _try_file(folder: str) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"doctor")
    except OSError as error:
        return describe(error)
    return ""


def _look_at_names(request: Request) -> dict[str, Any]:
    address, error = resolve(socket.gethostname())
    if not error and request.head_name and request.num_nodes > 1:
        error = resolve(request.head_name)[1]
    return {"own_address": address, "name_error": error}


def _look_from_head(request: Request, environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(UserError):
        found["free_port"] = choose_port(os.getpid(), attempt=1)
    if request.port:
        found["is_port_free"] = is_port_free(request.port)
    if request.tracking_mode == "online":
        found["tracking_error"] = try_tracking(environment)
    return found


def try_tracking(environment: Mapping[str, str]) -> str:
    """Why wandb's server (or the proxy on the way to it) cannot be reached; empty if it can."""
    server = environment.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    address = environment.get("HTTPS_PROXY") or environment.get("https_proxy") or server
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        return f"'{address}' is no address"
    error = try_connect(host, port)
    return f"{host}:{port}: {error}" if error else ""


def read_request(word: str, *, rank: int) -> Request:
    """The request that the command line holds, or that of the attempt whose plan it names.

    The plan is read here as the JSON that it is: `launch.plan` loads pydantic, which takes as long as all of this.

    Raises:
        UserError: the plan cannot be read.
    """
    if word.startswith("{"):
        return Request(**json.loads(word))
    try:
        plan = json.loads(Path(word).read_text(encoding="utf-8"))
        script, words = plan["script"], plan["words"]
        request = Request(
            run_dir=plan["run_dir"],
            folder=f"{plan['run_dir']}/logs/attempt-{plan['attempt']:04d}",  # as `Plan.log_dir`
            num_nodes=len(plan["nodes"]),
            head_address=plan["head_address"],
            head_name=plan["nodes"][0],
            port=plan["port"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"this is not the plan of an attempt: {error}", where=word) from None
    if rank == 0 and script == TRAIN and may_be_online(words):  # only the head looks for wandb's server
        config = config_of(script, words)
        return dataclasses.replace(request, tracking_mode=config.tracking.mode) if config else request
    return request


def may_be_online(words: Sequence[str]) -> bool:
    """Could tracking.mode be online, which is not its default? Then a word says so, or a file that one names."""
    names = [word.removeprefix("--config=") for word in words]
    if not any(word.startswith("--config") for word in words):
        names.append("configs/telco.yaml")
    texts = list(words)
    for file in (folder / name for name in names for folder in (Path.cwd(), CODE)):
        with contextlib.suppress(OSError, ValueError):  # most words are no files
            texts.append(file.read_text(encoding="utf-8"))
    return any("online" in text for text in texts)


def main() -> int:
    """Examine this node and say what was found."""
    signal.alarm(HARD_LIMIT_S)
    rank = int(os.environ.get("SLURM_PROCID", "0")) if "SLURM_STEP_ID" in os.environ else 0
    send(rank)  # early: the time it carries is the less late
    send(rank, dataclasses.asdict(_report(sys.argv[1], rank)))
    return 0


def _report(word: str, rank: int) -> NodeReport:
    """What is found here; a plan that is not in sight is itself a finding."""
    try:
        return examine(read_request(word, rank=rank), rank=rank, environment=os.environ)
    except UserError as error:
        report = examine(Request(run_dir=str(Path(word).parent.parent)), rank=rank, environment=os.environ)
        return dataclasses.replace(report, folder_error=f"does not show the plan: {error.what}")


if __name__ == "__main__":
    sys.exit(main())
