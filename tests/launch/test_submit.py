"""`python -m launch submit` and `run` as a user starts them: what is refused, what is queued, what is left.

sbatch, sinfo and scontrol are recording programs; everything else is real.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import COMMANDS
from launch.freeze import freeze, parts_of, work_tree_of
from nn_train.config import load_config
from tests.conftest import ROOT
from tests.launch.shared import HEAVY, Programs, environment, imported, run_launch, said, snapshot

SBATCH = """case "$*" in
  *--test-only*) echo "sbatch: Job 17 to start at 2030-01-01T00:00:00 using 8 processors on nodes n1" >&2 ;;
  *) echo "17;cluster" ;;
esac"""
SINFO = """case "$*" in
  *"%R %D"*) printf 'gpu 2\\ngpu 2\\ncpu 9\\n' ;;
  *"%P"*) printf 'gpu*\\ncpu\\n' ;;
esac"""


class Login:
    """A login node: a working directory, Slurm's programs, and the launcher of a checkout."""

    def __init__(self, folder: Path, checkout: Path = ROOT):
        self.cwd = folder / "work"
        self.cwd.mkdir(parents=True)
        self.checkout = checkout
        self.slurm = Programs(folder / "slurm")
        self.slurm.link("git", "env")
        self.slurm.add("sbatch", SBATCH)
        self.slurm.add("sinfo", SINFO)
        self.slurm.add("scontrol", "exit 1")
        self.slurm.add("squeue", "exit 1")

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return run_launch(
            *words, cwd=self.cwd, env=environment(PATH=str(self.slurm.folder), PYTHONPATH=str(self.checkout))
        )

    @property
    def queued(self) -> list[list[str]]:
        """The calls of sbatch that were meant."""
        return [words for words in self.slurm.calls("sbatch") if "--test-only" not in words]


@pytest.fixture
def login(tmp_path: Path) -> Login:
    return Login(tmp_path)


def alive(login: Login) -> None:
    (login.cwd / "runs/telco/launch").mkdir(parents=True)
    (login.cwd / "runs/telco/launch/job.json").write_text('{"job": "5"}')
    login.slurm.add("scontrol", 'echo "JobId=5 JobName=telco JobState=RUNNING Reason=None"')


def no_sbatch(login: Login) -> None:
    (login.slurm.folder / "sbatch").unlink()


def refuses(login: Login) -> None:
    login.slurm.add("sbatch", 'printf "sbatch: error: Batch job submission failed: Invalid qos\\n" >&2; exit 1')


def stale(login: Login) -> None:
    gone = 'echo "sbatch: error: slurmctld is gone" >&2; exit 1'
    login.slurm.add("sbatch", f'case "$*" in *--test-only*) ;; *) {gone} ;; esac')


def a_file(login: Login) -> None:
    (login.cwd / "file").touch()


def profile(text: str) -> Callable[[Login], None]:
    def write(login: Login) -> None:
        (login.cwd / "mine.yaml").write_text(text)

    return write


def nothing(login: Login) -> None:
    pass


