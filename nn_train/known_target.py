"""A target whose best possible score is known: "yes" with a probability that is a function of the row as written.

The score of a row is a sum of terms: each column's own signal (a line with a wave of a number, an effect of its own for
each level of a category, another where the value is missing) and the products of a few pairs. Slope and offset of the
logistic function are chosen on the source: about 24 % are "yes", and no model can have a ROC AUC above about 0.80.
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import entr, expit

from nn_train.errors import DataError
from nn_train.source_table import Facts

POSITIVE_SHARE, BEST_AUC = 0.24, 0.80
NUM_PAIRS, PAIR_WEIGHT = 4, 1.2
PAIR_LEVELS = 50  # a category of more levels has no part in a pair: its products would take too many rows to learn
MOST_DEVIATIONS = 4.0  # a number further from the mean than this counts as that far
STEEPEST = 64.0  # slope: what is steeper is a rule without chance
NUM_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Term:
    """A product of the signals of some columns; `salt` sets the signals of one term apart from those of another."""

    weight: float
    columns: tuple[str, ...]
    salt: str


class KnownTarget:
    """The probability of "yes", fixed by seed and source."""

    def __init__(self, facts: Sequence[Facts], *, seed: int):
        self.seed = seed
        self.facts = {known.name: known for known in facts}
        self.slope, self.offset = 1.0, 0.0
        self.terms = _choose_terms(facts, seed)
        self.effects: dict[tuple[str, str], dict[str, float]] = {}

    def fit(self, sample: pa.Table) -> "KnownTarget":
        """Choose slope and offset by rows of the source. Raises DataError where all rows have one score."""
        score = self.score(sample)
        if not len(score) or score.std() < 1e-9:
            raise DataError("no column of the source tells one row from another", fix="--source=FILE with such columns")
        low, high = 0.0, STEEPEST / float(score.std())
        for _ in range(30):
            slope = (low + high) / 2
            low, high = (slope, high) if self._auc_with(slope, score) < BEST_AUC else (low, slope)
        self.slope = (low + high) / 2
        self.offset = _find_offset(self.slope * score)
        return self

    def probability(self, table: pa.Table) -> np.ndarray:
        """The probability of "yes" of each row (N,), from the columns as they are written."""
        return expit(self.offset + self.slope * self.score(table))

    def score(self, table: pa.Table) -> np.ndarray:
        """The sum of the terms (N,)."""
        columns = {name: _readable(table.column(name)) for term in self.terms for name in term.columns}
        score = np.zeros(table.num_rows)
        for term in self.terms:
            product = np.full(table.num_rows, term.weight)
            for name in term.columns:
                product *= self._signal(name, term.salt, columns[name])
            score += product
        return score

    def _auc_with(self, slope: float, score: np.ndarray) -> float:
        return best_auc(expit(_find_offset(slope * score) + slope * score))

    def _signal(self, name: str, salt: str, values: np.ndarray | pa.DictionaryArray) -> np.ndarray:
        rng = np.random.default_rng(_hash(self.seed, salt, name))
        if_missing = rng.normal()
        if isinstance(values, np.ndarray):
            facts = self.facts[name]
            scaled = (values - facts.mean) / (facts.deviation or 1.0)
            scaled = np.clip(scaled, -MOST_DEVIATIONS, MOST_DEVIATIONS)
            turn, frequency, phase = rng.uniform((0.0, 0.8, 0.0), (2 * np.pi, 2.0, 2 * np.pi))
            signal = math.cos(turn) * scaled + math.sqrt(2) * math.sin(turn) * np.sin(frequency * scaled + phase)
            signal[np.isnan(scaled)] = if_missing
            return signal
        known = self.effects.setdefault((name, salt), {})
        levels = values.dictionary.to_pylist()
        for level in levels:
            if level not in known:
                share = (_hash(self.seed, salt, name, level) + 0.5) / 2.0**64
                known[level] = NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9))
        effects = np.array([*(known[level] for level in levels), if_missing])
        return effects[values.indices.fill_null(len(levels)).to_numpy()]


def _choose_terms(facts: Sequence[Facts], seed: int) -> list[Term]:
    telling = [known for known in facts if known.kind != "kept" and known.num_distinct > 1]
    rng = np.random.default_rng(_hash(seed, "terms"))
    terms = [Term(float(rng.lognormal(0.0, 0.6)), (known.name,), "alone") for known in telling]
    paired = [known.name for known in telling if known.kind == "number" or known.num_distinct <= PAIR_LEVELS]
    for number in range(NUM_PAIRS if len(paired) > 1 else 0):
        first, second = rng.choice(len(paired), size=2, replace=False)
        terms.append(Term(PAIR_WEIGHT, (paired[first], paired[second]), f"pair {number}"))
    return terms


def _hash(*parts: object) -> int:
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _readable(column: pa.ChunkedArray) -> np.ndarray | pa.DictionaryArray:
    """Numbers as float64 with NaN, and levels as codes."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        return pc.dictionary_encode(column.combine_chunks())
    return column.cast(pa.float64()).to_numpy().copy()


def _find_offset(score: np.ndarray) -> float:
    """The offset with which the mean probability is `POSITIVE_SHARE`."""
    low, high = -float(score.max()) - 40, -float(score.min()) + 40
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(score + middle).mean() < POSITIVE_SHARE else (low, middle)
    return (low + high) / 2


def best_auc(probability: np.ndarray) -> float:
    """The ROC AUC of the probability itself that is to be expected over all draws of the labels."""
    rest, place = np.unique(probability, return_inverse=True)
    yes = np.bincount(place, weights=probability, minlength=len(rest))
    no = np.bincount(place, weights=1 - probability, minlength=len(rest))
    return _area(yes, no)


def _area(yes: np.ndarray, no: np.ndarray) -> float:
    """The ROC AUC of sorted bins with so many "yes" and "no" each."""
    pairs = float(yes.sum()) * float(no.sum())
    below = np.cumsum(no, dtype=np.float64) - no
    return float((yes * (below + no / 2)).sum()) / pairs if pairs else math.nan


class Tally:
    """What the best possible scores of many rows are computed from; it does not grow with them."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, NUM_BINS), dtype=np.int64)  # "no" and "yes", by probability
        self.entropy = 0.0

    def add(self, probability: np.ndarray, is_yes: np.ndarray) -> None:
        """Take in rows (N,)."""
        bins = np.minimum((probability * NUM_BINS).astype(np.int64), NUM_BINS - 1)
        counted = np.bincount(bins + NUM_BINS * is_yes, minlength=2 * NUM_BINS)
        self.counts += counted.reshape(2, NUM_BINS)
        self.entropy += float((entr(probability) + entr(1 - probability)).sum())

    def merge(self, other: "Tally") -> None:
        """Take in what another has counted."""
        self.counts += other.counts
        self.entropy += other.entropy

    def scores(self) -> dict[str, float]:
        """Share of "yes", and the expected log-loss, ROC AUC and average precision of the probability itself."""
        no, yes = self.counts
        num_rows = int(self.counts.sum())
        found, seen = np.cumsum(yes[::-1]), np.cumsum((yes + no)[::-1])
        precision = found / np.maximum(seen, 1)
        scores = {
            "positive_share": yes.sum() / num_rows,
            "log_loss": self.entropy / num_rows,
            "roc_auc": _area(yes, no),
            "average_precision": float((precision * yes[::-1]).sum()) / yes.sum() if yes.any() else math.nan,
        }
        return {name: round(float(score), 8) for name, score in scores.items()}
