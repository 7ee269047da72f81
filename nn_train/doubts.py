"""What an expert would doubt in a table before training: each doubt says what, where, and how to mend it.

Measured once, while rows are packed, on at most MOST_ROWS rows of a split, evenly spread; the limits are such that an
ordinary table raises none. Shapes: B rows of a split, L levels of a column.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from nn_train.errors import short
from nn_train.preprocessor import Encoded, NumericInput, Preprocessor, numeric_matrix
from nn_train.schema import SPLITS, Split, TableSchema
from nn_train.settings import Config
from nn_train.splits import Splits

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 50_000
MOST_CELLS = 10_000_000  # of all columns together: a wide table is looked at on fewer rows
FEWEST_ROWS = 20  # of a split that says anything
NUM_BINS = 64  # of a number, where it alone is to tell the target
NUM_DRIFT_BINS = 10
MOST_NAMED = 5
LEAK = 0.99  # ROC AUC, or share of the error that goes away
DRIFT = 0.25  # population stability index; above it, by custom, a population has shifted (Siddiqi 2006)
CHANCE = 1e-4  # how often chance may move a column so far (Yurdakul and Naranjo 2020), over all columns
BEYOND = 0.9  # share of the test rows outside of the train rows' range
COPIES = 0.01  # share of the test rows whose features are those of a train row
LEAST_COPIES = 5
EXPECTED = 30.0  # times as many copies as independent columns would give
RARE = 0.1  # share of a class, in parts of an equal share
DENSE = 2.0  # whole numbers that differ in every row and fill a range this many times the rows are numbers of rows
LEVEL_ROWS = 2.0  # rows of a level on average, below which levels identify
MANY_WEIGHTS = 100.0  # of the network for one train row
FEW_CALIBRATION_ROWS = 1000  # scikit-learn: isotonic calibration is not advisable below
FEW_TRAIN_ROWS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """Positions of the looked-at rows, by split, and each column's values as small codes."""

    frame: "pd.DataFrame"
    encoded: Encoded
    splits: Splits
    schema: TableSchema
    preprocessor: Preprocessor
    config: Config
    rows: dict[Split, np.ndarray]

    @property
    def sampled(self) -> str:
        """What a message says where not all rows were looked at."""
        whole = sum(len(getattr(self.splits, split)) for split in SPLITS)
        seen = sum(len(rows) for rows in self.rows.values())
        return f" (on {seen:,} of {whole:,} rows)" if seen < whole else ""

    def y(self, split: Split) -> np.ndarray:
        """Targets of the looked-at rows (T, B): of one or of several."""
        assert self.encoded.y is not None
        rows = self.encoded.y[self.rows[split]]
        return rows.reshape(len(rows), -1).T

    def columns(self, num_bins: int) -> Iterator[tuple[str, dict[Split, np.ndarray]]]:
        """Column, and by split codes from 0 (B,): levels, or equally filled bins of the train rows' numbers."""
        fitted = self.preprocessor
        for place, number in enumerate(fitted.numeric):
            values: dict[Split, np.ndarray] = {s: self.encoded.x_num[rows, place] for s, rows in self.rows.items()}
            edges = np.unique(np.quantile(values["train"], np.linspace(0, 1, num_bins + 1)[1:-1]))
            codes: dict[Split, np.ndarray] = {s: np.searchsorted(edges, v, side="right") for s, v in values.items()}
            yield number.column, codes
        names = [c.column for c in fitted.categorical] + [c.column for c in fitted.numeric if c.has_indicator]
        for place, name in enumerate(names):
            levels: dict[Split, np.ndarray] = {s: self.encoded.x_cat[rows, place] for s, rows in self.rows.items()}
            yield name, levels


