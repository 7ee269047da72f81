"""Who may write into a run folder: attempts that are claimed once, and what an older one can no longer do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nn_train.attempts import Attempt, Fence, Fenced, Launched, claim, list_attempts, newest_number, refuse_newer
from nn_train.errors import RunFolderError
from nn_train.run_folder import own
from tests.conftest import SMALL

# Claims five attempts as soon as its standard input ends.
CLAIMANT = """
import pathlib, sys
from nn_train.attempts import claim
print("ready", flush=True)
sys.stdin.read()
print(*(claim(pathlib.Path(sys.argv[1]), launch=sys.argv[2]).number for _ in range(5)))
"""
# The project's training, which waits before step 21 until it may go on: nothing is being written then.
WAITS = """
import pathlib, sys, time
from nn_train import loop, train
update = loop.Trainer._update
def waits(self, step):
    if step == 20:
        pathlib.Path("waits").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    return update(self, step)
loop.Trainer._update = waits
sys.exit(train.main())
"""


def test_claims_at_the_same_moment_get_numbers_of_their_own(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, str(tmp_path), f"launch-{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(8)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    claimed: dict[int, str] = {}
    for index, process in enumerate(processes):
        assert process.stdout is not None
        claimed |= dict.fromkeys(map(int, process.stdout.read().split()), f"launch-{index}")
        process.stdout.close()
        assert process.wait(60) == 0
    assert sorted(claimed) == list(range(1, 41))
    # and each file is that of whoever got the number
    assert {attempt.number: attempt.launch for attempt in list_attempts(tmp_path)} == claimed


def test_an_attempt_says_who_made_it(tmp_path: Path) -> None:
    attempt = claim(tmp_path, launch="17", job="17", first_step=3)
    assert list_attempts(tmp_path) == [attempt]
    assert (attempt.number, attempt.pid, attempt.first_step) == (1, os.getpid(), 3)
    assert attempt.pid_started == Attempt.started_ticks(os.getpid()) is not None
    assert attempt.describe() == f"attempt 1 (job 17, host {attempt.host})"
    assert claim(tmp_path).describe() == f"attempt 2 (process {os.getpid()}, host {attempt.host})"
    assert Attempt.started_ticks(2**22 + 1) is None  # no such process


def test_what_is_no_attempt_is_passed_over(tmp_path: Path) -> None:
    assert (list_attempts(tmp_path), newest_number(tmp_path)) == ([], 0)
    claim(tmp_path)
    for name in ("0002.stop", "0003.end.json", "0004.json.tmp", "note.json"):
        (tmp_path / "attempts" / name).touch()
    assert newest_number(tmp_path) == 1
    (tmp_path / "attempts" / "0007.json").write_text('{"number": 7, "lau')  # being written, on a slow file system
    (tmp_path / "attempts" / "12345.json").write_text('{"number": 12345, "of a later version": 1}')
    assert [attempt.number for attempt in list_attempts(tmp_path)] == [1, 7, 12345]
    assert claim(tmp_path).number == 12346


def test_a_newer_attempt_closes_the_fence_of_every_older_one(tmp_path: Path) -> None:
    first = Fence(tmp_path, claim(tmp_path).number)
    first.check()
    second = Fence(tmp_path, claim(tmp_path, job="18").number)
    second.check()
    assert second.is_open and not first.is_open
    with pytest.raises(Fenced, match=r"attempt 2 \(job 18, host .*\) owns this run now; attempt 1 leaves") as caught:
        first.check()
    assert caught.value.where == str(tmp_path)


def test_an_attempt_that_nobody_claimed_is_a_left_over_variable(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="LAUNCH_ATTEMPT=1, and the run has no such attempt") as caught:
        refuse_newer(tmp_path, 1)
    assert "unset LAUNCH_ATTEMPT" in caught.value.fix
    claim(tmp_path)
    assert refuse_newer(tmp_path, 1) == Fence(tmp_path, 1)
    with pytest.raises(RunFolderError, match="LAUNCH_ATTEMPT=2"):
        refuse_newer(tmp_path, 2)
    claim(tmp_path)
    with pytest.raises(Fenced):
        refuse_newer(tmp_path, 1)


def test_what_a_launcher_says_counts_for_its_own_run_alone(tmp_path: Path) -> None:
    said = {"LAUNCH_RUN_DIR": str(tmp_path), "LAUNCH_ATTEMPT": "2", "LAUNCH_GOES_ON": "1", "LAUNCH_STOP_FILE": "/s"}
    assert Launched.from_environment(tmp_path, said) == Launched(tmp_path, 2, True, Path("/s"))
    assert Launched.from_environment(tmp_path / "other", said) is None
    assert Launched.from_environment(tmp_path, {}) is None
    assert Launched.from_environment(tmp_path, said | {"LAUNCH_ATTEMPT": ""}) is None
    assert Launched.from_environment(tmp_path, said | {"LAUNCH_ATTEMPT": "-1"}) is None
    first = {name: value for name, value in said.items() if name in ("LAUNCH_RUN_DIR", "LAUNCH_ATTEMPT")}
    assert Launched.from_environment(tmp_path, first) == Launched(tmp_path, 2, False, None)


def test_a_run_is_owned_by_one_process_or_by_the_newest_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAUNCH_RUN_DIR", raising=False)
    with own(tmp_path) as fence:
        assert fence == Fence(tmp_path, 1)
        with pytest.raises(RunFolderError, match="another process trains in this run folder"), own(tmp_path):
            pass
        # under a launcher the number alone decides: whoever holds the lock may be behind a broken network
        monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path))
        monkeypatch.setenv("LAUNCH_ATTEMPT", str(claim(tmp_path).number))
        with own(tmp_path) as newer:
            assert newer == Fence(tmp_path, 2)
            assert not fence.is_open
    monkeypatch.setenv("LAUNCH_ATTEMPT", "9")
    with pytest.raises(RunFolderError, match="unset LAUNCH_ATTEMPT"), own(tmp_path):
        pass
    monkeypatch.setenv("LAUNCH_RUN_DIR", str(tmp_path / "other"))  # left over from another run: means nothing here
    with own(tmp_path) as fence:
        assert fence == Fence(tmp_path, 3)


def contents(folder: Path) -> dict[str, bytes]:
    """What is published: neither the files for stacks, each process's own, nor a checkpoint that is being written."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".stacks")
    return {name: (folder / name).read_bytes() for name in files if ".tmp" not in name}


