"""Runs beside each other: real tiny runs, the statistics against what is known of them, and the page in a browser."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.datasets import load_diabetes, load_digits

from nn_train import metrics as project
from nn_train.compare import main, name_runs
from nn_train.compare_run import read_finished_run
from nn_train.comparison import (
    Difference,
    JudgedRun,
    bootstrap_p,
    compare,
    compare_samples,
    holm,
    match_rows,
    mcnemar,
    paired_t,
    read_difference,
)
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.resampling import BUDGET, Rows, bootstrap, build_measure, draw_weights, interval, most_rows
from tests.conftest import ROOT, SMALL
from tests.test_report import WRAPPER, Page
from tests.test_security import HANDLER, SCRIPTED, Payload, with_markup

TELCO = ("data.path=data/telco.csv", "data.target=churn", "data.max_rows=2400")
RUNS: dict[str, tuple[str, ...]] = {
    "telco": (*TELCO, "run.seed=0"),
    "wide": (*TELCO, "run.seed=1", "model.width=64", "optim.peak_lr=0.01", "tracking.log_every_steps=5"),
    "other split": (*TELCO, "run.seed=0", "split.seed=1"),
    "digits": ("data.path=digits.csv", "data.target=digit", "data.task=multiclass"),
    "diabetes": ("data.path=diabetes.csv", "data.target=progression"),
    "diabetes_mae": ("data.path=diabetes.csv", "data.target=progression", "train.loss=mae",
                     "train.selection_metric=mae", "optim.peak_lr=0.02"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with finished runs below runs/, named as in RUNS."""
    folder = tmp_path_factory.mktemp("comparison of 'runs'")
    for name, target, bunch in (("digits", "digit", load_digits), ("diabetes", "progression", load_diabetes)):
        x, y = bunch(return_X_y=True, as_frame=True)
        x.assign(**{target: y}).to_csv(folder / f"{name}.csv", index=False)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "telco.csv", folder / "data" / "telco.csv")
    for name, words in RUNS.items():
        own = [word.replace("data.path=", f"data.path={folder}/") for word in words]
        places = [f"data.cache_dir={folder / 'cache'}", f"run.dir={folder / 'runs' / name}"]
        engine = Engine(load_config(None, [*SMALL, "train.max_steps=40", *own, *places]))
        engine.prepare()
        engine.train()
        engine.evaluate()
        engine.close()
        shutil.rmtree(folder / "runs" / name / "checkpoints")
    return folder


@pytest.fixture
def copy_of(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a run, to be made a bad one."""
    numbers = itertools.count()
    return lambda name="telco": Path(shutil.copytree(folder / "runs" / name, tmp_path / f"copy{next(numbers)}"))


def compare_on(path: Path, *runs: Path, words: tuple[str, ...] = ()) -> str:
    """The page of a comparison."""
    page = path / "compare.html"
    assert main([*map(str, runs), "--samples=300", f"--output={page}", *words]) == 0
    return page.read_text(encoding="utf-8")


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The message with which a comparison is refused, after a look at what every message owes."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    out, message = capsys.readouterr()
    assert out == ""
    assert message.startswith("error: ") and "\n  mend: " in message
    assert len(message) < 1000 and message.rstrip("\n").isprintable() is False  # two lines
    assert all(line.isprintable() for line in message.splitlines())
    return message


def read_rows(folder: Path, name: str) -> Rows:
    return read_finished_run(str(folder / "runs" / name), name).judged.rows


def table_of(page: str, name: str) -> dict[str, list[str]]:
    """Rows of a table of the page: name -> the text of its cells, lines between bars."""
    body = page.partition(f'id="{name}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = {}
    for row in body.split("</tr>"):
        cells = [re.sub(r"<[^>]+>", "|", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)]
        texts = [html.unescape("|".join(filter(None, cell.split("|")))) for cell in cells]
        if texts:
            rows[texts[0].split("|")[0]] = texts[1:]
    return rows


# ---- metrics of weighted rows


def direct_metrics(rows: Rows) -> dict[str, float]:
    """The project's metrics, with the decisions that were stored."""
    if rows.task != "binary":
        return project.compute_metrics(rows.y, rows.p if rows.task == "multiclass" else rows.prediction, task=rows.task)
    values = project.compute_metrics(rows.y, rows.p[:, 1], task="binary")
    return values | {name: metric(rows.y, rows.prediction) for name, metric in project.DECISION_METRICS.items()}


def with_ties(rows: Rows) -> Rows:
    """Scores of one decimal: rows of both classes share them."""
    p = np.round(rows.p, 1)
    prediction = p.argmax(axis=1) if rows.task == "multiclass" else rows.prediction
    return Rows(task=rows.task, y=rows.y, prediction=prediction, p=p)


@pytest.mark.parametrize("name", ["telco", "digits", "diabetes"])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_metrics_of_a_resample_are_those_of_its_rows(folder: Path, name: str, ties: bool) -> None:
    whole = read_rows(folder, name)
    for num_rows, samples in ((len(whole), 3), (30, 8), (7, 16)):  # of few rows some resamples lack a class
        rows = with_ties(whole.take(np.arange(num_rows))) if ties else whole.take(np.arange(num_rows))
        measure = build_measure(rows)
        weights = next(draw_weights(num_rows, samples=samples, seed=num_rows))
        assert (weights.sum(axis=1) == num_rows).all()
        values = measure(weights)
        for sample, counts in enumerate(weights.astype(int)):
            expected = direct_metrics(rows.take(np.repeat(np.arange(num_rows), counts)))
            for metric, of_samples in values.items():
                np.testing.assert_allclose(of_samples[sample], expected[metric], rtol=1e-9, atol=1e-12, err_msg=metric)
    assert len(values) >= 6


def test_every_main_metric_is_measured(folder: Path) -> None:
    from nn_train.report_run import MAIN_METRICS

    for name, task in (("telco", "binary"), ("digits", "multiclass"), ("diabetes", "regression")):
        rows = read_rows(folder, name)
        assert set(MAIN_METRICS[rows.task]) <= set(build_measure(rows)(np.ones((1, len(rows))))), task


def test_a_ranking_of_many_classes_is_left_out() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(21), 100)
    rows = Rows(task="multiclass", y=p.argmax(axis=1), prediction=p.argmax(axis=1), p=p)
    assert "roc_auc" not in bootstrap(rows, samples=200, seed=0).values
    fewer = rows.take(rows.y < 20)
    fewer = Rows(
        task="multiclass", y=fewer.y, prediction=fewer.y, p=fewer.p[:, :20] / fewer.p[:, :20].sum(axis=1)[:, None]
    )
    assert "roc_auc" in bootstrap(fewer, samples=200, seed=0).values


