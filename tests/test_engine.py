"""The lifecycle from Python: stages in their order, runs that were cut off, names that collide."""

import json
from pathlib import Path

import pandas as pd
import pytest

from nn_train import Engine, load_config
from nn_train.errors import DataError, RunFolderError, TrainingError, UserError
from nn_train.train import main
from tests.conftest import PAGE, SMALL, make_table


def engine_of(table: Path, *words: str) -> Engine:
    """An engine on a table, in the folder `run` beside it."""
    base = [*SMALL, f"data.path={table}", "data.target=y", f"run.dir={table.parent / 'run'}", "train.max_steps=6"]
    return Engine(load_config(None, [*base, *words]))


def state_of(table: Path) -> str:
    return json.loads((table.parent / "run" / "status.json").read_text())["state"]


def test_a_stage_without_the_one_before_it_is_refused(table_file: Path) -> None:
    engine = engine_of(table_file)
    for stage, missing in ((engine.train, "prepare"), (engine.evaluate, "train"), (engine.report, "evaluate")):
        with pytest.raises(UserError, match=rf"what {missing}\(\) leaves"):
            stage()
    engine.prepare()
    with pytest.raises(UserError, match=r"what train\(\) leaves"):  # it would judge random weights
        engine.evaluate()
    engine.close()
    assert state_of(table_file) == "running"
    metrics = engine_of(table_file).run()
    assert state_of(table_file) == "done"
    assert set(metrics) >= {"task", "val", "test", "baselines", "rows"}


def test_a_second_engine_waits_for_no_one(table_file: Path) -> None:
    first = engine_of(table_file)
    first.prepare()
    with pytest.raises(RunFolderError, match="another process trains in this run folder"):
        engine_of(table_file).prepare()
    first.close()
    engine_of(table_file).run()


def test_a_run_that_goes_on_has_no_report_until_it_is_drawn_anew(table_file: Path) -> None:
    page = table_file.parent / "run" / "report.html"
    engine_of(table_file, *PAGE).run()
    engine = engine_of(table_file, *PAGE, "train.max_steps=9")
    engine.prepare()
    assert not page.exists()
    engine.train()
    engine.evaluate()
    engine.close()  # cut off before the report
    again = engine_of(table_file, *PAGE, "train.max_steps=9")
    again.prepare()
    assert not again.is_finished
    again.train()
    again.evaluate()
    again.report()
    assert page.exists()


