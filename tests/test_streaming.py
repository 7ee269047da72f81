"""Splits that are judged block by block: whole runs, beside the same runs with all scores held."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nn_train import Engine, load_bundle, load_config
from nn_train.compare_run import read_finished_run
from nn_train.errors import Stopped
from nn_train.packed import PackedRows
from nn_train.parquet_rows import RowReader, rows_at_places
from nn_train.predict import main
from nn_train.report_run import read_run
from nn_train.sampling import describe_baseline_sample, describe_drawn, describe_streamed, even_places, held_rows
from nn_train.scoring import Judge
from nn_train.streamed_results import deal_turns
from nn_train.streaming import rows_at
from tests.conftest import PAGE, SMALL, TinyRun, make_table, run_world

STREAMED = ("evaluation.exact_rows=50", "train.eval_batch_size=7")
WITHIN = 1e-4  # of metrics from histograms
FULL = ("report.baselines=[mean,linear]", "report.baseline_rows=40", "report.importance=true")
TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "binary": ("binary", ("train.selection_metric=roc_auc",)),
    "multiclass": ("multiclass", ("evaluation.costs={low: {high: 5}}",)),
    "regression": ("regression", ("train.selection_metric=median_absolute_error",)),
    "quantiles": ("regression", ("train.loss=quantile", "train.selection_metric=pinball_loss")),
    "targets": ("regression", ("data.target=[y, size]", "data.task=regression")),
}


def read(run: Path, name: str = "metrics.json") -> dict[str, Any]:
    return json.loads((run / name).read_text())


def history(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("rows_per_s", "elapsed_s")} for line in lines]


@pytest.fixture(scope="module", params=TASKS)
def pair(request: pytest.FixtureRequest, tiny_run: TinyRun) -> tuple[str, Path, Path]:
    """The same run with scores held and streamed; calibration and threshold, which see a sample, are left out."""
    task, words = TASKS[request.param]
    same = (*words, *FULL, "train.eval_batch_size=7", "evaluation.calibration=no", "evaluation.threshold_metric=no")
    same = (*same, *PAGE, "train.global_batch_size=32", "train.max_epochs=8")  # or its scores would hardly differ
    return request.param, tiny_run(task, *same), tiny_run(task, *same, "evaluation.exact_rows=50")


def test_metrics_are_those_of_all_scores_at_once(pair: tuple[str, Path, Path]) -> None:
    _, held, streamed = pair
    exact, found = read(held), read(streamed)
    assert found["rows"]["test"] > 50
    assert found["selection"]["step"] == exact["selection"]["step"]
    approximate = found["streamed"]["approximate"]
    for split in ("val", "test"):
        assert list(found[split]) == list(exact[split])
        for name, value in exact[split].items():
            if name == "roc_auc":  # of so few rows, one pair in a bin is seen
                assert abs(found[split][name] - value) <= found["streamed"]["roc_auc_within"][split] + 1e-12
            elif value is None:
                assert found[split][name] is None
            else:
                bound = WITHIN if name in approximate else 1e-9
                assert found[split][name] == pytest.approx(value, rel=bound, abs=bound), (split, name)
    if "targets" in exact:
        for name, values in exact["targets"]["test"].items():
            known = {metric: value for metric, value in values.items() if value is not None}
            assert known == pytest.approx({m: found["targets"]["test"][name][m] for m in known}, rel=WITHIN)
    assert "streamed" not in exact


def test_the_training_sees_the_same_validation(pair: tuple[str, Path, Path]) -> None:
    _, held, streamed = pair
    for before, after in zip(history(held), history(streamed), strict=True):
        assert before.pop("split") == after.pop("split")
        assert after == pytest.approx(before, rel=2e-3)
    weights = [(run / "model.safetensors").read_bytes() for run in (held, streamed)]
    assert weights[0] == weights[1]


def test_predictions_are_the_same_rows_and_bits(pair: tuple[str, Path, Path]) -> None:
    _, held, streamed = pair
    for name in ("predictions.parquet", "predictions_val.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(held / name), pd.read_parquet(streamed / name), check_exact=True)


def test_page_and_metrics_say_what_is_not_exact(pair: tuple[str, Path, Path]) -> None:
    task, held, streamed = pair
    found = read(streamed)
    said = found["streamed"]
    assert said["exact_rows"] == 50 and said["rows"] == {s: found["rows"][s] for s in ("val", "test")}
    page = (streamed / "report.html").read_text()
    num_test = found["rows"]["test"]
    for words in ("judged block by block", f"are those of an even sample: 50 of {num_test} test rows"):
        assert words in page and words not in (held / "report.html").read_text()
    seen = found["baseline_sample"]
    assert seen["seen"] == {"train": 40, "val": 40, "test": 40} and seen["rows"] == found["rows"]
    assert f"fitted on 40 of {found['rows']['train']} train rows" in page
    assert found["verdict"]["network"] == seen["network"]["test"][found["verdict"]["metric"]]
    assert len(read_run(streamed).test) == 50
    rows = set(read_run(streamed).test["row"])
    assert set(read(streamed, "explain.json")["worst"]["rows"]) <= rows  # those that the page shows
    assert "median" in describe_streamed(found)[0] or task in ("binary", "multiclass")


def test_a_streamed_run_is_compared_with_one_that_was_not(pair: tuple[str, Path, Path]) -> None:
    found = [read_finished_run(str(run), run.parent.name).metrics for run in pair[1:]]
    assert found[1].not_exact and not found[0].not_exact


def test_calibration_and_threshold_come_from_a_sample(tiny_run: TinyRun) -> None:
    run = tiny_run("binary", *STREAMED)
    found = read(run)
    assert found["streamed"]["fitted_on_sample"] == ["calibration", "threshold"]
    assert "Fitted on an even sample of 50 validation rows: calibration and threshold." in describe_streamed(found)
    frame = pd.read_parquet(run / "predictions_val.parquet")
    decided = np.where(frame["p_yes"] >= found["decision"]["threshold"], "yes", "no")
    assert (frame["prediction"] == decided).all()
    assert found["val"]["accuracy"] == pytest.approx(np.mean(frame["prediction"] == frame["target"]), rel=1e-12)


def test_a_metric_of_the_users_is_of_a_sample(
    tiny_run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "counts_rows.py").write_text("def rows(truth, prediction):\n    return len(truth)\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = tiny_run("binary", *STREAMED, "train.selection_metric=counts_rows:rows")
    found = read(run)
    assert found["test"]["rows"] == 50 == found["selection"]["value"]
    assert found["streamed"]["measured_on_sample"] == ["rows"]


def test_one_split_may_be_held_and_the_other_not(tiny_run: TinyRun) -> None:
    run = tiny_run("binary", "evaluation.exact_rows=50", "split.val=0.1", "split.test=0.3")
    found = read(run)
    assert found["streamed"]["rows"] == {"test": 120} and found["streamed"]["fitted_on_sample"] == []
    assert len(pd.read_parquet(run / "predictions.parquet")) == 120


def without_seconds(found: Any) -> Any:
    return {k: without_seconds(v) for k, v in found.items() if k != "seconds"} if isinstance(found, dict) else found


def test_two_processes_find_what_one_finds(tmp_path: Path) -> None:
    words: dict[str, list[str]] = {}
    for name, (task, more) in TASKS.items():
        make_table(700, task=task).to_csv(tmp_path / f"{name}.csv", index=False)
        exact = ("train.gradient_reduction=exact", "train.max_epochs=6", "train.early_stopping=1")
        data = (f"data.path={tmp_path / name}.csv", "data.target=y")
        words[name] = [*SMALL, *data, *more, *STREAMED, *exact, "report.baselines=[mean]"]
    for processes in (1, 2):
        run_world(processes, [[*w, f"run.dir={tmp_path / f'{n}-{processes}'}"] for n, w in words.items()], tmp_path)
    for name in TASKS:
        one, two = (tmp_path / f"{name}-{processes}" for processes in (1, 2))
        assert history(one) == history(two)
        for key in ("val", "test", "decision", "selection", "streamed", "baselines"):
            first, second = (without_seconds(read(run)[key]) for run in (one, two))
            assert first == second, (name, key)
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
        for file in ("predictions.parquet", "predictions_val.parquet"):
            frames = [pd.read_parquet(run / file) for run in (one, two)]
            pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_a_run_goes_on(tmp_path: Path) -> None:
    make_table(500).to_csv(tmp_path / "table.csv", index=False)
    words = [*SMALL, f"data.path={tmp_path / 'table.csv'}", "data.target=y", *STREAMED, "train.eval_every=2"]

    def engine(name: str, *more: str) -> Engine:
        return Engine(load_config(None, [*words, f"run.dir={tmp_path / name}", *more]))

    engine("whole", "train.max_steps=8").run()
    cut = engine("cut", "train.max_steps=8")
    cut.prepare()
    record = cut.training.record

    def record_and_stop(line: dict[str, Any]) -> None:
        record(line)
        if line["split"] == "val" and line["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    cut.training.record = record_and_stop
    with pytest.raises(Stopped):
        cut.train()
    engine("cut", "train.max_steps=8").run()
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    for split in ("val", "test"):
        assert read(tmp_path / "cut")[split] == read(tmp_path / "whole")[split]


def test_a_table_to_predict_is_judged_without_holding_it(tiny_run: TinyRun, tmp_path: Path) -> None:
    for task in ("binary", "multiclass", "regression"):
        run = tiny_run(task, *STREAMED)
        told = [f"--output={tmp_path / 'out.parquet'}", f"--summary={tmp_path / 's.json'}", "--piece-rows=30"]
        assert main(["--run", str(run), "--input", str(run.parent / "table.csv"), *told]) == 0
        found = json.loads((tmp_path / "s.json").read_text())
        assert found["approximate_metrics"] == read(run)["streamed"]["approximate"]
        assert found["judged_rows"] == found["rows_with_target"] == 400
        bundle = load_bundle(run)
        judges = [Judge(bundle, most=most) for most in (1000, 60)]
        for judge in judges:
            rng = np.random.default_rng(0)
            for _ in range(10):
                codes = len(bundle.classes)
                y = rng.integers(0, codes, 30) if codes else rng.normal(size=30)
                said = rng.dirichlet(np.ones(codes), 30) if codes else y + rng.normal(size=30)
                judge.add(y, said[:, 1] if task == "binary" else said)
        assert not judges[1].held and judges[1].approximate and not judges[0].approximate
        assert judges[1].metrics() == pytest.approx(judges[0].metrics(), rel=WITHIN, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("row_group", [10, 1000])
def test_rows_of_a_file_come_in_order_and_by_place(row_group: int, tmp_path: Path) -> None:
    table = pa.table({"row": np.arange(257), "word": [f"w{place}" for place in range(257)]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=row_group)
    reader = RowReader(tmp_path / "t.parquet")
    assert pa.concat_tables([reader.take(n) for n in (1, 0, 99, 150, 7)]).equals(table)
    reader.close()
    places = np.array([200, 3, 256, 0, 41])
    assert rows_at_places(tmp_path / "t.parquet", places, ["word"]).column("word").to_pylist() == [
        f"w{place}" for place in places
    ]
    assert rows_at_places(tmp_path / "t.parquet", places[:0]).column_names == ["row", "word"]


def test_turns_hold_every_row_once_in_order() -> None:
    for num_rows, block, processes, width in (
        (10, 3, 2, 1),
        (1_000_001, 2048, 3, 1),
        (5_000, 100, 4, 900),
        (1, 5, 2, 1),
    ):
        found = [b for turn in deal_turns(num_rows, block, processes, width=width) for share in turn for b in share]
        assert found == [(start, min(start + block, num_rows)) for start in range(0, num_rows, block)]


def test_a_sample_is_spread_over_all_rows() -> None:
    assert held_rows(100, 100) == 100 and held_rows(101, 100) == 100 and held_rows(10**8, 5 * 10**6) == 10**6
    assert even_places(5, 10).tolist() == [0, 1, 2, 3, 4]
    places = even_places(10**8, 10**6)
    assert len(places) == 10**6 and places[0] == 0 and places[-1] == 10**8 - 1 and np.ptp(np.diff(places)) <= 1
    y = torch.arange(9)
    rows = PackedRows(x_num=torch.zeros(9, 1), x_cat=torch.zeros(9, 0, dtype=torch.int32), y=y)
    assert rows_at(rows, np.array([1, 8])).y.tolist() == [1, 8]


def test_nothing_is_said_of_a_run_that_holds_all() -> None:
    assert describe_streamed({}) == describe_drawn({}) == describe_baseline_sample({}) == []
