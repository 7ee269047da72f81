"""Pictures of a binary task: probabilities and true classes in, figures out. Legend: N rows of a split."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from nn_train.plots import (
    BLUE,
    GREEN,
    GRID,
    INK,
    MUTED,
    ORANGE,
    PINK,
    RED,
    SKY,
    Calibration,
    Plot,
    add_legend,
    build_figure,
    confusion_table,
    draw_confusion,
    draw_reliability,
    label,
    percent,
    show_percent,
    spread,
)
from nn_train.schema import TargetSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryScores:
    """True classes (1: positive) and calibrated probabilities of the positive class; validation may be empty."""

    target: TargetSpec
    y: np.ndarray
    p: np.ndarray
    y_val: np.ndarray
    p_val: np.ndarray
    threshold: float
    threshold_metric: str
    calibration: Calibration
    has_costs: bool

    @property
    def positive(self) -> str:
        """The positive class as a label."""
        return label(self.target.classes[1])


def build_scores(test: pd.DataFrame, val: pd.DataFrame, target: TargetSpec, decision: dict) -> BinaryScores:
    """From the prediction tables to arrays; raises ValueError where the test rows hold one class only."""
    column, positive = f"p_{target.classes[1]}", target.classes[1]
    y, y_val = ((table["target"].astype(str) == positive).to_numpy(int) for table in (test, val))
    if y.min() == y.max():
        raise ValueError("the test rows hold one class only, so no curve can be drawn")
    return BinaryScores(
        target=target,
        y=y,
        p=test[column].to_numpy(float),
        y_val=y_val,
        p_val=val[column].to_numpy(float),
        threshold=decision.get("threshold", 0.5),
        threshold_metric=str(decision.get("threshold_metric", "f1")),
        calibration=Calibration.read(decision),
        has_costs=bool(decision.get("costs")),
    )


def count_above(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Descending distinct thresholds, and the true and false positives at each; starts at +inf with none."""
    order = np.argsort(-p, kind="stable")
    y, p = y[order], p[order]
    last = np.append(np.flatnonzero(np.diff(p)), len(p) - 1)
    hits = np.cumsum(y)[last]
    return np.append(np.inf, p[last]), np.append(0, hits), np.append(0, last + 1 - hits)


