"""What a tracker shows of a finished run: the report's pictures, its tables as numbers, and the bundle."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from nn_train.bundle import BUNDLE_FILE
from nn_train.report_errors import build_worst_rows
from nn_train.report_run import Run, build_leaderboard, read_run
from nn_train.tracking_media import Media, MediaModel, MediaPicture, MediaTable

MOST_CELLS = 100_000  # of one table: with many classes there is a probability for each in a row
MOST_CHARS = 200  # of one text
MOST_ROWS = 1_000  # of tables whose length the data decides


def collect_media(run_dir: Path, *, num_rows: int) -> Media:
    """Read the run folder; at most `num_rows` test rows, and none where it is 0: then not the page either.

    Raises RunFolderError where the folder holds no schema.json that can be read.
    """
    run = read_run(run_dir)
    tables = {
        "leaderboard": build_leaderboard_frame(run),
        "metrics": build_metric_frame(run),
        "importance": build_importance_frame(run),
        "confusion": build_confusion_frame(run),
    }
    if num_rows:
        tables |= {"worst_rows": build_worst_rows(run), "predictions": run.test.head(num_rows)}
    page = run_dir / "report.html"
    return Media(
        model=build_model(run_dir, run),
        pictures=[read_picture(path) for path in sorted((run_dir / "plots").glob("*.png"))],
        tables=[
            build_table(f"tables/{name}", frame) for name, frame in tables.items() if frame is not None and len(frame)
        ],
        page=page if num_rows and page.exists() else None,
    )


def build_model(run_dir: Path, run: Run) -> MediaModel | None:
    """The bundle with its metrics and settings; None where the run has none."""
    path = run_dir / BUNDLE_FILE
    if not path.exists():
        return None
    metadata = {
        "task": run.schema.target.task,
        "target": run.schema.target.name,
        "test": run.metrics.get("test"),
        "selection": run.metrics.get("selection"),
        "decision": run.metrics.get("decision"),
        "model": run.metrics.get("network") or (yaml.safe_load(run.config_text) or {}).get("model"),
        "num_parameters": run.metrics.get("num_parameters"),
        "fingerprint": run.data.get("fingerprint"),
        "commit": run.environment.get("commit"),
    }
    return MediaModel(path=path, metadata={key: _plain(value) for key, value in metadata.items() if value is not None})


def read_picture(path: Path) -> MediaPicture:
    """A picture of the report under its section and name; its words are in the file."""
    with Image.open(path) as image:
        words = {key: str(value) for key, value in image.info.items() if key in ("Title", "Description")}
    return MediaPicture(
        key=words.get("Title", f"plots/{path.stem}"), path=path, caption=words.get("Description", path.stem)
    )


def build_leaderboard_frame(run: Run) -> pd.DataFrame | None:
    """Every model with its main test metrics and seconds."""
    names, rows = build_leaderboard(run)
    if not names:
        return None
    lines = [
        {"model": row["name"]} | {name: row["values"].get(name) for name in names} | {"seconds": row["seconds"]}
        for row in rows
    ]
    return pd.DataFrame.from_records(lines)


def build_metric_frame(run: Run) -> pd.DataFrame | None:
    """Every metric of the network on validation and test rows."""
    val, test = run.metrics.get("val") or {}, run.metrics.get("test") or {}
    lines = [{"metric": name, "val": val.get(name), "test": test.get(name)} for name in dict.fromkeys([*test, *val])]
    return pd.DataFrame.from_records(lines) if lines else None


def build_importance_frame(run: Run) -> pd.DataFrame | None:
    """What the validation metric loses where a column is shuffled, the most important one first."""
    found = run.metrics.get("importance") or {}
    columns = found.get("columns") or {}
    lines = [
        {"column": name, "metric": found.get("metric"), "mean_loss": loss.get("mean"), "std": loss.get("std")}
        for name, loss in list(columns.items())[:MOST_ROWS]
    ]
    return pd.DataFrame.from_records(lines) if lines else None


def build_confusion_frame(run: Run) -> pd.DataFrame | None:
    """Test rows of each pair of true and predicted class that occurs, the most frequent first."""
    if run.schema.target.task == "regression" or not len(run.test):
        return None
    counts = (
        run.test.groupby(["target", "prediction"], observed=True).size().sort_values(ascending=False, kind="stable")
    )
    frame = counts.rename("rows").reset_index().head(MOST_ROWS)
    return frame.rename(columns={"target": "true", "prediction": "predicted"})


def build_table(key: str, frame: pd.DataFrame) -> MediaTable:
    """A frame as plain values, with as many rows as the bound on cells allows."""
    shown = frame.head(max(1, MOST_CELLS // max(1, frame.shape[1])))
    columns = [_column(shown.iloc[:, place]) for place in range(shown.shape[1])]
    return MediaTable(
        key=key, columns=[str(name) for name in shown], rows=[list(row) for row in zip(*columns, strict=True)]
    )


def _column(values: pd.Series) -> list[Any]:
    """Values of one type, which a tracker asks for: numbers or truth values where all are, else texts."""
    plain = [_plain(value) for value in values]
    kinds = {
        bool if isinstance(v, bool) else float if isinstance(v, int | float) else str for v in plain if v is not None
    }
    if kinds in ({float}, {bool}, set()):
        return plain
    return [None if value is None else str(value)[:MOST_CHARS] for value in plain]


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is no finite number becomes None."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
