"""Several targets at once, from the loss to whatever reads a run: each is learned, judged and shown in its own unit."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score, root_mean_squared_error

from nn_train import Engine, load_bundle, load_ensemble
from nn_train.building import build_rows
from nn_train.compare import main as compare_main
from nn_train.config import load_config
from nn_train.ensemble import main as ensemble_main
from nn_train.errors import ConfigError, DataError
from nn_train.export import main as export_main
from nn_train.incoming import Counts
from nn_train.metrics import compute_metrics, selection_metric, worst_first
from nn_train.objective import Objective
from nn_train.predict import main as predict_main
from nn_train.preparation import prepare_data
from nn_train.resampling import Rows, bootstrap, row_losses
from nn_train.schema import TargetSpec
from nn_train.serve_rows import write_answer
from nn_train.splits import load_splits
from tests.conftest import PAGE, SMALL, Start
from tests.test_report import read_table

NAMES = ("price", "rent, cold")
TRUTH, SAID = [f"target_{name}" for name in NAMES], [f"prediction_{name}" for name in NAMES]
WORDS = ("data.target=[price, 'rent, cold']", "optim.peak_lr=0.01", "train.global_batch_size=32")


def make_flats(num_rows: int, *, seed: int = 0) -> pd.DataFrame:
    """Two numbers to predict of very different units, and an id called as one of the predictions will be."""
    rng = np.random.default_rng(seed)
    size, colour = rng.normal(size=num_rows), rng.choice(["red", "green", "blue"], size=num_rows)
    price = 250_000 + 80_000 * size + 30_000 * (colour == "red") + 8_000 * rng.normal(size=num_rows)
    rent = 2 - size**2 + 0.2 * rng.normal(size=num_rows)
    ids = [f"flat-{n}" for n in range(num_rows)]
    return pd.DataFrame({"prediction_price": ids, "size": size, "colour": colour, NAMES[0]: price, NAMES[1]: rent})


def words_for(folder: Path) -> list[str]:
    """The settings of a run in `folder`, whose table lies beside it."""
    own = [f"data.path={folder / 'table.csv'}", f"run.dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}"]
    return [*SMALL, "model.width=32", *WORDS, "train.max_epochs=12", *own]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with its page, baselines and importance."""
    folder = tmp_path_factory.mktemp("flats")
    make_flats(600).to_csv(folder / "table.csv", index=False)
    switches = [
        "report.baselines=[mean,linear,hist_gradient_boosting]",
        "report.importance=true",
        "report.attributions=auto",
    ]
    Engine(load_config(None, [*words_for(folder), *PAGE, *switches])).run()
    return folder / "run"


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_loss_of_a_row_is_the_mean_of_its_targets_losses(loss: str) -> None:
    logits, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 3, dtype=torch.float64)
    objective = Objective(task="regression", loss=loss)
    each = [objective.row_losses(logits[:, [place]], y[:, place]) for place in range(3)]
    expected = torch.stack(each).mean(dim=0)
    torch.testing.assert_close(objective.row_losses(logits, y), expected)
    torch.testing.assert_close(objective.loss_sum(logits, y), expected.sum())
    weight = torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(objective.weighted_sum(logits, y, weight), (expected * weight).sum())
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective.loss_sum(z, y), logits)


def test_each_member_learns_every_target() -> None:
    logits, y = torch.randn(7, 4, 2, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    objective = Objective(task="regression")
    each = torch.stack([objective.row_losses(logits[:, member], y) for member in range(4)])
    torch.testing.assert_close(objective.row_losses(logits, y), each.mean(dim=0))


def test_metrics_are_means_and_the_worst_row_is_so_in_deviations() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, 2)) * [1000, 1]
    values = y + rng.normal(size=(40, 2)) * [100, 0.3]
    found = compute_metrics(y, values, task="regression")
    assert found["r2"] == pytest.approx(r2_score(y, values))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, values))
    values[7, 1] += 20  # little beside the first target's errors, and many deviations of the second
    assert worst_first(y, values)[0] == 7
    assert np.isnan(compute_metrics(y, np.full_like(y, np.nan), task="regression")["r2"])


def test_resampled_metrics_are_means_too() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(size=(60, 2)) * [50, 1]
    rows = Rows(task="regression", y=y, prediction=y + rng.normal(size=(60, 2)), p=np.empty((60, 0)))
    found = bootstrap(rows, samples=50, seed=0)
    known = compute_metrics(rows.y, rows.prediction, task="regression")
    for name, value in found.estimates.items():
        assert value == pytest.approx(known[name])
    assert all(np.isfinite(values).all() and len(values) == 50 for values in found.values.values())
    assert row_losses(rows)["mse"].shape == (60,)
    larger = Rows(task="regression", y=y * [1, 1000], prediction=rows.prediction * [1, 1000], p=rows.p)
    np.testing.assert_allclose(row_losses(larger)["mse"], row_losses(rows)["mse"])  # in no unit


