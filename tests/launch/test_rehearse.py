"""`rehearse` on a run that really trains, and what it says where that goes wrong."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.outcome import Outcome
from launch.plan import Plan
from launch.rehearse import Limit, Trial, find_wrong_lines, judge, list_limits, main, read_kill_wait
from nn_train.errors import UserError
from tests.launch.conftest import FakeSlurm, LiveRun, environment, write_attempt, write_end, write_status

LEAD = Limit(name="lead", seconds=120, fix="a longer --lead")


@contextmanager
def follow(run: LiveRun) -> Iterator["subprocess.Popen[str]"]:
    """`logs -f` beside the run."""
    words = [sys.executable, "-m", "launch", "logs", "-f", "-n", "3", "live"]
    environ, out = environment(run.folder / "cache"), subprocess.PIPE
    process = subprocess.Popen(words, cwd=run.folder, env=environ, text=True, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_that_trains(live_run: LiveRun) -> None:
    with follow(live_run) as follower:
        done = live_run.launch("rehearse", "live", "--wait=60")
        assert done.returncode == 0, done.stdout + done.stderr
        asked, saved, verdict = done.stdout.splitlines()
        assert asked.startswith("asked attempt 1 (process ")
        assert saved.startswith("saved after ")
        assert " of 120 s lead; training again after " in verdict and verdict.endswith("; 0 steps lost")
        end = json.loads((live_run.run_dir / "attempts" / "0001.end.json").read_text())
        assert (end["kind"], end["reason"]) == ("stopped", "rehearsal")
        assert live_run.metrics_step() > end["last_step"]

        assert live_run.launch("cancel", "live").returncode == 0
        assert live_run.end()[0] == 75
        said, _ = follower.communicate(timeout=20)
    assert follower.returncode == 0
    assert "==> attempt 1 stopped (rehearsal) at step " in said and "; attempt 2 begins" in said
    assert "from step " in said  # the second attempt's own words
    assert said.splitlines()[-1].endswith("the run is saved (cancelled)")

    refused = live_run.launch("rehearse", "live")
    assert refused.returncode == 2
    assert "it is saved" in refused.stderr and "python -m launch run" in refused.stderr


def test_faults_are_met_and_recovered_from(live_run: LiveRun) -> None:
    live_run.start()
    refused = live_run.launch("rehearse", "live", "--fault", "burn")
    assert refused.returncode == 2 and "the fault 'burn@step" in refused.stderr
    number = len(list((live_run.run_dir / "attempts").glob("????.json")))
    done = live_run.launch("rehearse", "live", "--wait=60", "--fault", "stop")
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = done.stdout.splitlines()[-1]
    shape = r"stop@step,after=20,rank=0: ended after [\d.]+ s; training again after [\d.]+ s; \d+ steps made again$"
    assert re.match(shape, verdict), done.stdout
    files = [live_run.run_dir / "attempts" / f"{n:04d}.end.json" for n in (number, number + 1)]
    assert [json.loads(file.read_text())["kind"] for file in files] == ["stopped", "crashed"]
    plans = [live_run.run_dir / "launch" / f"plan-{n:04d}.json" for n in range(number, number + 3)]
    assert [bool(json.loads(plan.read_text())["faults"]) for plan in plans] == [False, True, False]  # once
    assert live_run.launch("cancel", "live").returncode == 0
    assert live_run.end()[0] == 75


def test_refuses_what_does_not_train(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = tmp_path / "run"
    write_status(run, "running", 10)
    write_attempt(run, 1)
    write_end(run, 1, "stopped")
    fake_slurm.answer("squeue", "17|17|PENDING||1:00:00|Resources")
    with pytest.raises(UserError, match="job 17 is queued"):
        main([str(run)])
    fake_slurm.answer("squeue", "17|17|RUNNING|n1|1:00:00|None")
    with pytest.raises(UserError, match="about to begin"):
        main([str(run)])
    write_attempt(run, 2)
    with pytest.raises(UserError, match="no launcher began"):
        main([str(run)])


def test_limits_of_a_job(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    plan = Plan(run_dir=str(tmp_path), attempt=1, launch="17", script="x", words=(), nodes=("n1",), job="17", lead_s=60)
    case = """
