"""The page of a comparison, and its pictures."""

import itertools
from collections.abc import Sequence

import numpy as np

from nn_train import plots_compare
from nn_train.compare_run import FinishedRun
from nn_train.compare_tables import Tables, find_differences
from nn_train.comparison import ALPHA, Comparison
from nn_train.metrics import LOWER_IS_BETTER
from nn_train.report import Picture, open_templates, render_picture
from nn_train.report_run import metric_name
from nn_train.resampling import LEVEL

DPI = 110
# Settings that say what the validation loss is.
LOSS_KEYS = ("train.loss", "train.focal_gamma", "train.huber_delta")


def draw_curves(runs: Sequence[FinishedRun]) -> list[Picture]:
    """The validation loss and the metrics that chose weights, by step and by time; one that is the loss is left out."""
    names = dict.fromkeys(("loss", *(run.selection for run in runs if not _is_loss(run, run.selection))))
    pictures = []
    for name, in_time in itertools.product(names, (False, True)):
        plot = plots_compare.curves_over_each_other(
            [_curve_of(run, name, in_time=in_time) for run in runs],
            what=f"validation {metric_name(name)}",
            lower_is_better=name == "loss" or name in LOWER_IS_BETTER,
            in_time=in_time,
            hint=_hint_of_loss(runs) if name == "loss" else "",
        )
        if plot is not None:
            pictures.append(render_picture("curves", f"{name}_by_{'time' if in_time else 'step'}", plot, DPI))
    return pictures


def _curve_of(run: FinishedRun, name: str, *, in_time: bool) -> plots_compare.RunCurve:
    curve = run.curves.get(name)
    if curve is None:
        return plots_compare.RunCurve(name=run.name, x=np.empty(0), y=np.empty(0), kept=None, kept_step=None)
    step = run.metrics.selection.step if run.metrics.selection else None
    [*places] = np.flatnonzero(curve.steps == step)
    x = curve.seconds if in_time else curve.steps
    return plots_compare.RunCurve(
        name=run.name, x=x, y=curve.values, kept=int(places[0]) if places else None, kept_step=step
    )


def _is_loss(run: FinishedRun, metric: str) -> bool:
    """Is the metric the validation loss under another name, as log-loss is by default?"""
    loss, chosen = run.curves.get("loss"), run.curves.get(metric)
    if loss is None or chosen is None or len(loss.values) != len(chosen.values):
        return False
    return np.allclose(loss.values, chosen.values, rtol=1e-4)


def _hint_of_loss(runs: Sequence[FinishedRun]) -> str:
    differing = find_differences(runs)
    if any(key in LOSS_KEYS for key in differing):
        return "The runs' losses are not of one kind, so that their heights do not compare."
    if any(key.startswith("split.") for key in differing) or len({run.judged.fingerprint for run in runs}) > 1:
        return "The validation rows are not the same."
    return ""


def describe_method(comparison: Comparison, *, samples: int, seed: int) -> list[str]:
    """How the numbers came about, for the page."""
    largest = max(comparison.samples, key=lambda sample: sample.num_rows)
    drawn, rows = largest.num_drawn, largest.num_rows
    fewer = (
        f" Of the {rows:,} test rows {drawn:,} were chosen at random and resampled, and the spread was shrunk by the "
        "square root of their share (Bickel, Götze and van Zwet 1997); the values themselves are of all rows."
    )
    return [
        f"Intervals: {samples:,} bootstrap samples of the test rows (seed {seed}), and the middle {100 * LEVEL:g} % of "
        f"each metric's values over them (Efron and Tibshirani 1993).{fewer if drawn < rows else ''}",
        "Differences: both runs on the same samples of the rows that they have in common, matched by row number. The "
        "p-value is twice the share of samples on the far side of zero, with one more counted there (Davison and "
        "Hinkley 1997, ch. 4).",
        "Accuracy: McNemar's exact test of the rows that one run alone gets right (McNemar 1947; Dietterich 1998).",
        "Losses: a paired t-test of the loss of each row, since its mean is the metric (Student 1908; Diebold and "
        "Mariano 1995). Signed ranks would ask for the median of differences that lie symmetrically.",
        "Where several runs are tested, the p-values of each metric are also corrected over the runs (Holm 1979), and "
        f"a difference counts as shown where that p-value is below {ALPHA:g}. They are not corrected over the metrics.",
        "The networks are taken as they are. What another seed, or other train rows, would have changed is not in "
        "these numbers: for that, train each setting with several values of run.seed.",
    ]


def render_comparison(
    runs: Sequence[FinishedRun], comparison: Comparison, tables: Tables, *, samples: int, seed: int
) -> str:
    """The page as HTML text; everything that comes from the runs is escaped."""
    names = [run.name for run in runs]
    template = open_templates().get_template("compare_template.html")
    return template.render(
        task=runs[0].metrics.task,
        target=runs[0].config.data.target_name,
        classes=runs[0].judged.classes,
        title=" · ".join(names) if len(names) <= 3 else f"{len(names)} runs",
        names=names,
        baseline=names[comparison.baseline],
        tables=tables,
        pictures=draw_curves(runs),
        method=describe_method(comparison, samples=samples, seed=seed),
    )
