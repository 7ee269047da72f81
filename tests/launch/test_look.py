"""`ls`, `show` and `logs`: what they say of real runs, and of made-up ones whose state needs a cluster."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.look import goes_on_command, logs, ls, show
from launch.runs import State, describe_bytes, describe_seconds, find_run, list_runs, read_run
from nn_train.attempts import Attempt
from nn_train.errors import UserError
from nn_train.timeline import append_event
from tests.launch.conftest import FakeSlurm, environment, launch_in, write_attempt, write_end, write_status

Capture = pytest.CaptureFixture[str]


# ---- a real run


def test_ls_of_a_real_run(finished_run: Path) -> None:
    started_s = time.monotonic()
    done = launch_in(finished_run.parent.parent, "ls")
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started_s < 5  # no torch
    heads, line = done.stdout.splitlines()
    assert heads.split()[:5] == ["name", "state", "step", "attempts", "crashes"]
    assert line.split()[:7] == ["small", "done", "12", "1", "0", "-", "-"] and line.endswith(" ago")


def test_show_of_a_real_run(finished_run: Path, capsys: Capture) -> None:
    assert show([str(finished_run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("small: done at step 12: max_epochs\n")
    assert f"  config   {finished_run}/config.yaml\n" in said
    assert "  test     roc_auc 0." in said
    assert "  attempt  1: done, steps 0 -> 12, process " in said
    assert "goes on" not in said
    assert show([str(finished_run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["step"], facts["job"], facts["goes_on"]) == ("done", 12, None, "")
    assert facts["words"][-1] == f"run.dir={finished_run}" and facts["disk_bytes"] > 10_000
    assert facts["attempts"][0]["hosts"] == [os.uname().nodename] and facts["attempts"][0]["error"] is None


def test_logs_of_a_real_run(finished_run: Path, capsys: Capture) -> None:
    run, host = str(finished_run), os.uname().nodename
    assert logs([run]) == 0
    everything = capsys.readouterr().out
    assert everything == (finished_run / "logs" / "attempt-0001" / f"{host}-rank-0.log").read_text()
    assert logs(["-n", "2", run]) == 0
    assert capsys.readouterr().out.splitlines() == everything.splitlines()[-2:]
    assert logs(["-n", "0", run]) == 0
    assert capsys.readouterr().out == ""
    assert logs(["--all", "-n", "1", run]) == 0
    assert capsys.readouterr().out == f"{host} 0: {everything.splitlines()[-1]}\n"
    assert logs(["-f", "-n", "1", run]) == 0
    captured = capsys.readouterr()
    assert captured.out == everything.splitlines()[-1] + "\n"
    assert captured.err == "==> attempt 1 done at step 12; the run is done (max_epochs)\n"


def test_logs_that_are_not_there(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such log") as caught:
        logs(["--rank", "7", str(finished_run)])
    assert "rank-1.log" in caught.value.fix
    with pytest.raises(UserError, match="no such log"):
        logs(["--host", "n9", str(finished_run)])
    with pytest.raises(UserError, match="no attempt 2"):
        logs(["--attempt", "2", str(finished_run)])
    with pytest.raises(UserError, match="no number of lines"):
        logs(["-n", "-1", str(finished_run)])
    write_status(tmp_path, "done", 1)
    with pytest.raises(UserError, match="no attempt has begun"):
        logs([str(tmp_path)])
    write_attempt(tmp_path, 1, launch="", job="")
    for words in ([], ["-f"]):
        with pytest.raises(UserError, match="no launcher started"):
            logs([*words, str(tmp_path)])


def test_a_reader_that_goes_away(finished_run: Path) -> None:
    words = [sys.executable, "-m", "launch", "logs", "--all", str(finished_run)]
    command = f'{" ".join(words)} | head -n 1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], env=environment(finished_run), capture_output=True, text=True)
    assert done.stderr == ""


def test_a_moved_run_goes_on_by_its_command(finished_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run, tmp_path / "moved"))
    (run / "attempts" / "0001.end.json").unlink()
    write_status(run, "stopped", 5)
    assert goes_on_command(read_run(run)) == (
        f"python -m launch run --processes=2 --cpu -- --config {run}/config.yaml run.dir={run}"
    )
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("\n  resume: auto\n", "\n  resume: never\n"))
    assert goes_on_command(read_run(run)).endswith(" checkpoint.resume=auto")


# ---- made-up runs


def mine(**more: object) -> dict[str, object]:
    """An attempt of a process that lives: this one."""
    pid = os.getpid()
    return {"job": "", "launch": "x", "host": os.uname().nodename, "pid": pid,
            "pid_started": Attempt.started_ticks(pid)} | more  # fmt: skip


LOCAL_STATES: list[tuple[State, dict[str, object], tuple[str, dict[str, object]] | None, str]] = [
    ("training", mine(), None, "running"),
    ("training", mine(), ("crashed", {}), "running"),  # the next attempt begins
    ("done", mine(), ("done", {}), "done"),
    ("lost", mine(pid_started=1), None, "running"),  # another process has the id now
    ("saved", mine(pid_started=1), None, "stopped"),
    ("failed", mine(pid_started=1, launch=""), None, "failed"),
    ("saved", mine(pid_started=1), ("stopped", {"reason": "requested"}), "stopped"),
    ("failed", mine(pid_started=1), ("wrong_input", {}), "failed"),
    ("lost", mine(pid_started=1), ("crashed", {}), "failed"),  # the launcher was killed before it began the next
]


@pytest.mark.parametrize(("state", "attempt", "end", "status"), LOCAL_STATES)
def test_states_on_this_machine(
    tmp_path: Path,
    state: State,
    attempt: dict[str, object],
    end: tuple[str, dict[str, object]] | None,
    status: str,
) -> None:
    write_status(tmp_path, status, 10)
    write_attempt(tmp_path, 1, **attempt)
    if end:
        write_end(tmp_path, 1, end[0], **end[1])
    assert read_run(tmp_path).state == state


def test_given_up(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", 10)
    for number in (1, 2):
        write_attempt(tmp_path, number, **mine(pid_started=1))
        write_end(tmp_path, number, "crashed", first_step=10)
    run = read_run(tmp_path)
    assert (run.state, run.why) == ("given up", "no progress in 2 attempts in a row, at step 10")


def test_a_host_that_cannot_be_asked(tmp_path: Path) -> None:
    write_status(tmp_path, "running", 10)
    write_attempt(tmp_path, 1, **mine(host="elsewhere"))
    assert read_run(tmp_path).state == "training"
    for name in ("status.json", "attempts"):
        os.utime(tmp_path / name, (1, 1))
    assert read_run(tmp_path).state == "lost"


JOB_STATES: list[tuple[State, str, str | None, str]] = [
    ("training", "RUNNING", None, "running"),
    ("queued", "PENDING", "stopped", "stopped"),
    ("queued", "PENDING", None, "running"),  # requeued by Slurm after its node was lost
    ("training", "RUNNING", "stopped", "stopped"),
    ("training", "COMPLETING", None, "running"),
    ("done", "COMPLETED", "done", "done"),
    ("saved", "CANCELLED", None, "stopped"),
    ("lost", "NODE_FAIL", None, "running"),
]


@pytest.mark.parametrize(("state", "job", "end", "status"), JOB_STATES)
def test_states_of_jobs(
    tmp_path: Path, fake_slurm: FakeSlurm, state: State, job: str, end: str | None, status: str
) -> None:
    run = tmp_path / "run"
    write_status(run, status, 10)
    write_attempt(run, 1)
    if end:
        write_end(run, 1, end)
    fake_slurm.answer("squeue", f"17|17|{job}|n1|1:00:00|None")
    assert read_run(run).state == state


def test_a_queue_that_has_forgotten_and_one_that_does_not_answer(tmp_path: Path, fake_slurm: FakeSlurm) -> None:
    run = tmp_path / "run"
    write_status(run, "running", 10)
    write_attempt(run, 1)
    fake_slurm.answer("squeue", "slurm_load_jobs error: Invalid job id specified", code=1)
    assert (read_run(run).state, read_run(run).is_alive) == ("lost", False)
    fake_slurm.answer("squeue", "slurm_load_jobs error: Unable to contact slurm controller", code=1)
    assert (read_run(run).state, read_run(run).is_alive) == ("training", None)  # its files are fresh
    shutil.rmtree(run / "attempts")
    (run / "status.json").unlink()
    (run / "launch").mkdir()
    (run / "launch" / "job.json").write_text('{"job": "17"}')
    fake_slurm.answer("squeue", "17|17|PENDING||1:00:00|Priority")
    assert (read_run(run).state, read_run(run).why) == ("queued", "Priority")
    fake_slurm.answer("squeue", "")
    assert read_run(run).state == "new"


def test_ls_asks_the_queue_once(tmp_path: Path, fake_slurm: FakeSlurm, capsys: Capture) -> None:
    for job in (17, 18, 19):
        run = tmp_path / "runs" / ("sweep" if job > 17 else "") / f"run-{job}"
        write_status(run, "running", job)
        write_attempt(run, 1, job=str(job), launch=str(job), host="n3")
        os.utime(run / "status.json", (job, job))
        os.utime(run / "attempts", (job, job))
    (tmp_path / "runs" / "other").mkdir()
    fake_slurm.answer("squeue", "17|17|RUNNING|n3|0:10|None\n19|18_2|RUNNING|n3|0:10|None")
    assert ls([str(tmp_path / "runs")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:3] for line in lines] == [
        ["sweep/run-19", "training", "19"],
        ["sweep/run-18", "lost", "18"],
        ["run-17", "training", "17"],
    ]
    assert lines[2][5:8] == ["17", "RUNNING", "n3"]
    assert len(fake_slurm.calls("squeue")) == 1 and "-j 17,18,19 " in fake_slurm.calls("squeue")[0]
    assert ls([str(tmp_path / "runs"), "--json"]) == 0
    assert [run["job_state"] for run in json.loads(capsys.readouterr().out)] == ["RUNNING", "", "RUNNING"]


def test_ls_of_nothing(tmp_path: Path, capsys: Capture) -> None:
    assert ls([str(tmp_path)]) == 0
    assert "no runs in" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such folder"):
        ls([str(tmp_path / "none")])


def test_show_of_a_job_with_its_first_error(tmp_path: Path, fake_slurm: FakeSlurm, capsys: Capture) -> None:
    run = tmp_path / "run"
    write_status(run, "running", 10)
    write_attempt(run, 1)
    write_end(run, 1, "crashed", reason="process 1 on n2 ended with exit code 1")
    write_attempt(run, 2, first_step=10)
    (run / "launch").mkdir()
    plan = {"run_dir": "/old", "attempt": 1, "launch": "17", "script": "/code/nn_train/train.py", "words": ["a=1"],
            "nodes": ["n1", "n2"], "job": "17"}  # fmt: skip
    for number in (1, 2):
        (run / "launch" / f"plan-{number:04d}.json").write_text(json.dumps(plan | {"attempt": number}))
    log_dir = run / "logs" / "attempt-0001"
    log_dir.mkdir(parents=True)
    (log_dir / "n2-rank-1.exit.json").write_text('{"rank": 1, "host": "n2", "code": 1, "ended_s": 1.0}')
    (log_dir / "n2-rank-1.log").write_text("RuntimeError: out of memory\n")
    (run / "environment.json").write_text('{"run_id": "abc"}')
    for name in ("offline-run-20260102_000000-abc", "offline-run-20260101_000000-abc"):
        (run / "wandb" / name).mkdir(parents=True)
    fake_slurm.answer("squeue", "17|17|RUNNING|n[1-2]|59:00|None")
    fake_slurm.answer(
        "scontrol", "JobId=17 JobName=x JobState=RUNNING Reason=None Partition=low Restarts=1 RunTime=1:00"
    )
    assert show([str(run)]) == 0
    said = capsys.readouterr().out
    assert (
        "  job      id 17, state RUNNING, reason None, partition low, run time 1:00, restarts 1, time left 59:00\n"
        in said
    )
    assert "  attempt  1: crashed (process 1 on n2 ended with exit code 1), steps 0 -> 10, job 17 on n1,n2" in said
    assert f"first error: process 1 on n2 ended with exit code 1\n           {log_dir}/n2-rank-1.log\n" in said
    assert "           | RuntimeError: out of memory\n" in said
    assert "  attempt  2: running, steps 10 -> ?" in said
    first, second = said.split("wandb sync --id abc ")[1].split()
    assert first < second
    fake_slurm.answer("squeue", "")
    fake_slurm.answer("scontrol", "gone", code=1)
    fake_slurm.answer("sacct", "NODE_FAIL|0:0|00:01:00||2")
    assert show([str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["job"] == {"id": "17", "sacct_State": "NODE_FAIL", "sacct_ExitCode": "0:0",
                            "sacct_Elapsed": "00:01:00", "sacct_NNodes": "2"}  # fmt: skip
    assert (facts["state"], facts["attempts"][1]["kind"]) == ("lost", "no word")
    assert facts["goes_on"] == "sbatch --nodes=2 slurm/train.sh -- a=1"
    (run / "launch" / "submit.sh").touch()
    assert goes_on_command(read_run(run)) == f"sbatch {run}/launch/submit.sh"


def test_show_says_where_the_time_went(tmp_path: Path, capsys: Capture) -> None:
    write_status(tmp_path, "done", 60)
    assert show([str(tmp_path)]) == 0
    assert "timeline" not in capsys.readouterr().out
    append_event(tmp_path, "start", attempt=1, step=0, processes=1, prepare_s=40.0)
    append_event(tmp_path, "train", attempt=1, step=0, repeats=0)
    append_event(tmp_path, "checkpoint_failed", attempt=1, step=50, why="full")
    append_event(tmp_path, "trained", attempt=1, step=60, elapsed_s=0.0, why="max_steps")
    assert show([str(tmp_path)]) == 0
    assert (
        "  timeline goodput 1.00: 40.0 s useful of 40.0 s\n           1 of 1 checkpoint could not be written\n"
        in capsys.readouterr().out
    )
    assert show([str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["timeline"]
    assert facts["words"].startswith("goodput 1.00: ") and facts["checkpoints_failed"] == 1
    assert facts["goodput"] > 0.9 and set(facts["parts"]) > {"training", "waiting"}


def test_finding_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_status(tmp_path / "runs" / "telco", "done", 1)
    monkeypatch.chdir(tmp_path)
    assert find_run("telco") == find_run("runs/telco") == find_run("runs/telco/") == tmp_path / "runs" / "telco"
    with pytest.raises(UserError, match="did you mean 'telco'"):
        find_run("telko")
    with pytest.raises(UserError, match="holds no run"):
        find_run("runs")
    assert list_runs(Path("runs/telco")) == [Path("runs/telco")]


def test_units() -> None:
    assert [describe_seconds(s) for s in (0, 59.9, 61, 7200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert [describe_bytes(n) for n in (0, 999, 1200, 1_234_567)] == ["0 B", "999 B", "1.2 kB", "1.2 MB"]
    assert describe_bytes(5 * 10**12) == "5.0 TB"
