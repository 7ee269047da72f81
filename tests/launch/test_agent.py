"""A node's agent and `launch run` with a script that is not the project's: real processes under accelerate launch.

`accelerate launch` takes seconds to start, so all are started at once, and each test looks at its own.
"""

import contextlib
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.agent import _children, processes_of
from launch.history import read_outcomes
from launch.job import start_attempt
from launch.outcome import Outcome, read_outcome
from launch.place import local_place
from launch.plan import Plan, request_stop
from launch.request import Options
from launch.target import resolve_target
from nn_train.attempts import claim, list_attempts
from tests.conftest import ROOT
from tests.launch.shared import environment, is_running, wait_for

HOST = socket.gethostname()
SECONDS = 120  # until all have started, on a machine that others use too
POLITE = """
import os, pathlib, sys, time
stop = pathlib.Path(os.environ["LAUNCH_STOP_FILE"])
print("ids", os.getpid(), flush=True)
while not stop.exists():
    time.sleep(0.02)
print("told", stop.read_text(), flush=True)
sys.exit(75)
"""
DEAF = POLITE.replace("not stop.exists()", "True")
HELPED = POLITE.replace(
    'print("ids", os.getpid(), ',
    'import subprocess\nhelper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
    'print("ids", os.getpid(), helper.pid, ',
)
SIGNALLED = """
import os, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
print("ids", os.getpid(), flush=True)
time.sleep(600)
"""
CRASHES_ONCE = """
import os
print("goes on", os.environ["LAUNCH_GOES_ON"], flush=True)
if os.environ["LAUNCH_ATTEMPT"] == "1":
    raise ValueError("boom of the first attempt")
"""
SCRIPTS = {
    "polite": POLITE,
    "deaf": DEAF,
    "signalled": SIGNALLED,
    "helped": HELPED,
    "crashes_once": CRASHES_ONCE,
    "crashes": "raise ValueError('boom')",
    "wrong_input": "import sys; print('error: no such column', file=sys.stderr); sys.exit(2)",
}


class Started:
    """A process of the launcher, and what its script says."""

    def __init__(self, process: subprocess.Popen[str], run_dir: Path):
        self.process = process
        self.run_dir = run_dir
        self.ended_s = 0.0  # on the clock; the test may look at it much later
        threading.Thread(target=self._note_end, daemon=True).start()

    def _note_end(self) -> None:
        self.process.wait()
        self.ended_s = time.time()

    def log(self, attempt: int = 1) -> str:
        file = self.run_dir / "logs" / f"attempt-{attempt:04d}" / f"{HOST}-rank-0.log"
        return file.read_text() if file.exists() else ""

    @property
    def ids(self) -> list[int]:
        """The script and its helper, once they run."""
        # the whole line: an unbuffered print writes it piece by piece
        found = re.search(r"^ids ([\d ]+).*\n", self.log(), re.MULTILINE)
        return [int(word) for word in found[1].split()] if found else []

    def wait_for_script(self) -> None:
        wait_for(lambda: self.ids or self.process.poll() is not None, what="the script runs", seconds=SECONDS)
        assert self.ids, self.process.communicate()[0]

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """Wait for its end; the exit code and what it said."""
        said, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, said

    def interrupt(self) -> None:
        """Ctrl-C, which a terminal sends to every process of the group."""
        os.killpg(self.process.pid, signal.SIGINT)

    @property
    def leftovers(self) -> list[int]:
        """Processes of any attempt of this run."""
        return [pid for a in list_attempts(self.run_dir) for pid in processes_of(f"{a.launch}-{a.number}")]


class Agent(Started):
    """An agent that was started by itself, with a plan of its own."""

    def __init__(self, folder: Path, env: dict[str, str], script: str = "polite", **changes: object):
        target = resolve_target(["word"], script=str(folder.parent / f"{script}.py"), run_dir=str(folder))
        launch = f"{folder.parent.parent.name}-{folder.name}"  # own to this run of the tests
        plan = start_attempt(target, Options(cpu=True), local_place(), launch=launch, processes=1, gpus=0)
        self.plan = dataclasses.replace(plan, **changes)  # type: ignore[arg-type]
        self.plan.write()
        super().__init__(popen(["launch.agent", str(plan.file)], env, folder.parent), folder)

    @property
    def outcome(self) -> Outcome:
        return read_outcome(self.plan)


