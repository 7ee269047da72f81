"""From what sbatch leaves in the environment to each node's `accelerate launch`: argv and environment, whole.

Golden files: UPDATE_GOLDEN=1 pytest tests/launch writes them anew; see `shared.py`.
"""

import shlex
from pathlib import Path

import pytest

from launch import place
from launch.agent import find_node
from launch.command import accelerate_argv, contract, node_environment
from launch.job import begin
from launch.local import describe
from launch.plan import Plan
from launch.request import Options, read_options
from launch.target import resolve_target
from nn_train.errors import UserError
from tests.launch.shared import check_golden

# What a shell inside salloc, another launcher or mpirun leaves behind, and what must come through.
INHERITED = {
    "HOME": "/home/me",
    "PATH": "/usr/bin:/bin",
    "NCCL_DEBUG": "INFO",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "elsewhere",
    "MASTER_PORT": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "PMI_RANK": "1",
    "PMIX_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "MV2_COMM_WORLD_SIZE": "2",
    "MPI_LOCALNRANKS": "2",
    "PET_NNODES": "7",
    "PYTHONSAFEPATH": "1",
    "OMP_NUM_THREADS": "64",
    "LAUNCH_ATTEMPT": "9",
    "LAUNCH_ID": "other-9",
}
JOB = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "8", "SLURM_JOB_END_TIME": "2000000000",
       "SLURM_JOB_START_TIME": "1999990000"}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, on a machine without a Slurm that could be asked."""
    monkeypatch.setattr(place, "node_address", lambda node: f"10.0.0.{node[1:]}")
    monkeypatch.setattr("launch.slurm._ask", lambda *_: "")
    for name in ("SLURM_ARRAY_TASK_ID", "CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def show(plan: Plan, job: dict[str, str], *, node_rank: int) -> str:
    """One node's words, one a line, and its environment."""
    node = find_node(plan, job | {"SLURM_PROCID": str(node_rank)})
    argv = accelerate_argv(plan, node_rank=node.rank, local_processes=node.processes)
    environment = node_environment(
        plan,
        local_processes=node.processes,
        threads=node.threads,
        folder=Path("/tmp/launch-x"),
        inherited=INHERITED,
    )
    lines = [f"# node {node.rank}", *map(shlex.quote, argv), ""]
    lines += [f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items())]
    return "\n".join(lines).replace(str(plan.port), "<PORT>") + "\n"


CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "one_process": ([], {"SLURM_GPUS_ON_NODE": "0"}),
    "one_node_4": ([], {"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_NODE": "4"}),
    "two_nodes_8": (
        ["--network-interface=ib0", "--accelerate=--mixed_precision bf16", "--max-restarts=3", "--",
         "train.max_epochs=20"],
        {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_ON_NODE": "96"},
    ),
    "cpu_only": ([], {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS_PER_NODE": "4"}),
    "array": (["run.name=seed-%a", "run.seed=%a"], {"SLURM_ARRAY_TASK_ID": "3", "SLURM_GPUS_ON_NODE": "1"}),
    "spaces": (
        ["--script=my \"own\" script's.py", "--run-dir=it's a run", "--cpu", "--", "--name", 'two "words"', "$HOME"],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_words_and_environment_of_every_node(folder: Path, case: str) -> None:
    words, job = CASES[case][0], JOB | CASES[case][1]
    (folder / 'my "own" script\'s.py').touch()
    plan = begin(words, job)
    assert Plan.read(plan.file) == plan
    nodes = [show(plan, job, node_rank=rank) for rank in range(len(plan.nodes))]
    check_golden(f"command-{case}.txt", "\n".join(nodes), {"CWD": folder})


def test_what_a_launch_on_this_machine_would_start(folder: Path) -> None:
    options = Options(processes=2, threads=3, cpu=True, run_dir="a run")
    target = resolve_target(["train.max_epochs=2"], run_dir=options.run_dir)
    check_golden("command-local.txt", describe(target, options) + "\n", {"CWD": folder})
    assert list(folder.iterdir()) == []


def test_the_second_attempt_says_that_the_run_goes_on(folder: Path) -> None:
    job = JOB | {"SLURM_NTASKS_PER_NODE": "2"}
    first, second = begin([], job), begin([], job)
    assert (first.attempt, first.goes_on, second.attempt, second.goes_on) == (1, False, 2, True)
    assert first.port != second.port and first.rendezvous_id != second.rendezvous_id
    said = [contract(plan, local_processes=2, threads=1, folder=folder)["LAUNCH_GOES_ON"] for plan in (first, second)]
    assert said == ["0", "1"]
    assert begin([], job | {"SLURM_JOB_ID": "18"}).goes_on is False  # another launch's attempts are none of its own


def test_an_array_without_a_mark_has_a_run_folder_for_each_task(folder: Path) -> None:
    plans = [begin(["run.seed=1"], JOB | {"SLURM_ARRAY_TASK_ID": task}) for task in ("0", "1")]
    assert [plan.folder for plan in plans] == [folder / "runs" / f"telco-{task}" for task in (0, 1)]


@pytest.mark.parametrize(
    ("job", "words", "message", "mend"),
    [
        ({"SLURM_NTASKS_PER_NODE": "2", "SLURM_GPUS_ON_NODE": "4"}, [], "--ntasks-per-node=2 disagrees with 4 GPU(s)",
         "--ntasks-per-node=4"),
        ({"SLURM_GPUS_PER_TASK": "1", "SLURM_GPUS_ON_NODE": "1"}, [], "--gpus-per-task binds", "--gpus-per-node=N"),
        ({"SLURM_JOB_ID": ""}, [], "this is no Slurm job", "python -m launch run"),
        ({}, ["train.max_epoch=1"], "did you mean 'train.max_epochs'", "--help"),
        ({}, ["--proceses=2", "--"], "did you mean '--processes'", "--help"),
        ({"SLURM_JOB_NODELIST": "n[1-"}, [], "n[1-", ""),
    ],
)  # fmt: skip
def test_a_job_that_cannot_work_is_refused_before_anything_is_written(
    folder: Path, job: dict[str, str], words: list[str], message: str, mend: str
) -> None:
    with pytest.raises(UserError) as caught:
        begin(words, JOB | job)
    assert message in str(caught.value) and mend in caught.value.fix
    assert list(folder.iterdir()) == []


def test_options_before_the_words_are_the_launchers(folder: Path) -> None:
    options, target = read_options(["--processes=2", "--cpu", "--", "run.name=x"])
    assert (options.processes, options.cpu, target.run_dir) == (2, True, folder / "runs" / "x")
    options, target = read_options(["run.name=x"])
    assert (options, target.run_dir) == (Options(), folder / "runs" / "x")


def test_a_node_starts_as_many_processes_as_it_has_gpus(folder: Path) -> None:
    plan = begin([], JOB | {"SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "n[1-2]"})
    assert plan.processes_per_node is None
    nodes = [find_node(plan, JOB | {"SLURM_GPUS_ON_NODE": gpus, "SLURM_PROCID": "1"}) for gpus in ("2", "1")]
    assert [(node.rank, node.processes) for node in nodes] == [(1, 2), (1, 1)]
    with pytest.raises(UserError, match="each needs a GPU of its own"):
        find_node(begin(["--processes=4", "--"], JOB | {"SLURM_GPUS_ON_NODE": "4"}), JOB | {"SLURM_GPUS_ON_NODE": "2"})