def test_the_same_seed_draws_the_same_rows(folder: Path) -> None:
    rows = read_rows(folder, "telco")
    first, second, third = (bootstrap(rows, samples=250, seed=seed).values["log_loss"] for seed in (0, 0, 1))
    assert (first == second).all()
    assert (first != third).any()


# ---- intervals


def regression_rows(rng: np.random.Generator, num_rows: int, deviation: float = 2.0) -> Rows:
    y = rng.normal(size=num_rows)
    return Rows(
        task="regression", y=y, prediction=y + rng.normal(scale=deviation, size=num_rows), p=np.empty((num_rows, 0))
    )


def binary_rows(rng: np.random.Generator, num_rows: int, *, shift: float, accuracy: float) -> Rows:
    """Scores of two normal distributions that lie `shift` deviations apart, and decisions of a known accuracy."""
    y = (rng.random(num_rows) < 0.4).astype(int)
    p = stats.norm.cdf((rng.normal(size=num_rows) + shift * y) / 2)
    prediction = np.where(rng.random(num_rows) < accuracy, y, 1 - y)
    return Rows(task="binary", y=y, prediction=prediction, p=np.stack([1 - p, p], axis=1))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng, trials = np.random.default_rng(0), 250
    truth = {
        "accuracy": 0.8,
        "roc_auc": float(stats.norm.cdf(1.2 / np.sqrt(2))),
        "rmse": 2.0,
        "mae": 2 * np.sqrt(2 / np.pi),
    }
    held = dict.fromkeys(truth, 0)
    for trial in range(trials):
        values = bootstrap(binary_rows(rng, 200, shift=1.2, accuracy=0.8), samples=300, seed=trial).values
        values |= bootstrap(regression_rows(rng, 200), samples=300, seed=trial).values
        for name, value in truth.items():
            bounds = interval(values[name])
            assert bounds is not None
            held[name] += bounds[0] <= value <= bounds[1]
    shares = {name: count / trials for name, count in held.items()}
    # 95 %, less what percentiles of 200 rows lack, within three deviations of 250 trials
    assert all(0.91 <= share <= 0.975 for share in shares.values()), shares


def test_paired_intervals_and_p_values_say_what_they_should() -> None:
    rng, trials, held, found, found_by_t = np.random.default_rng(1), 250, 0, 0, 0
    for trial in range(trials):
        y = rng.normal(size=150)
        shared = rng.normal(size=150)
        runs = [
            Rows(task="regression", y=y, prediction=y + shared + 0.5 * rng.normal(size=150), p=np.empty((150, 0)))
            for _ in range(2)
        ]  # equally good, and their errors go together
        difference = compare_samples(*(bootstrap(run, samples=300, seed=trial) for run in runs))["mae"]
        assert difference.interval is not None
        held += difference.interval[0] <= 0 <= difference.interval[1]
        found += difference.p < 0.05
        found_by_t += paired_t(*(np.abs(run.y - run.prediction) for run in runs)).p < 0.05
    assert 0.91 <= held / trials <= 0.98
    assert 0.02 <= found / trials <= 0.085
    assert 0.02 <= found_by_t / trials <= 0.085


def test_pairing_makes_a_difference_clear_that_two_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    y, shared = rng.normal(size=400), rng.normal(size=400)
    better, worse = (
        Rows(task="regression", y=y, prediction=y + size * shared + 0.05 * rng.normal(size=400), p=np.empty((400, 0)))
        for size in (1.0, 1.05)
    )
    samples = [bootstrap(rows, samples=500, seed=0) for rows in (better, worse)]
    bounds = [interval(one.values["rmse"]) for one in samples]
    assert bounds[0] is not None and bounds[1] is not None and bounds[0][1] > bounds[1][0]  # they overlap
    difference = compare_samples(*samples)["rmse"]
    assert difference.p == pytest.approx(2 / 501)
    assert difference.interval is not None and difference.interval[1] < 0


