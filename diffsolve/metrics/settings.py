"""The settings of a sweep as JSON values, kept with its results, which are resumed only for equal settings."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve.metrics.statistics import Statistics
from diffsolve.paths import Path
from diffsolve.tableau import Tableau

__all__ = ["describe"]

ENDS = 32  # values hashed from either end of each parameter


def describe(value: Any) -> Any:
    """What stands for a value in the settings: the same one for the same value in another process, else another.

    Paths, tableaux and statistics are digests of their numbers to six digits, other tensors of all their bits, modules
    their type and a digest of the ends of their parameters and buffers. What a function does cannot be seen, only its
    name.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no inf or nan
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
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
    """A digest of numbers to 1e-6 of the largest, insensitive to rounding errors between runs."""
    scale = float(np.abs(numbers).max()) or 1.0
    text = f"{scale:.5g} " + " ".join(f"{number:.6f}" for number in numbers.ravel() / scale)
    return hashlib.sha256(text.replace("-0.000000", "0.000000").encode()).hexdigest()[:8]


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(str((tensor.dtype, *tensor.shape)).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
