"""Checkpoints: whole or absent, verified by checksum, and none of them a pickle.

A checkpoint is a folder `step-00000123` with the weights, the best weights so far, the optimizer's
tensors with the averaged weights if there are any, the state of the loop, and a manifest of sizes and
SHA-256 sums that is written last.
"""

import copy
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from nn_train.faults import strike
from nn_train.loop import TrainState
from nn_train.manifest import (
    FILES,
    MANIFEST,
    find_damage,
    list_checkpoints,
    make_manifest,
    newest_step,
    read_checkpoint,
)
from nn_train.run_folder import sync_folder, write_file

__all__ = [
    "FILES",
    "MANIFEST",
    "Checkpoint",
    "cpu_copy",
    "decode_checkpoint",
    "encode_checkpoint",
    "list_checkpoints",
    "newest_step",
    "prune_checkpoints",
    "read_checkpoint",
    "read_newest",
    "snapshot",
    "write_checkpoint",
]
logger = logging.getLogger("nn_train")
AVERAGE = "average:"  # in front of the names of averaged weights, beside the optimizer's `0.exp_avg`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a training goes on from; tensors are on the CPU."""

    state: TrainState
    model: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]
    extra: dict[str, Any]
    average: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def snapshot(checkpoint: Checkpoint) -> Checkpoint:
    """A copy that later updates do not touch, on the CPU; `best` is never changed in place, and is shared."""
    optimizer = checkpoint.optimizer
    entries = {
        index: {name: _copy(value) for name, value in values.items()} for index, values in optimizer["state"].items()
    }
    return dataclasses.replace(
        checkpoint,
        state=copy.deepcopy(checkpoint.state),
        model=cpu_copy(checkpoint.model),
        average=cpu_copy(checkpoint.average),
        optimizer=copy.deepcopy({key: value for key, value in optimizer.items() if key != "state"})
        | {"state": entries},
    )


def _copy(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, bytes]:
    """File name -> content; the same state gives the same bytes."""
    tensors, values = _split_optimizer(checkpoint.optimizer)
    tensors |= {AVERAGE + name: tensor for name, tensor in checkpoint.average.items()}
    state = {"train": dataclasses.asdict(checkpoint.state), "optimizer": values, "extra": checkpoint.extra}
    return {
        "model.safetensors": save(_contiguous(checkpoint.model)),
        "best.safetensors": save(_contiguous(checkpoint.best)),
        "optimizer.safetensors": save(_contiguous(tensors)),
        "state.json": json.dumps(state, indent=1).encode(),
    }


def decode_checkpoint(files: dict[str, bytes]) -> Checkpoint:
    """Rebuild what `encode_checkpoint` wrote."""
    state = json.loads(files["state.json"])
    tensors = load(files["optimizer.safetensors"])
    average = {name: tensors.pop(name) for name in list(tensors) if name.startswith(AVERAGE)}
    return Checkpoint(
        state=TrainState(**state["train"]),
        model=load(files["model.safetensors"]),
        best=load(files["best.safetensors"]),
        optimizer=_join_optimizer(tensors, state["optimizer"]),
        average={name.removeprefix(AVERAGE): tensor for name, tensor in average.items()},
        extra=state["extra"],
    )


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Part an optimizer's state into tensors, for safetensors, and plain values, for JSON."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {"param_groups": state["param_groups"], "state": {}}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                values["state"].setdefault(str(index), {})[name] = value
    if state.get("scaler"):
        values["scaler"] = state["scaler"]
    return tensors, values


def _join_optimizer(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["state"].items()}
    for name, tensor in tensors.items():
        index, _, entry = name.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    return {"state": state, "param_groups": values["param_groups"], "scaler": values.get("scaler")}


def write_checkpoint(
    folder: Path,
    files: dict[str, bytes],
    *,
    step: int,
    keep_last: int,
    check_owner: Callable[[], None] = lambda: None,
) -> Path:
    """Publish a checkpoint by one rename, then prune; run by the main process alone.

    `check_owner` is asked right before the rename and before the pruning, and raises where this
    attempt owns the run no longer.

    Raises:
        OSError: the disk is full or refuses; the older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    replaced = folder / f".{final.name}.replaced.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, content in (files | {MANIFEST: json.dumps(make_manifest(files), indent=1).encode()}).items():
            write_file(temporary / name, content, midway=lambda name=name: strike("checkpoint", step=step, file=name))
        sync_folder(temporary)
        strike("checkpoint", step=step, file="rename")
        check_owner()
        if final.exists():  # of an attempt that came as far; a rename, since that cannot fail half-way
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(final, replaced)
        os.replace(temporary, final)
        sync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    strike("checkpoint", step=step, file="prune")
    check_owner()
    prune_checkpoints(folder, newest=final, keep_last=keep_last)
    return final


def prune_checkpoints(folder: Path, *, newest: Path, keep_last: int) -> None:
    """Remove all but the newest valid checkpoints, and what a killed write left.

    Those beyond `newest` were damaged and passed over: they must not be counted among the newest. Older ones whose
    files are not what they were by size do not count either; sums are for `read_newest`, which reads them all.
    """
    published = list_checkpoints(folder)
    first = published.index(newest)
    older = published[first + 1 :]
    valid = [path for path in older if not find_damage(path, sums=False)]
    kept = valid[: keep_last - 1]
    for path in (*published[:first], *(path for path in older if path not in kept)):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def read_newest(folder: Path) -> dict[str, bytes] | None:
    """The files of the newest valid checkpoint; damaged ones are named in a warning and passed over.

    Raises:
        OSError: one cannot be read now. To go on without it would be to lose it.
    """
    for replaced in folder.glob(".step-*.replaced.tmp"):  # a kill between two renames took it out of its place
        place = folder / replaced.name.removeprefix(".").removesuffix(".replaced.tmp")
        if not place.exists():
            os.replace(replaced, place)
    for path in list_checkpoints(folder):
        try:
            return read_checkpoint(path)
        except ValueError as error:
            logger.warning("checkpoint %s cannot be used: %s; trying the one before it", path, error)
    return None


def cpu_copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later updates do not touch."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
