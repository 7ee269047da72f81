"""Which rows stand for all of a large split, where scores of every row would be too many to hold, and words for it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MOST_SAMPLED = 1_000_000
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def held_rows(num_rows: int, exact_rows: int) -> int:
    """Rows of a split whose scores are held at once: all up to `exact_rows`, else a sample of at most a million."""
    return num_rows if num_rows <= exact_rows else min(exact_rows, MOST_SAMPLED)


def even_places(num_rows: int, most: int) -> np.ndarray:
    """At most so many places (B,) int64, spread over all: in a split by time, the first ones would be the oldest."""
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, most)).round().astype(np.int64))


def describe_streamed(metrics: Mapping[str, Any], name: Callable[[str], str] = str) -> list[str]:
    """Which metrics of metrics.json are not exact, and what was fitted on a sample; empty where all are and all was."""
    found = metrics.get("streamed")
    if not found:
        return []
    splits = " and ".join(f"{rows:,} {SPLIT_NAMES[split]}" for split, rows in found["rows"].items())
    approximate = ", ".join(map(name, found["approximate"]))
    bounds = [bound for bound in (found["roc_auc_within"] or {}).values() if bound is not None]
    off = f"; {name('roc_auc')} is off by {max(bounds):.1g} at most" if bounds else ""
    lines = [
        f"The {splits} rows were judged block by block (evaluation.exact_rows={found['exact_rows']:,}): {approximate} "
        f"from histograms of {found['bins']:,} bins{off}; every other metric is exact."
    ]
    if fitted := found["fitted_on_sample"]:
        rows = f"{found['sample_rows']['val']:,} validation rows"
        lines.append(f"Fitted on an even sample of {rows}: {' and '.join(fitted)}.")
    if measured := found["measured_on_sample"]:
        rows = " and ".join(f"{count:,} {SPLIT_NAMES[split]}" for split, count in found["sample_rows"].items())
        lines.append(f"Measured on an even sample of {rows} rows: {', '.join(map(name, measured))}.")
    return lines


def describe_drawn(metrics: Mapping[str, Any]) -> list[str]:
    """That pictures and worst rows are those of a sample; empty where they are of all test rows."""
    found = metrics.get("streamed") or {}
    seen, rows = (found.get(key, {}).get("test") for key in ("sample_rows", "rows"))
    return [] if rows is None else [f"Pictures and rows are those of an even sample: {seen:,} of {rows:,} test rows."]


def describe_baseline_sample(metrics: Mapping[str, Any]) -> list[str]:
    """On which rows the other models were fitted and judged; empty where on all."""
    found = metrics.get("baseline_sample")
    if not found:
        return []
    parts = {
        split: f"{found['seen'][split]:,} of {rows:,} {SPLIT_NAMES[split]} rows"
        for split, rows in found["rows"].items()
    }
    judged = parts["test" if found["rows"]["test"] else "val"]
    return [
        f"The other models were fitted on {parts['train']} (report.baseline_rows); they and the network beside them "
        f"are judged on {judged}."
    ]
