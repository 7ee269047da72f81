"""Draw what an offline run of wandb holds, from its own log and files: the picture of the README.

usage: python -m tests.draw_wandb RUN FILE.png

It is no screenshot of wandb's web app: keys, numbers, pictures and tables are those of the record, the layout is not.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nn_train.plots import BLUE, GRID, INK, MUTED, ORANGE, PAPER
from tests.offline_run import offline_runs, parse_records, read_history, read_items, read_values

CHARTS = (("train/loss", "val/loss"), ("best/log_loss",), ("train/lr",), ("train/grad_norm",))
SHOWN = ("summary/network_and_baselines", "results/roc", "results/precision_recall", "results/reliability",
         "results/confusion_at_threshold", "results/lift_by_decile", "importance/permutation_importance",
         "training/loss_by_step")  # fmt: skip
TITLES = ("tables/leaderboard, and the other tables", "summary, and the model artifact")
MOST_BYTES = 150_000
SIZE, DPI, COLOURS = (10.0, 11.2), 100, 96


def draw(run: Path) -> bytes:
    """The newest offline run of a run folder as PNG with a palette."""
    folder = offline_runs(run)[-1]
    records = parse_records(folder)
    history, summary = read_history(records), read_items(records, "summary")
    own = next(record.run for record in records if record.HasField("run"))
    figure = Figure(figsize=SIZE, facecolor=PAPER)
    FigureCanvasAgg(figure)
    media = {key: value for key, value in read_values(records).items() if isinstance(value, dict) and "_type" in value}
    counts = [sum(value["_type"] == kind for value in media.values()) for kind in ("image-file", "table-file")]
    title = (
        f"project {own.project}, run {own.display_name}: {counts[0]} pictures, {counts[1]} tables, the page, the model"
    )
    figure.text(0.012, 0.978, title, fontsize=12, fontweight="bold", color=INK)
    for at, names in enumerate(CHARTS):
        draw_chart(figure.add_axes((0.055 + 0.245 * at, 0.8, 0.18, 0.135)), names, history)
    for at, key in enumerate(SHOWN):
        axes = figure.add_axes((0.012 + 0.245 * (at % 4), 0.51 - 0.275 * (at // 4), 0.235, 0.225))
        axes.imshow(matplotlib.image.imread(folder / "files" / media[key]["path"]))
        axes.set_anchor("N")
        style_as_text(axes, key)
    boxes = [figure.add_axes((left, 0.012, 0.48, 0.165)) for left in (0.012, 0.502)]
    draw_texts(boxes, folder, media, summary, records)
    return to_palette(figure)


def draw_chart(axes: Axes, names: tuple[str, ...], history: dict[int, dict[str, Any]]) -> None:
    for name, colour in zip(names, (BLUE, ORANGE), strict=False):  # one line or two
        points = [(step, line[name]) for step, line in history.items() if name in line]
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, label=name)
    if len(names) > 1:
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    axes.set_title(", ".join(names), fontsize=9, color=INK, loc="left")
    axes.set_xlabel("step", fontsize=8, color=MUTED)
    axes.grid(color=GRID)
    axes.tick_params(labelsize=7, colors=INK)
    axes.spines[["top", "right"]].set_visible(False)


def style_as_text(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=8.5, color=INK, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRID)


def draw_texts(
    boxes: list[Axes], folder: Path, media: dict[str, Any], summary: dict[str, Any], records: list[Any]
) -> None:
    """The leaderboard, the summary and the model artifact."""
    table = json.loads((folder / "files" / media["tables/leaderboard"]["path"]).read_text())
    kept = [table["columns"].index(name) for name in ("model", "roc_auc", "average_precision", "log_loss", "f1")]
    lines = [[table["columns"][at] for at in kept]]
    lines += [[f"{row[at]:.4f}" if isinstance(row[at], float) else row[at] for at in kept] for row in table["data"]]
    artifact = next(r.artifact for r in records if r.HasField("artifact") and r.artifact.type == "model")
    [entry] = artifact.manifest.contents
    metadata = json.loads(artifact.metadata)
    names = [f"final/test/{name}" for name in ("roc_auc", "average_precision", "log_loss")]
    facts = [f"summary  {name} = {summary[name]:.4f}" for name in (*names, "best/log_loss")]
    facts += ["", f"artifact {artifact.type}: {artifact.name}, aliases {', '.join(artifact.aliases)}"]
    facts += [
        f"         {entry.path}, {entry.size / 1e3:,.0f} kB",
        f"         metadata: {', '.join(list(metadata)[:5])}, ...",
    ]
    widths = [max(len(line[at]) for line in lines) for at in range(len(kept))]
    text = "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)
    others = [key for key in sorted(media) if key.startswith("tables/") and key != "tables/leaderboard"]
    text += "\n\n" + "\n".join(f"{key}: {media[key]['nrows']:,} rows" for key in others)
    for axes, title, content in zip(boxes, TITLES, (text, "\n".join(facts)), strict=True):
        style_as_text(axes, title)
        axes.text(0.015, 0.95, content, fontsize=8, family="monospace", color=INK, va="top", transform=axes.transAxes)


def to_palette(figure: Figure) -> bytes:
    stream, small = io.BytesIO(), io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    image = Image.open(stream).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


if __name__ == "__main__":
    content = draw(Path(sys.argv[1]))
    assert len(content) < MOST_BYTES, len(content)
    Path(sys.argv[2]).write_bytes(content)
