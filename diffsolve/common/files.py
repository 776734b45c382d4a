"""Atomic writes: a reader sees the old contents or the new, never a part of them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_tensors", "write_tensors", "write_whole"]

# O_EXCL refuses an existing name, symbolic links included, so that a planted file or link is never written to.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file atomically: if writing fails, the old file, if any, is unchanged.

    The data goes to a new file in the same folder, is flushed to disk, and the file is then renamed. Concurrent
    writers do not interfere: the last to rename wins. Permissions are those of any new file (0o666 less the umask).

    Args:
        data: bytes; text is encoded as UTF-8, line ends unchanged.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if the file cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {str(target)!r}")
    # Not the target's name with a suffix: that could be longer than the file system allows.
    partial = target.with_name(f".diffsolve-{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, _FLAGS, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], key: str = "", note: Any = None) -> None:
    """Write a safetensors file atomically; with a key, `note` as JSON under that key of its metadata."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(contiguous, {key: json.dumps(note)} if key else None))


def read_tensors(path: str | os.PathLike[str], key: str = "", device: str = "cpu") -> tuple[dict[str, Tensor], Any]:
    """The tensors of a safetensors file, and the JSON value under `key` of its metadata (None if there is none).

    Raises:
        ValueError: if the file is not a safetensors file, or the value is not JSON.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get(key, "null"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"file must be a safetensors file, got {os.fspath(path)!r}: {error}") from error
