"""Checkpoints written beside the training: the loop pays for a copy, and a thread for the disk."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nn_train.checkpoint import Checkpoint, encode_checkpoint, snapshot, write_checkpoint
from nn_train.errors import PassingError, RunFolderError, UserError, error_from_os

logger = logging.getLogger("nn_train")
Tell = Callable[..., None]  # takes the name of an event and what is to be known of it
CLOSE_S = 10.0
RETRY_S = (0.5, 2.0)  # before another try of the last checkpoint


class Saver:
    """Writes what it is given, newest first, on a thread of its own; the main process has one.

    A snapshot that comes while another is being written waits; one that waits already gives its place to it. A disk
    that refuses is a warning: training goes on, and ends only when the newest checkpoint is older than `max_age_s`.
    """

    def __init__(
        self, folder: Path, *, keep_last: int, max_age_s: float | None, check_owner: Callable[[], None], tell: Tell
    ):
        self.folder = folder
        self.keep_last = keep_last
        self.max_age_s = max_age_s
        self.check_owner = check_owner
        self.tell = tell
        self._changed = threading.Condition()
        self._waiting: Checkpoint | None = None
        self._writing: int | None = None  # the step that is on its way to the disk
        self._failure: Exception | None = None  # of the newest write; None once a later one is through
        self._refused: Checkpoint | None = None  # what the disk did not take
        self._behind_s: float | None = None  # since when the disk has had less than it was given; None: it has all
        self._stall_s = 0.0
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def put(self, checkpoint: Checkpoint) -> None:
        """Copy the state and have it written; returns after the copy."""
        started_s = time.monotonic()
        copied = snapshot(checkpoint)
        with self._changed:
            self._waiting = copied
            if self._behind_s is None:
                self._behind_s = time.monotonic()
            self._stall_s = time.monotonic() - started_s
            self._changed.notify_all()
        if self._thread is None:
            # a daemon: a disk that never answers must not keep the process from ending
            self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
            self._thread.start()

    @property
    def must_end(self) -> bool:
        """Is there a reason to end the training: a lost run folder, or a disk that is behind for too long?"""
        with self._changed:
            if self._failure is not None and not isinstance(self._failure, OSError):
                return True
            return self.max_age_s is not None and self._late_s() > self.max_age_s

    def _late_s(self) -> float:
        """For how long the disk has not had what it was given."""
        return 0.0 if self._behind_s is None else time.monotonic() - self._behind_s

    def finish(self) -> None:
        """Wait until all is written; the last of it is tried more than once, since no later one makes up for it.

        Raises:
            UserError: the last of it could not be written, or takes longer than is allowed.
            Exception: what else ended the write.
        """
        self.wait()
        for pause_s in RETRY_S:
            if isinstance(self._failure, OSError) and not self.must_end:
                time.sleep(pause_s)
                with self._changed:
                    self._waiting = self._refused
                    self._changed.notify_all()
                self.wait()
        failure = self._failure
        if isinstance(failure, OSError):
            raise self._explain(failure) from failure
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Wait until nothing is on its way to the disk, well written or not.

        Raises:
            UserError: it takes longer than is allowed, and the disk has refused what came before.
            PassingError: it takes longer than is allowed, and the disk has said nothing.
        """
        with self._changed:
            while self._waiting is not None or self._writing is not None:
                left_s = None if self.max_age_s is None else self.max_age_s - self._late_s()
                if left_s is not None and left_s <= 0 and self._writing is not None:
                    if isinstance(self._failure, OSError):
                        raise self._explain(self._failure) from self._failure
                    raise PassingError(
                        f"the checkpoint of step {self._writing} is on its way to the disk for too long: nothing was "
                        f"written for {self._late_s():.0f} s",
                        where=str(self.folder),
                        fix="look at the file system, and start it again; checkpoint.max_age says how long is allowed",
                    )
                self._changed.wait(timeout=None if left_s is None else max(left_s, 0.05))

    def close(self) -> None:
        """Write nothing more: what is on its way has a moment to come through, what waits is dropped."""
        with self._changed:
            self._waiting = None
            self._changed.wait_for(lambda: self._writing is None, timeout=CLOSE_S)
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._writing is None:
            self._thread.join()

    def _explain(self, failure: OSError) -> UserError:
        error = error_from_os(failure)
        kind = PassingError if isinstance(error, PassingError) else RunFolderError
        return kind(
            f"no checkpoint could be written for {self._late_s():.0f} s: {failure.strerror or failure}",
            where=error.where or str(self.folder),
            fix="free space, or mend the file system; the same command goes on from the newest checkpoint",
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    if self._is_closed:
                        return
                    self._changed.wait()
                checkpoint, self._waiting = self._waiting, None
                self._writing, stall_s = checkpoint.state.step, self._stall_s
            failure = self._write(checkpoint, stall_s)
            with self._changed:
                self._writing = None
                if self._failure is None or isinstance(self._failure, OSError):
                    self._failure = failure  # another kind of failure stays: no later write makes up for it
                self._refused = checkpoint if isinstance(failure, OSError) else None
                if failure is None:
                    self._behind_s = None if self._waiting is None else time.monotonic()
                self._changed.notify_all()

    def _write(self, checkpoint: Checkpoint, stall_s: float) -> Exception | None:
        """Write one checkpoint; what went wrong."""
        started_s, step = time.monotonic(), checkpoint.state.step
        try:
            files = encode_checkpoint(checkpoint)
            write_checkpoint(self.folder, files, step=step, keep_last=self.keep_last, check_owner=self.check_owner)
            write_s, size = time.monotonic() - started_s, sum(map(len, files.values()))
            self._tell("checkpoint", step=step, write_s=round(write_s, 4), stall_s=round(stall_s, 6), bytes=size)
        except OSError as error:
            logger.warning(
                "warning: the checkpoint of step %d could not be written (%s), nor any for %.0f s: training goes on",
                step,
                error.strerror or error,
                self._late_s(),
            )
            with suppress(OSError):
                self._tell("checkpoint_failed", step=step, why=error.strerror or str(error))
            return error
        except Exception as error:
            return error
        return None

    def _tell(self, event: str, **values: Any) -> None:
        if not self._is_closed:  # later than that the run may be another's
            self.tell(event, **values)
