"""The project's training, which rests when it has done its share of an attempt, so that the clock finds it at work.

A hundred steps for each of the first three attempts, at the full speed of the machine; those after them have no share.
"""

import os
import time

from nn_train import loop, train

SHARE = 100
ATTEMPTS = 3

update = loop.Trainer._update
attempt = int(os.environ["LAUNCH_ATTEMPT"])


def rested(self: loop.Trainer, step: int) -> object:
    """Update; after a rest, where the share is done."""
    if attempt <= ATTEMPTS and step > SHARE * attempt:
        time.sleep(1)
    return update(self, step)


if __name__ == "__main__":
    loop.Trainer._update = rested  # type: ignore[method-assign, assignment]
    train.leave(train.main())
