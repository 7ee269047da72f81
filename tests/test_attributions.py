"""Integrated gradients: the parts add up, belong to their columns, and are exact where the network is linear."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nn_train.attributions import attribute
from nn_train.config import load_config
from nn_train.decision import Decision
from nn_train.engine import Engine
from nn_train.importance import input_places
from nn_train.models import MODELS, build_model
from nn_train.packed import Batch
from nn_train.preprocessor import NUM_RESERVED, Preprocessor
from nn_train.schema import Task
from nn_train.train import main
from tests.conftest import PAGE, SMALL, make_table
from tests.test_dependence import as_rows
from tests.test_models import small_config
from tests.test_preprocessing import KINDS, fit, typed

DECISION = Decision(temperature=1.4, threshold=0.5)
ONE_HOT_MAX = 5  # colour is embedded, member is one-hot
TASKS: tuple[Task, ...] = ("binary", "multiclass", "regression")


def build(task: Task, name: str = "mlp") -> tuple[Any, Preprocessor, Batch]:
    """A network with random weights, bins included, and 40 rows with gaps and unseen levels."""
    frame = typed(400, task=task)
    fitted = fit(frame, task=task, num_bins=8)
    frame.loc[:5, "colour"] = "never seen"
    torch.manual_seed(0)
    options = {} if name == "ft-transformer" else {"one_hot_max": ONE_HOT_MAX}
    config = small_config(name, num_numbers=len(fitted.numeric), width=32, num_embedding=4, **options)
    network = build_model(
        config, bins=fitted.bins, cardinalities=fitted.cardinalities, num_outputs=fitted.target.num_outputs, task=task
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.015 if name == "realmlp" else 0.3)  # its weights count twentyfold
    return network.eval(), fitted, as_rows(fitted.transform(frame)).slice(0, 40)


def scores_of(network: nn.Module, fitted: Preprocessor, batch: Batch) -> np.ndarray:
    """Log-odds from the probabilities that the run's predictions hold, or the predicted values."""
    with torch.no_grad():
        prediction = DECISION.predict(network(batch.x_num, batch.x_cat).numpy(), fitted)
    if fitted.target.task == "regression":
        return prediction
    p = prediction.max(axis=1) if prediction.ndim == 2 else prediction
    return np.log(p / (1 - p))


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("task", TASKS)
def test_the_parts_add_up_to_the_difference_of_the_scores(task: Task, name: str) -> None:
    network, fitted, batch = build(task, name)
    found = attribute(network, batch, fitted, DECISION)
    scores, bases = np.array(found["scores"]), np.array(found["bases"])
    assert np.allclose(scores, scores_of(network, fitted, batch), rtol=1e-4, atol=1e-4)
    sums = np.sum(list(found["columns"].values()), axis=0)
    error = np.abs(sums - (scores - bases)).max()
    assert error < 5e-3 * np.ptp(scores) and np.abs(scores - bases).min() >= 0
    assert found["gap"] == pytest.approx(error, abs=1e-4)
    assert set(found["columns"]) == set(KINDS)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_parts_of_a_linear_network_are_its_weights_times_the_way_from_the_base_row(name: str) -> None:
    network, fitted, batch = build("binary", name)
    network.layers = nn.Linear(len(network.input_E), 1)
    nn.init.normal_(network.layers.weight)
    found = attribute(network, batch, fitted, DECISION)
    fill = torch.from_numpy(fitted.arrays["fill"].astype(np.float32))[None]
    base = torch.zeros((1, batch.x_cat.shape[1]), dtype=torch.int64)
    base[:, len(fitted.categorical) :] = NUM_RESERVED
    with torch.no_grad():
        for column, (numbers, codes) in input_places(fitted).items():
            # the base row with this column's inputs alone set to the row's own
            x_num, x_cat = fill.repeat(40, 1), base.repeat(40, 1)
            x_num[:, numbers], x_cat[:, codes] = batch.x_num[:, numbers], batch.x_cat[:, codes]
            moved = (network(x_num, x_cat) - network(fill, base))[:, 0] / DECISION.temperature
            assert np.allclose(found["columns"][column], moved, atol=1e-3), column


def test_a_column_that_the_network_ignores_gets_nothing() -> None:
    network, fitted, batch = build("multiclass")
    numbers, codes = input_places(fitted)["colour"]
    assert not numbers
    places = [len(fitted.numeric) + code for code in codes]
    with torch.no_grad():
        network.layers[0].weight[:, [at for at, owner in enumerate(network.input_E) if owner in places]] = 0
    found = attribute(network, batch, fitted, DECISION)
    assert not np.any(found["columns"]["colour"]) and np.all(np.any(found["columns"]["age"]))


def test_a_multiclass_row_is_explained_by_the_class_that_was_predicted() -> None:
    network, fitted, batch = build("multiclass")
    with torch.no_grad():
        said = network(batch.x_num, batch.x_cat).argmax(dim=1).tolist()
    assert attribute(network, batch, fitted, DECISION)["classes"] == said
    network, fitted, batch = build("binary")
    assert attribute(network, batch, fitted, DECISION)["classes"] is None


# ---- a whole run


def words_of(folder: Path, *words: str) -> list[str]:
    make_table(300).to_csv(folder / "table.csv", index=False)
    steps = ("train.max_steps=6", "train.eval_every=3", "train.global_batch_size=64")
    return [*SMALL, *steps, f"data.path={folder / 'table.csv'}", "data.target=y", f"run.dir={folder / 'run'}", *words]


def test_a_run_that_requires_captum_does_not_start_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)  # as where it is not installed
    assert main(words_of(tmp_path, "report.attributions=required")) == 2
    assert "report.attributions=required needs captum, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_page_leaves_attributions_out_silently_where_captum_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    assert main(words_of(tmp_path, *PAGE, "report.attributions=auto")) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="worst"' in page and 'id="attributions"' not in page and "plot-attribution" not in page
    assert not re.search("captum|attribution", "".join(capfd.readouterr()))
    found = json.loads((tmp_path / "run" / "explain.json").read_text(encoding="utf-8"))
    assert found == {"dependence": None, "worst": None, "attributions": None}


def test_attributions_can_be_switched_off(tmp_path: Path) -> None:
    engine = Engine(load_config(None, words_of(tmp_path, "report.attributions=no")))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()
    assert json.loads((tmp_path / "run" / "explain.json").read_text(encoding="utf-8"))["attributions"] is None
