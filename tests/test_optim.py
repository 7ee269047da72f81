"""Parameter groups, and the learning rate as a pure function of the step."""

import json
import math
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from nn_train.averaging import build_average
from nn_train.errors import ConfigError
from nn_train.models import MODELS, build_model
from nn_train.optim import SCHEDULES, build_optimizer, hidden_matrices, kinds_of_parameters, lr_at_step
from nn_train.settings import OptimConfig
from nn_train.update_rules import ScheduleFree
from tests.test_models import small_config

NAMES = ("adamw", "adam", "sgd", "schedulefree", "muon")


def make_model(name: str, *, width: int = 8) -> nn.Module:
    bins = [np.linspace(-1, 1, 5, dtype=np.float32)] * 2
    config = small_config(name, num_numbers=2, width=width, num_heads=4, dropout=0.1)
    return build_model(config, bins=bins, cardinalities=(3, 40), num_outputs=1, task="binary")


# what is spared besides biases: embeddings, frequencies, norms, scales
EMBEDDED = r"embeddings|linear0"
SPARED = dict.fromkeys(MODELS, EMBEDDED) | {
    "resnet": rf"{EMBEDDED}|branch\.0|layers\.3",
    "ft-transformer": r"embeddings|inputs\.numbers|layers\.0|norm|layers\.4",
    "realmlp": r"embeddings|frequencies|layers\.0|layers\.[25]\.weight",
}


@pytest.mark.parametrize("model_name", list(MODELS))
def test_every_parameter_is_in_one_group_and_decay_spares_biases_and_embeddings(model_name: str) -> None:
    model = make_model(model_name)
    decayed, spared = build_optimizer(model, OptimConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    held = [id(parameter) for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)] for p in decayed["params"]} == {
        name
        for name, parameter in model.named_parameters()
        if "bias" not in name and not re.search(SPARED[model_name], name)
    }
    assert all(p.ndim >= 2 for p in decayed["params"])


def test_norms_are_spared() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.BatchNorm1d(4))
    decayed, spared = build_optimizer(model, OptimConfig()).param_groups
    assert len(decayed["params"]) == 1
    assert len(spared["params"]) == 5


def test_decay_shrinks_only_what_it_should() -> None:
    model = make_model("mlp")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(peak_lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        is_decayed = (name.endswith("weight") and name.startswith("layers")) or name == "inputs.numbers.linear.weight"
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if is_decayed else 1.0))


def test_embeddings_of_categories_have_a_decay_of_their_own() -> None:
    model = make_model("mlp")
    groups = build_optimizer(model, OptimConfig(weight_decay=0.1, embedding_weight_decay=0.3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.3]
    assert [id(p) for p in groups[2]["params"]] == [
        id(dict(model.named_parameters())["inputs.categories.embeddings.0.weight"])
    ]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())


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


# --- the other optimizers ---------------------------------------------------------------------------------------------


