"""What an adaptive solve gives back, and the steps that it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffsolve.adaptive.step import Parts

__all__ = ["BatchStep", "Solution", "packed"]


@dataclass(frozen=True)
class BatchStep:
    """One step of each of n samples: which they are, where it begins, its size and its end; arrays of shape (n,)."""

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
    """What `integrate` returns: for each sample of the batch its last state, and how it got there."""

    parts: Parts
    v: np.ndarray
    """(B,): where it stopped."""
    h: np.ndarray
    """(B,): the step that it would have tried next."""
    nfe: np.ndarray
    """(B,): its network calls."""
    status: np.ndarray
    """(B,): a `Status`."""
    error: np.ndarray
    """(B,): the sum over its steps of the estimated error of the last part, the mean over its numbers."""
    dense: Tensor | None
    """(m, B, ..): the first part at the values of v asked for; NaN where it did not get."""
    steps: list[BatchStep]
    """steps[n] is the n-th accepted step of every sample that has one."""
