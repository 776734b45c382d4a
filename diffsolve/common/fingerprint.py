"""What files and ranks compare instead of the things themselves: JSON values, and numbers made of all bits of weights.

A class says what stands for its objects with a method `__fingerprint__`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["describe", "rounded", "weights_of"]

ENDS = 32  # values hashed from either end of each parameter
CHUNK = 2**22  # numbers of a tensor looked at at once
DEPTH = 6  # how far a network's tensors are looked for in what it is made of


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
    if isinstance(value, nn.Module) and not hasattr(value, "__fingerprint__"):
        state = [t for _, t in sorted(value.state_dict().items()) if isinstance(t, Tensor)]
        ends = [torch.cat([t.detach().flatten()[:ENDS], t.detach().flatten()[-ENDS:]]) for t in state]
        return [type(value).__name__, _digest(ends)]
    if hasattr(value, "__fingerprint__") and not isinstance(value, type):
        return value.__fingerprint__()
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


def rounded(*arrays: np.ndarray, digits: int = 6) -> str:
    """A digest of numbers, each array's to that many digits of its largest: rounding errors make no other one."""
    texts = []
    for numbers in arrays:
        scale = float(np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)) or 1.0
        texts.append(
            f"{scale:.{digits - 1}g} " + " ".join(f"{number:.{digits}f}" for number in numbers.ravel() / scale)
        )
    zero = f"{0:.{digits}f}"
    return hashlib.sha256("|".join(texts).replace(f"-{zero}", zero).encode()).hexdigest()[: 8 if digits == 6 else 16]


def weights_of(net: Any) -> int:
    """A number made of all bits of all the tensors that a network is made of; on their devices, in one pass over them.

    Of a module its parameters and buffers, of a function the modules and tensors that it holds.
    """
    tensors = list(_tensors(net, DEPTH, set()))
    # In-place changes are counted by PyTorch (not for inference tensors).
    state = tuple((t.data_ptr(), t.shape, t.dtype, -1 if t.is_inference() else t._version) for t in tensors)
    try:
        known = _KNOWN.get(net)
    except TypeError:  # nothing that can be referred to weakly
        known = None
    if known is not None and known[0] == state and not any(t.is_inference() for t in tensors):
        return known[1]
    total = 0
    for tensor in tensors:
        total = (total * 1_000_003 + _content(tensor)) % 2**63
    with suppress(TypeError):
        _KNOWN[net] = state, total
    return total


_KNOWN: WeakKeyDictionary[Any, tuple[Any, int]] = WeakKeyDictionary()


def _tensors(value: Any, depth: int, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.layout is torch.strided:
            yield value.detach()
    elif isinstance(value, nn.Module):
        for _, entry in sorted(value.state_dict(keep_vars=True).items()):
            if isinstance(entry, Tensor):
                yield from _tensors(entry, depth, seen)
    elif isinstance(value, Mapping) and depth == DEPTH:  # given as such; an attribute may be a cache
        for entry in value.values():
            if isinstance(entry, Tensor | nn.Module):
                yield from _tensors(entry, depth, seen)
    elif isinstance(value, MethodType):
        yield from _tensors(value.__self__, depth - 1, seen)
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _tensors(part, depth - 1, seen)
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield from _tensors(cell.cell_contents, depth - 1, seen)
            except ValueError:  # a name that has no value yet
                continue
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for _, part in sorted(vars(value).items()):
            yield from _tensors(part, depth - 1, seen)


def _content(tensor: Tensor) -> int:
    """All bits of a tensor, in their order: integers, so that every device gives the same."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    flat = tensor.contiguous().flatten()
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    words = flat.view(sizes[flat.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for part in torch.split(words, CHUNK):
        place = torch.arange(len(part), device=flat.device)
        total = total * 1_000_003 + (part.to(torch.int64) * (2 * place + 1)).sum()
    about = hashlib.sha256(str((tensor.dtype, *tensor.shape)).encode()).digest()
    return (int(total) + int.from_bytes(about[:7], "big")) % 2**63


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        tensor = tensor.detach().cpu().contiguous()
        digest.update(str((tensor.dtype, *tensor.shape)).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
