"""A network of the user's own, by its import path.

An import path is followed where the user named it: in the settings of a run, or by allowing it for a bundle. Nothing
that a run folder or a bundle says leads here by itself.
"""

import copy
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nn_train.errors import ConfigError, short

SIGNATURE = """a class like this one, in a module that Python finds from here:
    class MyNet(torch.nn.Module):
        def __init__(self, *, num_numbers: int, cardinalities: list[int], num_outputs: int, **options): ...
        def forward(self, x_num, x_cat): ...
    x_num is float32 (rows, num_numbers); x_cat is int64 (rows, columns), its codes below cardinalities, 0 for unseen;
    it returns logits, float (rows, num_outputs); options are those of model.options"""
CHECK_ROWS = 3


def build_custom(
    target: str, options: dict[str, Any], *, num_numbers: int, cardinalities: Sequence[int], num_outputs: int
) -> nn.Module:
    """Make the network `MODULE:CLASS`.

    Raises:
        ConfigError: there is no such class, or it is not made like that.
    """
    make = _load(target)
    try:
        network = make(num_numbers=num_numbers, cardinalities=list(cardinalities), num_outputs=num_outputs, **options)
    except Exception as error:  # whatever the user's code does
        raise _problem(target, f"cannot be made with options {options}", error) from error
    if not isinstance(network, nn.Module):
        raise _problem(target, "is no torch.nn.Module")
    return network


def check_custom(
    network: nn.Module, target: str, *, cardinalities: Sequence[int], num_numbers: int, num_outputs: int
) -> None:
    """Try a copy on a few made rows, in training and in evaluation.

    Raises:
        ConfigError: it fails, answers in another shape, or has weights that no gradient reaches: several processes
            would wait for those.
    """
    trial = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        x_num = torch.randn(CHECK_ROWS, num_numbers)
        codes = [torch.randint(cardinality, (CHECK_ROWS,)) for cardinality in cardinalities]
        x_cat = torch.stack(codes, dim=1) if codes else torch.zeros((CHECK_ROWS, 0), dtype=torch.int64)
        for is_training in (False, True):
            logits = _try(trial.train(is_training), target, x_num, x_cat)
            if not isinstance(logits, Tensor) or logits.shape != (CHECK_ROWS, num_outputs):
                found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise _problem(target, f"returned {found} for {CHECK_ROWS} rows, not {[CHECK_ROWS, num_outputs]}")
            if not logits.is_floating_point():
                raise _problem(target, f"returned {logits.dtype}, and logits are floats")
        if not logits.requires_grad:
            raise _problem(target, "returned logits that depend on no weight")
        logits.square().sum().backward()
    idle = [name for name, weight in trial.named_parameters() if weight.requires_grad and weight.grad is None]
    if idle:
        raise _problem(target, f"has weights that no logit depends on: {short(', '.join(idle), most=200)}")


def _try(network: nn.Module, target: str, x_num: Tensor, x_cat: Tensor) -> Any:
    try:
        return network(x_num, x_cat)
    except Exception as error:  # whatever the user's code does
        raise _problem(target, "fails on its inputs", error) from error


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    if os.getcwd() not in sys.path:  # a script's own folder stands there in its place
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's code does when it is imported
        raise _problem(target, "cannot be imported", error) from error


def _problem(target: str, what: str, error: Exception | None = None) -> ConfigError:
    said = f": {type(error).__name__}: {short(str(error), most=300)}" if error else ""
    return ConfigError(f"model.target={short(target)} {what}{said}", fix=SIGNATURE)
