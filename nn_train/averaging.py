"""Which weights are judged, selected and kept: the latest ones, or an average that follows them.

An average lies beside the network, and is put into it for as long as it is judged: neither that nor a checkpoint
changes a bit of the training. Every process updates its own copy from the same weights. Buffers, such as the
statistics of a norm, are the latest ones.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from nn_train.settings import OptimConfig
from nn_train.update_rules import ScheduleFree


class Average(Protocol):
    """What follows the weights of a training."""

    def update(self, step: int) -> None:
        """Take in the weights after `step` finished steps."""
        ...

    def judged(self) -> AbstractContextManager[None]:
        """While it is open, the network has the weights that are to be judged."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides weights and optimizer."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` gave, or from the present weights where that is empty."""
        ...


def build_average(network: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig) -> Average:
    """What optim.name and optim.ema_decay ask for."""
    if isinstance(optimizer, ScheduleFree):
        return OptimizersAverage(optimizer)
    return LatestWeights() if config.ema_decay is None else MovingAverage(network, config.ema_decay)


class LatestWeights:
    """No average: the weights as they are."""

    def update(self, step: int) -> None:
        """Nothing follows."""

    def judged(self) -> AbstractContextManager[None]:
        """As they are."""
        return nullcontext()

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing."""


class MovingAverage:
    """An exponential moving average of the parameters."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(network.named_parameters())
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Go towards the present weights: the decay is a function of the step, so that nothing counts beside it."""
        decay = min(self.decay, (1 + step) / (10 + step))
        follow = get_ema_multi_avg_fn(decay)
        follow(tuple(self.average.values()), tuple(self.parameters.values()), step)

    def judged(self) -> AbstractContextManager[None]:
        """The average."""
        return exchanged([(self.parameters[name], average) for name, average in self.average.items()])

    def state(self) -> dict[str, Tensor]:
        """The average, by the parameters' names."""
        return self.average

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Put the average where it was."""
        for name, average in self.average.items():
            average.copy_(state.get(name, self.parameters[name]))


class OptimizersAverage:
    """The average that a schedule-free optimizer keeps by itself."""

    def __init__(self, optimizer: ScheduleFree):
        self.optimizer = optimizer

    def update(self, step: int) -> None:
        """The optimizer's own step did it."""

    def judged(self) -> AbstractContextManager[None]:
        """The average."""
        return exchanged(self.optimizer.averages())

    def state(self) -> dict[str, Tensor]:
        """Nothing: it is in the optimizer's."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing."""


@contextmanager
def exchanged(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give each first tensor the values of the second for a while, and then its own, to the bit."""
    own = [tensor.detach().clone() for tensor, _ in pairs]
    try:
        with torch.no_grad():
            for tensor, other in pairs:
                tensor.copy_(other)
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), before in zip(pairs, own, strict=True):
                tensor.copy_(before)