def test_what_a_run_leaves_holds_each_target(run: Path) -> None:
    frame = pd.read_parquet(run / "predictions.parquet")
    assert list(frame) == ["row", "id_prediction_price", *TRUTH, *SAID]
    table = pd.read_csv(run.parent / "table.csv")
    np.testing.assert_allclose(frame[TRUTH], table.loc[frame["row"], list(NAMES)])
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["selection"]["metric"] == "r2" == metrics["importance"]["metric"]
    assert metrics["test"]["r2"] > 0.8 and metrics["test"]["r2"] == pytest.approx(
        r2_score(frame[TRUTH], frame[SAID]), rel=1e-5
    )
    for name, truth, said in zip(NAMES, TRUTH, SAID, strict=True):
        found = metrics["targets"]["test"][name]
        assert found["rmse"] == pytest.approx(root_mean_squared_error(frame[truth], frame[said]), rel=1e-5)
        for baseline in metrics["baselines"].values():
            assert 0 < baseline["targets"]["test"][name]["rmse"] <= 1.2 * table[name].std()
    assert metrics["targets"]["test"]["price"]["rmse"] > 1000 > metrics["targets"]["test"]["rent, cold"]["rmse"]
    assert metrics["baselines"]["linear"]["test"]["r2"] < metrics["test"]["r2"]
    low, high = metrics["verdict"]["interval"]
    assert low < metrics["verdict"]["network_is_better_by"] < high
    stats = json.loads((run / "data.json").read_text())["target_stats"]
    assert set(stats) == set(NAMES) and stats["price"]["train"]["mean"] == pytest.approx(250_000, rel=0.1)


