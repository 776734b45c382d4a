"""Conditions of single samples, put together for one network call."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffsolve.models import Shared

__all__ = ["kind_of", "stacked"]


def kind_of(cond: Any) -> Hashable:
    """What two conditions must agree in to go through the network in one call.

    Tensors agree in shape, dtype and device, what is `Shared` is one and the same tensor, and all else is equal.
    """
    if isinstance(cond, Tensor):
        return "tensor", tuple(cond.shape), cond.dtype, cond.device
    if isinstance(cond, Shared):
        return "shared", id(cond.value)
    if isinstance(cond, Mapping):
        return "mapping", frozenset((name, kind_of(part)) for name, part in cond.items())
    if isinstance(cond, list | tuple):
        return type(cond), tuple(kind_of(part) for part in cond)
    return (type(cond), cond) if isinstance(cond, Hashable) else ("object", id(cond))


def stacked(conds: Sequence[Any]) -> Any:
    """The condition of a batch, from those of its samples, which are of one kind: each tensor gets a first axis.

    What is `Shared` stays so.
    """
    first = conds[0]
    if isinstance(first, Tensor):
        return torch.stack(list(conds))
    if isinstance(first, Shared):
        return first
    if isinstance(first, Mapping):
        return {name: stacked([cond[name] for cond in conds]) for name in first}
    if isinstance(first, list | tuple):
        parts = [stacked(part) for part in zip(*conds, strict=True)]
        return first._make(parts) if hasattr(first, "_make") else type(first)(parts)
    return first
