"""The solver that is used when none is named: one rule, from the prediction, the number of steps and the guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffsolve.paths import Path
from diffsolve.solvers.base import Solver
from diffsolve.solvers.designed import Designed, ForNetwork, of_image
from diffsolve.solvers.flow_map import FlowMap
from diffsolve.solvers.multistep import Multistep
from diffsolve.solvers.published import DPMpp
from diffsolve.tableau import Draft, Tableau

__all__ = ["Auto"]

DESIGNED = {"noise": 24, "score": 17, "denoised": 6, "edm": 12, "v": 12, "velocity": 12}
"""At most so many steps are made by weights designed for the prediction; more are Adams'."""

SMOOTH = 200
"""Samples of more numbers, of which v, velocity or raw EDM is predicted, are left to Adams in few steps too: they are
decided at more noise than any problem that weights are designed for, and no error is multiplied there."""

LAMBDA = Multistep(3, "straight", "lambda", corrector=3)
"""What more steps use where the error grows towards the noise end (noise, score)."""

DENOISED = (
    (9, Multistep(3, "straight", "lambda", corrector=4)),
    (math.inf, Multistep(4, "straight", "lambda", corrector=5)),
)
"""(at most so many steps, what they use) where it grows towards the data end (denoised)."""

TWO = Multistep(2, "straight", "lambda", corrector=2)
"""What noise and scores of images use: the networks err so much where the steps are long that more values do harm."""

STRONG = 5.0
"""Above this scale of guidance differences of the field decide, not the network's error: nothing is designed for it."""

POINTS = ((5, 1), (9, 2), (17, 3))
"""(at most so many steps, values of d): more steps bear a higher order, up to `MOST` values."""

MOST = 4
"""Five and six are better yet on exact mixtures in 30 steps or more, but far worse on a trained network."""


@dataclass(frozen=True)
class Auto(ForNetwork):
    """Designed weights in a few steps, Adams with a corrector (PEC) on the straight velocity in more.

    A network that is told two times is a flow map, and jumps (`FlowMap`).

    A trained network errs on what it predicts. In the straight velocity that error is multiplied by 1 / alpha at the
    noise end (noise, score) or by 1 / sigma at the data end (denoised), so the prediction decides on the grid
    (`ArcOf`: nearly even in lambda for those), on the variable (lambda for those, else theta) and on how many values
    a step may use. docs/accuracy.md has the measurements behind the rule.
    """

    def suited(self, predicts: str, guidance: float, size: int | None = None, told_two: bool = False) -> Solver:
        return FlowMap() if told_two else super().suited(predicts, guidance, size)

    def method(self, steps: int) -> Solver:
        """What a run of so many steps uses."""
        predicts, w = self.predicts or "v", 1.0 if self.guidance is None else self.guidance
        # u + w (c - u) = c + (1 - w) (u - c): the larger of the two weights, and at least 1 in between. It multiplies
        # differences of the field, and the network's error: n steps are worth n / sqrt(w).
        w = max(1.0, w, 1 - w)
        worth = steps / math.sqrt(w)
        if w <= STRONG and of_image(predicts, self.size):
            return TWO
        if predicts not in ("noise", "score", "denoised"):
            if w <= STRONG and worth <= DESIGNED[predicts] and (self.size or 1) <= SMOOTH:
                return Designed(math.sqrt(w), predicts)
            points = next((p for most, p in POINTS if worth <= most), MOST)
            return Multistep(points, "straight", "theta", corrector=0 if worth < 2 else points + 1)
        if w > STRONG:
            return DPMpp(1 if steps <= 5 else 2, "denoised")  # of two values it amplifies least
        if worth <= DESIGNED[predicts]:
            return Designed(math.sqrt(w), predicts)
        return next(solver for most, solver in DENOISED if worth <= most) if predicts == "denoised" else LAMBDA

    @property
    def order(self) -> int:
        return self.method(1000).order

    def write(self, draft: Draft, call_last: bool) -> None:
        self.method(draft.steps).write(draft, call_last)

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        return self.method(len(times) - 1)(path, times, call_last=call_last)
