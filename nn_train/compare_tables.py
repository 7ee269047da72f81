"""The tables and sentences of a comparison, for the page and the terminal; every table has one column per run."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nn_train.compare_run import FinishedRun
from nn_train.comparison import Comparison, Difference, Pair, PairedTest, read_difference
from nn_train.metrics import LOWER_IS_BETTER
from nn_train.report_run import FALLBACK_METRIC, MAIN_METRICS, metric_name
from nn_train.report_table import duration, number
from nn_train.resampling import MOST_RANKED_CLASSES, interval

MOST_ROWS = 500
TEST_NAMES = {
    "accuracy": "accuracy: McNemar, exact",
    "log_loss": "log-loss: paired t",
    "squared error": "squared error: paired t",
    "absolute error": "absolute error: paired t",
}
# Where a run lies and what it is called: never a difference.
UNSHOWN = ("run.name", "run.dir", "data.cache_dir")
# What does not touch the weights that are judged.
WITHOUT_EFFECT = (
    "tracking.",
    "report.",
    "watchdog.",
    "checkpoint.",
    "train.check_every_steps",
    "train.eval_batch_size",
)
PATHS = ("data.path", "split.val_path", "split.test_path")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """What stands in a table: a value, smaller lines below it, and whether it is the best of its row."""

    text: str
    lines: tuple[str, ...] = ()
    is_best: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table: its name, a remark on it, and a cell per run; muted where it is of little meaning."""

    name: str
    cells: list[Cell]
    remark: str = ""
    is_muted: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """A table with a column per run."""

    title: str
    lines: list[Line]
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tables:
    """The comparison in tables and sentences; `remarks` say on which rows the runs were paired."""

    runs: Grid
    settings: Grid
    metrics: Grid
    differences: Grid
    tests: Grid
    verdicts: list[str]
    remarks: list[str]


def build_tables(runs: Sequence[FinishedRun], comparison: Comparison) -> Tables:
    """Everything that a comparison says in words."""
    return Tables(
        runs=build_run_grid(runs),
        settings=build_settings_grid(runs),
        metrics=build_metric_grid(runs, comparison),
        differences=build_difference_grid(runs, comparison),
        tests=build_test_grid(runs, comparison),
        verdicts=build_verdicts(runs, comparison),
        remarks=[note for pair in comparison.pairs if pair for note in pair.notes],
    )


def build_run_grid(runs: Sequence[FinishedRun]) -> Grid:
    """What each run is; a fact that no run has is left out."""

    def kept(run: FinishedRun) -> str | None:
        steps = "" if run.num_steps is None else f" of {number(run.num_steps)}"
        return None if run.metrics.selection is None else f"{number(run.metrics.selection.step)}{steps}"

    facts: dict[str, Callable[[FinishedRun], Any]] = {
        "folder": lambda run: run.folder,
        "model": lambda run: run.metrics.model or None,
        "parameters": lambda run: run.metrics.num_parameters,
        "test rows": lambda run: len(run.judged.numbers),
        "kept step": kept,
        "training time": lambda run: None if run.metrics.seconds.train is None else duration(run.metrics.seconds.train),
        "processes": lambda run: run.metrics.processes,
        "device": lambda run: run.device or None,
        "commit": lambda run: run.commit or None,
    }
    lines = [Line(name=name, cells=[Cell(text=number(fact(run))) for run in runs]) for name, fact in facts.items()]
    return Grid(title="The runs", lines=[line for line in lines if any(cell.text != "–" for cell in line.cells)])


