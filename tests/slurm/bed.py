"""A cluster with a table on it: jobs of 2 nodes x 2 processes that really train, and the one oracle for all faults."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from nn_train.attempts import list_attempts
from nn_train.run_folder import read_json
from tests.conftest import ROOT, SMALL, make_table
from tests.slurm.cluster import Cluster
from tests.test_tracking import offline_runs, read_history, read_records
from tests.test_worlds import digest, last_weights

SCRIPT = ROOT / "slurm" / "train.sh"
STEPS = 400
SHORT_STEPS = 150
SIZE = ("--nodes=2", "--ntasks-per-node=2", "--exclusive")
WORDS = (
    *SMALL,
    "data.target=y",
    "train.global_batch_size=64",
    "train.eval_every=100",
    "checkpoint.every_steps=40",
    "tracking.log_every_steps=1",
)


class Run:
    """One job and the run folder that it writes."""

    def __init__(self, bed: "Bed", job: str, folder: Path):
        self.bed, self.job, self.folder = bed, job, folder

    @property
    def step(self) -> int:
        """The last step in metrics.jsonl; 0 before the first."""
        lines = self.train_lines()
        return lines[-1]["step"] if lines else 0

    def train_lines(self) -> list[dict]:
        """The lines of train steps; a last one that is being written is left out."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        whole = [line for line in lines if line.endswith("}")]
        return [record for line in whole if (record := json.loads(line))["split"] == "train"]

    @property
    def attempts(self) -> int:
        """How often it was started."""
        return len(list_attempts(self.folder))

    def end_of(self, number: int) -> dict:
        """How an attempt ended."""
        return json.loads((self.folder / "attempts" / f"{number:04d}.end.json").read_text())

    def status(self) -> dict:
        """The run's own word."""
        return json.loads((self.folder / "status.json").read_text())

    def output(self) -> str:
        """What the batch script and process 0 said."""
        return "".join(path.read_text(errors="replace") for path in self.bed.folder.glob(f"slurm-{self.job}*.out"))

    def wait_step(self, step: int, *, attempt: int = 1, timeout: float = 150) -> None:
        """Wait until the attempt has done the step."""
        self.wait(lambda: self.attempts >= attempt and self.step >= step, f"step {step} of attempt {attempt}", timeout)

    def wait(self, condition: Callable[[], bool], what: str, timeout: float = 150) -> None:
        """Wait for a condition; the job's state and words are in the error."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"no {what} in {timeout} s: {self.bed.cluster.job(self.job)}\n{self.output()[-6000:]}"
                )
            time.sleep(0.1)

    def wait_end(self, state: str = "COMPLETED", timeout: float = 240) -> None:
        """Wait until the job has ended, in this state, and none of its processes is left."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        seen = self.bed.cluster.wait_state(self.job, *ended, timeout=timeout)
        assert seen == state, f"{seen}: {self.output()[-6000:]}"
        self.wait(lambda: not self.processes(), "end of all processes", timeout=10)

    def processes(self) -> list[int]:
        """Everything that the job started and that is still there, whoever its parent is now."""
        return self.bed.cluster.processes(LAUNCH_RUN_DIR=str(self.folder))

    def find(self, mark: str, *, node: str = "") -> list[int]:
        """Processes of the job whose command line holds the mark, on one node or all."""
        where = {"SLURMD_NODENAME": node} if node else {}
        found = self.bed.cluster.processes(SLURM_JOB_ID=self.job, **where)
        return [pid for pid in found if mark in command_line(pid)]

    def scripts(self) -> list[int]:
        """The training processes themselves, by rank, of the newest attempt."""
        records = (self.folder / "logs" / f"attempt-{self.attempts:04d}").glob("*-rank-*[0-9].json")
        return [record["pid"] for record in sorted(map(read_json, records), key=lambda record: record["rank"])]

    def assert_same_as_undisturbed(self) -> None:
        """The one oracle: the same bits, every step once, nothing left behind."""
        status = self.status()
        assert status["state"] == "done", self.output()[-6000:]
        reference = self.bed.references[status["step"]]
        assert last_weights(self.folder) == last_weights(reference)
        assert digest(self.folder) == digest(reference)
        lines = self.train_lines()
        assert [line["step"] for line in lines] == list(range(1, status["step"] + 1))
        expected = Run(self.bed, "", reference).train_lines()
        assert [line["loss"] for line in lines] == [line["loss"] for line in expected]
        assert not self.processes()


def assert_one_wandb_run(run: Run) -> None:
    """The attempts' offline runs have one id, and their curves put together are the undisturbed one."""
    folders = offline_runs(run.folder)
    assert len(folders) == run.attempts
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    curve: dict[int, float] = {}
    for folder in folders:
        for step, values in read_history(read_records(folder)).items():
            if "train/loss" in values:
                # wandb keeps the first value of a step: one that comes again must be the same
                assert curve.setdefault(step, values["train/loss"]) == values["train/loss"]
    assert curve == {line["step"]: line["loss"] for line in run.train_lines()}


def command_line(pid: int) -> str:
    """The words of a process; nothing once it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def kill(*pids: int) -> None:
    """SIGKILL, to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Bed:
    """Where the faults happen."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        self.references: dict[int, Path] = {}
        make_table(500).to_csv(folder / "table.csv", index=False)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "WANDB_MODE": "offline",
        }

    def words(self, name: str, *words: str, steps: int = STEPS) -> list[str]:
        """The words of a run; its folder is NAME."""
        return [*WORDS, f"data.path={self.folder / 'table.csv'}", f"run.dir={self.folder / name}",
                f"train.max_steps={steps}", f"train.max_epochs={steps}", *words]  # fmt: skip

    def start(
        self,
        name: str,
        *options: str,
        words: tuple[str, ...] = (),
        launch: tuple[str, ...] = (),
        steps: int = STEPS,
        script: Path | None = None,
        doctor: bool = True,
    ) -> Run:
        """Queue a run by plain sbatch; of another script than the project's own, if one is given."""
        size = [] if any(option.startswith("--nodes") for option in options) else [*SIZE]
        if self.gpu_nodes and not any(option.startswith("--gpus") for option in options):
            size.append(f"--exclude={self.gpu_nodes}")  # an exclusive job would get their GPUs unasked
        own = [*launch, *([f"--script={script}", f"--run-dir={self.folder / name}"] if script else [])]
        own += ["--"] if own else []
        arguments = [*size, *options, str(SCRIPT), *own, *self.words(name, *words, steps=steps)]
        environment = self.environment | {"LAUNCH_DOCTOR": str(int(doctor))}
        job = self.cluster.submit(*arguments, cwd=self.folder, **environment)
        return Run(self, job, self.folder / name)

    @property
    def nodes_with_gpus(self) -> dict[int, str]:
        """Number of GPUs -> a node that has so many."""
        return dict(zip(self.cluster.gpus, self.cluster.nodes, strict=True))

    @property
    def gpu_nodes(self) -> str:
        """The nodes with GPUs, as Slurm writes a list."""
        return ",".join(node for count, node in self.nodes_with_gpus.items() if count)

    def make_reference(self, steps: int) -> None:
        """Train undisturbed, with 4 processes on this machine and without Slurm; the folder is in `references`."""
        name = f"undisturbed-{steps}"
        self.references[steps] = self.folder / name
        command = [sys.executable, "-m", "launch", "run", "--processes=4", "--", *self.words(name, steps=steps)]
        done = subprocess.run(
            command, cwd=self.folder, env=os.environ | self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
