"""The command line, started as a user starts it: every form of launch, its messages and exit codes."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train.settings import SECTIONS
from tests.conftest import ROOT, SCRIPT, SMALL, Start
from tests.test_worlds import digest, read_losses

BIN = Path(sys.executable).parent
SHORT = (*SMALL, "model.dropout=0", "train.max_steps=12", "tracking.log_every_steps=1", "train.eval_every=6")
FORMS = {
    "script": [sys.executable, str(SCRIPT)],
    "module": [sys.executable, "-m", "nn_train.train"],
    "accelerate": [str(BIN / "accelerate"), "launch", str(SCRIPT)],
    "accelerate_module": [str(BIN / "accelerate"), "launch", "-m", "nn_train.train"],
    "accelerate_2": [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", str(SCRIPT)],
    "accelerate_cpu_2": [str(BIN / "accelerate"), "launch", "--config_file",
                         str(ROOT / "configs" / "accelerate" / "cpu_2.yaml"), str(SCRIPT)],
    "torchrun_2": [str(BIN / "torchrun"), "--nproc-per-node", "2", str(SCRIPT)],
}  # fmt: skip


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`."""
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_help_shows_every_key(start: Start) -> None:
    done = start("--help")
    assert done.returncode == 0
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            assert f"  {section}.{name} (" in done.stdout
            assert " ".join((field.description or "nothing").split()) in done.stdout
    assert "default auto" in done.stdout and ">= 1" in done.stdout