def test_many_rows_cost_no_more_and_give_intervals_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nn_train.resampling.BUDGET", 10_000_000)
    rows = binary_rows(np.random.default_rng(3), 300_000, shift=1.2, accuracy=0.8)
    samples = bootstrap(rows, samples=2000, seed=0)
    assert (samples.num_drawn, samples.num_rows) == (5000, 300_000)
    for name, expected in {
        "accuracy": np.sqrt(0.8 * 0.2 / 300_000),
        # Hanley and McNeil 1982
        "roc_auc": hanley_mcneil(float(samples.estimates["roc_auc"]), int(rows.y.sum()), int((1 - rows.y).sum())),
    }.items():
        bounds = interval(samples.values[name])
        assert bounds is not None
        assert bounds[1] - bounds[0] == pytest.approx(2 * 1.96 * expected, rel=0.08), name
        assert bounds[0] < samples.estimates[name] < bounds[1]
    assert samples.estimates["accuracy"] == np.mean(rows.y == rows.prediction)


def hanley_mcneil(area: float, positives: int, negatives: int) -> float:
    """Standard error of a ROC AUC."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positives - 1) * (q1 - area**2) + (negatives - 1) * (q2 - area**2)
    return float(np.sqrt(spread / positives / negatives))


def test_the_cost_is_bounded_whatever_the_classes() -> None:
    for num_classes, samples in itertools.product((2, 3, 10, 20, 21, 1000), (200, 2000, 10_000)):
        rows = Rows(task="multiclass", y=np.zeros(1), prediction=np.zeros(1), p=np.zeros((1, num_classes)))
        rankings = num_classes if num_classes <= 20 else 1
        assert most_rows(rows, samples) * samples * rankings <= max(BUDGET, 2000 * samples * rankings)
        assert most_rows(rows, samples) >= 2000


def test_an_interval_of_what_is_hardly_ever_defined_is_none() -> None:
    values = np.linspace(0, 1, 1000)
    assert interval(values) == pytest.approx((0.025, 0.975))
    assert interval(np.where(np.arange(1000) < 99, np.nan, values)) is not None
    assert interval(np.where(np.arange(1000) < 100, np.nan, values)) is None
    assert np.isnan(bootstrap_p(np.where(np.arange(1000) < 100, np.nan, values)))


# ---- paired tests


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [(1, 5, 14 / 64), (5, 1, 14 / 64), (0, 5, 2 / 32), (3, 3, 1.0), (0, 0, 1.0), (2, 10, 2 * (1 + 12 + 66) / 4096)],
)  # by hand: twice the sum of binomial coefficients over 2 ** (won + lost)
def test_mcnemar_is_the_binomial_sum(won: int, lost: int, p: float) -> None:
    hits = np.array([True] * won + [False] * lost + [True] * 20 + [False] * 7)
    baseline_hits = np.array([False] * won + [True] * lost + [True] * 20 + [False] * 7)
    found = mcnemar(hits, baseline_hits)
    assert found.p == pytest.approx(p, rel=1e-12)
    assert found.words == f"alone right {won}, baseline {lost}"


def test_the_t_test_is_scipys() -> None:
    first, second = np.random.default_rng(0).gamma(2.0, size=(2, 80))
    expected = stats.ttest_rel(first, second)
    found = paired_t(first, second)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert found.words == f"t = {expected.statistic:.2f}"


def test_a_t_test_without_a_spread_is_decided_or_undefined() -> None:
    losses = np.arange(4.0)
    assert paired_t(losses, losses).p == 1
    assert paired_t(losses + 1, losses).p == 0
    assert np.isnan(paired_t(losses[:1], losses[1:2]).p)


def test_holms_p_values() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    corrected = holm([0.01, float("nan"), 0.02])
    assert np.isnan(corrected[1]) and corrected[::2] == pytest.approx([0.02, 0.02])


def test_bootstrap_p_values_count_the_estimate() -> None:
    assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.where(np.arange(999) < 24, -1.0, 1.0)) == pytest.approx(2 * 25 / 1000)
    assert bootstrap_p(np.zeros(999)) == 1


@pytest.mark.parametrize(
    ("metric", "value", "p", "reading"),
    [("log_loss", -0.1, 0.01, "better"), ("log_loss", 0.1, 0.01, "worse"), ("roc_auc", 0.1, 0.01, "better"),
     ("roc_auc", -0.1, 0.01, "worse"), ("roc_auc", 0.1, 0.05, "no difference shown")],
)  # fmt: skip
def test_a_difference_is_read_by_its_direction_and_corrected_p(
    metric: str, value: float, p: float, reading: str
) -> None:
    assert read_difference(metric, Difference(value=value, interval=(-1, 1), p=0.001, holm=p)) == reading


# ---- the same rows


def judged(name: str, numbers: Any, y: Any, fingerprint: str = "same") -> JudgedRun:
    y = np.array(y)
    p = np.full((len(y), 2), 0.5)
    rows = Rows(task="binary", y=y, prediction=y, p=p)
    return JudgedRun(name=name, numbers=np.array(numbers), rows=rows, classes=("no", "yes"), fingerprint=fingerprint)


def test_rows_are_matched_by_number() -> None:
    match = match_rows(judged("a", [1, 4, 6], [0, 1, 1]), judged("b", [0, 4, 6, 9], [0, 1, 1, 0]))
    assert (match.places.tolist(), match.others.tolist(), match.is_whole) == ([1, 2], [1, 2], False)
    assert match.notes == ("a and b have 2 test rows in common, of 3 and 4: they are compared on these.",)
    assert match_rows(judged("a", [1, 4], [0, 1]), judged("b", [1, 4], [0, 1])).notes == ()


@pytest.mark.parametrize("fingerprint", ["same", "another", ""])
def test_rows_with_other_targets_are_other_rows(fingerprint: str) -> None:
    match = match_rows(judged("a", [1, 4, 6], [0, 1, 0]), judged("b", [1, 4, 6], [0, 1, 1], fingerprint))
    assert not len(match.places)
    assert match.notes == (
        "Row 6 has the target 'no' in a and 'yes' in b: the runs were not judged on rows of the same table, so no "
        "paired test was made.",
    )


def test_rows_of_another_file_are_matched_with_a_word() -> None:
    match = match_rows(judged("a", [1, 4], [0, 1]), judged("b", [1, 4], [0, 1], "another"))
    assert match.is_whole
    assert match.notes == (
        "The tables of a and b are not the same, byte by byte; their rows were matched by number, and all targets "
        "agree.",
    )


def test_runs_without_a_row_in_common_stand_side_by_side() -> None:
    runs = [judged("a", [1, 2, 3], [0, 1, 1]), judged("b", [1, 2, 3], [0, 1, 1]), judged("c", [7, 8, 9], [0, 1, 1])]
    comparison = compare(runs, baseline=1, samples=200, seed=0)
    first, own, last = comparison.pairs
    assert own is None and first is not None and last is not None
    assert first.differences["accuracy"].value == 0 and first.differences["accuracy"].p == 1
    assert (last.num_rows, last.differences, last.tests) == (0, {}, {})
    assert last.notes == ("c and b have no test row in common, so no paired test was made.",)
    assert not comparison.has_same_rows


def test_pairs_are_corrected_over_the_runs_of_a_metric(folder: Path) -> None:
    names = ("telco", "wide", "other split")
    runs = [read_finished_run(str(folder / "runs" / name), name).judged for name in names]
    comparison = compare(runs, baseline=0, samples=400, seed=0)
    assert comparison.pairs[0] is None
    pairs = [pair for pair in comparison.pairs if pair]
    for name in ("log_loss", "roc_auc"):
        found = [pair.differences[name] for pair in pairs]
        assert [one.holm for one in found] == holm([one.p for one in found])
    found = [pair.tests["accuracy"] for pair in pairs]
    assert [one.holm for one in found] == holm([one.p for one in found])
    assert pairs[0].has_same_rows and not pairs[1].has_same_rows
    common = np.intersect1d(runs[0].numbers, runs[2].numbers)
    assert pairs[1].num_rows == len(common) > 20
    own, other = (run.rows.take(np.isin(run.numbers, common)) for run in (runs[2], runs[0]))
    assert pairs[1].differences["brier_score"].value == pytest.approx(
        np.mean((own.p[:, 1] - own.y) ** 2) - np.mean((other.p[:, 1] - other.y) ** 2)
    )


# ---- the command


def run_command(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-m", "nn_train.compare", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_prints_one_table_and_writes_one_page(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")}
    places = [str(folder / "runs" / name) for name in ("telco", "wide", "other split")]
    done = run_command(tmp_path, *places)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["compare.html"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*")} == before
    text = done.stdout
    assert text.count("3 runs, target 'churn'") == 1
    assert max(map(len, text.partition("* the best")[0].splitlines())) <= 100
    for part in ("settings that differ", "test metrics, 95 %", "difference to", "classical tests", "accuracy: McNemar"):
        assert part in text
    assert re.search(r"model\.width +│ +16 │ +64 │ +16 ", text)
    assert re.search(r"│ log-loss ↓ +│ +0\.\d{4} │ +0\.\d{4} │ +0\.\d{4} │\n│ +│ +0\.\d+ to 0\.\d+ │", text)
    assert re.search(r"^By log-loss, .*wide.*telco.* on 360 rows \(95 % interval .*; p .*, Holm .*\)\.$", text, re.M)
    assert re.search(r"^other split and telco have \d+ test rows in common, of 360 and 360", text, re.M)
    assert text.splitlines()[-1] == "page: compare.html"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["runs/telco", "runs/nothing"],
            "error: runs/nothing: there is no such run folder\n  mend: name the folder of a ",
        ),
        (
            ["runs/telco", "runs/diabetes"],
            "error: runs/diabetes: the task: regression; those of telco: binary\n  mend: ",
        ),
        (
            ["runs/telco", "--sample", "9"],
            "error: unknown option --sample\n  mend: --help shows the options",
        ),
    ],
)
def test_a_mistake_is_one_message_of_the_process(folder: Path, words: list[str], message: str) -> None:
    done = run_command(folder, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (folder / "compare.html").exists()


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("--baseline RUN", "--output FILE", "--samples N", "--seed N", "exit codes: 0 done")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a comparison is of 2 to 20 runs, and 0 are named"),
        (["{}/telco"], "a comparison is of 2 to 20 runs, and 1 is named"),
        (["{}/telco", "{}/wide/../telco"], "this run is named twice"),
        (["{}/telco", "{}/wide", "--samples=3"], "--samples=3 is not from 200 to 100000"),
        (["{}/telco", "{}/wide", "--seed=-1"], "--seed=-1 is not from 0 to 4294967295"),
        (["{}/telco", "{}/wide", "--samples=many"], "argument --samples: invalid int value: 'many'"),
        (["{}/telco", "{}/wide", "--output={}"], "the page cannot be written: Is a directory"),
        (
            ["{}/telco", "{}/wide", "--output={}/nowhere/x.html"],
            "the page cannot be written: No such file or directory",
        ),
        (["{}/telco", "{}/.."], "this is no run folder: it holds no config.yaml"),
        (["{}/telco", "{}/telco/metrics.json"], "there is no such run folder"),
    ],
)
def test_a_wrong_word_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert message in refuse(capsys, *(word.format(folder / "runs") for word in words))


@pytest.mark.parametrize("missing", ["metrics.json", "predictions.parquet"])
def test_a_run_without_its_results_is_not_finished(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    (bad := copy_of()).joinpath(missing).unlink()
    assert f"{bad}: this run is not finished: it holds no {missing}" in refuse(capsys, folder / "runs" / "telco", bad)


def test_a_run_that_stopped_is_not_finished(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (bad := copy_of()).joinpath("status.json").write_text(json.dumps({"state": "stopped", "step": 30}))
    message = refuse(capsys, folder / "runs" / "telco", bad)
    assert "this run is not finished: its state is stopped\n  mend: start it again with the same command" in message


def test_another_target_or_other_classes_are_refused(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other, swapped, telco = copy_of(), copy_of(), folder / "runs" / "telco"
    config = (other / "config.yaml").read_text().replace("target: churn", "target: gone")
    (other / "config.yaml").write_text(config)
    assert f"{other}: the target: gone; those of telco: churn" in refuse(capsys, telco, other)
    predictions = pd.read_parquet(swapped / "predictions.parquet")
    names = [*predictions.columns[:-2], *predictions.columns[:-3:-1]]
    predictions[names].to_parquet(swapped / "predictions.parquet")
    metrics = json.loads((swapped / "metrics.json").read_text())
    (swapped / "metrics.json").write_text(json.dumps(metrics | {"test": {}}))
    assert "the classes: Yes, No (positive); those of telco: No, Yes (positive)" in refuse(capsys, telco, swapped)
    assert "the target: churn; those of" in refuse(capsys, other, telco)
    (swapped / "metrics.json").write_text(json.dumps(metrics | {"task": "multiclass", "test": {}}))
    assert f"{swapped}: the task: multiclass; those of telco: binary" in refuse(capsys, telco, swapped)


# ---- files from somebody else


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "ranking", "task: input should be 'binary', 'multiclass' or 'regression'"),
        ("task", None, "task: input should be"),
        ("task", "regression", "the predictions cannot be used: column 'target' holds something else than numbers"),
        ("test", [1, 2], "test: input should be a valid dictionary"),
        ("test", {"log_loss": "0.3"}, "test.log_loss: input should be a valid number"),
        ("test", {"log_loss": True}, "test.log_loss: input should be a valid number"),
        ("test", {"log_loss": 1e999}, "test.log_loss: input should be a finite number"),
        ("test", {"log_loss": 0.1}, "metrics.json says that log_loss is 0.1 on the test rows, and predictions.parquet"),
        ("test", {f"{SCRIPTED}\x1b[31m": []}, "test.<script>alert(1)</script>\\x1b[31m: input should be"),
        ("selection", "none", "selection: input should be a valid dictionary"),
        ("selection", {"metric": "log_loss", "step": 1.5}, "selection.step: input should be a valid integer"),
        ("selection", {"metric": "log_loss", "step": 10**400}, "selection.step: input should be less than"),
        ("seconds", {"train": "long"}, "seconds.train: input should be a valid number"),
        ("num_parameters", "many", "num_parameters: input should be a valid integer"),
        ("model", {"a": 1}, "model: input should be a valid string"),
    ],
)
def test_a_wrong_type_in_the_metrics_is_one_clear_error(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], key: str, value: Any, message: str
) -> None:
    path = (bad := copy_of()) / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    said = refuse(capsys, bad, folder / "runs" / "telco")
    assert message in said and str(bad) in said


@pytest.mark.parametrize("name", ["metrics.json", "status.json", "data.json", "environment.json", "config.yaml"])
@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe rubbish", b"[1, 2]", b"", b'{"a": ', b"null", b"[" * 100_000,
     b'{"state": 3, "fingerprint": 3, "device": 3}'],
    ids=["bytes", "list", "empty", "torn", "null", "deep", "types"],
)  # fmt: skip
def test_a_damaged_file_is_named(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (bad := copy_of()).joinpath(name).write_bytes(content)
    assert str(bad / name) in refuse(capsys, bad, folder / "runs" / "telco").splitlines()[0]


def change_predictions(path: Path, change: Callable[[pd.DataFrame], object]) -> None:
    table = pd.read_parquet(path)
    changed = change(table)
    (changed if isinstance(changed, pd.DataFrame) else table).to_parquet(path, index=False)


def put(table: pd.DataFrame, name: str, value: object) -> None:
    table[name] = table[name].astype(object if isinstance(value, str | None) else table[name].dtype)
    table.loc[3, name] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="row"), "there are 0 columns 'row'"),
        (lambda t: t.head(0), "there are no rows"),
        (lambda t: t.assign(row=t["row"] + 0.5), "the row numbers are no whole numbers"),
        (lambda t: t.assign(row=1), "row 1 is there twice"),
        (lambda t: t.drop(columns="p_Yes"), "the columns of a binary task's probabilities are missing"),
        (lambda t: t.assign(more=1.0), "the columns of a binary task's probabilities are missing"),
        (lambda t: t.assign(p_Yes="high"), "column 'p_Yes' holds something else than numbers"),
        (lambda t: t.assign(p_Yes=np.nan), "column 'p_Yes' holds something else than numbers"),
        (lambda t: t.assign(p_Yes=np.inf), "column 'p_Yes' holds numbers that are not finite"),
        (lambda t: t.assign(p_Yes=1.5), "a probability is not between 0 and 1"),
        (
            lambda t: put(t, "target", SCRIPTED),
            f"column 'target' holds '{SCRIPTED}', and no column has its probability",
        ),
        (lambda t: put(t, "prediction", None), "column 'prediction' holds 'None'"),
        (lambda t: t.assign(p_Yes=1 - t["p_Yes"], p_No=t["p_Yes"]), "they are not of the same run"),
        (lambda t: t.assign(target=[[1]] * len(t)), "the predictions cannot be used: "),
    ],
)
def test_predictions_that_are_none_are_named(
    folder: Path,
    copy_of: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: Callable[[pd.DataFrame], object],
    message: str,
) -> None:
    change_predictions((bad := copy_of()) / "predictions.parquet", change)
    said = refuse(capsys, bad, folder / "runs" / "telco")
    assert message in said and str(bad) in said


def test_a_parquet_that_is_a_pickle_is_refused_and_not_run(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import pickle

    bad, marker = copy_of(), tmp_path / "marker"
    (bad / "predictions.parquet").write_bytes(pickle.dumps(Payload(marker)))
    assert "the predictions cannot be used" in refuse(capsys, folder / "runs" / "telco", bad)
    table = pq.read_table(folder / "runs" / "telco" / "predictions.parquet")
    kind = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(marker)),
    }
    fields = [field.with_metadata(kind) if field.name == "row" else field for field in table.schema]
    pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields)), bad / "predictions.parquet")
    assert main([str(folder / "runs" / "telco"), str(bad), f"--output={tmp_path / 'page.html'}", "--samples=200"]) == 0
    assert not marker.exists()


def test_yaml_makes_no_objects(
    folder: Path, copy_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (bad := copy_of()).joinpath("config.yaml").write_text(
        f"run: !!python/object/apply:os.system ['touch {tmp_path / 'x'}']"
    )
    assert "could not determine a constructor" in refuse(capsys, folder / "runs" / "telco", bad)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["metrics", "environment", "data", "config", "metrics.jsonl", "predictions", "folder"])
def test_markup_in_a_run_stays_text(folder: Path, copy_of: Callable[..., Path], tmp_path: Path, name: str) -> None:
    telco, bad = folder / "runs" / "telco", copy_of()
    if name == "metrics.jsonl":
        lines = (bad / name).read_text().splitlines()
        (bad / name).write_text(
            "".join(f"{json.dumps(json.loads(line) | {SCRIPTED: 1, HANDLER: HANDLER})}\n" for line in lines)
        )
    elif name == "config":
        text = (bad / "config.yaml").read_text()
        (bad / "config.yaml").write_text(text.replace("project: nn_train", f"project: '{SCRIPTED}'"))
    elif name == "predictions":
        for run in (telco := copy_of(), bad):
            change_predictions(run / "predictions.parquet", with_hostile_classes)
    elif name == "folder":
        bad = bad.rename(tmp_path / "'\"><script>alert(1)<\x1b[31m[red]$x$")
    else:
        values = json.loads((bad / f"{name}.json").read_text())
        marked = with_markup({key: value for key, value in values.items() if key not in ("task", "test", "selection")})
        (bad / f"{name}.json").write_text(
            json.dumps(values | {k: v for k, v in marked.items() if k in values} | {"x": SCRIPTED})
        )
    healthy, page = (
        compare_on(tmp_path, folder / "runs" / "telco", folder / "runs" / "wide"),
        compare_on(tmp_path, telco, bad),
    )
    assert set(Page(page).tags) <= set(Page(healthy).tags) | {"p"}
    assert all(address.startswith(("data:image/png;base64,", "data:,", "#")) for address in Page(page).addresses)
    assert not re.search(r"<script|<img src=x|onerror='", page)
    if name not in ("data", "metrics.jsonl"):
        assert "&lt;script&gt;alert(1)" in page


def with_hostile_classes(table: pd.DataFrame) -> pd.DataFrame:
    new = {"No": HANDLER, "Yes": SCRIPTED}
    table[["target", "prediction"]] = table[["target", "prediction"]].replace(new)
    return table.rename(columns={f"p_{old}": f"p_{text}" for old, text in new.items()})


def test_a_terminal_obeys_no_name(folder: Path, copy_of: Callable[..., Path], tmp_path: Path) -> None:
    bad = copy_of().rename(tmp_path / "\x1b[31mred\x07 [bold]:smile:")
    done = run_command(tmp_path, str(folder / "runs" / "telco"), str(bad), "--samples=200")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "\x07" not in done.stdout
    assert "[bold]:smile:" in done.stdout


# ---- what the page says


@pytest.fixture(scope="module")
def pages(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A page for each task, and one of eight runs with long names."""
    out, runs = tmp_path_factory.mktemp("pages"), folder / "runs"
    pages = {
        "binary": compare_on(out, runs / "telco", runs / "wide", runs / "other split"),
        "multiclass": compare_on(out, runs / "digits", Path(shutil.copytree(runs / "digits", out / "again"))),
        "regression": compare_on(out, runs / "diabetes_mae", words=("--baseline", str(runs / "diabetes"))),
    }
    copies = [
        shutil.copytree(
            runs / ("wide" if number % 2 else "telco"), out / f"a_run_with_a_name_that_is_long_number_{number}"
        )
        for number in range(8)
    ]
    return pages | {"eight runs": compare_on(out, *copies)}


