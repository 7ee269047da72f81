"""Tables of the page, and how a person reads numbers in them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# A page with more rows than this in one table is slow to open on a phone.
MOST_TABLE_ROWS = 500
MOST_PLOT_ROWS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Head and body of a table; cells are text, `best` and `own` mark cells and rows; `note` says what is not shown."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    best: frozenset[tuple[int, int]] = frozenset()
    own: int = -1
    num_text: int = 1
    note: str = ""


def number(value: Any) -> str:
    """A number for a person: whole ones with commas, others to four digits that count, nothing as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if float(value).is_integer() and (isinstance(value, int | np.integer) or abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4f}" if 0.001 <= abs(value) < 10 else f"{value:.4g}"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; a dash where there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{seconds / 60:.1f} min"


def build_plot_table(columns: Mapping[str, Any], caption: str) -> Table | None:
    """What a picture shows, in numbers: `columns` are sequences, arrays or series of one length.

    Of a curve with more points than a person reads, some, evenly spread.
    """
    lengths = {len(values) for values in columns.values()}
    assert len(lengths) <= 1, f"columns of different lengths: {lengths}"
    num_rows = max(lengths, default=0)
    if not num_rows:
        return None
    chosen = np.unique(np.linspace(0, num_rows - 1, min(num_rows, MOST_PLOT_ROWS)).round().astype(int))
    lists = [np.asarray(values, dtype=object) for values in columns.values()]
    return Table(
        caption=caption,
        head=list(columns),
        rows=[[number(values[at]) for values in lists] for at in chosen],
        num_text=next((at for at, values in enumerate(lists) if not isinstance(values[0], str)), len(lists)),
        note=f"{len(chosen)} of {num_rows:,} points, evenly spread." if len(chosen) < num_rows else "",
    )
