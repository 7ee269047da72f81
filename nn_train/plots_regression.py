"""Pictures of a regression: true and predicted values in, figures out."""

import dataclasses
from statistics import NormalDist

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from nn_train.plots import BLUE, INK, MUTED, RED, Plot, add_legend, build_figure, label, percent
from nn_train.schema import TargetSpec

# Above this many rows dots hide one another, and a density is drawn.
MOST_DOTS = 1500
NUM_BARS = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionScores:
    """True and predicted values of the test rows, in the unit of a target; `name` is its label.

    `quantiles` (R, Q) are predicted for the levels (Q,), where there are any.
    """

    name: str
    y: np.ndarray
    prediction: np.ndarray
    levels: tuple[float, ...] = ()
    quantiles: np.ndarray | None = None

    @property
    def residual(self) -> np.ndarray:
        """True minus predicted."""
        return self.y - self.prediction


def build_scores(test: pd.DataFrame, val: pd.DataFrame, target: TargetSpec, decision: dict) -> list[RegressionScores]:
    """From the prediction tables to arrays for each target; raises ValueError where a prediction is not finite."""
    del val, decision  # the signature is that of every task
    scores = []
    for name, truth, said in zip(target.names, target.truth_names, target.prediction_names, strict=True):
        y, prediction = test[truth].to_numpy(float), test[said].to_numpy(float)
        num_bad = int((~np.isfinite(prediction)).sum())
        if num_bad:
            raise ValueError(f"{num_bad} of {len(prediction)} test predictions are not finite")
        scores.append(RegressionScores(name=label(name), y=y, prediction=prediction))
    if target.quantiles:
        values = test[list(target.quantile_names)].to_numpy(float)
        return [dataclasses.replace(scores[0], levels=target.quantiles, quantiles=values)]
    return scores


def _draw_cloud(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    if len(x) <= MOST_DOTS:
        axes.plot(x, y, "o", color=BLUE, markersize=5, alpha=0.45, markeredgewidth=0)
        return
    drawn = axes.hexbin(x, y, gridsize=45, cmap="Blues", bins="log", mincnt=1, linewidths=0.1)
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.01)
    bar.set_label("rows", fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=9, colors=INK)


def predicted_vs_true(scores: RegressionScores) -> Plot:
    """Predicted against true values."""
    spread = np.sum((scores.y - scores.y.mean()) ** 2)
    r2 = 1 - np.sum(scores.residual**2) / spread if spread else np.nan
    title = f"The network explains {percent(r2)} of the variance of {scores.name}"
    figure, (axes,) = build_figure(title)
    _draw_cloud(axes, scores.y, scores.prediction)
    ends = [min(scores.y.min(), scores.prediction.min()), max(scores.y.max(), scores.prediction.max())]
    axes.plot(ends, ends, color=RED, linestyle="--", linewidth=1.4, label="perfect")
    axes.set(xlabel=f"true {scores.name}", ylabel=f"predicted {scores.name}")
    add_legend(axes, loc="upper left")
    tenths = [rows for rows in np.array_split(np.argsort(scores.y, kind="stable"), 10) if len(rows)]
    table = {
        "mean true value of a tenth": [scores.y[rows].mean() for rows in tenths],
        "mean prediction": [scores.prediction[rows].mean() for rows in tenths],
        "rows": list(map(len, tenths)),
    }
    numbers = f"R² {r2:.4f}, RMSE {np.sqrt(np.mean(scores.residual**2)):.4g}, {len(scores.y):,} test rows."
    hint = "On the dashed line, prediction and truth agree."
    return Plot(figure=figure, title=title, numbers=numbers, hint=hint, table=table)


