"""The one writer and reader of files: a reader sees the old contents or the new, and an error names the file.

What is written is strict JSON or safetensors. What is read may be anything: whatever a broken file makes of the code
that reads it becomes one ValueError, "file must be <what is accepted>, got <path>: <what is wrong>" (`reading`).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsolve.common.checks import described, required

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FileError",
    "dumps",
    "in_folder",
    "match",
    "numbers",
    "parsed",
    "read_tensors",
    "reading",
    "write_tensors",
    "write_whole",
]

LONGEST = 300  # characters of what an error quotes
# O_EXCL refuses an existing name, symbolic links included, so that a planted file or link is never written to.
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class FileError(ValueError):
    """A file is not what it should be; the message names it, what is accepted and what is wrong."""

    def __init__(self, path: str | os.PathLike[str], accepted: str, why: object) -> None:
        super().__init__(f"file must be {accepted}, got {os.fspath(path)!r}: {why}")


@contextmanager
def reading(path: str | os.PathLike[str], accepted: str) -> Iterator[None]:
    """Turn every failure that the contents of a file can cause in the code inside into one `FileError`.

    Errors of the system, such as a file that is not there, pass as they are; they name the file themselves.
    """
    try:
        yield
    except (FileError, OSError):
        raise
    except KeyError as error:
        raise FileError(path, accepted, f"it has no {error.args[0]!r}") from error
    except (RecursionError, MemoryError) as error:
        raise FileError(path, accepted, "it is nested too deeply, or too large") from error
    except Exception as error:  # a broken file raises what its format's reader happens to raise
        why = str(error) or type(error).__name__
        raise FileError(path, accepted, why if len(why) <= LONGEST else f"{why[:LONGEST]}...") from error


def in_folder(path: str | os.PathLike[str], name: str = "path") -> Path:
    """The path of a file to write, whose folder exists.

    Raises:
        FileNotFoundError: if it does not.
    """
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{name} must be in a folder that exists, got {os.fspath(path)!r}")
    return Path(path)


def write_whole(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file atomically: if writing fails, the old file, if any, is unchanged.

    The data goes to a new file in the same folder, is flushed to disk, and the file is then renamed. Concurrent
    writers do not interfere: the last to rename wins. Permissions are those of any new file (0o666 less the umask).

    Args:
        data: bytes; text is encoded as UTF-8, line ends unchanged.

    Raises:
        FileNotFoundError: if the folder does not exist.
        OSError: if the file cannot be written, naming it.
    """
    target = in_folder(path)
    # Not the target's name with a suffix: that could be longer than the file system allows.
    partial = target.with_name(f".diffsolve-{secrets.token_hex(8)}.partial")
    try:
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
    except FileExistsError:  # of the partial file: somebody laid it out
        raise
    except OSError as error:  # of the partial file, or of no file at all
        if error.errno is None:
            raise OSError(f"{error}: {str(target)!r}") from error
        raise OSError(error.errno, error.strerror, str(target)) from error
    _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """Make a renaming last through a power failure, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def dumps(value: Any) -> str:
    """Strict JSON: without the tokens NaN and Infinity, which JSON does not have.

    Raises:
        ValueError: if a number is not finite.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"numbers in a file must be finite, got {described(value)}") from error


def parsed(text: str | bytes) -> dict[str, Any]:
    """The JSON object of a text.

    Raises:
        ValueError: if it is none.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    required(isinstance(value, dict), "it", value, "a JSON object")
    return dict(value)


def numbers(name: str, value: Any) -> Any:
    """Nested lists of finite numbers; "inf" and "-inf" stand for what JSON has no token for.

    Raises:
        ValueError: for anything else, booleans and texts included.
    """
    if isinstance(value, list):
        return [numbers(name, entry) for entry in value]
    if value in ("inf", "-inf"):
        return float(value)
    required(isinstance(value, int | float) and not isinstance(value, bool), name, value, "numbers")
    required(value == value, name, value, "numbers that are not NaN")
    return value


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], key: str = "", note: Any = None) -> None:
    """Write a safetensors file atomically; with a key, `note` as JSON under that key of its metadata."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_whole(path, save(contiguous, {key: dumps(note)} if key else None))


def read_tensors(
    path: str | os.PathLike[str], key: str = "", device: str = "cpu", accepted: str = "a safetensors file"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file, and the JSON object under `key` of its metadata (empty if there is none).

    Raises:
        FileError: if the file is not a safetensors file, or the value is not a JSON object.
        OSError: if it cannot be read, naming it.
    """
    from safetensors import safe_open

    with open(path, "rb"):  # whose errors name the file; those of safetensors may not
        pass
    with reading(path, accepted), safe_open(os.fspath(path), framework="pt", device=device) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, parsed((file.metadata() or {}).get(key, "{}"))


def match(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a file holds finite, floating-point tensors of these names and shapes.

    Raises:
        FileError: if a tensor is missing, superfluous, of another shape or dtype, or not finite.
    """
    accepted = "one with the tensors of this network"
    if tensors.keys() != expected.keys():
        odd = sorted(tensors.keys() ^ expected.keys())[:3]
        raise FileError(path, accepted, f"only one of the two has {', '.join(odd)}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape or not value.is_floating_point():
            wanted = f"floating-point of shape {tuple(expected[name].shape)}"
            raise FileError(path, accepted, f"{name} must be {wanted}, got {described(value)}")
        if not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise FileError(path, accepted, f"{name} must be finite, got {count} values that are not")
