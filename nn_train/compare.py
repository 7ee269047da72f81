"""Finished runs beside each other: `python -m nn_train.compare runs/a runs/b ...`.

Reads the run folders alone and imports no torch; one table on the terminal, one page.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import HEAVY_HEAD, SIMPLE
from rich.table import Table

from nn_train.ending import DONE, option_parser, read_options, run_command, say
from nn_train.errors import ConfigError, RunFolderError, short
from nn_train.run_folder import write_file
from nn_train.terminal import show_table

if TYPE_CHECKING:
    from nn_train.compare_run import FinishedRun
    from nn_train.compare_tables import Cell, Tables

MOST_RUNS, MOST_COLUMNS = 20, 4
FEWEST_SAMPLES, MOST_SAMPLES = 200, 100_000
ABOUT = """\
Compare finished runs of one task: the settings that differ, the metrics of the test rows with bootstrap intervals, a
paired test of each run against a baseline on the same rows, and the training curves over each other. Everything is read
from the run folders; what is written is one page, which opens without a network."""
EXAMPLES = """\
examples:
  python -m nn_train.compare runs/a runs/b
  python -m nn_train.compare runs/* --baseline runs/a --output comparison.html

exit codes: 0 done; 2 your input: no run, an unfinished one, a damaged file, another task or target; 1 anything else"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare what the command line names; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: compare_folders(parse_arguments(words)))


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError for what it cannot mean."""
    parser = option_parser("python -m nn_train.compare", ABOUT, EXAMPLES)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="the folder of a finished run; two or more")
    parser.add_argument("--baseline", metavar="RUN", help="the run that the others are tested against (the first)")
    parser.add_argument("--output", metavar="FILE", default="compare.html", help="the page (compare.html)")
    parser.add_argument(
        "--samples", type=int, metavar="N", default=2000, help="bootstrap samples, 200 to 100000 (2000)"
    )
    parser.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the bootstrap (0)")
    options = read_options(parser, words)
    problem = ""
    if not FEWEST_SAMPLES <= options.samples <= MOST_SAMPLES:
        problem = f"--samples={options.samples} is not from {FEWEST_SAMPLES} to {MOST_SAMPLES}"
    if not 0 <= options.seed < 2**32:
        problem = f"--seed={options.seed} is not from 0 to {2**32 - 1}"
    if problem:
        raise ConfigError(problem, fix="--help shows the options")
    return options


def compare_folders(options: argparse.Namespace) -> int:
    """Read the runs, compare them, and write and print what came out; the exit code.

    Raises:
        UserError: what the user can mend.
    """
    folders, baseline = choose_folders(options.runs, options.baseline)
    # matplotlib, pandas and scipy take seconds: a wrong word need not wait for them
    from nn_train.compare_page import render_comparison
    from nn_train.compare_run import read_finished_run
    from nn_train.compare_tables import build_tables
    from nn_train.comparison import compare

    names = name_runs(folders)
    runs = [read_finished_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    refuse_other_kind(runs, runs[baseline])
    comparison = compare([run.judged for run in runs], baseline=baseline, samples=options.samples, seed=options.seed)
    tables = build_tables(runs, comparison)
    page = render_comparison(runs, comparison, tables, samples=options.samples, seed=options.seed)
    path = Path(options.output).expanduser()
    try:
        write_file(path, page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise RunFolderError(
            f"the page cannot be written: {error.strerror or error}", where=str(path), fix="--output FILE"
        ) from None
    print_comparison(tables, names, target=runs[0].config.data.target_name)
    marks = ["↑ higher is better, ↓ lower is better, * the best value"]
    for text in (*marks, *tables.verdicts, *tables.remarks, f"page: {path}"):
        say(text)
    return DONE


def choose_folders(runs: Sequence[str], baseline: str | None) -> tuple[list[str], int]:
    """The folders to compare and the place of the baseline, which is put first where it is not among them."""
    folders = list(runs)
    places = [Path(folder).expanduser().resolve() for folder in folders]
    chosen = 0
    if baseline is not None:
        place = Path(baseline).expanduser().resolve()
        if place not in places:
            folders, places = [baseline, *folders], [place, *places]
        chosen = places.index(place)
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError("this run is named twice", where=folder, fix="name each run once")
    if not 2 <= len(folders) <= MOST_RUNS:
        what = (
            f"a comparison is of 2 to {MOST_RUNS} runs, and {len(folders)} {'is' if len(folders) == 1 else 'are'} named"
        )
        raise ConfigError(what, fix="python -m nn_train.compare runs/a runs/b")
    return folders, chosen


def name_runs(folders: Sequence[str]) -> list[str]:
    """Short names that differ: as many of a folder's last parts as that takes, or else a number."""
    parts = [Path(folder).expanduser().absolute().parts for folder in folders]
    for num_parts in range(1, max(map(len, parts)) + 1):
        names = [short("/".join(part[-num_parts:]), 40) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"run {number}" for number in range(1, len(folders) + 1)]


def refuse_other_kind(runs: "Sequence[FinishedRun]", baseline: "FinishedRun") -> None:
    """Raise RunFolderError for a run whose numbers mean something else than the baseline's."""

    def describe(run: "FinishedRun") -> dict[str, tuple[str, ...]]:
        classes = run.judged.classes
        if run.metrics.task == "binary":
            classes = (classes[0], f"{classes[1]} (positive)")
        return {"task": (run.metrics.task,), "target": (run.config.data.target_name,), "classes": classes}

    for run in runs:
        for what, value in describe(run).items():
            other = describe(baseline)[what]
            if value != other:
                own, others = (short(", ".join(words), 200) for words in (value, other))
                raise RunFolderError(
                    f"the {what}: {own}; those of {baseline.name}: {others}",
                    where=run.folder,
                    fix="compare runs of one task, one target and the same classes",
                )


def print_comparison(tables: "Tables", names: Sequence[str], *, target: str) -> None:
    """One table on the terminal: a column per run, or a line where there are too many for columns."""
    parts = {
        "settings that differ": tables.settings,
        "test metrics, 95 %": tables.metrics,
        "difference to the baseline": tables.differences,
        "classical tests": tables.tests,
    }
    in_columns = len(names) <= MOST_COLUMNS
    title = f"{len(names)} runs, target '{short(target)}'"
    table = Table(title=title, title_justify="left", show_header=in_columns, box=HEAVY_HEAD if in_columns else SIMPLE)
    table.add_column("", no_wrap=True)
    if in_columns:
        for name in names:
            table.add_column(name, justify="right", overflow="fold")
    else:
        for width in (13, 18, 13, 13):  # value, interval, p-values, reading
            table.add_column("", overflow="fold", width=width)
    for title, grid in parts.items():
        if not grid.lines:
            continue
        table.add_section()
        table.add_row(title, style="bold")
        for line in grid.lines:
            head, style = f"{short(line.name)} {line.remark[:1]}", "dim" if line.is_muted else None
            cells = [_cell_lines(cell) for cell in line.cells]
            if in_columns:
                table.add_row(head, *("\n".join(lines) for lines in cells), style=style)
            else:
                table.add_row(head, style=style)
                for name, lines in zip(names, cells, strict=True):
                    table.add_row(f"  {name}", *lines, style=style)
    show_table(table)


def _cell_lines(cell: "Cell") -> list[str]:
    return [f"{short(cell.text)}{' *' if cell.is_best else ''}", *cell.lines]


if __name__ == "__main__":
    sys.exit(main())
