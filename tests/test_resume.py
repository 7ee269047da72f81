"""A training that is killed at any moment and started again ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nn_train.checkpoint import list_checkpoints
from tests.conftest import ROOT, SCRIPT, SMALL, Start, make_table
from tests.test_worlds import digest, last_weights, read_losses

WORDS = (*SMALL, "data.target=y", "train.global_batch_size=64", "train.max_steps=40", "train.eval_every=7",
         "checkpoint.every_steps=3", "tracking.log_every_steps=1")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and the uninterrupted run on it with dropout on."""
    folder = tmp_path_factory.mktemp("resume")
    make_table(500).to_csv(folder / "table.csv", index=False)
    run_killed(folder, "whole", [])
    return folder


def run_killed(folder: Path, name: str, kills: list, *words: str) -> list[str]:
    """Train under kills; one line for each attempt."""
    script = [sys.executable, str(ROOT / "tests" / "run_killed.py"), json.dumps(kills)]
    run = [f"data.path={folder / 'table.csv'}", f"run.dir={folder / name}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    command = [*script, *WORDS, *run, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()


def assert_same_run(one: Path, other: Path) -> None:
    assert digest(one) == digest(other)
    assert last_weights(one) == last_weights(other)
    for split in ("train", "val"):
        assert read_losses(one, split).tolist() == read_losses(other, split).tolist()
    results = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["selection"] == results[1]["selection"]


def test_killed_at_many_steps(folder: Path) -> None:
    # the last comes once the training is over, in its evaluation
    kills = [f"kill@step,step={step}" for step in (1, 2, 3, 4, 7, 8, 14, 15, 16, 30, 39)]
    run_killed(folder, "steps", [*kills, "kill@judge"])
    assert_same_run(folder / "whole", folder / "steps")


def test_killed_inside_checkpoint_writes(folder: Path) -> None:
    places = [(3, "model.safetensors"), (3, "best.safetensors"), (6, "optimizer.safetensors"), (9, "state.json"),
              (12, "manifest.json"), (15, "rename"), (18, "prune"), (40, "best.safetensors")]  # fmt: skip
    kills = [f"kill@checkpoint,step={step},file={file}" for step, file in places]
    lines = run_killed(folder, "writes", kills)
    assert_same_run(folder / "whole", folder / "writes")
    assert not any("cannot be used" in line for line in lines)  # a torn write is never taken for a checkpoint
    left = [path.name for path in (folder / "writes" / "checkpoints").iterdir()]
    assert len(left) == 2 and max(left) == "step-00000040"


def test_killed_in_exact_mode(folder: Path) -> None:
    exact = "train.gradient_reduction=exact"
    run_killed(folder, "exact", [], exact)
    run_killed(
        folder,
        "exact-killed",
        ["kill@step,step=11", "kill@checkpoint,step=24,file=optimizer.safetensors", "kill@step,step=33"],
        exact,
    )
    assert_same_run(folder / "exact", folder / "exact-killed")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("optim.ema_decay=0.99", "optim.schedule=one-cycle"), marks=pytest.mark.campaign),
        ("optim.ema_decay=0.99", "train.gradient_reduction=exact"),
        ("optim.name=schedulefree", "optim.warmup_steps=5"),
        ("optim.name=muon", "optim.schedule=coslog4"),
    ],
    ids=lambda words: "-".join(word.partition("=")[2] for word in words),
)
def test_killed_under_every_optimizer(folder: Path, words: tuple[str, ...]) -> None:
    name = words[0] + words[1]
    run_killed(folder, name, [], *words)
    run_killed(folder, f"{name}-killed", ["kill@step,step=11", "kill@checkpoint,step=24,file=rename"], *words)
    assert_same_run(folder / name, folder / f"{name}-killed")


def test_a_damaged_checkpoint_is_passed_over_and_named(folder: Path, start: Start) -> None:
    words = [*WORDS, f"data.path={folder / 'table.csv'}", f"run.dir={folder / 'damaged'}"]
    run_killed(folder, "damaged", ["kill@step,step=20"], "train.max_steps=21")
    newest = list_checkpoints(folder / "damaged" / "checkpoints")[0]
    weights = newest / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (folder / "damaged" / "report.html").unlink(missing_ok=True)
    done = start(*words)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {newest} cannot be used: optimizer.safetensors is damaged" in done.stdout
    assert_same_run(folder / "whole", folder / "damaged")


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(read_losses(run)) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {steps} steps: {process.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_checkpoint_and_the_same_command_goes_on(
    folder: Path, start: Start, number: signal.Signals
) -> None:
    run = folder / number.name
    # long enough that the signal always finds it training
    words = [*WORDS, f"data.path={folder / 'table.csv'}", f"run.dir={run}", "train.max_steps=20000"]
    words += ["train.eval_every=1000", "checkpoint.every_steps=no"]
    process = subprocess.Popen([sys.executable, str(SCRIPT), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_steps(run, 30, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err  # sysexits.h: try again
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped"
    assert status["reason"] == number.name
    assert f"stopped at step {status['step']}" in out.decode()
    assert "Traceback" not in err.decode()
    done = start(*words, f"train.max_steps={status['step'] + 5}")
    assert done.returncode == 0, done.stderr
    assert f"from step {status['step']}" in done.stdout
    assert len(read_losses(run)) == status["step"] + 5


@pytest.mark.campaign  # the default suite kills one of four on a real cluster, and in tests/faults/
def test_four_processes_one_of_them_killed(folder: Path, start: Start) -> None:
    # with more than two the order of the additions tells whether DDP's buckets are the same after a resume
    words = [*WORDS, f"data.path={folder / 'table.csv'}", "train.max_steps=400", "checkpoint.every_steps=50"]
    whole, killed = folder / "four-whole", folder / "four-killed"
    assert start(*words, f"run.dir={whole}", processes=4).returncode == 0
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = [sys.executable, *agent, str(SCRIPT), *words, f"run.dir={killed}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(killed, 120, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert start(*words, f"run.dir={killed}", processes=4).returncode == 0
    assert_same_run(whole, killed)