def test_the_page_shows_each_target(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "Left out" not in page
    for place in (1, 2):
        assert (run / "plots" / f"predicted_vs_true_{place}.png").stat().st_size > 1000
    assert not (run / "plots" / "predicted_vs_true.png").exists()
    rows = read_table(run, "targets")
    assert [row[0] for row in rows] == [name for name in NAMES for _ in range(4)]
    assert {row[1] for row in rows} == {"mlp", "mean of the target", "linear model", "gradient boosting"}
    assert "prediction_rent, cold" in page  # of the worst rows


def test_predict_bundle_server_and_export_give_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = pd.read_parquet(run / "predictions.parquet")
    table = pd.read_csv(run.parent / "table.csv")
    bundle = load_bundle(run)
    frame = bundle.predict(table.drop(columns=list(NAMES)))
    assert list(frame) == SAID
    np.testing.assert_allclose(frame.loc[kept["row"], SAID], kept[SAID], rtol=1e-5)
    table.loc[[0, 5], "price"] = np.nan  # rows without all of the targets are predicted and not judged
    table.to_csv(tmp_path / "new.csv", index=False)
    summary, words = tmp_path / "summary.json", ["--run", str(run), "--input", str(tmp_path / "new.csv")]
    assert predict_main([*words, "--output", str(tmp_path / "out.csv"), "--summary", str(summary)]) == 0
    out, said = pd.read_csv(tmp_path / "out.csv"), json.loads(summary.read_text())
    assert list(out) == ["row", "id_prediction_price", *TRUTH, *SAID]
    np.testing.assert_allclose(out[SAID], frame, rtol=1e-5)
    whole = out.dropna()
    assert said["rows_with_target"] == len(whole) == len(table) - 2 and not said["extra"]
    assert said["metrics"]["r2"] == pytest.approx(r2_score(whole[TRUTH], whole[SAID]), rel=1e-5)
    assert "r2" in capsys.readouterr().out
    table.drop(columns="rent, cold").to_csv(tmp_path / "new.csv", index=False)
    assert predict_main([*words, "--output", str(tmp_path / "part.csv"), "--summary", str(summary)]) == 0
    assert json.loads(summary.read_text())["metrics"] == {}
    scores = bundle.predict_scores(table.head(2))
    answer = json.loads(write_answer(bundle, scores, Counts(), []))["predictions"]
    assert answer == [{"prediction": dict(zip(NAMES, row, strict=True))} for row in scores.tolist()]
    for name in ("model.onnx", "model.pt2"):  # each is compared with the bundle before it is written
        assert export_main(["--run", str(run), "--output", str(tmp_path / name)]) == 0, capsys.readouterr().err


def test_runs_are_compared_by_the_mean_over_the_targets(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "table.csv").write_bytes((run.parent / "table.csv").read_bytes())
    Engine(load_config(None, [*words_for(folder), "run.seed=1"])).run()
    page = tmp_path / "compare.html"
    assert compare_main([str(run), str(folder / "run"), "--output", str(page), "--samples", "200"]) == 0
    assert "price, rent, cold" in page.read_text() and "R²" in page.read_text()


def test_an_ensemble_averages_each_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_flats(300).to_csv("table.csv", index=False)
    own = [word for word in words_for(tmp_path) if not word.startswith("run.dir")]
    assert ensemble_main(["--folds", "0", "--seeds", "2", *own, "train.max_epochs=2"]) == 0
    folder = tmp_path / "runs" / "table-ensemble"
    parts = [pd.read_parquet(path).set_index("row") for path in sorted(folder.glob("*/predictions.parquet"))]
    mean = pd.read_parquet(folder / "predictions.parquet").set_index("row")
    np.testing.assert_allclose(mean[SAID], sum(part[SAID] for part in parts) / 2)
    table = pd.read_csv("table.csv").loc[mean.index]
    np.testing.assert_allclose(load_ensemble(folder).predict(table)[SAID], mean[SAID], rtol=1e-5)


def test_two_processes_learn_what_one_does(start: Start, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        folder = tmp_path / f"of-{processes}"
        folder.mkdir()
        make_flats(301).to_csv(folder / "table.csv", index=False)
        own = ["model.name=tabm", "model.num_members=4", "train.max_epochs=2", "model.dropout=0"]
        done = start(*words_for(folder), *own, processes=processes)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_the_units_of_the_targets_change_nothing(tmp_path: Path) -> None:
    losses = []
    for scale in (1, 1e6):
        folder = tmp_path / f"{scale}"
        folder.mkdir()
        table = make_flats(300)
        table.assign(**{NAMES[1]: table[NAMES[1]] * scale}).to_csv(folder / "table.csv", index=False)
        engine = Engine(load_config(None, [*words_for(folder), "train.max_epochs=2"]))
        engine.run()
        losses.append(
            [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        )
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_row_has_a_target_where_all_are_there(tmp_path: Path) -> None:
    table = make_flats(200)
    table.loc[3, "price"] = np.nan
    table.loc[9, "rent, cold"] = np.nan
    table.to_csv(tmp_path / "table.csv", index=False)
    config = load_config(None, [*words_for(tmp_path), "model.embedding=ple-tree"])
    data = prepare_data(config)
    assert data.schema.num_rows == 198 and data.schema.num_rows_without_target == 2
    rows = data.rows("train", device=torch.device("cpu"))
    train = load_splits(data.folder / "splits.npz").train
    assert rows.y.shape == (len(train), 2) and not {3, 9} & set(train.tolist())
    truth = table.loc[train, list(NAMES)].to_numpy()
    np.testing.assert_allclose(data.preprocessor.decode_target(rows.y.numpy()), truth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rows.y.mean(dim=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (["a"] * 50 + ["b"] * 150, "'rent, cold' holds 'a'"),
        ([1.0] * 200, "'rent, cold' is '1' in every row"),
        ([None] * 200, "'rent, cold' has no value in any row"),
        ([1.5, 2.5] * 99 + [3.5, 1e60], "'rent, cold' holds 1e+60 in"),
    ],
)
def test_a_target_that_cannot_be_learned_is_named(tmp_path: Path, values: list[object], what: str) -> None:
    make_flats(200).assign(**{NAMES[1]: values}).to_csv(tmp_path / "table.csv", index=False)
    config = load_config(None, [*words_for(tmp_path), "split.seed=3", "split.method=time", "split.column=size"])
    with pytest.raises(DataError) as caught:
        build_rows(config, tmp_path, content="")
    assert what in str(caught.value)


def test_targets_that_share_no_row_are_refused(tmp_path: Path) -> None:
    table = make_flats(200)
    table.loc[:99, "price"] = np.nan
    table.loc[100:, "rent, cold"] = np.nan
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(DataError, match="in no row all there"):
        prepare_data(load_config(None, words_for(tmp_path)))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["data.target=[a,a]"], "one twice"),
        (["data.target=[]"], "names no column"),
        (["data.target=[a,b]", "data.task=binary"], "classes have a run for each column"),
        (["data.target=[a,b]", "data.positive=yes"], "classes have a run for each column"),
        (["data.target=[a,b]", "data.drop=[b]"], "data.drop holds the target 'b'"),
        (["data.target=[a,b]", "data.weight=b"], "data.weight=b is named by data.target"),
        (["data.target=[a,b]", "train.loss=quantile"], "for one target"),
    ],
)
def test_settings_that_several_targets_cannot_have(words: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load_config(None, ["data.path=t.csv", *words])


def test_a_missing_target_is_named_with_its_neighbour(tmp_path: Path) -> None:
    make_flats(100).to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(DataError, match="no column 'prize'") as caught:
        prepare_data(load_config(None, [*words_for(tmp_path), "data.target=[prize, size]"]))
    assert "'price'" in caught.value.fix


def test_names_and_the_metric_that_chooses() -> None:
    target = TargetSpec(name="a, b", task="regression", columns=("a", "b"))
    assert (target.num_outputs, target.names, target.truth_names) == (2, ("a", "b"), ("target_a", "target_b"))
    assert TargetSpec.from_json(json.loads(json.dumps(vars(target)))) == target
    assert selection_metric("auto", "regression", num_targets=2) == "r2"
    assert selection_metric("mae", "regression", num_targets=2) == "mae"
