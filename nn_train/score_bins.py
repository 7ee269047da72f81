"""What needs every score, from counts of scores: a fixed grid of bins, so that counts of parts can be added up.

Shapes: K bins in the order of the scores. Rows of a bin count as rows with the same score, so that the only error is
what two rows of one bin say of each other.
"""

import numpy as np

BEND = 8.0  # log-odds at which a bin is four times as wide as around a half
SMALLEST_OCTAVE, NUM_OCTAVES = -32, 64  # of sizes, in units of the scale: what lies outside counts as the outermost
NAN = float("nan")


def probability_bins(p: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each probability, int64, in any shape.

    Bins are of equal width in x / (8 + |x|) of the log-odds x: with a million of them 1.5e-5 wide around a half, and
    still 6e-5 at 1 in 3000; however rare a probability is, it is told apart from those ten times as rare.
    """
    with np.errstate(divide="ignore"):
        odds = np.clip(np.log(p) - np.log1p(-p), -1e6, 1e6)
    return np.clip(((odds / (BEND + np.abs(odds)) + 1) * (num_bins / 2)).astype(np.int64), 0, num_bins - 1)


def size_bins(sizes: np.ndarray, num_bins: int) -> np.ndarray:
    """The bin of each size >= 0, int64: equally many in each octave, equally wide there."""
    mantissa, exponent = np.frexp(sizes)  # in [0.5, 1)
    place = (exponent - SMALLEST_OCTAVE + 2 * mantissa - 1) * (num_bins / NUM_OCTAVES)
    return np.clip(np.where(sizes > 0, place, 0).astype(np.int64), 0, num_bins - 1)


def _bin_middle(place: int, num_bins: int) -> float:
    """The middle of a bin of sizes; the first one holds zero."""
    if not place:
        return 0.0
    octave, part = divmod((place + 0.5) * NUM_OCTAVES / num_bins, 1)
    return float(np.ldexp((1 + part) / 2, int(octave) + SMALLEST_OCTAVE))


def median_size(counts: np.ndarray) -> float:
    """The median of the sizes that were counted (K,)."""
    below = np.cumsum(counts)
    if not below[-1]:
        return NAN
    middles = [int(np.searchsorted(below, rank, side="right")) for rank in ((below[-1] - 1) // 2, below[-1] // 2)]
    return sum(_bin_middle(place, len(counts)) for place in middles) / 2


def roc_auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """The area under the ROC curve from counts (K,) of each class; NaN where a class has no row."""
    wins, ties, pairs = _pairs(negative, positive)
    return (wins + ties / 2) / pairs if pairs else NAN


def auc_bound(negative: np.ndarray, positive: np.ndarray) -> float:
    """How far `roc_auc` can be off, whatever the order inside the bins."""
    _, ties, pairs = _pairs(negative, positive)
    return ties / 2 / pairs if pairs else NAN


def _pairs(negative: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """Pairs of a positive and a negative row: where the positive one is higher, in one bin, and all; float64."""
    below = np.cumsum(negative) - negative
    at = np.flatnonzero(positive)
    here = positive[at].astype(np.float64)
    wins, ties = (here * below[at]).sum(), (here * negative[at]).sum()
    return float(wins), float(ties), float(positive.sum()) * float(negative.sum())


def average_precision(negative: np.ndarray, positive: np.ndarray) -> float:
    """The area under the precision-recall curve, by steps; NaN without a positive row."""
    hits, rows = (np.cumsum(counts[::-1]) for counts in (positive, positive + negative))
    at = np.flatnonzero(positive[::-1])
    return float((positive[::-1][at] / hits[-1] * (hits[at] / rows[at])).sum()) if len(at) else NAN


def ks_statistic(negative: np.ndarray, positive: np.ndarray) -> float:
    """Furthest that the positives' scores lie above the negatives'; NaN where a class has no row."""
    if not (positive.any() and negative.any()):
        return NAN
    gaps = np.cumsum(negative) / negative.sum() - np.cumsum(positive) / positive.sum()
    return float(max(gaps.max(), 0.0))


def lift_at_10_percent(negative: np.ndarray, positive: np.ndarray) -> float:
    """Share of positives in the highest tenth over that of all; rows of the last bin count in proportion."""
    every = (positive + negative)[::-1]
    rows, hits = np.cumsum(every), np.cumsum(positive[::-1])
    if not hits[-1]:
        return NAN
    num_chosen = max(round(0.1 * int(rows[-1])), 1)
    last = int(np.searchsorted(rows, num_chosen))
    before, hits_before = (int(total[last] - part[last]) for total, part in ((rows, every), (hits, positive[::-1])))
    chosen = hits_before + positive[::-1][last] / every[last] * (num_chosen - before)
    return float(chosen / num_chosen / (hits[-1] / rows[-1]))
