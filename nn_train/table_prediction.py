"""A table of any size to a file of predictions, with a summary of what was met in it."""

import functools
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nn_train.bundle import Bundle, load_bundle
from nn_train.config import check_config, parse_words
from nn_train.errors import ConfigError, DataError, WorldError, short
from nn_train.incoming import Counts, read_target
from nn_train.predictions_file import Write, check_output, open_predictions, prediction_columns
from nn_train.run_folder import write_json
from nn_train.runtime import Runtime, set_up_logging, start_runtime
from nn_train.scoring import Judge, score_pieces
from nn_train.settings import READING_KEYS, DataConfig, TrainConfig
from nn_train.table_files import TEXT_FORMATS, file_format, find_files
from nn_train.table_stream import read_pieces
from nn_train.terminal import headlines
from nn_train.values import is_text, listed

logger = logging.getLogger("nn_train")
PIECE_CELLS = 4_000_000  # of a piece: where a table has more columns, it has fewer rows
MOST_PIECE_ROWS = 65_536
SAY_EVERY_S = 10.0


def predict_table(
    *,
    run: str | Path,
    table: str,
    output: Path,
    reading: Sequence[str] = (),
    keep: Sequence[str] = (),
    summary: Path | None = None,
    piece_rows: int | None = None,
    allow_custom: bool = False,
) -> dict[str, Any]:
    """Predict every row of the table with a run's bundle and write `output`; a collective.

    `reading` are `data.KEY=VALUE` words that say how this table is read where it is not as the run's own was. Memory
    holds a few pieces of `piece_rows` rows, whatever the table's size. `allow_custom` is that of `load_bundle`.

    Returns:
        The summary: rows, counts by column, metrics where the target is there. Of the main process; others get {}.

    Raises:
        BundleError, DataError, ConfigError: the run, the table or a word is not what it should be.
    """
    set_up_logging()
    output = output.expanduser()
    check_output(output)
    if summary is not None:
        summary = summary.expanduser()
        if not summary.parent.is_dir() or summary.resolve() == output.resolve():
            raise DataError("no summary can be written here", where=str(summary), fix="--summary FILE in a folder")
    bundle = load_bundle(run, allow_custom=allow_custom)
    data = reading_settings(bundle, table, reading)
    files = find_files(table, key="--input")
    if output.resolve() in {file.resolve() for file in files}:
        raise DataError("the output is a file of the table itself", where=str(output), fix="--output OTHER")
    threads = int(bundle.info["config"]["train"]["cpu_threads"])
    runtime = start_runtime(TrainConfig(cpu_threads=threads))
    told = [(file.name, file.stat().st_size) for file in files]
    if runtime.any_rank(told != runtime.broadcast(told))[0]:
        raise WorldError("the processes see different tables", where=table, fix="give every node the same table")
    bundle.network.to(runtime.device)
    num_rows = piece_rows or max(min(MOST_PIECE_ROWS, PIECE_CELLS // max(len(bundle.schema.columns), 1)), 1)
    desk = _Desk(bundle, data, keep=keep, is_text=all(file_format(file, data) in TEXT_FORMATS for file in files))
    pieces = read_pieces(files, data, num_rows=num_rows)
    with ExitStack() as stack:
        write = runtime.on_main(lambda: stack.enter_context(open_predictions(output))) or (lambda piece: None)
        take = functools.partial(desk.take, write=write)  # which the main process alone is asked for
        counts = score_pieces(pieces, bundle, runtime, data=data, take=take)
    if not runtime.is_main:
        return {}
    found = desk.summary(counts, runtime)
    if summary is not None:
        write_json(summary, found)
    say_summary(found, headlines(bundle.task, num_targets=len(bundle.preprocessor.target.names)), output)
    return found


def reading_settings(bundle: Bundle, table: str, words: Sequence[str]) -> DataConfig:
    """The run's data settings for another table: the format by its name, no limit to its rows, and `words` over all.

    Raises:
        ConfigError: a word that says something else than how a table is read.
    """
    given = parse_words(words)
    keys = [f"{section}.{name}" for section, values in given.items() for name in values]
    if wrong := [key for key in keys if key not in {f"data.{name}" for name in READING_KEYS}]:
        raise ConfigError(
            f"{wrong[0]} says nothing of how a table is read", fix=f"data.KEY=VALUE with {', '.join(READING_KEYS)}"
        )
    config = {**bundle.info["config"]}
    config["data"] = config["data"] | {"path": table, "format": "auto", "max_rows": None} | given.get("data", {})
    return check_config(config, where="").data


class _Desk:
    """What the main process does with rows and logits, piece by piece: write, judge, and note what is odd."""

    def __init__(self, bundle: Bundle, data: DataConfig, *, keep: Sequence[str], is_text: bool):
        self.bundle = bundle
        self.data = data
        self.keep = tuple(keep)
        self.is_text = is_text
        self.judge = Judge(bundle)
        self.num_rows = 0
        self.notes: dict[str, Any] = {}
        self.began_s = self.said_s = time.monotonic()

    def take(self, table: pa.Table, logits: np.ndarray, *, write: Write) -> None:
        """Write the predictions of a piece, and judge them where the target is there."""
        if not self.notes:
            self.notes = self._look(table)
        fitted, decision = self.bundle.preprocessor, self.bundle.decision
        scores = decision.scores(logits, fitted)
        y = read_target(table, fitted, self.data)
        if y is not None:
            self.judge.add(y, scores[:, 1] if self.bundle.task == "binary" else scores)
        write(pa.table(self._beside(table, y) | prediction_columns(scores, fitted, decision)))
        self.num_rows += len(table)
        if (now_s := time.monotonic()) - self.said_s >= SAY_EVERY_S:
            self.said_s = now_s
            logger.info("%s rows, %s rows/s", f"{self.num_rows:,}", f"{self.num_rows / (now_s - self.began_s):,.0f}")

    def _beside(self, table: pa.Table, y: np.ndarray | None) -> dict[str, Any]:
        """Row number, ids, columns to keep and target, in front of the predictions."""
        columns: dict[str, Any] = {"row": pa.array(np.arange(self.num_rows, self.num_rows + len(table)))}
        for name in self.keep:
            if name not in table.column_names:
                raise DataError(f"--keep names the column '{short(name)}'", fix=f"one of {listed(table.column_names)}")
        names = self.bundle.schema.id_names(self.keep)
        columns |= {names[name]: table.column(name) for name in names if name in table.column_names}
        if y is not None:
            columns |= dict(zip(self.bundle.preprocessor.target.truth_names, self._target_values(y), strict=True))
        return columns

    def _target_values(self, y: np.ndarray) -> list[pa.Array]:
        if self.bundle.task == "regression":
            return [pa.array(part, from_pandas=True) for part in y.reshape(len(y), -1).T]
        return [pa.array(self.bundle.classes, pa.string()).take(pa.array(y, mask=y < 0))]

    def _look(self, table: pa.Table) -> dict[str, Any]:
        """What is odd about the columns themselves; no mistake."""
        schema = self.bundle.schema
        needed = [name for name in table.column_names if name in self.bundle.preprocessor.columns]
        known = {column.name for column in schema.columns} | {*schema.target.names}
        kinds = {column.name: column.kind for column in schema.features}
        converted = [] if self.is_text else [n for n in needed if _is_converted(table.column(n), kinds[n])]
        return {
            "extra": [name for name in table.column_names if name not in known and name not in self.keep],
            "absent_ids": [name for name in schema.id_columns if name not in table.column_names],
            "reordered": needed != list(self.bundle.features),
            "converted": {name: str(table.field(name).type) for name in converted},
        }

    def summary(self, counts: Counts, runtime: Runtime) -> dict[str, Any]:
        """Everything that is to be said, as plain values."""
        seconds = time.monotonic() - self.began_s
        return {
            "rows": counts.rows,
            "seconds": round(seconds, 3),
            "rows_per_s": round(counts.rows / max(seconds, 1e-9), 1),
            "processes": runtime.num_processes,
            **self.notes,
            "missing": dict(counts.missing),
            "unreadable": dict(counts.unreadable),
            "unseen": dict(counts.unseen),
            "unseen_examples": counts.examples,
            "rows_with_target": self.judge.num_rows,
            "judged_rows": self.judge.num_rows,
            "approximate_metrics": self.judge.approximate,
            "metrics": self.judge.metrics(),
        }


def say_summary(found: dict[str, Any], shown: Sequence[str], output: Path) -> None:
    """Tell a person what was met, and where that is known by the metrics `shown` how good the predictions are."""
    for text, names in (
        ("columns that the network does not know", found["extra"]),
        ("ids that are not there", found["absent_ids"]),
        ("columns read as another type", [f"{name} ({kind})" for name, kind in found["converted"].items()]),
        ("missing values", _counted(found["missing"])),
        ("values that cannot be read, taken for missing", _counted(found["unreadable"])),
        ("unseen or rare levels", _counted(found["unseen"], found["unseen_examples"])),
    ):
        if names:
            logger.info("%s: %s", text, listed(names))
    if found["reordered"]:
        logger.info("the columns stand in another order than in training")
    if metrics := found["metrics"]:
        binned = found["approximate_metrics"]
        part = f" ({', '.join(binned)} from histograms)" if binned else ""
        values = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
        logger.info("%s rows with a target%s: %s", f"{found['rows_with_target']:,}", part, values)
    rows, speed = f"{found['rows']:,}", f"{found['rows_per_s']:,.0f}"
    logger.info("predicted %s rows in %.1f s (%s rows/s): %s", rows, found["seconds"], speed, output)


def _counted(counts: dict[str, int], examples: dict[str, str] | None = None) -> list[str]:
    shown = {name: f" ('{short(example, 30)}')" for name, example in (examples or {}).items()}
    return [f"{name} {count:,}{shown.get(name, '')}" for name, count in counts.items()]


def _is_converted(column: pa.ChunkedArray, kind: str) -> bool:
    """Does a typed column hold something else than its kind is usually stored as?"""
    if kind == "date":
        return not pa.types.is_temporal(column.type)
    return is_text(column) if kind == "numeric" else not (is_text(column) or pa.types.is_boolean(column.type))