case "$*" in
  "show config") echo "KillWait                = 30 sec" ;;
  *partition*) echo "PartitionName=low GraceTime=8 Hidden=NO PreemptMode=REQUEUE State=UP" ;;
  *job*) echo "JobId=17 JobName=x JobState=RUNNING Partition=low AllocNode:Sid=n1:1" ;;
esac"""
    fake_slurm.answer("scontrol", "", then=case)
    assert [limit.seconds for limit in list_limits(plan)] == [60, 30, 38]
    fake_slurm.answer("scontrol", "", then=case.replace("PreemptMode=REQUEUE", "PreemptMode=OFF"))
    assert [limit.seconds for limit in list_limits(plan)] == [60, 30]
    fake_slurm.answer("scontrol", "no controller", code=1)
    assert [limit.seconds for limit in list_limits(plan)] == [60]
    assert read_kill_wait("KillOnBadExit           = 0\nKillWait                = 5 sec\n") == 5
    assert read_kill_wait("") is None


def test_verdicts(tmp_path: Path) -> None:
    stopped = Outcome(kind="stopped", reason="rehearsal", first_step=0, last_step=40)
    good = Trial(attempt=1, outcome=stopped, saved_s=1.26, back_s=9.81)
    saw = judge(good, [LEAD], folder=tmp_path, wait_s=60)
    assert saw == ("saved in 1.3 s of 120 s lead; training again after 9.8 s; 0 steps lost", [])

    slow = Trial(attempt=1, outcome=stopped, saved_s=130, back_s=140)
    _, problems = judge(slow, [LEAD, Limit(name="KillWait", seconds=30)], folder=tmp_path, wait_s=60)
    assert problems == ["problem: saving took longer than the 120 s of lead", "  mend: a longer --lead"]

    gone = Trial(attempt=1, outcome=stopped, saved_s=1, lost_steps=3)
    verdict, problems = judge(gone, [LEAD], folder=tmp_path, wait_s=60)
    assert "not training again; 3 steps lost" in verdict
    assert [line.startswith("problem") for line in problems] == [True, False] * 2

    deaf = Trial(attempt=1)
    verdict, problems = judge(deaf, [LEAD], folder=tmp_path, wait_s=60)
    assert verdict == "not saved in 60 s" and "LAUNCH_STOP_FILE" in problems[1]

    crashed = Outcome(kind="crashed", reason="process 1 on n2 was killed by signal 9", first_step=0, last_step=40)
    verdict, problems = judge(Trial(attempt=1, outcome=crashed, saved_s=1), [LEAD], folder=tmp_path, wait_s=60)
    assert verdict == "not saved: attempt 1 crashed" and "process 1 on n2" in problems[0]

    finished = Trial(attempt=1, outcome=Outcome(kind="done"), saved_s=1)
    assert judge(finished, [LEAD], folder=tmp_path, wait_s=60)[1]


def test_lines_that_are_twice_missing_or_disordered() -> None:
    steps = [("train", step) for step in range(10, 80, 10)]
    assert find_wrong_lines([*steps, ("val", 30), ("val", 60)], saved_step=45) == ""
    assert find_wrong_lines([*steps, ("train", 40)], saved_step=45) == "steps that are there twice: 40"
    holey = [line for line in steps if line[1] != 50]
    assert find_wrong_lines(holey, saved_step=45) == "no line of split 'train' between steps 40 and 60"
    assert "out of order" in find_wrong_lines(steps[::-1], saved_step=45)
    assert find_wrong_lines([], saved_step=45) == ""
