"""The words and tables of the report: plain values for the template, nothing is drawn or written here."""

import datetime
import math
from collections.abc import Callable
from typing import Any

import yaml

from nn_train.metrics import LOWER_IS_BETTER
from nn_train.report_run import (
    MODEL_NAMES,
    NUM_HEADLINES,
    Run,
    build_leaderboard,
    find_best,
    metric_name,
    rank_metric,
    selection_metric,
    shown_metrics,
    state_rank,
)
from nn_train.report_table import MOST_TABLE_ROWS, Table, duration, number, share
from nn_train.sampling import describe_baseline_sample, describe_streamed
from nn_train.schema import SPLITS
from nn_train.step_times import describe_straggler, describe_window, tabulate
from nn_train.timeline import PARTS, USEFUL, Event, describe, describe_duration, is_number
from nn_train.verdict import describe_difference

MOST_ATTEMPTS = 100
MOST_TABLE_COLUMNS = 20
MOST_EVENTS = 50


def build_headlines(run: Run) -> list[dict[str, str]]:
    """The first main metrics that the test rows have, with what is better."""
    test = run.metrics.get("test") or {}
    names = [name for name in shown_metrics(run.schema.target) if test.get(name) is not None]
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
        "goodput": f"{run.timeline.goodput:.2f}" if run.timeline.attempts else None,
        "decision threshold": decision.get("threshold") if task == "binary" else None,
        "calibration": describe_calibration(decision) if task != "regression" else None,
    }
    return {name: number(value) for name, value in facts.items() if value is not None}


def describe_calibration(decision: dict[str, Any]) -> str | None:
    """How the probabilities were calibrated; None where that is not known."""
    kind = decision.get("calibration") or ("temperature" if decision.get("temperature") is not None else None)
    return (
        f"temperature {number(decision.get('temperature'))}"
        if kind == "temperature"
        else "none"
        if kind == "no"
        else kind
    )


def describe_odds(run: Run) -> str:
    """By how much the network is better or worse than the best baseline, and whether chance could have made it."""
    verdict = run.metrics.get("verdict")
    if not verdict or verdict["split"] != "test" or not verdict["network_is_better_by"]:
        return ""
    return f" {describe_difference(verdict)}"


def build_cost_table(run: Run) -> Table | None:
    """What each decision costs; None where no costs are set."""
    costs, classes = (run.metrics.get("decision") or {}).get("costs") or [], run.schema.target.classes
    if not costs:
        return None
    shown = slice(MOST_TABLE_COLUMNS)
    return Table(
        caption="Costs of the decisions: each row gets the class of the least expected cost",
        head=["true class", *(f"predicted {name}" for name in classes[shown])],
        rows=[[name, *map(number, row[shown])] for name, row in zip(classes[shown], costs, strict=False)],
        note=f"{len(classes) - MOST_TABLE_COLUMNS:,} more classes are in metrics.json."
        if len(classes) > MOST_TABLE_COLUMNS
        else "",
    )


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
        note=" ".join(["↑ higher is better, ↓ lower is better.", *describe_baseline_sample(run.metrics)]),
    )


def build_target_table(run: Run) -> Table | None:
    """The network and the baselines by each of several targets; None where there is one."""
    judged = (run.metrics.get("baseline_sample") or {}).get("network") or run.metrics  # on the baselines' rows
    of_models = {run.metrics.get("model") or "network": judged.get("targets") or {}}
    of_models |= {
        MODEL_NAMES.get(name, name): found.get("targets") or {}
        for name, found in (run.metrics.get("baselines") or {}).items()
    }
    shown = ("rmse", "mae", "r2")
    rows = [
        [target, model, *(number(found["test"].get(target, {}).get(name)) for name in shown)]
        for target in run.schema.target.columns[:MOST_TABLE_ROWS]
        for model, found in of_models.items()
        if found.get("test")
    ]
    if not rows:
        return None
    head = ["target", "model", *map(metric_name, shown)]
    return Table(caption="Each target in its own unit, on the test rows", head=head, rows=rows, num_text=2)


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
    head = ["column", "kind", "use", "example", "missing", "distinct", *(["drift val", "drift test"] if drift else [])]
    rows = []
    for column in run.schema.columns[:MOST_TABLE_ROWS]:
        use = "id" if column.is_id else "left out" if column.dropped else "feature"
        missing = share(column.num_missing, run.schema.num_rows) if column.num_missing else "0"
        cells = [column.name, column.kind, f"{use}: {column.dropped}" if column.dropped else use, column.example]
        moved = drift.get(column.name) or {}
        drifts = [number(moved.get(split)) for split in ("val", "test")] if drift else []
        rows.append([*cells, missing, f"{column.num_distinct:,}", *drifts])
    hidden = len(run.schema.columns) - MOST_TABLE_ROWS
    notes = [f"{hidden:,} more columns are in schema.json."] if hidden > 0 else []
    notes += ["Drift: how far the column's values are from the train rows'; 0 is none."] if drift else []
    return Table(caption="Columns of the table", head=head, rows=rows, num_text=4, note=" ".join(notes))


