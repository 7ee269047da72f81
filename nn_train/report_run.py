"""What a run folder holds, read for the report, and what its pictures need of it."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from nn_train import plots_explain, plots_run
from nn_train.errors import RunFolderError
from nn_train.metrics import BY_TASK, LOWER_IS_BETTER, QUANTILE_METRICS
from nn_train.parquet_rows import rows_at_places
from nn_train.sampling import even_places, held_rows
from nn_train.schema import TableSchema, TargetSpec, Task
from nn_train.settings import EXACT_ROWS
from nn_train.timeline import EVENTS_FILE, Event, Span, Timeline, read_events, summarise

logger = logging.getLogger("nn_train")

# The first of each task are the headline of the page; all of them are the columns of the leaderboard.
MAIN_METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "f1", "brier_score", "balanced_accuracy", "accuracy"),
    "multiclass": ("accuracy", "f1_macro", "log_loss", "roc_auc", "balanced_accuracy", "matthews_corrcoef"),
    "regression": ("rmse", "mae", "r2", "median_absolute_error", "pearson_r", "mape"),
}
UNITLESS_METRICS = ("r2", "pearson_r", "mape")  # of several targets, whose units differ
NUM_HEADLINES = 4
MOST_BARS = 30  # more attempts than these are no longer told apart in one picture
FALLBACK_METRIC: dict[Task, str] = {"binary": "log_loss", "multiclass": "log_loss", "regression": "rmse"}
METRIC_NAMES = {
    "roc_auc": "ROC AUC",
    "log_loss": "log-loss",
    "f1": "F1",
    "f1_macro": "macro F1",
    "f1_weighted": "weighted F1",
    "rmse": "RMSE",
    "mae": "MAE",
    "pinball_loss": "pinball loss",
    "mape": "MAPE",
    "r2": "R²",
    "pearson_r": "Pearson r",
    "matthews_corrcoef": "Matthews correlation",
    "ks_statistic": "KS statistic",
    "lift_at_10_percent": "lift at 10 %",
    "top_2_accuracy": "top-2 accuracy",
    "brier_score": "Brier score",
    "expected_calibration_error": "calibration error",
}
JSON_FILES = {
    "status": "status",
    "metrics": "metrics",
    "data": "data",
    "environment": "environment",
    "explanation": "explain",
    "profile": "profile",
}
MODEL_NAMES = {
    "majority": "majority class",
    "mean": "mean of the target",
    "linear": "linear model",
    "hist_gradient_boosting": "gradient boosting",
    "lightgbm": "LightGBM",
    "catboost": "CatBoost",
    "xgboost": "XGBoost",
}


def metric_name(metric: str) -> str:
    """A metric as a person writes it; `_at_half` is the one at probability 0.5."""
    base = metric.removesuffix("_at_half")
    name = METRIC_NAMES.get(base, base.replace("_", " "))
    return f"{name} at 0.5" if base != metric else name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the run folder holds; a missing file is empty. `notes` tell what could not be read."""

    schema: TableSchema
    config_text: str
    status: dict[str, Any]
    metrics: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    explanation: dict[str, Any]
    profile: dict[str, Any]
    history: pd.DataFrame
    test: pd.DataFrame
    val: pd.DataFrame
    events: list[Event]
    timeline: Timeline
    notes: list[str]