S = "submit"
BAD: list[tuple[list[str], Callable[[Login], None], list[str]]] = [
    ([S, "--nodes=5"], nothing, ["--nodes=5: partition 'gpu' has 4", "--nodes=4 or fewer", "cpu"]),
    ([S, "--partition=fast"], nothing, ["there is no partition 'fast'", "--partition=cpu or gpu"]),
    ([S, "--time=1"], nothing, ["--time=1 is 60 s", "comes 120 s before the end", "--lead"]),
    ([S, "--time=10", "--lead=10m"], nothing, ["--time=10 is 600 s", "comes 600 s"]),
    ([S, "--time=soon"], nothing, ["--time=soon is no walltime", "D-HH"]),
    ([S, "--array=x"], nothing, ["--array=x is no list of tasks", "0-99%10"]),
    ([S, "--nodes=0"], nothing, ["'0' is not a whole number"]),
    ([S, "--gpus-per-node=2", "--processes=3"], nothing, ["3 processes on a node disagree with its 2 GPUs", "--cpu"]),
    ([S, "--proceses=3"], nothing, ["--proceses=3; did you mean '--processes'?"]),
    ([S, "train.max_epochs=3"], nothing, ["words for the script go after a lone --"]),
    ([S, "--", "train.max_epoch=3"], nothing, ["unknown key 'train.max_epoch'; did you mean 'train.max_epochs'?"]),
    ([S, "--", "--epochs=3"], nothing, ["unknown option --epochs"]),
    ([S, "--", "--config", "no.yaml"], nothing, ["no such config file"]),
    ([S, "--cluster=mine.yaml"], profile("gpu_per_node: 1"), ["unknown key 'gpu_per_node'", "'gpus_per_node'"]),
    ([S, "--cluster=nowhere"], nothing, ["there is no such cluster profile", "example"]),
    ([S, "--script=my.py"], nothing, ["there is no such script", "my.py"]),
    ([S], no_sbatch, ["sbatch is not on this machine", "python -m launch run"]),
    ([S], refuses, ["Slurm would refuse this job: error: Batch job submission failed: Invalid qos", "sinfo"]),
    ([S, "--dry-run"], refuses, ["Invalid qos"]),
    ([S], stale, ["sbatch refused: error: slurmctld is gone"]),
    ([S, "--", "run.dir=file/run"], a_file, ["file: the run folder cannot be made: this is a file", "run.dir="]),
    ([S, "--", "run.dir=/proc/1/run"], nothing, ["/proc/1: the run folder cannot be written"]),
    ([S], alive, ["job 5 has this run (running)", "python -m launch cancel"]),
    (["run", "--proceses=3"], nothing, ["did you mean '--processes'?"]),
    (["run", "--", "train.max_epoch=3"], nothing, ["did you mean 'train.max_epochs'?"]),
    (["run", "--script=my.py"], nothing, ["there is no such script"]),
    (["run", "--", "run.dir=file/run"], a_file, ["this is a file"]),
    (["run"], alive, ["job 5 has this run (running)"]),
    (["subbmit"], nothing, ["there is no command 'subbmit'; did you mean 'submit'?"]),
    (["zzz"], nothing, ["there is no command 'zzz'; the commands are run, submit"]),
]


@pytest.mark.parametrize(
    ("words", "prepare", "parts"), BAD, ids=[" ".join((*words, prepare.__name__)) for words, prepare, _ in BAD]
)
def test_bad_input_is_one_message_with_the_mend_and_nothing_is_left(
    login: Login, words: list[str], prepare: Callable[[Login], None], parts: list[str]
) -> None:
    prepare(login)
    before = snapshot(login.cwd)
    done = login(*words)
    message = said(done.stderr)
    assert done.returncode == 2, message
    first, *others = message.splitlines()
    assert first.startswith("error: ") and not any(line.startswith("error: ") for line in others)
    assert sum(line.startswith("  mend: ") for line in others) == 1
    assert "Traceback" not in message
    for part in parts:
        assert part in message
    assert not imported(done.stderr) & HEAVY
    assert snapshot(login.cwd) == before
    assert len(login.queued) == (prepare is stale)  # that one was refused


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_comes_without_torch(command: str, login: Login) -> None:
    done = login(command, "--help")
    assert done.returncode == 0, said(done.stderr)
    assert done.stdout.startswith(f"usage: python -m launch {command}") and said(done.stderr) == ""
    assert not imported(done.stderr) & HEAVY
    assert list(login.cwd.iterdir()) == []


def test_the_help_names_every_command_and_exit_code(login: Login) -> None:
    for words in ((), ("--help",), ("-h",)):
        done = login(*words)
        assert done.returncode == 0 and said(done.stderr) == ""
        for name, (_, text) in COMMANDS.items():
            assert f"  {name} " in done.stdout and text in done.stdout
        for code in ("0 done", "2 your input", "75 saved", "93 given up", "94 a newer attempt"):
            assert code in done.stdout