def test_settings_that_differ_are_all_there_and_no_others(pages: dict[str, str]) -> None:
    assert table_of(pages["binary"], "settings-table") == {
        "split.seed": ["0", "0", "1"],
        "model.width": ["16", "64", "16"],
        "optim.peak_lr": ["0.002", "0.01", "0.002"],
        "run.seed": ["0", "1", "0"],
        "tracking.log_every_steps": ["10", "5", "10"],
    }
    muted = re.findall(r'<tr class="muted"><th scope="row">([^<]*)', pages["binary"])
    assert muted == ["tracking.log_every_steps"]
    assert "No setting differs" not in pages["binary"]


def test_runs_of_the_same_settings_say_so(folder: Path, copy_of: Callable[..., Path], tmp_path: Path) -> None:
    page = compare_on(tmp_path, folder / "runs" / "telco", copy_of())
    assert "No setting differs" in page
    assert "no difference between copy0 and telco could be shown: it is the same on 360 rows" in page
    assert set(table_of(page, "difference-table")["accuracy"]) == {
        "baseline",
        "0|0 to 0|p 1.000|no difference shown",
    }


def test_the_same_table_elsewhere_is_no_difference(folder: Path, copy_of: Callable[..., Path], tmp_path: Path) -> None:
    moved, other, telco = copy_of(), copy_of(), folder / "runs" / "telco"
    for run in (moved, other):
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub(r"path: .*telco.csv.*", "path: /elsewhere/customers.csv", config))
    data = json.loads((other / "data.json").read_text())
    (other / "data.json").write_text(json.dumps(data | {"fingerprint": "0123456789abcdef"}))
    page = compare_on(tmp_path, telco, moved)
    assert re.findall(r'<tr class="muted"><th scope="row">([^<]*)', page) == ["data.path"]
    page = compare_on(tmp_path, telco, other)
    assert 'class="muted"' not in page
    assert table_of(page, "settings-table")["content of the table"][1] == "0123456789ab"
    assert "The tables of copy1 and telco are not the same, byte by byte" in page


