"""One per node, on nodes without GPUs: imports once what every process of the node needs, and forks them from itself.

Importing torch and this project is most of a short training's start, and every process of a node does it at the
same time, on the same cores and from the same file system. A worker asks this process for its script in place of
starting a Python of its own; where this process is not there, or its imports fail, the worker does that after all.

The forked process is the worker's in all that matters: its output goes to the worker, its exit code comes back, and
it is killed when the worker dies. It is a child of this process, so that it dies with it as well.
Usage: python -m launch.preload SOCKET MODULE,MODULE...
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from launch.worker import MESSAGE_BYTES, die_with_parent

TICK_S = 0.05


class Preloader:
    """Listens for workers, forks a process for each, and tells each how it ended."""

    def __init__(self, listener: socket.socket):
        self.listener = listener
        self.scripts: dict[int, socket.socket] = {}  # process id -> the worker that waits for it
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)

    def serve(self) -> NoReturn:
        """Work until the agent ends this process."""
        while True:
            for key, _ in self.selector.select(timeout=TICK_S):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._hang_up(key.fileobj)  # type: ignore[arg-type]
            self._reap()

    def _accept(self) -> None:
        connection, _ = self.listener.accept()
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        if not message or not files:  # a worker that died before it had asked
            connection.close()
            return
        request = json.loads(message)
        pid = os.fork()
        if pid == 0:
            self.listener.close()
            for other in self.scripts.values():
                other.close()
            connection.close()
            run_script(request, output=files[0])
        for file in files:
            os.close(file)
        with contextlib.suppress(OSError):  # one that died since: its end is seen below, and its script's with it
            connection.send(json.dumps({"pid": pid}).encode())
        self.scripts[pid] = connection
        self.selector.register(connection, selectors.EVENT_READ)

    def _hang_up(self, connection: socket.socket) -> None:
        """A worker that says something after its request has died: nobody is left to speak of its script."""
        self.selector.unregister(connection)
        for pid, other in self.scripts.items():
            if other is connection:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self.scripts:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            connection = self.scripts.pop(pid)
            try:
                self.selector.unregister(connection)
                connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
            except (KeyError, OSError):
                pass  # the worker has died
            connection.close()


def run_script(request: dict[str, Any], *, output: int) -> NoReturn:
    """Become the worker's script: its environment, words, folder and output; ends the process."""
    parent = os.getppid()
    os.setsid()
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    # made anew: those that were there remember that they wrote into a file, and would seek in a pipe
    sys.stdout, sys.stderr = open_text(1, "strict"), open_text(2, "backslashreplace")
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    Path("/proc/self/comm").write_text(f"rank {os.environ.get('RANK', '0')}")  # what `top` shows
    gc.enable()
    code = _run(sys.argv[0])
    atexit._run_exitfuncs()  # as the interpreter would
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def open_text(file: int, errors: str) -> io.TextIOWrapper:
    """A text stream on an open file that holds nothing back, as `python -u` makes them."""
    return io.TextIOWrapper(io.FileIO(file, "w", closefd=False), errors=errors, write_through=True)


def _run(script: str) -> int:
    """Run a script as the interpreter does; its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)  # noqa: T201 - as sys.exit("text") does
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Listen first, so that workers may come early; import; serve."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(sys.argv[1])
        listener.listen(128)
        gc.disable()  # of what imports make nothing is garbage
        for module in sys.argv[2].split(","):
            importlib.import_module(module)
        gc.freeze()  # what is there now is shared with the forks: a collection would copy it for each
        Preloader(listener).serve()


if __name__ == "__main__":
    main()
