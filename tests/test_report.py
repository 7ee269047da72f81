"""The report, on run folders written here as the contract says, from real models on scikit-learn's bundled tables."""

import base64
import html
import itertools
import json
import logging
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    log_loss,
    r2_score,
    roc_auc_score,
    roc_curve,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from nn_train.errors import RunFolderError
from nn_train.report import COMMON_PLOTS, PLOTS, VIEWS, result_plots, write_report
from nn_train.report_run import read_run

TASKS = ("binary", "multiclass", "regression")
TEMPERATURE = 1.3


def load_table(task):
    """Features, target (text for classes) and class names."""
    if task == "regression":
        x, y = load_diabetes(return_X_y=True, as_frame=True)
        return x, y.to_numpy(float), []
    loader, names = {"binary": (load_breast_cancer, ["malignant", "benign"]), "multiclass": (load_digits, None)}[task]
    x, y = loader(return_X_y=True, as_frame=True)
    return (
        x,
        (y.map(dict(enumerate(names))) if names else y.astype(str)).to_numpy(str),
        sorted(names or set(map(str, y))),
    )


def split_rows(num_rows):
    """Row numbers of train, val and test."""
    order = np.random.default_rng(0).permutation(num_rows)
    cuts = (int(0.6 * num_rows), int(0.8 * num_rows))
    return dict(zip(("train", "val", "test"), np.split(order, cuts), strict=True))


def fit_network(task, x, y, rows):
    """A small network trained epoch by epoch, and its log."""
    model = {"regression": MLPRegressor}.get(task, MLPClassifier)(
        hidden_layer_sizes=(32,), random_state=0, learning_rate_init=0.01
    )
    log, best = [], np.inf
    metric = "rmse" if task == "regression" else "log_loss"
    for epoch in range(1, 41):
        extra = {} if task == "regression" else {"classes": np.unique(y)}
        model.partial_fit(x[rows["train"]], y[rows["train"]], **extra)
        step = epoch * 5
        loss = float(model.loss_)
        log.append({"step": step, "epoch": epoch, "split": "train", "loss": loss, "lr": 1e-3 * min(1, epoch / 5),
                    "rows_per_s": 20000 + 300 * (epoch % 7), "grad_norm": 1.0, "elapsed_s": epoch * 6.5})  # fmt: skip
        value = compute_metrics(task, model, x[rows["val"]], y[rows["val"]])[metric]
        log.append({"step": step, "epoch": epoch, "split": "val", "loss": value**2 / 2 if metric == "rmse" else value,
                    metric: value, "elapsed_s": epoch * 6.5 + 1})  # fmt: skip
        if value < best:
            best, selection = value, {"metric": metric, "value": value, "step": step, "epoch": epoch}
    return model, log, selection


def compute_metrics(task, model, x, y):
    """The main metrics under the contract's names."""
    prediction = model.predict(x)
    if task == "regression":
        error = y - prediction
        return {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.abs(error).mean()),
                "median_absolute_error": float(np.median(np.abs(error))), "r2": float(r2_score(y, prediction)),
                "pearson_r": None, "mape": float(np.mean(np.abs(error / y)))}  # fmt: skip
    p = model.predict_proba(x)
    values = {
        "log_loss": float(log_loss(y, p, labels=model.classes_)),
        "accuracy": float(accuracy_score(y, prediction)),
    }
    if task == "multiclass":
        return values | {"f1_macro": float(f1_score(y, prediction, average="macro")),
                         "roc_auc": float(roc_auc_score(y, p, multi_class="ovr"))}  # fmt: skip
    positive = model.classes_[1]
    return values | {"roc_auc": float(roc_auc_score(y == positive, p[:, 1])), "f1_at_half": 0.9,
                     "average_precision": float(average_precision_score(y == positive, p[:, 1])),
                     "f1": float(f1_score(y, prediction, pos_label=positive))}  # fmt: skip


def describe_importance(task, x):
    """What metrics.json says of the columns; a regression also has the error along the first one."""
    columns = {name: {"mean": 0.3 / (place + 1) - 0.01, "std": 0.01} for place, name in enumerate(x)}
    error = {
        "column": x.columns[0],
        "labels": ["0 to 1", "1 to 7.5"],
        "mean_absolute_error": [0.5, 1.25],
        "rows": [9, 8],
    }
    metric = "rmse" if task == "regression" else "log_loss"
    top = error if task == "regression" else {}
    return {"metric": metric, "num_rows": 100, "num_repeats": 5, "columns": columns, "error_by_top_column": top}


