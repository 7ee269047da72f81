"""The words and tables of the report: plain values for the template, nothing is drawn or written here."""

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import yaml

from nn_train.report_run import (
    LOWER_IS_BETTER,
    MAIN_METRICS,
    NUM_HEADLINES,
    Run,
    build_leaderboard,
    find_best,
    metric_name,
    selection_metric,
    state_rank,
)
from nn_train.schema import SPLITS

NUM_WORST_ROWS = 50
# A page with more rows than this in one table is slow to open on a phone.
MOST_TABLE_ROWS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Head and body of a table; cells are text, `best` and `own` mark cells and rows; `note` says what is not shown."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    own: int = -1
    num_text: int = 1
    note: str = ""


def number(value: Any) -> str:
    """A number for a person: whole ones with commas, others to four digits that count, nothing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if float(value).is_integer() and (isinstance(value, int | np.integer) or abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{seconds / 60:.1f} min"


def build_headlines(run: Run) -> list[dict[str, str]]:
    """The first main metrics that the test rows have, with what is better."""
    test = run.metrics.get("test") or {}
    names = [name for name in MAIN_METRICS[run.schema.target.task] if test.get(name) is not None]
    direction = {True: "lower is better", False: "higher is better"}
    return [
        {"name": metric_name(name), "value": number(test[name]), "hint": direction[name in LOWER_IS_BETTER]}
        for name in names[:NUM_HEADLINES]
    ]


def build_facts(run: Run) -> dict[str, str]:
    """Short facts of the run, in the order of reading; what is not known is left out."""
    seconds, selection = run.metrics.get("seconds") or {}, run.metrics.get("selection") or {}
    decision, task = run.metrics.get("decision") or {}, run.schema.target.task
    facts = {
        "rows": number(run.schema.num_rows),
        "features": number(len(run.schema.features)),
        "classes": number(len(run.schema.target.classes)) if run.schema.target.task == "multiclass" else None,
        "model": run.metrics.get("model"),
        "parameters": run.metrics.get("num_parameters"),
        "best step": selection.get("step"),
        "last step": run.status.get("step"),
        "training time": duration(seconds["train"]) if seconds.get("train") is not None else None,
        "processes": run.metrics.get("processes") or run.environment.get("processes"),
        "device": run.environment.get("device"),
        "decision threshold": decision.get("threshold") if task == "binary" else None,
        "temperature": decision.get("temperature") if task != "regression" else None,
    }
    return {name: number(value) for name, value in facts.items() if value is not None}


def build_leaderboard_table(run: Run) -> Table | None:
    """Every model with its main test metrics and seconds; None where nothing was measured."""
    names, rows = build_leaderboard(run)
    if not names:
        return None
    metric = selection_metric(run)
    sign = 1 if metric in LOWER_IS_BETTER else -1

    def place(row: dict[str, Any]) -> float:
        value = row["values"].get(metric)
        return math.inf if value is None else sign * value

    rows = sorted(rows, key=place)
    best = {
        (at, column)
        for column, name in enumerate(names, start=1)
        for at, row in enumerate(rows)
        if row["values"].get(name) is not None and row["values"][name] == find_best(name, rows)
    }
    return Table(
        caption=f"Test rows, sorted by {metric_name(metric)}; the best value of a column is bold",
        head=[
            "model",
            *(f"{metric_name(name)} {'↓' if name in LOWER_IS_BETTER else '↑'}" for name in names),
            "seconds",
        ],
        rows=[
            [row["name"], *(number(row["values"].get(name)) for name in names), number(row["seconds"])] for row in rows
        ],
        best=frozenset(best),
        own=next(at for at, row in enumerate(rows) if row["is_network"]),
        note="↑ higher is better, ↓ lower is better.",
    )


def build_split_table(run: Run) -> Table | None:
    """Rows of each split, and of each class in it."""
    sizes = run.metrics.get("rows") or {}
    counts = run.data.get("class_counts") or {}
    sizes = sizes or {split: sum(of_class.values()) for split, of_class in counts.items()}
    splits = [split for split in SPLITS if split in sizes]
    if not splits:
        return None
    whole = sum(sizes[split] for split in splits)
    rows = [["all rows", *(f"{sizes[split]:,} ({share(sizes[split], whole)})" for split in splits)]]
    classes = sorted({name for of_class in counts.values() for name in of_class})
    classes.sort(key=lambda name: -sum(of_class.get(name, 0) for of_class in counts.values()))
    for name in classes[:MOST_TABLE_ROWS]:
        parts = [(counts.get(split, {}).get(name, 0), sizes[split]) for split in splits]
        rows.append([name, *(f"{part:,} ({share(part, of)})" for part, of in parts)])
    hidden = len(classes) - MOST_TABLE_ROWS
    note = f"{hidden:,} rarer classes are not shown." if hidden > 0 else ""
    return Table(caption="Rows of each split, and their share", head=["", *splits], rows=rows, note=note)


def build_schema_table(run: Run) -> Table:
    """Every column: kind, missing share, distinct values, drift, and why it is left out."""
    drift = run.data.get("drift") or {}
    head = ["column", "kind", "use", "missing", "distinct", "example", *(["drift val", "drift test"] if drift else [])]
    rows = []
    for column in run.schema.columns[:MOST_TABLE_ROWS]:
        use = "id" if column.is_id else "left out" if column.dropped else "feature"
        missing = share(column.num_missing, run.schema.num_rows) if column.num_missing else "0"
        cells = [column.name, column.kind, f"{use}: {column.dropped}" if column.dropped else use, missing]
        moved = drift.get(column.name) or {}
        drifts = [number(moved.get(split)) for split in ("val", "test")] if drift else []
        rows.append([*cells, f"{column.num_distinct:,}", column.example, *drifts])
    hidden = len(run.schema.columns) - MOST_TABLE_ROWS
    notes = [f"{hidden:,} more columns are in schema.json."] if hidden > 0 else []
    notes += ["Drift: how far the column's values are from the train rows'; 0 is none."] if drift else []
    return Table(caption="Columns of the table", head=head, rows=rows, num_text=3, note=" ".join(notes))


def build_metric_table(run: Run) -> Table | None:
    """Every metric on the validation and test rows."""
    val, test = run.metrics.get("val") or {}, run.metrics.get("test") or {}
    names = list(dict.fromkeys([*test, *val]))
    rows = [[metric_name(name), number(val.get(name)), number(test.get(name))] for name in names]
    caption = "Every metric; weights, temperature and threshold were chosen on the validation rows"
    return Table(caption=caption, head=["metric", "validation", "test"], rows=rows) if rows else None


def build_worst_table(run: Run) -> Table | None:
    """The test rows with the least probable true class, or the largest residual."""
    test, target = run.test, run.schema.target
    if not len(test):
        return None
    if target.task == "regression":
        extra = {"residual": test["target"] - test["prediction"]}
        badness = extra["residual"].abs().to_numpy(float)
    else:
        p = test[[f"p_{name}" for name in target.classes]].to_numpy(float)
        places = pd.Index(target.classes)
        own, said = (places.get_indexer(pd.Index(test[name].astype(str))) for name in ("target", "prediction"))
        if min(own.min(), said.min()) < 0:
            raise ValueError("predictions.parquet holds a class that schema.json does not know")
        at = np.arange(len(test))
        extra = {"p of the true class": pd.Series(p[at, own]), "p of the prediction": pd.Series(p[at, said])}
        badness = -p[at, own]
    worst = np.argsort(-badness, kind="stable")[:NUM_WORST_ROWS]
    ids = [name for name in run.schema.id_columns if name in test]
    columns = {name: test[name] for name in ("row", *ids, "target", "prediction")} | extra
    rows = [[_cell(values.iloc[at]) for values in columns.values()] for at in worst]
    caption = f"The {len(rows)} test rows that the network is most wrong about"
    head = ["row", *ids, f"target: {target.name}", "prediction", *extra]
    return Table(caption=caption, head=head, rows=rows, num_text=0, note="Row: place in the input table, from 0.")


def _cell(value: Any) -> str:
    return f"{int(value)}" if isinstance(value, int | np.integer) else number(value)


def build_reproduction(run: Run) -> dict[str, str]:
    """What another person needs for the same run; what is not known is left out."""
    environment = run.environment
    try:
        config = yaml.safe_load(run.config_text) or {}
        seeds = {f"{name}.seed": (config.get(name) or {}).get("seed") for name in ("run", "split")}
    except (yaml.YAMLError, AttributeError):
        seeds = {}
    commit = environment.get("commit")
    facts = seeds | {
        "commit": f"{commit}{' and uncommitted changes' if environment.get('dirty') else ''}" if commit else None,
        "data fingerprint": run.data.get("fingerprint"),
        "started": environment.get("started"),
        "python": environment.get("python"),
        "platform": environment.get("platform"),
        "device": environment.get("device"),
        "processes": environment.get("processes"),
        "packages": ", ".join(f"{name} {version}" for name, version in (environment.get("packages") or {}).items()),
    }
    return {name: str(value) for name, value in facts.items() if value not in (None, "")}


def build_page(run: Run) -> dict[str, Any]:
    """Everything that the template shows, save the pictures."""
    _, rows = build_leaderboard(run)
    command = run.environment.get("command") or ""
    return {
        "run": run,
        "target": run.schema.target,
        "headlines": build_headlines(run),
        "rank": state_rank(selection_metric(run), rows),
        "facts": build_facts(run),
        "leaderboard": build_leaderboard_table(run),
        "splits": build_split_table(run),
        "columns": build_schema_table(run),
        "metrics": build_metric_table(run),
        "reproduction": build_reproduction(run),
        "command": command if isinstance(command, str) else " ".join(map(str, command)),
        "warnings": run.data.get("warnings") or [],
    }
