"""The nodes of a job look for each other: by files in the run folder, by TCP at the head's door. Every wait ends."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.doctor_report import Request
from launch.place import choose_port
from nn_train.errors import UserError

CONNECT_S = 2.0
POLL_S = 0.02  # a job waits with this
LISTINGS_PER_S = 5000  # of all nodes together: what a file system's one server is asked at the most
LONGEST_QUIET_S = 0.5


def meet(request: Request, *, rank: int, deadline_s: float) -> dict[str, Any]:
    """Leave a file for the other nodes, look for theirs, and knock at the head's door.

    The head's file says at which port it listens for the time of this check.

    Returns:
        fields of a `NodeReport`: `folder_error`, or `unseen` and, where it was tried, `head_error`.
    """
    if not request.folder:
        return {}
    folder = Path(request.folder)
    listener = _listen(request.num_nodes) if rank == 0 and request.num_nodes > 1 else None
    with listener or contextlib.nullcontext():
        port = listener.getsockname()[1] if listener else 0
        error = _leave_file(folder, rank, str(port), deadline_s)
        if error:
            return {"folder_error": error}
        unseen = _look_for_files(folder, rank, str(port), request.num_nodes, deadline_s)
        if listener:
            # those that are there look for all files first
            _wait_for_knocks(listener, request.num_nodes - 1 - len(unseen), deadline_s + CONNECT_S)
        elif rank and 0 not in unseen:
            return {"unseen": unseen, "head_error": _knock(request.head_address, _file_of(folder, 0))}
        return {"unseen": unseen}


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"doctor-{rank}"


def remove_files(folder: Path) -> None:
    """Take away what the nodes left for each other."""
    for file in folder.glob("doctor-*"):
        file.unlink(missing_ok=True)


def _leave_file(folder: Path, rank: int, text: str, deadline_s: float) -> str:
    """Write this node's file; the error's text if that cannot be done."""
    while True:
        try:
            _write_whole(folder, rank, text)
            return ""
        except FileNotFoundError:
            # the folder was made before this process started: it may still come into sight
            if time.monotonic() > deadline_s:
                return "is not there"
            time.sleep(POLL_S)
        except OSError as error:
            return f"cannot be written: {describe(error)}"


def _write_whole(folder: Path, rank: int, text: str) -> None:
    temporary = folder / f".doctor-{rank}.tmp"
    temporary.write_text(text)
    os.replace(temporary, _file_of(folder, rank))


def _look_for_files(folder: Path, rank: int, text: str, num_nodes: int, deadline_s: float) -> tuple[int, ...]:
    """The nodes whose files do not appear."""
    pause_s = max(POLL_S, num_nodes / LISTINGS_PER_S)
    quiet_s, written_s = pause_s, time.monotonic()
    while True:
        # a look for a name would be remembered as "no such file" on network file systems
        names = set(os.listdir(folder))
        unseen = tuple(other for other in range(num_nodes) if _file_of(folder, other).name not in names)
        if not unseen or time.monotonic() > deadline_s:
            return unseen
        time.sleep(pause_s)
        # a change of our own makes such a file system read the folder anew; dear, so less and less often
        if time.monotonic() - written_s >= quiet_s:
            _write_whole(folder, rank, text)
            quiet_s, written_s = min(2 * quiet_s, LONGEST_QUIET_S), time.monotonic()


def _listen(num_nodes: int) -> socket.socket | None:
    """Listen at a port of the range that trainings meet in."""
    try:
        return socket.create_server(("", choose_port(os.getpid(), attempt=0)), backlog=num_nodes)
    except (OSError, UserError):
        return None


def _wait_for_knocks(listener: socket.socket, expected: int, deadline_s: float) -> None:
    for _ in range(expected):
        listener.settimeout(max(0.01, deadline_s - time.monotonic()))
        try:
            visitor, _ = listener.accept()
        except OSError:
            return
        with visitor, contextlib.suppress(OSError):
            visitor.settimeout(CONNECT_S)
            visitor.recv(1)  # the other side closes first, so that no port of the head stays in use


def _knock(address: str, file: Path) -> str | None:
    """Why the head cannot be reached; None where its file does not say at which port it listens."""
    try:
        port = int(file.read_text())
    except (OSError, ValueError):
        return None
    if not port:  # the head found none
        return None
    error = try_connect(address, port)
    return f"{address}:{port}: {error}" if error else ""


def try_connect(host: str, port: int) -> str:
    """Why no TCP connection to host:port can be made within `CONNECT_S`; empty if it can."""

    def connect() -> str:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return "connected"

    try:
        return "" if within(CONNECT_S, connect) else f"no answer within {CONNECT_S:g} s"
    except OSError as error:
        return describe(error)


def resolve(name: str) -> tuple[str, str]:
    """The address that a host's name means here, and why there is none."""
    try:
        address = within(CONNECT_S, lambda: socket.gethostbyname(name))
    except OSError as error:
        return "", f"'{name}': {describe(error)}"
    return (address, "") if address else ("", f"'{name}': no answer within {CONNECT_S:g} s")


def within(limit_s: float, function: Callable[[], str]) -> str | None:
    """What a function returns, or None if it does not within the limit: a name service has its own, long patience.

    Raises:
        OSError: as the function does.
    """
    results: list[str] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            results.append(function())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    return results[0] if results else None


def describe(error: OSError) -> str:
    """An error of the system in a few words."""
    return error.strerror or str(error) or type(error).__name__
