"""What the tests share: small real tables, and starts of the real script in its own processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "nn_train" / "train.py"
SMALL = (
    "model.width=16",
    "model.num_embedding=4",
    "preprocess.num_bins=8",
    "tracking.mode=disabled",
    "report.baselines=false",
    "train.early_stopping=no",
)

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
            agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
            command = [sys.executable, *agent, str(script), *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=timeout, env=os.environ | {}
        )

    return run


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