def residual_vs_predicted(scores: RegressionScores) -> Plot:
    """Residual against prediction, with the median residual by tenth of the predictions."""
    bias = float(scores.residual.mean())
    title = f"Predictions are {abs(bias):.4g} too {'low' if bias > 0 else 'high'} on average"
    figure, (axes,) = build_figure(title)
    _draw_cloud(axes, scores.prediction, scores.residual)
    tenths = np.array_split(np.argsort(scores.prediction), min(10, len(scores.y)))
    centres = [np.median(scores.prediction[rows]) for rows in tenths]
    medians = [np.median(scores.residual[rows]) for rows in tenths]
    axes.axhline(0, color=MUTED, linestyle="--", linewidth=1.2)
    axes.plot(centres, medians, color=RED, marker="o", markersize=4, linewidth=1.8, label="median by tenth")
    axes.set(xlabel=f"predicted {scores.name}", ylabel=f"residual of {scores.name} (true − predicted)")
    add_legend(axes, loc="best")
    numbers = f"Mean residual {bias:.4g}, median {np.median(scores.residual):.4g}."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="A red line far from zero is a systematic error.",
        table={"median prediction of a tenth": centres, "median residual": medians, "rows": list(map(len, tenths))},
    )


def residual_histogram(scores: RegressionScores) -> Plot:
    """Distribution of the residuals, with the normal curve of the same mean and deviation."""
    residual = scores.residual
    within = float(np.quantile(np.abs(residual), 0.9))
    title = f"Nine in ten errors are below {within:.4g}"
    figure, (axes,) = build_figure(title)
    low, high = np.quantile(residual, (0.001, 0.999))
    counts, edges, _ = axes.hist(
        residual, bins=NUM_BARS, range=(low, high) if low < high else None, color=BLUE, alpha=0.75, label="test rows"
    )
    deviation = float(residual.std())
    if deviation > 0:
        x = np.linspace(edges[0], edges[-1], 200)
        bell = np.exp(-0.5 * ((x - residual.mean()) / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))
        axes.plot(x, bell * len(residual) * (edges[1] - edges[0]), color=RED, linewidth=1.8, label="normal curve")
    axes.axvline(0, color=MUTED, linestyle="--", linewidth=1.2)
    axes.set(xlabel=f"residual of {scores.name} (true − predicted)", ylabel="rows")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    add_legend(axes, loc="best")
    numbers = f"90 % of absolute residuals are below {within:.4g}; standard deviation {deviation:.4g}."
    table = {
        "residual": [f"{edges[at]:.4g} to {edges[at + 4]:.4g}" for at in range(0, NUM_BARS, 4)],
        "rows": [int(np.sum(counts[at : at + 4])) for at in range(0, NUM_BARS, 4)],
    }
    hint = "The outermost 0.2 % are cut off."
    return Plot(figure=figure, title=title, numbers=numbers, hint=hint, table=table)


def residual_quantiles(scores: RegressionScores) -> Plot:
    """Residual quantiles against those of a normal distribution (QQ)."""
    residual = np.sort(scores.residual)
    shares = (np.arange(min(len(residual), 400)) + 0.5) / min(len(residual), 400)
    normal = np.array([NormalDist().inv_cdf(share) for share in shares])
    actual = np.quantile(residual, shares)
    far = float(np.mean(np.abs(residual - residual.mean()) > 3 * residual.std()))
    title = f"{percent(far)} of residuals lie beyond 3 deviations (normal: 0.3 %)"
    figure, (axes,) = build_figure(title)
    line = residual.mean() + residual.std() * normal
    axes.plot(normal, line, color=RED, linestyle="--", linewidth=1.4, label="normal")
    axes.plot(normal, actual, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0, label="residuals")
    axes.set(xlabel="normal quantile (deviations)", ylabel=f"residual quantile of {scores.name}")
    add_legend(axes, loc="upper left")
    numbers = f"{percent(far)} of residuals are beyond three standard deviations."
    return Plot(
        figure=figure,
        title=title,
        numbers=numbers,
        hint="Ends that leave the line are heavy tails.",
        table={"share of rows below": shares, "normal quantile": normal, "residual quantile": actual},
    )


