"""An ensemble: ordinary runs on folds and seeds, the mean of what they say, stopped and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nn_train import load_bundle, load_ensemble
from nn_train.ensemble import average, decide, main, name_members, truth_and_scores
from nn_train.errors import RunFolderError
from nn_train.metrics import compute_metrics
from nn_train.schema import TargetSpec
from tests.conftest import ROOT, SMALL, make_table

SHORT = (*SMALL, "data.target=y", "train.max_epochs=3")


def words_of(folder: Path, *words: str) -> list[str]:
    return [*SHORT, f"data.path={folder / 'table.csv'}", f"data.cache_dir={folder / 'cache'}", *words]


def make_folder(folder: Path, task: str = "binary") -> Path:
    make_table(240, task=task).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folds with two seeds each; the table lies beside it."""
    folder = make_folder(tmp_path_factory.mktemp("ensemble"))
    assert main(["--folds=2", "--seeds=2", "--parallel=2", f"--dir={folder / 'four'}", *words_of(folder)]) == 0
    return folder / "four"


def test_the_networks_are_ordinary_runs_on_every_fold_and_seed(trained: Path) -> None:
    names = ["fold-0-seed-0", "fold-0-seed-1", "fold-1-seed-0", "fold-1-seed-1"]
    assert json.loads((trained / "ensemble.json").read_text())["members"] == names
    splits = {name: np.load(trained / name / "splits.npz") for name in names}
    tests = {tuple(split["test"].tolist()) for split in splits.values()}
    assert len(tests) == 1
    val = [set(splits[name]["val"].tolist()) for name in names]
    assert val[0] == val[1] and val[2] == val[3] and not val[0] & val[2]
    assert len(val[0] | val[2]) + len(tests.pop()) == 240
    assert load_bundle(trained / names[1]).predict(pd.read_csv(trained.parent / "table.csv")).shape == (240, 3)


def test_test_rows_get_the_mean_and_other_rows_that_of_networks_that_did_not_see_them(trained: Path) -> None:
    names = json.loads((trained / "ensemble.json").read_text())["members"]
    tests = [pd.read_parquet(trained / name / "predictions.parquet") for name in names]
    found = pd.read_parquet(trained / "predictions.parquet")
    assert found["row"].tolist() == tests[0]["row"].tolist()
    np.testing.assert_allclose(found["p_yes"], np.mean([one["p_yes"] for one in tests], axis=0), atol=1e-12)
    folds = pd.read_parquet(trained / "out_of_fold.parquet")
    assert sorted(folds["row"].tolist() + found["row"].tolist()) == list(range(240))
    vals = [pd.read_parquet(trained / name / "predictions_val.parquet").set_index("row")["p_yes"] for name in names]
    for pair in (vals[:2], vals[2:]):
        own = folds.set_index("row")["p_yes"][pair[0].index]
        np.testing.assert_allclose(own, (pair[0] + pair[1]) / 2, atol=1e-12)


def test_the_metrics_are_those_of_the_mean_beside_a_single_network(trained: Path) -> None:
    note = json.loads((trained / "ensemble.json").read_text())
    found = pd.read_parquet(trained / "predictions.parquet")
    y, p = (found["target"] == "yes").to_numpy(int), found["p_yes"].to_numpy()
    expected = compute_metrics(y, p, task="binary", threshold=note["threshold"])
    known = {name: value for name, value in expected.items() if np.isfinite(value)}
    assert {name: note["test"]["ensemble"][name] for name in known} == pytest.approx(known)
    alone = [json.loads((trained / name / "metrics.json").read_text()) for name in note["members"]]
    assert note["test"]["single"]["log_loss"] == pytest.approx(np.mean([one["test"]["log_loss"] for one in alone]))
    assert note["test"]["ensemble"]["log_loss"] <= note["test"]["single"]["log_loss"]  # by Jensen's inequality
    assert (found["prediction"] == "yes").tolist() == (p >= note["threshold"]).tolist()
    assert note["seconds"]["ensemble"] > note["seconds"]["single"] > 0
    assert note["rows"] == {"val": 204, "test": 36}


def test_the_ensemble_predicts_raw_rows_as_it_did_the_test_rows(trained: Path) -> None:
    table = pd.read_csv(trained.parent / "table.csv")
    found = pd.read_parquet(trained / "predictions.parquet")
    rows = table.iloc[found["row"]]
    predicted = load_ensemble(trained).predict(rows)
    assert predicted.index.tolist() == rows.index.tolist()
    np.testing.assert_allclose(predicted["p_yes"], found["p_yes"], atol=1e-6)
    assert predicted["prediction"].tolist() == found["prediction"].tolist()


