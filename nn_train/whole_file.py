"""A file that is written bit by bit and appears at its end, whole: a process that is killed leaves none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of `path` when the block ends well, and is gone when it does not.

    Where the system can (Linux), the file has no name until then; elsewhere it is called `.NAME.PID.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    handle, has_name = _open(path.parent, temporary)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not has_name:
                temporary.unlink(missing_ok=True)  # of a process that had this number
                # without a folder's number Python calls link(), which does not follow the symbolic link there
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say by itself which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _open(folder: Path, temporary: Path) -> tuple[int, bool]:
    nameless = getattr(os, "O_TMPFILE", None)
    if nameless is not None and os.path.isdir("/proc/self/fd"):
        with suppress(OSError):  # a file system that has no such files
            return os.open(folder, nameless | os.O_WRONLY, 0o666), False
    return os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666), True
