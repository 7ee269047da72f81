"""A fitted preprocessor: from typed columns to numbers and back, saved without pickle.

Shapes: B rows, N numeric inputs, C categorical inputs. Codes of a category: 0 unseen or rare,
1 missing, 2 and up the levels. A numeric column that had missing train values also gets a
categorical input that says where.

A run whose rows are packed reads one and encodes nothing: pandas and SciPy are imported by what encodes.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nn_train.errors import DataError, short
from nn_train.schema import Levels, TargetSpec
from nn_train.tensors import read_tensors

if TYPE_CHECKING:
    import pandas as pd

UNSEEN, MISSING, NUM_RESERVED = 0, 1, 2
LARGEST = 1e6  # scaled values are cut here, so that a wild value cannot overflow float32 arithmetic
FARTHEST = 1e15  # a standardised target that is farther away is refused: the sum of its squares would leave float32
WILDEST = 1e100  # raw values are cut here, and below its inverse are zero, so that squares do not leave float64
VALUES_TOGETHER = 2**16
FINEST = 1e-30  # numbers that are closer together are one, so that the width of a bin does not underflow in float32
BEND = 3.0  # what the smooth clip of `robust-clip` comes near to and never exceeds
AFFINE = ("scale", "center")
# by name, what each has learned
SCALERS = {
    "quantile": ("quantiles", "shares"),
    "standard": AFFINE,
    "robust": AFFINE,
    "robust-clip": AFFINE,
    "none": AFFINE,
}
DATE_PARTS = ("year", "month", "day", "weekday", "hour", "days")
PREPROCESSOR_FILES = ("preprocessor.json", "preprocessor.safetensors")
INDICATOR_LEVELS = ("present", "missing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumericInput:
    """One scaled number: a numeric column, or one part of a date."""

    column: str
    part: str = ""
    has_indicator: bool = False

    @property
    def name(self) -> str:
        """Name for people: the column, with the date part behind a dot."""
        return f"{self.column}.{self.part}" if self.part else self.column


@dataclasses.dataclass(frozen=True, kw_only=True)
class CategoricalInput:
    """One code: a category with its levels in the order of their codes, or with buckets in place of levels."""

    column: str
    levels: tuple[str, ...]
    had_missing: bool
    num_buckets: int = 0

    @property
    def cardinality(self) -> int:
        """Number of codes, the reserved ones included."""
        return NUM_RESERVED + (self.num_buckets or len(self.levels))

    @property
    def labels(self) -> tuple[str, ...]:
        """What each code stands for, but for the reserved ones."""
        return self.levels or tuple(f"bucket {number}" for number in range(1, self.num_buckets + 1))

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Level -> its place in `levels`."""
        return {level: place for place, level in enumerate(self.levels)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoded:
    """Rows as arrays: x_num (B, N) float32, x_cat (B, C) int32, y (B,) int64 or float32; several targets are (B, T).

    `y` is None where the table has no target; a row with a missing target has -1 or NaN.
    """

    x_num: np.ndarray
    x_cat: np.ndarray
    y: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessor:
    """What was fitted on the train rows. `arrays` holds the scaler, the fill values and the bin edges.

    `target_mean` and `target_std` standardise a regression's target; of several each has its own.
    """

    scaler: str
    numeric: tuple[NumericInput, ...]
    categorical: tuple[CategoricalInput, ...]
    target: TargetSpec
    target_mean: float | tuple[float, ...]
    target_std: float | tuple[float, ...]
    dropped: dict[str, str]
    arrays: dict[str, np.ndarray]

    @functools.cached_property
    def columns(self) -> frozenset[str]:
        """The columns of a table that are used."""
        return frozenset(column.column for column in (*self.numeric, *self.categorical))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical input, indicators behind the categories."""
        indicators = sum(column.has_indicator for column in self.numeric)
        return tuple(c.cardinality for c in self.categorical) + (NUM_RESERVED + len(INDICATOR_LEVELS),) * indicators

    @property
    def is_bent(self) -> bool:
        """Does a smooth clip bend the scaled numbers?"""
        return self.scaler == "robust-clip"

    @property
    def bins(self) -> list[np.ndarray]:
        """Edges of the piecewise-linear encoding of each numeric input, increasing, float32."""
        return np.split(self.arrays["bin_edges"], np.cumsum(self.arrays["bin_counts"])[:-1]) if self.numeric else []

    def transform(self, frame: "pd.DataFrame") -> Encoded:
        """Encode typed columns; unseen levels and missing values never fail and never give NaN."""
        return self.transform_columns({name: frame[name].to_numpy() for name in frame.columns}, num_rows=len(frame))

    def transform_columns(self, columns: Mapping[str, np.ndarray | Levels], *, num_rows: int) -> Encoded:
        """As `transform`, for columns that lie in no frame, those of levels also in short."""
        x_num, indicators = self._encode_numbers(columns, num_rows=num_rows)
        codes = [_codes(columns[c.column], c) for c in self.categorical] + indicators
        x_cat = np.stack(codes, axis=1) if codes else np.zeros((num_rows, 0))
        return Encoded(
            x_num=x_num,
            x_cat=x_cat.astype(np.int32),
            y=self._encode_target(self.target.take(columns)) if set(self.target.names) <= set(columns) else None,
        )

    def _encode_numbers(
        self, columns: Mapping[str, np.ndarray | Levels], *, num_rows: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Scaled numbers (B, N) float32, and the codes of the indicators; some columns at a time, which fit a cache."""
        numbers = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
        x_num = np.zeros((num_rows, len(self.numeric)), np.float32)
        indicators: list[np.ndarray] = []
        num_together = max(1, VALUES_TOGETHER // max(num_rows, 1))
        for start in range(0, len(self.numeric), num_together):
            some = slice(start, start + num_together)
            inputs = self.numeric[some]
            raw = numeric_matrix(numbers, inputs, num_rows=num_rows)
            own = {name: self.arrays[name][..., some] for name in SCALERS[self.scaler]}
            x_num[:, some] = fill_gaps(scale_numbers(raw, own, is_bent=self.is_bent), self.arrays["fill"][some])
            indicators += [np.isnan(raw[:, i]) + NUM_RESERVED for i, c in enumerate(inputs) if c.has_indicator]
        return x_num, indicators

    def unscale(self, x_num: np.ndarray) -> np.ndarray:
        """Bring scaled numbers (B, N) back to the units of the table, float64; filled gaps give the fill value."""
        scaled = x_num.astype(np.float64)
        if "quantiles" not in self.arrays:
            if self.is_bent:
                # float32 rounds what is far out to the bound itself, which no number has: such a one comes back as the
                # farthest that is scaled
                rest = np.maximum(1 - (scaled / BEND) ** 2, 1 / (1 + (LARGEST / BEND) ** 2))
                scaled = np.clip(scaled / np.sqrt(rest), -LARGEST, LARGEST)
            return scaled * self.arrays["scale"] + self.arrays["center"]
        from scipy.special import ndtr  # not before the first step

        places = zip(ndtr(scaled).T, self.arrays["shares"].T, self.arrays["quantiles"].T, strict=True)
        return np.stack([np.interp(*column) for column in places], axis=1)

    def _encode_target(self, values: np.ndarray) -> np.ndarray:
        if self.target.task == "regression":
            with np.errstate(over="ignore"):
                mean, std = np.asarray(self.target_mean), np.asarray(self.target_std)
                return ((values.astype(np.float64) - mean) / std).astype(np.float32)
        codes = _positions(values, {name: code for code, name in enumerate(self.target.classes)})
        is_unknown = (codes < 0) & ~is_gap(values)
        if is_unknown.any():
            value = values[int(np.argmax(is_unknown))]
            raise DataError(
                f"column '{short(self.target.name)}' holds the class '{short(value)}', which the network does not know",
                fix=f"the classes are {short(', '.join(self.target.classes[:20]), most=400)}",
            )
        return codes

    def with_gaps(self, x_num: np.ndarray, x_cat: np.ndarray) -> np.ndarray:
        """`x_num` with NaN where an indicator says "missing", for models that handle gaps themselves."""
        names = [column.column for column in self.numeric if column.has_indicator]
        is_missing = dict(zip(names, x_cat[:, len(self.categorical) :].T == NUM_RESERVED + 1, strict=True))
        gaps = x_num.copy()
        for index, column in enumerate(self.numeric):
            if column.column in is_missing:  # every part of a date
                gaps[is_missing[column.column], index] = np.nan
        return gaps

    def decode_target(self, y: np.ndarray) -> np.ndarray:
        """Bring standardised regression values, (B,) or of several targets (B, T), back to their own unit, float64."""
        return y.astype(np.float64) * np.asarray(self.target_std) + np.asarray(self.target_mean)

    def to_bytes(self) -> dict[str, bytes]:
        """File name -> content; equal preprocessors give equal bytes."""
        from safetensors.numpy import save  # where one is fitted: a bundle loads without it

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "arrays"}
        text = json.dumps(values, default=dataclasses.asdict, indent=1, ensure_ascii=False)
        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        return dict(zip(PREPROCESSOR_FILES, (text.encode(), save(arrays)), strict=True))

    @classmethod
    def load(cls, folder: Path) -> "Preprocessor":
        """Read what `to_bytes` gave from files in `folder`."""
        return cls.from_bytes({name: (folder / name).read_bytes() for name in PREPROCESSOR_FILES})

    @classmethod
    def from_bytes(cls, files: dict[str, bytes]) -> "Preprocessor":
        """Read what `to_bytes` gave.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        values: dict[str, Any] = json.loads(files[PREPROCESSOR_FILES[0]])
        values["numeric"] = tuple(NumericInput(**item) for item in values["numeric"])
        values["categorical"] = tuple(
            CategoricalInput(**(item | {"levels": tuple(item["levels"])})) for item in values["categorical"]
        )
        values["target"] = TargetSpec.from_json(values["target"])
        for name in ("target_mean", "target_std"):
            if isinstance(values[name], list):
                values[name] = tuple(map(float, values[name]))
        fitted = cls(**values, arrays=read_tensors(files[PREPROCESSOR_FILES[1]]))
        fitted.check()
        return fitted

    def check(self) -> None:
        """Raise ValueError where the arrays do not fit the columns, or hold what no fit gives."""
        for name in ("target_mean", "target_std"):
            if np.shape(getattr(self, name)) != ((len(self.target.columns),) if self.target.columns else ()):
                raise ValueError(f"{name} is not that of the target")
        width = len(self.numeric)
        if not width:
            return
        scaler = SCALERS.get(self.scaler)
        if scaler is None or ("quantiles" in self.arrays) != ("quantiles" in scaler):
            raise ValueError(f"the arrays are not those of the scaler '{short(str(self.scaler))}'")
        for name in (*scaler, "fill", "bin_counts"):
            if self.arrays[name].shape[-1] != width:
                raise ValueError(f"{name} has {self.arrays[name].shape[-1]} columns, and there are {width}")
        counts, edges = self.arrays["bin_counts"], self.arrays["bin_edges"]
        if (counts < 1).any() or counts.sum() != len(edges) or not all((np.diff(e) > 0).all() for e in self.bins):
            raise ValueError("bin_edges are not those of the columns")
        if not all(np.isfinite(self.arrays[name]).all() for name in (*scaler, "fill", "bin_edges")):
            raise ValueError("a number is not finite")
        if scaler is AFFINE and (self.arrays["scale"] <= 0).any():
            raise ValueError("a scale is not above zero")


def numeric_matrix(columns: Mapping[str, np.ndarray], inputs: tuple[NumericInput, ...], *, num_rows: int) -> np.ndarray:
    """The unscaled numbers of typed columns, (B, N) float64 with NaN where missing."""
    parts = [_date_part(columns[c.column], c.part) if c.part else columns[c.column] for c in inputs]
    raw = np.stack(parts, axis=1, dtype=np.float64, casting="unsafe") if parts else np.zeros((num_rows, 0))
    return np.where(np.abs(raw) < 1 / WILDEST, 0, np.clip(raw, -WILDEST, WILDEST))


def _date_part(dates: np.ndarray, part: str) -> np.ndarray:
    if part == "days":
        return (dates.astype("datetime64[us]") - np.datetime64(0, "us")) / np.timedelta64(1, "D")
    import pandas as pd  # not before the first step

    return getattr(pd.DatetimeIndex(dates), "day_of_week" if part == "weekday" else part).to_numpy(np.float64)


def is_gap(values: np.ndarray) -> np.ndarray:
    """Where None, NaN or NaT stands (B,)."""
    import pandas as pd  # not before the first step

    return pd.isna(values)


def scale_numbers(raw: np.ndarray, arrays: dict[str, np.ndarray], *, is_bent: bool = False) -> np.ndarray:
    """Scaled numbers, float64, cut at LARGEST, or with `is_bent` bent towards BEND, with NaN where missing."""
    if "quantiles" in arrays:
        from scipy.special import ndtri  # not before the first step

        places = zip(raw.T, arrays["quantiles"].T, arrays["shares"].T, strict=True)
        return ndtri(np.stack([np.interp(*column) for column in places], axis=1))
    scaled = np.clip((raw - arrays["center"]) / arrays["scale"], -LARGEST, LARGEST)
    return scaled / np.sqrt(1 + (scaled / BEND) ** 2) if is_bent else scaled


def fill_gaps(scaled: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """`fill` in place of NaN, float32."""
    return np.where(np.isnan(scaled), fill, scaled).astype(np.float32)


def _codes(values: np.ndarray | Levels, column: CategoricalInput) -> np.ndarray:
    if isinstance(values, Levels):  # the codes of its names, and of a missing one behind them
        names = np.array([*values.names, None], dtype=object)
        return _codes(names, column)[values.places]
    if column.num_buckets:
        positions = _buckets(values, column.num_buckets)
    else:
        positions = _positions(values, column.places)
    codes = np.where(positions < 0, UNSEEN, positions + NUM_RESERVED)
    if column.had_missing:  # otherwise the slot was never trained, and says less than "unseen"
        codes[is_gap(values)] = MISSING
    return codes


def _buckets(values: np.ndarray, num_buckets: int) -> np.ndarray:
    """Bucket of each text, int64, by a hash that is the same on every machine; -1 for a missing one."""
    known: dict[str, int] = {}
    for value in dict.fromkeys(values[~is_gap(values)].tolist()):
        digest = hashlib.blake2b(str(value).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        known[value] = int.from_bytes(digest, "little") % num_buckets
    return _positions(values, known)


def _positions(values: np.ndarray, places: Mapping[str, int]) -> np.ndarray:
    """Place of each value among the levels, int64; -1 for a missing or an unknown one."""
    return np.fromiter(map(places.get, values.tolist(), repeat(-1)), np.int64, len(values))