def train_a_little(model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int, first: int = 0) -> None:
    """Updates on rows that follow from the step."""
    for step in range(first, first + steps):
        torch.manual_seed(step)  # dropout's
        generator = torch.Generator().manual_seed(step)
        x_num = torch.randn(16, 2, generator=generator)
        x_cat = torch.stack([torch.randint(0, c, (16,), generator=generator) for c in (3, 40)], dim=1)
        optimizer.zero_grad(set_to_none=True)
        (model(x_num, x_cat).squeeze(1) - x_num.sum(1)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model_name", list(MODELS))
def test_every_optimizer_has_every_parameter_once_and_decays_the_same_ones(name: str, model_name: str) -> None:
    model = make_model(model_name)
    groups = build_optimizer(model, OptimConfig(name=name, weight_decay=0.1)).param_groups  # type: ignore[arg-type]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    kinds = kinds_of_parameters(model)
    for group in groups:
        assert {kinds[p] == "weight" for p in group["params"]} <= {group["weight_decay"] == 0.1}
        assert group["lr"] == 2e-3


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_and_goes_on_from_its_state_with_the_same_bits(name: str) -> None:
    config = OptimConfig(name=name, peak_lr=0.02)  # type: ignore[arg-type]
    torch.manual_seed(0)
    whole, cut = make_model("mlp", width=64), make_model("mlp", width=64)
    cut.load_state_dict(whole.state_dict())
    optimizer = build_optimizer(whole, config)
    train_a_little(whole, optimizer, steps=12)
    first = build_optimizer(cut, config)
    train_a_little(cut, first, steps=5)
    again = build_optimizer(cut, config)
    state = first.state_dict()
    again.load_state_dict(state | {"param_groups": json.loads(json.dumps(state["param_groups"]))})
    train_a_little(cut, again, steps=7, first=5)
    for (key, one), other in zip(whole.state_dict().items(), cut.state_dict().values(), strict=True):
        assert one.equal(other), key
    x_num = torch.randn(64, 2, generator=torch.Generator().manual_seed(99))
    x_cat = torch.ones(64, 2, dtype=torch.int64)
    train_a_little(whole, optimizer, steps=150, first=12)
    with torch.no_grad(), build_average(whole, optimizer, config).judged():
        error = float((whole(x_num, x_cat).squeeze(1) - x_num.sum(1)).square().mean())
    assert error < 0.5  # of a target with a variance of 2


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_updates_are_fused_only_where_torch_has_that(name: str) -> None:
    config = OptimConfig(name=name)  # type: ignore[arg-type]
    for device, expected in ((None, True), (torch.device("cuda"), True), (torch.device("hpu"), False)):
        groups = build_optimizer(make_model("mlp"), config, device=device).param_groups
        assert {group["fused"] for group in groups if "fused" in group} == {expected}


def test_muon_moves_hidden_matrices_alone_and_by_steps_of_adamws_size() -> None:
    model = make_model("mlp")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    hidden = {names[id(p)] for p in hidden_matrices(model)}
    linears = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert hidden == set(linears[:-1])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_a_little(model, build_optimizer(model, OptimConfig(name="muon", peak_lr=0.01, weight_decay=0)), steps=1)
    for name in hidden:
        move = (model.get_parameter(name).detach() - before[name]).square().mean().sqrt()
        assert 0.0005 < float(move) < 0.005  # 0.2 of the learning rate, as AdamW's usually is


def test_muon_needs_a_torch_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ConfigError, match=r"optim.name=muon needs torch 2\.9 or newer"):
        build_optimizer(make_model("mlp"), OptimConfig(name="muon"))


def test_schedule_free_is_its_paper_written_out() -> None:
    # algorithm 1 of Defazio et al. 2024, with Adam's second moment and decay at y, for one number
    weight = nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = ScheduleFree([{"params": [weight], "weight_decay": 0.1}], lr=0.05, betas=(0.9, 0.99))
    z = x = y = 3.0
    second, weights = 0.0, 0.0
    for step in range(1, 30):
        lr = 0.05 * min(step / 4, 1.0)
        gradient = 2 * (y - 1)
        second = 0.99 * second + 0.01 * gradient**2
        weights += lr**2
        z -= lr * (gradient / (math.sqrt(second / (1 - 0.99**step)) + 1e-8) + 0.1 * y)
        x += lr**2 / weights * (z - x)
        y = 0.1 * z + 0.9 * x
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = 2 * (weight.detach() - 1)
        optimizer.step()
        assert float(weight.detach()) == pytest.approx(y, rel=1e-12)
        [(_, average)] = optimizer.averages()
        assert float(average) == pytest.approx(x, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"name": "schedulefree", "schedule": "cosine"}, "optim.schedule=constant"),
        ({"name": "schedulefree", "ema_decay": 0.9}, "optim.ema_decay=no"),
        ({"name": "schedulefree", "beta1": 0.0}, "optim.beta1=0.9"),
        ({"schedule": "one-cycle", "warmup_steps": 5}, "optim.warmup_steps=0"),
        ({"schedule": "coslog4", "warmup_steps": 5}, "optim.warmup_steps=0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, mend: str) -> None:
    with pytest.raises(ValidationError, match=mend):
        OptimConfig(**settings)


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        (nn.Linear(2, 2), "weight", "weight"),
        (nn.Linear(2, 2), "bias", "bias"),
        (nn.RMSNorm(2), "weight", "norm"),
        (nn.EmbeddingBag(3, 2), "weight", "embedding"),
        (type("_Periodic", (nn.Linear,), {})(2, 2), "weight", "frequency"),
    ],
)
def test_kinds_of_parameters(module: nn.Module, name: str, kind: str) -> None:
    assert kinds_of_parameters(module)[module.get_parameter(name)] == kind