def describe_explanation(task, x, classes, rows):
    """What explain.json says: curves over a number with gaps, a category and dates, raw values, and parts of two rows."""
    rng = np.random.default_rng(0)
    outputs = {"binary": classes[1:], "multiclass": classes[:3], "regression": ["progression"]}[task]

    def curve(name, labels, x):
        mean = rng.uniform(0.2, 0.8, (len(outputs), len(labels)))
        return {"column": name, "labels": labels, "x": x, "mean": mean.tolist(), "low": (mean - 0.1).tolist(),
                "high": (mean + 0.1).tolist()}  # fmt: skip

    days = pd.date_range("2024-01-01", periods=20, freq="17D")
    curves = [
        curve(
            x.columns[0],
            [*(f"{value:g}" for value in np.linspace(0, 7, 20)), "missing"],
            [*np.linspace(0, 7, 20), None],
        ),
        curve(x.columns[1], [f"level {n}" for n in range(10)], [None] * 10),
        curve(x.columns[2], [f"{day:%Y-%m-%d}" for day in days], list(map(float, range(0, 340, 17)))),
    ]
    parts = [
        {"column": name, "value": f"{place}.5", "part": (-0.7) ** place} for place, name in enumerate(x.columns[:8])
    ]
    rest = -0.25 - sum(part["part"] for part in parts)
    attributed = [{"row": int(row), "class": None, "score": 0.75, "base": 1.0, "parts": parts, "num_rest": x.shape[1] - 8,
                   "rest": rest} for row in rows["test"][:2]]  # fmt: skip
    return {
        "dependence": {"outputs": outputs, "num_rows": 100, "spread": [0.1, 0.9], "columns": curves},
        "worst": {"columns": [x.columns[0]], "rows": rows["test"].tolist(),
                  "values": [[f"raw {row}"] for row in rows["test"]]},
        "attributions": {"gap": 0.0123, "rows": attributed},
    }  # fmt: skip


def fit_baselines(task, x, y, rows):
    """The three baselines, as metrics.json holds them."""
    kinds = {"majority": DummyClassifier(), "linear": LogisticRegression(max_iter=2000),
             "hist_gradient_boosting": HistGradientBoostingClassifier(max_iter=15)}  # fmt: skip
    if task == "regression":
        kinds = {
            "mean": DummyRegressor(),
            "linear": Ridge(),
            "hist_gradient_boosting": HistGradientBoostingRegressor(max_iter=15),
        }
    found = {}
    for name, model in kinds.items():
        model.fit(x[rows["train"]], y[rows["train"]])
        found[name] = {split: compute_metrics(task, model, x[rows[split]], y[rows[split]]) for split in ("val", "test")}
        found[name]["seconds"] = 0.25
    return found


def write_predictions(path, task, model, x, y, rows):
    """A predictions file of the contract, with an id column."""
    table = {"row": rows.astype("int64"), "customer": [f"c-{row}" for row in rows], "target": y[rows]}
    table["prediction"] = model.predict(x[rows])
    if task != "regression":
        p = model.predict_proba(x[rows])
        table |= {f"p_{name}": p[:, place] for place, name in enumerate(model.classes_)}
    pd.DataFrame(table).to_parquet(path)


def describe_schema(task, x, classes):
    """schema.json, with an id and a column that is left out."""
    columns = [{"name": name, "kind": "numeric", "num_missing": 7 * (place % 4 == 1), "num_distinct": int(x[name].nunique()),
                "example": str(x[name].iloc[0]), "is_id": False, "dropped": ""} for place, name in enumerate(x)]  # fmt: skip
    columns.append({"name": "customer", "kind": "categorical", "num_missing": 0, "num_distinct": len(x), "example": "c-1",
                    "is_id": True, "dropped": "identifies a row"})  # fmt: skip
    target = {"name": {"binary": "diagnosis", "multiclass": "digit", "regression": "progression"}[task], "task": task}
    return {
        "columns": columns,
        "target": target | {"classes": classes},
        "num_rows": len(x),
        "num_rows_without_target": 3,
    }


def describe_events():
    """A run that was preempted, and whose second attempt crashed; the times are seconds since the first."""
    job = {"job": "17", "hosts": ["n1", "n2"]}
    events = [
        (0, 1, "attempt", job),
        (9, 1, "start", {"step": 0, "processes": 2, "prepare_s": 5}),
        (10, 1, "train", {"step": 0, "repeats": 0}),
        *((10 + 10 * n, 1, "checkpoint", {"step": 10 * n, "write_s": 0.5, "stall_s": 0.1, "bytes": 9}) for n in range(1, 8)),
        (90, 1, "stop", {"step": 80, "reason": "SIGTERM"}),
        (91, 1, "end", {"kind": "stopped", "reason": "preempted", "first_step": 0, "last_step": 80, "made_step": 80, "action": "requeue"}),
        (130, 2, "attempt", job),
        (139, 2, "start", {"step": 80, "processes": 2, "prepare_s": 5}),
        (140, 2, "train", {"step": 80, "repeats": 0}),
        (160, 2, "checkpoint", {"step": 100, "write_s": 0.5, "stall_s": 0.1, "bytes": 9}),
        (180, 2, "checkpoint_failed", {"step": 120, "why": "OSError: No space left on device"}),
        (190, 2, "hang", {"rank": 3, "host": "n2", "phase": "step", "step": 130, "silent_s": 9.5}),
        (191, 2, "end", {"kind": "crashed", "reason": "process 3 on n2 was killed by signal 9", "first_step": 80, "last_step": 100, "made_step": 130, "action": "restart"}),
        (192, 3, "attempt", job),
        (199, 3, "start", {"step": 100, "processes": 2, "prepare_s": 5}),
        (200, 3, "train", {"step": 100, "repeats": 30}),
        (230, 3, "skipped", {"step": 131, "rows": [17, 4]}),
        (245, 3, "checkpoint", {"step": 145, "write_s": 0.5, "stall_s": 0.1, "bytes": 9}),
        (250, 3, "restored", {"step": 150, "to": 145}),
        (305, 3, "trained", {"step": 200, "elapsed_s": 199.0, "why": "early_stopping"}),
        (310, 3, "evaluated", {"seconds": 5.0}),
    ]  # fmt: skip
    return [{"time": 1_790_000_000 + at_s, "attempt": n, "event": name, **values} for at_s, n, name, values in events]