def test_a_dry_run_shows_script_command_and_environment_and_asks_slurm(login: Login) -> None:
    done = login(S, "--dry-run", "--gpus-per-node=4", "--nodes=2", "--", "train.max_epochs=20")
    assert done.returncode == 0, said(done.stderr)
    for part in (
        f"# {login.cwd}/runs/telco/launch/submit.sh\n#!/usr/bin/env bash\n",
        "#SBATCH --gpus-per-node=4\n",
        "# node 0 of 2\n",
        f"LAUNCH_RUN_DIR={login.cwd}/runs/telco\n",
        "PET_SIGNALS_TO_HANDLE=SIGQUIT\n",
        "-m accelerate.commands.launch --multi_gpu --num_machines 2 --num_processes 8 --machine_rank 0",
        f"{login.cwd}/runs/telco/launch/code/launch/worker.py",
        "# Slurm\nJob 17 to start at 2030-01-01T00:00:00",
    ):
        assert part in done.stdout
    assert (login.queued, list(login.cwd.iterdir())) == ([], [])
    (tested,) = login.slurm.calls("sbatch")
    assert tested[0] == "--test-only" and not Path(tested[1]).exists()
    assert not imported(done.stderr) & HEAVY
    (login.slurm.folder / "sbatch").unlink()
    done = login(S, "--dry-run")
    assert done.returncode == 0 and "sbatch is not on this machine: nothing was asked" in done.stdout


def test_a_dry_run_on_this_machine_starts_nothing(login: Login) -> None:
    done = login("run", "--dry-run", "--cpu", "--processes=2", "--", "train.max_epochs=20")
    assert done.returncode == 0, said(done.stderr)
    assert "--num_processes 2" in done.stdout and "ACCELERATE_USE_CPU=true" in done.stdout
    assert list(login.cwd.iterdir()) == []
    assert not imported(done.stderr) & HEAVY


