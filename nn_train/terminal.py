"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere, tables at the end."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from nn_train.sampling import describe_baseline_sample, describe_streamed
from nn_train.schema import TableSchema, Task
from nn_train.step_times import describe_straggler, describe_window, tabulate
from nn_train.verdict import describe_verdict, find_better

logger = logging.getLogger("nn_train")
LINE_EVERY_S = 2.0
PLAIN_WIDTH = 100
HEADLINES: dict[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "log_loss", "brier_score", "accuracy", "balanced_accuracy", "f1"),
    "multiclass": ("log_loss", "roc_auc", "accuracy", "balanced_accuracy", "f1_macro"),
    "regression": ("rmse", "mae", "r2"),
}
MOST_TARGETS = 6  # of several, those that the terminal shows one by one


def print_table(table: Table) -> None:
    """Print a table where the log shows such lines: on the main process alone."""
    if logger.isEnabledFor(logging.INFO):
        show_table(table)


def show_table(table: Table) -> None:
    """Print a table."""
    is_terminal = sys.stdout.isatty()
    # names come from the table: `[red]` and `:smile:` in them mean nothing
    console = Console(
        file=sys.stdout,
        width=None if is_terminal else PLAIN_WIDTH,
        force_terminal=is_terminal,
        markup=False,
        emoji=False,
    )
    console.print(table)


def headlines(task: Task, *, num_targets: int = 1) -> tuple[str, ...]:
    """The metrics that a person sees first; of several targets those that know no unit."""
    return ("r2", "pearson_r") if num_targets > 1 else HEADLINES[task]


def print_schema(schema: TableSchema) -> None:
    """Show what was inferred of each column, and of the target."""
    table = Table(
        title=f"{schema.num_rows} rows, target '{schema.target.name}': {schema.target.task}", title_justify="left"
    )
    for name in ("column", "kind", "missing", "distinct", "note"):
        table.add_column(name, justify="right" if name in ("missing", "distinct") else "left", overflow="fold")
    for column in schema.columns:
        note = f"dropped: {column.dropped}" if column.dropped else ""
        table.add_row(column.name, column.kind, str(column.num_missing), str(column.num_distinct), note)
    print_table(table)
    classes = schema.target.classes
    if classes:
        positive = f"; positive: {classes[1]}" if schema.target.task == "binary" else ""
        shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
        logger.info("classes: %s%s", shown, positive)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Show the network's metrics beside those of the baselines: on the test rows, if there are any."""
    split, name = ("test", "test") if metrics["rows"]["test"] else ("val", "validation")
    network = {split: metrics[split], "seconds": metrics["seconds"]["train"]}
    models = {f"network ({metrics['model']})": network}
    sample = metrics.get("baseline_sample")
    if sample:  # beside the others on the rows that they were judged on
        models["network, the same rows"] = network | sample["network"]
    models |= metrics["baselines"]
    table = Table(title=f"{name} metrics ({metrics['rows'][split]} rows)", title_justify="left")
    targets = metrics.get("targets") or {}
    names = headlines(metrics["task"], num_targets=max(len(targets.get(split) or ()), 1))
    chosen = (metrics.get("selection") or {}).get("metric", names[0])
    names = names if chosen in names else (chosen, *names)
    table.add_column("", no_wrap=True, min_width=max(map(len, names)))
    for label in models:
        table.add_column(label.replace("_", " "), justify="right")
    values = {name: [model[split].get(name) for model in models.values()] for name in names}
    for target in list(targets.get(split) or ())[:MOST_TARGETS]:
        every = [targets, *(model.get("targets") or {} for model in list(models.values())[1:])]
        values[f"rmse of {target}"] = [found.get(split, {}).get(target, {}).get("rmse") for found in every]
    for name, row in values.items():
        table.add_row(name, *("-" if value is None else f"{value:.4f}" for value in row))
    if metrics[split].get("mean_cost") is not None:
        table.add_row("mean_cost", *(f"{model[split]['mean_cost']:.4f}" for model in models.values()))
    table.add_row("seconds", *(f"{model['seconds']:.1f}" for model in models.values()))
    print_table(table)
    for line in (*describe_streamed(metrics), *describe_baseline_sample(metrics)):
        logger.info("%s", line)
    if metrics.get("verdict"):
        logger.info("%s", describe_verdict(metrics["verdict"], find_better(metrics)))


def print_profile(profile: Mapping[str, Any]) -> None:
    """Show what a step's time goes into, and the process that the others wait for, if there is one."""
    head, rows = tabulate(profile)
    columns = slice(None) if len(rows) > 1 else slice(2, None)  # one process needs no name
    table = Table(title=describe_window(profile), title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in head[columns]:
        table.add_column(name, justify="left" if name in head[:2] else "right", overflow="fold", no_wrap=name != "host")
    for row in rows:
        table.add_row(*row[columns])
    print_table(table)
    if text := describe_straggler(profile):
        logger.warning("warning: %s", text)


class ProgressBar:
    """Epoch, step, loss, rows per second and time left; a bar on a terminal, else a line now and then."""

    def __init__(self, *, total_steps: int, first_step: int, is_main: bool):
        self.total_steps = total_steps
        self.is_main = is_main
        self.last_line_s = 0.0
        self.value_text = ""
        self.bar: Progress | None = None
        is_shown = is_main and logger.isEnabledFor(logging.INFO)
        if is_shown and sys.stdout.isatty() and not Console(file=sys.stdout).is_dumb_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]:.1f}"),
                BarColumn(bar_width=None),  # it alone gives way on a narrow terminal
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[value]}  {task.fields[speed]:,.0f} rows/s"),
                TimeRemainingColumn(table_column=Column(no_wrap=True)),
                transient=True,
            )
            self.task = self.bar.add_task(
                "train", total=total_steps, completed=first_step, epoch=0, loss=0, value="", speed=0
            )
            self.bar.start()

    def show(self, record: Mapping[str, Any], *, metric: str = "") -> None:
        """Take in one line of metrics.jsonl."""
        if not self.is_main:
            return
        if record["split"] == "val":
            self.value_text = f"val {metric} {record[metric]:.4f}"
        if self.bar is not None:
            fields = {"epoch": record["epoch"], "value": self.value_text}
            if record["split"] == "train":
                fields |= {"loss": record["loss"], "speed": record["rows_per_s"]}
            self.bar.update(self.task, completed=record["step"], **fields)
        elif record["split"] == "train" and time.monotonic() - self.last_line_s >= LINE_EVERY_S:
            self.last_line_s = time.monotonic()
            logger.info(
                "step %d/%d  epoch %.1f  loss %.4f  %s  %s rows/s",
                record["step"],
                self.total_steps,
                record["epoch"],
                record["loss"],
                self.value_text,
                f"{record['rows_per_s']:,.0f}",
            )

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
