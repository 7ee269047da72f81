"""The networks: shapes, gradients, encodings, and rows that do not see each other."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rtdl_num_embeddings import PiecewiseLinearEmbeddings, PiecewiseLinearEncoding
from torch import Tensor, nn

from nn_train.models import MODELS, build_model
from nn_train.models.embeddings import BinEncoding, CategoryEncoding, piecewise_linear
from nn_train.objective import Objective
from nn_train.schema import Task
from nn_train.settings import ModelConfig

CARDINALITIES = (3, 8, 9, 40, 4)  # two above one_hot_max
EDGES = (5, 2, 9)  # one column has a single bin
OUTPUTS: dict[Task, int] = {"binary": 1, "multiclass": 4, "regression": 1}

every_model = pytest.mark.parametrize("name", list(MODELS))


def make_bins(edges: Sequence[int] = EDGES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.sort(rng.normal(size=n)).astype(np.float32) for n in edges]


def make_model(
    name: str,
    *,
    edges: Sequence[int] = EDGES,
    cardinalities: Sequence[int] = CARDINALITIES,
    num_outputs: int = 1,
    dropout: float = 0.5,
) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig(name=name, width=24, num_embedding=6, dropout=dropout)  # type: ignore[arg-type]
    return build_model(config, bins=make_bins(edges), cardinalities=cardinalities, num_outputs=num_outputs)


def make_rows(
    num_rows: int, *, edges: Sequence[int] = EDGES, cardinalities: Sequence[int] = CARDINALITIES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Codes 0, 1, ... and largest of every column, and numbers beyond the outer edges."""
    rng = np.random.default_rng(seed)
    x_num = rng.normal(scale=2, size=(num_rows, len(edges))).astype(np.float32)
    x_cat = [rng.integers(0, c, size=num_rows) for c in cardinalities]
    return torch.from_numpy(x_num), torch.from_numpy(np.stack(x_cat, 1) if x_cat else np.zeros((num_rows, 0), np.int64))


@every_model
@pytest.mark.parametrize("task", list(OUTPUTS))
def test_logits_have_their_shape_and_every_weight_gets_a_gradient(name: str, task: Task) -> None:
    model = make_model(name, num_outputs=OUTPUTS[task])
    x_num, x_cat = make_rows(200)
    y = torch.arange(200) % OUTPUTS[task] if task == "multiclass" else torch.arange(200) % 2
    objective = Objective(task=task)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    logits = model(x_num, x_cat)
    assert logits.shape == (200, OUTPUTS[task])
    assert logits.dtype == torch.float32
    loss = objective.loss_sum(logits, y.float() if task == "regression" else y)
    assert loss.shape == ()
    loss.backward()
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_the_loss_is_a_sum_over_rows_of_what_the_task_asks_for() -> None:
    logits, classes = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    expected = -F.log_softmax(logits, 1)[torch.arange(5), classes].sum()
    torch.testing.assert_close(Objective(task="multiclass").loss_sum(logits, classes), expected)
    p, y = torch.sigmoid(logits[:, :1]).squeeze(), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(
        Objective(task="binary").loss_sum(logits[:, :1], y), -(y * p.log() + (1 - y) * (1 - p).log()).sum()
    )
    values = torch.randn(5)
    torch.testing.assert_close(
        Objective(task="regression").loss_sum(logits[:, :1], values), ((logits[:, 0] - values) ** 2).sum()
    )


