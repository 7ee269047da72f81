"""The optimizer's parameter groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import nn

from nn_train.settings import OptimConfig

# modules whose weights are spared from decay: a rarely seen row of theirs would shrink between its visits
SPARED_MODULES = ("Embedding", "LinearEmbeddings", "LayerNorm", "BatchNorm1d")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW without decay on biases, norms and embeddings."""
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if type(module).__name__ in SPARED_MODULES or "bias" in name
    }
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if id(p) not in spared], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) in spared], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), fused=True)


def lr_at_step(step: int, config: OptimConfig, *, total_steps: int) -> float:
    """Learning rate of the update that follows `step` finished ones."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        share = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
        return config.peak_lr * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.peak_lr