def test_a_finished_run_is_judged_again_under_another_decision(table_file: Path) -> None:
    first = engine_of(table_file).run()
    second = engine_of(table_file, "evaluation.threshold_metric=accuracy").run()
    assert second["decision"]["threshold_metric"] == "accuracy"
    assert second["test"]["roc_auc"] == first["test"]["roc_auc"]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_run_without_test_rows_judges_the_validation_rows(
    task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(120, task=task).to_csv(tmp_path / "t.csv", index=False)
    words = [*PAGE, "report.importance=true", "report.baselines=true", "split.test=0", "evaluation.threshold_metric=no"]
    metrics = engine_of(tmp_path / "t.csv", *words).run()
    run = tmp_path / "run"
    assert metrics["test"] == {}
    assert metrics["importance"]["num_rows"] == 18  # of the validation rows
    assert metrics["decision"]["threshold"] == 0.5
    assert all(model["val"] and not model["test"] for model in metrics["baselines"].values())
    assert json.loads((run / "metrics.json").read_text())["rows"] == {"train": 102, "val": 18, "test": 0}
    assert not (run / "predictions.parquet").exists()
    assert len(pd.read_parquet(run / "predictions_val.parquet")) == 18
    assert "could not be read" not in (run / "report.html").read_text()
    assert "left out" not in (run / "report.html").read_text().lower()
    assert "validation metrics (18 rows)" in capsys.readouterr().out


def test_a_page_is_drawn_where_it_is_wanted(table_file: Path) -> None:
    page = table_file.parent / "run" / "report.html"
    first = engine_of(table_file, "report.page=false").run()
    assert not page.exists()
    assert state_of(table_file) == "done"
    again = engine_of(table_file, "report.page=false")
    again.prepare()
    assert again.is_finished
    again.close()
    assert engine_of(table_file, "report.page=true").run()["test"] == first["test"]
    assert page.exists()


def test_ids_are_kept_beside_the_predictions_whatever_their_names(tmp_path: Path) -> None:
    table = make_table(200)
    names = ["row", "prediction", "p_yes", "target", "id_row"]
    for index, name in enumerate(names):
        table[name] = [f"{name}-{row * 7 + index}" for row in range(200)]
    table.to_csv(tmp_path / "t.csv", index=False)
    engine_of(tmp_path / "t.csv", f"data.id=[{','.join(names)}]").run()
    found = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert found.columns.is_unique
    for name in names:
        column = next(c for c in found.columns if found[c].astype(str).str.startswith(f"{name}-").all())
        assert found[column].tolist() == table[name].iloc[found["row"]].tolist()
    assert found["target"].tolist() == table["y"].iloc[found["row"]].tolist()


def test_a_mistake_in_one_of_several_tables_is_named_there(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        table = make_table(60, seed=len(name)).astype({"age": str})
        if name == "test":
            table.loc[4, "age"] = "old"
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    words = ["split.method=files", *(f"split.{name}_path={tmp_path / name}.csv" for name in ("val", "test"))]
    with pytest.raises(DataError, match=r"'old' in line 6 of test\.csv") as caught:
        engine_of(tmp_path / "train.csv", *words).run()
    assert caught.value.where == str(tmp_path / "test.csv")


def test_weights_that_an_update_breaks_are_never_kept(table_file: Path) -> None:
    with pytest.raises(TrainingError, match="not finite"):
        engine_of(table_file, "optim.weight_decay=1e38", "train.eval_every=3", "optim.peak_lr=10").run()
    assert state_of(table_file) == "failed"
    assert not (table_file.parent / "run" / "model.safetensors").exists()


def test_debug_does_not_replace_a_run_that_is_worth_something(
    table_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_of(table_file).run()
    before = (table_file.parent / "run" / "model.safetensors").read_bytes()
    words = [*SMALL, f"data.path={table_file}", "data.target=y", f"run.dir={table_file.parent / 'run'}"]
    assert main(["--debug", *words]) == 2
    assert "train.max_steps" in capsys.readouterr().err or state_of(table_file) == "done"
    assert (table_file.parent / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("data.target=007", "target", "007"),
        ("data.target=2024-01-01", "target", "2024-01-01"),
        ("data.drop=[a,2020-01-01]", "drop", ("a", "2020-01-01")),
        ("data.drop=a,b", "drop", ("a", "b")),
        ("data.drop=null", "drop", ()),
        ("data.positive=true", "positive", "true"),
        ("data.missing_values=-999,?", "missing_values", ("-999", "?")),
        (r"data.delimiter=\t", "delimiter", "\t"),
        ("data.delimiter=|", "delimiter", "|"),
    ],
)
def test_names_are_read_as_text(word: str, key: str, value: object) -> None:
    assert getattr(load_config(None, [word]).data, key) == value


def test_a_word_for_one_column_keeps_what_the_file_says_of_others(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("data: {path: a.csv, target: t, columns: {a: drop, b: numeric}}")
    config = load_config(file, ["data.columns.c=drop", "data.columns.b=categorical"])
    assert config.data.columns == {"a": "drop", "b": "categorical", "c": "drop"}
    for words in (["data.columns=null", "data.columns.x=numeric"], ["data.columns=foo", "data.columns.x=numeric"]):
        assert load_config(None, words).data.columns == {"x": "numeric"}
    with pytest.raises(UserError, match=r"data\.path"):
        load_config(None, ["data.path=foo.csv", "data.path.x=3"])
    with pytest.raises(UserError, match="not closed"):
        load_config(None, ["data.drop=[a,b"])
