"""Which columns moved single predictions: integrated gradients, by captum where it is installed.

Shapes: B rows, E width of the encoded inputs. Source: Sundararajan et al. 2017.
"""

import importlib.util
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from nn_train.decision import Decision
from nn_train.errors import ConfigError
from nn_train.importance import input_places
from nn_train.packed import Batch
from nn_train.preprocessor import NUM_RESERVED, UNSEEN, Preprocessor
from nn_train.settings import Config

NUM_STEPS = 300
BLOCK_ROWS = 512  # rows times steps of one backward


class Encodes(Protocol):
    """A network in two halves: inputs -> (B, E), and from there to logits; `input_E` says whose each place is."""

    input_E: list[int]
    layers: nn.Module

    def encode(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        """x_num (B, N) and x_cat (B, C) -> (B, E)."""
        ...


def can_attribute() -> bool:
    """Is captum installed?"""
    return importlib.util.find_spec("captum") is not None


def check_attributions(config: Config) -> None:
    """Raise ConfigError where attributions are required and captum is not installed."""
    if config.report.attributions == "required" and not can_attribute():
        raise ConfigError(
            "report.attributions=required needs captum, which is not installed",
            fix="pip install captum, or report.attributions=auto",
        )


def attribute(network: nn.Module, batch: Batch, preprocessor: Preprocessor, decision: Decision) -> dict[str, Any]:
    """What each column adds to the score of each row, from a base row; one process, no collectives.

    The score of a class is its log-odds, ln(p / (1 - p)), after temperature: of a binary task the positive class, of
    several the most probable one; before isotonic curves, whose corners would stand for columns. A regression's is
    the prediction. In the base row numbers are the average of the train rows, and categories are unknown. A row's
    parts add up to its score less that of the base row, save for `gap`, the largest error of the integral.
    """
    from captum.attr import IntegratedGradients  # optional, and only once training is done

    halves = cast(Encodes, network)
    with torch.no_grad():
        encoded_BE = halves.encode(batch.x_num, batch.x_cat)
        base_E = halves.encode(*_base_row(batch, preprocessor))
        chosen_B = halves.layers(encoded_BE).argmax(dim=1)

    def score(rows_BE: Tensor, class_B: Tensor) -> Tensor:
        return _score(halves.layers(rows_BE).float(), class_B, preprocessor, decision)

    parts_BE = IntegratedGradients(score).attribute(
        encoded_BE,
        baselines=base_E,
        additional_forward_args=(chosen_B,),
        n_steps=NUM_STEPS,
        internal_batch_size=BLOCK_ROWS,
    )
    with torch.no_grad():
        scores_B = score(encoded_BE, chosen_B)
        bases_B = score(base_E.expand(len(chosen_B), -1), chosen_B)
    num_numbers = len(preprocessor.numeric)
    num_inputs = num_numbers + len(preprocessor.cardinalities)
    sums = torch.zeros((len(chosen_B), num_inputs), dtype=torch.float64)
    by_input = sums.index_add_(1, torch.tensor(halves.input_E), parts_BE.detach().cpu().double()).numpy()
    columns = {
        name: by_input[:, [*numbers, *(num_numbers + code for code in codes)]].sum(axis=1)
        for name, (numbers, codes) in input_places(preprocessor).items()
    }
    gap = np.abs(by_input.sum(axis=1) - (scores_B - bases_B).cpu().double().numpy())
    return {
        "classes": chosen_B.tolist() if preprocessor.target.task == "multiclass" else None,
        "scores": scores_B.tolist(),
        "bases": bases_B.tolist(),
        "columns": {name: values.tolist() for name, values in columns.items()},
        "gap": float(gap.max()),
    }


def _base_row(batch: Batch, preprocessor: Preprocessor) -> tuple[Tensor, Tensor]:
    """Numbers as those that stand for a missing one, but present; categories as never seen."""
    fill = preprocessor.arrays["fill"].astype(np.float32) if preprocessor.numeric else np.zeros(0, np.float32)
    num_categories = len(preprocessor.categorical)
    codes = torch.full((1, batch.x_cat.shape[1]), UNSEEN, dtype=batch.x_cat.dtype)
    codes[:, num_categories:] = NUM_RESERVED
    return torch.from_numpy(fill)[None].to(batch.y.device), codes.to(batch.y.device)


def _score(logits: Tensor, class_B: Tensor, preprocessor: Preprocessor, decision: Decision) -> Tensor:
    task = preprocessor.target.task
    if task == "regression":  # of several targets the first
        std, mean = (float(np.ravel(value)[0]) for value in (preprocessor.target_std, preprocessor.target_mean))
        return logits[:, preprocessor.target.middle] * std + mean
    scaled = logits / decision.temperature
    if task == "binary":
        return scaled[:, 0]
    others = scaled.scatter(1, class_B[:, None], -torch.inf)
    return scaled.gather(1, class_B[:, None])[:, 0] - others.logsumexp(dim=1)
