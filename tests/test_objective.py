"""Each loss against its formula and torch's own, its gradient in double precision, and the weights of classes."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from nn_train.config import load_config
from nn_train.errors import ConfigError
from nn_train.objective import Objective, weigh_classes
from nn_train.schema import TASKS, Task
from nn_train.settings import LOSSES

NUM_ROWS = 40
OUTPUTS: dict[Task, int] = {"binary": 1, "multiclass": 4, "regression": 1}
EVERY_LOSS = [
    Objective(task="binary"),
    Objective(task="binary", label_smoothing=0.2),
    Objective(task="binary", loss="focal"),
    Objective(task="binary", loss="focal", focal_gamma=0.5, label_smoothing=0.1),
    Objective(task="multiclass", loss="cross_entropy"),
    Objective(task="multiclass", label_smoothing=0.2),
    Objective(task="multiclass", loss="focal", focal_gamma=0.5),
    Objective(task="multiclass", loss="focal", label_smoothing=0.1),
    Objective(task="regression", loss="mse"),
    Objective(task="regression", loss="mae"),
    Objective(task="regression", loss="huber"),
    Objective(task="regression", loss="huber", huber_delta=0.3),
]
every_loss = pytest.mark.parametrize(
    "objective", EVERY_LOSS, ids=lambda o: f"{o.task}-{o.loss}-{o.focal_gamma}-{o.label_smoothing}-{o.huber_delta}"
)


def make_batch(task: Task, *, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in double precision, targets, and weights of which some are zero."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(NUM_ROWS, OUTPUTS[task], generator=generator, dtype=torch.float64)
    if task == "regression":
        y = 2 * torch.randn(NUM_ROWS, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(0, max(OUTPUTS[task], 2), (NUM_ROWS,), generator=generator)
    return logits, y, torch.randint(0, 4, (NUM_ROWS,), generator=generator).double()


def by_hand(objective: Objective, logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rows' losses as the books write them, one row after the other."""
    losses = []
    for row, target in zip(logits, y, strict=True):
        if objective.task == "regression":
            error = abs(float(row[0]) - float(target))
            delta = objective.huber_delta
            huber = error**2 / 2 if error <= delta else delta * (error - delta / 2)
            losses.append({"mse": error**2, "auto": error**2, "mae": error, "huber": huber}[objective.loss])
            continue
        scores = np.array([0.0, row[0]]) if objective.task == "binary" else row
        p = np.exp(scores) / np.exp(scores).sum()
        wanted = np.full(len(p), objective.label_smoothing / len(p))
        wanted[int(target)] += 1 - objective.label_smoothing
        loss = -float((wanted * np.log(p)).sum())
        losses.append(loss * (1 - p[int(target)]) ** objective.focal_gamma if objective.loss == "focal" else loss)
    return np.array(losses)


@every_loss
def test_each_row_has_the_loss_of_the_formula(objective: Objective) -> None:
    logits, y, weight = make_batch(objective.task)
    expected = by_hand(objective, logits.numpy(), y.numpy())
    losses = objective.row_losses(logits, y)
    assert losses.shape == (NUM_ROWS,)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)
    assert float(objective.loss_sum(logits, y)) == pytest.approx(expected.sum(), rel=1e-12)
    assert float(objective.weighted_sum(logits, y, weight)) == pytest.approx(
        (weight.numpy() * expected).sum(), rel=1e-12
    )


def test_the_losses_are_torchs_where_torch_has_them() -> None:
    logits, y, _ = make_batch("multiclass")
    found = Objective(task="multiclass", label_smoothing=0.3).row_losses(logits, y)
    assert found.equal(F.cross_entropy(logits, y, label_smoothing=0.3, reduction="none"))
    assert Objective(task="multiclass").loss_sum(logits, y).equal(F.cross_entropy(logits, y, reduction="sum"))
    # two classes are the multiclass loss of two logits, of which the first is zero
    logits, y, _ = make_batch("binary")
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
    for loss, smoothing in (("auto", 0.3), ("focal", 0.0), ("focal", 0.3)):
        binary = Objective(task="binary", loss=loss, label_smoothing=smoothing)
        expected = dataclasses.replace(binary, task="multiclass").row_losses(pair, y)
        torch.testing.assert_close(binary.row_losses(logits, y), expected)
    logits, y, _ = make_batch("regression")
    value = logits.squeeze(-1)
    assert Objective(task="regression", loss="mae").row_losses(logits, y).equal((value - y).abs())
    found = Objective(task="regression", loss="huber", huber_delta=0.7).row_losses(logits, y)
    assert found.equal(F.huber_loss(value, y, delta=0.7, reduction="none"))


