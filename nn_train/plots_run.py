"""Pictures of every run, whatever its task: training, table, comparison. Arrays in, figures out.

Each function returns None where there is nothing to show.
"""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nn_train.plots import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    RED,
    SIZE,
    SKY,
    SPLIT_COLOURS,
    Plot,
    add_legend,
    build_figure,
    label,
    name_bars,
    percent,
    show_percent,
)
from nn_train.timeline import PARTS, describe_duration

PART_COLOURS = {
    "preparing": SKY,
    "training": BLUE,
    "evaluating": GREEN,
    "preparing_again": ORANGE,
    "lost": RED,
    "waiting": "#cbd0d8",
    "other": MUTED,
}
MOST_NARROW_BARS = 8
MOST_PAUSES = 3  # more of them are lines without words
MOST_TICKS = 150  # checkpoints that lie closer to each other than the ticks would are one tick


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """The log of training: one row per logged step, sorted by step; `best_step` is where the kept weights come from."""

    train: pd.DataFrame
    val: pd.DataFrame
    selection_metric: str
    best_step: int | None

    @property
    def best(self) -> pd.DataFrame:
        """The evaluation that was kept, as a table of one row or none."""
        return self.val[self.val["step"] == self.best_step] if "step" in self.val else self.val.head(0)


def has_columns(table: pd.DataFrame, *names: str) -> bool:
    """Whether every column is there and holds at least one number."""
    return all(name in table and table[name].notna().any() for name in names)


def time_unit(longest_s: float) -> tuple[float, str]:
    """Seconds in the unit that suits a span, and the unit's name."""
    return next(
        (size, name) for least, size, name in ((7200, 3600, "h"), (180, 60, "min"), (0, 1, "s")) if longest_s >= least
    )


def _draw_loss(history: History, column: str, unit: tuple[float, str], xlabel: str) -> Plot | None:
    if not (has_columns(history.train, column, "loss") or has_columns(history.val, column, "loss")):
        return None
    best = history.best.dropna(subset=["loss"]) if has_columns(history.val, column, "loss") else history.val.head(0)
    best_loss = float(best["loss"].iloc[0]) if len(best) else np.nan
    title = f"Validation loss is {best_loss:.4g} at the best step" if len(best) else "Training loss"
    figure, (axes,) = build_figure(title)
    if has_columns(history.train, column, "loss"):
        x, loss = history.train[column] / unit[0], history.train["loss"]
        window = max(1, len(loss) // 20)
        axes.plot(x, loss, color=SKY, linewidth=1, alpha=0.45 if window > 1 else 0.0)
        axes.plot(x, loss.rolling(window, min_periods=1).mean(), color=BLUE, linewidth=1.8, label="train")
    if has_columns(history.val, column, "loss"):
        axes.plot(history.val[column] / unit[0], history.val["loss"], color=RED, linewidth=1.8, label="validation")
    if len(best):
        axes.plot(
            best[column] / unit[0], best["loss"], "o", color=RED, markersize=9, markeredgecolor=PAPER, label="kept"
        )
    axes.set(xlabel=xlabel, ylabel="loss")
    add_legend(axes)
    last = max((frame["step"].max() for frame in (history.train, history.val) if has_columns(frame, "step")), default=0)
    numbers = f"Best step {history.best_step}, last step {last:.0f}, validation loss at the best step {best_loss:.4g}."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="Validation loss that rises while train loss falls is overfitting.",
        table=_loss_table(history, column, unit, xlabel),
    )


def _loss_table(history: History, column: str, unit: tuple[float, str], xlabel: str) -> dict[str, Any]:
    """Validation losses where there are some, each beside the newest train loss; else the train losses."""
    train = history.train if has_columns(history.train, column, "loss") else history.train.head(0)
    if not has_columns(history.val, column, "loss"):
        return {xlabel: train[column] / unit[0], "train loss": train["loss"]}
    val = history.val.dropna(subset=[column, "loss"])
    table: dict[str, Any] = {xlabel: val[column] / unit[0] if unit[0] != 1 else val[column]}
    if len(train):
        table["train loss"] = pd.merge_asof(
            val[["step"]], train[["step", "loss"]].dropna(), on="step", direction="backward"
        )["loss"]
    return table | {"validation loss": val["loss"]}


def loss_by_step(history: History) -> Plot | None:
    """Train and validation loss against the optimizer step."""
    return _draw_loss(history, "step", (1, ""), "optimizer step")


