"""The solver that is used when none is named: one rule for every path, from the number of steps and the guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from diffsolve.common.checks import number
from diffsolve.paths import Path
from diffsolve.solvers.base import Solver
from diffsolve.solvers.multistep import Multistep
from diffsolve.tableau import Draft, Tableau

__all__ = ["Auto"]

POINTS = ((5, 1), (9, 2), (17, 3))
"""(at most so many steps, values of d): more steps bear a higher order, up to `MOST` values."""

MOST = 4
"""Five and six are better yet on exact mixtures in 30 steps or more, but far worse on a trained network."""


@dataclass(frozen=True)
class Auto(Solver):
    """Adams with a corrector (PEC) on the straight velocity, interpolated in the angle; the order grows with the steps.

    `Multistep(p, "straight", "theta", corrector=p + 1)` on the grid "angle", p = 1 to 4. Each step makes one network
    call. Guidance of scale w multiplies differences of the field by up to w, and extrapolation multiplies them
    again: n steps then bear the order of n / sqrt(w) steps, and below two of those no corrector either.
    docs/accuracy.md has the measurements behind the rule.

    Args:
        guidance: the scale w of classifier-free guidance. If None, that of the run: `ds.solve(guidance=...)`.
    """

    guidance: float | None = None

    grid: ClassVar[str] = "angle"

    def __post_init__(self) -> None:
        if self.guidance is not None:
            number("guidance", self.guidance)

    def guided(self, scale: float) -> Solver:
        return replace(self, guidance=scale) if self.guidance is None else self

    def method(self, steps: int) -> Multistep:
        """What a run of so many steps uses."""
        w = 1.0 if self.guidance is None else self.guidance
        # u + w (c - u) = c + (1 - w) (u - c): the larger of the two weights, and at least 1 in between.
        worth = steps / math.sqrt(max(1.0, w, 1 - w))
        points = next((p for most, p in POINTS if worth <= most), MOST)
        return Multistep(points, "straight", "theta", corrector=0 if worth < 2 else points + 1)

    @property
    def order(self) -> int:
        return self.method(1000).order

    def write(self, draft: Draft, call_last: bool) -> None:
        self.method(draft.steps).write(draft, call_last)

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        return self.method(len(times) - 1)(path, times, call_last=call_last)
