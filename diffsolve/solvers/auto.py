"""The solver that is used when none is named: one rule for every path, from the number of steps alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffsolve.paths import Path
from diffsolve.solvers.base import Solver
from diffsolve.solvers.multistep import Multistep
from diffsolve.tableau import Draft, Tableau

__all__ = ["Auto"]

POINTS = ((5, 1), (9, 2), (14, 3), (25, 4), (40, 5))
"""(at most so many steps, values of d): more steps bear a higher order."""


@dataclass(frozen=True)
class Auto(Solver):
    """Adams with a corrector (PEC) on the straight velocity, interpolated in the angle; the order grows with the steps.

    `Multistep(p, "straight", "theta", corrector=p + 1)` on the grid "angle", p = 1 to 6: docs/accuracy.md has the
    measurements behind the rule. Each step makes one network call.
    """

    grid: ClassVar[str] = "angle"

    @staticmethod
    def method(steps: int) -> Multistep:
        """What a run of so many steps uses."""
        points = next((p for most, p in POINTS if steps <= most), 6)
        return Multistep(points, "straight", "theta", corrector=points + 1)

    @property
    def order(self) -> int:
        return self.method(1000).order

    def write(self, draft: Draft, call_last: bool) -> None:
        self.method(draft.steps).write(draft, call_last)

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        return self.method(len(times) - 1)(path, times, call_last=call_last)
