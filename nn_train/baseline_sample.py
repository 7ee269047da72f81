"""Which rows the baselines see where a table has too many for them, and the network judged on the same ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from nn_train.decision import Decision
from nn_train.metrics import compute_metrics, metrics_by_target
from nn_train.own_metrics import OwnMetric
from nn_train.preparation import PreparedData
from nn_train.sampling import even_places
from nn_train.schema import SPLITS, Split, TargetSpec

Places = dict[Split, np.ndarray]  # of rows in a split
Values = Mapping[Split, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaselineSample:
    """Splits of which the baselines see some rows alone, by their places; of the others they see all.

    `of_held` are the same rows' places among those whose predictions by the network are held.
    """

    rows: Places
    of_held: Places
    num_rows: dict[Split, int]

    def of_predictions(self, held: Values) -> Places:
        """The network's predictions of these rows, from those that are held."""
        return {split: said[self.of_held[split]] if split in self.of_held else said for split, said in held.items()}

    def judge(
        self,
        truth: Values,
        predictions: Values,
        decision: Decision,
        target: TargetSpec,
        own_metrics: Mapping[str, OwnMetric],
    ) -> dict[str, Any]:
        """`baseline_sample` for metrics.json: how many rows are seen, and the network on these; empty where all are."""
        if not self.rows:
            return {}
        costs = decision.cost_table
        network: dict[str, Any] = {}
        for split, y in truth.items():
            said = predictions[split]
            found = compute_metrics(y, said, task=target.task, threshold=decision.threshold, costs=costs)
            network[split] = found | {name: measure(y, said) for name, measure in own_metrics.items()}
        if target.columns:
            by_target = {s: metrics_by_target(y, predictions[s], target.columns) for s, y in truth.items()}
            network["targets"] = by_target
        seen = {split: len(self.rows[split]) if split in self.rows else n for split, n in self.num_rows.items()}
        return {"baseline_sample": {"seen": seen, "rows": self.num_rows, "network": network}}


def take_sample(data: PreparedData, places: Values, *, most: int) -> BaselineSample:
    """An even sample of each split that has more than so many rows.

    Of splits that `places` names, the network's predictions are held of the rows there alone.
    """
    num_rows: dict[Split, int] = {split: data.num_rows(split) for split in SPLITS}
    rows: Places = {}
    of_held: Places = {}
    for split, size in num_rows.items():
        held = places.get(split)
        if held is None and size <= most:
            continue
        among = even_places(size if held is None else len(held), most)
        rows[split] = among if held is None else held[among]
        of_held[split] = among
    return BaselineSample(rows=rows, of_held=of_held, num_rows=num_rows)
