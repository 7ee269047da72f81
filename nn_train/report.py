"""The report stage: reads a run folder and nothing else, writes plots/*.png and one self-contained report.html.

A file that is missing leaves its section out; a plot that fails becomes a note in the page.
"""

import base64
import dataclasses
import functools
import io
import logging
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from nn_train import plots_binary, plots_explain, plots_multiclass, plots_regression, plots_run
from nn_train.plots import Plot
from nn_train.pulse import pulse
from nn_train.report_errors import build_attribution_table, build_attributions, build_worst_table
from nn_train.report_page import build_page
from nn_train.report_run import (
    Run,
    build_comparison,
    build_history,
    build_importance,
    build_table_view,
    build_timeline_view,
    read_run,
)
from nn_train.report_table import Table, build_plot_table
from nn_train.run_folder import write_file
from nn_train.sampling import describe_drawn
from nn_train.schema import TargetSpec

logger = logging.getLogger("nn_train")
MOST_TARGETS = 6  # of several, those that have pictures
NUMBERED = re.compile(r"_\d+$")  # a plot of one of several targets
PlotFunction = Callable[[Any], Plot | None]

COMMON_PLOTS: dict[str, dict[str, PlotFunction]] = {
    "summary": {"network_and_baselines": plots_run.network_and_baselines},
    "data": {
        "target_balance": plots_run.target_balance,
        "target_histogram": plots_run.target_histogram,
        "missing_values": plots_run.missing_values,
    },
    "training": {
        "loss_by_step": plots_run.loss_by_step,
        "loss_by_time": plots_run.loss_by_time,
        "selection_by_step": plots_run.selection_by_step,
        "learning_rate_by_step": plots_run.learning_rate_by_step,
        "throughput_by_step": plots_run.throughput_by_step,
    },
    "timeline": {"attempts_by_time": plots_run.attempts_by_time},
    "importance": {
        "permutation_importance": plots_explain.permutation_importance,
        "error_by_top_column": plots_explain.error_by_top_column,
        **{
            f"partial_dependence_{place + 1}": functools.partial(plots_explain.partial_dependence, place=place)
            for place in range(plots_explain.NUM_DEPENDENCES)
        },
    },
    "errors": {
        f"attribution_{place + 1}": functools.partial(plots_explain.attribution, place=place)
        for place in range(plots_explain.NUM_ATTRIBUTIONS)
    },
}
PLOTS: dict[str, dict[str, PlotFunction]] = {
    "binary": {
        "roc": plots_binary.roc,
        "precision_recall": plots_binary.precision_recall,
        "confusion_at_half": plots_binary.confusion_at_half,
        "confusion_at_threshold": plots_binary.confusion_at_threshold,
        "metrics_by_threshold": plots_binary.metrics_by_threshold,
        "score_distribution": plots_binary.score_distribution,
        "reliability": plots_binary.reliability,
        "cumulative_gains": plots_binary.cumulative_gains,
        "lift_by_decile": plots_binary.lift_by_decile,
        "kolmogorov_smirnov": plots_binary.kolmogorov_smirnov,
    },
    "multiclass": {
        "confusion_counts": plots_multiclass.confusion_counts,
        "confusion_shares": plots_multiclass.confusion_shares,
        "per_class_scores": plots_multiclass.per_class_scores,
        "confused_pairs": plots_multiclass.confused_pairs,
        "one_vs_rest_roc": plots_multiclass.one_vs_rest_roc,
        "one_vs_rest_precision_recall": plots_multiclass.one_vs_rest_precision_recall,
        "top_k_accuracy": plots_multiclass.top_k_accuracy,
        "frequency_vs_f1": plots_multiclass.frequency_vs_f1,
        "reliability": plots_multiclass.reliability,
        "class_calibration": plots_multiclass.class_calibration,
    },
    "regression": {
        "predicted_vs_true": plots_regression.predicted_vs_true,
        "residual_vs_predicted": plots_regression.residual_vs_predicted,
        "residual_histogram": plots_regression.residual_histogram,
        "residual_quantiles": plots_regression.residual_quantiles,
        "error_by_decile": plots_regression.error_by_decile,
        "interval_by_prediction": plots_regression.interval_by_prediction,
        "quantile_coverage": plots_regression.quantile_coverage,
    },
}
SCORES: dict[str, Callable[..., Any]] = {
    "binary": plots_binary.build_scores,
    "multiclass": plots_multiclass.build_scores,
    "regression": plots_regression.build_scores,
}

