"""The same training on 1, 2 and 4 real processes over gloo: losses, weights, rows, resumes."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import ROOT, SMALL, make_table, run_world

WORLDS = (1, 2, 4)
FAST = ("data.target=y", "train.global_batch_size=96", "optim.warmup_steps=20", "model.dropout=0",
        "train.max_steps=300", "train.eval_every=50", "tracking.log_every_steps=1",
        "checkpoint.every_time=no")  # fmt: skip
EXACT = ("data.target=y", "train.gradient_reduction=exact", "train.global_batch_size=96", "model.dropout=0.3",
         "train.max_steps=60", "train.eval_every=10", "tracking.log_every_steps=1")  # fmt: skip
# a table on the disk in an order of blocks: all worlds but that of three read their own shards ahead
BLOCKS = ("data.placement=disk", "train.shuffle=blocks", "train.num_canonical_shards=8", "train.shuffle_window=300")
ANY_NUMBER = (
    "accumulated",
    "few",
    "few_accumulated",
    "classes",
    "values",
    "blocks",
)  # runs that three processes make too
UNEVEN = (
    "data.target=y",
    "optim.warmup_steps=3",
    "train.max_steps=4",
    "train.global_batch_size=7",
    "train.eval_batch_size=5",
    "tracking.log_every_steps=1",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run on every world; `NAME-WORLD` is a run folder."""
    folder = tmp_path_factory.mktemp("worlds")
    tables = {}
    for name, task, num_rows in (
        ("table", "binary", 1501),
        ("few", "binary", 41),
        ("classes", "multiclass", 301),
        ("values", "regression", 301),
    ):
        tables[name] = f"data.path={folder / name}.csv"
        make_table(num_rows, task=task).to_csv(folder / f"{name}.csv", index=False)
    few = ("split.val=0.05", "split.test=0.05")
    runs = {
        "fast": [tables["table"], *FAST],
        "accumulated": [tables["table"], *FAST, "train.micro_batch_size=7", "train.max_steps=50"],
        "exact": [tables["table"], *EXACT],
        "blocks": [tables["table"], *FAST, *BLOCKS, "train.max_steps=50"],
        "exact_blocks": [tables["table"], *EXACT, *BLOCKS],
        "few": [tables["few"], *UNEVEN, *few],
        "few_accumulated": [tables["few"], *UNEVEN, *few, "train.micro_batch_size=1"],
        "few_exact": [tables["few"], *UNEVEN, *few, "train.gradient_reduction=exact"],
        "classes": [tables["classes"], *UNEVEN],
        "values": [tables["values"], *UNEVEN],
    }
    # one run that changes its number of processes at steps 20 and 40, and one checkpoint that two worlds go on from
    chain = [tables["table"], *EXACT, f"run.dir={folder / 'chain'}"]
    block_chain = [tables["table"], *EXACT, *BLOCKS, f"run.dir={folder / 'block_chain'}"]
    fork = [tables["table"], *FAST]
    extra = {
        2: [
            [*chain, "train.max_steps=20"],
            [*block_chain, "train.max_steps=20"],
            [*fork, "train.max_steps=50", f"run.dir={folder / 'fork-1'}"],
        ],
        4: [
            [*chain, "train.max_steps=40"],
            [*block_chain, "train.max_steps=40", "data.placement=memory"],
            [*fork, "train.max_steps=100", f"run.dir={folder / 'fork-4'}"],
        ],
        1: [
            [*chain, "train.max_steps=60"],
            [*block_chain, "train.max_steps=60"],
            [*fork, "train.max_steps=100", f"run.dir={folder / 'fork-1'}"],
        ],
    }
    for processes in (2, 4, 1):
        own = [[*words, f"run.dir={folder / f'{name}-{processes}'}"] for name, words in runs.items()]
        run_world(processes, [[*SMALL, *words] for words in own + extra[processes]], folder)
        if processes == 2:
            shutil.copytree(folder / "fork-1", folder / "fork-4")
    # exact mode is for powers of two; all else is for any number
    uneven = {name: words for name, words in runs.items() if name in ANY_NUMBER}
    own = [[*SMALL, *words, f"run.dir={folder / f'{name}-3'}"] for name, words in uneven.items()]
    run_world(3, own, folder)
    return folder