# ------------------------------------------------------------------------------------------------------ queued


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project in a git of its own, with one change that is not committed."""
    folder = tmp_path / "my checkout"
    for part in ("nn_train", "launch", "configs", "slurm"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "data", folder / "data")
    shutil.copy(ROOT / "pyproject.toml", folder)
    user = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    for words in (["init", "-q"], ["add", "."], [*user, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    with (folder / "nn_train" / "schema.py").open("a") as file:
        file.write("# mine\n")
    return folder


def test_a_run_that_is_queued_is_frozen_in_its_folder(tmp_path: Path, checkout: Path) -> None:
    login = Login(tmp_path / "login", checkout)
    done = login(S, "--nodes=2", "--", "train.max_epochs=7", "data.path=my table.csv", "run.name=mine")
    assert done.returncode == 0, said(done.stderr)
    run_dir = login.cwd / "runs" / "mine"
    assert done.stdout.startswith(f"job 17 is queued; run folder: {run_dir}\n")
    assert login.queued == [["--parsable", str(run_dir / "launch" / "submit.sh")]]
    names = sorted(path.name for path in (run_dir / "launch").iterdir())
    assert names == ["code", "code.diff", "config.yaml", "job.json", "submit.sh"]
    assert os.listdir(run_dir / "logs") == []
    # the code, with what was not committed
    assert (run_dir / "launch/code/nn_train/schema.py").read_text().endswith("# mine\n")
    assert "+# mine" in (run_dir / "launch/code.diff").read_text()
    job = json.loads((run_dir / "launch/job.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert job["job"] == "17" and job["commit"] == head.stdout.strip() and job["code"]
    # the config, resolved
    config = load_config(run_dir / "launch/config.yaml")
    assert (config.train.max_epochs, config.data.path) == (7, str(login.cwd / "my table.csv"))
    # what the checkout becomes later does not reach the run
    (checkout / "nn_train" / "schema.py").write_text("broken = (\n")
    (checkout / "configs" / "telco.yaml").unlink()
    code = run_dir / "launch" / "code"
    assert "broken" not in (code / "nn_train/schema.py").read_text()
    script = (run_dir / "launch/submit.sh").read_text()
    assert f"export PYTHONSAFEPATH=1 PYTHONPATH={code}\n" in script
    source = "import launch.target; print(launch.target.TRAIN)"
    env = environment(PYTHONSAFEPATH="1", PYTHONPATH=str(code), XDG_CACHE_HOME=str(tmp_path))
    found = subprocess.run(
        [sys.executable, "-c", source], cwd=checkout, env=env, capture_output=True, text=True, timeout=120
    )
    assert found.stdout == f"{code}/nn_train/train.py\n", found.stderr
    assert not imported(done.stderr) & HEAVY


def test_a_submission_that_slurm_refuses_at_last_takes_back_what_it_made(login: Login) -> None:
    stale(login)
    run_dir = login.cwd / "runs" / "deep" / "er"
    run_dir.mkdir(parents=True)
    (run_dir / "mine.txt").write_text("a note of the user's")
    before = snapshot(login.cwd)
    for words in (["run.dir=runs/deep/er"], ["run.dir=a/b/c"]):
        done = login(S, "--", *words)
        assert done.returncode == 2 and "slurmctld is gone" in said(done.stderr)
        assert snapshot(login.cwd) == before
    assert len(login.queued) == 2


def test_an_array_is_queued_once_and_frozen_with_its_first_task(login: Login) -> None:
    done = login(S, "--array=3-5", "--", "run.name=seed-%a", "run.seed=%a")
    assert done.returncode == 0, said(done.stderr)
    assert os.listdir(login.cwd / "runs") == ["seed-3"]
    folder = login.cwd / "runs" / "seed-3" / "launch"
    script = (folder / "submit.sh").read_text()
    assert "#SBATCH --array=3-5\n" in script
    assert f"-- --config {folder}/config.yaml run.name=seed-%a run.seed=%a\n" in script
    assert load_config(folder / "config.yaml").run.seed == 0  # what differs from task to task is not frozen
    assert len(login.queued) == 1


def test_another_script_is_queued_with_its_words_as_they_are(login: Login) -> None:
    (login.cwd / "my script.py").touch()
    done = login(S, "--script=my script.py", "--lead=5m", "--", "--lr", "0.1", "a 'b'")
    assert done.returncode == 0, said(done.stderr)
    folder = login.cwd / "runs" / "my script" / "launch"
    script = (folder / "submit.sh").read_text()
    assert "#SBATCH --signal=USR1@300\n" in script
    assert "--lead=300" in script and "-- --lr 0.1 'a '\"'\"'b'\"'\"''\n" in script
    assert not (folder / "config.yaml").exists()


def test_a_run_that_was_queued_before_is_queued_again(login: Login) -> None:
    assert login(S).returncode == 0
    login.slurm.add("scontrol", 'echo "JobId=17 JobState=COMPLETED"')
    assert login(S).returncode == 0
    assert len(login.queued) == 2
    login.slurm.add("scontrol", 'echo "JobId=17 JobState=PENDING"')
    done = login(S)
    assert done.returncode == 2 and "job 17 has this run (pending)" in said(done.stderr)
    assert len(login.queued) == 2


def test_another_projects_script_is_frozen_with_its_work_tree(tmp_path: Path) -> None:
    theirs = tmp_path / "their project"
    (theirs / "src").mkdir(parents=True)
    (theirs / "src" / "go.py").write_text("import near")
    (theirs / "src" / "near.py").write_text("first")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(theirs)]
    for words in (["init", "-q"], ["add", "src/go.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True, timeout=30)
    assert work_tree_of(theirs / "src" / "go.py") == theirs and work_tree_of(tmp_path / "go.py") is None
    assert parts_of(theirs) == ("src",)
    frozen = freeze(theirs, tmp_path / "run" / "launch" / "script", parts=parts_of(theirs))
    (theirs / "src" / "near.py").write_text("second")
    assert frozen.files == 2  # the module that is not tracked yet, too
    assert (tmp_path / "run" / "launch" / "script" / "src" / "near.py").read_text() == "first"
