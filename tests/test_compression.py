"""Gradients that are rounded on their way between real processes over gloo."""

from pathlib import Path

import numpy as np
import pytest

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError
from tests.conftest import SMALL, make_table, run_world
from tests.test_worlds import digest, last_weights, read_losses

WORDS = (*SMALL, "data.target=y", "train.global_batch_size=96", "model.dropout=0", "train.max_steps=60",
         "tracking.log_every_steps=1", "train.eval_every=20", "optim.warmup_steps=5")  # fmt: skip
BF16 = "train.gradient_compression=bf16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with and without compression on two and three processes; `NAME-WORLD` is a run folder."""
    folder = tmp_path_factory.mktemp("compression")
    make_table(1001).to_csv(folder / "table.csv", index=False)
    table = f"data.path={folder / 'table.csv'}"
    runs = {"plain": [], "bf16": [BF16], "accumulated": [BF16, "train.micro_batch_size=20"], "cut": [BF16]}
    for processes in (2, 3):
        own = [[*WORDS, table, *words, f"run.dir={folder / f'{name}-{processes}'}"] for name, words in runs.items()]
        own[-1].append("train.max_steps=30")
        run_world(processes, [*own, [*own[-1], "train.max_steps=60"]], folder)
    return folder


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["bf16", "accumulated"])
def test_losses_are_near_those_of_whole_gradients_and_not_the_same(folder: Path, name: str, processes: int) -> None:
    plain, rounded = read_losses(folder / f"plain-{processes}"), read_losses(folder / f"{name}-{processes}")
    assert len(plain) == len(rounded) == 60
    assert plain[0] == pytest.approx(rounded[0], rel=1e-6)  # before any gradient was sent
    assert not np.allclose(plain[1:], rounded[1:], rtol=1e-6)
    np.testing.assert_allclose(rounded, plain, rtol=0.02)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_run_that_goes_on_has_the_bits_of_the_undisturbed_one(folder: Path, processes: int) -> None:
    assert last_weights(folder / f"cut-{processes}") == last_weights(folder / f"bf16-{processes}")
    assert read_losses(folder / f"cut-{processes}").tolist() == read_losses(folder / f"bf16-{processes}").tolist()


def test_one_process_has_nothing_to_send(tmp_path: Path) -> None:
    make_table(300).to_csv(tmp_path / "table.csv", index=False)
    for name, words in (("plain", ()), ("bf16", (BF16,))):
        own = [*WORDS, f"data.path={tmp_path / 'table.csv'}", "train.max_steps=5", *words]
        Engine(load_config(None, [*own, f"run.dir={tmp_path / name}"])).run()
        run_world(1, [[*own, f"run.dir={tmp_path / f'{name}-torchrun'}"]], tmp_path)  # wrapped in DDP all the same
    assert digest(tmp_path / "plain") == digest(tmp_path / "bf16")
    assert last_weights(tmp_path / "plain-torchrun") == last_weights(tmp_path / "bf16-torchrun")


def test_exact_gradients_are_not_rounded() -> None:
    words = ["data.path=a.csv", "data.target=y", BF16, "train.gradient_reduction=exact"]
    with pytest.raises(ConfigError, match=r"train\.gradient_compression=bf16 rounds the gradients.*or fast"):
        load_config(None, words)
    with pytest.raises(ConfigError, match=r"train\.gradient_compression='fp8'"):
        load_config(None, [*words[:2], "train.gradient_compression=fp8"])