def find_differences(runs: Sequence[FinishedRun]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs: key -> each run's value as text."""
    keys = {key: None for run in runs for key in run.settings if key not in UNSHOWN}
    shown = {key: [_show(run.settings[key]) if key in run.settings else "–" for run in runs] for key in keys}
    return {key: values for key, values in shown.items() if len(set(values)) > 1}


def _show(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def build_settings_grid(runs: Sequence[FinishedRun]) -> Grid:
    """The settings that are not the same in all runs; those without an effect come last, muted."""
    tables = [run.judged.fingerprint for run in runs]
    free = (*WITHOUT_EFFECT, *PATHS) if len(set(tables)) == 1 and all(tables) else WITHOUT_EFFECT
    lines = [
        Line(name=key, cells=[Cell(text=value) for value in values], is_muted=key.startswith(free))
        for key, values in find_differences(runs).items()
    ]
    if len(set(tables)) > 1:
        lines.insert(0, Line(name="content of the table", cells=[Cell(text=name[:12] or "–") for name in tables]))
    lines.sort(key=lambda line: line.is_muted)
    hidden = len(lines) - MOST_ROWS
    notes = [f"{hidden:,} more differ."] if hidden > 0 else []
    notes += ["All other settings are the same. The runs' names and folders are left out."]
    notes += ["Grey: without an effect on the weights."] if any(line.is_muted for line in lines) else []
    return Grid(title="Settings that differ", lines=lines[:MOST_ROWS], notes=notes)


def build_metric_grid(runs: Sequence[FinishedRun], comparison: Comparison) -> Grid:
    """Every main metric of the test rows with its interval; the best of a row is marked where the rows are the same."""
    lines = []
    for name in _metric_names(runs):
        values = [samples.estimates.get(name, np.nan) for samples in comparison.samples]
        known = [value for value in values if np.isfinite(value)]
        if not known:
            continue
        best = (min if name in LOWER_IS_BETTER else max)(known)
        is_marked = comparison.has_same_rows and len(known) > 1
        cells = [
            Cell(
                text=number(value if np.isfinite(value) else None),
                lines=(_span(interval(samples.values[name])),) if name in samples.values else (),
                is_best=is_marked and value == best,
            )
            for value, samples in zip(values, comparison.samples, strict=True)
        ]
        lines.append(Line(name=metric_name(name), cells=cells, remark=_direction(name)))
    notes = ["Below each value is its 95 % interval: what other test rows of the same kind would have given."]
    if not comparison.has_same_rows:
        notes.append("The runs were not judged on the same test rows, so that no value is marked as the best.")
    if len(runs[0].judged.classes) > MOST_RANKED_CLASSES:
        notes.append(f"ROC AUC is left out for more than {MOST_RANKED_CLASSES} classes.")
    return Grid(title="Metrics of the test rows", lines=lines, notes=notes)


def _metric_names(runs: Sequence[FinishedRun]) -> list[str]:
    task = runs[0].metrics.task
    return list(dict.fromkeys((decisive_metric(runs), *MAIN_METRICS[task])))


def decisive_metric(runs: Sequence[FinishedRun]) -> str:
    """The metric that chose the weights of all runs, or else the task's own."""
    task, chosen = runs[0].metrics.task, {run.selection for run in runs}
    [only, *others] = chosen
    return only if not others and only in MAIN_METRICS[task] else FALLBACK_METRIC[task]


def _direction(metric: str) -> str:
    return "↓ lower is better" if metric in LOWER_IS_BETTER else "↑ higher is better"


def _span(bounds: tuple[float, float] | None) -> str:
    return "not defined" if bounds is None else f"{number(bounds[0])} to {number(bounds[1])}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _signed_span(bounds: tuple[float, float] | None) -> str:
    return "not defined" if bounds is None else f"{_signed(bounds[0])} to {_signed(bounds[1])}"


def show_p(p: float) -> str:
    """A p-value as it is written."""
    return "p –" if np.isnan(p) else "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _show_ps(result: Difference | PairedTest, is_corrected: bool) -> str:
    return show_p(result.p) + (f", Holm {show_p(result.holm).removeprefix('p ')}" if is_corrected else "")


def _is_corrected(comparison: Comparison) -> bool:
    return sum(pair is not None and pair.num_rows > 0 for pair in comparison.pairs) > 1


def build_difference_grid(runs: Sequence[FinishedRun], comparison: Comparison) -> Grid:
    """Every main metric minus the baseline's on the same rows, by a paired bootstrap."""
    is_corrected = _is_corrected(comparison)

    def cell(pair: Pair | None, name: str) -> Cell:
        if pair is None:
            return Cell(text="baseline")
        found = pair.differences.get(name)
        if found is None or not np.isfinite(found.value):
            return Cell(text="–")
        reading = "–" if np.isnan(found.holm) else read_difference(name, found)
        return Cell(
            text=_signed(found.value), lines=(_signed_span(found.interval), _show_ps(found, is_corrected), reading)
        )

    names = [
        name for name in _metric_names(runs) if any(pair and name in pair.differences for pair in comparison.pairs)
    ]
    lines = [
        Line(name=metric_name(n), cells=[cell(pair, n) for pair in comparison.pairs], remark=_direction(n))
        for n in names
    ]
    base = runs[comparison.baseline].name
    return Grid(title=f"Difference to {base} on the same test rows", lines=lines)


def build_test_grid(runs: Sequence[FinishedRun], comparison: Comparison) -> Grid:
    """The classical tests of the same rows."""
    is_corrected = _is_corrected(comparison)

    def cell(pair: Pair | None, name: str) -> Cell:
        if pair is None:
            return Cell(text="baseline")
        found = pair.tests.get(name)
        return Cell(text="–") if found is None else Cell(text=_show_ps(found, is_corrected), lines=(found.words,))

    names = {name: None for pair in comparison.pairs if pair for name in pair.tests}
    lines = [Line(name=TEST_NAMES[name], cells=[cell(pair, name) for pair in comparison.pairs]) for name in names]
    return Grid(title=f"Classical tests against {runs[comparison.baseline].name}", lines=lines)


def build_verdicts(runs: Sequence[FinishedRun], comparison: Comparison) -> list[str]:
    """A sentence for each run that was tested against the baseline, by the metric that decides."""
    metric, base = decisive_metric(runs), runs[comparison.baseline].name
    words = {
        "better": "{} is better than {} on these rows",
        "worse": "{} is worse than {} on these rows",
        "no difference shown": "no difference between {} and {} could be shown",
    }
    verdicts = []
    for run, pair in zip(runs, comparison.pairs, strict=True):
        found = pair.differences.get(metric) if pair else None
        if pair is None or found is None or np.isnan(found.holm):
            continue
        said = words[read_difference(metric, found)].format(run.name, base)
        side = (
            "the same" if found.value == 0 else f"{number(abs(found.value))} {'lower' if found.value < 0 else 'higher'}"
        )
        verdicts.append(
            f"By {metric_name(metric)}, {said}: it is {side} on {pair.num_rows:,} rows "
            f"(95 % interval {_signed_span(found.interval)}; {_show_ps(found, _is_corrected(comparison))})."
        )
    return verdicts