# --- the shapes of the schedules --------------------------------------------------------------------------------------


@given(schedule=st.sampled_from(list(SCHEDULES)), share=st.floats(0, 1), total=st.integers(1, 10**9))
def test_a_schedule_stays_within_its_peak_and_ends_at_zero(schedule: str, share: float, total: int) -> None:
    config = OptimConfig(peak_lr=0.5, schedule=schedule)  # type: ignore[arg-type]
    assert 0 <= lr_at_step(int(share * total), config, total_steps=total) <= 0.5
    at_the_end = lr_at_step(total, config, total_steps=total)
    assert at_the_end == pytest.approx(0.5 if schedule == "constant" else 0, abs=1e-15)
    assert lr_at_step(3 * total, config, total_steps=total) == at_the_end


@given(schedule=st.sampled_from(list(SCHEDULES)), step=st.integers(0, 1000), times=st.integers(1, 50))
def test_a_schedule_is_stretched_over_all_steps(schedule: str, step: int, times: int) -> None:
    config = OptimConfig(schedule=schedule)  # type: ignore[arg-type]
    short = lr_at_step(step, config, total_steps=1000)
    assert lr_at_step(times * step, config, total_steps=times * 1000) == pytest.approx(short, rel=1e-9, abs=1e-15)


@given(one=st.floats(0, 1), other=st.floats(0, 1))
def test_one_cycle_rises_and_then_falls(one: float, other: float) -> None:
    low, high = sorted((one, other))
    cycle = SCHEDULES["one-cycle"]
    assert cycle(0.0) == pytest.approx(1 / 25) and cycle(0.3) == 1.0
    if high <= 0.3:
        assert cycle(low) <= cycle(high)
    elif low >= 0.3:
        assert cycle(low) >= cycle(high)


def test_coslog4_has_four_waves_each_twice_as_long_as_the_one_before() -> None:
    wave = SCHEDULES["coslog4"]
    for number in range(4):
        start, top = (2**number - 1) / 15, (2 ** (number + 0.5) - 1) / 15
        assert wave(start) == pytest.approx(0, abs=1e-12) and wave(top) == pytest.approx(1)


# --- averages ---------------------------------------------------------------------------------------------------------


def test_the_moving_average_is_its_formula_and_leaves_the_weights_alone() -> None:
    layer = nn.Linear(2, 1, dtype=torch.float64)
    average = build_average(layer, torch.optim.SGD(layer.parameters()), OptimConfig(ema_decay=0.5))
    expected = {name: p.detach().clone() for name, p in layer.named_parameters()}
    latest: dict[str, Tensor] = {}
    for step in range(1, 20):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        latest = {name: p.detach().clone() for name, p in layer.named_parameters()}
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * latest[name] for name in expected}
    with average.judged():
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name])
    assert all(parameter.equal(latest[name]) for name, parameter in layer.named_parameters())
    with pytest.raises(ZeroDivisionError), average.judged():
        _ = 1 / 0
    assert all(parameter.equal(latest[name]) for name, parameter in layer.named_parameters())