def loss_by_time(history: History) -> Plot | None:
    """Train and validation loss against the time since the start."""
    frames = [frame["elapsed_s"].max() for frame in (history.train, history.val) if has_columns(frame, "elapsed_s")]
    unit = time_unit(max(frames, default=0))
    return _draw_loss(history, "elapsed_s", unit, f"time since the start ({unit[1]})")


def _draw_line(table: pd.DataFrame, column: str, title: str, ylabel: str) -> tuple[Figure, Axes]:
    figure, (axes,) = build_figure(title)
    marker = "o" if len(table) < 40 else ""
    axes.plot(table["step"], table[column], color=BLUE, linewidth=1.8, marker=marker, markersize=4)
    axes.set(xlabel="optimizer step", ylabel=ylabel)
    return figure, axes


def selection_by_step(history: History) -> Plot | None:
    """The metric that chooses the weights against the step."""
    metric = history.selection_metric
    if not has_columns(history.val, "step", metric):
        return None
    name, best = metric.replace("_", " "), history.best.dropna(subset=[metric])
    value = float(best[metric].iloc[0]) if len(best) else np.nan
    title = f"Best validation {name}: {value:.4g} at step {history.best_step}" if len(best) else f"Validation {name}"
    figure, axes = _draw_line(history.val, metric, title, f"validation {name}")
    if len(best):
        axes.axvline(float(best["step"].iloc[0]), color=RED, linestyle="--", linewidth=1.2)
        axes.plot(best["step"], best[metric], "o", color=RED, markersize=9, markeredgecolor=PAPER, label="kept")
        add_legend(axes)
    numbers = f"{len(history.val)} evaluations; the kept weights have {name} {value:.4g}."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="The kept weights are those of the marked step.",
        table={"step": history.val["step"], f"validation {name}": history.val[metric]},
    )


def learning_rate_by_step(history: History) -> Plot | None:
    """The learning rate against the step."""
    if not has_columns(history.train, "step", "lr"):
        return None
    rates = history.train["lr"].dropna()
    title = f"Learning rate peaks at {rates.max():.3g} and ends at {rates.iloc[-1]:.3g}"
    shown = history.train.dropna(subset=["lr"])
    figure, axes = _draw_line(shown, "lr", title, "learning rate")
    axes.set_ylim(0, rates.max() * 1.1 or 1)
    numbers = f"Between {rates.min():.3g} and {rates.max():.3g}."
    return Plot(
        figure=figure, title=title, numbers=numbers, table={"step": shown["step"], "learning rate": shown["lr"]}
    )