def build_metric_table(run: Run) -> Table | None:
    """Every metric on the validation and test rows."""
    val, test = run.metrics.get("val") or {}, run.metrics.get("test") or {}
    names = list(dict.fromkeys([*test, *val]))
    rows = [[metric_name(name), number(val.get(name)), number(test.get(name))] for name in names]
    by_costs = bool((run.metrics.get("decision") or {}).get("costs"))
    caption = "Every metric; weights and calibration were chosen on the validation rows, decisions by their costs"
    if not by_costs:
        caption = "Every metric; weights, calibration and threshold were chosen on the validation rows"
    if run.schema.target.columns:
        caption = "Every metric, the mean of the targets'; weights were chosen on the validation rows"
    note = " ".join(describe_streamed(run.metrics, metric_name))
    return Table(caption=caption, head=["metric", "validation", "test"], rows=rows, note=note) if rows else None


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


def build_importance_table(run: Run) -> Table | None:
    """What the metric loses without each column, and the spread over the shuffles; None where it was not measured."""
    found = run.metrics.get("importance") or {}
    columns = found.get("columns") or {}
    if not columns:
        return None
    rows = [[name, number(value["mean"]), number(value["std"])] for name, value in columns.items()]
    hidden = len(rows) - MOST_TABLE_ROWS
    return Table(
        caption=f"How much worse the {metric_name(found.get('metric', ''))} is when a column is shuffled",
        head=["column", "mean", "deviation"],
        rows=rows[:MOST_TABLE_ROWS],
        note=f"{hidden:,} less important columns are in metrics.json." if hidden > 0 else "",
    )


def describe_importance(run: Run) -> str:
    """On which rows the columns were measured, and what that means; empty where they were not."""
    found = run.metrics.get("importance") or {}
    if not found.get("num_rows"):
        return ""
    return (
        f"Measured on {found['num_rows']:,} validation rows, each column shuffled {found.get('num_repeats', 0)} times. "
        "These rows also chose the weights, so the losses are no unbiased figures; no test row was looked at. Columns "
        "that tell the same share their importance. None of it was used to choose anything."
    )


def build_part_table(run: Run) -> Table:
    """What the wall time of the run went into."""
    timeline = run.timeline
    parts = {part: seconds for part, seconds in timeline.parts.items() if seconds >= 0.05}
    rows = []
    for part, seconds in parts.items():
        is_paused = part == "paused"
        shown = "–" if is_paused else share(seconds, timeline.active_s)
        rows.append([f"{PARTS[part]}{', not counted' if is_paused else ''}", describe_duration(seconds), shown])
    best = {(at, column) for at, part in enumerate(parts) for column in (1, 2) if part in USEFUL}
    return Table(
        caption="What the time went into until this page was written; bold is of use",
        head=["part", "time", "share"],
        rows=rows,
        best=frozenset(best),
    )


def build_attempt_table(run: Run) -> Table:
    """Every attempt: where and when it ran, how it ended, and what it brought."""
    attempts = run.timeline.attempts
    shown = attempts[-MOST_ATTEMPTS:]
    has_launcher = any(attempt.job or attempt.hosts for attempt in shown)
    rows = []
    for attempt in shown:
        hosts = ", ".join(attempt.hosts[:3]) + (f" +{len(attempt.hosts) - 3}" if len(attempt.hosts) > 3 else "")
        # the reason of a crash is a sentence, and stands among the events
        ended = attempt.kind.replace("_", " ") + (f": {attempt.reason}" if attempt.kind == "stopped" else "")
        cells = [str(attempt.number), ended, moment(attempt.began_s)]
        cells += [attempt.job or "–", hosts or "–"] if has_launcher else []
        rows.append([*cells, *map(number, (attempt.first_step, attempt.last_step, attempt.lost_steps))])
    head = ["attempt", "ended", "started (UTC)", *(["job", "hosts"] if has_launcher else [])]
    hidden = len(attempts) - len(shown)
    return Table(
        caption="Attempts: each start of the run",
        head=[*head, "from step", "to step", "lost steps"],
        rows=rows,
        num_text=len(head),
        note=f"The newest {len(shown)} of {len(attempts):,} attempts." if hidden else "",
    )


