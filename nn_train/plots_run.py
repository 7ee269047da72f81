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
    INK,
    MUTED,
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

MOST_COLUMNS = 20


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
    )


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
    return Plot(figure=figure, title=title, numbers=numbers, hint="The kept weights are those of the marked step.")


def learning_rate_by_step(history: History) -> Plot | None:
    """The learning rate against the step."""
    if not has_columns(history.train, "step", "lr"):
        return None
    rates = history.train["lr"].dropna()
    title = f"Learning rate peaks at {rates.max():.3g} and ends at {rates.iloc[-1]:.3g}"
    figure, axes = _draw_line(history.train.dropna(subset=["lr"]), "lr", title, "learning rate")
    axes.set_ylim(0, rates.max() * 1.1 or 1)
    return Plot(figure=figure, title=title, numbers=f"Between {rates.min():.3g} and {rates.max():.3g}.")


def throughput_by_step(history: History) -> Plot | None:
    """Rows per second against the step."""
    if not has_columns(history.train, "step", "rows_per_s"):
        return None
    speeds = history.train["rows_per_s"].dropna()
    title = f"Training reads {speeds.median():,.0f} rows a second"
    figure, axes = _draw_line(
        history.train.dropna(subset=["rows_per_s"]), "rows_per_s", title, "rows / s, all processes"
    )
    axes.set_ylim(0, speeds.max() * 1.1 or 1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    numbers = f"Median {speeds.median():,.0f}, lowest {speeds.min():,.0f}, highest {speeds.max():,.0f} rows per second."
    return Plot(
        figure=figure, title=title, numbers=numbers, hint="Dips are checkpoints, evaluations or a busy machine."
    )


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
    return Plot(figure=figure, title=title, numbers=numbers, hint="Splits should look alike.")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceView:
    """Column -> mean and deviation of what the metric loses without it; the error along the first column."""

    metric: str
    columns: dict[str, dict[str, float]]
    num_rows: int
    error_by_top_column: dict[str, Any]


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
    axes.set(xlabel=f"loss of {view.metric} when the column is shuffled")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    numbers = ", ".join(f"{name} {value['mean']:.4g}" for name, value in shown)
    hint = f"{view.num_rows:,} test rows, five shuffles; the line is one deviation. At most {MOST_COLUMNS} columns."
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
    return Plot(figure=figure, title=title, numbers=f"{numbers}.", hint="The number of test rows is in brackets.")
