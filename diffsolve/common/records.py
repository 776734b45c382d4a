"""A file of JSON lines, one of settings and then one per record: what was done is kept, and the same call goes on.

with Records("scores.jsonl", {"model": "digits", "num": 1000}) as records:
    for seed in range(len(records.entries), 10):
        records.append({"seed": seed, "score": measure(seed)})
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Records", "read"]

Entry = dict[str, Any]


class Records:
    """A file of records, open to be continued: `entries` are those that it has, `append` adds some.

    A last line that an interruption cut short is removed. While it is open no other process, and no other `Records`,
    can open it. (The lock is advisory, is the system's and goes with the process; where a file system has none, the
    file is not locked.) A file that is not of these settings, or not of this kind, is left as it is.

    Args:
        settings: JSON values; what must agree for the records to belong together.

    Raises:
        ValueError: for a file of other settings, naming them, or one that is not such a file, naming the line.
        FileNotFoundError: if the folder does not exist.
        BlockingIOError: while somebody else has it open.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"path must be in a folder that exists, got {str(self.path)!r}")
        header = _line(settings)
        self._file = self.path.open("a+b", buffering=0)
        try:
            _lock(self._file, self.path)
            self.entries = self._continued(header)
        except BaseException:
            self._file.close()
            raise

    def _continued(self, header: bytes) -> list[Entry]:
        """The entries of the file, which from here on begins with the header and ends with a whole line."""
        self._file.seek(0)
        data = self._file.read()
        if header.startswith(data):  # a new file, or one whose header was cut short
            self._file.truncate(0)
            self._write(header)
            return []
        known, entries, length = _parsed(self.path, data)
        wanted = json.loads(header)
        differ = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if differ:
            what = "; ".join(f"{name}={known.get(name)!r} there and {wanted.get(name)!r} here" for name in differ)
            raise ValueError(f"file {str(self.path)!r} must be of the same settings, got other settings: {what}")
        if length < len(data):
            self._file.truncate(length)
        return entries

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add a line for each, on the disk when it returns. If they cannot be written, the file is as it was."""
        self._write(b"".join(map(_line, entries)))
        self.entries += [dict(entry) for entry in entries]

    def _write(self, lines: bytes) -> None:
        before = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, "only a part of a line could be written", str(self.path))
            os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        """Let others open the file."""
        self._file.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> tuple[Entry, list[Entry]]:
    """(settings, entries) of a file of records, which is not written to; a last line cut short is left out.

    Raises:
        ValueError: for a file that is not one of these, naming the line.
    """
    settings, entries, _ = _parsed(Path(path), Path(path).read_bytes())
    return settings, entries


def _parsed(path: Path, data: bytes) -> tuple[Entry, list[Entry], int]:
    """The settings, the entries, and the length of the whole lines in bytes."""
    whole = data[: data.rfind(b"\n") + 1]
    objects = []
    # Not `splitlines`, which ends lines in more places than the writer does.
    for number, line in enumerate(whole.split(b"\n")[:-1] or [data], 1):
        try:
            value = json.loads(line)
        except ValueError:  # not JSON, or not UTF-8
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"file {str(path)!r}, line {number} must be a JSON object, got {_short(line)!r}")
        objects.append(value)
    return objects[0], objects[1:], len(whole)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _short(line: bytes) -> str:
    text = line[:60].decode(errors="replace")
    return text if len(line) <= 60 else f"{text}..."


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep the file from other `Records` until it is closed.

    Raises:
        BlockingIOError: if another has it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(2**40)  # a byte far behind the end: Windows keeps others from reading what is locked
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(
                error.errno, "file must be open once only, got one that another run is writing", str(path)
            ) from None
        # Anything else says that this file system has no locks: better one writer unguarded than none.
