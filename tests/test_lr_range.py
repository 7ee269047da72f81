"""The search for a learning rate: what it suggests, draws and leaves, and what it refuses."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train.find_lr import main, parse_arguments
from nn_train.lr_range import RangeTest, smooth
from tests.conftest import SMALL

WORDS = (*SMALL, "data.target=y", "train.global_batch_size=64")


def search(table: Path, run: Path, *words: str) -> int:
    return main([*WORDS, f"data.path={table}", f"run.dir={run}", *words])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_draws_the_loss_suggests_a_rate_and_leaves_room_for_the_run(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert search(table_file, run, "--steps", "40", "--low", "1e-4") == 0
    assert files(run) == ["find_lr.csv", "find_lr.png"]
    assert (run / "find_lr.png").read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(run / "find_lr.csv")
    assert list(table) == ["lr", "loss", "smooth_loss"]
    assert table["lr"].iloc[0] == pytest.approx(1e-4)
    np.testing.assert_allclose(np.diff(np.log(table["lr"])), np.log(1e5) / 39)
    assert np.isfinite(table).all(axis=None)
    assert table["smooth_loss"].min() < table["smooth_loss"].iloc[0]
    said = capsys.readouterr()
    assert "suggestion: optim.peak_lr=" in said.out + said.err
    content = (run / "find_lr.csv").read_bytes()
    assert search(table_file, run, "--steps", "40", "--low", "1e-4", "--output", str(tmp_path / "new" / "lr")) == 0
    assert (tmp_path / "new" / "lr" / "find_lr.csv").read_bytes() == content  # the same settings, the same bits
    from nn_train.run_folder import holds_run

    assert not holds_run(run)


def test_the_suggestion_is_where_the_smoothed_loss_falls_fastest() -> None:
    lr = np.geomspace(1e-5, 1, 500)
    loss = 1 / (1 + (lr / 1e-2) ** 2) + np.where(lr > 0.1, (lr / 0.1) ** 2 - 1, 0)
    assert 5e-3 < RangeTest(lr=lr, loss=loss).suggestion < 3e-2
    assert math.isnan(RangeTest(lr=lr, loss=1 + lr).suggestion)
    np.testing.assert_allclose(smooth(np.ones(9)), 1)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--low", "1"], None),
        (["--low", "1", "--high", "0.1"], "no range to test from 1 to 0.1 in 200 steps"),
        (["--steps", "3"], "no range to test from 1e-06 to 10 in 3 steps"),
        (["--low", "0"], "0 is not above 0"),
        (["--steps", "many"], "many"),
        (["--stepz", "3"], "unknown option --stepz"),
        (["optim.name=adamm"], "optim.name='adamm'"),
    ],
)
def test_mistakes_are_named(words: list[str], what: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if what is None:
        assert parse_arguments(words).low == 1.0
        return
    assert main(words) == 2
    assert what in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_left_alone(table_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    assert search(table_file, other) == 2
    assert files(other) == ["mine.txt"]