def moment(seconds: float) -> str:
    """Seconds since 1970 as a date and time of day, UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _words(event: Event, name: str) -> str:
    value = event.get(name)
    return ", ".join(map(str, value)) if isinstance(value, list) else "?" if value is None else str(value)


def _describe_hang(event: Event) -> str:
    rank, host, phase, step = (_words(event, name) for name in ("rank", "host", "phase", "step"))
    silent_s = event.get("silent_s")
    silent = describe_duration(silent_s) if is_number(silent_s) else "?"
    return f"process {rank} on {host} hung in phase {phase} at step {step}: no sign for {silent}"


# Events that a person should know of -> what to say of one.
NOTABLE: dict[str, Callable[[Event], str]] = {
    "checkpoint_failed": lambda e: f"the checkpoint of step {_words(e, 'step')} was not written: {_words(e, 'why')}",
    "skipped": lambda e: f"the update of step {_words(e, 'step')} was skipped: train rows {_words(e, 'rows')}, ...",
    "restored": lambda e: f"went back from step {_words(e, 'step')} to the checkpoint of step {_words(e, 'to')}",
    "hang": _describe_hang,
    "stop": lambda e: f"stopped at step {_words(e, 'step')}: {_words(e, 'reason')}",
    "failed": lambda e: f"failed at step {_words(e, 'step')}: {_words(e, 'why')}",
    "end": lambda e: (
        f"{_words(e, 'kind')}, step {_words(e, 'last_step')} is safe: {_words(e, 'reason')}; then {_words(e, 'action')}"
    ).replace("_", " "),
}


def build_events(run: Run) -> list[str]:
    """What happened that a person should know of, the newest; the first line says if there is more."""
    first_s = min((span.from_s for span in run.timeline.spans), default=0.0)
    ended = {e["attempt"] for e in run.events if e["event"] == "end"}  # the launcher's word says more than `stop`
    notable = [
        e
        for e in run.events
        if e["event"] in NOTABLE and not (e.get("kind") == "done" or (e["event"] == "stop" and e["attempt"] in ended))
    ]
    lines = [
        f"{describe_duration(max(0.0, e['time'] - first_s))}, attempt {e['attempt']}: {NOTABLE[e['event']](e)}"
        for e in notable[-MOST_EVENTS:]
    ]
    hidden = len(notable) - len(lines)
    return [*([f"{hidden:,} earlier events are in events.jsonl."] if hidden else []), *lines]


def build_timeline(run: Run) -> dict[str, Any] | None:
    """The section on where the time went; None where no event was written."""
    if not run.timeline.attempts:
        return None
    return {
        "lines": describe(run.timeline).splitlines(),
        "parts": build_part_table(run),
        "attempts": build_attempt_table(run),
        "events": build_events(run),
    }


def build_profile(run: Run) -> dict[str, Any] | None:
    """The section on what a step's time goes into; None where it was not measured, or the file holds something else."""
    try:
        head, rows = tabulate(run.profile)
        caption, straggler = describe_window(run.profile), describe_straggler(run.profile)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    columns = slice(None) if len(rows) > 1 else slice(2, None)  # one process needs no name
    table = Table(
        caption=caption,
        head=head[columns],
        rows=[row[columns] for row in rows],
        num_text=2 if len(rows) > 1 else 0,
        note="Communication is the exchange itself; waiting is the time until the slowest process is there.",
    )
    return {"table": table, "straggler": straggler}


def build_page(run: Run) -> dict[str, Any]:
    """Everything that the template shows, save the pictures."""
    _, rows = build_leaderboard(run)
    command = run.environment.get("command") or ""
    return {
        "run": run,
        "target": run.schema.target,
        "headlines": build_headlines(run),
        "rank": state_rank(rank_metric(run), rows) + describe_odds(run),
        "facts": build_facts(run),
        "leaderboard": build_leaderboard_table(run),
        "splits": build_split_table(run),
        "columns": build_schema_table(run),
        "metrics": build_metric_table(run),
        "targets": build_target_table(run),
        "costs": build_cost_table(run),
        "timeline": build_timeline(run),
        "profile": build_profile(run),
        "importance": build_importance_table(run),
        "importance_words": describe_importance(run),
        "reproduction": build_reproduction(run),
        "command": command if isinstance(command, str) else " ".join(map(str, command)),
        "warnings": [*(run.data.get("warnings") or []), *(run.metrics.get("warnings") or [])],
    }
