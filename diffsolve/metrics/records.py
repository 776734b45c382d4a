"""A file of JSON lines: one of settings, then one per result, each appended whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve.metrics.statistics import Statistics
from diffsolve.paths import Path
from diffsolve.tableau import Tableau

__all__ = ["append", "describe", "open_records", "read"]

ENDS = 32  # numbers from either end of a parameter that stand for all of it


def read(path: FilePath) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """The settings, the results, and the length of the whole lines in bytes: a last line cut short is left out.

    Raises:
        ValueError: for a file that is not one of these, with the number of the line.
    """
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    found = []
    for i, line in enumerate(whole.splitlines()):
        try:
            found.append(json.loads(line))
        except ValueError:
            raise ValueError(f"out={str(path)!r}, line {i + 1}: cannot be read as JSON") from None
        if not isinstance(found[-1], dict):
            raise ValueError(f"out={str(path)!r}, line {i + 1}: a JSON object is expected")
    return (found[0] if found else {}), found[1:], len(whole)


def open_records(path: FilePath, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results that a file has already; it is begun if there is none, and freed of a line cut short.

    Raises:
        ValueError: if it was made with other settings, naming them.
    """
    if not path.parent.is_dir():
        raise ValueError(f"out={str(path)!r}: there is no directory {str(path.parent)!r}")
    wanted = json.loads(json.dumps(settings))
    known, results, length = read(path) if path.exists() else ({}, [], 0)
    if known:
        differ = [name for name in {**known, **wanted} if known.get(name) != wanted.get(name)]
        if differ:
            what = "; ".join(f"{name}={known.get(name)!r} there and {wanted.get(name)!r} here" for name in differ)
            raise ValueError(f"out={str(path)!r} was made with other settings: {what}")
    if path.exists() and path.stat().st_size > length:
        os.truncate(path, length)
    if not known:
        append(path, wanted)
    return results


def append(path: FilePath, entry: Mapping[str, Any]) -> None:
    """One more line. If it cannot be written whole, the file is as it was."""
    line = json.dumps(entry).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(f"out={str(path)!r}: no more than a part of a line could be written")
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise


def describe(value: Any) -> Any:
    """What stands for a value in the settings: the same one for the same value in another process, else another.

    Paths, tableaux and statistics are digests of their numbers to six digits, other tensors of all their bits, modules
    their type and a digest of the ends of their parameters and buffers. What a function does cannot be seen, only its
    name.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has none
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        return [*value.shape, _digest([value])]
    if isinstance(value, nn.Module):
        state = [t for _, t in sorted(value.state_dict().items()) if isinstance(t, Tensor)]
        ends = [torch.cat([t.detach().flatten()[:ENDS], t.detach().flatten()[-ENDS:]]) for t in state]
        return [type(value).__name__, _digest(ends)]
    if isinstance(value, Tableau):
        return [_rounded(numbers) for numbers in (value.times, value.entry, value.weights)]
    if isinstance(value, Path):
        at = value.nodes(np.linspace(value.t_noise, value.t_last, 33))
        return [type(value).__name__, _rounded(at.alpha), _rounded(at.sigma)]
    if isinstance(value, Statistics):
        moments = [_rounded(numbers.numpy()) for numbers in (value.mean, value.cov.diagonal())]
        return [len(value.mean), *moments, describe(value.features)]
    if isinstance(value, Mapping):
        return {str(key): describe(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [describe(entry) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        entries = {f.name: describe(getattr(value, f.name)) for f in fields(value) if f.repr and f.compare}
        return {"type": type(value).__name__, **entries}
    if isinstance(value, torch.device | torch.dtype):
        return str(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def _rounded(numbers: np.ndarray) -> str:
    """A digest of numbers to 1e-6 of the largest: they may be found again with another rounding."""
    scale = float(np.abs(numbers).max()) or 1.0
    text = f"{scale:.5g} " + " ".join(f"{number:.6f}" for number in numbers.ravel() / scale)
    return hashlib.sha256(text.replace("-0.000000", "0.000000").encode()).hexdigest()[:8]


def _digest(tensors: Sequence[Tensor]) -> str:
    made = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        made.update(str((tensor.dtype, *tensor.shape)).encode())
        made.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return made.hexdigest()[:16]
