"""How long is a whole fit, beside other libraries that train the same network? A table, all taken in one run.

    pip install -e '.[bench]'
    python tests/benchmarks/fit_speed.py [--epochs 2] [--batch 1024] [--repeat 8] [--fused] [-- section.key=value ...]

A fit starts at the packed train rows of telco (--repeat N: each of them N times) and ends at trained weights: read the
rows, build the network and the optimizer, make all steps. Fits are taken in turns; the median of the turns counts.
  ours             this project's Training and Trainer, with its guard against broken gradients
  lightning        Trainer over DataLoader(TensorDataset)
  skorch           NeuralNetBinaryClassifier over numpy arrays
  accelerate       Accelerate, and a DataLoader over Hugging Face `datasets` in torch format; a loop by hand
  pytorch_tabular  CategoryEmbeddingModel over a DataFrame. Not in the extra `bench`: it asks for pandas below 3
  sklearn          MLPClassifier
  limit            the same steps on one batch that is in memory: what the network and torch's Adam cost by themselves.
                   No loop over this network in torch can be faster, so `/ ours` of a library can grow up to that
                   library's seconds over the limit's, and no further

All have the same rows, batch size, number of epochs and learning rate, Adam without weight decay and clipping, one
thread, no evaluation, no checkpoint, no progress bar (pytorch_tabular counts its accuracy on every batch, and Lightning
under it writes a log: as its users have it). The first four train the very same torch module, with the same first
weights: the project's perceptron, without embeddings of numbers and without dropout. pytorch_tabular and sklearn
cannot take it: they have a perceptron of the same layers on the same inputs (categories one-hot beside the numbers),
with first weights of their own; pytorch_tabular's has two outputs in place of one. `log-loss` is that of the
validation rows after the last turn, outside the clock: alike where all trained the same thing.

The project takes torch's Adam as one kernel by itself; --fused gives that to the other loops over the same module,
whose users would have to ask for it. `CPU s` are the seconds of the processor: nothing here waits for anything, so
beside other work they say more than those of the clock. `spread` is the slowest turn over the fastest. Any setting may
be changed; with one that is no plain perceptron, such as model.embedding=ple, pytorch_tabular and sklearn keep one
without it. The table has two classes.
"""

import argparse
import contextlib
import dataclasses
import importlib
import io
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from loop_speed import own_loop
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torch.utils.data import DataLoader, TensorDataset

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.packed import PackedRows
from nn_train.preparation import PreparedData
from nn_train.runtime import start_runtime
from nn_train.training import Training, build_network, resolve_config