def read_json_lines(path: Path) -> pd.DataFrame:
    """One row per line that is whole; a crash may have torn the last one."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return pd.DataFrame.from_records([record for record in records if isinstance(record, dict)])


def read_predictions(path: Path, target: TargetSpec, *, exact_rows: int) -> pd.DataFrame:
    """The rows whose true value is known; of more than `exact_rows` an even sample, the one that the run held."""
    num_rows = pq.read_metadata(path).num_rows
    if num_rows > exact_rows:
        frame = rows_at_places(path, even_places(num_rows, held_rows(num_rows, exact_rows))).to_pandas()
    else:
        frame = pd.read_parquet(path)
    return frame.dropna(subset=list(target.truth_names)).reset_index(drop=True)


def read_run(run_dir: Path) -> Run:
    """Read the folder; raises RunFolderError where schema.json is missing or broken."""
    try:
        schema = TableSchema.from_json(json.loads((run_dir / "schema.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "name the folder of a run that has started: it holds config.yaml and schema.json"
        raise RunFolderError(f"schema.json cannot be read ({error!r})", where=str(run_dir), fix=fix) from error
    notes: list[str] = []

    def read(name: str, reader: Callable[[Path], Any], empty: Any) -> Any:
        if not (run_dir / name).exists():
            return empty
        try:
            return reader(run_dir / name)
        except Exception as error:  # any library error of any file format: the rest of the page is still worth having
            notes.append(f"{name} could not be read, so what it holds is left out: {type(error).__name__}: {error}")
            logger.warning("report: %s", notes[-1])
            return empty

    jsons = {
        field: read(f"{name}.json", lambda path: dict(json.loads(path.read_text(encoding="utf-8"))), {})
        for field, name in JSON_FILES.items()
    }
    exact_rows = (jsons["metrics"].get("streamed") or {}).get("exact_rows") or EXACT_ROWS

    def read_rows(path: Path) -> pd.DataFrame:
        return read_predictions(path, schema.target, exact_rows=exact_rows)

    return Run(
        schema=schema,
        config_text=read("config.yaml", lambda path: path.read_text(encoding="utf-8"), ""),
        history=read("metrics.jsonl", read_json_lines, pd.DataFrame()),
        test=read("predictions.parquet", read_rows, pd.DataFrame()),
        val=read("predictions_val.parquet", read_rows, pd.DataFrame()),
        events=read(EVENTS_FILE, lambda path: read_events(path.parent), []),
        timeline=read(EVENTS_FILE, lambda path: summarise(read_events(path.parent)), Timeline()),
        notes=notes,
        **jsons,
    )


def build_leaderboard(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """Main metrics that any model has, and a row for each model: name, is_network, values by metric, seconds."""
    own = f"network ({model})" if isinstance(model := run.metrics.get("model"), str) else "network"
    judged = (run.metrics.get("baseline_sample") or {}).get("network") or run.metrics  # on the baselines' rows
    models = {own: judged | {"seconds": (run.metrics.get("seconds") or {}).get("train")}}
    models |= run.metrics.get("baselines") or {}
    rows = [
        {
            "name": MODEL_NAMES.get(key, key.replace("_", " ")),
            "is_network": key == own,
            "values": values.get("test") or {},
            "seconds": values.get("seconds"),
        }
        for key, values in models.items()
        if values
    ]
    shown, chosen = shown_metrics(run.schema.target), selection_metric(run)
    shown = shown if chosen in BY_TASK[run.schema.target.task] else (chosen, *shown)  # of quantiles, or the user's own
    names = [n for n in dict.fromkeys(shown) if any(row["values"].get(n) is not None for row in rows)]
    return names, rows


def find_best(metric: str, rows: list[dict[str, Any]]) -> float | None:
    """The best value of a metric over the models of a leaderboard."""
    values = [row["values"][metric] for row in rows if row["values"].get(metric) is not None]
    return (min if metric in LOWER_IS_BETTER else max)(values, default=None)


def state_rank(metric: str, rows: list[dict[str, Any]]) -> str:
    """The network's place among the models by one metric, in plain words; empty where nothing can be compared."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    scored = sorted((r for r in rows if r["values"].get(metric) is not None), key=lambda r: sign * r["values"][metric])
    own = next((row["values"][metric] for row in scored if row["is_network"]), None)
    others = [row for row in scored if not row["is_network"]]
    if own is None or not others:
        return ""
    better = [row for row in others if sign * row["values"][metric] < sign * own]
    place = f"{len(better) + 1} of {len(scored)} by {metric_name(metric)}"
    rival = f"{others[0]['name']} has {others[0]['values'][metric]:.4g}, the network {own:.4g}"
    if better:
        return f"The network loses: it is number {place}. {rival}."
    if others[0]["values"][metric] == own:
        return f"The network ties with {others[0]['name']}: number {place}, {own:.4g} each."
    return f"The network wins: it is number {place}. {rival}."


def shown_metrics(target: TargetSpec) -> tuple[str, ...]:
    """The main metrics of what is predicted, the headline first."""
    main = MAIN_METRICS[target.task] if not target.columns else UNITLESS_METRICS
    return (*QUANTILE_METRICS, *main) if target.quantiles else main


def rank_metric(run: Run) -> str:
    """The metric by which models are ranked: baselines have none of quantiles, nor the user's own."""
    metric, task = selection_metric(run), run.schema.target.task
    if metric in QUANTILE_METRICS:
        return "mae"
    return metric if metric in BY_TASK[task] else FALLBACK_METRIC[task]


def selection_metric(run: Run) -> str:
    """The metric that chose the weights, or the first main metric of the task."""
    return (run.metrics.get("selection") or {}).get("metric") or FALLBACK_METRIC[run.schema.target.task]


