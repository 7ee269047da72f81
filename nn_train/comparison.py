"""Runs beside a baseline run: which of their test rows are the same, and what a difference on them is worth.

The networks are taken as they are: what is tested is the choice of the rows, not that of the seed.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from scipy import special

from nn_train.errors import short
from nn_train.metrics import LOWER_IS_BETTER
from nn_train.resampling import Rows, Samples, bootstrap, interval, row_losses

ALPHA = 0.05
SAME_TARGET = 1e-9  # relative: a number that was written as text and read again
Reading = Literal["better", "worse", "no difference shown"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class JudgedRun:
    """A run's test rows: their numbers in its table (R,), sorted, and what it predicts for them."""

    name: str
    numbers: np.ndarray
    rows: Rows
    classes: tuple[str, ...]
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of a run minus the baseline's, on the same rows; `holm` is `p` corrected for the number of runs."""

    value: float
    interval: tuple[float, float] | None
    p: float
    holm: float = float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A classical test of the same question: what was counted, in words, and how likely it is by chance."""

    words: str
    p: float
    holm: float = float("nan")


Result = TypeVar("Result", Difference, PairedTest)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A run against the baseline: on how many rows, what a reader must know of them, and what came out.

    `has_same_rows` where both were judged on these rows and no others.
    """

    num_rows: int
    has_same_rows: bool
    notes: tuple[str, ...]
    differences: dict[str, Difference]
    tests: dict[str, PairedTest]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The metrics of each run on its own test rows, and its pair with the baseline; None for the baseline itself."""

    samples: list[Samples]
    pairs: list[Pair | None]
    baseline: int

    @property
    def has_same_rows(self) -> bool:
        """Were all runs judged on the same rows?"""
        return all(pair is None or pair.has_same_rows for pair in self.pairs)


def compare(runs: Sequence[JudgedRun], *, baseline: int, samples: int, seed: int) -> Comparison:
    """Bootstrap every run, and test each against the baseline; Holm's p-values of a metric are over the runs."""
    own = [bootstrap(run.rows, samples=samples, seed=seed) for run in runs]
    pairs = []
    for place in (place for place in range(len(runs)) if place != baseline):
        run, other = runs[place], runs[baseline]
        match = match_rows(run, other)
        rows, others = run.rows.take(match.places), other.rows.take(match.others)
        both = own[place], own[baseline]
        if not match.is_whole and len(rows):
            both = bootstrap(rows, samples=samples, seed=seed), bootstrap(others, samples=samples, seed=seed)
        pairs.append(
            Pair(
                num_rows=len(rows),
                has_same_rows=match.is_whole,
                notes=match.notes,
                differences=compare_samples(*both) if len(rows) else {},
                tests=run_tests(rows, others) if len(rows) else {},
            )
        )
    differences, tests = _correct([pair.differences for pair in pairs]), _correct([pair.tests for pair in pairs])
    found = [
        dataclasses.replace(pair, differences=of_metrics, tests=of_tests)
        for pair, of_metrics, of_tests in zip(pairs, differences, tests, strict=True)
    ]
    return Comparison(samples=own, pairs=[*found[:baseline], None, *found[baseline:]], baseline=baseline)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """Places of the same rows in two runs; `is_whole` where they are all rows of both."""

    places: np.ndarray
    others: np.ndarray
    is_whole: bool
    notes: tuple[str, ...]


def match_rows(run: JudgedRun, baseline: JudgedRun) -> Match:
    """Match test rows by their number, and look at their targets: those of the same row are the same.

    No row is matched where one target differs: the tables are then others, or in another order.
    """
    common, places, others = np.intersect1d(run.numbers, baseline.numbers, assume_unique=True, return_indices=True)
    nothing = np.array([], dtype=int)
    if not len(common):
        notes = (f"{run.name} and {baseline.name} have no test row in common, so no paired test was made.",)
        return Match(places=nothing, others=nothing, is_whole=False, notes=notes)
    y, other_y = run.rows.y[places], baseline.rows.y[others]
    if run.rows.task == "regression":
        differs = ~np.isclose(y, other_y, rtol=SAME_TARGET, atol=0).reshape(len(y), -1).all(axis=1)
    else:
        differs = y != other_y
    if differs.any():
        place = int(np.argmax(differs))
        own, other = (
            f"'{short(run.classes[values[place]])}'" if run.classes else values[place] for values in (y, other_y)
        )
        notes = (
            f"Row {common[place]} has the target {own} in {run.name} and {other} in {baseline.name}: the runs were not "
            "judged on rows of the same table, so no paired test was made.",
        )
        return Match(places=nothing, others=nothing, is_whole=False, notes=notes)
    is_whole = len(common) == len(run.numbers) == len(baseline.numbers)
    notes = []
    if not is_whole:
        notes.append(
            f"{run.name} and {baseline.name} have {len(common):,} test rows in common, of {len(run.numbers):,} and "
            f"{len(baseline.numbers):,}: they are compared on these."
        )
    if not run.fingerprint or run.fingerprint != baseline.fingerprint:
        notes.append(
            f"The tables of {run.name} and {baseline.name} are not the same, byte by byte; their rows were matched by "
            "number, and all targets agree."
        )
    return Match(places=places, others=others, is_whole=is_whole, notes=tuple(notes))