CPU = torch.device("cpu")
SETTINGS = [
    "model.width=64",
    "tracking.mode=disabled",
    "model.name=mlp",
    "model.embedding=none",
    "model.dropout=0",
    "optim.name=adam",
    "optim.weight_decay=0",
    "train.grad_clip=no",
]
Predict = Callable[[PackedRows], np.ndarray]  # the probability of the second class, (R,)
Fit = Callable[["Job"], Predict | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every fit is given."""

    engine: Engine
    data: PreparedData
    is_fused: bool

    @property
    def epochs(self) -> int:
        return self.engine.config.train.max_epochs

    @property
    def batch(self) -> int:
        return self.engine.config.train.global_batch_size

    @property
    def lr(self) -> float:
        return self.engine.config.optim.peak_lr

    @property
    def hidden(self) -> list[int]:
        """The widths of the perceptron's hidden layers."""
        model = resolve_config(self.engine.config, self.data, device_type="cpu").model
        return [model.width] * model.num_blocks

    def rows(self) -> PackedRows:
        return self.data.rows("train", device=CPU)

    def network(self) -> nn.Module:
        return build_network(self.engine.config, self.data)

    def adam(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr=self.lr, fused=self.is_fused or None)

    def flat(self, rows: PackedRows) -> np.ndarray:
        """Numbers beside one-hot categories, as the perceptron's first layer sees them, (R, E) float32."""
        sizes = self.data.preprocessor.cardinalities
        # code 0, an unseen level, is all zeros
        parts = [one_hot(rows.x_cat[:, column], size)[:, 1:] for column, size in enumerate(sizes)]
        return torch.cat([rows.x_num, *parts], dim=1).numpy()

    def frame(self, rows: PackedRows) -> pd.DataFrame:
        """The same, and the target `y`."""
        flat = self.flat(rows)
        columns = [f"x{index}" for index in range(flat.shape[1])]
        return pd.DataFrame(flat, columns=columns).assign(y=rows.y.numpy())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """What one fit took, and what came out."""

    seconds: float
    cpu_seconds: float
    loss: float


def by_network(network: nn.Module) -> Predict:
    """Probabilities by a torch network."""

    def predict(rows: PackedRows) -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return network(rows.x_num, rows.x_cat).squeeze(-1).sigmoid().numpy()

    return predict


def fit_ours(job: Job) -> Predict:
    """The project itself."""
    engine = job.engine
    engine.runtime = start_runtime(engine.config.train)
    engine.training = Training(engine.config, job.data, engine.runtime)
    own_loop(engine, exact=False)()
    return by_network(engine.training.network)


def fit_lightning(job: Job) -> Predict:
    """As in Lightning's guide, with all switched off that does not train."""
    import lightning

    class Fit(lightning.LightningModule):
        def __init__(self, network: nn.Module):
            super().__init__()
            self.network = network

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            x_num, x_cat, y = batch
            return binary_cross_entropy_with_logits(self.network(x_num, x_cat).squeeze(-1), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.adam(self.network)

    rows = job.rows()
    loader = DataLoader(TensorDataset(rows.x_num, rows.x_cat, rows.y.float()), batch_size=job.batch, shuffle=True)
    module = Fit(job.network())
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    return by_network(module.network)


def fit_skorch(job: Job) -> Predict:
    """As in skorch's guide: arrays by the names of the module's inputs, and no validation split."""
    from skorch import NeuralNetBinaryClassifier

    rows = job.rows()
    net = NeuralNetBinaryClassifier(
        job.network(),
        optimizer=torch.optim.Adam,
        optimizer__fused=job.is_fused or None,
        lr=job.lr,
        batch_size=job.batch,
        max_epochs=job.epochs,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks__print_log=None,
        verbose=0,
    )
    net.fit({"x_num": rows.x_num.numpy(), "x_cat": rows.x_cat.numpy()}, rows.y.float().numpy())
    return by_network(net.module_)


def fit_accelerate(job: Job) -> Predict:
    """As in the guides of Accelerate and of `datasets`.

    Over a dataset in memory: rows chosen from the packed file, which `datasets` reads as well, take a third longer.
    """
    from accelerate import Accelerator
    from datasets import Dataset

    accelerator = Accelerator(cpu=True)
    rows = job.rows()
    table = Dataset.from_dict({"x_num": rows.x_num.numpy(), "x_cat": rows.x_cat.numpy(), "y": rows.y.numpy()})
    loader = DataLoader(table.with_format("torch"), batch_size=job.batch, shuffle=True)
    network = job.network()
    network, optimizer, loader = accelerator.prepare(network, job.adam(network), loader)
    network.train()
    for _ in range(job.epochs):
        for batch in loader:
            optimizer.zero_grad()
            logits = network(batch["x_num"], batch["x_cat"]).squeeze(-1)
            loss = binary_cross_entropy_with_logits(logits, batch["y"].float())
            accelerator.backward(loss)
            optimizer.step()
    return by_network(network)


def fit_tabular(job: Job) -> Predict:
    """pytorch_tabular's perceptron, without batch norm, scaling and a validation split."""
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    table = job.frame(job.rows())
    model = TabularModel(
        data_config=DataConfig(
            target=["y"], continuous_cols=[*table.columns.drop("y")], normalize_continuous_features=False
        ),
        model_config=CategoryEmbeddingModelConfig(
            task="classification",
            layers="-".join(map(str, job.hidden)),
            batch_norm_continuous_input=False,
            learning_rate=job.lr,
        ),
        optimizer_config=OptimizerConfig(optimizer="Adam"),
        trainer_config=TrainerConfig(
            batch_size=job.batch,
            max_epochs=job.epochs,
            accelerator="cpu",
            early_stopping=None,
            checkpoints=None,
            load_best=False,
            progress_bar="none",
            trainer_kwargs={"enable_model_summary": False, "limit_val_batches": 0, "num_sanity_val_steps": 0},
        ),
        verbose=False,
        suppress_lightning_logger=True,
    )
    # without validation rows it would take some of the train rows
    model.fit(table, validation=table.head(2), seed=0)
    return lambda rows: model.predict(job.frame(rows))["y_1_probability"].to_numpy()


def fit_sklearn(job: Job) -> Predict:
    """scikit-learn's perceptron, which has its own Adam and its own loop."""
    from sklearn.neural_network import MLPClassifier

    rows = job.rows()
    model = MLPClassifier(
        job.hidden,
        alpha=0.0,
        batch_size=min(job.batch, len(rows)),
        learning_rate_init=job.lr,
        max_iter=job.epochs,
        n_iter_no_change=job.epochs + 1,
        random_state=0,
    )
    model.fit(job.flat(rows), rows.y.numpy())
    return lambda rows: model.predict_proba(job.flat(rows))[:, 1]


def limit(job: Job) -> None:
    """No fit: as many steps of the same network, and nothing beside them."""
    rows, network = job.rows(), job.network()
    optimizer = torch.optim.Adam(network.parameters(), lr=job.lr, fused=True)
    batch = rows.take(torch.arange(job.batch) % len(rows))
    y = batch.y.float()
    for _ in range(job.epochs * len(rows) // job.batch):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(network(batch.x_num, batch.x_cat).squeeze(-1), y).backward()
        optimizer.step()


FITS: dict[str, Fit] = {
    "ours": fit_ours,
    "lightning": fit_lightning,
    "skorch": fit_skorch,
    "accelerate": fit_accelerate,
    "pytorch_tabular": fit_tabular,
    "sklearn": fit_sklearn,
    "limit": limit,
}
OPTIONAL = ("lightning", "skorch", "pytorch_tabular")  # fits whose library, of the same name, the project does not need


def choose_fits(names: list[str]) -> dict[str, Fit]:
    """The fits whose library is here; tells of the others."""
    found = {}
    for name in names:
        try:
            if name in OPTIONAL:
                importlib.import_module(name)
        except ImportError as error:
            print(f"{name:16} not installed: pip install {name} ({error})")
        else:
            found[name] = FITS[name]
    return found


def build_job(folder: str, arguments: argparse.Namespace) -> Job:
    """The packed rows, repeated, and the settings of all fits."""
    words = [f"run.dir={folder}/run", f"train.max_epochs={arguments.epochs}"]
    words += [f"train.global_batch_size={arguments.batch}", *SETTINGS, *arguments.words]
    engine = Engine(load_config(None, words))
    data = engine.prepare()
    if arguments.repeat > 1:
        data = _repeat(data, Path(folder) / "repeated", arguments.repeat)
    return Job(engine=engine, data=data, is_fused=arguments.fused)


def _repeat(data: PreparedData, folder: Path, times: int) -> PreparedData:
    """The same with its train rows over and over."""
    shutil.copytree(data.folder, folder)
    for file in folder.glob("train.*.npy"):
        rows = np.load(file, allow_pickle=False)
        np.save(file, np.concatenate([rows] * times), allow_pickle=False)
    rows = data.info["rows"] | {"train": data.num_rows("train") * times}
    return dataclasses.replace(data, folder=folder, info=data.info | {"rows": rows})


def take_turns(job: Job, fits: dict[str, Fit], turns: int) -> dict[str, list[Turn]]:
    """What every fit took, in turns; the first turn warms up and does not count."""
    val = job.data.rows("val", device=CPU)
    found: dict[str, list[Turn]] = {name: [] for name in fits}
    for _ in range(turns + 1):
        for name, fit in fits.items():
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of few workers, of a training that has not converged
                started_s, started_cpu_s = time.perf_counter(), time.process_time()
                predict = fit(job)
                seconds, cpu_seconds = time.perf_counter() - started_s, time.process_time() - started_cpu_s
                loss = math.nan if predict is None else float(log_loss(val.y.numpy(), predict(val)))
            found[name].append(Turn(seconds=seconds, cpu_seconds=cpu_seconds, loss=loss))
    return {name: taken[1:] for name, taken in found.items()}


def print_table(job: Job, found: dict[str, list[Turn]]) -> None:
    """One line for each fit."""
    rows = job.data.num_rows("train")
    turns = min(map(len, found.values()))
    print(
        f"{rows:,} rows, {job.epochs} epochs, batch {job.batch}, layers {job.hidden}, "
        f"{torch.get_num_threads()} thread, torch {torch.__version__}, median of {turns} turns"
    )
    heads = f"{'log-loss':>9} {'/ ours':>7} {'CPU / ours':>11} {'spread':>7}"
    print(f"{'':16} {'seconds':>8} {'CPU s':>8} {'rows/s':>9} {heads}")
    seconds = {name: statistics.median(turn.seconds for turn in taken) for name, taken in found.items()}
    cpu = {name: statistics.median(turn.cpu_seconds for turn in taken) for name, taken in found.items()}
    own = "ours" if "ours" in found else next(iter(found))
    for name, taken in found.items():
        times = [turn.seconds for turn in taken]
        loss = "" if math.isnan(taken[-1].loss) else f"{taken[-1].loss:.4f}"
        print(
            f"{name:16} {seconds[name]:>8.3f} {cpu[name]:>8.3f} {rows * job.epochs / seconds[name]:>9,.0f} {loss:>9} "
            f"{seconds[name] / seconds[own]:>7.2f} {cpu[name] / cpu[own]:>11.2f} {max(times) / min(times):>7.2f}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--only", nargs="*", choices=FITS, default=list(FITS))
    parser.add_argument("words", nargs="*")
    arguments = parser.parse_args()
    logging.getLogger("nn_train").addHandler(logging.NullHandler())
    fits = choose_fits(arguments.only)
    for name in ("lightning.pytorch", "pytorch_lightning", "pytorch_tabular", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)  # after the import, which sets a level of its own
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        here = Path.cwd()
        job = build_job(folder, arguments)
        os.chdir(folder)  # where some libraries leave files
        found = take_turns(job, fits, arguments.turns)
        os.chdir(here)
        job.engine.close()
    print_table(job, found)


if __name__ == "__main__":
    main()