def test_metrics_have_intervals_directions_and_a_best(folder: Path, pages: dict[str, str]) -> None:
    names = ("telco", "wide", "other split")
    known = [json.loads((folder / "runs" / name / "metrics.json").read_text())["test"] for name in names]
    table = table_of(pages["binary"], "metric-table")
    assert list(table) == [
        "log-loss",
        "ROC AUC",
        "average precision",
        "F1",
        "Brier score",
        "balanced accuracy",
        "accuracy",
    ]
    for value, cell in zip(known, table["log-loss"], strict=True):
        low, high = map(float, re.findall(r"\|(0\.\d+) to (0\.\d+)", cell)[0])
        assert cell.startswith(f"{value['log_loss']:.4f}|") and low < value["log_loss"] < high
    assert (
        "<small>↓ lower is better</small>" in pages["binary"] and "<small>↑ higher is better</small>" in pages["binary"]
    )
    assert "best" not in "".join(itertools.chain(*table.values()))  # their test rows are not the same
    assert "The runs were not judged on the same test rows" in pages["binary"]
    pair = [
        json.loads((folder / "runs" / name / "metrics.json").read_text())["test"]
        for name in ("diabetes", "diabetes_mae")
    ]
    table = table_of(pages["regression"], "metric-table")
    for label, name, choose in (("MAE", "mae", np.argmin), ("R²", "r2", np.argmax)):
        best = int(choose([metrics[name] for metrics in pair]))
        assert ["|best" in cell for cell in table[label]] == [place == best for place in range(2)]


