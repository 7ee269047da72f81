"""Pictures of a comparison: what was measured of the validation rows, the curves of all runs over each other."""

import dataclasses

import numpy as np

from nn_train.plots import CYCLE, GRID, PAPER, SIZE, Plot, build_figure, label
from nn_train.plots_run import time_unit

DASHES = ("-", "--", "-.", ":")
REACH = 4.0  # a curve may leave the frame where it is so many times as far away as three quarters of all values are


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunCurve:
    """One run's curve: x and y (E,), and the step that was kept with its place in the curve, if it is known."""

    name: str
    x: np.ndarray
    y: np.ndarray
    kept: int | None
    kept_step: int | None


def curves_over_each_other(
    curves: list[RunCurve], *, what: str, lower_is_better: bool, in_time: bool, hint: str = ""
) -> Plot | None:
    """The curves of all runs in one picture, each with a mark where its weights were kept; None where there is none.

    `hint` is why the heights of the curves do not compare, if they do not: no run is then called the best.
    """
    shown = [(place, curve) for place, curve in enumerate(curves) if np.isfinite(curve.x + curve.y).any()]
    if not shown:
        return None
    size, unit = time_unit(max(float(np.nanmax(curve.x)) for _, curve in shown)) if in_time else (1.0, "")
    xlabel = f"time since the start ({unit})" if in_time else "optimizer step"
    best = _find_best(curves, lower_is_better=lower_is_better)
    title = f"{'Lowest' if lower_is_better else 'Highest'} {what}: {best[1]:.4g} by {label(best[0])}"
    if hint:
        title = f"{what.capitalize()} of {len(shown)} run{'s' if len(shown) > 1 else ''}"
    rows = -(-len(shown) // 2)
    figure, (axes,) = build_figure(title, size=(SIZE[0], SIZE[1] + 0.22 * rows))
    for place, curve in shown:
        colour, dash = CYCLE[place % len(CYCLE)], DASHES[place % len(DASHES)]
        name = label(curve.name, 26)
        marker = "." if len(curve.x) == 1 else ""
        axes.plot(curve.x / size, curve.y, dash, color=colour, linewidth=1.6, marker=marker, label=name)
        if curve.kept is not None:
            axes.plot(
                curve.x[curve.kept] / size, curve.y[curve.kept], "o", color=colour, markersize=8, markeredgecolor=PAPER
            )
    limits = _limit([curve.y for _, curve in shown], lower_is_better=lower_is_better)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set(xlabel=xlabel, ylabel=what)
    figure.legend(loc="outside lower left", ncols=2, fontsize=9, edgecolor=GRID, facecolor=PAPER)
    absent = [curve.name for curve in curves if curve not in [one for _, one in shown]]
    hints = [
        "A dot is where the weights were kept.",
        "The worst values lie outside the frame." if limits is not None else "",
        f"Not logged: {', '.join(absent)}." if absent else "",
        hint,
    ]
    numbers = "; ".join(_describe(curve, lower_is_better=lower_is_better) for _, curve in shown)
    return Plot(figure=figure, title=title, numbers=f"{numbers}.", hint=" ".join(filter(None, hints)))


def _find_best(curves: list[RunCurve], *, lower_is_better: bool) -> tuple[str, float]:
    choose = np.nanmin if lower_is_better else np.nanmax
    values = [(curve.name, float(choose(curve.y))) for curve in curves if np.isfinite(curve.y).any()]
    return (min if lower_is_better else max)(values, key=lambda pair: pair[1])


def _describe(curve: RunCurve, *, lower_is_better: bool) -> str:
    _, best = _find_best([curve], lower_is_better=lower_is_better)
    kept = f", {curve.y[curve.kept]:.4g} at step {curve.kept_step}, which was kept" if curve.kept is not None else ""
    return f"{curve.name}: {'lowest' if lower_is_better else 'highest'} {best:.4g}{kept}"


def _limit(values: list[np.ndarray], *, lower_is_better: bool) -> tuple[float, float] | None:
    """A frame that a run which went astray does not squash; None where the frame holds all."""
    every = np.concatenate([own[np.isfinite(own)] for own in values])
    sign = 1 if lower_is_better else -1
    ranked = np.sort(sign * every)
    best, most = ranked[0], ranked[int(0.75 * (len(ranked) - 1))]
    span = most - best
    edge = best + REACH * span
    if span <= 0 or ranked[-1] <= edge:
        return None
    low, high = best - 0.05 * (edge - best), edge
    return (low, high) if lower_is_better else (-high, -low)
