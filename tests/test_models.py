"""The networks: shapes, gradients, encodings, and rows that do not see each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import rtdl_num_embeddings as authors
import tabm as tabm_authors
import torch
import torch.nn.functional as F
from rtdl_num_embeddings import PiecewiseLinearEmbeddings, PiecewiseLinearEncoding
from torch import Tensor, nn

from nn_train.models import MODELS, build_model
from nn_train.models.categories import CategoryEncoding
from nn_train.models.members import combine_members
from nn_train.models.numeric import BinEncoding, embed_numbers, piecewise_linear
from nn_train.models.realmlp import GAIN, TangentLinear
from nn_train.network_choice import resolve_model
from nn_train.objective import Objective
from nn_train.schema import Task
from nn_train.settings import EMBEDDING_OPTIONS, MODEL_OPTIONS, ModelConfig, OptimConfig

CARDINALITIES = (3, 8, 9, 40, 4)  # two above one_hot_max
EDGES = (5, 2, 9)  # one column has a single bin
OUTPUTS: dict[Task, int] = {"binary": 1, "multiclass": 4, "regression": 1}

# every network with the embedding that is its own, and every embedding with one network
NETWORKS = [(name, "auto") for name in MODELS]
NETWORKS += [("mlp", embedding) for embedding in EMBEDDING_OPTIONS] + [("tabm", "none"), ("ft-transformer", "periodic")]
every_model = pytest.mark.parametrize(("name", "embedding"), NETWORKS)


def make_bins(edges: Sequence[int] = EDGES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.sort(rng.normal(size=n)).astype(np.float32) for n in edges]


def small_config(name: str, *, num_numbers: int, **options: Any) -> ModelConfig:
    """A small network's settings without `auto`; options that it does not have are left out."""
    small = {"width": 24, "num_blocks": 2, "num_members": 3, "num_embedding": 6, "dropout": 0.5, "hidden_factor": 2}
    own = set(MODEL_OPTIONS[name])
    embedding = options.get("embedding", "auto") if num_numbers else "auto"
    if not num_numbers or embedding == "none" or (name == "linear" and embedding == "auto"):
        own -= {"num_embedding"}
    values = small | options | {"embedding": embedding}
    config = ModelConfig(name=name, **{key: value for key, value in values.items() if key in own})  # type: ignore[arg-type]
    return resolve_model(config, num_rows=100, num_numbers=num_numbers, device_type="cpu")


def make_model(
    name: str,
    *,
    edges: Sequence[int] = EDGES,
    cardinalities: Sequence[int] = CARDINALITIES,
    num_outputs: int = 1,
    task: Task = "binary",
    **options: Any,
) -> nn.Module:
    torch.manual_seed(0)
    config = small_config(name, num_numbers=len(edges), **options)
    return build_model(config, bins=make_bins(edges), cardinalities=cardinalities, num_outputs=num_outputs, task=task)


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
def test_logits_have_their_shape_and_every_weight_gets_a_gradient(name: str, embedding: str, task: Task) -> None:
    model = make_model(name, num_outputs=OUTPUTS[task], task=task, embedding=embedding, dropout=0)
    x_num, x_cat = make_rows(200)
    y = torch.arange(200) % OUTPUTS[task] if task == "multiclass" else torch.arange(200) % 2
    objective = Objective(task=task)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):  # layers that start at zero let the gradient of those in front through from the second step on
        optimizer.zero_grad()
        logits = model(x_num, x_cat)
        members = (3,) if "tabm" in name else ()
        assert logits.shape == (200, *members, OUTPUTS[task])
        assert logits.dtype == torch.float32
        loss = objective.loss_sum(logits, y.float() if task == "regression" else y)
        assert loss.shape == ()
        loss.backward()
        optimizer.step()
    assert model.eval()(x_num, x_cat).shape == (200, OUTPUTS[task])
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
def test_kinds_of_columns_may_be_absent(
    name: str, embedding: str, edges: Sequence[int], cardinalities: Sequence[int]
) -> None:
    model = make_model(name, edges=edges, cardinalities=cardinalities, embedding=embedding).eval()
    logits = model(*make_rows(7, edges=edges, cardinalities=cardinalities))
    assert logits.shape == (7, 1)
    assert logits.isfinite().all()


