"""Pictures of what the network looks at: the worth of columns, the prediction along them, what moved single rows.

Each function returns None where there is nothing to show.
"""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nn_train.plots import (
    BLUE,
    CYCLE,
    INK,
    MUTED,
    ORANGE,
    SIZE,
    Plot,
    build_figure,
    label,
    name_bars,
    percent,
    show_percent,
)

MOST_COLUMNS = 20
NUM_DEPENDENCES = 6
NUM_ATTRIBUTIONS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceView:
    """What was measured of the columns on validation rows.

    `columns`: column -> mean and deviation of what the metric loses without it, over `num_repeats` shuffles.
    `dependence` is that part of explain.json; with `is_class`, probabilities are predicted.
    """

    metric: str
    columns: dict[str, dict[str, float]]
    num_rows: int
    num_repeats: int
    error_by_top_column: dict[str, Any]
    dependence: dict[str, Any]
    is_class: bool


def permutation_importance(view: ImportanceView) -> Plot | None:
    """What the metric loses when one column is shuffled, the 20 most important columns."""
    shown = list(view.columns.items())[:MOST_COLUMNS]
    if not shown:
        return None
    title = f"The network leans most on '{label(shown[0][0])}'"
    figure, (axes,) = build_figure(title, size=(SIZE[0], max(2.2, 0.28 * len(shown) + 1.3)))
    axes.barh(
        range(len(shown)),
        [value["mean"] for _, value in shown],
        xerr=[value["std"] for _, value in shown],
        color=BLUE,
        ecolor=INK,
        height=0.65,
    )
    name_bars(axes, [name for name, _ in shown])
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set(xlabel=f"worsening of {view.metric} when the column is shuffled")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    numbers = ", ".join(f"{name} {value['mean']:.4g}" for name, value in shown)
    hint = f"The line is one deviation over {view.num_repeats} shuffles. At most {MOST_COLUMNS} columns."
    return Plot(figure=figure, title=title, numbers=f"{numbers}.", hint=hint)


def error_by_top_column(view: ImportanceView) -> Plot | None:
    """Mean absolute error along the most important column, of a regression."""
    found = view.error_by_top_column
    if not found:
        return None
    errors, labels = found["mean_absolute_error"], found["labels"]
    worst = int(np.argmax(errors))
    title = f"By '{label(found['column'])}' the error is largest at {label(labels[worst])}"
    figure, (axes,) = build_figure(title, size=(SIZE[0], max(2.2, 0.28 * len(labels) + 1.3)))
    axes.barh(range(len(errors)), errors, color=BLUE, height=0.7)
    name_bars(axes, [f"{name} ({rows:,})" for name, rows in zip(labels, found["rows"], strict=True)])
    axes.set(xlabel="mean absolute error")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    numbers = ", ".join(f"{name}: {error:.4g}" for name, error in zip(labels, errors, strict=True))
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="The number of validation rows is in brackets.",
        table={found["column"]: labels, "mean absolute error": errors, "rows": found["rows"]},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """The prediction along a column, G values x K outputs: the mean over the rows and the ends of their middle."""

    labels: list[str]
    x: list[float | None]
    outputs: list[str]
    mean_KG: np.ndarray
    low_KG: np.ndarray
    high_KG: np.ndarray


def partial_dependence(view: ImportanceView, place: int) -> Plot | None:
    """Mean prediction, and the spread of the single rows' ones, along one of the most important columns."""
    columns = view.dependence.get("columns") or []
    if place >= len(columns):
        return None
    found, (low, high), num_rows = columns[place], view.dependence["spread"], view.dependence["num_rows"]
    curves = Curves(
        labels=found["labels"],
        x=found["x"],
        outputs=view.dependence["outputs"],
        **{f"{name}_KG": np.array(found[name], dtype=float) for name in ("mean", "low", "high")},
    )
    what = [f"p of '{label(name, 16)}'" if view.is_class else f"predicted {label(name)}" for name in curves.outputs]
    first = curves.mean_KG[0]
    least, most = (percent(v) if view.is_class else f"{v:.4g}" for v in (first.min(), first.max()))
    title = f"Along '{label(found['column'])}', mean {what[0]} is {least} to {most}"
    is_line = any(x is not None for x in curves.x)
    height = SIZE[1] if is_line else max(2.2, (0.2 + 0.12 * len(what)) * len(curves.labels) + 1.4)
    figure, (axes,) = build_figure(title, size=(SIZE[0], height))
    (_draw_along_axis if is_line else _draw_levels)(axes, curves, what)
    ylabel = what[0] if len(what) == 1 else "probability"
    axes.set(**({"xlabel": label(found["column"], 40), "ylabel": ylabel} if is_line else {"xlabel": ylabel}))
    if view.is_class:
        show_percent(axes, "y" if is_line else "x")
    if len(what) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    table: dict[str, Any] = {found["column"]: curves.labels}
    whole = [f"p of '{name}'" if view.is_class else f"predicted {name}" for name in curves.outputs]
    for at, name in enumerate(whole):
        table |= {f"mean {name}": curves.mean_KG[at]}
        table |= {f"{name}, {100 * low:.0f} % of rows below": curves.low_KG[at]}
        table |= {f"{name}, {100 * high:.0f} % of rows below": curves.high_KG[at]}
    lowest, highest = curves.labels[int(first.argmin())], curves.labels[int(first.argmax())]
    return Plot(
        figure=figure,
        title=title,
        numbers=f"Mean {what[0]}: {least} at {lowest}, {most} at {highest}.",
        hint=f"Mean over {num_rows:,} validation rows, and the middle {100 * (high - low):.0f} % of them.",
        table=table,
    )