def roc_curve(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """False-positive rate, true-positive rate and the area under the curve."""
    _, hits, misses = count_above(y, p)
    fpr, tpr = misses / max(misses[-1], 1), hits / max(hits[-1], 1)
    return fpr, tpr, float(np.trapezoid(tpr, fpr))


def precision_recall_curve(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Recall, precision and average precision (the step-wise area, as scikit-learn's)."""
    _, hits, misses = count_above(y, p)
    recall, precision = hits[1:] / max(hits[-1], 1), hits[1:] / (hits + misses)[1:]
    return recall, precision, float(np.sum(np.diff(recall, prepend=0) * precision))


def roc(scores: BinaryScores) -> Plot:
    """True-positive rate against false-positive rate."""
    fpr, tpr, area = roc_curve(scores.y, scores.p)
    title = f"ROC: a '{scores.positive}' row outranks another in {percent(area)} of pairs"
    figure, (axes,) = build_figure(title)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="chance, area 0.5")
    axes.plot(fpr, tpr, color=BLUE, linewidth=2, label=f"network, area {area:.4f}")
    at = int(np.argmin(np.abs(count_above(scores.y, scores.p)[0] - scores.threshold)))
    axes.plot(fpr[at], tpr[at], "o", color=RED, markersize=8, label=f"threshold {scores.threshold:.3g}")
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate (recall)", xlim=(-0.01, 1), ylim=(0, 1.02))
    show_percent(axes)
    add_legend(axes, loc="lower right")
    return Plot(
        figure=figure,
        title=title,
        numbers=f"ROC AUC {area:.4f}.",
        hint="Up and to the left is better.",
        table={"false-positive rate": fpr, "true-positive rate": tpr},
    )


def precision_recall(scores: BinaryScores) -> Plot:
    """Precision against recall, with the prevalence."""
    recall, precision, area = precision_recall_curve(scores.y, scores.p)
    prevalence = scores.y.mean()
    title = f"Average precision {area:.3f}, against {prevalence:.3f} by chance"
    figure, (axes,) = build_figure(title)
    axes.axhline(prevalence, color=MUTED, linestyle="--", linewidth=1.2, label=f"prevalence {percent(prevalence)}")
    axes.step(recall, precision, where="post", color=BLUE, linewidth=2, label=f"network, AP {area:.4f}")
    axes.set(xlabel=f"recall of '{scores.positive}'", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    show_percent(axes)
    add_legend(axes, loc="best")
    numbers = f"Average precision {area:.4f}, prevalence {percent(prevalence)}."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="Up and to the right is better.",
        table={"recall": recall, "precision": precision},
    )


def reliability(scores: BinaryScores) -> Plot:
    """Share of positives against probability, before and after calibration."""
    p, y = spread(scores.p), spread(scores.y)
    before = scores.calibration.undo(p)
    return draw_reliability(before, p, y, xlabel=f"probability of '{scores.positive}'", calibration=scores.calibration)


def score_distribution(scores: BinaryScores) -> Plot:
    """Histogram of the probability, one outline a class."""
    negative = label(scores.target.classes[0])
    medians = [float(np.median(scores.p[scores.y == side])) for side in (0, 1)]
    title = f"Median probability {medians[1]:.2f} for '{scores.positive}', {medians[0]:.2f} for '{negative}'"
    figure, (axes,) = build_figure(title)
    deciles = np.linspace(0, 1, 11)
    table: dict[str, Any] = {"share of the class's rows below": [f"{share:.0%}" for share in deciles]}
    for side, name, colour in ((0, negative, ORANGE), (1, scores.positive, BLUE)):
        p = scores.p[scores.y == side]
        table[f"probability, true '{scores.target.classes[side]}'"] = np.quantile(p, deciles)
        axes.hist(
            p,
            bins=40,
            range=(0, 1),
            weights=np.full(len(p), 1 / len(p)),
            color=colour,
            alpha=0.55,
            label=f"true '{name}'",
        )
    axes.axvline(scores.threshold, color=RED, linestyle="--", linewidth=1.4, label=f"threshold {scores.threshold:.3g}")
    axes.set(xlabel=f"probability of '{scores.positive}'", ylabel="share of the class's rows", xlim=(0, 1))
    show_percent(axes)
    add_legend(axes, loc="best")
    numbers = f"Median probability {medians[1]:.3f} of positives, {medians[0]:.3f} of negatives."
    hint = "The less the two overlap, the better."
    return Plot(figure=figure, title=title, numbers=numbers, hint=hint, table=table)


def _confusion(scores: BinaryScores, threshold: float, name: str) -> Plot:
    counts = np.bincount(2 * scores.y + (scores.p >= threshold), minlength=4).reshape(2, 2)
    title = f"{percent(np.trace(counts) / counts.sum())} of rows right at {name} {threshold:.3g}"
    figure = draw_confusion(counts, scores.target.classes, title, "both")
    negatives, positives = counts
    numbers = (
        f"True negatives {negatives[0]:,}, false positives {negatives[1]:,}, "
        f"false negatives {positives[0]:,}, true positives {positives[1]:,}."
    )
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="Rows, and their share of the true class.",
        table=confusion_table(counts, scores.target.classes),
    )


def confusion_at_half(scores: BinaryScores) -> Plot:
    """Confusion matrix at probability 0.5."""
    return _confusion(scores, 0.5, "threshold")


def confusion_at_threshold(scores: BinaryScores) -> Plot:
    """Confusion matrix at the threshold chosen on the validation rows, or by costs."""
    return _confusion(scores, scores.threshold, "the threshold of costs" if scores.has_costs else "the tuned threshold")


def metrics_by_threshold(scores: BinaryScores) -> Plot | None:
    """Validation metrics against the threshold."""
    if not len(scores.y_val):
        return None
    thresholds, hits, misses = count_above(scores.y_val, scores.p_val)
    positives, negatives = max(hits[-1], 1), max(misses[-1], 1)
    recall, precision = hits / positives, hits / np.maximum(hits + misses, 1)
    curves = {
        "F1": 2 * hits / (positives + hits + misses),
        "balanced accuracy": (recall + 1 - misses / negatives) / 2,
        "precision": precision,
        "recall": recall,
    }
    metric = scores.threshold_metric.replace("_", " ").replace("f1", "F1")
    title = f"Threshold {scores.threshold:.3g} is best for validation {metric}"
    if metric == "no":
        why = "has the least expected cost" if scores.has_costs else "was chosen beforehand"
        title = f"Threshold {scores.threshold:.3g} {why}"
    figure, (axes,) = build_figure(title)
    for (name, values), colour in zip(curves.items(), (BLUE, GREEN, ORANGE, PINK), strict=True):
        axes.step(thresholds[1:], values[1:], where="pre", color=colour, linewidth=1.8, label=name)
    axes.axvline(scores.threshold, color=RED, linestyle="--", linewidth=1.4, label=f"tuned {scores.threshold:.3g}")
    axes.set(xlabel="threshold (validation rows)", ylabel="metric", xlim=(0, 1), ylim=(0, 1.02))
    show_percent(axes, "x")
    add_legend(axes, loc="best")
    at = max(int(np.searchsorted(-thresholds, -scores.threshold, side="right")) - 1, 0)
    numbers = "At the tuned threshold: " + ", ".join(f"{name} {values[at]:.3f}" for name, values in curves.items())
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="A flat top means that the choice matters little.",
        table={"threshold": thresholds[1:]} | {name: values[1:] for name, values in curves.items()},
    )


