"""Parts that all pictures share: arrays in, matplotlib figures out; never pyplot, so no global state.

Text from the data goes through `label` before it is drawn.
"""

import dataclasses
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from nn_train.calibration import before_temperature
from nn_train.curves import Curve, unbend

# Okabe-Ito: told apart with every kind of colour vision; paper: a light card that sits on light and dark pages.
BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW = "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #B59F00".split()
INK, MUTED, GRID, PAPER = "#1f2937", "#6b7280", "#e5e7eb", "#fdfdfc"
CYCLE = (BLUE, ORANGE, GREEN, PINK, SKY, RED, INK, YELLOW, MUTED, "#882255")
SPLIT_COLOURS = {"train": BLUE, "val": ORANGE, "test": GREEN}
# 5.2 inches wide: at 360 px, a phone, 10 pt text is still about 10 px high.
SIZE = (5.2, 3.9)
NUM_CALIBRATION_BINS = 15
MOST_RELIABILITY_ROWS = 50_000  # of a picture; to undo the curves of several classes takes its time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure; `title` says what is seen, `numbers` the key numbers in words, `hint` how to read it.

    `table` holds what is drawn, column by column; empty where a table of the page does so already.
    """

    figure: Figure
    title: str
    numbers: str
    hint: str = ""
    table: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def alt(self) -> str:
        """The picture in words."""
        return f"{self.caption}. {self.numbers}".replace(r"\$", "$")

    @property
    def caption(self) -> str:
        """The title as plain text."""
        return self.title.replace(r"\$", "$")


def label(text: object, width: int = 24) -> str:
    """Text from the data on one line of at most `width` characters, safe from mathtext and legend rules."""
    line = " ".join(str(text).split()) or "(empty)"
    line = line if len(line) <= width else f"{line[: width - 1]}…"
    line = line.replace("$", r"\$")
    return f"\u2009{line}" if line.startswith("_") else line


def percent(share: float | np.floating) -> str:
    """0.1234 -> 12.3 %."""
    return f"{100 * share:.1f} %"


def build_figure(
    title: str, *, size: tuple[float, float] = SIZE, rows: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with its title and one styled panel above the other."""
    figure = Figure(figsize=size, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    text = textwrap.fill(re.sub(r"(\d) %", "\\1\u00a0%", title), int(size[0] * 9.4), break_on_hyphens=False)
    figure.suptitle(text, x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    panels = list(figure.subplots(rows, 1, squeeze=False, height_ratios=ratios)[:, 0])
    for axes in panels:
        axes.set_facecolor(PAPER)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#9ca3af")
        axes.tick_params(labelsize=10, colors=INK, length=3)
        axes.xaxis.label.set(color=INK, fontsize=10.5)
        axes.yaxis.label.set(color=INK, fontsize=10.5)
    return figure, panels


def add_legend(axes: Axes, **where: object) -> None:
    """A legend that stays readable over lines."""
    axes.legend(**({"fontsize": 9, "framealpha": 0.9, "edgecolor": GRID, "facecolor": PAPER} | where))  # type: ignore[arg-type]


def name_bars(axes: Axes, names: Sequence[object], width: int = 22) -> None:
    """Name the horizontal bars of `axes`, the first on top."""
    axes.set_yticks(range(len(names)), [label(name, width) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def show_percent(axes: Axes, which: str = "xy") -> None:
    """Write shares as percent on the axes named in `which`."""
    for name in which:
        getattr(axes, f"{name}axis").set_major_formatter(PercentFormatter(1, decimals=None))


def reliability_bins(p: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean probability, share of hits and number of rows of each filled bin of equal width."""
    which = np.minimum((p * NUM_CALIBRATION_BINS).astype(int), NUM_CALIBRATION_BINS - 1)
    rows = np.bincount(which, minlength=NUM_CALIBRATION_BINS)
    filled = rows > 0
    mean_p, share = (np.bincount(which, values, NUM_CALIBRATION_BINS)[filled] / rows[filled] for values in (p, hit))
    return mean_p, share, rows[filled]


def calibration_error(p: np.ndarray, hit: np.ndarray) -> float:
    """Expected calibration error: mean gap between probability and share of hits over the bins, by rows."""
    mean_p, share, rows = reliability_bins(p, hit)
    return float(np.average(np.abs(mean_p - share), weights=rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """How probabilities were calibrated, by metrics.json: enough to say what they were before."""

    kind: str
    temperature: float = 1.0
    curves: tuple[Curve, ...] = ()

    @classmethod
    def read(cls, decision: Mapping[str, Any]) -> "Calibration":
        """From the `decision` of metrics.json; one of an older version knows temperatures alone."""
        curves = tuple((tuple(x), tuple(y)) for x, y in decision.get("curves") or ())
        kind = decision.get("calibration") or "temperature"
        return cls(kind=kind, temperature=decision.get("temperature") or 1.0, curves=curves)

    def undo(self, p: np.ndarray) -> np.ndarray:
        """The probabilities before: of the positive class (N,), or of every class (N, K)."""
        return before_temperature(unbend(p, self.curves) if self.curves else p, self.temperature)


def draw_reliability(
    before: np.ndarray, after: np.ndarray, hit: np.ndarray, *, xlabel: str, calibration: Calibration
) -> Plot:
    """Share of hits against probability, before and after calibration, over a histogram of the probabilities."""
    error_before, error_after = calibration_error(before, hit), calibration_error(after, hit)
    words = {"temperature": "temperature scaling", "isotonic": "isotonic calibration"}
    curves = [("before", before, error_before, ORANGE), ("after", after, error_after, BLUE)]
    if calibration.kind in words:
        title = f"Calibration error {percent(error_before)} before, {percent(error_after)} after "
        title += words[calibration.kind]
    else:
        title, curves = (
            f"Calibration error {percent(error_after)}, without any calibration",
            [("as it is", *curves[1][1:])],
        )
    figure, (upper, lower) = build_figure(title, size=(SIZE[0], 4.9), rows=2, ratios=(3.2, 1))
    upper.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1.2, label="perfect")
    scores = []
    table: dict[str, list[Any]] = {
        "calibration": [], "mean probability": [], "share of rows that are so": [], "rows": []
    }  # fmt: skip
    for name, p, error, colour in curves:
        mean_p, share, rows = reliability_bins(p, hit)
        for values, of_name in zip(table.values(), ([name] * len(rows), mean_p, share, rows), strict=True):
            values.extend(of_name)
        scores.append(f"{name}: Brier {np.mean((p - hit) ** 2):.4f}, ECE {error:.4f}")
        upper.plot(mean_p, share, color=colour, marker="o", markersize=5, linewidth=1.8, label=scores[-1])
        lower.hist(p, bins=NUM_CALIBRATION_BINS, range=(0, 1), histtype="step", color=colour, linewidth=1.6)
    upper.set(ylabel="share of rows that are so", xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel=xlabel, ylabel="rows", xlim=(0, 1))
    for axes, which in ((upper, "xy"), (lower, "x")):
        show_percent(axes, which)
    lower.yaxis.set_major_formatter("{x:,.0f}")
    add_legend(upper, loc="upper left")
    hint = f"On the diagonal, 80 % means right 8 times in 10. ECE over {NUM_CALIBRATION_BINS} bins of equal width."
    if len(hit) == MOST_RELIABILITY_ROWS:
        hint += f" Of {MOST_RELIABILITY_ROWS:,} rows, evenly spread."
    return Plot(figure=figure, title=title, numbers=f"{'; '.join(scores)}.", hint=hint, table=table)


def spread(values: np.ndarray) -> np.ndarray:
    """At most MOST_RELIABILITY_ROWS rows, evenly spread over all."""
    if len(values) <= MOST_RELIABILITY_ROWS:
        return values
    return values[np.linspace(0, len(values) - 1, MOST_RELIABILITY_ROWS).round().astype(int)]


def _write_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, unit: str) -> None:
    num_classes = len(counts)
    size = float(np.clip(90 / num_classes, 6.0, 12.0))
    for row, column in np.ndindex(counts.shape):
        count, share = counts[row, column], shares[row, column]
        if num_classes > 8 and (share < 0.005 or np.isnan(share)):
            continue
        per_cent = f"{100 * share:.1f} %"
        text = {"both": f"{count:,}\n{per_cent}", "counts": f"{count:,}", "shares": f"{100 * share:.0f}"}[unit]
        colour = PAPER if share > 0.55 else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def confusion_table(counts: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix as columns: the true class, and the rows of each predicted one."""
    return {"true class": list(names)} | {f"predicted {name}": counts[:, at] for at, name in enumerate(names)}


def draw_confusion(counts: np.ndarray, names: Sequence[str], title: str, unit: str) -> Figure:
    """True classes against predicted ones; `unit` is `counts`, `shares` (percent of the row) or `both`."""
    num_classes = len(names)
    side = max(SIZE[0], 0.27 * num_classes + 2.2)
    figure, (axes,) = build_figure(title, size=(side, max(SIZE[1], side - 0.7)))
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    _write_cells(axes, counts, np.nan_to_num(shares), unit)
    shown = [label(name, 14) for name in names]
    size = float(np.clip(110 / num_classes, 7.0, 10.5))
    upright = num_classes > 4 and max(map(len, shown)) > 2
    axes.set_xticks(range(num_classes), shown, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(range(num_classes), shown, fontsize=size)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    return figure