def read_losses(run: Path, split: str = "train") -> np.ndarray:
    """Losses by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines if line["split"] == split])


def digest(run: Path, name: str = "model.safetensors") -> str:
    """SHA-256 of a file of the run."""
    return hashlib.sha256((run / name).read_bytes()).hexdigest()


def last_weights(run: Path) -> str:
    """SHA-256 of the weights after the last step, which may not be the best ones."""
    return digest(sorted((run / "checkpoints").glob("step-*"))[-1])


@pytest.mark.parametrize("processes", [2, 4])
def test_fast_losses_agree_over_300_steps(folder: Path, processes: int) -> None:
    alone, together = read_losses(folder / "fast-1"), read_losses(folder / f"fast-{processes}")
    assert len(alone) == len(together) == 300
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    np.testing.assert_allclose(
        read_losses(folder / f"fast-{processes}", "val"), read_losses(folder / "fast-1", "val"), rtol=1e-4
    )


def read_lines(run: Path, name: str) -> list[float]:
    """A value of every line of a train step, in order."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if line["split"] == "train"]


def test_the_learning_rate_is_a_function_of_the_step_alone(folder: Path) -> None:
    for run in ("accumulated", "few", "few_accumulated"):
        curves = [read_lines(folder / f"{run}-{processes}", "lr") for processes in (1, 2, 3, 4)]
        assert curves[0] == curves[1] == curves[2] == curves[3] and len(set(curves[0])) > 1
    steps = read_lines(folder / "accumulated-3", "step")
    assert read_lines(folder / "fast-1", "lr")[: len(steps)] == read_lines(folder / "accumulated-3", "lr")


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_accumulation_changes_no_loss(folder: Path, processes: int) -> None:
    np.testing.assert_allclose(
        read_losses(folder / f"accumulated-{processes}"), read_losses(folder / "fast-1")[:50], rtol=1e-5
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_exact_weights_are_bit_identical(folder: Path, processes: int) -> None:
    for run in ("exact", "exact_blocks", "few_exact"):
        alone, together = folder / f"{run}-1", folder / f"{run}-{processes}"
        assert digest(alone) == digest(together)
        assert last_weights(alone) == last_weights(together)
        assert read_losses(alone).tolist() == read_losses(together).tolist()
        assert read_losses(alone, "val").tolist() == read_losses(together, "val").tolist()


@pytest.mark.parametrize(("chain", "whole"), [("chain", "exact-1"), ("block_chain", "exact_blocks-1")])
def test_exact_weights_are_bit_identical_through_changes_of_the_world(folder: Path, chain: str, whole: str) -> None:
    assert digest(folder / chain) == digest(folder / whole)
    assert last_weights(folder / chain) == last_weights(folder / whole)
    assert read_losses(folder / chain).tolist() == read_losses(folder / whole).tolist()


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_an_order_in_blocks_gives_the_same_losses_on_any_number_of_processes(folder: Path, processes: int) -> None:
    alone, together = read_losses(folder / "blocks-1"), read_losses(folder / f"blocks-{processes}")
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert len(alone) == 50 and alone.tolist() != read_losses(folder / "fast-1")[:50].tolist()


@pytest.mark.parametrize("processes", [1, 4])
def test_a_checkpoint_of_two_processes_goes_on_elsewhere(folder: Path, processes: int) -> None:
    losses = read_losses(folder / f"fork-{processes}")
    assert len(losses) == 100
    np.testing.assert_allclose(losses, read_losses(folder / "fast-1")[:100], rtol=1e-5)


@pytest.mark.parametrize("run", ["fast", "exact", "few", "few_accumulated", "few_exact", "classes", "values"])
def test_every_row_is_evaluated_once_on_any_number_of_processes(folder: Path, run: str) -> None:
    for name in ("predictions.parquet", "predictions_val.parquet"):
        worlds = (*WORLDS, 3) if run in ANY_NUMBER else WORLDS
        frames = [pd.read_parquet(folder / f"{run}-{processes}" / name) for processes in worlds]
        split = "test" if name == "predictions.parquet" else "val"
        with np.load(folder / f"{run}-1" / "splits.npz") as splits:
            expected = splits[split]
        for frame in frames:
            assert frame["row"].tolist() == expected.tolist()
    assert (len(expected) < max(WORLDS)) == run.startswith("few")


def test_metrics_are_computed_from_all_rows(folder: Path) -> None:
    for run in ("exact", "few_exact"):
        values = [json.loads((folder / f"{run}-{n}" / "metrics.json").read_text()) for n in WORLDS]
        assert [value["processes"] for value in values] == list(WORLDS)
        assert values[0]["test"] == values[1]["test"] == values[2]["test"]
        assert values[0]["val"] == values[1]["val"] == values[2]["val"]


def test_gradients_are_reduced_once_in_a_step(tmp_path: Path) -> None:
    make_table(200).to_csv(tmp_path / "table.csv", index=False)
    words = [*SMALL, f"data.path={tmp_path / 'table.csv'}", "data.target=y", "train.global_batch_size=30"]
    agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests" / "run_sync_count.py"), str(tmp_path / "counts.json")]
    command = [sys.executable, *agent, *script, *words, "train.micro_batch_size=5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "counts.json").read_text()) == {"micro_steps": 3, "counts": [1, 2, 3]}
