"""The optimizer with its parameter groups, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable

import torch
from torch import nn

from nn_train.settings import OptimConfig
from nn_train.update_rules import MuonWithAdamW, ScheduleFree

# By the name of a module's type, what its weights are where they are no matrices of a layer. Such are spared from
# decay: a rarely seen row of an embedding would shrink between its visits, and zero is no natural place for a norm's
# scale or a frequency.
KIND_OF_MODULE = {
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "LinearEmbeddings": "embedding",
    "LinearReLUEmbeddings": "embedding",
    "LayerNorm": "norm",
    "RMSNorm": "norm",
    "GroupNorm": "norm",
    "BatchNorm1d": "norm",
    "LayerNormEnsemble": "norm",
    "BatchNorm1dEnsemble": "norm",
    "Periodic": "frequency",
    "_Periodic": "frequency",
    "Frequencies": "frequency",
    "ShiftedFrequencies": "frequency",
    "ClassToken": "embedding",
    "FrontScale": "scale",
    "TrainedActivation": "scale",
}
KIND_BY_NAME = {"bias": "bias", "frequenc": "frequency"}  # by a part of a weight's name, whatever its module is
DECAYED = "weight"
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")  # where torch has the update of all weights as one kernel
CYCLE_RISE, CYCLE_START = 0.3, 1 / 25  # of one-cycle: share of the steps, and of the peak. Source: torch's defaults


def build_optimizer(
    model: nn.Module, config: OptimConfig, *, device: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimizer of optim.name, without decay on biases, norms, embeddings, frequencies and scales.

    Embeddings of categories have a decay of their own, optim.embedding_weight_decay.
    `device` is where the weights will be; default: where they are.

    Raises:
        ConfigError: this torch does not have it.
    """
    kinds = kinds_of_parameters(model)
    parameters = list(model.parameters())
    levels = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    own = levels if config.embedding_weight_decay else set()
    groups = [
        {"params": [p for p in parameters if kinds[p] == DECAYED], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if kinds[p] != DECAYED and p not in own], "weight_decay": 0.0},
    ]
    if own:
        kept = [p for p in parameters if p in own]
        groups.append({"params": kept, "weight_decay": config.embedding_weight_decay})
    lr, betas = config.peak_lr, (config.beta1, config.beta2)
    is_fused = (device or parameters[0].device).type in FUSED_DEVICES
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=is_fused)
    if config.name == "schedulefree":
        return ScheduleFree(groups, lr=lr, betas=betas)
    if config.name == "muon":
        hidden = hidden_matrices(model)
        rest = [group | {"params": [p for p in group["params"] if p not in hidden]} for group in groups]
        matrices = {"params": [p for p in parameters if p in hidden], "weight_decay": config.weight_decay}
        return MuonWithAdamW([matrices], rest, lr=lr, betas=betas, momentum=config.momentum, fused=is_fused)
    adam = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return adam(groups, lr=lr, betas=betas, fused=is_fused)


def kinds_of_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    """What each parameter is: `weight` (of a layer), `bias`, `norm`, `embedding`, `frequency` or `scale`."""
    return {
        parameter: next(
            (kind for part, kind in KIND_BY_NAME.items() if part in name),
            KIND_OF_MODULE.get(type(module).__name__, DECAYED),
        )
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The matrices of the layers, save the last layer's: its rows are outputs, each with a meaning of its own."""
    kinds = kinds_of_parameters(model)
    layers = [
        own
        for module in model.modules()
        if (own := [p for p in module.parameters(recurse=False) if kinds[p] == DECAYED])
    ]
    return {parameter for own in layers[:-1] for parameter in own if parameter.ndim == 2}


def lr_at_step(step: int, config: OptimConfig, *, total_steps: int) -> float:
    """Learning rate of the update that follows `step` finished ones."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.peak_lr * SCHEDULES[config.schedule](min(share, 1.0))


def _fall(share: float) -> float:
    """Half a cosine, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * share))


def _one_cycle(share: float) -> float:
    """Up from CYCLE_START, and down to zero, by half cosines. Source: Smith and Topin 2017."""
    if share < CYCLE_RISE:
        return 1 - (1 - CYCLE_START) * _fall(share / CYCLE_RISE)
    return _fall((share - CYCLE_RISE) / (1 - CYCLE_RISE))


# From the share of the steps after the warm-up that are done, 0 to 1, to the share of the peak.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "cosine": _fall,
    "linear": lambda share: 1 - share,
    "one-cycle": _one_cycle,
    # Source: Holzmüller et al. 2024 (RealMLP)
    "coslog4": lambda share: 0.5 * (1 - math.cos(2 * math.pi * math.log2(1 + 15 * share))),
}
