"""Gradients in float64 against those of the single big batch; started on 1 to 4 processes by tests/test_gradients.py.

usage: run_gradients.py OUT CASES, where CASES is a JSON object of names and lists of `section.key=value` words, and OUT
a JSON file for the largest differences of each. Those named after a task go through all sizes of micro-batches.
"""

import dataclasses
import hashlib
import json
import sys
from typing import Any

import torch
from torch import Tensor, nn

from nn_train.config import load_config
from nn_train.gradients import build_gradients
from nn_train.packed import PackedRows
from nn_train.preparation import prepare_data
from nn_train.runtime import leave_world, start_runtime
from nn_train.schema import TASKS
from nn_train.train import leave
from nn_train.training import Training

MICRO = ("auto", "1", "3", "5")
SILENT_STEP = 2  # the step whose rows weigh nothing, where rows have weights


def in_float64(rows: PackedRows) -> PackedRows:
    """The rows with all that is a float in double precision."""
    floats = {
        field.name: value.double()
        for field in dataclasses.fields(rows)
        if isinstance(value := getattr(rows, field.name), Tensor) and value.is_floating_point()
    }
    return dataclasses.replace(rows, **floats)


def big_batch(training: Training, network: nn.Module, rows: PackedRows, step: int) -> tuple[Tensor, Tensor]:
    """Gradient and loss of the whole global batch in one forward, by plain PyTorch."""
    network.zero_grad(set_to_none=True)
    batch = rows.take(torch.from_numpy(training.plan.rows(step)))
    losses = training.objective.row_losses(network(batch.x_num, batch.x_cat), batch.y)
    weight = torch.ones_like(losses) if batch.weight is None else batch.weight
    loss = (weight * losses).sum() / (weight.sum() if weight.any() else 1)
    loss.backward()
    return flat(network), loss.detach()


def silence(training: Training, rows: PackedRows) -> PackedRows:
    """The rows, of which those of one step weigh nothing, if rows have weights."""
    if rows.weight is None:
        return rows
    weight = rows.weight.clone()
    weight[torch.from_numpy(training.plan.rows(SILENT_STEP))] = 0
    return dataclasses.replace(rows, weight=weight)


def flat(network: nn.Module) -> Tensor:
    """All gradients as one vector, copied."""
    return torch.cat(
        [parameter.grad.flatten().clone() for parameter in network.parameters() if parameter.grad is not None]
    )


def compare(words: list[str]) -> dict[str, Any]:
    """The largest difference of gradient and loss, relative to the largest entry, over an epoch with a ragged end.

    Beside it the steps without any gradient, and a sum of all gradients' bits.
    """
    config = load_config(None, words)
    runtime = start_runtime(config.train)  # DDP's options follow from the mode
    training = Training(config, prepare_data(config), runtime, record=lambda record: None, check_owner=lambda: None,
                        tell=lambda event, **values: None)  # fmt: skip
    network = training.network.double()
    rows = silence(training, in_float64(training.rows))
    model = runtime.accelerator.prepare(network)
    gradients = build_gradients(
        runtime, model, rows=rows, plan=training.plan, objective=training.objective, share=training.share,
        canonical_slices=config.train.canonical_slices if config.train.gradient_reduction == "exact" else None,
    )  # fmt: skip
    worst, worst_loss, silent, bits = 0.0, 0.0, [], hashlib.sha256()
    for step in range(training.plan.steps_per_epoch):
        expected, expected_loss = big_batch(training, network, rows, step)
        model.zero_grad(set_to_none=True)
        loss = gradients.global_loss(gradients.compute(step))
        found = flat(network)
        worst = max(worst, float((found - expected).abs().max() / (expected.abs().max() or 1.0)))
        worst_loss = max(worst_loss, abs(float(loss) - float(expected_loss)) / (abs(float(expected_loss)) or 1.0))
        bits.update(found.numpy().tobytes())
        if not found.any() and not float(loss):
            silent.append(step)
    return {
        "gradient": worst,
        "loss": worst_loss,
        "steps": training.plan.steps_per_epoch,
        "silent": silent,
        "bits": bits.hexdigest(),
    }


if __name__ == "__main__":
    cases = json.loads(sys.argv[2])
    runtime = start_runtime(load_config(None, next(iter(cases.values()))).train)
    found = {}
    for name, words in cases.items():
        for micro in MICRO if name in TASKS else MICRO[2:3]:
            found[f"{name}, micro {micro}"] = compare([*words, f"train.micro_batch_size={micro}"])
        if runtime.num_processes != 3:  # exact mode is for powers of two
            found[f"{name}, exact"] = compare([*words, "train.gradient_reduction=exact"])
    if runtime.is_main:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(found, file)
    leave_world()
    leave(0)