def write_events(run_dir, events):
    (run_dir / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))


def build_run(run_dir: Path, task: str) -> Path:
    """A whole run folder of the task."""
    run_dir.mkdir(parents=True)
    frame, y, classes = load_table(task)
    x, rows = StandardScaler().fit_transform(frame), split_rows(len(frame))
    network, log, selection = fit_network(task, x, y, rows)
    for name, split in (("predictions", "test"), ("predictions_val", "val")):
        write_predictions(run_dir / f"{name}.parquet", task, network, x, y, rows[split])
    counts = (
        {split: {name: int((y[rows[split]] == name).sum()) for name in classes} for split in rows} if classes else None
    )
    files = {
        "schema.json": describe_schema(task, frame, classes),
        "status.json": {"state": "done", "reason": "early stopping", "step": 200},
        "metrics.json": {
            "task": task, "model": "tabm", "num_parameters": 12345, "processes": 2, "selection": selection,
            "decision": {"threshold": 0.42, "threshold_metric": "f1", "temperature": TEMPERATURE},
            "rows": {split: len(rows[split]) for split in rows}, "seconds": {"prepare": 0.5, "train": 261.0, "evaluate": 0.4},
            "baselines": fit_baselines(task, x, y, rows),
            "importance": describe_importance(task, frame),
            **{split: compute_metrics(task, network, x[rows[split]], y[rows[split]]) for split in ("val", "test")},
        },
        "explain.json": describe_explanation(task, frame, classes, rows),
        "data.json": {"fingerprint": "sha256:0123abcd", "class_counts": counts, "warnings": ["column 'customer' looks like an id"],
                      "drift": {name: {"val": 0.031, "test": 0.02} for name in frame}, "target_stats": None},
        "environment.json": {"python": "3.11.9", "platform": "Linux-6.1-x86_64", "packages": {"torch": "2.6.0", "numpy": "2.4.6"},
                             "processes": 2, "device": "cpu", "commit": "0a1b2c3d4e5f", "dirty": True,
                             "command": "python nn_train/train.py data.path=table.csv data.target=y", "started": "2026-01-02T03:04:05Z"},
    }  # fmt: skip
    for name, values in files.items():
        (run_dir / name).write_text(json.dumps(values))
    lines = [json.dumps(line) for line in log]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 205, "spl')
    write_events(run_dir, describe_events())
    (run_dir / "config.yaml").write_text(
        yaml.safe_dump({"data": {"path": "table.csv", "target": "y"}, "run": {"seed": 7}})
    )
    return run_dir


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run folder for each task, with its report written."""
    folder = tmp_path_factory.mktemp("runs of 'three' tasks")
    runs = {task: build_run(folder / task, task) for task in TASKS}
    for run_dir in runs.values():
        write_report(run_dir, dpi=60)
    return runs


@pytest.fixture
def run_of(reported, tmp_path):
    """A fresh copy of a task's run folder."""
    return lambda task: shutil.copytree(reported[task], tmp_path / task)