def test_the_loss_of_half_precision_logits_is_computed_in_float32() -> None:
    logits = torch.full((4096, 1), 30.0, dtype=torch.float16)  # their sum overflows float16
    loss = Objective(task="binary").loss_sum(logits, torch.zeros(4096, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(30 * 4096)


@every_model
@pytest.mark.parametrize(
    ("edges", "cardinalities"),
    [((), CARDINALITIES), (EDGES, ()), (EDGES, (3,)), (EDGES, (40,)), ((), (3,)), ((2,), ())],
)
def test_kinds_of_columns_may_be_absent(name: str, edges: Sequence[int], cardinalities: Sequence[int]) -> None:
    model = make_model(name, edges=edges, cardinalities=cardinalities)
    logits = model(*make_rows(7, edges=edges, cardinalities=cardinalities))
    assert logits.shape == (7, 1)
    assert logits.isfinite().all()


@every_model
def test_unseen_levels_give_finite_logits(name: str) -> None:
    x_num, x_cat = make_rows(5)
    assert make_model(name)(x_num, torch.zeros_like(x_cat)).isfinite().all()
    assert make_model(name)(torch.full_like(x_num, 1e6), x_cat).isfinite().all()


def test_an_unseen_level_moves_nothing_at_the_start() -> None:
    encoding = CategoryEncoding(CARDINALITIES, one_hot_max=8)
    parts = torch.cat(encoding(torch.zeros((4, len(CARDINALITIES)), dtype=torch.int64)), 1)
    assert parts.shape == (4, encoding.num_outputs)
    assert (parts == 0).all()


@pytest.mark.parametrize("cardinalities", [(3, 5, 2), (3, 40, 5, 9, 2), (40, 3), (2,)])
def test_one_hot_is_torchs_without_the_unseen_code(cardinalities: Sequence[int]) -> None:
    encoding = CategoryEncoding(cardinalities, one_hot_max=8)
    _, x_cat = make_rows(100, cardinalities=cardinalities)
    small = [index for index, c in enumerate(cardinalities) if c <= 8]
    expected = torch.cat([F.one_hot(x_cat[:, i], cardinalities[i])[:, 1:] for i in small], 1)
    assert torch.equal(encoding(x_cat)[0], expected.float())
    assert encoding.num_one_hot == expected.shape[1]


def test_large_categories_are_embedded_in_the_order_of_the_columns() -> None:
    encoding = CategoryEncoding(CARDINALITIES, one_hot_max=8)
    _, x_cat = make_rows(10)
    parts = encoding(x_cat)
    assert torch.equal(parts[1], F.embedding(x_cat[:, 2], encoding.embeddings[0].weight))  # type: ignore[arg-type]
    assert torch.equal(parts[2], F.embedding(x_cat[:, 3], encoding.embeddings[1].weight))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*just two bin edges")  # of theirs; ours makes nothing of it
@pytest.mark.parametrize("edges", [EDGES, (2,), (2, 2), (4, 4), (2, 49)])
def test_numbers_are_embedded_as_by_their_authors_to_the_bit(edges: Sequence[int]) -> None:
    bins, (x_num, _) = make_bins(edges), make_rows(50, edges=edges)
    torch.manual_seed(0)
    ours, next_ours = piecewise_linear(bins, 6), torch.rand(1)
    torch.manual_seed(0)
    theirs = PiecewiseLinearEmbeddings([torch.from_numpy(b) for b in bins], 6, activation=False, version="B")
    assert torch.equal(next_ours, torch.rand(1))  # what is drawn behind it is the same too
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    spared = [type(module).__name__ for module in theirs.modules()].count("LinearEmbeddings")
    assert [type(module).__name__ for module in ours.modules()].count("LinearEmbeddings") == spared == 1
    torch.nn.init.normal_(theirs.linear.weight)  # it starts at zero
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x_num), theirs(x_num))
    for model in (ours, theirs):
        model(x_num).square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore:.*just two bin edges")
def test_an_encoded_number_says_how_much_of_each_bin_lies_below_it() -> None:
    bins, (x_num, _) = make_bins(), make_rows(50)
    edges = torch.from_numpy(bins[0])
    first = (x_num[:, :1] - edges[:-1]) / edges.diff()
    expected = torch.cat([first[:, :1].clamp(max=1), first[:, 1:-1].clamp(0, 1), first[:, -1:].clamp(min=0)], 1)
    encoded = PiecewiseLinearEncoding([torch.from_numpy(b) for b in bins])(x_num)
    torch.testing.assert_close(encoded[:, : len(edges) - 1], expected)
    encoded = BinEncoding([torch.from_numpy(b) for b in bins])(x_num)[:, 0]
    torch.testing.assert_close(torch.cat([encoded[:, :3], encoded[:, -1:]], 1), expected)


@every_model
@pytest.mark.parametrize("edges", [EDGES, (2, 2), (4, 4), (2, 49)])
def test_weights_go_into_a_model_rebuilt_from_the_same_bins(name: str, edges: Sequence[int]) -> None:
    model, rebuilt = make_model(name, edges=edges), make_model(name, edges=edges)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    rows = make_rows(20, edges=edges)
    assert torch.equal(model.eval()(*rows), rebuilt.eval()(*rows))


@every_model
def test_dropout_acts_in_training_alone(name: str) -> None:
    model, rows = make_model(name), make_rows(20)
    assert not torch.equal(model.train()(*rows), model(*rows))
    assert torch.equal(model.eval()(*rows), model(*rows))


@every_model
@pytest.mark.parametrize("is_training", [True, False])
def test_a_row_is_judged_by_itself(name: str, is_training: bool) -> None:
    model = make_model(name, dropout=0).train(is_training)
    x_num, x_cat = make_rows(64)
    alone = model(x_num[:1], x_cat[:1])
    assert alone.shape == (1, 1)
    others = make_rows(64, seed=1)
    beside = model(torch.cat([x_num[:1], others[0] * 100]), torch.cat([x_cat[:1], others[1]]))
    torch.testing.assert_close(beside[:1], alone)
    copies = model(x_num[:1].repeat(64, 1), x_cat[:1].repeat(64, 1))
    assert (copies == copies[0]).all()
