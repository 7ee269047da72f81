"""What the tests share: small real tables, and starts of the real script in its own processes."""

import gc
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train import Engine, load_config

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "nn_train" / "train.py"
SMALL = (
    "model.name=mlp",
    "model.embedding=ple",
    "model.width=16",
    "model.num_embedding=4",
    "preprocess.num_bins=8",
    "tracking.mode=disabled",
    "report.page=false",
    "report.baselines=false",
    "report.importance=false",
    "report.attributions=no",
    "train.global_batch_size=256",
    "train.early_stopping=no",
)
BARE = ("model.embedding=none", "model.num_embedding=auto")  # behind SMALL: numbers as they are
PAGE = ("report.page=true", "report.dpi=40")  # behind SMALL, where a test looks at the page

# Beside the jobs on Slurm, which begin first, run tests of one process; those that start many come later, the longest
# first, and short ones at the end, so that no process of pytest waits for another.
FIRST = ("test_scenarios.py",)
LATE = ("test_campaign.py", "test_resume.py", "test_export.py", "test_report.py", "test_tracking.py", "test_worlds.py",
        "test_train_script.py", "test_sweep.py", "test_ensemble.py")  # fmt: skip
LAST = ("test_splits.py", "test_table.py", "test_tensors.py", "test_terminal.py", "test_timeline.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; under xdist a file's tests stay together, and files begin in this order."""
    places = {name: place for place, name in enumerate((*LATE, *LAST), start=2)} | dict.fromkeys(FIRST, 0)
    items.sort(key=lambda item: places.get(item.path.name, 1))


Start = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows of a test go into its own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def make_table(num_rows: int, *, seed: int = 0, task: str = "binary") -> pd.DataFrame:
    """A table with every kind of column, missing values, and a target that can be learned."""
    rng = np.random.default_rng(seed)
    size = rng.normal(size=num_rows)
    colour = rng.choice(["red", "green", "blue", "teal"], size=num_rows)
    score = 1.5 * size + (colour == "red") - (colour == "blue") + 0.5 * rng.normal(size=num_rows)
    targets = {
        "binary": np.where(score > 0.3, "yes", "no"),
        "multiclass": np.select([score < -0.7, score < 0.7], ["low", "mid"], "high"),
        "regression": np.round(10 + 3 * score, 4),
    }
    return pd.DataFrame(
        {
            "size": np.where(rng.random(num_rows) < 0.05, np.nan, np.round(size, 4)),
            "age": rng.integers(18, 90, size=num_rows),
            "colour": np.where(rng.random(num_rows) < 0.05, None, colour),
            "member": rng.choice(["yes", "no"], size=num_rows),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 700, size=num_rows), unit="D"),
            "y": targets[task],
        }
    )


@pytest.fixture
def table_file(tmp_path: Path) -> Path:
    """A CSV of 300 rows with a binary target `y`."""
    path = tmp_path / "table.csv"
    make_table(300).to_csv(path, index=False)
    return path


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start nn_train/train.py in its own process, or in several under torch's agent."""

    def run(
        *words: str, processes: int = 1, script: Path = SCRIPT, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), *words]
        if processes > 1:
            agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--"]
            command = [sys.executable, *agent, str(script), *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=timeout, env=os.environ | {}
        )

    return run


def run_world(processes: int, runs: list[list[str]], folder: Path) -> None:
    """Start runs one after another in one world of `processes`; packed rows go into the folder."""
    plan = folder / f"plan-{processes}.json"
    plan.write_text(json.dumps(runs))
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *agent, str(ROOT / "tests" / "run_engines.py"), str(plan)]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.fixture
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb as on a new machine: no key, no settings, no server; and none of its processes left."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name}"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    import wandb  # here: most tests do without it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # wandb lets go of its service without waiting for its end
        with suppress(ConnectionError):  # a test may have killed the service
            wandb.teardown()
        gc.collect()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


TinyRun = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """The folder of a finished run on a small table, `table.csv` beside it; one for each task and its words."""
    found: dict[tuple[str, ...], Path] = {}

    def train(task: str = "binary", *words: str, num_rows: int = 400) -> Path:
        key = (task, str(num_rows), *words)
        if key not in found:
            folder = tmp_path_factory.mktemp(f"tiny-{task}")
            make_table(num_rows, task=task).to_csv(folder / "table.csv", index=False)
            settings = [f"data.path={folder / 'table.csv'}", "data.target=y", f"data.cache_dir={folder / 'cache'}"]
            own = [f"run.dir={folder / 'run'}", "train.max_epochs=4"]
            Engine(load_config(None, [*SMALL, *settings, *own, *words])).run()
            found[key] = folder / "run"
        return found[key]

    return train