def _draw_along_axis(axes: Axes, curves: Curves, what: list[str]) -> None:
    """Lines over the values of a number or date; rows without one stand at the right."""
    at = [place for place, x in enumerate(curves.x) if x is not None]
    without = [place for place, x in enumerate(curves.x) if x is None]
    x = np.array([curves.x[place] for place in at], dtype=float)
    span = float(np.ptp(x)) or 1.0
    for output, (name, colour) in enumerate(zip(what, CYCLE, strict=False)):
        low, mean, high = (values[output] for values in (curves.low_KG, curves.mean_KG, curves.high_KG))
        axes.fill_between(x, low[at], high[at], color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, mean[at], color=colour, linewidth=2, marker="o", markersize=4, label=name)
        for place in without:
            side = x[-1] + (0.1 + 0.03 * output) * span
            axes.vlines(side, low[place], high[place], color=colour, alpha=0.35, linewidth=5)
            axes.plot(side, mean[place], "D", color=colour, markersize=6)
    for place in without:
        middle, top = x[-1] + (0.1 + 0.015 * (len(what) - 1)) * span, curves.high_KG[:, place].max()
        axes.annotate(
            label(curves.labels[place], 14),
            (middle, top),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    if not all(_is_number(curves.labels[place]) for place in at):  # dates
        shown = np.unique(np.linspace(0, len(at) - 1, min(len(at), 4)).round().astype(int))
        axes.set_xticks(x[shown], [label(curves.labels[at[place]], 14) for place in shown], fontsize=9)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _draw_levels(axes: Axes, curves: Curves, what: list[str]) -> None:
    """A dot for each level of a category, on the middle of the rows' predictions."""
    places = np.arange(len(curves.labels))
    offsets = np.linspace(-0.25, 0.25, len(what)) if len(what) > 1 else np.zeros(1)
    for output, (name, colour, offset) in enumerate(zip(what, CYCLE, offsets, strict=False)):
        low, mean, high = (values[output] for values in (curves.low_KG, curves.mean_KG, curves.high_KG))
        axes.hlines(places + offset, low, high, color=colour, alpha=0.3, linewidth=6)
        axes.plot(mean, places + offset, "o", color=colour, markersize=7, label=name)
    name_bars(axes, curves.labels)
    axes.xaxis.set_major_locator(MaxNLocator(5))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowView:
    """What moved the prediction of one test row: (column, value, part) by falling size, and all others together."""

    row: int
    verdict: str
    score: float
    base: float
    parts: list[tuple[str, str, float]]
    num_rest: int
    rest: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionView:
    """The most wrong test rows; `score` names what the parts add up to: log-odds with `is_class`."""

    rows: list[RowView]
    score: str
    is_class: bool


def attribution(view: AttributionView, place: int) -> Plot | None:
    """What each column adds to the score of one row."""
    if place >= len(view.rows):
        return None
    row = view.rows[place]
    bars = [(f"{label(column, 16)} = {label(value, 14)}", part) for column, value, part in row.parts]
    bars += [(f"{row.num_rest:,} other columns", row.rest)] if row.num_rest else []
    title = f"Row {row.row}: {label(row.verdict, 70)}"
    figure, (axes,) = build_figure(title, size=(SIZE[0], 0.28 * len(bars) + 1.5))
    values = [part for _, part in bars]
    axes.barh(range(len(bars)), values, color=[BLUE if part > 0 else ORANGE for part in values], height=0.65)
    name_bars(axes, [name for name, _ in bars], 34)
    axes.axvline(0, color=MUTED, linewidth=1)
    axes.set(xlabel=label(f"added to {view.score}", 50))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return Plot(
        figure=figure,
        title=title,
        numbers="; ".join(f"{name}: {part:+.3g}" for name, part in bars) + ".",
        hint=f"From {_score(row.base, view.is_class)} of the base row to {_score(row.score, view.is_class)}.",
        table={
            "column": [*(column for column, _, _ in row.parts), *(["all others"] if row.num_rest else [])],
            "value": [*(value for _, value, _ in row.parts), *(["–"] if row.num_rest else [])],
            "added": values,
        },
    )


def _score(value: float, is_class: bool) -> str:
    """A score, beside log-odds their probability."""
    return f"{value:.4g}" + (f" (p {percent(0.5 + 0.5 * np.tanh(value / 2))})" if is_class else "")
