"""The ordinary life of jobs on a real cluster: uneven nodes, submissions, any script, looking and stopping."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.slurm.bed import Bed, Run


def launch(bed: Bed, *words: str, code: int = 0, root: Path = ROOT) -> str:
    """Run `python -m launch WORDS` as a user of the cluster; what it printed, errors included."""
    environment = os.environ | bed.cluster.environment | bed.environment | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(command, cwd=bed.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def nodes_with_1_and_3_devices(bed: Bed) -> None:
    """Each node starts a process for each of its own GPUs."""
    nodes = bed.nodes_with_gpus
    # asked for as a heterogeneous job: one component of one GPU, one of three
    size = ("--nodes=1", "--gpus-per-node=1", f"--nodelist={nodes[1]}", ":", "--nodes=1", "--gpus-per-node=3",
            f"--nodelist={nodes[3]}")  # fmt: skip
    # the GPUs are Slurm's word for device files that are none, as the doctor would find out
    run = bed.start("uneven", *size, doctor=False)
    run.wait_end()
    logs = {path.name for path in (run.folder / "logs" / "attempt-0001").glob("*-rank-?.log")}
    assert logs == {f"{nodes[1]}-rank-0.log", *(f"{nodes[3]}-rank-{rank}.log" for rank in (1, 2, 3))}
    run.assert_same_as_undisturbed()


def submitted_code_is_frozen(bed: Bed) -> None:
    """What was submitted runs after a requeue, whatever the checkout holds by then."""
    checkout = bed.folder / "check out's"
    parts = ("nn_train", "launch", "configs", "slurm", "pyproject.toml")
    checkout.mkdir()
    for part in parts:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, checkout / part)
    profile = bed.folder / "cluster.yaml"
    profile.write_text("processes_per_node: 2\nexclusive: true\nlead: 30s\nsetup: |\n  export MARK=set-up\n"
                       f"  export PATH={Path(sys.executable).parent}:$PATH\n")  # fmt: skip
    options = ["submit", "--cluster", str(profile), "--nodes=2", "--time=10", f"--sbatch=--exclude={bed.gpu_nodes}"]
    words = [*options, "--", *bed.words("froz en")]
    assert "#SBATCH --exclusive" in launch(bed, *options, "--dry-run", "--", *bed.words("froz en"), root=checkout)
    assert not (bed.folder / "froz en").exists()
    said = launch(bed, *words, root=checkout)
    run = Run(bed, said.split()[1], bed.folder / "froz en")
    assert f"job {run.job} has this run" in launch(bed, *words, root=checkout, code=2)
    run.wait_step(100)
    (checkout / "nn_train" / "loop.py").write_text("raise SystemExit('this is not what was submitted')\n")
    launch(bed, "stop", str(run.folder))  # at once: where the machine is busy, the rest of the steps is soon done
    assert run.job in launch(bed, "show", str(run.folder))
    assert "froz en" in launch(bed, "ls", str(bed.folder))
    run.wait(lambda: run.attempts == 2, "second attempt")
    run.wait_end()
    assert run.end_of(1)["reason"] == "requested"
    run.assert_same_as_undisturbed()
    assert "slurm-" not in "".join(path.name for path in bed.folder.glob(f"slurm-{run.job}*"))
    assert (run.folder / "logs" / f"slurm-{run.job}.out").exists()


def submitted_array(bed: Bed) -> None:
    """An array through `launch submit`: one frozen copy of the code, a run folder for each task."""
    profile = bed.folder / "array.yaml"
    profile.write_text("processes_per_node: 2\nexclusive: true\n")
    options = [
        "--cluster",
        str(profile),
        "--nodes=2",
        "--time=10",
        "--array=3-4",
        f"--sbatch=--exclude={bed.gpu_nodes}",
    ]
    said = launch(bed, "submit", *options, "--", *bed.words("sub-%a"))
    for task in (3, 4):
        run = Run(bed, f"{said.split()[1]}_{task}", bed.folder / f"sub-{task}")
        run.wait_end()
        run.assert_same_as_undisturbed()


def cancelled_by_launch(bed: Bed) -> None:
    """`launch cancel` saves first, however short the cluster's own patience is; the job is gone for good."""
    run = bed.start("cancelled_by_launch")
    run.wait_step(100)
    launch(bed, "cancel", str(run.folder))
    run.wait(lambda: bed.cluster.job(run.job)["JobState"] in ("CANCELLED", "COMPLETED", "FAILED"), "end of the job")
    assert run.status()["state"] == "stopped" and run.status()["step"] >= 100
    assert bed.cluster.job(run.job)["Restarts"] == "0"


def rehearsed(bed: Bed) -> None:
    """A rehearsal stops and goes on in the same allocation, and says what it cost."""
    run = bed.start("rehearsed")
    run.wait_step(100)
    said = launch(bed, "rehearse", str(run.folder))
    assert "0 steps lost" in said, said
    run.wait_end()
    assert run.end_of(1)["reason"] == "rehearsal" and bed.cluster.job(run.job)["Restarts"] == "0"
    run.assert_same_as_undisturbed()


def any_script(bed: Bed) -> None:
    """A script that knows nothing of this project saves by the three lines, is requeued, and goes on."""
    script = bed.folder / "their script.py"
    shutil.copy(Path(__file__).with_name("run_foreign.py"), script)
    folder = bed.folder / "theirs"
    # a requeued job may be given other nodes, and those with GPUs are for one process per GPU
    options = ("--nodes=2", "--ntasks-per-node=2", "--exclusive", f"--exclude={bed.gpu_nodes}")
    words = (f"--script={script}", f"--run-dir={folder}", "--", "--name", "a b", "it's")
    job = bed.cluster.submit(*options, str(ROOT / "slurm" / "train.sh"), *words, cwd=bed.folder, **bed.environment)
    run = Run(bed, job, folder)
    run.wait(lambda: len(run.scripts()) == 4, "start of the script")
    time.sleep(4)  # its own start is over by then, and its 200 steps are not

    launch(bed, "stop", str(folder))
    run.wait_end()
    assert run.attempts == 2 and 0 < int((folder / "mine.txt").read_text()) < 200
    assert run.end_of(1)["kind"] == "stopped" and run.end_of(2)["kind"] == "done"
    assert "rank 0 of 4 ends at step 200, words ['--name', 'a b', \"it's\"]" in run.output()
    assert json.loads((folder / "attempts" / "0002.json").read_text())["job"] == job


JOBS: dict[str, Callable[[Bed], None]] = {
    function.__name__: function
    for function in (submitted_code_is_frozen, submitted_array, nodes_with_1_and_3_devices, any_script, rehearsed,
                     cancelled_by_launch)
}  # fmt: skip