def compare_samples(run: Samples, baseline: Samples) -> dict[str, Difference]:
    """Metric -> the run's minus the baseline's, from paired resamples; not corrected for the number of runs."""
    differences = {}
    for name in (name for name in run.values if name in baseline.values):
        values = run.values[name] - baseline.values[name]
        value = run.estimates[name] - baseline.estimates[name]
        differences[name] = Difference(value=value, interval=interval(values), p=bootstrap_p(values))
    return differences


def bootstrap_p(differences: np.ndarray) -> float:
    """Two-sided p-value of no difference, from paired resamples (S,): how far the interval must go to reach zero.

    The estimate counts as one more resample, so that no p-value is 0. Source: Davison and Hinkley 1997, ch. 4.
    """
    finite = differences[np.isfinite(differences)]
    if len(finite) <= 0.9 * len(differences):
        return float("nan")
    beyond = min((finite <= 0).sum(), (finite >= 0).sum())
    return min(1.0, 2 * (float(beyond) + 1) / (len(finite) + 1))


def run_tests(rows: Rows, baseline: Rows) -> dict[str, PairedTest]:
    """Exact McNemar for the decisions, and a paired t-test for the losses of the rows."""
    own, other = row_losses(rows), row_losses(baseline)
    if rows.task == "regression":
        return {
            "squared error": paired_t(own["mse"], other["mse"]),
            "absolute error": paired_t(own["mae"], other["mae"]),
        }
    return {
        "accuracy": mcnemar(own["accuracy"] > 0, other["accuracy"] > 0),
        "log_loss": paired_t(own["log_loss"], other["log_loss"]),
    }


def mcnemar(hits: np.ndarray, baseline_hits: np.ndarray) -> PairedTest:
    """Of the rows that one run alone gets right, half would be each one's if they were equally good.

    The exact, two-sided binomial test. Source: McNemar 1947; for classifiers, Dietterich 1998.
    """
    won, lost = int((hits & ~baseline_hits).sum()), int((~hits & baseline_hits).sum())
    p = min(1.0, 2 * float(special.bdtr(min(won, lost), won + lost, 0.5)))
    return PairedTest(words=f"alone right {won:,}, baseline {lost:,}", p=p)


def paired_t(losses: np.ndarray, baseline_losses: np.ndarray) -> PairedTest:
    """Student's t of the mean difference of the rows' losses (R,), which is the difference of the metrics.

    Not Wilcoxon's signed ranks, which ask for the median of differences that lie symmetrically: those of losses do not.
    Source: Student 1908; for losses of two predictors, Diebold and Mariano 1995.
    """
    difference = losses - baseline_losses
    if len(difference) < 2 or not np.isfinite(difference).all():
        return PairedTest(words="not defined for these rows", p=float("nan"))
    mean, error = float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))
    if error == 0:
        words = "the same difference in every row" if mean else "no difference in any row"
        return PairedTest(words=words, p=0.0 if mean else 1.0)
    t = mean / error
    return PairedTest(words=f"t = {t:.2f}", p=float(2 * special.stdtr(len(difference) - 1, -abs(t))))


def holm(p: Sequence[float]) -> list[float]:
    """p-values that hold for all tests together; NaN ones are no tests. Source: Holm 1979."""
    order = sorted((place for place, value in enumerate(p) if not np.isnan(value)), key=lambda place: p[place])
    adjusted, highest = [float("nan")] * len(p), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[place]))
        adjusted[place] = highest
    return adjusted


def _correct(found: list[dict[str, Result]]) -> list[dict[str, Result]]:
    """Results by run and name, with Holm's p-values over the runs of each name."""
    corrected = [dict(results) for results in found]
    for name in {name for results in found for name in results}:
        holders = [results for results in corrected if name in results]
        for results, value in zip(holders, holm([results[name].p for results in holders]), strict=True):
            results[name] = dataclasses.replace(results[name], holm=value)
    return corrected


def read_difference(metric: str, difference: Difference) -> Reading:
    """What may be said of a difference: one that chance makes in 5 % of cases or more is not shown."""
    if not difference.holm < ALPHA:
        return "no difference shown"
    is_lower = difference.value < 0
    return "better" if is_lower == (metric in LOWER_IS_BETTER) else "worse"
