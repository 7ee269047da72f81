"""Is an exported file the same as its bundle? Rows to find out on, and how far the answers are apart."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.export import ExportedProgram

from nn_train.bundle import Bundle
from nn_train.errors import UserError
from nn_train.export_onnx import input_names
from nn_train.export_torch import columns_used, level_codes
from nn_train.incoming import as_table
from nn_train.preprocessor import UNSEEN, Encoded
from nn_train.run_folder import read_config
from nn_train.table import read_table
from nn_train.table_files import input_paths
from nn_train.values import FIRST_DATE, LAST_DATE, as_arrow, as_objects, read_dates, read_levels, read_numbers

TOLERANCE = 1e-5
MADE_ROWS = 1000
ODD_NUMBERS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-200, 1e-30, 1e300, -1e300, 1e15, -1e15)
ODD_DATES = (np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0, -1)
UNKNOWN_TEXTS = ("no such level", "?", "\u00e9\u4e16")

Columns: TypeAlias = dict[str, np.ndarray]  # by column (B,): float64, int64 microseconds, or texts with "" for missing
Answer: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # scores, and the chosen classes where the file tells them


def check_answers(answer: Callable[[Columns], Answer], bundle: Bundle, run: Path) -> str:
    """Compare with the bundle on rows of the run and on made ones; what was found, as a line.

    Raises:
        UserError: they differ.
    """
    made = made_columns(bundle, MADE_ROWS)
    tables = {f"{MADE_ROWS} made rows": (made, as_rows(bundle, made))}
    note = ""
    try:
        table = read_test_rows(run, bundle)
        tables = {f"{len(table)} rows of the test split": (as_columns(bundle, table), table)} | tables
    except (UserError, OSError) as error:
        reason = error.what if isinstance(error, UserError) else error.strerror
        note = f" (not on rows of the test split: {reason})"
    worst, num_unsteady = 0.0, 0
    for name, (columns, rows) in tables.items():
        found, unsteady = compare(answer(columns), bundle, rows)
        if not found <= TOLERANCE:
            raise UserError(
                f"the exported network differs from the bundle by {found:.2g} on {name}, and nothing was written",
                fix="use the bundle itself, or other versions of torch, onnx and onnxruntime",
            )
        worst, num_unsteady = max(worst, found), num_unsteady + unsteady
    if num_unsteady:
        note = f"; {num_unsteady} rows of wild values held to what float32 loses on them{note}"
    return f"same as the bundle on {' and '.join(tables)}: largest difference {worst:.1e}{note}"


def compare(answer: Answer, bundle: Bundle, rows: pa.Table) -> tuple[float, int]:
    """How far an answer is from the bundle's to these rows, and on how many rows float32 itself loses too much.

    Values are compared in deviations of the target, or relatively where they are farther than one from its mean.
    Another class is infinitely far. What is lost on a row (wild values that cancel each other) is measured on the
    bundle; where ten times that is more than TOLERANCE, the difference is scaled down accordingly.
    """
    scores, chosen = answer
    fitted = bundle.preprocessor
    encoded = bundle.encode(rows)
    expected = bundle.decision.scores(bundle.logits(encoded), fitted)
    unit = np.ones(1)
    if bundle.task == "regression":
        unit = np.maximum(fitted.target_std, np.abs(expected - fitted.target_mean))
    gaps = np.abs(scores - expected) / unit
    if chosen is not None:
        classes = np.array(bundle.classes)[bundle.decision.choose(expected, fitted)]
        gaps[(chosen != classes) & (_margins(expected, bundle) > TOLERANCE)] = np.inf
    exact, moved = (_exact_scores(bundle, encoded, x_num) for x_num in (encoded.x_num, _one_bit_up(encoded.x_num)))
    lost = np.maximum(np.abs(exact - expected), np.abs(exact - moved)) / unit
    slack = np.maximum(1.0, 10 * lost / TOLERANCE)
    return float((gaps / slack).max(initial=0.0)), int((slack.reshape(len(slack), -1) > 1).any(axis=1).sum())


@torch.no_grad()
def _exact_scores(bundle: Bundle, encoded: Encoded, x_num: np.ndarray) -> np.ndarray:
    """Scores by the network in float64."""
    network = copy.deepcopy(bundle.network).double()
    logits = network(torch.from_numpy(x_num).double(), torch.from_numpy(encoded.x_cat).long())
    return bundle.decision.scores(logits.numpy(), bundle.preprocessor)


def _one_bit_up(x_num: np.ndarray) -> np.ndarray:
    return np.nextafter(x_num, np.float32(np.inf))


def _margins(scores: np.ndarray, bundle: Bundle) -> np.ndarray:
    """How far each row (B,) is from another decision."""
    if bundle.task == "binary":
        return np.abs(scores[:, 1] - bundle.decision.threshold)
    costs = bundle.decision.cost_table
    second, best = np.sort(scores if costs is None else -scores @ costs, axis=1)[:, -2:].T
    return best - second


def onnx_answer(content: bytes, bundle: Bundle) -> Callable[[Columns], Answer]:
    """What onnxruntime makes of the file."""
    import onnxruntime  # of the extra

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = input_names(bundle)

    def answer(columns: Columns) -> Answer:
        scores, *chosen = session.run(None, {names[name]: values for name, values in columns.items()})
        return scores, chosen[0] if chosen else None

    return answer


def torch_answer(program: ExportedProgram, bundle: Bundle) -> Callable[[Columns], Answer]:
    """What the program of torch.export makes of columns."""
    module = program.module()
    codes = level_codes(bundle)

    def answer(columns: Columns) -> Answer:
        numbers = columns | {name: _as_codes(columns[name], known) for name, known in codes.items()}
        return module({name: torch.tensor(values) for name, values in numbers.items()}).numpy(), None

    return answer


def _as_codes(texts: np.ndarray, codes: dict[str, int]) -> np.ndarray:
    return np.array([codes.get(text, UNSEEN) for text in texts], dtype=np.int64)


def read_test_rows(run: Path, bundle: Bundle) -> pa.Table:
    """The test rows of a run's table, raw.

    Raises:
        UserError, OSError: the table, or what tells its test rows, is not there any more.
    """
    if not run.is_dir():
        raise UserError("a bundle alone does not say where they are")
    config = read_config(run)
    rows = pq.read_table(run / "predictions.parquet", columns=["row"]).column("row").to_numpy()
    *others, table = [read_table(config.data, path) for _, path in input_paths(config)]
    rows = rows - sum(len(other) for other in others)  # of separate files the last one is the test's
    if not len(rows) or rows.min() < 0 or rows.max() >= len(table):
        raise UserError("the table has other rows now")
    return as_table(as_arrow(table).take(pa.array(rows)), bundle.features)


def as_columns(bundle: Bundle, table: pa.Table) -> Columns:
    """Raw columns as an exported file takes them."""
    data = bundle.reading
    columns = {}
    for spec in columns_used(bundle):
        column = table.column(spec.name)
        if spec.kind == "numeric":
            columns[spec.name] = read_numbers(column, data)
        elif spec.kind == "date":
            columns[spec.name] = read_dates(column, data, day_first=spec.day_first).astype(np.int64)
        else:
            columns[spec.name] = as_objects(read_levels(column, data).fill_null("")).to_numpy()
    return columns


def as_rows(bundle: Bundle, columns: Columns) -> pa.Table:
    """Columns of an exported file as rows for the bundle."""
    arrays = {}
    for spec in columns_used(bundle):
        values = columns[spec.name]
        if spec.kind == "date":
            arrays[spec.name] = pa.array(values.astype("datetime64[us]"))
        elif spec.kind == "numeric":
            arrays[spec.name] = pa.array(values)
        else:
            arrays[spec.name] = pa.array([text or None for text in values], pa.string())
    return pa.table(arrays)


def made_columns(bundle: Bundle, num_rows: int, *, seed: int = 0) -> Columns:
    """Rows of values that occurred in training, of values between and beyond them, and of odd ones."""
    rng = np.random.default_rng(seed)
    codes = level_codes(bundle)
    columns = {}
    for spec in columns_used(bundle):
        if spec.kind == "numeric":
            known, odd = _known_numbers(bundle, spec.name), ODD_NUMBERS
            between = rng.uniform(*_range(known), size=num_rows)
        elif spec.kind == "date":
            first, last = (int(date.astype(np.int64)) for date in (FIRST_DATE, LAST_DATE))
            known = np.arange("1990-01-01", "2040-01-01", dtype="datetime64[D]").astype("datetime64[us]").astype(int)
            between, odd = rng.integers(first, last, size=num_rows), (*ODD_DATES, first - 1, first, last - 1, last)
        else:
            known, odd = np.array(list(codes[spec.name]), dtype=object), ("", *UNKNOWN_TEXTS)
            between = rng.choice(known, size=num_rows)
        source = rng.choice(3, size=num_rows, p=(0.4, 0.4, 0.2))
        odd = np.array(odd, dtype=known.dtype)
        columns[spec.name] = np.select(
            [source == 0, source == 1], [rng.choice(known, size=num_rows), between], rng.choice(odd, size=num_rows)
        )
    return columns


def _known_numbers(bundle: Bundle, name: str) -> np.ndarray:
    """Quantiles of a column, or numbers around its center."""
    fitted = bundle.preprocessor
    index = next(i for i, column in enumerate(fitted.numeric) if column.column == name)
    if "quantiles" in fitted.arrays:
        return fitted.arrays["quantiles"][:, index]
    return fitted.arrays["center"][index] + np.linspace(-3, 3, 61) * fitted.arrays["scale"][index]


def _range(values: np.ndarray) -> tuple[float, float]:
    margin = 0.2 * (values.max() - values.min())
    return values.min() - margin, values.max() + margin
