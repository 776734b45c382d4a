"""Locks of files: one process at a time, until it ends, however it ends.

The system's advisory locks are used, which go with the process; where a file system has none, nothing is locked.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from diffsolve.common.files import in_folder

__all__ = ["exclusive", "opened"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def opened(path: Path, flags: int = 0) -> BinaryIO:
    """A file open for appending, and locked until it is closed; it is created if it does not exist.

    Raises:
        BlockingIOError: while another process, or another call in this one, has it.
    """
    while True:
        file = os.fdopen(os.open(path, _FLAGS | flags, 0o666), "a+b", buffering=0)
        try:
            _lock(file, path)
            # The last one to have it may have removed it in between: then this is a file without a name.
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


@contextmanager
def exclusive(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Keep a file that is replaced as a whole to this process, by a lock on `<path>.lock`; None locks nothing.

    Raises:
        BlockingIOError: while another process, or another call in this one, has it.
        FileNotFoundError: if the folder does not exist.
    """
    if path is None:
        yield
        return
    lock = Path(f"{in_folder(path)}.lock")
    with opened(lock, getattr(os, "O_NOFOLLOW", 0)):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**40)  # a byte far past the end: Windows would block reading of locked bytes
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(
                error.errno, "file must be open once only, got one that another run is writing", str(path)
            ) from None
        # Any other error means that this file system has no locks; the file is then used without one.
