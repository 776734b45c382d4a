"""A file of JSON lines, the settings and then one per record, that an interrupted run resumes from.

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
    """A file of records, open for appending: `entries` holds the existing records, `append` adds more.

    A last line cut short by an interruption is removed. While the file is open no other process, and no other
    `Records`, can open it. (The system's advisory lock is used, which ends with the process; where a file system has
    no locks, the file is not locked.) A file with other settings, or of another format, is not changed.

    Args:
        path: the file; it is created if it does not exist.
        settings: JSON values, which must equal those in the file.

    Raises:
        ValueError: if the settings differ, naming them, or a line is not a JSON object, giving its number.
        FileNotFoundError: if the folder does not exist.
        BlockingIOError: while another process or another `Records` has the file open.
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
        """The entries of the file, once it begins with the header and ends with a complete line."""
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
        """Add a line for each and flush them to disk. If that fails, the file is unchanged."""
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
        """Close and unlock the file."""
        self._file.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> tuple[Entry, list[Entry]]:
    """(settings, entries) of a file of records, opened for reading only; a last line cut short is left out.

    Raises:
        ValueError: if a line is not a JSON object, giving its number.
    """
    settings, entries, _ = _parsed(Path(path), Path(path).read_bytes())
    return settings, entries


def _parsed(path: Path, data: bytes) -> tuple[Entry, list[Entry], int]:
    """The settings, the entries, and the length in bytes of the complete lines."""
    whole = data[: data.rfind(b"\n") + 1]
    objects = []
    # Not `splitlines`, which also splits at characters that are not newlines.
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
    """Lock the file against other `Records` until it is closed.

    Raises:
        BlockingIOError: if it is locked already.
    """
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