def test_the_baseline_may_be_named_apart(pages: dict[str, str]) -> None:
    assert "<h1>diabetes · diabetes_mae</h1>" in pages["regression"]
    assert table_of(pages["regression"], "difference-table")["RMSE"][0] == "baseline"
    assert list(table_of(pages["regression"], "test-table")) == ["squared error: paired t", "absolute error: paired t"]
    assert "Holm" not in "".join(table_of(pages["regression"], "difference-table")["RMSE"])


def test_the_paired_test_is_on_common_rows_with_their_number(pages: dict[str, str]) -> None:
    assert re.search(r"other split and telco have \d+ test rows in common, of 360 and 360", pages["binary"])
    table = table_of(pages["binary"], "difference-table")
    assert table["log-loss"][0] == "baseline"
    for cell in table["log-loss"][1:]:
        assert re.fullmatch(
            r"[+-]?[\d.]+\|[+-]?[\d.]+ to [+-]?[\d.]+\|p [<\d. ]+, Holm [<\d. ]+\|(no difference shown|better|worse)",
            cell,
        )
    tests = table_of(pages["binary"], "test-table")
    assert re.fullmatch(r"p [\d.]+, Holm [\d.]+\|alone right \d+, baseline \d+", tests["accuracy: McNemar, exact"][1])