def test_focal_loss_without_gamma_is_cross_entropy() -> None:
    for task in ("binary", "multiclass"):
        logits, y, _ = make_batch(task)
        plain, focal = Objective(task=task), Objective(task=task, loss="focal", focal_gamma=0.0)
        assert focal.row_losses(logits, y).equal(plain.row_losses(logits, y))


@every_loss
def test_the_gradient_is_that_of_the_loss(objective: Objective) -> None:
    logits, y, weight = make_batch(objective.task)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: objective.loss_sum(z, y), logits)
    assert torch.autograd.gradcheck(lambda z: objective.weighted_sum(z, y, weight), logits)
    (gradient,) = torch.autograd.grad(objective.weighted_sum(logits, y, weight), logits)
    assert not gradient[weight == 0].any()


@every_loss
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_wild_logits_give_finite_losses_and_gradients(objective: Objective, kind: torch.dtype) -> None:
    logits, y, weight = make_batch(objective.task, scale=1e3)
    logits = logits.to(kind).requires_grad_()
    loss = objective.weighted_sum(logits, y, weight.float())
    assert loss.dtype == torch.float32 and loss.isfinite()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()


def test_the_plain_loss_smooths_no_labels() -> None:
    objective = Objective(task="binary", loss="focal", focal_gamma=1.5, label_smoothing=0.2)
    assert objective.plain == Objective(task="binary", loss="focal", focal_gamma=1.5)


# --- weights of classes -----------------------------------------------------------------------------------------------


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    y = np.repeat([0, 1, 2], [5, 1, 14])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    found = weigh_classes("balanced", ["a", "b", "c"], np.bincount(y))
    assert found is not None and found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("setting", "classes", "expected"),
    [
        ("no", ["a", "b"], None),
        ({}, ["a", "b"], None),
        ({"b": 3.0}, ["a", "b"], [1, 3]),
        ({"1": 3.0, "0": 0.5}, ["0", "1", "2"], [0.5, 3, 1]),
        ({"1.0": 3.0}, ["0", "1"], [1, 3]),
        ({"true": 2.0}, ["False", "True"], [1, 2]),
        ({"yes": 2.0}, ["no", "yes", "Yes"], [1, 2, 1]),
        ((1.0, 3.0), ["no", "yes"], [1, 3]),
        ((0.5, 1.0, 7), ["c", "a", "b"], [0.5, 1, 7]),
    ],
)
def test_named_weights_find_their_classes(setting: object, classes: list[str], expected: list[float] | None) -> None:
    found = weigh_classes(setting, classes, np.ones(len(classes)))  # type: ignore[arg-type]
    assert (None if found is None else found.tolist()) == expected


@pytest.mark.parametrize("name", ["yess", "YES", ""])
def test_a_weight_of_no_class_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        weigh_classes({name: 2.0}, ["no", "yes", "Yes"], np.ones(3))
    assert f"names the class '{name}'; the classes are no, yes, Yes" in str(caught.value)
    assert caught.value.fix.startswith("train.class_weights.")


@pytest.mark.parametrize("weights", [(), (2.0,), (1.0, 2.0, 3.0, 4.0)])
def test_a_list_of_another_length_is_refused_with_the_order_of_the_classes(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        weigh_classes(weights, ["no", "yes", "Yes"], np.ones(3))
    wanted = f"lists {len(weights)} weights, and there are 3 classes, in this order: no, yes, Yes"
    assert wanted in str(caught.value)
    assert caught.value.fix.startswith("list 3 numbers in that order")


@pytest.mark.parametrize(
    ("word", "weights"),
    [
        ("train.class_weights={yes: 3, no: 1}", {"yes": 3, "no": 1}),
        ("train.class_weights.yes=3", {"yes": 3}),
        ("train.class_weights={0: 1, 1: 2.5}", {"0": 1, "1": 2.5}),
        ("train.class_weights={true: 2}", {"true": 2}),
        ("train.class_weights=[1,3]", (1, 3)),
        ("train.class_weights=[0.5, 1e-3, 2]", (0.5, 0.001, 2)),
        ("train.class_weights=balanced", "balanced"),
        ("train.class_weights=no", "no"),
        ("train.class_weights=false", "no"),
    ],
)
def test_class_weights_are_read_as_they_are_meant(word: str, weights: object) -> None:
    assert load_config(words=[word]).train.class_weights == weights


# --- losses and tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_that_does_not_fit_the_task_is_refused(task: Task) -> None:
    for loss in ("cross_entropy", "focal", "mse", "mae", "huber"):
        words = [f"data.task={task}", f"train.loss={loss}"]
        if loss in LOSSES[task]:
            assert load_config(words=words).train.loss == loss
            continue
        with pytest.raises(ConfigError) as caught:
            load_config(words=words)
        assert f"train.loss={loss} is for" in str(caught.value)
        assert f"train.loss={LOSSES[task][0]} or" in str(caught.value)