def test_seeds_alone_share_their_validation_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path, "regression")
    where = tmp_path / "seeds"
    assert main(["--folds", "0", "--seeds", "2", f"--dir={where}", *words_of(folder, "run.seed=7")]) == 0
    said = capsys.readouterr().out
    assert "seed-7: " in said and "seed-8: " in said and "ensemble, test" in said and "single, validation" in said
    found = pd.read_parquet(where / "predictions.parquet")
    tests = [pd.read_parquet(where / f"seed-{seed}" / "predictions.parquet") for seed in (7, 8)]
    np.testing.assert_allclose(found["prediction"], (tests[0]["prediction"] + tests[1]["prediction"]) / 2, rtol=1e-9)
    predicted = load_ensemble(where).predict(pd.read_csv(folder / "table.csv").iloc[found["row"]])
    np.testing.assert_allclose(predicted["prediction"], found["prediction"], rtol=1e-4, atol=1e-5)
    assert main(["--folds", "0", "--seeds", "2", f"--dir={where}", *words_of(folder, "run.seed=7")]) == 0
    assert "seed-7: done before" in capsys.readouterr().out
    assert main(["--folds", "0", "--seeds", "3", f"--dir={where}", *words_of(folder, "run.seed=7")]) == 2
    assert "this folder holds an ensemble of 2 other networks" in capsys.readouterr().err


def test_a_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    where = tmp_path / "stopped"
    words = [f"--dir={where}", "--folds=2", *words_of(folder, "train.max_epochs=100000", "train.max_steps=100000")]
    command = [sys.executable, "-m", "nn_train.ensemble", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    metrics = where / "fold-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "fold-0: stopped" in said, said
    assert json.loads((where / "fold-0" / "status.json").read_text())["state"] == "stopped"
    assert not (where / "fold-1").exists()
    step = json.loads((where / "fold-0" / "status.json").read_text())["step"]
    words = [f"--dir={where}", "--folds=2", *words_of(folder, "train.max_epochs=100000", f"train.max_steps={step + 5}")]
    assert main(words) == 0
    assert f"from step {step}" in (where / "fold-0.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "that is one network alone"),
        (["--folds", "0"], "that is one network alone"),
        (["--folds=-1"], "--folds -1 is less than 0"),
        (["--fold", "3"], "unknown option --fold"),
        (["run.dir=x"], "run.dir is set by the ensemble"),
        (["split.method=time", "split.column=day"], "goes with split.method=random or group"),
        (["train.max_epoch=3"], "did you mean 'train.max_epochs'"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_made(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_folder(tmp_path))
    assert main([*words_of(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_network_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path)
    assert main([f"--dir={tmp_path / 'e'}", "--folds=2", *words_of(folder, "data.target=nothing")]) == 1
    said = capsys.readouterr().out
    assert "fold-0: exit code 2: " in said and "2 of 2 networks failed" in said
    with pytest.raises(RunFolderError, match="no finished ensemble"):
        load_ensemble(tmp_path / "e")


def test_a_note_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    for name in ("../other", "/etc", "", ".."):
        (tmp_path / "ensemble.json").write_text(json.dumps({"members": [name], "threshold": 0.5}))
        with pytest.raises(RunFolderError, match="its networks lie elsewhere"):
            load_ensemble(tmp_path)


def test_names_say_what_differs() -> None:
    def names(folds: int, seeds: int) -> list[str]:
        return [m.run_dir.name for m in name_members(Path("e"), folds=folds, seeds=seeds, first_seed=3)]

    assert names(2, 1) == ["fold-0", "fold-1"]
    assert names(0, 2) == ["seed-3", "seed-4"]
    assert names(2, 2) == ["fold-0-seed-3", "fold-0-seed-4", "fold-1-seed-3", "fold-1-seed-4"]


def test_of_several_classes_the_most_probable_on_the_mean_is_decided() -> None:
    parts = [([0.5, 0.1, 0.4], "a"), ([0.0, 0.55, 0.45], "b")]
    columns = [f"p_{name}" for name in "abc"]
    frames = [
        pd.DataFrame([[3, "c", said, *p]], columns=["row", "target", "prediction", *columns]) for p, said in parts
    ]
    target = TargetSpec(name="y", task="multiclass", classes=("a", "b", "c"))
    found = decide(average(frames, target), "abc", "multiclass", 0.5)
    assert found["prediction"].tolist() == ["c"]
    costs = np.array([[0, 1, 1], [9, 0, 9], [1, 1, 0]])
    assert decide(found, "abc", "multiclass", 0.5, costs=costs)["prediction"].tolist() == ["b"]
    y, p = truth_and_scores(found, target)
    assert y.tolist() == [2] and p.tolist() == [[0.25, pytest.approx(0.325), pytest.approx(0.425)]]


def test_a_row_of_one_network_keeps_its_own_prediction() -> None:
    frames = [pd.DataFrame({"row": rows, "target": [1.0, 2.0], "prediction": values})
              for rows, values in (([4, 2], [1.0, 3.0]), ([2, 7], [5.0, 9.0]))]  # fmt: skip
    found = average(frames, TargetSpec(name="y", task="regression"))
    assert found["row"].tolist() == [2, 4, 7]
    assert found["prediction"].tolist() == [4.0, 1.0, 9.0]