@pytest.mark.parametrize(
    "words",
    [
        ["tracking.log_every_steps=1", "train.eval_every=10"],
        ["tracking.log_every_steps=1000", "train.eval_every=1000", "checkpoint.every_steps=8"],
    ],
    ids=["metrics", "checkpoint"],
)
def test_an_attempt_that_is_fenced_while_it_trains_publishes_nothing_more(
    words: list[str], tmp_path: Path, table_file: Path
) -> None:
    run_dir = tmp_path / "run"
    first = claim(run_dir, launch="test")
    words = [*SMALL, f"data.path={table_file}", "data.target=y", "train.max_steps=60", f"run.dir={run_dir}", *words]
    env = os.environ | {"LAUNCH_RUN_DIR": str(run_dir), "LAUNCH_ATTEMPT": str(first.number)}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS, *words],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline_s = time.monotonic() + 200
        while not (tmp_path / "waits").exists() and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.05)
        claim(run_dir, launch="other")
        before = contents(run_dir)
        assert json.loads(before["status.json"])["state"] == "running"
        (tmp_path / "go").touch()
        said, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 2, said + errors
    assert "attempt 2 (" in errors and "owns this run now; attempt 1 leaves and writes nothing more" in errors
    assert "Traceback" not in errors
    assert contents(run_dir) == before
