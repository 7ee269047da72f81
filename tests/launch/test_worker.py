"""One process of the world: its log, its exit record, its exit code, and that it leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from launch.command import WORKER
from tests.launch.shared import environment, is_running, wait_for

HOST = socket.gethostname()


def start(folder: Path, source: str, *words: str, rank: int = 0) -> subprocess.Popen[bytes]:
    """A worker of a script with this source."""
    script = folder / "the script.py"
    script.write_text(source)
    env = environment(LAUNCH_LOG_DIR=str(folder), RANK=str(rank))
    command = [sys.executable, str(WORKER), str(script), *words]
    return subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(folder: Path, source: str, *words: str, rank: int = 0) -> tuple[int, str]:
    """Run a script under a worker: the exit code and what it passed on."""
    worker = start(folder, source, *words, rank=rank)
    said, errors = worker.communicate(timeout=60)
    assert errors == b""
    return worker.returncode, said.decode()


def record(folder: Path, rank: int = 0) -> dict:
    return json.loads((folder / f"{HOST}-rank-{rank}.exit.json").read_text())


def log(folder: Path, rank: int = 0) -> str:
    return (folder / f"{HOST}-rank-{rank}.log").read_text()


@contextmanager
def ended(*pids: int) -> Iterator[None]:
    """Whatever happens, these processes do not outlive the test."""
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_output_goes_to_the_log_and_that_of_rank_0_to_the_terminal_too(tmp_path: Path) -> None:
    source = "import sys; print('out', sys.argv[1:]); print('err', file=sys.stderr)"
    code, said = run(tmp_path, source, "a b", "c'd", "")
    assert (code, said) == (0, log(tmp_path))
    assert sorted(said.splitlines()) == ["err", """out ['a b', "c'd", '']"""]
    code, said = run(tmp_path, source, rank=3)
    assert (code, said) == (0, "")
    assert sorted(log(tmp_path, 3).splitlines()) == ["err", "out []"]
    assert {path.name for path in tmp_path.iterdir() if path.name != "the script.py"} == {
        f"{HOST}-rank-{rank}.{end}" for rank in (0, 3) for end in ("json", "exit.json", "log")
    }


@pytest.mark.parametrize(
    ("end", "recorded", "code"),
    [
        ("sys.exit(0)", 0, 0),
        ("sys.exit(75)", 75, 0),  # saved: torch's agent must not take it for a failure
        ("sys.exit(2)", 2, 2),
        ("sys.exit(1)", 1, 1),
        ("raise ValueError('boom')", 1, 1),
        ("os.kill(os.getpid(), 9)", -9, 137),
        ("os.kill(os.getpid(), 15)", -15, 143),
    ],
)
def test_how_the_script_ended_is_recorded_and_passed_on(tmp_path: Path, end: str, recorded: int, code: int) -> None:
    started_s = time.time()
    ended_with, _ = run(tmp_path, f"import os, sys\nprint('x', flush=True)\n{end}\n", rank=1)
    assert ended_with == code
    kept = record(tmp_path, 1)
    assert started_s - 1 < kept.pop("started_s") <= kept.pop("ended_s") < time.time() + 1
    assert kept == {"rank": 1, "host": HOST, "code": recorded}
    assert log(tmp_path, 1).startswith("x\n")


def test_a_second_attempt_of_the_same_process_writes_on(tmp_path: Path) -> None:
    for _ in range(2):
        run(tmp_path, "print('line')")
    assert log(tmp_path) == "line\nline\n"


def test_much_output_passes_whole_and_a_reader_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    source = "for number in range(40_000): print(f'line {number}')"
    code, said = run(tmp_path, source)
    assert code == 0 and said == log(tmp_path) and said.endswith("line 39999\n") and said.count("\n") == 40_000
    (tmp_path / f"{HOST}-rank-0.log").unlink()
    worker = start(tmp_path, source)
    assert worker.stdout is not None and worker.stderr is not None
    worker.stdout.close()  # as `| head` does
    assert worker.wait(60) == 0
    worker.stderr.close()
    assert log(tmp_path).count("\n") == 40_000


def test_a_helper_that_holds_the_pipe_open_is_not_waited_for(tmp_path: Path) -> None:
    source = """
import subprocess, sys
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(helper.pid, flush=True)
"""
    code, said = run(tmp_path, source)
    with ended(int(said)):
        assert code == 0
        assert is_running(int(said))  # it lived on, and the worker had ended
    assert record(tmp_path)["ended_s"] - record(tmp_path)["started_s"] < 30


def test_the_worker_and_its_script_die_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, str(WORKER), str(tmp_path / "script.py")]
    source = f"import subprocess; subprocess.run({command!r})"
    parent = subprocess.Popen(
        [sys.executable, "-c", source], env=environment(LAUNCH_LOG_DIR=str(tmp_path)), stdout=subprocess.DEVNULL
    )
    file = tmp_path / f"{HOST}-rank-0.log"
    try:
        wait_for(lambda: file.exists() and file.read_text().endswith("\n"), what="the script said its id")
        script = int(file.read_text())
        (worker,) = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        with ended(worker, script):
            assert is_running(script) and is_running(worker)
            parent.kill()
            parent.wait()
            wait_for(lambda: not is_running(script) and not is_running(worker), what="both are gone", seconds=2)
    finally:
        parent.kill()
        parent.wait()
    assert not (tmp_path / f"{HOST}-rank-0.exit.json").exists()
