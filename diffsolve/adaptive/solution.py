"""The result of an adaptive solve, and its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffsolve.adaptive.step import Parts

__all__ = ["BatchStep", "Solution", "packed"]


@dataclass(frozen=True)
class BatchStep:
    """One step of each of n samples: the sample, the start v, the size h and the end; arrays of shape (n,)."""

    rows: np.ndarray
    v: np.ndarray
    h: np.ndarray
    end: np.ndarray

    def __getitem__(self, which: np.ndarray) -> BatchStep:
        return BatchStep(self.rows[which], self.v[which], self.h[which], self.end[which])


def packed(steps: Sequence[BatchStep]) -> list[BatchStep]:
    """Steps in the order of the solve, regrouped: the n-th step of every sample that has one, for n = 0, 1, .."""
    if not steps:
        return []
    every = BatchStep(*(np.concatenate([getattr(s, name) for s in steps]) for name in ("rows", "v", "h", "end")))
    order = np.argsort(every.rows, kind="stable")
    counts = np.bincount(every.rows)
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((every.rows, number))
    bounds = np.cumsum(np.bincount(number))[:-1]
    return [every[which] for which in np.split(order, bounds)]


@dataclass(frozen=True)
class Solution:
    """What `integrate` returns: the last state of each of B samples, and how it was reached."""

    parts: Parts
    v: np.ndarray
    """(B,): the v at which the sample stopped."""
    h: np.ndarray
    """(B,): the step that it would have tried next, signed."""
    nfe: np.ndarray
    """(B,): its network calls."""
    status: np.ndarray
    """(B,): a `Status`."""
    error: np.ndarray
    """(B,): the estimated error of the last part, averaged over its numbers and summed over the steps."""
    drift: np.ndarray
    """(B,): what the errors of the first part change in the quantity of `gauge`, summed over the steps; 0 without."""
    dense: Tensor | None
    """(m, B, ..): the first part at the outputs; NaN beyond where a sample stopped."""
    steps: list[BatchStep]
    """steps[n] is the n-th accepted step of every sample that has one."""
