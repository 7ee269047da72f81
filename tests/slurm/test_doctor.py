"""The preflight on the nodes of real jobs: all well, a folder that one node does not see, code that differs."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm
PATH = f"export PATH={Path(sys.executable).parent}:$PATH"
# as slurm/train.sh starts it: by its own srun, so that the steps may run in containers
PIPED = (
    "env -u SLURM_NTASKS -u SLURM_NPROCS -u SLURM_NTASKS_PER_NODE -u SLURM_TASKS_PER_NODE timeout 120 "
    'srun --ntasks-per-node=1 python -m launch.doctor_node "$plan" | '
    'python -m launch doctor --plan "$plan" --reports --quick'
)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's code, that a test may have one node see otherwise."""
    folder = tmp_path_factory.mktemp("code")
    for part in ("launch", "nn_train", "configs", "data"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_job(cluster: Cluster, code: Path, script: str) -> str:
    """Run a batch script on the first two nodes, in the folder of the code; what it wrote."""
    nodes = ",".join(cluster.nodes[:2])
    output = code / "job.out"
    output.unlink(missing_ok=True)
    job = cluster.submit("-N2", "-w", nodes, "-o", str(output), "-t", "10", "--wrap", f"{PATH}\n{script}", cwd=code)
    cluster.wait_state(job, "COMPLETED", "FAILED", timeout=120)
    return output.read_text()


def begin(run_dir: Path) -> str:
    words = f"--processes=2 --cpu --run-dir={run_dir} -- --config configs/telco.yaml"
    return f"plan=$(python -m launch.job begin {words}) || exit 9"


@contextlib.contextmanager
def mounted_on(cluster: Cluster, node: str, *mount: str) -> Iterator[None]:
    """Something mounted on one node alone; the last word is where."""
    pid = (cluster.folder / "run" / f"slurmd.{node}.pid").read_text().strip()
    enter = ("nsenter", f"--target={pid}", "--mount")
    cluster.command(*enter, "mount", *mount)
    try:
        yield
    finally:
        cluster.command(*enter, "umount", mount[-1])


def test_two_nodes_are_checked_and_add_up(cgroup_cluster: Cluster, code: Path) -> None:
    run_dir = code / "runs" / "well"
    script = f"""
{begin(run_dir)}
python -m launch doctor --plan $plan; echo "full $?"
python -m launch doctor --plan $plan --quick; echo "quick $?"
{PIPED}; echo "piped $?"
python -m launch doctor --run-dir {run_dir} --quick; echo "no plan $?"
"""
    said = run_job(cgroup_cluster, code, script)
    first, second = cgroup_cluster.nodes[:2]
    assert all(f"{way} 0" in said for way in ("full", "quick", "piped", "no plan")), said
    assert f"2 of 2 answered: {first}, {second}" in said
    assert "written and seen by all" in said
    assert f"{first} reached by TCP from 1 of 1 other nodes" in said
    assert "all-reduce     ok       gloo, 2 process(es): right; latency" in said
    assert said.count("all well") == 4, said
    assert not list(run_dir.rglob("*doctor*")), "nothing of the check is left"


def test_a_folder_that_is_another_one_on_a_node(cgroup_cluster: Cluster, code: Path) -> None:
    run_dir, second = code / "runs" / "unseen", cgroup_cluster.nodes[1]
    run_dir.mkdir(parents=True)
    script = f"""
{begin(run_dir)}
(python -m launch doctor --run-dir {run_dir} --quick; echo "exit $?") >no-plan.out &
python -m launch doctor --plan $plan --quick; echo "exit $?"
wait
"""
    with mounted_on(cgroup_cluster, second, "-t", "tmpfs", "none", str(run_dir)):
        said = run_job(cgroup_cluster, code, script)
    assert "exit 2" in said
    assert f"FAILED run folder: on {second} it does not show the plan" in said
    assert "mend: choose one that every node mounts" in said
    assert "1 failed" in said
    # without a plan to miss, it is their own files that do not meet
    said = (code / "no-plan.out").read_text()
    assert "exit 2" in said
    assert f"FAILED run folder: on {second} it is not there" in said


def test_a_cluster_from_its_login_node(cgroup_cluster: Cluster, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    words = (sys.executable, "-m", "launch", "doctor", "--run-dir", str(tmp_path), "--cluster", str(profile))
    profile.write_text("partition: high\nnodes: 2\n")
    said = cgroup_cluster.command(*words, PYTHONPATH=str(ROOT))
    assert "controller     ok       Slurmctld(primary) at" in said
    assert "node count     ok       4 at most; the profile asks for 2" in said
    profile.write_text("partition: fast\n")
    said = cgroup_cluster.command(*words, check=False, PYTHONPATH=str(ROOT))
    assert "FAILED partition: there is no partition 'fast'" in said


def test_code_that_differs_on_one_node(cgroup_cluster: Cluster, code: Path, tmp_path: Path) -> None:
    run_dir, second = code / "runs" / "code", cgroup_cluster.nodes[1]
    shutil.copytree(code / "launch", tmp_path / "launch")
    (tmp_path / "launch" / "place.py").write_text((code / "launch" / "place.py").read_text() + "# an old copy\n")
    script = f'{begin(run_dir)}\npython -m launch doctor --plan $plan --quick; echo "exit $?"'
    with mounted_on(cgroup_cluster, second, "--bind", str(tmp_path / "launch"), str(code / "launch")):
        said = run_job(cgroup_cluster, code, script)
    assert "exit 2" in said
    assert "FAILED code: " in said
    assert f"on {second}" in said.split("FAILED code: ")[1].splitlines()[0]
    assert "1 failed" in said