def popen(words: list[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        env=env,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def all_started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Started]]:
    """Every agent and launch of this file, by name."""
    folder = tmp_path_factory.mktemp("agents") / "a folder"
    folder.mkdir()
    for name, source in SCRIPTS.items():
        (folder / f"{name}.py").write_text(source)
    # what a shell inside salloc holds must change nothing
    left_over = {"SLURM_PROCID": "3", "SLURM_GPUS_ON_NODE": "4", "PMI_RANK": "1", "PMI_SIZE": "2", "RANK": "1"}
    own_places = {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "TMPDIR": str(folder)}
    env = environment(**own_places, OMP_NUM_THREADS="1", **left_over)
    started: dict[str, Started] = {}
    soon_s = time.time() + 145
    try:
        for name, script, changes in (
            ("request", "polite", {}),
            ("by_hand", "polite", {}),
            ("term", "polite", {}),
            ("usr1", "polite", {"end_time": soon_s, "lead_s": 60.0}),
            ("late", "polite", {"end_time": 1.0}),
            ("fenced", "helped", {}),
            ("killed", "helped", {}),
            ("deaf", "deaf", {"grace_s": 0.5}),
            ("out_of_time", "deaf", {"end_time": time.time() + 60, "lead_s": 48.0}),  # ended 12 s before
            ("signalled", "signalled", {"stop_signal": "SIGUSR2"}),
            ("helper", "helped", {}),
        ):
            started[name] = Agent(folder / name, env, script, **changes)
        for name, script, words in (
            ("crashes_once", "crashes_once", []),
            ("crashes", "crashes", ["--max-restarts=5"]),
            ("no_budget", "crashes", ["--max-restarts=0"]),
            ("wrong_input", "wrong_input", []),
            ("ctrl_c", "polite", []),
            ("ctrl_c_twice", "deaf", []),
            ("run_killed", "polite", []),
        ):
            own = [f"--script={folder / script}.py", f"--run-dir={folder / name}", "--cpu", *words]
            started[name] = Started(popen(["launch", "run", *own, "--", "a word"], env, folder), folder / name)
        yield started
    finally:
        for each in started.values():
            each.process.kill()  # what it started dies with it
            each.process.communicate()
            for pid in each.leftovers:  # but for helpers of a script
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def started(all_started: dict[str, Started], request: pytest.FixtureRequest) -> Started:
    """The one that a test names."""
    return all_started[request.param]


def agent(started: Started) -> Agent:
    assert isinstance(started, Agent)
    return started