def find_doubts(
    frame: "pd.DataFrame",
    encoded: Encoded,
    splits: Splits,
    schema: TableSchema,
    *,
    preprocessor: Preprocessor,
    config: Config,
) -> list[str]:
    """A line for each doubt, the gravest first; `frame` are the typed columns that `encoded` was made of."""
    width = max(1, encoded.x_num.shape[1] + encoded.x_cat.shape[1])
    most = max(min(MOST_ROWS, MOST_CELLS // width), 1000)
    rows: dict[Split, np.ndarray] = {split: _spread(getattr(splits, split), most) for split in SPLITS}
    table = _Table(
        frame=frame, encoded=encoded, splits=splits, schema=schema, preprocessor=preprocessor, config=config, rows=rows
    )
    growing = _growing(table)
    return [
        *_leaks(table),
        *_copies(table),
        *_describe_growing(table, growing),
        *_drifts(table, known={number.column for number in growing}),
        *_ids(table),
        *_rare_classes(table),
    ]


def _spread(positions: np.ndarray, most: int) -> np.ndarray:
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def _drop(columns: list[str]) -> str:
    names = ",".join(short(name) for name in columns)
    return f"'data.drop=[{names}]'"


def _name(columns: Mapping[str, str]) -> str:
    shown = [f"'{short(name)}' ({value})" for name, value in list(columns.items())[:MOST_NAMED]]
    return ", ".join(shown) + (f" and {len(columns) - MOST_NAMED} more" if len(columns) > MOST_NAMED else "")


def _leaks(table: _Table) -> list[str]:
    """Columns that alone tell the target, fitted on train rows and judged on validation rows."""
    task = table.schema.target.task
    targets = []
    for train, val in zip(table.y("train"), table.y("val"), strict=True):
        if min(len(train), len(val)) < FEWEST_ROWS or np.ptp(val) == 0 or np.ptp(train) == 0:
            continue
        if task == "regression":  # by ranks: a few large values would hide all others
            ranked = np.sort(train)
            train, val = (np.searchsorted(ranked, part) / len(ranked) for part in (train, val))
        targets.append((train, val))
    found: dict[str, float] = {}
    for column, codes in table.columns(NUM_BINS) if targets else ():
        scores = [_tell(codes["train"], train, codes["val"], val, task) for train, val in targets]
        found[column] = max(*scores, found.get(column, 0.0))
    leaking = {name: f"{score:.3f}" for name, score in found.items() if score >= LEAK}
    if not leaking:
        return []
    measure = {"binary": "ROC AUC", "multiclass": "share of errors that it avoids", "regression": "R² of ranks"}[task]
    return [
        f"a column alone nearly gives the target on the validation rows: {_name(leaking)}, {measure}{table.sampled}; "
        f"mend: if it is known only after the target, {_drop(list(leaking)[:MOST_NAMED])}"
    ]


def _tell(codes: np.ndarray, y: np.ndarray, val_codes: np.ndarray, val: np.ndarray, task: str) -> float:
    """How well the mean target, or most frequent class, of each code tells the targets of train and validation rows.

    The worse of the two: few validation rows are told well by chance.
    """
    size = int(max(codes.max(), val_codes.max())) + 1
    rows = np.bincount(codes, minlength=size)
    if task == "multiclass":
        num_classes = int(max(y.max(), val.max())) + 1
        counts = np.bincount(codes * num_classes + y, minlength=size * num_classes).reshape(size, num_classes)
        guess = np.where(rows > 0, counts.argmax(axis=1), np.bincount(y).argmax())
        parts = ((guess[codes], y), (guess[val_codes], val))
        return min(1 - float(np.mean(told != true)) / (1 - np.bincount(true).max() / len(true)) for told, true in parts)
    mean, sums = y.mean(), np.bincount(codes, weights=y, minlength=size)
    if task == "regression":
        told = np.where(rows > 0, sums / np.maximum(rows, 1), mean)
        parts = ((told[codes], y), (told[val_codes], val))
        return min(1 - float(np.mean((true - part) ** 2) / np.var(true)) for part, true in parts)
    told_train = (sums[codes] - y + mean) / rows[codes]  # by the other rows of the code
    told_val = ((sums + mean) / (rows + 1))[val_codes]
    return min(_area(y == 1, told_train), _area(val == 1, told_val))


def _area(hit: np.ndarray, score: np.ndarray) -> float:
    """ROC AUC; scikit-learn's takes ten times as long, and there are many columns."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(score[order]) > 0))
    positive = np.add.reduceat(hit[order].astype(np.float64), starts)
    negative = np.add.reduceat((~hit)[order].astype(np.float64), starts)
    return float((positive * (negative.cumsum() - negative / 2)).sum() / (positive.sum() * negative.sum()))


def _growing(table: _Table) -> dict[NumericInput, str]:
    """Numbers and dates whose test values lie beyond those of the train rows: what only grows with time."""
    test, train = table.rows["test"], table.splits.train
    if len(test) < FEWEST_ROWS or table.config.split.method == "random":
        return {}
    found: dict[NumericInput, str] = {}
    for number in table.preprocessor.numeric:  # parts of a date each by itself: some may be left out already
        values = {number.column: table.frame[number.column].to_numpy()}
        raw = numeric_matrix(values, (number,), num_rows=len(table.frame))[:, 0]
        known, new = (part[~np.isnan(part)] for part in (raw[train], raw[test]))
        if len(known) and len(new):
            share = max(float((new > known.max()).mean()), float((new < known.min()).mean()))
            if share >= BEYOND:
                found[number] = f"{share:.0%}"
    return found


def _describe_growing(table: _Table, growing: dict[NumericInput, str]) -> list[str]:
    if not growing:
        return []
    names = _name({number.name: share for number, share in growing.items()})
    columns = list(dict.fromkeys(number.column for number in growing))
    return [
        f"the test rows lie beyond the train rows' range in {names}: what only grows with time tells nothing of later "
        f"rows{table.sampled}; mend: {_drop(columns[:MOST_NAMED])}, or give ages and differences instead"
    ]


def _drifts(table: _Table, known: set[str]) -> list[str]:
    """Columns whose distribution has moved between train and test rows, by the population stability index."""
    found: dict[str, float] = {}
    split: Split = "test" if len(table.rows["test"]) else "val"
    sizes = len(table.rows["train"]), len(table.rows[split])
    if min(sizes) < FEWEST_ROWS:
        return []
    from scipy.stats import chi2  # while rows are packed

    columns = list(table.columns(NUM_DRIFT_BINS))
    for column, codes in columns:
        if column in known or column == table.config.split.column:
            continue
        index, num_bins = _stability_index(codes["train"], codes[split])
        by_chance = (1 / sizes[0] + 1 / sizes[1]) * chi2.isf(CHANCE / len(columns), max(num_bins - 1, 1))
        if index > DRIFT + by_chance:
            found[column] = max(index, found.get(column, 0.0))
    if not found:
        return []
    worst = {name: f"{found[name]:.2g}" for name in sorted(found, key=lambda name: -found[name])}
    return [
        f"the {split} rows are distributed otherwise than the train rows in {_name(worst)}: population stability index "
        f"above {DRIFT}{table.sampled}; mend: look at what changed; a column that will change again is better dropped, "
        f"{_drop(list(worst)[:MOST_NAMED])}"
    ]


def _stability_index(expected: np.ndarray, actual: np.ndarray) -> tuple[float, int]:
    """The index over the bins, the rarest ones together, and the number of bins."""
    size = int(max(expected.max(), actual.max())) + 1
    counts = np.stack([np.bincount(codes, minlength=size) for codes in (expected, actual)]).astype(np.float64)
    order = np.argsort(-counts[0], kind="stable")
    head, tail = order[:NUM_DRIFT_BINS], order[NUM_DRIFT_BINS:]
    counts = np.concatenate([counts[:, head], counts[:, tail].sum(axis=1, keepdims=True)], axis=1)
    counts = counts[:, counts.sum(axis=0) > 0] + 0.5  # no share is nothing
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum()), counts.shape[1]


def _copies(table: _Table) -> list[str]:
    """Test rows with the features of a train row, where they are more than columns of few levels make."""
    test, train = table.rows["test"], table.splits.train
    if not len(test) or not len(train):
        return []
    marks = _row_marks(table.encoded, train), _row_marks(table.encoded, test)
    count = int(np.isin(marks[1], marks[0]).sum())
    if count < max(LEAST_COPIES, COPIES * len(test)):
        return []
    chance = 1.0
    for matrix in (table.encoded.x_num, table.encoded.x_cat):
        for place in range(matrix.shape[1]):
            _, levels = np.unique(matrix[table.rows["train"], place], return_counts=True)
            chance *= float(((levels / levels.sum()) ** 2).sum())
    if count / len(test) < EXPECTED * min(1.0, chance * len(train)):
        return []
    return [
        f"{count:,} of {len(test):,} test rows have the very features of a train row, so that they test nothing new; "
        "mend: remove them, or keep what belongs together in one split: split.method=group split.column=COLUMN"
    ]


def _row_marks(encoded: Encoded, rows: np.ndarray) -> np.ndarray:
    """A number (B,) uint64 that, but for one chance in 10^12 or so, only equal rows share."""
    marks = np.zeros(len(rows), np.uint64)
    for matrix in (encoded.x_num, encoded.x_cat):
        for place in range(matrix.shape[1]):
            values = np.ascontiguousarray(matrix[rows, place]) + matrix.dtype.type(0)  # -0 is 0
            marks = (marks ^ values.view(np.uint32)) * np.uint64(0x9E3779B97F4A7C15)
            marks ^= marks >> np.uint64(29)
    return marks


def _ids(table: _Table) -> list[str]:
    """Features that tell rows apart: levels of a row or two, and whole numbers that number the rows."""
    found = {}
    for column in table.schema.features:
        num_present = table.schema.num_rows - column.num_missing
        if num_present < FEWEST_ROWS or column.name not in table.preprocessor.columns:
            continue
        if column.kind == "categorical" and num_present < LEVEL_ROWS * column.num_distinct:
            found[column.name] = f"{column.num_distinct:,} levels in {num_present:,} rows"
        elif column.kind == "numeric" and column.num_distinct == num_present and _numbers_rows(table, column.name):
            found[column.name] = f"{column.num_distinct:,} whole numbers, each once"
    if not found:
        return []
    mend = f"{_drop(list(found)[:MOST_NAMED])}, or data.id to keep it beside the predictions"
    return [f"a feature looks like an id: {_name(found)}; mend: {mend}"]


def _numbers_rows(table: _Table, name: str) -> bool:
    """Are these whole numbers, which fill a range little larger than their number?"""
    values = table.frame[name].dropna().to_numpy()
    return bool((values % 1 == 0).all() and np.ptp(values) <= DENSE * len(values))


def _rare_classes(table: _Table) -> list[str]:
    """A class with a small part of an equal share."""
    classes = table.schema.target.classes
    if not classes:
        return []
    assert table.encoded.y is not None
    counts = np.bincount(table.encoded.y[table.splits.train].astype(np.int64), minlength=len(classes))
    rarest, most = int(counts.argmin()), int(counts.argmax())
    part = counts / counts.sum()
    if part[rarest] >= RARE / len(classes):
        return []
    return [
        f"class '{short(classes[rarest])}' has {counts[rarest]:,} of {counts.sum():,} train rows ({part[rarest]:.2%}), "
        f"and '{short(classes[most])}' has {part[most]:.1%}, so that accuracy says little; mend: look at "
        "average_precision, log_loss or balanced_accuracy, and perhaps train.class_weights=balanced"
    ]


def doubt_size(num_rows: int, num_parameters: int, num_columns: int) -> list[str]:
    """Fewer train rows than so many weights, or columns, suggest."""
    if num_rows < FEW_TRAIN_ROWS and num_parameters > MANY_WEIGHTS * num_rows:
        return [
            f"{num_parameters:,} weights learn from {num_rows:,} train rows: a linear model or boosting may do better; "
            "mend: more rows, or a smaller network (model.width=64 model.num_blocks=1), and several run.seed"
        ]
    if num_rows < 2 * num_columns:
        return [
            f"{num_columns:,} columns for {num_rows:,} train rows: many will fit by chance; mend: more rows, or fewer "
            "columns (data.drop)"
        ]
    return []


def doubt_calibration(num_rows: int) -> list[str]:
    """Fewer validation rows than an isotonic curve asks for."""
    if num_rows >= FEW_CALIBRATION_ROWS:
        return []
    return [
        f"isotonic calibration follows {num_rows:,} validation rows closely, chance included; "
        "mend: evaluation.calibration=temperature, or a larger split.val"
    ]
