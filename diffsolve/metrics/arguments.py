"""The arguments of a sweep, checked and normalised: references, scores, seeds, shape and conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.metrics.distances import Score, frechet, frechet_infinity, kid
from diffsolve.metrics.scores import named
from diffsolve.metrics.statistics import Statistics
from diffsolve.models.conditions import mapped

__all__ = ["chosen_budgets", "chosen_scores", "chosen_seeds", "cycled", "named_references", "sample_shape"]


def named_references(given: Any) -> dict[str, Statistics]:
    if isinstance(given, Statistics):
        return {"": given}
    instance("reference", given, (Mapping, type(None)), "Statistics, a mapping from names to them, or None")
    for name, entry in (given or {}).items():
        instance(f"reference[{name!r}]", entry, Statistics, "Statistics")
    return dict(given or {})


def chosen_scores(
    given: Mapping[str, Score] | Sequence[str] | None, references: Mapping[str, Statistics], num: int
) -> Mapping[str, Score]:
    if isinstance(given, Mapping):
        return given
    if given is not None:
        return {score: named(score) for score in given}
    chosen: dict[str, Score] = {"FD": frechet}
    if all(num >= 4 * len(r.mean) for r in references.values()):
        chosen["FD inf"] = frechet_infinity
    if num >= 2 and all(r.rows is not None and len(r.rows) > 1 for r in references.values()):
        chosen["KID"] = kid
    return chosen


def chosen_budgets(nfe: int | Sequence[int]) -> list[int]:
    nfe = _listed(nfe)
    budgets = [integer("nfe", n, 1) for n in (nfe if isinstance(nfe, Iterable) else [nfe])]
    required(bool(budgets), "nfe", nfe, "at least one budget")
    return budgets


def chosen_seeds(seeds: int | Sequence[int]) -> Sequence[int]:
    seeds = _listed(seeds)
    if isinstance(seeds, Iterable):
        chosen: Sequence[int] = [integer(f"seeds[{i}]", seed, 0) for i, seed in enumerate(seeds)]
    else:
        chosen = range(integer("seeds", seeds, 1))
    required(0 < len(set(chosen)) == len(chosen), "seeds", seeds, "a number of seeds, or different ones")
    return chosen


def _listed(value: Any) -> Any:
    """An array or a tensor as the list, or the number, that it stands for."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value


def sample_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = _listed(shape)
    sizes = isinstance(shape, Sequence) and bool(shape)
    required(sizes, "shape", shape, "the sizes of one sample, without the batch")
    return tuple(integer(f"shape[{i}]", size, 1) for i, size in enumerate(shape))


def cycled(given: Mapping[str, Any], first: int, count: int) -> dict[str, Any]:
    """The conditions of samples first .. first + count - 1: tensors, at any depth, are cycled along their first
    dimension; what is `Shared` is not."""

    def entries(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        return value[torch.arange(first, first + count, device=value.device) % len(value)]

    cond: dict[str, Any] = mapped(given, entries)
    return cond
