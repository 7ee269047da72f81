"""The training loop on small tables: how it ends, what it selects, clips, refuses and logs."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nn_train.batch_plan import BatchPlan
from nn_train.checkpoint import list_checkpoints
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError, TrainingError
from nn_train.objective import Objective
from nn_train.optim import build_optimizer
from nn_train.preparation import prepare_data
from nn_train.runtime import set_up_logging, start_runtime
from nn_train.training import Training, build_network
from tests.conftest import BARE, SMALL, make_table

WORDS = (*SMALL, "data.target=y", "train.global_batch_size=64", "tracking.log_every_steps=1")
Train = Callable[..., "Run"]


class Run:
    """A finished training and what its folder says of it."""

    def __init__(self, engine: Engine, metrics: dict[str, Any], shown: str):
        self.engine = engine
        self.folder = engine.run_dir
        self.metrics = metrics
        self.shown = shown
        self.status = read_status(self.folder)
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        self.train = [line for line in lines if line["split"] == "train"]
        self.val = [line for line in lines if line["split"] == "val"]
        assert len(self.train) + len(self.val) == len(lines)

    def column(self, name: str, split: str = "train") -> np.ndarray:
        return np.array([line[name] for line in getattr(self, split)])


def read_status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table for each task, packed once for all tests of this module."""
    folder = tmp_path_factory.mktemp("loop")
    for task in ("binary", "multiclass", "regression"):
        make_table(300, task=task).to_csv(folder / f"{task}.csv", index=False)
    return folder