def cumulative_gains(scores: BinaryScores) -> Plot:
    """Share of the positives found against the share of rows taken, the highest probabilities first."""
    _, hits, misses = count_above(scores.y, scores.p)
    taken, found = (hits + misses) / len(scores.y), hits / hits[-1]
    at_20 = float(np.interp(0.2, taken, found))
    title = f"The top 20 % of rows hold {percent(at_20)} of '{scores.positive}'"
    figure, (axes,) = build_figure(title)
    prevalence = scores.y.mean()
    axes.plot([0, prevalence, 1], [0, 1, 1], color=GREEN, linestyle=":", linewidth=1.6, label="perfect")
    axes.plot(taken, found, color=BLUE, linewidth=2, label="network")
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="chance")
    axes.set(xlabel="share of rows taken", ylabel=f"share of '{scores.positive}' found", xlim=(0, 1), ylim=(0, 1.02))
    show_percent(axes)
    add_legend(axes, loc="lower right")
    shares = ", ".join(f"top {t:.0%}: {percent(np.interp(t, taken, found))}" for t in (0.1, 0.2, 0.5))
    return Plot(
        figure=figure,
        title=title,
        numbers=f"Found in the {shares}.",
        hint="Rows by falling probability.",
        table={"share of rows taken": taken, f"share of '{scores.positive}' found": found},
    )


def lift_by_decile(scores: BinaryScores) -> Plot:
    """Share of positives in each tenth of the rows over the prevalence."""
    tenths = np.array_split(scores.y[np.argsort(-scores.p, kind="stable")], 10)
    lifts = np.array([tenth.mean() if len(tenth) else np.nan for tenth in tenths]) / scores.y.mean()
    title = f"The top tenth holds {lifts[0]:.2f} times the average share of '{scores.positive}'"
    figure, (axes,) = build_figure(title)
    axes.bar(range(1, 11), lifts, color=[BLUE if lift > 1 else SKY for lift in lifts], width=0.75)
    axes.axhline(1, color=MUTED, linestyle="--", linewidth=1.2)
    for place, lift in enumerate(lifts, start=1):
        axes.annotate(f"{lift:.2g}", (place, lift), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    axes.set(xlabel="tenth of the rows, highest probability first", ylabel="lift (1 = average)", xticks=range(1, 11))
    axes.grid(visible=False, axis="x")
    numbers = "Lift by tenth: " + ", ".join(f"{lift:.2f}" for lift in lifts)
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="Bars should fall from left to right.",
        table={"tenth of the rows": range(1, 11), "lift": lifts},
    )


def kolmogorov_smirnov(scores: BinaryScores) -> Plot:
    """Cumulative distribution of the probability in both classes, and their widest gap."""
    thresholds, hits, misses = count_above(scores.y, scores.p)
    below = {scores.target.classes[0]: 1 - misses / misses[-1], scores.target.classes[1]: 1 - hits / hits[-1]}
    negative, positive = below.values()
    at = int(np.argmax(negative - positive))
    gap = float(negative[at] - positive[at])
    title = f"The classes are furthest apart, {gap:.3f}, at probability {min(thresholds[at], 1):.2f}"
    figure, (axes,) = build_figure(title)
    for (name, share), colour in zip(below.items(), (ORANGE, BLUE), strict=True):
        axes.step(thresholds[1:], share[1:], where="post", color=colour, linewidth=2, label=f"true '{label(name)}'")
    axes.plot([thresholds[at]] * 2, [positive[at], negative[at]], color=INK, linewidth=1.6, label=f"KS {gap:.4f}")
    axes.set(
        xlabel=f"probability of '{scores.positive}'", ylabel="share of the class below", xlim=(0, 1), ylim=(0, 1.02)
    )
    axes.grid(color=GRID)
    show_percent(axes)
    add_legend(axes, loc="best")
    return Plot(
        figure=figure,
        title=title,
        numbers=f"KS statistic {gap:.4f}.",
        hint="The wider the gap, the better.",
        table={"probability": thresholds[1:]}
        | {f"share of '{name}' below": share[1:] for name, share in below.items()},
    )