# Name in the template -> what it is called, and what builds it.
ERROR_TABLES: dict[str, tuple[str, Callable[[Run], Table | None]]] = {
    "worst": ("the worst rows", build_worst_table),
    "attributions": ("what moved the worst rows", build_attribution_table),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn plot for the page; `table` holds what is drawn, where no other table of the page does."""

    section: str
    name: str
    title: str
    alt: str
    hint: str
    table: Table | None
    inches: float
    png: bytes

    @property
    def source(self) -> str:
        """The image itself as an address, so that the page needs no other file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the PNG's header."""
        return struct.unpack(">II", self.png[16:24])


def build_task_scores(run: Run) -> Any:
    """The arrays that the task's pictures are drawn from."""
    val = run.val if len(run.val) else run.test.head(0)
    return SCORES[run.schema.target.task](run.test, val, run.schema.target, run.metrics.get("decision") or {})


def result_plots(target: TargetSpec) -> dict[str, PlotFunction]:
    """The plots of the task; of a regression, those of each target."""
    plots = PLOTS[target.task]
    if target.task != "regression":
        return plots
    if not target.columns:
        return {name: functools.partial(_of_target, draw, 0) for name, draw in plots.items()}
    places = range(min(len(target.columns), MOST_TARGETS))
    return {f"{name}_{place + 1}": functools.partial(_of_target, draw, place)
            for place in places for name, draw in plots.items()}  # fmt: skip


def _of_target(draw: PlotFunction, place: int, scores: list[Any]) -> Plot | None:
    return draw(scores[place])


# Section of the page -> what its pictures are drawn from.
VIEWS: dict[str, Callable[[Run], Any]] = {
    "summary": build_comparison,
    "data": build_table_view,
    "training": build_history,
    "timeline": build_timeline_view,
    "importance": build_importance,
    "errors": build_attributions,
    "results": build_task_scores,
}


def render_picture(section: str, name: str, plot: Plot, dpi: int) -> Picture:
    """A figure as PNG bytes, with its place and its words in the file."""
    stream = io.BytesIO()
    words = {"Title": f"{section}/{name}", "Description": plot.alt.encode("utf-8", errors="replace").decode()}
    with warnings.catch_warnings():
        # a class name may hold signs that the font lacks: they become boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        plot.figure.savefig(stream, format="png", dpi=dpi, metadata=words)
    inches = plot.figure.get_figwidth()
    return Picture(
        section=section,
        name=name,
        title=plot.caption,
        alt=plot.alt,
        hint=plot.hint,
        table=build_plot_table(plot.table, plot.caption),
        inches=inches,
        png=stream.getvalue(),
    )


def draw_pictures(run: Run, dpi: int, notes: list[tuple[str, str]]) -> list[Picture]:
    """Draw every plot of the task; one that fails becomes a (section, reason) in `notes` and a warning in the log."""
    sections = COMMON_PLOTS | ({"results": result_plots(run.schema.target)} if len(run.test) else {})
    pictures = []
    for section, functions in sections.items():
        try:
            view = VIEWS[section](run)
        except Exception as error:  # whatever is wrong with the numbers, the page is still worth having
            _note(notes, section, f"the plots of {section}", error)
            continue
        for name, draw in functions.items():
            pulse.beat()
            try:
                plot = draw(view)
                if plot is not None:
                    pictures.append(render_picture(section, name, plot, dpi))
            except Exception as error:
                _note(notes, section, f"the plot {name}", error)
    return pictures


def _note(notes: list[tuple[str, str]], section: str, what: str, error: Exception) -> None:
    reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
    notes.append((section, f"Left out: {what}: {reason}"))
    logger.warning("report: left out %s: %s", what, reason)


def open_templates() -> jinja2.Environment:
    """The pages' templates; everything that is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(run: Run, pictures: list[Picture], notes: list[tuple[str, str]], title: str) -> str:
    """The page as HTML text; everything that comes from the data is escaped."""
    tables: dict[str, Table | None] = dict.fromkeys(ERROR_TABLES)
    for name, (what, build) in ERROR_TABLES.items():
        try:
            tables[name] = build(run)
        except Exception as error:  # predictions that do not fit the schema cost their table, not the page
            _note(notes, "errors", what, error)
    template = open_templates().get_template("report_template.html")
    return template.render(build_page(run), **tables, pictures=pictures, notes=notes, title=title)


def write_report(run_dir: Path, *, dpi: int) -> Path:
    """Write plots/*.png and report.html into the run folder; returns the page's path.

    Raises RunFolderError where the folder holds no schema.json that can be read.
    """
    run = read_run(run_dir)
    notes = [("summary", note) for note in run.notes]
    notes += [(section, note) for section in ("results", "errors") for note in describe_drawn(run.metrics)]
    pictures = draw_pictures(run, dpi, notes)
    plot_dir = run_dir / "plots"
    plot_dir.mkdir(exist_ok=True)
    drawn = {f"{picture.name}.png": picture.png for picture in pictures}
    known = {name for functions in (*COMMON_PLOTS.values(), *PLOTS.values()) for name in functions}
    for path in plot_dir.glob("*.png"):
        # a picture of an earlier report that is no longer drawn would contradict the page
        if path.name not in drawn and known & {path.stem, NUMBERED.sub("", path.stem)}:
            path.unlink(missing_ok=True)
    for name, png in drawn.items():
        write_file(plot_dir / name, png)
    page = render_page(run, pictures, notes, run_dir.absolute().name)
    write_file(run_dir / "report.html", page.encode("utf-8", errors="replace"))
    return run_dir / "report.html"