def named(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("started", [name], indirect=True, ids=[name])


def check_stopped(agent: Agent, reason: str) -> None:
    """It saved and ended for this reason, and nothing is left of it."""
    code, said = agent.end()
    assert code == 0, said
    assert agent.outcome == Outcome(kind="stopped", reason=reason, first_step=0)
    assert f"told {reason}\n" in agent.log() and f"told {reason}\n" in said
    assert agent.leftovers == []


@named("request")
def test_a_stop_request_reaches_the_script(started: Started) -> None:
    started.wait_for_script()
    request_stop(agent(started).plan.stop_request, "rehearsal")
    check_stopped(agent(started), "rehearsal")


@named("by_hand")
def test_a_file_named_stop_in_the_run_folder_reaches_the_script_once(started: Started) -> None:
    started.wait_for_script()
    (started.run_dir / "STOP").touch()
    check_stopped(agent(started), "requested")
    assert not (started.run_dir / "STOP").exists()


@named("term")
def test_sigterm_to_the_agent_is_a_preemption(started: Started) -> None:
    started.wait_for_script()
    started.process.terminate()
    check_stopped(agent(started), "preempted")
    assert agent(started).plan.stop_request.read_text() == "preempted"  # for the agents of other nodes


@named("usr1")
def test_the_lead_signal_near_the_end_is_the_walltime(started: Started) -> None:
    started.wait_for_script()
    started.process.send_signal(signal.SIGUSR1)
    check_stopped(agent(started), "walltime")


@named("late")
def test_where_slurms_signal_never_came_the_clock_tells(started: Started) -> None:
    wait_for(lambda: started.process.poll() is not None, what="it ended by itself", seconds=SECONDS)
    check_stopped(agent(started), "walltime")


@named("fenced")
def test_an_agent_leaves_at_once_when_a_newer_attempt_owns_the_run(started: Started) -> None:
    started.wait_for_script()
    ids = started.ids
    claim(started.run_dir)
    code, said = started.end(seconds=3)
    assert code == 94, said
    wait_for(lambda: not any(map(is_running, ids)), what="the script and its helper are gone", seconds=2)
    assert not list(agent(started).plan.log_dir.glob("*-agent.json"))  # it wrote nothing more
    assert started.leftovers == []


@named("killed")
def test_a_killed_agent_leaves_no_launcher_and_no_script(started: Started) -> None:
    started.wait_for_script()
    script, helper = started.ids
    started.process.kill()
    own = agent(started).plan.rendezvous_id
    # a helper that the script started is the script's own to end; in a job Slurm ends it
    wait_for(lambda: set(processes_of(own)) <= {helper}, what="launcher, worker and script are gone")
    assert not is_running(script)
    os.kill(helper, signal.SIGKILL)
    started.end()


@named("deaf")
def test_a_script_that_does_not_stop_is_ended_after_the_grace(started: Started) -> None:
    started.wait_for_script()
    request_stop(agent(started).plan.stop_request, "walltime")
    code, _ = started.end()
    assert code == 1
    outcome = agent(started).outcome
    assert (outcome.kind, outcome.reason) == ("crashed", "walltime")
    assert started.leftovers == []


@named("out_of_time")
def test_a_script_that_does_not_stop_is_ended_before_the_walltime(started: Started) -> None:
    code, _ = started.end(SECONDS)  # Slurm would never requeue a job that meets its limit
    wait_for(lambda: started.ended_s, what="its end is noted")
    assert code == 1 and started.ended_s < (agent(started).plan.end_time or 0)
    assert (agent(started).outcome.kind, agent(started).outcome.reason) == ("crashed", "walltime")


@named("signalled")
def test_a_script_that_knows_no_stop_file_gets_its_own_signal(started: Started) -> None:
    started.wait_for_script()
    request_stop(agent(started).plan.stop_request, "requested")
    code, said = started.end()
    assert code == 0, said
    assert agent(started).outcome.kind == "stopped"


@named("helper")
def test_helpers_that_a_script_left_are_swept_up(started: Started) -> None:
    started.wait_for_script()
    _, helper = started.ids
    request_stop(agent(started).plan.stop_request, "requested")
    check_stopped(agent(started), "requested")
    assert not is_running(helper)


# ------------------------------------------------------------------------------------------------- launch run


@named("crashes_once")
def test_a_script_that_crashed_is_started_again(started: Started) -> None:
    code, said = started.end(SECONDS)
    assert code == 0, said
    assert started.log(1).startswith("goes on 0\n") and started.log(2) == "goes on 1\n"
    for line in (
        f"first error: process 0 on {HOST} ended with exit code 1",
        f"  {started.run_dir}/logs/attempt-0001/{HOST}-rank-0.log",
        "  | ValueError: boom of the first attempt",
        "attempt 1: crashed: restart 1 of 10",
        "attempt 2: done: done",
    ):
        assert line in said.splitlines()
    assert started.leftovers == []


@named("crashes")
def test_a_script_that_crashes_without_progress_is_given_up_after_two(started: Started) -> None:
    code, said = started.end(SECONDS)
    assert code == 93, said
    assert len(list_attempts(started.run_dir)) == 2
    assert "no progress in 2 attempts in a row" in said


@named("no_budget")
def test_without_a_budget_the_first_crash_is_the_last(started: Started) -> None:
    code, said = started.end(SECONDS)
    assert code == 93, said
    assert len(list_attempts(started.run_dir)) == 1
    assert "0 restarts are the budget" in said


@named("wrong_input")
def test_what_the_user_must_mend_is_not_started_again(started: Started) -> None:
    code, said = started.end(SECONDS)
    assert code == 2, said
    assert len(list_attempts(started.run_dir)) == 1
    assert "  | error: no such column" in said and "this is for you to mend" in said


@named("ctrl_c")
def test_ctrl_c_has_the_script_save_and_end(started: Started) -> None:
    started.wait_for_script()
    started.interrupt()
    code, said = started.end()
    assert code == 75, said
    assert "told interrupted\n" in started.log()
    assert "attempt 1: stopped: saved (interrupted); the same command goes on" in said
    assert started.leftovers == []


@named("ctrl_c_twice")
def test_a_second_ctrl_c_ends_at_once_and_nothing_is_started_again(started: Started) -> None:
    started.wait_for_script()
    started.interrupt()
    stop = started.run_dir / "attempts" / "0001.stop"
    wait_for(lambda: stop.exists() and stop.read_text(), what="the first one was heard")
    time.sleep(1)
    assert started.process.poll() is None
    started.interrupt()
    code, said = started.end()
    assert code == 75, said
    assert "not saved in time (interrupted)" in said
    (attempt,) = list_attempts(started.run_dir)
    assert [outcome.kind for outcome in read_outcomes(started.run_dir, attempt.launch)] == ["crashed"]
    assert started.leftovers == []


@named("run_killed")
def test_a_killed_launch_leaves_no_agent_and_no_script(started: Started) -> None:
    started.wait_for_script()
    assert len(started.leftovers) == 3  # accelerate launch, worker, script
    (agent_pid,) = _children(started.process.pid)
    started.process.kill()
    wait_for(lambda: not started.leftovers and not is_running(agent_pid), what="all are gone", seconds=2)
    started.end()


def test_a_plan_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"attempt": 1}')
    done = subprocess.run(
        [sys.executable, "-m", "launch.agent", str(tmp_path / "plan.json")],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/plan.json: this is not the plan of an attempt")
    with pytest.raises(Exception, match="this is not the plan"):
        Plan.read(tmp_path / "none.json")