def throughput_by_step(history: History) -> Plot | None:
    """Rows per second against the step."""
    if not has_columns(history.train, "step", "rows_per_s"):
        return None
    speeds = history.train["rows_per_s"].dropna()
    title = f"Training reads {speeds.median():,.0f} rows a second"
    shown = history.train.dropna(subset=["rows_per_s"])
    figure, axes = _draw_line(shown, "rows_per_s", title, "rows / s, all processes")
    axes.set_ylim(0, speeds.max() * 1.1 or 1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    numbers = f"Median {speeds.median():,.0f}, lowest {speeds.min():,.0f}, highest {speeds.max():,.0f} rows per second."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="Dips are checkpoints, evaluations or a busy machine.",
        table={"step": shown["step"], "rows per second": shown["rows_per_s"]},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttemptBar:
    """One attempt over the time of the run: (part, from, to) in order, and when each checkpoint was there."""

    name: str
    spans: list[tuple[str, float, float]]
    checkpoints_s: list[float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimelineView:
    """The newest attempts of a run, in seconds since it began without its pauses: (when, how long)."""

    goodput: float
    parts: dict[str, float]
    bars: list[AttemptBar]
    num_attempts: int
    pauses: list[tuple[float, float]]


def _thin(moments_s: list[float], least_s: float) -> list[float]:
    """Moments that are at least so far apart."""
    kept: list[float] = []
    for moment_s in sorted(moments_s):
        if not kept or moment_s - kept[-1] >= least_s:
            kept.append(moment_s)
    return kept


def attempts_by_time(view: TimelineView) -> Plot | None:
    """One bar per attempt over the wall time, coloured by what the time went into."""
    ends = [(spans[0][1], spans[-1][2]) for spans in (bar.spans for bar in view.bars) if spans]
    if not ends or ends[-1][1] <= ends[0][0]:
        return None
    low, high = ends[0][0], ends[-1][1]
    size, unit = time_unit(high)
    title = f"{percent(view.goodput)} of the time was of use"
    is_long = len(view.bars) > MOST_NARROW_BARS
    inches = (8.4, 0.2 * len(view.bars) + 2.6) if is_long else (SIZE[0], 0.27 * len(view.bars) + 2.3)
    figure, (axes,) = build_figure(title, size=inches)
    drawn: dict[str, Any] = {}
    for row, bar in enumerate(view.bars):
        for part, from_s, to_s in bar.spans:
            colour, width = PART_COLOURS[part], (to_s - from_s) / size
            # the edge keeps a second of a long run visible
            drawn[part] = axes.barh(
                row, width, left=from_s / size, height=0.6, color=colour, edgecolor=colour, linewidth=0.5
            )
        if bar.checkpoints_s:
            ticks = np.divide(_thin(bar.checkpoints_s, (high - low) / MOST_TICKS), size)
            drawn["checkpoint"] = axes.vlines(ticks, row + 0.3, row + 0.45, color=INK, linewidth=1)
    name_bars(axes, [bar.name for bar in view.bars])
    _draw_pauses(axes, view.pauses, size)
    margin = 0.01 * (high - low)
    axes.set_xlim((low - margin) / size, (high + margin) / size)
    axes.set(xlabel=f"time since the start{', without pauses' if view.pauses else ''} ({unit})", ylabel="attempt")
    names = [name for name in (*PARTS, "checkpoint") if name in drawn]
    figure.legend(
        [drawn[name] for name in names],
        [PARTS.get(name, name) for name in names],
        loc="outside lower left",
        ncols=3 if is_long else 2,
        fontsize=9,
        edgecolor=GRID,
        facecolor=PAPER,
    )
    spent = ", ".join(f"{PARTS[part]} {describe_duration(s)}" for part, s in view.parts.items() if s > 0)
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{view.num_attempts} attempt{'s' if view.num_attempts > 1 else ''}: {spent}.",
        hint=_hint_of(view, least_s=(high - low) / MOST_TICKS),
    )


def _draw_pauses(axes: Axes, pauses: list[tuple[float, float]], size: float) -> None:
    """Where the time was cut, and what was cut out."""
    for moment_s, length_s in pauses:
        axes.axvline(moment_s / size, color=INK, linestyle=":", linewidth=1)
        if len(pauses) <= MOST_PAUSES:
            axes.annotate(
                f"{describe_duration(length_s)} paused",
                (moment_s / size, -0.5),
                xytext=(-3, 1),
                textcoords="offset points",
                fontsize=8.5,
                color=INK,
                ha="right",
            )


def _hint_of(view: TimelineView, *, least_s: float) -> str:
    is_thinned = any(len(_thin(bar.checkpoints_s, least_s)) < len(bar.checkpoints_s) for bar in view.bars)
    is_cut = len(view.bars) < view.num_attempts
    hints = [
        f"The newest {len(view.bars)} of {view.num_attempts:,} attempts." if is_cut else "",
        "Checkpoints that are close together are one tick." if is_thinned else "",
        "Blue and green are of use.",
    ]
    return " ".join(filter(None, hints))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableView:
    """What is known of the table: missing share by column, class counts by split, target values by split."""

    target: str
    missing: dict[str, float]
    class_counts: dict[str, dict[str, int]]
    target_values: dict[str, np.ndarray]


def target_balance(view: TableView) -> Plot | None:
    """Share of every class in each split, the 20 most frequent classes."""
    shares = {
        split: pd.Series(counts, dtype=float) for split, counts in view.class_counts.items() if sum(counts.values())
    }
    if not shares:
        return None
    table = pd.DataFrame({split: counts / counts.sum() for split, counts in shares.items()}).fillna(0.0)
    table = table.sort_values(table.columns[0], ascending=False).head(20)
    first_split = table[table.columns[0]].to_numpy(float)
    most = f"'{label(table.index[0])}' {percent(first_split[0])}"
    title = f"Most frequent class: {most} of the {table.columns[0]} rows"
    figure, (axes,) = build_figure(title, size=(SIZE[0], max(SIZE[1], 0.36 * len(table) + 1.4)))
    for offset, split in zip(np.linspace(-0.27, 0.27, table.shape[1]), table, strict=True):
        axes.barh(
            np.arange(len(table)) + offset,
            table[split],
            0.25,
            color=SPLIT_COLOURS.get(str(split), MUTED),
            label=str(split),
        )
    name_bars(axes, list(table.index))
    axes.set(xlabel="share of the split's rows", ylabel=label(view.target))
    show_percent(axes, "x")
    add_legend(axes, loc="lower right")
    numbers = f"Most frequent {most}, rarest shown '{label(table.index[-1])}' {percent(first_split[-1])}."
    return Plot(
        figure=figure, title=title, numbers=numbers, hint="Splits should look alike; at most 20 classes are shown."
    )


def target_histogram(view: TableView) -> Plot | None:
    """Distribution of a numeric target in the splits whose true values were stored."""
    values = {split: numbers for split, numbers in view.target_values.items() if len(numbers)}
    if not values:
        return None
    every = np.concatenate(list(values.values()))
    title = f"Half of the target values lie between {np.quantile(every, 0.25):.4g} and {np.quantile(every, 0.75):.4g}"
    figure, (axes,) = build_figure(title)
    edges = np.histogram_bin_edges(every, bins=40)
    for split, numbers in values.items():
        weights = np.full(len(numbers), 1 / len(numbers))
        axes.hist(
            numbers,
            edges.tolist(),
            weights=weights,
            histtype="step",
            linewidth=1.8,
            color=SPLIT_COLOURS[split],
            label=split,
        )
    axes.set(xlabel=label(view.target, 40), ylabel="share of the split's rows")
    show_percent(axes, "y")
    add_legend(axes)
    numbers = f"Lowest {every.min():.4g}, median {np.median(every):.4g}, highest {every.max():.4g}."
    deciles = np.linspace(0, 1, 11)
    table = {"share of the split's rows below": [f"{share:.0%}" for share in deciles]}
    table |= {split: np.quantile(numbers, deciles) for split, numbers in values.items()}
    return Plot(figure=figure, title=title, numbers=numbers, hint="Splits should look alike.", table=table)


def missing_values(view: TableView) -> Plot | None:
    """Share of missing values, the 25 worst columns that have any."""
    shares = sorted(
        ((share, name) for name, share in view.missing.items() if share > 0), key=lambda pair: (-pair[0], pair[1])
    )
    if not shares:
        return None
    title = f"{len(shares)} of {len(view.missing)} columns have missing values"
    figure, (axes,) = build_figure(title, size=(SIZE[0], min(8.0, max(2.2, 0.28 * len(shares) + 1.3))))
    axes.barh(range(len(shares[:25])), [share for share, _ in shares[:25]], color=BLUE, height=0.65)
    for place, (share, _) in enumerate(shares[:25]):
        axes.annotate(
            percent(share), (share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    name_bars(axes, [name for _, name in shares[:25]])
    axes.set(xlabel="missing, share of all rows", xlim=(0, 1.2 * shares[0][0]))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    show_percent(axes, "x")
    numbers = f"Most in '{shares[0][1]}': {percent(shares[0][0])}."
    return Plot(figure=figure, title=title, numbers=numbers, hint="At most 25 columns are shown.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Test metrics: title of a panel -> model -> value; `network` is the name of one of the models."""

    panels: dict[str, dict[str, float]]
    network: str
    verdict: str


def network_and_baselines(view: Comparison) -> Plot | None:
    """The main metrics of every model, one panel each, on the test rows."""
    if not view.panels or max(len(values) for values in view.panels.values()) < 2:
        return None
    most = max(len(values) for values in view.panels.values())
    size = (SIZE[0], 0.7 + len(view.panels) * (0.75 + 0.3 * most))
    figure, panels = build_figure(view.verdict, size=size, rows=len(view.panels))
    for axes, (name, values) in zip(panels, view.panels.items(), strict=True):
        low, high = min(values.values()), max(values.values())
        span = (high - low) or abs(high) or 1.0
        for place, (model, value) in enumerate(values.items()):
            colour = BLUE if model == view.network else MUTED
            axes.plot([low - 0.1 * span, value], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot(value, place, "o", color=colour, markersize=9)
            axes.annotate(
                f"{value:.4g}", (value, place), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9.5
            )
        name_bars(axes, list(values))
        axes.set_title(name, fontsize=10.5, loc="left", color=INK)
        axes.set_xlim(low - 0.1 * span, high + 0.25 * span)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    numbers = "; ".join(
        f"{name}: " + ", ".join(f"{m} {v:.4g}" for m, v in values.items()) for name, values in view.panels.items()
    )
    return Plot(figure=figure, title=view.verdict, numbers=f"{numbers}.", hint="Test rows; the network is blue.")
