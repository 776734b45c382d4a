"""Where the steps go: a grid names a variable along the path and spaces nodes evenly in it.

Every grid fits every path. A run to the data ends on `path.t_data`; where the network cannot be called there the
last-but-one node is `path.t_last`, as is the custom of Karras et al. (2206.00364, eq. 5). Where the variable is
infinite at an end of the path, the end itself is a node and the even spacing begins at |lambda| = log 1000.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from diffsolve.common.checks import integer, required
from diffsolve.paths import Path

__all__ = ["Grid"]


class Grid(ABC):
    """A rule for where the steps go; a frozen dataclass of options."""

    @abstractmethod
    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        """steps + 1 times from `start` to `stop` (None: to the data itself)."""

    def __call__(self, path: Path, steps: int, *, start: float | None = None, stop: float | None = None) -> np.ndarray:
        """The n + 1 nodes, float64 times on the path's clock, from the noise to the data.

        Args:
            steps: n, the number of intervals.
            start: where to begin; the path's noise end if None.
            stop: where to end, exactly; the data itself if None.

        Raises:
            ValueError: if the grid has no n distinct steps there, or start does not lie noisier than stop.
        """
        steps = integer("steps", steps, low=1)
        first = path.t_noise if start is None else float(start)
        last = path.t_data if stop is None else float(stop)
        for name, t in (("start", first), ("stop", last)):
            required(path.within(t), name, t, f"between {path.t_noise} and {path.t_data}, the ends of {path}")
        toward_data = math.copysign(1.0, path.t_data - path.t_noise)
        if not (last - first) * toward_data > 0:
            raise ValueError(f"start must be on the noisier side of stop on {path}, got start={first!r}, stop={last!r}")
        times = self.nodes(path, steps, first, None if last == path.t_data else last)
        if not (np.diff(times) * toward_data > 0).all():
            raise ValueError(f"steps must be at most the distinct steps of {self} from {first} to {last}, got {steps}")
        return times