def test_the_curves_of_all_runs_are_in_one_picture(folder: Path, pages: dict[str, str]) -> None:
    alts = Page(pages["binary"]).alts
    assert list(alts) == ["loss_by_step", "loss_by_time"]  # log-loss is the loss itself
    assert list(Page(pages["regression"]).alts) == [
        f"{name}_by_{x}" for name in ("loss", "rmse", "mae") for x in ("step", "time")
    ]
    for name in ("telco", "wide", "other split"):
        selection = json.loads((folder / "runs" / name / "metrics.json").read_text())["selection"]
        logged = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        loss = next(line["loss"] for line in logged if line["split"] == "val" and line["step"] == selection["step"])
        for alt in alts.values():
            assert f"{name}: lowest " in alt
            assert f", {loss:.4g} at step {selection['step']}, which was kept" in alt
    assert "The runs&#39; losses are not of one kind" in pages["regression"]
    assert "Not logged: diabetes_mae." in pages["regression"] and "Not logged: diabetes." in pages["regression"]
    assert "The validation rows are not the same." in pages["binary"]


def test_eight_runs_are_lines_of_the_terminal(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [shutil.copytree(folder / "runs" / "telco", tmp_path / f"a_run_with_a_long_name_{n}") for n in range(8)]
    compare_on(tmp_path, *map(Path, runs))
    lines = capsys.readouterr().out.partition("↑ higher is better")[0].splitlines()
    assert max(map(len, lines)) <= 100
    named = [line for line in lines if "a_run_with_a_long_name_7" in line]
    assert any(re.fullmatch(r" +a_run_with_a_long_name_7 +0\.\d+ \* +0\.\d+ to 0\.\d+ +", line) for line in named)
    assert any(re.search(r"_7 +0 +0 to 0 +p 1.000, Holm +no difference", line) for line in named)


def test_a_run_without_a_log_has_no_curves(folder: Path, copy_of: Callable[..., Path], tmp_path: Path) -> None:
    (bad := copy_of()).joinpath("metrics.jsonl").write_text('{"step": 5, "split": "val", "loss": "low"}\n[]\n{"step"')
    page = compare_on(tmp_path, bad, folder / "runs" / "telco")
    assert "Not logged: copy0." in page
    (other := copy_of()).joinpath("metrics.jsonl").unlink()
    page = compare_on(tmp_path, bad, other)
    assert 'id="curves"' not in page and '"#curves"' not in page


@pytest.mark.parametrize("name", ["binary", "multiclass", "regression", "eight runs"])
def test_the_page_fetches_nothing_and_its_links_lead_somewhere(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"url\(|@import|<script|<link rel=\"stylesheet", pages[name])
    assert all(len(alt) > 20 and any(sign.isdigit() for sign in alt) for alt in page.alts.values())


def test_runs_are_named_by_as_much_as_tells_them_apart() -> None:
    assert name_runs(["runs/a", "runs/b/"]) == ["a", "b"]
    assert name_runs(["x/a", "y/a", "y/b"]) == ["x/a", "y/a", "y/b"]
    long = "n" * 50
    assert name_runs([f"x/{long}1", f"x/{long}2"]) == ["run 1", "run 2"]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")])
@pytest.mark.parametrize("name", ["binary", "regression", "eight runs"])
def test_a_browser_shows_the_page_readable_without_errors_or_sideways_scrolling(
    pages: dict[str, str], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    frame = tmp_path / "frame.html"
    frame.write_text(WRAPPER.format(width=width, page=html.escape(pages[name]), scheme=scheme), encoding="utf-8")
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=5000 --dump-dom"""
    profile = [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000", frame.as_uri()]
    done = subprocess.run([browser, *flags.split(), *profile], capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    measured = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert measured is not None, done.stderr
    found = json.loads(html.unescape(measured[1]))
    assert found["closed"] <= found["width"] <= width
    assert found["images"] and found["dark"] == (scheme == "dark")
    assert found["contrast"] >= 4.5, found["where"]  # WCAG 2.2, level AA
