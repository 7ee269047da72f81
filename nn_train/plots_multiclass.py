"""Pictures of a multiclass task: probabilities and true classes in, figures out. Legend: N test rows, K classes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from nn_train.plots import (
    BLUE,
    CYCLE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    SIZE,
    Calibration,
    Plot,
    build_figure,
    calibration_error,
    confusion_table,
    draw_confusion,
    draw_reliability,
    label,
    name_bars,
    percent,
    reliability_bins,
    show_percent,
    spread,
)
from nn_train.plots_binary import precision_recall_curve, roc_curve
from nn_train.schema import TargetSpec

MOST_CLASSES = 30
MOST_CURVES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MulticlassScores:
    """True and predicted class (places in `target.classes`) and calibrated probabilities of the test rows."""

    target: TargetSpec
    y_N: np.ndarray
    prediction_N: np.ndarray
    p_NK: np.ndarray
    calibration: Calibration

    @property
    def confusion_KK(self) -> np.ndarray:
        """Rows by true class, then by predicted class."""
        num_classes = len(self.target.classes)
        counts = np.bincount(num_classes * self.y_N + self.prediction_N, minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)

    @property
    def by_support(self) -> np.ndarray:
        """Places of the classes that test rows have, the most frequent first."""
        support = np.bincount(self.y_N, minlength=len(self.target.classes))
        order = np.argsort(-support, kind="stable")
        return order[support[order] > 0]


def build_scores(test: pd.DataFrame, val: pd.DataFrame, target: TargetSpec, decision: dict) -> MulticlassScores:
    """From the prediction tables to arrays; raises ValueError for a class that the schema does not know."""
    del val  # the signature is that of every task
    places = {name: place for place, name in enumerate(target.classes)}
    codes = {name: test[name].astype(str).map(places) for name in ("target", "prediction")}
    for name, column in codes.items():
        if column.isna().any():
            unknown = test[name][column.isna()].iloc[0]
            raise ValueError(f"predictions.parquet: {name} '{unknown}' is not a class of schema.json")
    return MulticlassScores(
        target=target,
        y_N=codes["target"].to_numpy(int),
        prediction_N=codes["prediction"].to_numpy(int),
        p_NK=test[[f"p_{name}" for name in target.classes]].to_numpy(float),
        calibration=Calibration.read(decision),
    )


def class_scores(scores: MulticlassScores) -> pd.DataFrame:
    """Precision, recall, F1 and test rows of each class that test rows have, the most frequent first."""
    counts, order = scores.confusion_KK, scores.by_support
    right, predicted, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    table = pd.DataFrame(
        {
            "class": scores.target.classes,
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(predicted + support, 1),
            "rows": support,
        }
    )
    return table.iloc[order].reset_index(drop=True)


def _columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    return {str(name): table[name] for name in table}


def _confusion(scores: MulticlassScores, unit: str, title: str) -> Plot:
    order = scores.by_support[:MOST_CLASSES]
    names = [scores.target.classes[place] for place in order]
    counts = scores.confusion_KK[np.ix_(order, order)]
    figure = draw_confusion(counts, names, title, unit)
    shown = (
        f"the {MOST_CLASSES} largest of {len(scores.by_support)}" if len(scores.by_support) > MOST_CLASSES else "all"
    )
    hint = f"Classes by falling number of rows, {shown} shown. Colour: share of the true class."
    right = int(np.trace(scores.confusion_KK))
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{right:,} of {len(scores.y_N):,} test rows right.",
        hint=hint,
        table=confusion_table(
            counts if unit == "counts" else counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), names
        ),
    )


def confusion_counts(scores: MulticlassScores) -> Plot:
    """Confusion matrix in rows."""
    accuracy = float(np.mean(scores.y_N == scores.prediction_N))
    return _confusion(scores, "counts", f"{percent(accuracy)} of the test rows are right (rows)")


def confusion_shares(scores: MulticlassScores) -> Plot:
    """Confusion matrix in percent of the true class."""
    table = class_scores(scores)
    worst = table.iloc[int(table["recall"].to_numpy().argmin())]
    title = f"Found least: '{label(worst['class'])}', {percent(float(worst['recall']))} (percent of true class)"
    return _confusion(scores, "shares", title)


def per_class_scores(scores: MulticlassScores) -> Plot:
    """Precision, recall and F1 of each class."""
    table = class_scores(scores).head(MOST_CLASSES)
    best, worst = (table.iloc[int(place)] for place in (table["f1"].argmax(), table["f1"].argmin()))
    title = f"F1 from {worst['f1']:.2f} ('{label(worst['class'])}') to {best['f1']:.2f} ('{label(best['class'])}')"
    figure, (axes,) = build_figure(title, size=(SIZE[0], max(SIZE[1], 0.3 * len(table) + 1.6)))
    places = np.arange(len(table))
    axes.hlines(
        places, table[["precision", "recall"]].min(axis=1), table[["precision", "recall"]].max(axis=1), color=GRID
    )
    for name, colour, marker in (("precision", ORANGE, "<"), ("recall", GREEN, ">"), ("f1", BLUE, "o")):
        axes.plot(table[name], places, marker, color=colour, markersize=7, alpha=0.85, label=name.replace("f1", "F1"))
    name_bars(
        axes, [f"{label(name, 16)} ({rows:,})" for name, rows in zip(table["class"], table["rows"], strict=True)], 40
    )
    axes.set(xlabel="score", xlim=(-0.03, 1.03), ylabel="class (test rows)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9.5, frameon=False)
    numbers = f"Macro F1 {table['f1'].mean():.4f} over {len(table)} classes."
    hint = "The number of test rows is in brackets."
    return Plot(figure=figure, title=title, numbers=numbers, hint=hint, table=_columns(table))


def _one_vs_rest(scores: MulticlassScores, curve: Callable, word: str) -> tuple[list, str, str]:
    places = scores.by_support[:MOST_CURVES]
    curves = [
        (scores.target.classes[place], *curve((scores.y_N == place).astype(int), scores.p_NK[:, place]))
        for place in places
    ]
    numbers = f"{word}: " + ", ".join(f"'{name}' {area:.3f}" for name, _, _, area in curves) + "."
    lowest = min(curves, key=lambda entry: entry[3])
    return curves, f"Lowest {word}: {lowest[3]:.3f}, class '{label(lowest[0])}' against the rest", numbers


def _curve_table(curves: list, x: str, y: str) -> dict[str, Any]:
    """Every curve read off at the same eleven places."""
    at = np.linspace(0, 1, 11)

    def read(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
        order = np.argsort(xs, kind="stable")
        return np.interp(at, xs[order], ys[order], left=np.nan, right=np.nan)

    return {x: at} | {f"{y}, '{name}'": read(xs, ys) for name, xs, ys, _ in curves}


def _draw_curves(curves: list, title: str, xlabel: str, ylabel: str) -> tuple:
    figure, (axes,) = build_figure(title, size=(SIZE[0], 4.6))
    for (name, x, y, area), colour in zip(curves, CYCLE, strict=False):
        axes.plot(x, y, color=colour, linewidth=1.7, label=f"{label(name, 12)} {area:.3f}")
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.01, 1.01), ylim=(0, 1.02))
    show_percent(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure, axes


def one_vs_rest_roc(scores: MulticlassScores) -> Plot:
    """ROC of every class against the rest, the ten most frequent."""
    curves, title, numbers = _one_vs_rest(scores, roc_curve, "ROC AUC")
    figure, axes = _draw_curves(curves, title, "false-positive rate", "true-positive rate")
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2)
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint=f"At most {MOST_CURVES} classes, with their areas.",
        table=_curve_table(curves, "false-positive rate", "true-positive rate"),
    )


def one_vs_rest_precision_recall(scores: MulticlassScores) -> Plot:
    """Precision-recall of every class against the rest, the ten most frequent."""
    curves, title, numbers = _one_vs_rest(scores, precision_recall_curve, "average precision")
    figure, _ = _draw_curves(curves, title, "recall", "precision")
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint=f"At most {MOST_CURVES} classes, with their averages.",
        table=_curve_table(curves, "recall", "precision"),
    )


def top_k_accuracy(scores: MulticlassScores) -> Plot:
    """Share of rows whose true class is among the k most probable."""
    own = scores.p_NK[np.arange(len(scores.y_N)), scores.y_N]
    ranks = (scores.p_NK > own[:, None]).sum(axis=1)
    ks = np.arange(1, min(10, len(scores.target.classes)) + 1)
    shares = np.array([np.mean(ranks < k) for k in ks])
    title = f"The true class is among the two most probable in {percent(shares[1])} of rows"
    figure, (axes,) = build_figure(title)
    axes.bar(ks, shares, color=BLUE, width=0.7)
    for k, share in zip(ks, shares, strict=True):
        axes.annotate(
            f"{100 * share:.1f}", (k, share), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9
        )
    axes.set(xlabel="k", ylabel="top-k accuracy", xticks=ks, ylim=(0, 1.08))
    axes.grid(visible=False, axis="x")
    show_percent(axes, "y")
    numbers = ", ".join(f"top {k}: {percent(share)}" for k, share in zip(ks, shares, strict=True))
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="Top 1 is the accuracy of the most probable class.",
        table={"k": ks, "share of rows": shares},
    )


def reliability(scores: MulticlassScores) -> Plot:
    """Share of right rows against the highest probability, before and after calibration."""
    p_NK, y_N = spread(scores.p_NK), spread(scores.y_N)
    before = scores.calibration.undo(p_NK).max(axis=1)
    hit = (p_NK.argmax(axis=1) == y_N).astype(float)
    return draw_reliability(before, p_NK.max(axis=1), hit, xlabel="highest probability", calibration=scores.calibration)


def class_calibration(scores: MulticlassScores) -> Plot:
    """Share of a class against its probability, the ten most frequent classes."""
    places = scores.by_support[:MOST_CURVES]
    hits = {place: (scores.y_N == place).astype(float) for place in places}
    errors = {place: calibration_error(scores.p_NK[:, place], hits[place]) for place in places}
    names = [scores.target.classes[place] for place in places]
    worst = max(errors, key=lambda place: errors[place])
    title = f"Worst calibrated: '{label(scores.target.classes[worst])}', error {percent(errors[worst])}"
    curves = [
        (name, *reliability_bins(scores.p_NK[:, place], hits[place])[:2], errors[place])
        for place, name in zip(places, names, strict=True)
    ]
    figure, axes = _draw_curves(curves, title, "probability of the class", "share of the class")
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1.2)
    numbers = "Calibration error: " + ", ".join(
        f"'{name}' {errors[p]:.3f}" for p, name in zip(places, names, strict=True)
    )
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="Dashed: perfect. With each class its error.",
        table=_curve_table(curves, "probability of the class", "share"),
    )


def frequency_vs_f1(scores: MulticlassScores) -> Plot:
    """F1 of a class against its number of test rows."""
    table = class_scores(scores)
    rare, common = table.tail(max(len(table) // 2, 1))["f1"].mean(), table.head(max(len(table) // 2, 1))["f1"].mean()
    title = f"Mean F1 {common:.2f} for the frequent half of the classes, {rare:.2f} for the rare half"
    figure, (axes,) = build_figure(title)
    axes.plot(table["rows"], table["f1"], "o", color=BLUE, markersize=7, alpha=0.7)
    if table["rows"].max() > 20 * table["rows"].min():
        axes.set_xscale("log")
    axes.margins(x=0.12)
    low = min(float(table["f1"].min()), 0.9)
    axes.set(xlabel="test rows of the class", ylabel="F1", ylim=(low - 0.08 * (1 - low), 1 + 0.05 * (1 - low)))
    for place in np.unique([*np.argsort(table["f1"].to_numpy())[:3], 0]):
        row = table.iloc[int(place)]
        axes.annotate(
            label(row["class"], 14), (row["rows"], row["f1"]), xytext=(6, 4), textcoords="offset points", fontsize=9
        )
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{len(table)} classes.",
        hint="The three worst classes are named.",
        table=_columns(table[["class", "rows", "f1"]]),
    )


def confused_pairs(scores: MulticlassScores) -> Plot | None:
    """The 15 most frequent mistakes as true -> predicted."""
    counts = scores.confusion_KK.copy()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:15]
    pairs = [(counts.flat[place], *np.unravel_index(place, counts.shape)) for place in order if counts.flat[place]]
    if not pairs:
        return None
    names = [f"{label(scores.target.classes[a], 14)} → {label(scores.target.classes[b], 14)}" for _, a, b in pairs]
    title = f"Most confused: {names[0]}, {pairs[0][0]:,} rows"
    figure, (axes,) = build_figure(title, size=(SIZE[0], max(2.4, 0.27 * len(pairs) + 1.3)))
    axes.barh(range(len(pairs)), [int(count) for count, _, _ in pairs], color=BLUE, height=0.65)
    axes.set_yticks(range(len(pairs)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="test rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    numbers = "; ".join(f"{name}: {count:,}" for name, (count, _, _) in zip(names, pairs, strict=True))
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="True class → predicted class.",
        table={
            "true → predicted": [f"{scores.target.classes[a]} → {scores.target.classes[b]}" for _, a, b in pairs],
            "test rows": [count for count, _, _ in pairs],
        },
    )