@pytest.fixture
def train(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in this process; `name` is the run folder's, `task` the table's."""
    set_up_logging()  # else the first engine would switch it off again
    monkeypatch.setattr(logging.getLogger("nn_train"), "propagate", True)

    def run(*words: str, name: str = "run", task: str = "binary") -> Run:
        table = [f"data.path={folder / task}.csv", f"data.cache_dir={folder / 'cache'}"]
        caplog.clear()
        engine = Engine(load_config(None, [*WORDS, *table, f"run.dir={tmp_path / name}", *words]))
        try:
            engine.prepare()
            engine.train()
            metrics = engine.evaluate()
        finally:
            engine.close()
        return Run(engine, metrics, caplog.text)

    return run


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, Tensor]:
    return load_file(folder / name)


def newest(run: Run) -> Path:
    return list_checkpoints(run.folder / "checkpoints")[0]


def are_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def is_in_order(steps: np.ndarray) -> bool:
    return steps.tolist() == sorted(steps.tolist())


# ---- how a training ends


def test_max_epochs(train: Train) -> None:
    run = train("train.max_epochs=3")
    assert run.status == {"state": "done", "reason": "max_epochs", "step": 12}  # 210 rows, 4 batches a pass
    assert run.column("epoch")[-1] == 3
    assert run.column("step").tolist() == list(range(1, 13))
    assert run.column("step", "val").tolist() == [4, 8, 12]


@pytest.mark.parametrize("steps", [1, 7, 8])
def test_max_steps(train: Train, steps: int) -> None:
    run = train(f"train.max_steps={steps}")
    assert run.status == {"state": "done", "reason": "max_steps", "step": steps}
    assert len(run.train) == steps
    assert run.column("step", "val")[-1] == steps  # the last step is judged, in the middle of a pass as well


def test_more_steps_than_the_epochs_hold(train: Train) -> None:
    assert train("train.max_epochs=1", "train.max_steps=100").status["reason"] == "max_epochs"


@pytest.mark.parametrize("words", [(), ("train.eval_every=1",), ("train.check_every_steps=1000",)])
def test_max_time(train: Train, words: tuple[str, ...]) -> None:
    run = train("train.max_time=0.001", *words)
    assert run.status["state"] == "done"
    assert run.status["reason"] == "max_time"
    assert run.status["step"] < 100
    assert run.column("step", "val")[-1] == run.status["step"]
    assert len(set(run.column("step", "val").tolist())) == len(run.val)


def test_max_time_counts_what_was_trained_before(train: Train) -> None:
    first = train("train.max_time=0.05", "train.max_epochs=100000")
    again = train("train.max_time=0.05", "train.max_epochs=100001")
    assert again.status == first.status
    steps = first.status["step"] + 3
    longer = train(f"train.max_steps={steps}", "train.max_epochs=100001")
    assert longer.status["step"] == steps
    assert is_in_order(longer.column("elapsed_s"))
    assert longer.column("elapsed_s")[-1] > 0.05


def test_early_stopping_keeps_the_best_weights(train: Train) -> None:
    run = train("train.early_stopping=3", "optim.peak_lr=0.05", "train.eval_every=2", "model.width=64")
    values, steps = run.column("log_loss", "val"), run.column("step", "val")
    best = int(np.argmin(values))
    assert run.status == {"state": "done", "reason": "early_stopping", "step": int(steps[best + 3])}
    assert len(values) == best + 4
    assert run.metrics["selection"]["step"] == steps[best]
    assert run.metrics["selection"]["value"] == values[best]
    assert run.metrics["selection"]["metric"] == "log_loss"
    assert are_equal(weights(run.folder), weights(newest(run), "best.safetensors"))
    assert not are_equal(weights(run.folder), weights(newest(run)))
    # they are the weights of that step, and not only said to be
    until = train(*(word for word in ("optim.peak_lr=0.05", "train.eval_every=2", "model.width=64")),
                  f"train.max_steps={steps[best]}", name="until")  # fmt: skip
    assert are_equal(weights(run.folder), weights(newest(until)))
    assert until.metrics["test"] == run.metrics["test"]


def test_a_run_that_stopped_early_is_over(train: Train) -> None:
    words = ("train.early_stopping=2", "optim.peak_lr=0.05", "train.eval_every=2")
    first = train(*words)
    again = train(*words, "train.max_epochs=999")
    assert again.status == first.status
    assert len(again.train) == len(first.train)


def test_a_finished_run_goes_on_where_its_limit_is_raised(train: Train) -> None:
    train("train.max_steps=5", "train.eval_every=3")
    run = train("train.max_steps=9", "train.eval_every=3")
    assert run.status == {"state": "done", "reason": "max_steps", "step": 9}
    assert run.column("step").tolist() == list(range(1, 10))
    assert run.column("step", "val").tolist() == [3, 5, 6, 9]
    lowered = train("train.max_steps=4", "train.eval_every=3")
    assert lowered.status["step"] == 9


# ---- what is selected


@pytest.mark.parametrize(
    ("task", "metric", "better"),
    [
        ("binary", "roc_auc", np.max),
        ("binary", "brier_score", np.min),
        ("binary", "balanced_accuracy", np.max),
        ("multiclass", "accuracy", np.max),
        ("multiclass", "auto", np.min),
        ("regression", "r2", np.max),
        ("regression", "mae", np.min),
        ("regression", "auto", np.min),
    ],
)
def test_any_metric_selects(train: Train, task: str, metric: str, better: Callable[[np.ndarray], float]) -> None:
    run = train(
        f"train.selection_metric={metric}", "train.max_steps=30", "train.eval_every=3", "optim.peak_lr=0.05", task=task
    )
    name = {"multiclass": "log_loss", "regression": "rmse"}[task] if metric == "auto" else metric
    values = run.column(name, "val")
    assert run.metrics["selection"]["metric"] == name
    assert run.metrics["selection"]["value"] == better(values)
    first = int(np.flatnonzero(values == better(values))[0])  # an equal value later is no better one
    assert run.metrics["selection"]["step"] == run.column("step", "val")[first]


def test_a_metric_of_another_task_is_refused(train: Train) -> None:
    with pytest.raises(ConfigError, match="rmse is not a metric of a binary task"):
        train("train.selection_metric=rmse", "train.max_steps=2")


# ---- one step


def own_step(run: Run, *, clip: float) -> tuple[dict[str, Tensor], float, float]:
    """Weights, loss and gradient norm of the first step by plain PyTorch, over the whole batch at once."""
    config, data = run.engine.config, run.engine.data
    network = build_network(config, data)
    rows = data.rows("train", device=torch.device("cpu"))
    plan = BatchPlan(num_rows=len(rows), global_batch_size=64, seed=config.run.seed)
    batch = rows.take(torch.from_numpy(plan.rows(0)))
    optimizer = build_optimizer(network, config.optim)
    loss = Objective(task="binary").loss_sum(network(batch.x_num, batch.x_cat), batch.y) / 64
    loss.backward()
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad *= min(1.0, clip / float(norm))
    optimizer.step()
    return network.state_dict(), float(loss.detach()), float(norm)


@pytest.mark.parametrize("words", [(), ("train.micro_batch_size=10",), ("train.gradient_reduction=exact",)])
@pytest.mark.parametrize("clip", ["no", "1e-9", "1e6"])
def test_a_step_is_that_of_plain_pytorch(train: Train, words: tuple[str, ...], clip: str) -> None:
    # at 1e-9 the gradient is as small as AdamW's epsilon, so that the clipped step is a much shorter one
    run = train("train.max_steps=1", "model.dropout=0", f"train.grad_clip={clip}", *words)
    expected, loss, norm = own_step(run, clip=float("inf") if clip == "no" else float(clip))
    assert run.train[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert run.train[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)  # before clipping
    for name, weight in weights(newest(run)).items():
        torch.testing.assert_close(
            weight, expected[name], rtol=1e-5, atol=2e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_clipping_changes_the_step(train: Train) -> None:
    free = train("train.max_steps=1", "train.grad_clip=no", name="free")
    clipped = train("train.max_steps=1", "train.grad_clip=1e-9", name="clipped")
    network = build_network(free.engine.training.config, free.engine.data)
    start = {name: parameter.detach() for name, parameter in network.named_parameters()}
    moved = [sum(float((weights(newest(run))[n] - start[n]).abs().sum()) for n in start) for run in (free, clipped)]
    assert moved[1] < moved[0] / 5
    assert free.train[0]["grad_norm"] == clipped.train[0]["grad_norm"]


def test_clipping_bounds_the_move_of_the_weights(folder: Path, tmp_path: Path) -> None:
    # in double precision, where a move of 1e-9 is seen; by SGD, whose step is the learning rate times the gradient
    words = [f"data.path={folder / 'binary.csv'}", f"data.cache_dir={folder / 'cache'}", f"run.dir={tmp_path / 'run'}"]
    words += ["optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.peak_lr=0.5", "train.grad_clip=1e-9"]
    config = load_config(None, [*WORDS, *words, "train.max_steps=1"])
    runtime = start_runtime(config.train)
    training = Training(config, prepare_data(config), runtime)
    training.network.double()
    floats = {name: getattr(training.rows, name).double() for name in ("x_num", "y")}
    training.rows = dataclasses.replace(training.rows, **floats)
    training.val_rows = dataclasses.replace(training.val_rows, x_num=training.val_rows.x_num.double())
    before = torch.nn.utils.parameters_to_vector(training.network.parameters()).detach().clone()
    assert training.run(tmp_path / "checkpoints", stop_requested=lambda: False)
    training.close()
    after = torch.nn.utils.parameters_to_vector(training.network.parameters()).detach()
    assert float(torch.linalg.vector_norm(after.cpu() - before)) == pytest.approx(0.5 * 1e-9, rel=1e-4)


# ---- averaged weights


@pytest.mark.parametrize("words", [("optim.ema_decay=0.9",), ("optim.name=schedulefree", "optim.peak_lr=0.02")])
def test_averaged_weights_are_judged_kept_and_saved(train: Train, words: tuple[str, ...]) -> None:
    run = train("train.max_steps=20", "train.eval_every=5", *words)
    latest, best = weights(newest(run)), load_file(newest(run) / "best.safetensors")
    assert not any(best[name].equal(latest[name]) for name in latest if "weight" in name and "impl" not in name)
    assert {name: tensor.tolist() for name, tensor in load_file(run.folder / "model.safetensors").items()} == {
        name: tensor.tolist() for name, tensor in best.items()
    }
    # what was judged is what is kept, and a look at it leaves the training as it is
    assert run.metrics["selection"]["step"] == 20
    assert run.metrics["selection"]["value"] == run.column("log_loss", "val")[-1]
    rare = train("train.max_steps=20", "train.eval_every=20", *words, name="rare")
    assert {n: t.tolist() for n, t in weights(newest(rare)).items()} == {n: t.tolist() for n, t in latest.items()}
    assert rare.column("log_loss", "val")[-1] == run.column("log_loss", "val")[-1]


# ---- what is not finite


def test_a_training_that_blows_up_is_stopped_and_named(train: Train, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss or gradient of step \d+ is not finite") as caught:
        train("optim.peak_lr=10", "model.num_blocks=12", "train.grad_clip=no", "train.max_steps=500", task="regression")
    status = read_status(tmp_path / "run")
    step = int(str(caught.value).split("step ")[1].split()[0])
    assert status["state"] == "failed"
    assert status["reason"] == caught.value.what
    assert "optim.peak_lr" in caught.value.fix
    assert "train rows" in caught.value.where
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == step - 1  # not one line of it


@pytest.mark.parametrize("reduction", ["fast", "exact"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_names_its_step_and_leaves_the_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, reduction: str
) -> None:
    words = (f"train.gradient_reduction={reduction}", "train.canonical_slices=1", "train.max_steps=20")
    whole = train(*words, name="whole")
    calls, loss_sum = 0, Objective.loss_sum

    def broken(self: Objective, logits: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += logits.requires_grad
        return loss_sum(self, logits, y) * (value if calls == 6 and logits.requires_grad else 1.0)

    monkeypatch.setattr(Objective, "loss_sum", broken)
    with pytest.raises(TrainingError, match="the loss or gradient of step 6 is not finite"):
        train(*words, "checkpoint.every_steps=5")
    assert read_status(tmp_path / "run")["state"] == "failed"
    monkeypatch.setattr(Objective, "loss_sum", loss_sum)
    # the mended program goes on from the checkpoint before, and ends as if nothing had been
    assert are_equal(weights(train(*words).folder), weights(whole.folder))


def test_the_folder_is_free_after_a_failure(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "loss_sum", lambda self, logits, y: logits.sum() * float("nan"))
        with pytest.raises(TrainingError):
            train("train.max_steps=3")
    assert train("train.max_steps=3").status["state"] == "done"


NAN_AT_12 = ("train.max_steps=30", "train.eval_every=7", "checkpoint.every_steps=5", "train.gradient_reduction=exact")


def read_events(run: Run, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name]


@pytest.mark.parametrize("policy", ["skip", "restore"])
def test_a_broken_step_is_left_out_by_policy_and_its_rows_are_named(
    train: Train, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    whole = train(*NAN_AT_12, name="whole")
    monkeypatch.setenv("NN_TRAIN_FAULTS", "nan@step,step=11")
    run = train(*NAN_AT_12, f"train.non_finite={policy}")
    rows = run.engine.training.plan.rows(11)
    assert f"train rows {rows[0]}, {rows[1]}, " in run.shown and f"train.non_finite={policy}" in run.shown
    (skipped,) = read_events(run, "skipped")
    assert (skipped["step"], skipped["rows"]) == (12, rows[:5].tolist())
    assert [(e["step"], e["to"]) for e in read_events(run, "restored")] == ([(12, 10)] if policy == "restore" else [])
    # each step once, the broken one without numbers; before it all is as it was, and after it nothing is
    assert run.column("step").tolist() == list(range(1, 31))
    assert [line["step"] for line in run.train if line["loss"] is None] == [12]
    assert run.column("loss")[:11].tolist() == whole.column("loss")[:11].tolist()
    assert run.train[12]["loss"] != whole.train[12]["loss"]
    assert run.column("lr").tolist() == whole.column("lr").tolist()
    assert run.engine.training.state.skipped == [11]


def test_skipping_and_going_back_come_to_the_same_weights(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (*NAN_AT_12, "optim.schedule=linear")  # the rate goes on falling with the groups of the restored optimizer
    ends = []
    for policy, fault in (("skip", "nan@step,step=11"), ("restore", "nan@step,step=11"),
                          ("restore", "nan@step,step=3")):  # fmt: skip
        monkeypatch.setenv("NN_TRAIN_FAULTS", fault)
        run = train(*words, f"train.non_finite={policy}", name=f"{policy}-{fault[-2:]}")
        ends.append(weights(newest(run), "model.safetensors"))
    assert are_equal(ends[0], ends[1])
    # where there is no checkpoint yet it goes back to the start
    assert [(e["step"], e["to"]) for e in read_events(run, "restored")] == [(4, 0)]
    monkeypatch.setenv("NN_TRAIN_FAULTS", "nan@step,step=3")
    assert are_equal(ends[2], weights(newest(train(*words, "train.non_finite=skip", name="third"))))


def test_what_was_left_out_stays_out_after_a_resume(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NN_TRAIN_FAULTS", "nan@step,step=11")
    whole = train(*NAN_AT_12, "train.non_finite=skip", name="whole")
    train(*NAN_AT_12, "train.non_finite=skip", "train.max_steps=17", "train.max_epochs=200")
    monkeypatch.delenv("NN_TRAIN_FAULTS")
    run = train(*NAN_AT_12, "train.non_finite=skip")
    assert are_equal(weights(newest(run)), weights(newest(whole)))
    assert run.engine.training.state.skipped == [11]


def test_a_training_that_is_broken_step_after_step_ends(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NN_TRAIN_FAULTS", ";".join(f"nan@step,step={step}" for step in range(5, 30)))
    for policy in ("skip", "restore"):
        with pytest.raises(TrainingError, match="the loss or gradient of step 16 is not finite"):
            train(*NAN_AT_12, f"train.non_finite={policy}", name=policy)


def test_where_steps_are_not_looked_at_one_by_one_the_broken_one_is_found_on_the_way_back(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's way, on the CPU: gradients are looked at when a line is logged, and before a checkpoint."""
    from nn_train import loop

    made = loop.Trainer.__init__

    def rarely(self: loop.Trainer, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.guard_steps = 1000

    words = (*NAN_AT_12, "tracking.log_every_steps=9")
    monkeypatch.setenv("NN_TRAIN_FAULTS", "nan@step,step=11,times=2")  # it is there again on the way back
    expected = train(*words, "train.non_finite=skip", name="expected")
    monkeypatch.setattr(loop.Trainer, "__init__", rarely)
    run = train(*words, "train.non_finite=restore")
    assert [event["step"] for event in read_events(run, "skipped")] == [12]
    assert [(e["step"], e["to"]) for e in read_events(run, "restored")] == [(14, 10)]  # found when it was to be judged
    assert are_equal(weights(newest(run)), weights(newest(expected)))


# ---- precision, compilation


def test_bf16_trains_on_the_cpu(train: Train) -> None:
    run = train("train.mixed_precision=bf16", "train.max_epochs=20", "optim.peak_lr=0.01")
    assert run.status["state"] == "done"
    losses = run.column("loss")
    assert losses[-4:].mean() < losses[:4].mean()
    assert all(weight.dtype != torch.bfloat16 for weight in weights(run.folder).values())
    full = train("train.max_epochs=20", "optim.peak_lr=0.01", name="full")
    assert run.column("loss")[0] != full.column("loss")[0]
    np.testing.assert_allclose(run.column("loss")[:10], full.column("loss")[:10], rtol=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_needs_a_gpu(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU") as caught:
        train("train.mixed_precision=fp16")
    assert "bf16" in caught.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler's own remarks
def test_a_compiled_network_trains_as_the_plain_one(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("train.max_steps=5", "model.dropout=0", *BARE)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    compiled, plain = train(*words, "train.compile=true", name="compiled"), train(*words, name="plain")
    np.testing.assert_allclose(compiled.column("loss"), plain.column("loss"), rtol=1e-5)
    assert weights(compiled.folder).keys() == weights(plain.folder).keys()
    for name, weight in weights(plain.folder).items():
        torch.testing.assert_close(weights(compiled.folder)[name], weight, rtol=1e-4, atol=1e-5)


# ---- what is logged


def test_lines_of_metrics(train: Train) -> None:
    run = train("train.max_epochs=4", "optim.schedule=cosine", "optim.warmup_steps=3", "tracking.log_every_steps=3")
    assert run.column("step").tolist() == [3, 6, 9, 12, 15, 16]
    for line in run.train:
        assert {"step", "epoch", "split", "loss", "lr", "rows_per_s"} <= line.keys()
        assert line["rows_per_s"] > 0
    for line in run.val:
        assert {"step", "epoch", "split", "loss", "log_loss"} <= line.keys()
        assert line["loss"] == pytest.approx(line["log_loss"], rel=1e-4)
    assert run.train[0]["lr"] == 2e-3
    assert is_in_order(run.column("lr")[::-1])
    assert run.column("epoch").tolist() == [step / 4 for step in run.column("step")]
    assert run.column("epoch", "val").tolist() == [1, 2, 3, 4]
    assert is_in_order(run.column("elapsed_s"))


@pytest.mark.parametrize(
    ("batch", "micro", "shown"),
    [
        (256, "64", "global 256 = 1 process x micro 64 x accumulation 4"),
        (256, "auto", "global 256 = 1 process x micro 256 x accumulation 1"),
        (7, "3", "global 7 = 1 process x micro 3 x accumulation 3"),
    ],
)
def test_the_share_is_shown(train: Train, batch: int, micro: str, shown: str) -> None:
    words = (f"train.global_batch_size={batch}", f"train.micro_batch_size={micro}")
    assert f"{shown}  (210 train rows a pass)" in train(*words, "train.max_steps=2").shown


def test_a_batch_larger_than_the_table(train: Train) -> None:
    run = train("train.global_batch_size=10000", "train.micro_batch_size=50", "train.max_epochs=3")
    assert run.status == {"state": "done", "reason": "max_epochs", "step": 3}
    assert np.isfinite(run.column("loss")).all()


def test_the_network_learns(train: Train) -> None:
    run = train("train.max_epochs=60", "optim.peak_lr=0.01", "model.width=32")
    assert run.metrics["test"]["roc_auc"] > 0.8
    values = pd.read_parquet(run.folder / "predictions.parquet")
    assert len(values) == run.metrics["rows"]["test"] == 45
