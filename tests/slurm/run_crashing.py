"""The project's training with a fault of its own: one process raises at the same step, every time."""

import os

from nn_train import loop, train

STEP = 130
update = loop.Trainer._update


def faulty(self: loop.Trainer, step: int) -> object:
    """Update, or raise."""
    if step + 1 == STEP and os.environ["RANK"] == "1":
        raise RuntimeError(f"the fault of step {STEP}")
    return update(self, step)


if __name__ == "__main__":
    loop.Trainer._update = faulty  # type: ignore[method-assign, assignment]
    train.leave(train.main())