def build_comparison(run: Run) -> plots_run.Comparison:
    """The headline metrics of all models for a picture."""
    _, rows = build_leaderboard(run)
    panels = {}
    for name in dict.fromkeys((rank_metric(run), *shown_metrics(run.schema.target)[:3])):
        values = {row["name"]: row["values"][name] for row in rows if row["values"].get(name) is not None}
        if values:
            panels[f"{metric_name(name)} ({'lower' if name in LOWER_IS_BETTER else 'higher'} is better)"] = values
    verdict = state_rank(rank_metric(run), rows).split(". ")[0]
    return plots_run.Comparison(panels=panels, network=rows[0]["name"], verdict=verdict)


def build_importance(run: Run) -> plots_explain.ImportanceView:
    """What was measured of the columns; nothing where it was not measured."""
    found = run.metrics.get("importance") or {}
    return plots_explain.ImportanceView(
        metric=metric_name(found.get("metric", "")),
        columns=found.get("columns") or {},
        num_rows=found.get("num_rows", 0),
        num_repeats=found.get("num_repeats", 0),
        error_by_top_column=found.get("error_by_top_column") or {},
        dependence=run.explanation.get("dependence") or {},
        is_class=run.schema.target.task != "regression",
    )


def build_table_view(run: Run) -> plots_run.TableView:
    """Missing values, classes and target values for the pictures of the data."""
    num_rows = max(run.schema.num_rows, 1)
    is_one_number = run.schema.target.task == "regression" and not run.schema.target.columns
    frames = {"val": run.val, "test": run.test} if is_one_number else {}
    return plots_run.TableView(
        target=run.schema.target.name,
        missing={column.name: column.num_missing / num_rows for column in run.schema.columns},
        class_counts=run.data.get("class_counts") or {},
        target_values={split: frame["target"].to_numpy(float) for split, frame in frames.items() if len(frame)},
    )


def build_history(run: Run) -> plots_run.History:
    """The training log by split; where a resumed run logged a step twice, the later line counts."""
    log = run.history
    frames = {}
    for split in ("train", "val"):
        frame = log[log["split"] == split].dropna(axis="columns", how="all") if "split" in log else pd.DataFrame()
        frames[split] = frame.drop_duplicates("step", keep="last").sort_values("step") if "step" in frame else frame
    best_step = (run.metrics.get("selection") or {}).get("step")
    return plots_run.History(selection_metric=selection_metric(run), best_step=best_step, **frames)


def build_timeline_view(run: Run) -> plots_run.TimelineView:
    """The newest attempts as bars; pauses are cut out of the time, since a night would hide everything else."""
    timeline = run.timeline
    shown = timeline.attempts[-MOST_BARS:]
    pauses = [span for span in timeline.spans if span.part == "paused"]
    first_s = min((span.from_s for span in timeline.spans), default=0.0)

    def place(moment_s: float) -> float:
        return moment_s - first_s - sum(max(0.0, min(moment_s, span.to_s) - span.from_s) for span in pauses)

    merged: dict[int, list[tuple[str, float, float]]] = {attempt.number: [] for attempt in shown}
    for span in timeline.spans:
        if span.part != "paused" and span.attempt in merged:
            _merge(merged[span.attempt], span, place)
    bars = []
    for attempt in shown:
        spans = merged[attempt.number]
        low, high = (spans[0][1], spans[-1][2]) if spans else (0.0, 0.0)
        ticks = [min(max(place(moment_s), low), high) for moment_s in attempt.checkpoints_s]
        name = f"{attempt.number} {attempt.kind.replace('_', ' ')}"
        bars.append(plots_run.AttemptBar(name=name, spans=spans, checkpoints_s=ticks))
    return plots_run.TimelineView(
        goodput=timeline.goodput,
        parts=timeline.parts,
        bars=bars,
        num_attempts=len(timeline.attempts),
        pauses=[(place(span.from_s), span.seconds) for span in pauses if span.attempt in merged],
    )


def _merge(spans: list[tuple[str, float, float]], span: Span, place: Callable[[float], float]) -> None:
    """Training is cut at every checkpoint; in the picture it is one piece."""
    from_s, to_s = place(span.from_s), place(span.to_s)
    if spans and spans[-1][0] == span.part:
        spans[-1] = (span.part, spans[-1][1], to_s)
    else:
        spans.append((span.part, from_s, to_s))
