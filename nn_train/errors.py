"""Errors that the user can mend: each says what is wrong, where, and how to mend it."""

import errno
import functools
from typing import Any

# What a file server that changes hands, or a machine that is short of memory for a moment, answers.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN, errno.EAGAIN, errno.ENOMEM,
           errno.EREMOTEIO, errno.EHOSTDOWN}  # fmt: skip


class UserError(Exception):
    """Something in the user's input, settings or machine that the user can mend; exit code 2."""

    def __init__(self, what: str, *, where: str = "", fix: str = ""):
        super().__init__(what, where, fix)
        self.what = what
        self.where = where
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole."""
        return functools.partial(type(self), self.what, where=self.where, fix=self.fix), ()

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  mend: {self.fix}")
        return "\n".join(lines)


def short(text: str, most: int = 60) -> str:
    """Text of a table as a message shows it: on one line, cut, and nothing in it that a terminal would obey."""
    text = text.strip()
    shown = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


class ConfigError(UserError):
    """A setting that does not exist, has the wrong type or range, or contradicts another."""


class DataError(UserError):
    """A table that cannot be read or trained on as it is."""


class RunFolderError(UserError):
    """A run folder that cannot be written, or that holds something else than this run."""


class WorldError(UserError):
    """Processes that were started together but do not train together."""


class TrainingError(UserError):
    """Training that cannot go on: a loss or gradient that is not finite."""


def error_from_os(error: OSError) -> UserError:
    """Turn an operating-system error (full disk, no permission) into one that names the mend."""
    reason = error.strerror or str(error)
    if error.errno in PASSING:
        return PassingError(
            f"the system refused a file operation: {reason}", where=str(error.filename or ""), fix="start it again"
        )
    where = str(error.filename or "")
    return RunFolderError(
        f"the system refused a file operation: {reason}",
        where=where,
        fix="free space or choose a folder that can be written: run.dir=DIR, data.cache_dir=DIR",
    )


class PassingError(UserError):
    """The system refused something that it may grant a moment later; exit code 1, so that a launcher starts again."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state; the same command goes on from there."""
