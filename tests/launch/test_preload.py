"""Processes that a node's preloader forks are the worker's own in all that matters."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

WORKER = ROOT / "launch" / "worker.py"
HOST = socket.gethostname()


@pytest.fixture
def preloader(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A preloader of one light module, and the folder that its workers log into."""
    command = [sys.executable, "-m", "launch.preload", str(tmp_path / "socket"), "decimal"]
    process = subprocess.Popen(command, cwd=ROOT)
    wait_for(lambda: (tmp_path / "socket").exists())
    yield process
    process.kill()
    process.wait()


def wait_for(condition: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(folder: Path, source: str, *words: str, rank: int = 0, **environment: str) -> subprocess.Popen[bytes]:
    """Start a worker that asks the preloader for its script."""
    script = folder / f"script {rank}.py"
    script.write_text(source)
    own = {"LAUNCH_LOG_DIR": str(folder), "LAUNCH_PRELOADER": str(folder / "socket"), "RANK": str(rank)}
    command = [sys.executable, str(WORKER), str(script), *words]
    return subprocess.Popen(command, env=os.environ | own | environment, cwd=folder, stdout=subprocess.PIPE)


def code_of(folder: Path, rank: int = 0) -> int:
    return json.loads((folder / f"{HOST}-rank-{rank}.exit.json").read_text())["code"]


def pid_of(folder: Path, rank: int = 0) -> int:
    file = folder / f"{HOST}-rank-{rank}.json"
    wait_for(file.exists)
    return json.loads(file.read_text())["pid"]


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_fork_has_the_modules_words_folder_environment_and_output_of_its_worker(
    preloader: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    source = (
        "import os, sys; print('decimal' in sys.modules, sys.argv[1:], os.getcwd(), os.environ['MINE'], __name__)\n"
        "print(os.getppid(), sys.path[0], file=sys.stderr); sys.exit(3)"
    )
    worker = start(tmp_path, source, "a b", "c'd", MINE="x")
    said = worker.communicate(timeout=30)[0].decode()
    assert worker.returncode == 3 and code_of(tmp_path) == 3
    lines = set(said.splitlines())
    assert lines == {f"True ['a b', \"c'd\"] {tmp_path} x __main__", f"{preloader.pid} {tmp_path}"}
    assert (tmp_path / f"{HOST}-rank-0.log").read_text() == said


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("pass", 0),
        ("raise SystemExit", 0),
        ("raise SystemExit(75)", 75),
        ("raise SystemExit('a word')", 1),
        ("1 / 0", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_every_end_is_told(preloader: subprocess.Popen[bytes], tmp_path: Path, end: str, code: int) -> None:
    worker = start(tmp_path, f"import atexit; atexit.register(print, 'at exit')\n{end}", PYTHONFAULTHANDLER="0")
    said = worker.communicate(timeout=30)[0].decode()
    assert code_of(tmp_path) == code
    assert ("at exit" in said) == (code >= 0)
    assert ("ZeroDivisionError" in said) == (end == "1 / 0") and ("a word" in said) == ("a word" in end)


def test_several_at_once_and_none_sees_the_others_end(preloader: subprocess.Popen[bytes], tmp_path: Path) -> None:
    workers = [start(tmp_path, "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(int(sys.argv[2]))",
                     str(0.6 - 0.2 * rank), str(rank), rank=rank) for rank in range(3)]  # fmt: skip
    for rank, worker in enumerate(workers):
        worker.communicate(timeout=30)
        assert code_of(tmp_path, rank) == rank


def test_a_fork_dies_with_its_worker(preloader: subprocess.Popen[bytes], tmp_path: Path) -> None:
    worker = start(tmp_path, "import time; time.sleep(600)")
    pid = pid_of(tmp_path)
    worker.kill()
    worker.communicate(timeout=30)
    wait_for(lambda: not is_there(pid), timeout=5)
    assert preloader.poll() is None


def test_a_fork_dies_with_the_preloader_and_its_worker_says_so(
    preloader: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    worker = start(tmp_path, "import time; time.sleep(600)")
    pid = pid_of(tmp_path)
    preloader.kill()
    worker.communicate(timeout=30)
    wait_for(lambda: not is_there(pid), timeout=5)
    assert code_of(tmp_path) == -signal.SIGKILL and worker.returncode == 128 + signal.SIGKILL


def test_without_a_preloader_or_with_one_that_cannot_import_the_worker_starts_a_python_of_its_own(
    tmp_path: Path,
) -> None:
    worker = start(tmp_path, "import os; print(os.getppid())")
    assert int(worker.communicate(timeout=30)[0]) == worker.pid
    command = [sys.executable, "-m", "launch.preload", str(tmp_path / "socket"), "no_such_module"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_for((tmp_path / "socket").exists)
        worker = start(tmp_path, "import os; print(os.getppid())", rank=1)
        assert worker.communicate(timeout=30)[0] == b""  # the words of process 1 are in its log alone
        assert b"no_such_module" in process.communicate(timeout=30)[1] and process.returncode == 1
    assert int((tmp_path / f"{HOST}-rank-1.log").read_text()) == worker.pid
