"""One process of the world: runs the script, keeps its output in a file of its own, and records how it ended.

`accelerate launch` starts this file in place of the script, with the script and its words as arguments.
It dies with its parent, and the script with it, so that nobody is left behind when a launcher is killed.
It imports the standard library alone and knows the launcher only by the environment.
"""

import contextlib
import ctypes
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
SAVED = 75  # the script has saved its state and wants to be started again
MESSAGE_BYTES = 1 << 18  # the most that one message between a worker and the preloader holds
LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have the system kill this process when its parent ends; runs in the new process."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the script to its end; the exit code for torch's agent."""
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:  # it ended before the system was told
        return 1
    rank = int(os.environ.get("RANK", "0"))
    name = f"{socket.gethostname()}-rank-{rank}"
    folder = Path(os.environ["LAUNCH_LOG_DIR"])
    started_s = time.time()
    with (folder / f"{name}.log").open("ab", buffering=0) as log:
        reader, writer = os.pipe()
        script = _ask_preloader(writer) or _Started(writer)
        os.close(writer)
        who = {"rank": rank, "host": socket.gethostname()}
        _write_record(folder / f"{name}.json", who | {"pid": script.pid, "started_s": started_s})
        _copy_output(reader, script, log.fileno(), show=rank == 0)
        code = script.wait()
    _write_record(folder / f"{name}.exit.json", who | {"code": code, "started_s": started_s, "ended_s": time.time()})
    # torch's agent ends the whole world when a process fails: one that has saved must not look like that
    if code in (0, SAVED):
        return 0
    return code if code > 0 else 128 - code


def _write_record(file: Path, record: dict[str, object]) -> None:
    """Write a record whole."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    os.replace(temporary, file)


class _Started:
    """The script in a Python of its own."""

    def __init__(self, output: int):
        self.child = subprocess.Popen(
            [sys.executable, *sys.argv[1:]], stdout=output, stderr=output, preexec_fn=die_with_parent
        )

        self.pid = self.child.pid

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.child.poll()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self.child.wait()


class _Forked:
    """The script in a process that the node's preloader forked for it; see launch/preload.py."""

    def __init__(self, connection: socket.socket, pid: int):
        self.connection = connection
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._read(0.0)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        while (code := self._read(None)) is None:
            pass
        return code

    def _read(self, timeout: float | None) -> int | None:
        if self.code is None and select.select([self.connection], [], [], timeout)[0]:
            message = self.connection.recv(MESSAGE_BYTES)
            # a preloader that is gone was killed, and its forks with it
            self.code = json.loads(message)["code"] if message else -signal.SIGKILL
        return self.code


def _ask_preloader(output: int) -> _Forked | None:
    """Have the node's preloader fork the script; None where there is none, or its imports failed."""
    address = os.environ.get("LAUNCH_PRELOADER")
    if not address:
        return None
    request = {"words": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(address)
        socket.send_fds(connection, [json.dumps(request).encode()], [output])
        if message := connection.recv(MESSAGE_BYTES):  # nothing if it ended before
            return _Forked(connection, json.loads(message)["pid"])
    except OSError:
        pass
    connection.close()
    return None


def _copy_output(source: int, script: _Started | _Forked, log: int, *, show: bool) -> None:
    """Copy what the script says into its log, and to standard output if `show`, until it has ended.

    A helper process of the script may hold the pipe open for longer: that is not waited for.
    """
    os.set_blocking(source, False)
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        has_ended = False
        while True:
            ready = selector.select(timeout=0.0 if has_ended else 0.1)
            data = None
            if ready:
                with contextlib.suppress(BlockingIOError):
                    data = os.read(source, 1 << 16)
                if data == b"":
                    return
            if data:
                _write(log, data)
                if show:
                    show = _write(1, data)
            elif has_ended:
                return
            has_ended = script.poll() is not None


def _write(file: int, data: bytes) -> bool:
    """Write all of `data`; False if nobody reads it or the disk is full: the training does not stop for that."""
    try:
        while data:
            data = data[os.write(file, data) :]
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
