"""Nodes at whole rows of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffsolve.grids.base import Grid
from diffsolve.paths import Path

__all__ = ["Whole"]


@dataclass(frozen=True)
class Whole(Grid):
    """Another grid with each inner node at the nearest whole row of a table that is still free.

    For networks that know whole rows only (an embedding of each row, `clock="index"`): between rows they would be told
    another time than the weights of the step are for. Ends stay where they are; more steps than rows do too.
    """

    grid: Grid

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        times = self.grid.nodes(path, steps, start, stop)
        low, high = math.floor(times[-1]) + 1, math.ceil(times[0]) - 1
        if not path.integer or steps - 1 > high - low + 1:
            return times
        k = np.arange(steps - 1)
        rows = np.maximum(np.round(times[-2:0:-1]), low + k)
        rows = np.maximum.accumulate(rows - k) + k  # each a row above the one before
        rows = np.minimum(rows, high - k[::-1])
        return np.concatenate([times[:1], rows[::-1], times[-1:]])
