"""What the launcher's tests share: real runs, begun by the real command line in its own processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SMALL, make_table

Launch = Callable[..., subprocess.CompletedProcess[str]]
DEADLINE_S = 150  # on a machine that others use too


def environment(cache: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"} | more


def launch_in(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m launch` in a folder to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=folder,
        env=environment(folder / "cache", **more),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def run_words(folder: Path, *words: str) -> list[str]:
    return ["run", "--processes=2", "--cpu", "--", f"data.path={folder}/table.csv", "data.target=y", *SMALL, *words]


def wait_until(is_true: Callable[[], Any], what: str, *, seconds: float = DEADLINE_S) -> None:
    deadline_s = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that is done; do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    make_table(300).to_csv(folder / "table.csv", index=False)
    done = launch_in(folder, *run_words(folder, "run.name=small", "train.max_epochs=12", "checkpoint.every_steps=5"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "small"


WATCHED = ("watchdog.floor=2", "watchdog.cap=20")


class LiveRun:
    """A run that trains in the background until it is asked to stop."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run_dir = folder / "runs" / "live"
        self.launcher: subprocess.Popen[str] | None = None
        make_table(300).to_csv(folder / "table.csv", index=False)

    def start(self) -> None:
        """Start it, or have it go on; returns when it has made steps."""
        before = self.metrics_step()
        self.launcher = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "launch",
                *run_words(self.folder, "run.name=live", "train.max_epochs=100000", *WATCHED),
            ],
            cwd=self.folder,
            env=environment(self.folder / "cache"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_until(lambda: self.metrics_step() > before, "the run made no step")

    def metrics_step(self) -> int:
        try:
            lines = (self.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return 0
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def launch(self, *words: str) -> subprocess.CompletedProcess[str]:
        return launch_in(self.folder, *words)

    def end(self) -> tuple[int, str]:
        """Wait for the launcher's own end: its exit code and what it said."""
        assert self.launcher is not None
        said, _ = self.launcher.communicate(timeout=DEADLINE_S)
        return self.launcher.returncode, said

    def close(self) -> None:
        if self.launcher is not None and self.launcher.stdout is not None and not self.launcher.stdout.closed:
            self.launcher.terminate()
            self.launcher.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def live_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRun]:
    run = LiveRun(tmp_path_factory.mktemp("live"))
    try:
        run.start()
        yield run
    finally:
        run.close()


def write_attempt(run_dir: Path, number: int, **values: Any) -> None:
    """An attempt as its file tells of it, made up."""
    folder = run_dir / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    known = {"number": number, "launch": "17", "job": "17", "host": "n1", "pid": 1, "first_step": 0}
    (folder / f"{number:04d}.json").write_text(json.dumps(known | values))


def write_end(run_dir: Path, number: int, kind: str, **values: Any) -> None:
    end = {"kind": kind, "reason": "", "first_step": 0, "last_step": 10, "failure": ""} | values
    (run_dir / "attempts" / f"{number:04d}.end.json").write_text(json.dumps(end))


def write_status(run_dir: Path, state: str, step: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "status.json").write_text(json.dumps({"state": state, "reason": "", "step": step}))


class FakeSlurm:
    """Programs that answer recorded text and note how they were called."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.calls_file = folder / "calls"
        self.folder.mkdir()
        self.answer("squeue", "")
        self.answer("sacct", "Slurm accounting storage is disabled", code=1)
        self.answer("scontrol", "")

    def answer(self, program: str, text: str, *, code: int = 0, then: str = "") -> None:
        """`then`: a shell command that the program runs besides."""
        text_file, file = self.folder / f"{program}.text", self.folder / program
        text_file.write_text(text + "\n" if text else "")
        to = ">&2" if code else ""
        script = f'#!/bin/sh\necho "{program} $*" >> {self.calls_file}\ncat {text_file} {to}\n{then}\nexit {code}\n'
        file.write_text(script)
        file.chmod(0o755)

    def calls(self, program: str) -> list[str]:
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        return [line for line in lines if line.startswith(f"{program} ")]


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm(tmp_path / "slurm-bin")
    monkeypatch.setenv("PATH", f"{slurm.folder}{os.pathsep}{os.environ['PATH']}")
    return slurm