def test_print_config_shows_what_would_run_and_reads_back(start: Start, tmp_path: Path) -> None:
    done = start("--print-config", "model.width=64", "train.mixed_precision=no", "optim.peak_lr=1e-3")
    assert done.returncode == 0
    (tmp_path / "again.yaml").write_text(done.stdout)
    again = start("--print-config", "--config", "again.yaml")
    assert again.stdout == done.stdout
    assert "width: 64" in done.stdout and "peak_lr: 0.001" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_json_schema_is_that_of_the_settings(start: Start, tmp_path: Path) -> None:
    assert start("--write-schema", "schema.json").returncode == 0
    assert (tmp_path / "schema.json").read_text() == (ROOT / "configs" / "schema.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.max_epoch=3"], "unknown key 'train.max_epoch'; did you mean 'train.max_epochs'?"),
        (["--epochs", "3"], "unknown option --epochs"),
        (["--config", "nowhere.yaml"], "no such config file"),
        (["train.global_batch_size=many"], "train.global_batch_size='many'"),
        (
            ["train.micro_batch_size=512", "train.global_batch_size=256"],
            "train.micro_batch_size=512 is more than train.global_batch_size=256",
        ),
    ],
)
def test_a_wrong_setting_is_one_message_without_importing_torch(
    words: list[str], message: str, start: Start, tmp_path: Path
) -> None:
    done = run([sys.executable, "-X", "importtime", str(SCRIPT), *words], tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert lines[0].startswith("error: ") and message in "\n".join(lines)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pydantic" in imported
    assert not imported & {"torch", "datasets", "pandas", "sklearn", "accelerate"}
    assert not (tmp_path / "runs").exists()


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    done = run([*FORMS["accelerate"]], tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = read_metrics(tmp_path / "runs" / "telco")
    assert metrics["rows"] == {"train": 4931, "val": 1056, "test": 1056}
    assert metrics["test"]["roc_auc"] >= 0.845
    assert metrics["test"]["log_loss"] <= 0.415
    assert metrics["test"]["roc_auc"] >= metrics["baselines"]["hist_gradient_boosting"]["test"]["roc_auc"]
    for line in ("roc_auc", "hist gradient boosting", "majority", "linear", "global 128 = 1 process x micro 128"):
        assert line in done.stdout
    page = tmp_path / "runs" / "telco" / "report.html"
    assert done.stdout.rstrip().endswith(f"report:     {page}")
    assert page.stat().st_size > 200_000
    status = json.loads((tmp_path / "runs" / "telco" / "status.json").read_text())
    assert status["state"] == "done" and status["reason"] == "early_stopping"
    assert "Warning" not in done.stderr


def test_every_form_of_launch_trains_the_same(tmp_path: Path, table_file: Path) -> None:
    losses, metrics = {}, {}
    for name, command in FORMS.items():
        folder = tmp_path / name
        folder.mkdir()
        words = [*SHORT, f"data.path={table_file}", "data.target=y", f"run.dir={folder / 'run'}"]
        # what a launcher's config may leave behind must not change the training
        done = run([*command, *words], folder, OMP_NUM_THREADS="1", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="4")
        assert done.returncode == 0, f"{name}: {done.stderr}"
        losses[name], metrics[name] = read_losses(folder / "run"), read_metrics(folder / "run")
        assert metrics[name]["processes"] == (2 if name.endswith("_2") else 1)
        assert list(folder.iterdir()) == [folder / "run"]
    words = [*words[:-1], f"run.dir={tmp_path / 'python'}"]
    script = f"""
from nn_train import Engine, load_config
engine = Engine(load_config("configs/telco.yaml", {words!r}))
engine.prepare(); engine.train(); engine.evaluate(); print(engine.report())
"""
    done = run([sys.executable, "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    losses["python"], metrics["python"] = read_losses(tmp_path / "python"), read_metrics(tmp_path / "python")
    for name in losses:
        np.testing.assert_allclose(losses[name], losses["script"], rtol=1e-5, err_msg=name)
        assert metrics[name]["test"]["log_loss"] == pytest.approx(metrics["script"]["test"]["log_loss"], rel=1e-4)


def test_what_a_shell_of_slurm_or_mpi_leaves_behind_changes_nothing(tmp_path: Path, table_file: Path) -> None:
    left_over = {
        "SLURM_JOB_ID": "17", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
        "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "n[1-2]", "PMI_RANK": "1", "PMI_SIZE": "2", "PMIX_RANK": "1",
        "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "MV2_COMM_WORLD_SIZE": "2", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1",
    }  # fmt: skip
    losses = {}
    for name, environment in (("clean", {}), ("left_over", left_over)):
        words = [*SHORT, f"data.path={table_file}", "data.target=y", f"run.dir={tmp_path / name}"]
        done = run([*FORMS["script"], *words], tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        assert read_metrics(tmp_path / name)["processes"] == 1
        losses[name] = read_losses(tmp_path / name)
    np.testing.assert_array_equal(losses["left_over"], losses["clean"])


def test_a_finished_run_says_so_and_another_config_is_refused(start: Start, table_file: Path, tmp_path: Path) -> None:
    words = [*SHORT, f"data.path={table_file}", "data.target=y"]
    assert start(*words).returncode == 0
    run_dir = tmp_path / "runs" / "table"
    before = digest(run_dir), (run_dir / "metrics.jsonl").stat().st_mtime_ns
    again = start(*words)
    assert again.returncode == 0
    assert "this run is finished" in again.stdout and "roc_auc" in again.stdout
    other = start(*words, "model.width=17", "optim.peak_lr=0.1")
    assert other.returncode == 2
    for part in ("model.width: 16 -> 17", "optim.peak_lr: 0.002 -> 0.1", str(run_dir), "run.name=NEW"):
        assert part in other.stderr
    assert (digest(run_dir), (run_dir / "metrics.jsonl").stat().st_mtime_ns) == before
    longer = start(*words, "train.max_steps=15")
    assert longer.returncode == 0 and "from step 12" in longer.stdout
    assert len(read_losses(run_dir)) == 15
    (run_dir / "mine.txt").write_text("a note of the user's")
    anew = start(*words, "model.width=17", "checkpoint.resume=never")
    assert anew.returncode == 0 and "from the start" in anew.stdout
    assert (run_dir / "mine.txt").exists()
    table = pd.read_csv(table_file)
    table.loc[3, "age"] += 1
    table.to_csv(table_file, index=False)
    changed = start(*words, "model.width=17")
    assert changed.returncode == 2 and f"the content of {table_file}" in changed.stderr


def test_debug_is_a_short_run_that_checks_that_the_network_can_learn(start: Start, tmp_path: Path) -> None:
    done = start("--debug")
    assert done.returncode == 0, done.stderr
    assert "2000 rows" in done.stdout and "trained 30 steps" in done.stdout
    assert "overfit one batch" in done.stdout and "the network can learn" in done.stdout
    assert not (tmp_path / "runs" / "telco-debug" / "wandb").exists()
    wrong = start("--debug", "data.target=nothing")
    assert wrong.returncode == 2 and "Traceback" in wrong.stderr and "there is no column 'nothing'" in wrong.stderr


def test_a_world_that_is_not_whole_is_refused(table_file: Path, tmp_path: Path) -> None:
    words = [*SHORT, f"data.path={table_file}", "data.target=y"]
    left_over = run([*FORMS["script"], *words], tmp_path, WORLD_SIZE="2", RANK="0")
    assert left_over.returncode == 2
    assert "WORLD_SIZE=2 says that other processes were started" in left_over.stderr
    assert "unset it" in left_over.stderr
    # Accelerate's own switch for one process under a launcher of two: each would train alone in one folder
    code = "import sys; from nn_train.runtime import check_world; check_world(1)"
    alone = run([sys.executable, "-c", code], tmp_path, WORLD_SIZE="2", RANK="1")
    assert "WORLD_SIZE says that 2 processes were started, but 1 train together" in alone.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "/dev/null/run"])
def test_a_run_folder_that_cannot_be_written(start: Start, table_file: Path, place: str) -> None:
    done = start(*SHORT, f"data.path={table_file}", "data.target=y", f"run.dir={place}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith(f"error: {Path(place).parent}"), done.stderr
    assert "run.dir=" in done.stderr


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(
    start: Start, table_file: Path, tmp_path: Path
) -> None:
    words = [*SHORT, f"data.path={table_file}", "data.target=y", "checkpoint.every_steps=4", "model.width=256"]

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        [*FORMS["script"], *words], cwd=tmp_path, capture_output=True, text=True, timeout=200, preexec_fn=no_large_files
    )
    run_dir = tmp_path / "runs" / "table"
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"error: {run_dir / 'checkpoints'}" in done.stderr and "free space" in done.stderr
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
    assert list((run_dir / "checkpoints").iterdir()) == []
    again = start(*words)
    assert again.returncode == 0 and "from the start" in again.stdout