def error_by_decile(scores: RegressionScores) -> Plot:
    """Mean absolute error in each tenth of the true values."""
    tenths = [rows for rows in np.array_split(np.argsort(scores.y, kind="stable"), 10) if len(rows)]
    errors = [float(np.abs(scores.residual[rows]).mean()) for rows in tenths]
    names = [f"{scores.y[rows].min():.4g} to {scores.y[rows].max():.4g}" for rows in tenths]
    worst = int(np.argmax(errors))
    title = f"Errors are largest, {errors[worst]:.4g}, for {scores.name} {names[worst]}"
    figure, (axes,) = build_figure(title)
    axes.barh(range(len(errors)), errors, color=BLUE, height=0.7)
    average = float(np.abs(scores.residual).mean())
    axes.axvline(average, color=RED, linestyle="--", linewidth=1.4, label=f"all rows, {average:.4g}")
    axes.set_yticks(range(len(errors)), names, fontsize=9)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="mean absolute error", ylabel=f"tenth of true {scores.name}")
    add_legend(axes, loc="best")
    numbers = "Mean absolute error by tenth: " + ", ".join(f"{error:.4g}" for error in errors)
    return Plot(
        figure=figure,
        title=title,
        numbers=f"{numbers}.",
        hint="Tenths of the test rows by their true value.",
        table={f"true {scores.name}": names, "mean absolute error": errors, "rows": list(map(len, tenths))},
    )


def interval_by_prediction(scores: RegressionScores) -> Plot | None:
    """The interval from the first quantile to the last along the predictions, with the true values."""
    if scores.quantiles is None or len(scores.levels) < 2:
        return None
    order = np.argsort(scores.prediction, kind="stable")
    low, high = scores.quantiles[order, 0], scores.quantiles[order, -1]
    inside = (low <= scores.y[order]) & (scores.y[order] <= high)
    meant, found = scores.levels[-1] - scores.levels[0], float(inside.mean())
    title = f"{percent(found)} of the true values lie in the interval that is to hold {percent(meant)}"
    figure, (axes,) = build_figure(title)
    places = np.arange(len(order))
    shown = np.linspace(0, len(order) - 1, min(len(order), MOST_DOTS)).round().astype(int)
    axes.fill_between(places, low, high, color=BLUE, alpha=0.25, linewidth=0, label="interval")
    axes.plot(places, scores.prediction[order], color=BLUE, linewidth=1.4, label="prediction")
    axes.plot(shown, scores.y[order][shown], "o", color=RED, markersize=3, alpha=0.6, markeredgewidth=0, label="true")
    axes.set(xlabel="test rows by their prediction", ylabel=scores.name)
    add_legend(axes, loc="upper left")
    tenths = [rows for rows in np.array_split(places, 10) if len(rows)]
    table = {
        "mean prediction of a tenth": [scores.prediction[order][rows].mean() for rows in tenths],
        "share inside": [f"{inside[rows].mean():.1%}" for rows in tenths],
        "mean width": [(high - low)[rows].mean() for rows in tenths],
    }
    numbers = f"Quantiles {scores.levels[0]:g} to {scores.levels[-1]:g}, mean width {np.mean(high - low):.4g}."
    hint = "True values should lie inside evenly from left to right."
    return Plot(figure=figure, title=title, numbers=numbers, hint=hint, table=table)


def quantile_coverage(scores: RegressionScores) -> Plot | None:
    """The share of true values below each predicted quantile, against its level."""
    if scores.quantiles is None:
        return None
    below = (scores.y[:, None] <= scores.quantiles).mean(axis=0)
    worst = int(np.argmax(np.abs(below - scores.levels)))
    title = f"{percent(float(below[worst]))} of the true values lie below the quantile {scores.levels[worst]:g}"
    figure, (axes,) = build_figure(title)
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="as it should be")
    axes.plot(scores.levels, below, color=BLUE, marker="o", markersize=6, linewidth=1.8, label="test rows")
    axes.set(xlabel="level of the quantile", ylabel="share of true values below it")
    add_legend(axes, loc="upper left")
    table = {"level": [f"{level:g}" for level in scores.levels], "share below": [f"{share:.1%}" for share in below]}
    numbers = ", ".join(
        f"{level:g}: {percent(float(share))}" for level, share in zip(scores.levels, below, strict=True)
    )
    hint = "Above the line a quantile is too high, below it too low."
    return Plot(figure=figure, title=title, numbers=f"{numbers}.", hint=hint, table=table)
