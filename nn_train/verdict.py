"""The network against the best baseline on the same rows: which is better, by how much, and is it more than chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nn_train.metrics import LOWER_IS_BETTER
from nn_train.schema import Split

SPLIT_NAMES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}


def find_rival(metric: str, network: float | None, baselines: Mapping[str, float | None]) -> dict[str, Any] | None:
    """The best baseline by the metric, and by how much the network is better; None where one is not defined."""
    known = {name: value for name, value in baselines.items() if value is not None and np.isfinite(value)}
    if network is None or not np.isfinite(network) or not known:
        return None
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    rival = max(known, key=lambda name: sign * known[name])
    return {
        "metric": metric,
        "rival": rival,
        "network": network,
        "baseline": known[rival],
        "network_is_better_by": sign * (network - known[rival]),
    }


def describe_difference(verdict: Mapping[str, Any]) -> str:
    """By how much the better one is better, and whether chance could have made it."""
    by, known = verdict["network_is_better_by"], verdict.get("interval")
    words = f"The difference is {abs(by):.4g}"
    if not known:
        return f"{words}."
    low, high = known if by >= 0 else [-value for value in reversed(known)]
    words += f" (95 % interval {low:.4g} to {high:.4g}, paired bootstrap of the {SPLIT_NAMES[verdict['split']]} rows)"
    return f"{words}: no difference is shown." if low <= 0 <= high else f"{words}."


def describe_verdict(verdict: Mapping[str, Any], better: Sequence[str]) -> str:
    """One line for the terminal; `better` are the baselines that beat the network. Who wins within chance is ahead."""
    by, metric, rival = verdict["network_is_better_by"], verdict["metric"], verdict["rival"].replace("_", " ")
    values = f"network {verdict['network']:.4f}, {rival} {verdict['baseline']:.4f}"
    is_chance = bool(verdict.get("interval")) and verdict["interval"][0] <= 0 <= verdict["interval"][1]
    if by > 0:
        return (
            f"the network {'is ahead' if is_chance else 'wins'} by {metric}: {values}. {describe_difference(verdict)}"
        )
    if by == 0:
        return f"the network ties with {rival} by {metric}: {values}."
    names = ", ".join(name.replace("_", " ") for name in better)
    loses = f"is behind {names} by {metric}" if is_chance else f"LOSES by {metric} to {names}"
    return f"the network {loses}: {values}. {describe_difference(verdict)}"


def find_better(metrics: Mapping[str, Any]) -> list[str]:
    """The baselines that beat the network by the metric of its verdict, the best first."""
    verdict = metrics["verdict"]
    sign = -1.0 if verdict["metric"] in LOWER_IS_BETTER else 1.0
    values = {n: of[verdict["split"]].get(verdict["metric"]) for n, of in metrics["baselines"].items()}
    better = {n: sign * v for n, v in values.items() if v is not None and sign * v > sign * verdict["network"]}
    return sorted(better, key=lambda name: -better[name])