def rewrite(path, change):
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def read_page(run_dir):
    return (run_dir / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Images, addresses, ids and words of a page."""

    def __init__(self, text):
        super().__init__()
        self.alts, self.addresses, self.ids, self.tags, self.words = {}, [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.addresses += [values[key] for key in ("src", "href", "srcset", "action", "data") if values.get(key)]
        if tag == "img":
            self.alts[values["id"].removeprefix("plot-")] = values["alt"]

    def handle_data(self, data):
        self.words.append(data)


def expected_plots(task):
    names = {name for plots in (*COMMON_PLOTS.values(), PLOTS[task]) for name in plots}
    absent = {"target_balance"} if task == "regression" else {"target_histogram", "error_by_top_column"}
    absent |= {"interval_by_prediction", "quantile_coverage"}
    absent |= {f"partial_dependence_{place}" for place in (4, 5, 6)} | {
        f"attribution_{place}" for place in (3, 4, 5, 6)
    }
    return names - absent


@pytest.mark.parametrize("task", TASKS)
def test_every_plot_of_the_task_is_a_file_and_a_described_image_of_the_page(reported, task):
    page = Page(read_page(reported[task]))
    assert set(page.alts) == expected_plots(task)
    assert {path.stem for path in (reported[task] / "plots").glob("*.png")} == expected_plots(task)
    assert all(len(alt) > 20 and any(sign.isdigit() for sign in alt) for alt in page.alts.values())
    assert "Left out" not in read_page(reported[task])
    stored = {base64.b64encode(path.read_bytes()).decode() for path in (reported[task] / "plots").iterdir()}
    assert stored == {address.partition("base64,")[2] for address in page.addresses if address.startswith("data:image")}


# Pictures whose numbers stand in a table of the page, by its id; all others have one of their own.
TABLE_OF = {
    "network_and_baselines": "leaderboard",
    "target_balance": "splits",
    "missing_values": "columns",
    "attempts_by_time": "parts",
    "permutation_importance": "column-importance",
}


@pytest.mark.parametrize("task", TASKS)
def test_the_numbers_of_every_plot_are_also_a_table(reported, task):
    text = read_page(reported[task])
    figures = dict(re.findall(r'id="plot-(\w+)"(.*?)</figure>', text, re.DOTALL))
    assert set(figures) == expected_plots(task)
    for name, figure in figures.items():
        if name in TABLE_OF:
            assert f'<table id="{TABLE_OF[name]}">' in text and "<table" not in figure
            continue
        assert figure.count("<details>") == figure.count("<table>") == 1, name
        rows = re.findall("<tr>(.*?)</tr>", figure.partition("<tbody>")[2], re.DOTALL)
        assert 2 <= len(rows) <= 30, name
        assert all(re.search(r">[^<]*\d[^<]*<", row) for row in rows), name


def test_the_table_of_a_curve_holds_its_points(reported):
    test = pd.read_parquet(reported["binary"] / "predictions.parquet")
    fpr, tpr, _ = roc_curve(test["target"] == "malignant", test["p_malignant"], drop_intermediate=False)
    points = {
        (f"{x:.4f}".rstrip("0").rstrip("."), f"{y:.4f}".rstrip("0").rstrip(".")) for x, y in zip(fpr, tpr, strict=True)
    }
    figure = read_page(reported["binary"]).partition('id="plot-roc"')[2].partition("</figure>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in figure.partition("<tbody>")[2].split("</tr>")]
    shown = {tuple(cell.rstrip("0").rstrip(".") or "0" for cell in row) for row in rows if row}
    assert len(shown) == 30 and shown <= points
    assert "30 of" in figure


@pytest.mark.parametrize("task", TASKS)
def test_the_page_goes_from_the_summary_to_how_to_reproduce(reported, task):
    text = read_page(reported[task])
    sections = re.findall(r'<section id="([\w-]+)">', text)
    assert sections == ["summary", "data", "training", "timeline", "results", "importance", "errors", "reproduce"]
    links = re.findall(r'<a href="#([\w-]+)">', text.partition("<nav")[2].partition("</nav>")[0])
    assert links == sections


def test_the_smallest_words_of_a_plot_can_be_read_on_a_phone(reported):
    for task, run_dir in reported.items():
        run = read_run(run_dir)
        for section, functions in {**COMMON_PLOTS, "results": result_plots(run.schema.target)}.items():
            view = VIEWS[section](run)
            for name, plot in ((name, draw(view)) for name, draw in functions.items()):
                if plot is None or plot.figure.get_figwidth() > 6:  # which scrolls sideways
                    continue
                texts = [text for text in plot.figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
                smallest = min(text.get_fontsize() for text in texts)
                assert smallest * 366 / (72 * plot.figure.get_figwidth()) > 7.5, (task, name)  # pixels


def test_the_worst_rows_show_what_the_table_holds(reported):
    for row in read_table(reported["binary"], "worst"):
        assert row[-1] == f"raw {row[0]}"


@pytest.mark.parametrize("task", TASKS)
def test_the_parts_of_a_prediction_are_shown_and_explained(reported, task):
    run_dir = reported[task]
    test = pd.read_parquet(run_dir / "predictions.parquet").iloc[0]
    said, true = (
        f"{test[name]:.4g}" if task == "regression" else f"&#39;{test[name]}&#39;" for name in ("prediction", "target")
    )
    first = read_table(run_dir, "attributions")[0]
    assert first[0] == str(test["row"]) and first[-2:] == ["1.0000", "0.7500"]
    name = pd.DataFrame(load_table(task)[0]).columns
    assert first[2:5] == [f"{name[0]} = 0.5: +1", f"{name[1]} = 1.5: -0.7", f"{name[2]} = 2.5: +0.49"]
    if task != "regression":
        assert first[1] == f"predicted {said}, true {true}"
    text = read_page(run_dir)
    assert "here to within 0.012" in text and "In the base row" in text
    assert f"{name[0]} = 0.5: +1" in Page(text).alts["attribution_1"]


@pytest.mark.parametrize("task", TASKS)
def test_tables_regions_and_links_have_names_and_headings_leave_out_no_level(reported, task):
    text = read_page(reported[task])
    assert '<html lang="en">' in text
    captions = re.findall(r"<table[^>]*>\s*<caption><span>([^<]+)</span></caption>", text)
    assert len(captions) == text.count("<table") > 10
    regions = re.findall(r'role="region" aria-label="([^"]*)"', text)
    assert len(regions) == text.count('role="region"') and all(regions)
    summaries = re.findall(r"<summary>Numbers<span[^>]*>: ([^<]+)</span></summary>", text)
    assert len(summaries) == text.count("<summary") == text.count("<details")
    assert all(words.strip() for words in re.findall(r"<a [^>]*>([^<]*)</a>", text))
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("task", TASKS)
def test_the_page_fetches_nothing(reported, task):
    text = read_page(reported[task])
    assert all(address.startswith(("data:", "#")) for address in Page(text).addresses)
    assert not re.search(r"url\(|@import|<script|<link rel=\"stylesheet", text)


@pytest.mark.parametrize("task", TASKS)
def test_every_link_of_the_contents_leads_to_a_section_and_no_id_is_used_twice(reported, task):
    page = Page(read_page(reported[task]))
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_areas_in_the_plots_are_those_of_scikit_learn(reported):
    test = pd.read_parquet(reported["binary"] / "predictions.parquet")
    y, p = test["target"] == "malignant", test["p_malignant"]
    alts = Page(read_page(reported["binary"])).alts
    assert f"ROC AUC {roc_auc_score(y, p):.4f}" in alts["roc"]
    assert f"Average precision {average_precision_score(y, p):.4f}" in alts["precision_recall"]


def test_uncalibrated_probabilities_are_recovered_with_the_temperature(reported):
    test = pd.read_parquet(reported["binary"] / "predictions.parquet")
    y, p = (test["target"] == "malignant").to_numpy(), test["p_malignant"].to_numpy().clip(1e-12, 1 - 1e-12)
    odds = (p / (1 - p)) ** TEMPERATURE
    assert (
        f"before: Brier {np.mean((odds / (1 + odds) - y) ** 2):.4f}"
        in Page(read_page(reported["binary"])).alts["reliability"]
    )


def test_a_torn_last_line_of_the_log_is_skipped(reported):
    assert "last step 200" in Page(read_page(reported["binary"])).alts["loss_by_step"]


def set_network(value):
    return lambda metrics: metrics["test"].update(log_loss=value)


@pytest.mark.parametrize(
    ("log_losses", "words"),
    [
        ((0.5, 0.6, 0.4, 0.3), "The network loses: it is number 3 of 4 by log-loss. gradient boosting has 0.3, the network 0.5."),
        ((0.2, 0.6, 0.4, 0.3), "The network wins: it is number 1 of 4 by log-loss. gradient boosting has 0.3, the network 0.2."),
        ((0.3, 0.6, 0.4, 0.3), "The network ties with gradient boosting: number 1 of 4 by log-loss, 0.3 each."),
        ((0.5, 0.6, None, 0.3), "The network loses: it is number 2 of 3 by log-loss. gradient boosting has 0.3, the network 0.5."),
    ],
)  # fmt: skip
def test_the_rank_says_plainly_whether_the_network_loses(run_of, log_losses, words):
    run_dir = run_of("binary")

    def change(metrics):
        metrics["test"]["log_loss"] = log_losses[0]
        for name, value in zip(("majority", "linear", "hist_gradient_boosting"), log_losses[1:], strict=True):
            metrics["baselines"][name]["test"]["log_loss"] = value

    rewrite(run_dir / "metrics.json", change)
    write_report(run_dir, dpi=40)
    assert f'<p class="callout" id="rank">{words}</p>' in read_page(run_dir)


def test_a_higher_metric_is_better_where_it_should_be(run_of):
    run_dir = run_of("regression")

    def change(metrics):
        metrics["selection"]["metric"] = "r2"
        metrics["test"]["r2"] = 0.99

    rewrite(run_dir / "metrics.json", change)
    write_report(run_dir, dpi=40)
    assert "The network wins: it is number 1 of 4 by R²." in read_page(run_dir)


HOSTILE = "<script>alert('x')</script>"
AWKWARD = (HOSTILE, r"$\frac{1$ _\ ]]> & \"q\"", "_日本 語\n\"'>", "a" * 300)


def test_hostile_names_are_escaped_and_still_drawn(run_of, caplog):
    run_dir = run_of("binary")
    negative, positive = AWKWARD[1], HOSTILE
    new = {"benign": negative, "malignant": positive}

    def change_schema(schema):
        schema["target"] |= {"classes": [negative, positive], "name": AWKWARD[2]}
        for column, name in zip(schema["columns"], AWKWARD, strict=False):
            column |= {"name": name, "example": HOSTILE, "dropped": HOSTILE, "num_missing": 5}

    def change_data(data):
        data["class_counts"] = {
            split: {new[name]: n for name, n in counts.items()} for split, counts in data["class_counts"].items()
        }
        data["warnings"] = [HOSTILE]

    def change_explanation(found):
        found["dependence"]["outputs"] = [positive]
        for curve, name in zip(found["dependence"]["columns"], AWKWARD, strict=False):
            curve |= {"column": name, "labels": [*curve["labels"][:-2], HOSTILE, AWKWARD[1]]}
        found["worst"]["columns"] = [HOSTILE]
        found["worst"]["values"] = [[HOSTILE]] * len(found["worst"]["rows"])
        for row in found["attributions"]["rows"]:
            for part in row["parts"]:
                part |= {"column": AWKWARD[2], "value": HOSTILE}

    rewrite(run_dir / "schema.json", change_schema)
    rewrite(run_dir / "data.json", change_data)
    rewrite(run_dir / "environment.json", lambda values: values.update(command=HOSTILE))
    (run_dir / "config.yaml").write_text(HOSTILE)
    rewrite(run_dir / "explain.json", change_explanation)
    for event in (events := describe_events()):
        event |= {name: HOSTILE for name in ("reason", "why", "host", "job", "phase") if name in event}
    write_events(run_dir, events)
    for name in ("predictions", "predictions_val"):
        table = pd.read_parquet(run_dir / f"{name}.parquet").rename(
            columns={f"p_{old}": f"p_{text}" for old, text in new.items()}
        )
        table[["target", "prediction"]] = table[["target", "prediction"]].replace(new)
        table["customer"] = HOSTILE
        table.to_parquet(run_dir / f"{name}.parquet")
    write_report(run_dir, dpi=40)
    page = Page(read_page(run_dir))
    assert "script" not in page.tags
    assert {word for word in page.words if "alert" in word} and HOSTILE in page.words
    assert set(page.alts) == expected_plots("binary")
    assert not caplog.records


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("metrics.jsonl", {"training"}),
        ("predictions.parquet", {"errors"}),
        ("data.json", {"plot-target_balance"}),
        ("metrics.json", {"rank", "leaderboard", "metrics", "plot-network_and_baselines"}),
        ("predictions_val.parquet", {"plot-metrics_by_threshold"}),
        ("config.yaml", {"config"}),
        ("explain.json", {"attributions", "plot-attribution_1", "plot-partial_dependence_1"}),
        ("events.jsonl", {"timeline", "goodput", "parts", "attempts", "events", "plot-attempts_by_time"}),
    ],
)
def test_a_missing_file_leaves_its_section_out_and_the_rest_stays(run_of, missing, gone):
    run_dir = run_of("binary")
    before = set(Page(read_page(run_dir)).ids)
    (run_dir / missing).unlink()
    write_report(run_dir, dpi=40)
    after = Page(read_page(run_dir))
    assert gone <= before and not gone & set(after.ids)
    assert {"summary", "data", "columns", "reproduce"} <= set(after.ids)
    assert {address[1:] for address in after.addresses if address.startswith("#")} <= set(after.ids)
    assert "Left out" not in read_page(run_dir)


def test_a_folder_with_a_schema_alone_still_gets_a_page(run_of):
    run_dir = run_of("regression")
    for path in run_dir.iterdir():
        if path.is_file() and path.name != "schema.json":
            path.unlink()
    write_report(run_dir, dpi=40)
    assert set(Page(read_page(run_dir)).alts) == {"missing_values"}
    assert [path.name for path in (run_dir / "plots").iterdir()] == ["missing_values.png"]


def test_a_folder_without_a_schema_is_refused_with_its_name(tmp_path):
    with pytest.raises(RunFolderError, match=r"schema\.json cannot be read") as caught:
        write_report(tmp_path, dpi=40)
    assert str(tmp_path) in str(caught.value)


def test_a_plot_that_fails_costs_a_note_and_a_warning_not_the_page(run_of, monkeypatch, caplog):
    run_dir = run_of("binary")

    def fail(scores):
        raise ZeroDivisionError("no <b>rows</b>")

    monkeypatch.setitem(PLOTS["binary"], "roc", fail)
    with caplog.at_level(logging.WARNING, "nn_train"):
        write_report(run_dir, dpi=40)
    assert "Left out: the plot roc: ZeroDivisionError: no &lt;b&gt;rows&lt;/b&gt;" in read_page(run_dir)
    assert set(Page(read_page(run_dir)).alts) == expected_plots("binary") - {"roc"}
    assert not (run_dir / "plots" / "roc.png").exists()
    assert [record.message for record in caplog.records] == [
        "report: left out the plot roc: ZeroDivisionError: no <b>rows</b>"
    ]


def test_test_rows_of_one_class_are_told_and_not_drawn(run_of):
    run_dir = run_of("binary")
    test = pd.read_parquet(run_dir / "predictions.parquet")
    test[test["target"] == "benign"].to_parquet(run_dir / "predictions.parquet")
    write_report(run_dir, dpi=40)
    assert "Left out: the plots of results: the test rows hold one class only" in read_page(run_dir)


def test_predictions_that_are_not_finite_are_told(run_of):
    run_dir = run_of("regression")
    test = pd.read_parquet(run_dir / "predictions.parquet")
    test.loc[0, "prediction"] = np.inf
    test.to_parquet(run_dir / "predictions.parquet")
    write_report(run_dir, dpi=40)
    assert f"1 of {len(test)} test predictions are not finite" in read_page(run_dir)


def test_a_class_that_the_schema_does_not_know_is_told(run_of):
    run_dir = run_of("multiclass")
    test = pd.read_parquet(run_dir / "predictions.parquet")
    test.loc[0, "target"] = "eleven"
    test.to_parquet(run_dir / "predictions.parquet")
    write_report(run_dir, dpi=40)
    assert "target &#39;eleven&#39; is not a class of schema.json" in read_page(run_dir)
    assert "worst" not in Page(read_page(run_dir)).ids


@pytest.mark.parametrize("name", ["metrics.json", "predictions.parquet", "metrics.jsonl", "explain.json"])
def test_a_file_of_rubbish_is_a_note_in_the_page(run_of, name):
    run_dir = run_of("binary")
    (run_dir / name).write_bytes(b"\xff\xfe rubbish")
    write_report(run_dir, dpi=40)
    assert f"{name} could not be read" in read_page(run_dir)


def read_table(run_dir, name):
    """The cells of a table of the page, row by row."""
    body = read_page(run_dir).partition(f'id="{name}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    return [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body.split("</tr>") if "<t" in row]


def test_the_timeline_says_where_the_time_went(reported):
    run_dir = reported["regression"]
    text = read_page(run_dir)
    assert "goodput 0.69: 3.6 min useful of 5.2 min; 3 attempts, 1 crash, 1 requeue, 1 hang; " in text
    assert "<br>1 of 10 checkpoints could not be written, 1 batch skipped, 1 return to a checkpoint</p>" in text
    assert "<dt>goodput</dt><dd>0.69</dd>" in text
    parts = {name: (time, share) for name, time, share in read_table(run_dir, "parts")}
    assert parts["waiting"] == ("40.0 s", "12.9 %") and parts["first preparation"] == ("10.0 s", "3.2 %")
    assert read_table(run_dir, "attempts")[1] == [
        "2", "crashed", "2026-09-21 14:15:30", "17", "n1, n2", "80", "100", "30"
    ]  # fmt: skip
    events = re.findall("<li>([^<]*)</li>", text.partition('id="events"')[2].partition("</ul>")[0])
    assert events == [
        "91.0 s, attempt 1: stopped, step 80 is safe: preempted; then requeue",
        "3.0 min, attempt 2: the checkpoint of step 120 was not written: OSError: No space left on device",
        "3.2 min, attempt 2: process 3 on n2 hung in phase step at step 130: no sign for 9.5 s",
        "3.2 min, attempt 2: crashed, step 100 is safe: process 3 on n2 was killed by signal 9; then restart",
        "3.8 min, attempt 3: the update of step 131 was skipped: train rows 17, 4, ...",
        "4.2 min, attempt 3: went back from step 150 to the checkpoint of step 145",
    ]
    alt = Page(text).alts["attempts_by_time"]
    assert alt.startswith("69.0 % of the time was of use. 3 attempts: first preparation 10.0 s, training that counts")


def test_a_timeline_of_hundreds_of_attempts_stays_small(run_of):
    run_dir = run_of("regression")
    before = (run_dir / "report.html").stat().st_size
    events, at_s = [], 1_790_000_000
    for number in range(1, 301):
        steps = range(50 * number, 50 * number + 50)
        events.append({"time": at_s, "attempt": number, "event": "start", "step": 50 * number, "prepare_s": 5})
        events.append({"time": at_s + 1, "attempt": number, "event": "train", "step": 50 * number, "repeats": 0})
        events += [
            {"time": at_s + 2 + n, "attempt": number, "event": "checkpoint", "step": step}
            for n, step in enumerate(steps)
        ]
        events.append({"time": at_s + 60, "attempt": number, "event": "failed", "step": 50 * number, "why": "x" * 400})
        at_s += 600
    write_events(run_dir, events)
    write_report(run_dir, dpi=60)
    text = read_page(run_dir)
    assert (run_dir / "report.html").stat().st_size < before + 200_000
    assert "The newest 100 of 300 attempts." in text and len(read_table(run_dir, "attempts")) == 100
    assert "<li>250 earlier events are in events.jsonl.</li>" in text
    assert "The newest 30 of 300 attempts. Checkpoints that are close together are one tick." in text
    assert '<th scope="row">paused, not counted</th>' in text


def test_events_of_a_run_that_has_only_just_begun(run_of):
    run_dir = run_of("binary")
    write_events(run_dir, describe_events()[:1])
    write_report(run_dir, dpi=40)
    page = Page(read_page(run_dir))
    assert "goodput" in page.ids and "plot-attempts_by_time" not in page.ids and "events" not in page.ids
    assert "Left out" not in read_page(run_dir)


def test_a_run_that_is_not_done_says_so(run_of):
    run_dir = run_of("binary")
    rewrite(run_dir / "status.json", lambda status: status.update(state="stopped", reason="SIGTERM"))
    write_report(run_dir, dpi=40)
    assert "This run is not finished: stopped (SIGTERM)." in read_page(run_dir)
    assert "not finished" not in read_page(run_of("regression"))


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_the_worst_rows_are_the_most_wrong_ones_in_order(reported, task):
    test = pd.read_parquet(reported[task] / "predictions.parquet")
    if task == "regression":
        badness = (test["target"] - test["prediction"]).abs()
    else:
        badness = -test["p_malignant"].where(test["target"] == "malignant", test["p_benign"])
    rows = test.loc[badness.sort_values(ascending=False, kind="stable").index[:50], "row"]
    table = read_page(reported[task]).partition('id="worst"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row" class="num">(\d+)</th>', table) == [str(row) for row in rows]


def test_fifty_classes_and_many_rows_are_drawn(run_of):
    run_dir, rng, names = run_of("multiclass"), np.random.default_rng(0), [f"class number {n}" for n in range(50)]
    p = rng.dirichlet(np.full(50, 0.2), 4000)
    target = [names[place] for place in (p.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)]
    table = {"row": np.arange(4000), "target": target, "prediction": [names[place] for place in p.argmax(axis=1)]}
    pd.DataFrame(table | {f"p_{name}": p[:, n] for n, name in enumerate(names)}).to_parquet(
        run_dir / "predictions.parquet"
    )
    rewrite(run_dir / "schema.json", lambda schema: schema["target"].update(classes=names))
    write_report(run_dir, dpi=110)
    assert set(Page(read_page(run_dir)).alts) == expected_plots("multiclass")
    assert "the 30 largest of 50 shown" in read_page(run_dir)


def test_many_rows_of_a_regression_are_drawn_as_a_density(run_of):
    run_dir, rng = run_of("regression"), np.random.default_rng(0)
    y = rng.lognormal(3, 1, 20_000)
    table = {"row": np.arange(len(y)), "target": y, "prediction": y * rng.lognormal(0, 0.3, len(y))}
    pd.DataFrame(table).to_parquet(run_dir / "predictions.parquet")
    write_report(run_dir, dpi=110)
    assert set(Page(read_page(run_dir)).alts) == expected_plots("regression")


def test_no_temporary_file_is_left(reported):
    assert not [path for run_dir in reported.values() for path in run_dir.rglob("*.tmp")]


WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><title>frame</title><body style="margin:0">
<iframe id="f" style="width:{width}px;height:3000px;border:0;color-scheme:{scheme}" srcdoc="{page}"></iframe>
<script>
const light = (rgb) => {{
  const parts = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}};
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const behind = (node, view) => {{
  for (; node; node = node.parentElement) {{
    const colour = numbers(view.getComputedStyle(node).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }}
  return [255, 255, 255];
}};
document.getElementById("f").onload = () => {{
  const inner = document.getElementById("f").contentDocument, root = inner.documentElement;
  const closed = root.scrollWidth;
  inner.querySelectorAll("details").forEach((one) => (one.open = true));
  let least = 99, where = "";
  for (const node of inner.body.querySelectorAll("*")) {{
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
    const view = inner.defaultView;
    const pair = [numbers(view.getComputedStyle(node).color), behind(node, view)].map((c) => light(c) + 0.05);
    const contrast = Math.max(...pair) / Math.min(...pair);
    if (contrast < least) [least, where] = [contrast, node.tagName + " " + node.className];
  }}
  const dark = light(behind(inner.body, inner.defaultView)) < 0.1;
  const found = {{ closed, open: root.scrollWidth, width: root.clientWidth, dark, contrast: least, where,
    images: [...inner.images].every((one) => one.complete && one.naturalWidth > 0) }};
  document.title = "measured " + JSON.stringify(found);
}};
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("task", TASKS)
def test_a_browser_shows_the_page_readable_without_errors_or_sideways_scrolling(
    reported, tmp_path, task, width, scheme
):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed")
    frame = tmp_path / "frame.html"
    page = html.escape(read_page(reported[task]))
    frame.write_text(WRAPPER.format(width=width, page=page, scheme=scheme), encoding="utf-8")
    flags = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
        --disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=5000 --dump-dom"""
    argv = [
        browser,
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},3000",
        frame.as_uri(),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    measured = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert measured is not None, done.stderr
    found = json.loads(html.unescape(measured[1]))
    assert max(found["closed"], found["open"]) <= found["width"] <= width
    assert found["images"] and found["dark"] == (scheme == "dark")
    assert found["contrast"] >= 4.5, found["where"]  # WCAG 2.2, level AA
