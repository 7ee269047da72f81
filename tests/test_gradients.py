"""In double precision the gradient of any number of processes and micro-batches is that of the single big batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nn_train.schema import TASKS, Task
from tests.conftest import BARE, ROOT, SMALL, make_table

WEIGHT = "data.weight=w"
# name of a case -> the table's task, and settings
CASES: dict[str, tuple[Task, tuple[str, ...]]] = {
    **{task: (task, ()) for task in TASKS},
    "data weights": ("binary", (WEIGHT,)),
    "class weights, smoothed": (
        "multiclass",
        ("train.class_weights={low: 2.5, high: 0.5}", "train.label_smoothing=0.1"),
    ),
    "both weights": ("binary", (WEIGHT, "train.class_weights=balanced")),
    "focal, both weights, smoothed": (
        "binary",
        (WEIGHT, "train.loss=focal", "train.class_weights.yes=3", "train.label_smoothing=0.1"),
    ),
    "focal of many classes": ("multiclass", (WEIGHT, "train.loss=focal", "train.focal_gamma=0.5")),
    "mae": ("regression", (WEIGHT, "train.loss=mae")),
    "tabm": ("binary", (WEIGHT, "model.name=tabm", "model.num_members=3")),
    "tabm-mini, numbers alone": (
        "multiclass",
        (
            WEIGHT,
            "model.name=tabm-mini",
            "model.num_members=3",
            "data.drop=[colour, member, day]",
            "preprocess.indicators=false",
            "model.embedding=periodic",
        ),
    ),
    "tabm, categories alone": (
        "regression",
        (WEIGHT, "model.name=tabm", "model.num_members=3", "data.drop=[size, age, day]", *BARE),
    ),
    "resnet": ("multiclass", (WEIGHT, "model.name=resnet", "model.embedding=linear")),
    "realmlp": ("regression", (WEIGHT, "model.name=realmlp", "model.embedding=pbld")),
    "linear": ("binary", (WEIGHT, "model.name=linear", "model.width=auto", "model.dropout=auto", *BARE)),
    "ft-transformer": (
        "binary",
        (
            WEIGHT,
            "model.name=ft-transformer",
            "model.num_embedding=auto",
            "model.embedding=periodic-lite",
            "model.attention_dropout=0",
        ),
    ),
    "ft-transformer, categories alone": (
        "binary",
        (
            WEIGHT,
            "model.name=ft-transformer",
            "model.num_embedding=auto",
            "model.embedding=auto",
            "model.attention_dropout=0",
            "data.drop=[size, age, day]",
        ),
    ),
    "blocks on the disk": (
        "binary",
        (
            WEIGHT,
            "data.placement=disk",
            "train.shuffle=blocks",
            "train.num_canonical_shards=17",
            "train.shuffle_window=40",
        ),
    ),
    "blocks on the disk, all classes": (
        "multiclass",
        (
            WEIGHT,
            "data.placement=disk",
            "train.shuffle=blocks",
            "train.shuffle_window=20",
            "train.global_batch_size=16",
        ),
    ),
    "huber": ("regression", (WEIGHT, "train.loss=huber", "train.huber_delta=0.5")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table for each task, with weights of which a third are zero."""
    folder = tmp_path_factory.mktemp("gradients")
    for task in TASKS:
        weights = np.random.default_rng(0).choice([0, 0.5, 3], size=131)
        make_table(131, task=task).assign(w=weights).to_csv(folder / f"{task}.csv", index=False)
    return folder


def gradients_of(processes: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What run_gradients.py finds in a world of `processes`, which is started once."""
    out = folder / f"{processes}.json"
    if out.exists():
        return json.loads(out.read_text())
    # 91 train rows in batches of 17: five whole ones, and one of six rows, of which some processes get one
    words = [*SMALL, "data.target=y", "train.global_batch_size=17", "model.dropout=0"]
    cases = {
        name: [*words, f"data.path={folder / task}.csv", *([] if WEIGHT in own else ["data.drop=w"]), *own]
        for name, (task, own) in CASES.items()
    }
    script = [str(ROOT / "tests" / "run_gradients.py"), str(out), json.dumps(cases)]
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(agent if processes > 1 else []), *script]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_the_gradient_is_that_of_the_big_batch(folder: Path, processes: int) -> None:
    found = gradients_of(processes, folder)
    num_exact = 0 if processes == 3 else len(CASES)
    assert len(found) == 4 * len(TASKS) + len(CASES) - len(TASKS) + num_exact
    for name, difference in found.items():
        assert difference["steps"] == 6
        has_weights = name.rpartition(", ")[0] not in TASKS
        assert difference["silent"] == ([2] if has_weights else []), name  # that step's rows weigh nothing
        assert difference["gradient"] < 1e-10 and difference["loss"] < 1e-10, (name, difference)


def test_exact_gradients_are_the_same_bits_on_1_2_and_4_processes(folder: Path) -> None:
    worlds = [gradients_of(processes, folder) for processes in (1, 2, 4)]
    for name in CASES:
        assert len({found[f"{name}, exact"]["bits"] for found in worlds}) == 1, name
