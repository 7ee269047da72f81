"""The project's training, no faster than 10 steps a second, so that a walltime comes when it is to come."""

import time

from nn_train import loop, train

update = loop.Trainer._update


def paced(self: loop.Trainer, step: int) -> object:
    """Update, after a rest."""
    time.sleep(0.1)
    return update(self, step)


if __name__ == "__main__":
    loop.Trainer._update = paced  # type: ignore[method-assign, assignment]
    train.leave(train.main())
