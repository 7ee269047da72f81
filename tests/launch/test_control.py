"""`stop` and `cancel` on a run that really trains, and on queued jobs of made-up folders."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.control import cancel, stop
from launch.decision import decide
from launch.outcome import Outcome
from launch.runs import spell_wait
from nn_train.attempts import Attempt
from nn_train.errors import UserError
from tests.launch.conftest import FakeSlurm, LiveRun, wait_until, write_attempt, write_end, write_status


def read_end(run: LiveRun, number: int) -> dict[str, object]:
    return json.loads((run.run_dir / "attempts" / f"{number:04d}.end.json").read_text())


def test_stop_goes_on_and_cancel(live_run: LiveRun) -> None:
    done = live_run.launch("stop", "--wait", "live")
    assert done.returncode == 0, done.stdout + done.stderr
    asked, ended = done.stdout.splitlines()
    assert asked.startswith("asked attempt 1 (process ") and asked.endswith("the same command goes on from there")
    end = read_end(live_run, 1)
    assert ended.startswith(f"attempt 1 stopped (requested) at step {end['last_step']} after ")
    assert live_run.end()[0] == 75

    for command in ("stop", "cancel"):
        refused = live_run.launch(command, "live")
        assert refused.returncode == 2
        assert f"it is saved at step {end['last_step']} (requested)" in refused.stderr

    live_run.start()
    done = live_run.launch("cancel", "live", "--wait=60")
    assert done.returncode == 0, done.stdout + done.stderr
    asked, stopped, ended = done.stdout.splitlines()
    assert asked.startswith("asking attempt 2 (process ")
    assert stopped.startswith("attempt 2 stopped (cancelled) at step ")
    assert ended.startswith("ended: it is saved at step ")
    assert live_run.end()[0] == 75
    assert read_end(live_run, 2)["first_step"] == end["last_step"]
    assert live_run.launch("cancel", "live").returncode == 2


def test_neither_for_a_run_that_is_done(finished_run: Path) -> None:
    for command in (stop, cancel):
        with pytest.raises(UserError, match="it is done at step 12"):
            command([str(finished_run)])


def queued(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    """A run whose first attempt was stopped, and whose job waits to go on."""
    run = tmp_path / "run"
    write_status(run, "stopped", 10)
    write_attempt(run, 1)
    write_end(run, 1, "stopped", reason="preempted")
    fake_slurm.answer("squeue", "17|17|PENDING||1:00:00|Resources")
    return run


def test_a_queued_job_cannot_stop_and_is_cancelled(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = queued(tmp_path, fake_slurm)
    fake_slurm.answer("scancel", "")
    with pytest.raises(UserError, match=r"job 17 is queued \(Resources\)") as caught:
        stop([str(run)])
    assert "launch cancel" in caught.value.fix
    assert cancel([str(run)]) == 0
    assert fake_slurm.calls("scancel") == ["scancel 17"]
    assert capsys.readouterr().out == "cancelled job 17, which was queued\n"
    assert not list((run / "attempts").glob("*.stop"))


def test_a_job_that_was_never_begun(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = tmp_path / "run"
    (run / "launch").mkdir(parents=True)
    (run / "launch" / "job.json").write_text('{"job": "17"}')
    fake_slurm.answer("squeue", "17|17|PENDING||1:00:00|Priority")
    fake_slurm.answer("scancel", "")
    assert cancel([str(run)]) == 0
    fake_slurm.answer("squeue", "slurm_load_jobs error: Invalid job id specified", code=1)
    with pytest.raises(UserError, match="job 17 ended before an attempt began"):
        cancel([str(run)])


def test_slurm_refuses_to_cancel(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = queued(tmp_path, fake_slurm)
    fake_slurm.answer("scancel", "scancel: error: Kill job error on job id 17: Access/permission denied", code=1)
    fake_slurm.answer("scontrol", "JobId=17 JobState=PENDING")
    with pytest.raises(UserError, match="permission denied"):
        cancel([str(run)])


def running(tmp_path: Path, fake_slurm: FakeSlurm) -> Path:
    run = tmp_path / "run"
    write_status(run, "running", 10)
    write_attempt(run, 1)
    fake_slurm.answer("squeue", "17|17|RUNNING|n1|1:00:00|None")
    return run


def test_stop_of_a_job(tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    run = running(tmp_path, fake_slurm)
    assert stop([str(run), "--wait", "0"]) == 1
    assert (run / "attempts" / "0001.stop").read_text() == "requested"
    assert "the job is requeued and goes on" in capsys.readouterr().out
    assert stop([str(run)]) == 0
    assert "was asked to stop already (requested)" in capsys.readouterr().out


def test_cancel_of_a_job_that_saves_no_longer(
    tmp_path: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    run = running(tmp_path, fake_slurm)
    (run / "attempts" / "0001.stop").write_text("requested")  # would have it requeued
    fake_slurm.answer("scancel", "")
    started_s = time.monotonic()
    assert cancel([str(run), "--wait=0.5"]) == 0
    assert 0.5 <= time.monotonic() - started_s < 5
    assert (run / "attempts" / "0001.stop").read_text() == "cancelled"
    assert fake_slurm.calls("scancel") == ["scancel 17"]
    assert "KillWait" in capsys.readouterr().out


def test_a_cancelled_attempt_is_never_requeued() -> None:
    def ended(reason: str) -> Outcome:
        return Outcome(kind="stopped", reason=reason, first_step=0, last_step=0)

    assert decide([ended("requested")], max_restarts=1, may_requeue=True).action == "requeue"
    assert decide([ended("cancelled")], max_restarts=1, may_requeue=True).action == "stay"
    crash = Outcome(kind="crashed", first_step=0, last_step=0)
    assert decide([crash, ended("cancelled")], max_restarts=1, may_requeue=True).action == "stay"


def test_seconds_may_be_left_out_anywhere() -> None:
    assert spell_wait(["--wait", "run"], 20) == ["--wait=20", "run"]
    assert spell_wait(["run", "--wait"], 20) == ["run", "--wait=20"]
    assert spell_wait(["--wait", "5", "run"], 20) == ["--wait", "5", "run"]
    assert spell_wait(["--wait=7", "run"], 20) == ["--wait=7", "run"]


def test_a_training_without_a_launcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_status(run, "running", 10)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = Attempt.started_ticks(child.pid)
        write_attempt(run, 1, launch="", job="", pid=child.pid, pid_started=started, host=os.uname().nodename)
        assert stop([str(run)]) == 0
        assert "(SIGTERM)" in capsys.readouterr().out
        wait_until(lambda: child.poll() is not None, "it got no signal")
    finally:
        child.kill()
        child.wait()
