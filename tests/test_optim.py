"""Parameter groups, and the learning rate as a pure function of the step."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from nn_train.models import MODELS, build_model
from nn_train.optim import build_optimizer, lr_at_step
from nn_train.settings import ModelConfig, OptimConfig


def make_model(name: str) -> nn.Module:
    bins = [np.linspace(-1, 1, 5, dtype=np.float32)] * 2
    return build_model(ModelConfig(name=name, width=8), bins=bins, cardinalities=(3, 40), num_outputs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(MODELS))
def test_every_parameter_is_in_one_group_and_decay_spares_biases_and_embeddings(name: str) -> None:
    model = make_model(name)
    decayed, spared = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    held = [id(parameter) for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        name
        for name, parameter in model.named_parameters()
        if "bias" not in name and "embeddings" not in name and "linear0" not in name
    }
    assert all(p.ndim >= 2 for p in decayed["params"])


def test_norms_are_spared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4))
    decayed, spared = build_optimizer(model, OptimConfig()).param_groups
    assert len(decayed["params"]) == 1
    assert len(spared["params"]) == 5


def test_decay_shrinks_only_what_it_should() -> None:
    model = make_model("mlp-ple")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(peak_lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        is_decayed = (name.endswith("weight") and name.startswith("layers")) or name == "numbers.linear.weight"
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if is_decayed else 1.0))


def test_settings_reach_the_optimizer() -> None:
    optimizer = build_optimizer(make_model("mlp"), OptimConfig(peak_lr=0.5, beta1=0.7, beta2=0.8))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert all(group["lr"] == 0.5 and group["betas"] == (0.7, 0.8) for group in optimizer.param_groups)


def test_warm_up_rises_by_equal_steps_to_the_peak() -> None:
    config = OptimConfig(peak_lr=1.0, warmup_steps=4)
    assert [lr_at_step(step, config, total_steps=100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert lr_at_step(10**6, config, total_steps=100) == 1.0


def test_constant_from_the_first_step() -> None:
    assert [lr_at_step(step, OptimConfig(peak_lr=0.3), total_steps=9) for step in (0, 5, 8)] == [0.3, 0.3, 0.3]


@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_goes_from_the_peak_to_zero(warmup: int) -> None:
    config = OptimConfig(peak_lr=2.0, schedule="cosine", warmup_steps=warmup)
    values = [lr_at_step(step, config, total_steps=110) for step in range(111)]
    assert values[warmup] == 2.0
    assert values[warmup + (110 - warmup) // 2] == pytest.approx(1.0)
    assert values[109] == pytest.approx(1 + math.cos(math.pi * (109 - warmup) / (110 - warmup)))
    assert 0 < values[109] < 1e-3
    assert values[110] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(values[warmup:], values[warmup + 1 :], strict=False))


def test_lr_is_a_pure_function_of_the_step() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=7)
    in_order = [lr_at_step(step, config, total_steps=50) for step in range(50)]
    steps = list(range(50))
    random.Random(0).shuffle(steps)
    shuffled = {step: lr_at_step(step, config, total_steps=50) for step in steps}
    assert [shuffled[step] for step in range(50)] == in_order


def test_a_schedule_shorter_than_its_warm_up_is_no_error() -> None:
    config = OptimConfig(peak_lr=1.0, schedule="cosine", warmup_steps=10)
    assert lr_at_step(2, config, total_steps=3) == pytest.approx(0.3)
    assert lr_at_step(10, config, total_steps=3) == 1.0
