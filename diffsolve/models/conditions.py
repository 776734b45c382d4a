"""Conditions of the network: which tensors have one entry per sample, and which all samples share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import described, instance, mapping

__all__ = ["Shared", "Told", "conditions", "joined", "leaves", "mapped", "picked", "told"]


@dataclass(frozen=True, eq=False)
class Shared:
    """A condition that all samples share, whatever its shape: `cond={"scale": ds.Shared(torch.ones(2))}`.

    Without it a tensor whose first axis is the batch size is taken to have one entry per sample wherever samples are
    picked from the batch. The network gets the tensor itself.

    Raises:
        TypeError: if the value is not a tensor.
    """

    value: Tensor

    def __post_init__(self) -> None:
        instance("value", self.value, Tensor, "a tensor")


def conditions(name: str, value: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Keyword arguments for the network, every NumPy array of numbers in them a tensor; None gives an empty mapping.

    Raises:
        TypeError: for anything else than a mapping.
    """
    value = mapping(name, value)
    arrays = any(isinstance(leaf, np.ndarray) for leaf in leaves(value, np.ndarray))
    result: Mapping[str, Any] = mapped(value, _tensor, np.ndarray) if arrays else value
    return result


def _tensor(value: Any) -> Any:
    numeric = isinstance(value, np.ndarray) and value.dtype.kind in "biufc"
    return torch.from_numpy(value.copy()) if numeric else value


def mapped(value: Any, leaf: Callable[[Any], Any], *more: type) -> Any:
    """The conditions with every tensor and every `Shared` in them, in mappings, lists and tuples, replaced by
    leaf(it), and so with objects of the types `more`; all else is returned unchanged."""
    if isinstance(value, (Tensor, Shared, *more)):
        return leaf(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, leaf, *more) for name, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [mapped(part, leaf, *more) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def leaves(value: Any, *more: type) -> Iterator[Any]:
    """Every tensor and every `Shared` in the conditions, and every object of the types `more`, in the order of
    `mapped`."""
    if isinstance(value, (Tensor, Shared, *more)):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(part, *more)


def picked(given: Any, sample: Tensor, size: int) -> Any:
    """The conditions of the samples with indices `sample` of a batch of `size`.

    Tensors whose first axis is `size`, at any depth, have one entry per sample and are indexed. All else, and what is
    `Shared`, is returned unchanged.
    """

    def entries(value: Any) -> Any:
        one_each = isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
        return value[sample.to(value.device)] if one_each else value

    return mapped(given, entries)


def told(given: Any) -> Any:
    """The conditions as the network gets them: every `Shared` is its value. Unchanged if there is none."""
    if not any(isinstance(leaf, Shared) for leaf in leaves(given)):
        return given
    return mapped(given, lambda leaf: leaf.value if isinstance(leaf, Shared) else leaf)


class Told:
    """`told`, once for as long as it is given the same object, as in the calls of a run."""

    def __init__(self) -> None:
        self._given = self._plain = None

    def __call__(self, given: Any) -> Any:
        if given is not self._given:
            self._given, self._plain = given, told(given)
        return self._plain


def joined(cond: Any, uncond: Any, size: int, name: str = "cond") -> Any:
    """The conditions of a batch of 2 `size`: those of `cond`, then those of `uncond`, in one structure.

    Tensors are joined along their first axis; what is `Shared`, and what is no tensor, must be the same in both.

    Raises:
        ValueError: if the two differ in structure or in what they share, or a tensor has no entry per sample.
    """
    if isinstance(cond, Mapping) and isinstance(uncond, Mapping):
        if cond.keys() != uncond.keys():
            raise ValueError(
                f"uncond must have the arguments of cond for batched guidance, {sorted(cond)}, got {sorted(uncond)}"
            )
        return {key: joined(cond[key], uncond[key], size, f"{name}[{key!r}]") for key in cond}
    if isinstance(cond, list | tuple) and type(cond) is type(uncond) and len(cond) == len(uncond):
        parts = [joined(a, b, size, f"{name}[{i}]") for i, (a, b) in enumerate(zip(cond, uncond, strict=True))]
        return cond._make(parts) if hasattr(cond, "_make") else type(cond)(parts)
    if isinstance(cond, Tensor) and isinstance(uncond, Tensor):
        if not (cond.dim() and uncond.dim() and len(cond) == len(uncond) == size):
            raise ValueError(
                f"{name} must have one entry per sample, {size} of them, or be a ds.Shared for batched guidance, got "
                f"{described(cond)}, and {described(uncond)} in uncond"
            )
        return torch.cat([cond, uncond])
    one, other = (part.value if isinstance(part, Shared) else part for part in (cond, uncond))
    same = one is other or (type(one) is type(other) and _equal(one, other))
    if type(cond) is not type(uncond) or not same:
        raise ValueError(
            f"{name} must be the same with and without the condition for batched guidance, where it is no tensor of "
            f"one entry per sample, got {described(one)}, and {described(other)} in uncond"
        )
    return one


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
