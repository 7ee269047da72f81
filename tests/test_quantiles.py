"""Quantiles from the loss to whatever reads a run: trained, sorted, judged, predicted, served, exported, compared."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss

from nn_train import TabularRegressor, load_bundle
from nn_train.compare import main as compare_main
from nn_train.config import load_config
from nn_train.errors import ConfigError
from nn_train.export import main as export_main
from nn_train.incoming import Counts
from nn_train.metrics import quantile_metrics, selection_metric
from nn_train.objective import Objective
from nn_train.predict import main as predict_main
from nn_train.schema import TargetSpec
from nn_train.serve_rows import write_answer
from tests.conftest import PAGE, SMALL, TinyRun, make_table

LEVELS = (0.1, 0.5, 0.9)
NAMES = ["q_0.1", "q_0.5", "q_0.9"]
WORDS = (*PAGE, "train.loss=quantile", "report.importance=true", "report.baselines=true", "optim.peak_lr=0.01")


@pytest.fixture
def run(tiny_run: TinyRun) -> Path:
    """A finished run that predicts three quantiles."""
    return tiny_run("regression", *WORDS)


def test_the_loss_is_the_mean_of_the_pinball_losses() -> None:
    logits, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    objective = Objective(task="regression", loss="quantile", quantiles=LEVELS)
    expected = [mean_pinball_loss(y.numpy(), logits[:, i].numpy(), alpha=level) for i, level in enumerate(LEVELS)]
    assert float(objective.row_losses(logits, y).mean()) == pytest.approx(np.mean(expected))
    assert float(objective.loss_sum(logits, y)) == pytest.approx(50 * np.mean(expected))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective.loss_sum(z, y), logits)
    assert objective.loss_sum(logits.bfloat16(), y.float()).dtype == torch.float32


def test_the_loss_is_least_at_the_quantiles() -> None:
    y = torch.arange(1001, dtype=torch.float64)
    objective = Objective(task="regression", loss="quantile", quantiles=LEVELS)
    best = float(objective.loss_sum(torch.tensor([[100.0, 500.0, 900.0]], dtype=torch.float64).expand(1001, 3), y))
    for moved in ([101.0, 500.0, 900.0], [100.0, 499.0, 900.0], [100.0, 500.0, 901.0]):
        assert float(objective.loss_sum(torch.tensor([moved], dtype=torch.float64).expand(1001, 3), y)) > best


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=9))
def test_metrics_of_quantiles_are_their_formulas(rows: list[list[float]]) -> None:
    values, y = np.sort(np.array(rows), axis=1), np.linspace(-1, 1, len(rows))
    found = quantile_metrics(y, values, LEVELS)
    assert found["pinball_loss"] == pytest.approx(
        np.mean([mean_pinball_loss(y, values[:, i], alpha=level) for i, level in enumerate(LEVELS)])
    )
    assert found["interval_coverage"] == np.mean((values[:, 0] <= y) & (y <= values[:, 2]))
    assert (
        found["interval_width"] == pytest.approx(np.mean(values[:, 2] - values[:, 0])) and found["interval_width"] >= 0
    )


def test_a_single_quantile_has_no_interval_and_what_is_not_finite_no_value() -> None:
    found = quantile_metrics(np.ones(3), np.ones((3, 1)), [0.3])
    assert found["pinball_loss"] == 0 and np.isnan(found["interval_coverage"]) and np.isnan(found["interval_width"])
    assert np.isnan(list(quantile_metrics(np.ones(1), np.array([[np.nan]]), [0.3]).values())).all()


@pytest.mark.parametrize(
    ("levels", "middle"), [((), 0), ((0.5,), 0), ((0.1, 0.5, 0.9), 1), ((0.1, 0.2), 1), ((0.4, 0.6, 0.9), 0)]
)
def test_the_prediction_is_the_quantile_nearest_to_the_median(levels: tuple[float, ...], middle: int) -> None:
    target = TargetSpec(name="y", task="regression", quantiles=levels)
    assert (target.middle, target.num_outputs) == (middle, max(len(levels), 1))


def test_what_a_run_leaves_holds_sorted_quantiles_and_their_metrics(run: Path) -> None:
    frame = pd.read_parquet(run / "predictions.parquet")
    assert list(frame) == ["row", "target", "prediction", *NAMES]
    values = frame[NAMES].to_numpy()
    assert (np.diff(values, axis=1) >= 0).all()
    assert (frame["prediction"] == frame["q_0.5"]).all()
    metrics = json.loads((run / "metrics.json").read_text())
    expected = quantile_metrics(frame["target"].to_numpy(), values, LEVELS)
    for name, value in expected.items():
        assert metrics["test"][name] == pytest.approx(value, rel=1e-5)
    assert metrics["test"]["mae"] == pytest.approx((frame["target"] - frame["prediction"]).abs().mean(), rel=1e-5)
    assert metrics["selection"]["metric"] == "pinball_loss" and metrics["importance"]["metric"] == "mae"
    page = (run / "report.html").read_text()
    assert "pinball loss" in page and "interval coverage" in page
    assert "by MAE" in page  # the rank among models that predict no quantiles
    inside = float(((frame["q_0.1"] <= frame["target"]) & (frame["target"] <= frame["q_0.9"])).mean())
    assert f"{inside:.1%}".replace("%", " %") + " of the true values lie in the interval that is to hold 80.0 %" in page
    below = float((frame["target"] <= frame["q_0.9"]).mean())
    assert f"0.9: {100 * below:.1f} %" in page


def test_predict_bundle_server_and_export_give_the_same_quantiles(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = pd.read_parquet(run / "predictions.parquet")
    table = pd.read_csv(run.parent / "table.csv")
    bundle = load_bundle(run)
    frame = bundle.predict(table)
    assert list(frame) == ["prediction", *NAMES]
    np.testing.assert_allclose(frame.loc[kept["row"], NAMES], kept[NAMES], rtol=1e-5)
    summary = tmp_path / "summary.json"
    words = ["--run", str(run), "--input", str(run.parent / "table.csv"), "--output", str(tmp_path / "out.csv")]
    assert predict_main([*words, "--summary", str(summary)]) == 0
    out = pd.read_csv(tmp_path / "out.csv")
    assert list(out) == ["row", "target", "prediction", *NAMES]
    np.testing.assert_allclose(out[NAMES], frame[NAMES], rtol=1e-5)
    assert json.loads(summary.read_text())["metrics"]["pinball_loss"] == pytest.approx(
        quantile_metrics(out["target"].to_numpy(), out[NAMES].to_numpy(), LEVELS)["pinball_loss"], rel=1e-5
    )
    scores = bundle.predict_scores(table.head(2))
    answer = json.loads(write_answer(bundle, scores, Counts(), []))["predictions"]
    assert answer == [
        {"prediction": row[1], "quantiles": dict(zip(NAMES, row, strict=True))} for row in scores.tolist()
    ]
    for name in ("model.onnx", "model.pt2"):  # each is compared with the bundle before it is written
        assert export_main(["--run", str(run), "--output", str(tmp_path / name)]) == 0, capsys.readouterr().err


def test_runs_with_quantiles_are_compared_by_their_middle_one(run: Path, tiny_run: TinyRun, tmp_path: Path) -> None:
    other = tiny_run("regression")
    page = tmp_path / "compare.html"
    assert compare_main([str(run), str(other), "--output", str(page), "--samples", "200"]) == 0
    assert "RMSE" in page.read_text()


def test_the_estimator_predicts_quantiles_when_it_learned_them() -> None:
    table = make_table(200, task="regression")
    features = table.drop(columns="y")
    settings = [word for word in SMALL if not word.startswith(("model.", "train."))]
    model = TabularRegressor(
        width=8, max_epochs=1, settings=[*settings, "train.loss=quantile", "train.quantiles=[0.25,0.75]"]
    ).fit(features, table["y"])
    quantiles = model.predict_quantiles(features)
    assert quantiles.shape == (200, 2) and (np.diff(quantiles, axis=1) >= 0).all()
    assert model.predict(features).tolist() == quantiles[:, 0].tolist()
    plain = TabularRegressor(width=8, max_epochs=1, settings=settings).fit(features, table["y"])
    with pytest.raises(ValueError, match="learned no quantiles"):
        plain.predict_quantiles(features)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["train.quantiles=[0.5,0.1]"], "do not increase"),
        (["train.quantiles=[0.5,0.5]"], "do not increase"),
        (["train.quantiles=[0,0.5]"], "train.quantiles"),
        (["train.quantiles=[]"], "train.quantiles"),
        (["train.loss=quantile", "data.task=binary"], "train.loss=quantile is for numbers"),
    ],
)
def test_quantiles_that_are_none_are_refused(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_config(words=words)


def test_pinball_loss_selects_under_its_loss_alone() -> None:
    assert selection_metric("auto", "regression", quantiles=LEVELS) == "pinball_loss"
    assert selection_metric("rmse", "regression", quantiles=LEVELS) == "rmse"
    with pytest.raises(ConfigError) as caught:
        selection_metric("pinball_loss", "regression")
    assert caught.value.fix == "train.loss=quantile"
