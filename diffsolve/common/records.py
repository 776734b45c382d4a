"""A file of JSON lines, the settings and then one per record, that an interrupted run resumes from.

with Records("scores.jsonl", {"model": "digits", "num": 1000}, key=lambda entry: entry["seed"]) as records:
    for seed in range(10):
        if seed not in records.found:
            records.append({"seed": seed, "score": measure(seed)})
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

from diffsolve.common.checks import described
from diffsolve.common.files import dumps, in_folder, parsed
from diffsolve.common.locks import opened

__all__ = ["Records", "read"]

Entry = dict[str, Any]
Key = Callable[[Entry], Hashable]


class Records:
    """A file of records, open for appending: `entries` holds the existing records, `append` adds more.

    A file is created, and begun with the settings, only when the first record is appended: a run that fails before
    leaves nothing. A last line cut short by an interruption is removed. While the file is open no other process, and
    no other `Records`, can open it (`diffsolve.common.locks`). A file with other settings, or of another format, is
    not changed.

    Args:
        path: the file.
        settings: JSON values, which must equal those in the file.
        key: what a record is found by in `found`; it raises a ValueError, TypeError or KeyError for one that is not of
            this kind. Without it `found` is empty.
        force: start anew: the first `append` replaces the records, whatever their settings.

    Raises:
        ValueError: if the settings differ, naming them, or a line is not a record, giving its number.
        FileNotFoundError: if the folder does not exist.
        BlockingIOError: while another process or another `Records` has the file open.
    """

    def __init__(
        self, path: str | os.PathLike[str], settings: Mapping[str, Any], key: Key | None = None, force: bool = False
    ) -> None:
        self.path, self._key = in_folder(path), key
        self._header = _line(settings)
        self.found: dict[Hashable, Entry] = {}
        """The records by their key; the first of several with the same key."""
        absent = not self.path.exists()
        self._file = opened(self.path)
        self._new, self._begun = absent and os.fstat(self._file.fileno()).st_size == 0, False
        try:
            self.entries = self._continued(force)
        except BaseException:
            self.close()
            raise

    def _continued(self, force: bool) -> list[Entry]:
        """The entries of the file, which ends with a complete line then."""
        self._file.seek(0)
        data = self._file.read()
        if self._header.startswith(data):  # a new file, or one whose header was cut short
            return []
        if force:  # anything but records is somebody's work, which nobody asked to remove
            _object(self.path, 1, data.split(b"\n")[0])
            return []
        known, entries, length = _records(self.path, data)
        wanted = parsed(self._header)
        differ = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if differ:
            what = "; ".join(f"{name}={known.get(name)!r} there and {wanted.get(name)!r} here" for name in differ)
            raise ValueError(
                f"file {str(self.path)!r} must be of the same settings, got other settings: {what}. Give the settings "
                "of the file, name another file, or start anew with force (--force)"
            )
        self._find(entries)
        if length < len(data):
            self._file.truncate(length)
        self._begun = True
        return entries

    def _find(self, entries: list[Entry]) -> None:
        if self._key is None:
            return
        for number, entry in enumerate(entries, 2):
            try:
                self.found.setdefault(self._key(entry), entry)
            except (ValueError, TypeError, KeyError) as error:
                why = f"it has no {error.args[0]!r}" if isinstance(error, KeyError) else error
                raise ValueError(
                    f"file {str(self.path)!r}, line {number} must be a record of this kind, got "
                    f"{described(entry)}: {why}"
                ) from error

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add a line for each and flush them to disk. If that fails, the file is unchanged.

        Raises:
            ValueError: if a number is not finite.
        """
        lines = b"".join(map(_line, entries))
        if self._begun:
            self._write(lines)
        else:
            self._file.truncate(0)
            self._write(self._header + lines)
            self._begun = True
        added = [dict(entry) for entry in entries]
        self.entries += added
        if self._key is not None:
            for entry in added:
                self.found.setdefault(self._key(entry), entry)

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
        """Close and unlock the file; a new one to which nothing was appended is removed."""
        if self._new and not self._begun and not self._file.closed:
            self.path.unlink(missing_ok=True)
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
    settings, entries, _ = _records(Path(path), Path(path).read_bytes())
    return settings, entries


def _records(path: Path, data: bytes) -> tuple[Entry, list[Entry], int]:
    """The settings, the entries, and the length in bytes of the complete lines."""
    whole = data[: data.rfind(b"\n") + 1]
    # Not `splitlines`, which also splits at characters that are not newlines.
    lines = whole.split(b"\n")[:-1] or [data]
    objects = [_object(path, number, line) for number, line in enumerate(lines, 1)]
    return objects[0], objects[1:], len(whole)


def _object(path: Path, number: int, line: bytes) -> Entry:
    try:
        return parsed(line)
    except (ValueError, MemoryError):  # not JSON, not UTF-8, or too much of it
        raise ValueError(
            f"file {str(path)!r}, line {number} must be a JSON object, got {_short(line)!r}; files of records are "
            "those of metrics.sweep, `diffsolve bench` and `diffsolve logprob`: name another file"
        ) from None


def _line(entry: Mapping[str, Any]) -> bytes:
    return dumps(entry).encode() + b"\n"


def _short(line: bytes) -> str:
    text = line[:60].decode(errors="replace")
    return text if len(line) <= 60 else f"{text}..."