@every_model
def test_unseen_levels_give_finite_logits(name: str, embedding: str) -> None:
    x_num, x_cat = make_rows(5)
    model = make_model(name, embedding=embedding).eval()
    assert model(x_num, torch.zeros_like(x_cat)).isfinite().all()
    assert model(torch.full_like(x_num, 1e6), x_cat).isfinite().all()


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
def test_weights_go_into_a_model_rebuilt_from_the_same_bins(name: str, embedding: str, edges: Sequence[int]) -> None:
    model, rebuilt = (make_model(name, edges=edges, embedding=embedding) for _ in range(2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    rows = make_rows(20, edges=edges)
    assert torch.equal(model.eval()(*rows), rebuilt.eval()(*rows))


@every_model
def test_dropout_acts_in_training_alone(name: str, embedding: str) -> None:
    # the linear model has none but that of embeddings
    model, rows = make_model(name, embedding=embedding, embedding_dropout=0.5), make_rows(20)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)  # RealMLP's head starts at zero
    assert not torch.equal(model.train()(*rows), model(*rows))
    assert torch.equal(model.eval()(*rows), model(*rows))


@every_model
@pytest.mark.parametrize("is_training", [True, False])
def test_a_row_is_judged_by_itself(name: str, embedding: str, is_training: bool) -> None:
    model = make_model(name, dropout=0, attention_dropout=0, embedding=embedding).train(is_training)
    x_num, x_cat = make_rows(64)
    alone = model(x_num[:1], x_cat[:1])
    assert alone.shape[0] == 1 and alone.shape[-1] == 1
    others = make_rows(64, seed=1)
    beside = model(torch.cat([x_num[:1], others[0] * 100]), torch.cat([x_cat[:1], others[1]]))
    torch.testing.assert_close(beside[:1], alone, rtol=1e-4, atol=1e-5)
    copies = model(x_num[:1].repeat(64, 1), x_cat[:1].repeat(64, 1))
    torch.testing.assert_close(copies, copies[:1].expand_as(copies))


# ---- against the authors' own packages


def same_draws(make_ours: Callable[[], nn.Module], make_theirs: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Both, drawn from the same seed; what is drawn behind them must be the same too."""
    torch.manual_seed(0)
    ours, next_ours = make_ours(), torch.rand(1)
    torch.manual_seed(0)
    theirs = make_theirs()
    assert torch.equal(next_ours, torch.rand(1))
    return ours, theirs


def assert_same(ours: nn.Module, theirs: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Outputs and all gradients are equal; `pairs` are the two outputs."""
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        one.square().sum().backward()
        other.square().sum().backward()
    gradients = [[p.grad for p in model.parameters()] for model in (ours, theirs)]
    assert len(gradients[0]) == len(gradients[1])
    for parameter in theirs.parameters():
        assert parameter.grad is not None
        assert any(
            own is not None and own.shape == parameter.grad.shape and torch.allclose(own, parameter.grad, 1e-4, 1e-5)
            for own in gradients[0]
        )


@pytest.mark.parametrize(
    ("options", "make_theirs"),
    [
        ({"embedding": "linear"}, lambda: authors.LinearReLUEmbeddings(3, 6)),
        ({"embedding": "periodic"}, lambda: authors.PeriodicEmbeddings(3, 6, lite=False)),
        ({"embedding": "periodic-lite"}, lambda: authors.PeriodicEmbeddings(3, 6, lite=True)),
        (
            {"embedding": "periodic", "num_frequencies": 5, "frequency_scale": 0.3},
            lambda: authors.PeriodicEmbeddings(3, 6, n_frequencies=5, frequency_init_scale=0.3, lite=False),
        ),
    ],
    ids=["linear", "periodic", "periodic-lite", "periodic-5"],
)
def test_other_embeddings_of_numbers_are_their_authors_to_the_bit(
    options: dict[str, Any], make_theirs: Callable[[], nn.Module]
) -> None:
    config = small_config("mlp", num_numbers=3, **options)
    ours, theirs = same_draws(lambda: embed_numbers(config, make_bins(), width=6) or nn.Identity(), make_theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x_num, _ = make_rows(50)
    assert torch.equal(ours(x_num), theirs(x_num))


@pytest.mark.filterwarnings("ignore:.*just two bin edges")
@pytest.mark.parametrize("name", ["tabm", "tabm-mini"])
@pytest.mark.parametrize("embedding", ["ple", "none"])
def test_tabm_is_its_authors(name: str, embedding: str) -> None:
    def make_theirs() -> nn.Module:
        bins = [torch.from_numpy(column) for column in make_bins()]
        numbers = (
            authors.PiecewiseLinearEmbeddings(bins, 6, activation=False, version="B") if embedding == "ple" else None
        )
        return tabm_authors.TabM.make(
            n_num_features=len(EDGES),
            num_embeddings=numbers,
            d_out=2,
            n_blocks=2,
            d_block=24,
            dropout=0.0,
            k=3,
            arch_type=name,
        )

    config = small_config(name, num_numbers=3, embedding=embedding, dropout=0)
    ours, theirs = same_draws(
        lambda: build_model(config, bins=make_bins(), cardinalities=(), num_outputs=2, task="multiclass"), make_theirs
    )
    own = dict(ours.named_parameters())
    assert sorted(p.shape for p in own.values()) == sorted(p.shape for p in theirs.parameters())
    left = [parameter.detach() for parameter in own.values()]
    for parameter in theirs.parameters():  # every weight is there, with the same draws
        place = next(i for i, p in enumerate(left) if p.shape == parameter.shape and torch.equal(p, parameter.detach()))
        left.pop(place)
    x_num, x_cat = make_rows(50, cardinalities=())
    assert_same(ours, theirs, [(ours.train()(x_num, x_cat), theirs.train()(x_num))])


def test_the_start_of_members_gives_each_column_one_number() -> None:
    model = make_model("tabm", num_members=200)
    scale = model.state_dict()["layers.1.r"]
    columns = model.input_E
    for column in set(columns):  # type: ignore[arg-type]
        places = [place for place, owner in enumerate(columns) if owner == column]  # type: ignore[arg-type]
        assert (scale[:, places] == scale[:, places[:1]]).all()
        assert abs(float(scale[:, places[0]].std()) - 1) < 0.25
    signs = make_model("tabm", embedding="none").state_dict()["layers.1.r"]
    assert set(signs.unique().tolist()) == {-1.0, 1.0}


def test_the_transformer_is_its_authors() -> None:
    theirs_of = pytest.importorskip("rtdl_revisiting_models").FTTransformer
    ours = make_model("ft-transformer", num_outputs=2, num_heads=4, dropout=0, attention_dropout=0)
    theirs = theirs_of(
        n_cont_features=len(EDGES), cat_cardinalities=list(CARDINALITIES), d_out=2, n_blocks=2, d_block=24,
        attention_n_heads=4, attention_dropout=0.0, ffn_d_hidden_multiplier=2, ffn_dropout=0.0, residual_dropout=0.0,
    )  # fmt: skip
    words = {
        "cls_embedding": "layers.0", "cont_embeddings": "inputs.numbers", "cat_embeddings": "inputs.categories",
        "backbone.blocks.0": "layers.1", "backbone.blocks.1": "layers.2", "backbone.output.normalization": "layers.4",
        "backbone.output.linear": "layers.6", "attention.W_q": "attention.query", "attention.W_k": "attention.key",
        "attention.W_v": "attention.value", "attention.W_out": "attention.mix", "ffn_normalization": "feed_norm",
        "ffn.linear1": "feed.widen", "ffn.linear2": "feed.narrow", "attention_normalization": "attention_norm",
    }  # fmt: skip

    def translate(name: str) -> str:
        for word, own in words.items():
            name = name.replace(word, own)
        return name

    found = {translate(name): value for name, value in theirs.state_dict().items()}
    for name, value in ours.state_dict().items():
        is_drawn = not name.endswith("bias") and "norm" not in name and "layers.4" not in name
        if is_drawn and value.numel() > 500:  # of the same spread at the start
            assert float(value.std()) == pytest.approx(float(found[name].std()), rel=0.15), name
    ours.load_state_dict(found)
    x_num, x_cat = make_rows(50)
    torch.testing.assert_close(ours(x_num, x_cat), theirs(x_num, x_cat), rtol=1e-4, atol=1e-5)


def test_the_resnet_is_its_authors_but_for_the_norm() -> None:
    theirs_of = pytest.importorskip("rtdl_revisiting_models").ResNet
    ours = make_model("resnet", num_outputs=2, dropout=0, embedding="none", cardinalities=())
    theirs = theirs_of(d_in=3, d_out=2, n_blocks=2, d_block=24, d_hidden_multiplier=2.0, dropout1=0.0, dropout2=0.0)
    for parent in [module for module in theirs.modules() if hasattr(module, "normalization")]:
        parent.normalization = nn.LayerNorm(24)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x_num, x_cat = make_rows(50, cardinalities=())
    torch.testing.assert_close(ours(x_num, x_cat), theirs(x_num), rtol=1e-5, atol=1e-6)


def test_realmlp_takes_steps_of_its_own_size() -> None:
    # the first step of Adam moves each stored weight by the learning rate: the value it stands for by `gain` times that
    for task, rate in (("binary", 0.04), ("regression", 0.2)):
        layer = TangentLinear(8, 4, gain=GAIN[task], is_last=False)
        assert float((layer.weight.detach() * layer.gain).std()) == pytest.approx(1, abs=0.4)
        assert layer.gain * OptimConfig().peak_lr == pytest.approx(rate)
        assert layer.bias_gain * OptimConfig().peak_lr == pytest.approx(rate / 10)
    x = torch.randn(4000, 8)
    assert float(TangentLinear(8, 400, gain=20.0, is_last=False)(x).detach().std()) == pytest.approx(2**0.5, abs=0.1)
    assert (TangentLinear(8, 4, gain=20.0, is_last=True)(x) == 0).all()


# ---- members


@pytest.mark.parametrize("task", list(OUTPUTS))
def test_members_predict_the_mean_of_their_probabilities(task: Task) -> None:
    logits = 3 * torch.randn(50, 5, OUTPUTS[task], dtype=torch.float64)
    combined = combine_members(logits, task)
    assert combined.shape == (50, OUTPUTS[task])
    if task == "binary":
        torch.testing.assert_close(torch.sigmoid(combined), torch.sigmoid(logits).mean(1))
    elif task == "multiclass":
        torch.testing.assert_close(torch.softmax(combined, 1), torch.softmax(logits, 2).mean(1))
    else:
        torch.testing.assert_close(combined, logits.mean(1))


def test_certain_members_do_not_overflow() -> None:
    for task in OUTPUTS:
        for size in (200.0, 1e4):
            logits = size * torch.ones(1, 4, 3 if task == "multiclass" else 1)
            logits[:, :, :1] *= -1
            combined = combine_members(logits, task)
            assert combined.isfinite().all()
            assert float(combined[0, 0]) < -0.9 * size
    torch.testing.assert_close(combine_members(torch.full((1, 9, 1), 300.0), "binary"), torch.full((1, 1), 300.0))


@pytest.mark.parametrize("name", ["tabm", "tabm-mini"])
@pytest.mark.parametrize("task", list(OUTPUTS))
def test_the_loss_is_the_mean_of_the_members_losses(name: str, task: Task) -> None:
    model = make_model(name, task=task, num_outputs=OUTPUTS[task], dropout=0).double()
    x_num, x_cat = make_rows(40)
    x_num = x_num.double()
    y = torch.arange(40) % 3 if task == "multiclass" else torch.arange(40) % 2
    y = y.double() if task == "regression" else y
    weight = torch.rand(40, dtype=torch.float64)
    objective = Objective(task=task, label_smoothing=0.0 if task == "regression" else 0.1)

    def gradient(loss: Tensor) -> Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    for loss_of in (
        lambda logits: objective.loss_sum(logits, y),
        lambda logits: objective.weighted_sum(logits, y, weight),
    ):
        together = gradient(loss_of(model(x_num, x_cat)))
        apart = [gradient(loss_of(model(x_num, x_cat)[:, member])) for member in range(3)]
        torch.testing.assert_close(together, sum(apart) / 3, rtol=0, atol=1e-10)  # type: ignore[arg-type]
    of_mean = gradient(objective.loss_sum(combine_members(model(x_num, x_cat), task), y))
    assert not torch.allclose(of_mean, gradient(objective.loss_sum(model(x_num, x_cat), y)))


@pytest.mark.parametrize("name", ["tabm", "tabm-mini"])
def test_a_members_own_weights_see_its_own_loss_alone(name: str) -> None:
    model = make_model(name, dropout=0).double()
    x_num, x_cat = make_rows(40)
    Objective(task="binary").loss_sum(model(x_num.double(), x_cat)[:, 1], torch.arange(40) % 2).backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.shape[0] == 3 and parameter_name.startswith("layers"):
            assert parameter.grad is not None
            assert not parameter.grad[[0, 2]].any() and parameter.grad[1].any(), parameter_name


# ---- categories


def test_hidden_levels_are_unseen_ones_and_train_what_that_means() -> None:
    encoding = CategoryEncoding((40,), one_hot_max=8, hidden_share=0.5)
    codes = torch.full((2000, 1), 7)
    torch.manual_seed(0)
    [parts] = encoding(codes)
    embedding = encoding.embeddings[0].weight
    is_hidden = (parts == embedding[0]).all(1)  # type: ignore[index]
    assert float(is_hidden.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert (parts[~is_hidden] == embedding[7]).all()  # type: ignore[index]
    parts.sum().backward()
    assert embedding.grad[0].any()  # type: ignore[index]
    assert torch.equal(encoding.eval()(codes)[0], embedding[7].expand(2000, -1))  # type: ignore[index]


# ---- precision


@every_model
def test_bf16_is_enough(name: str, embedding: str) -> None:
    model = make_model(name, embedding=embedding, dropout=0)
    x_num, x_cat = make_rows(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Objective(task="binary").loss_sum(model(x_num, x_cat), torch.arange(64) % 2)
        judged = model.eval()(x_num, x_cat)
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(judged.float(), model(x_num, x_cat), rtol=0.1, atol=0.1)
