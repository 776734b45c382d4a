r"""Solvers designed on paper for a path, a prediction and a grid: the weights that err least in a world of problems.

In the straight frame, y = x / (alpha + sigma), every linear solver of one call a step is

.. math:: y_{i+1} = y_i + \sum_j w_{ij} V_j, \qquad \sum_j w_{ij} = u_{i+1} - u_i

with the straight velocities :math:`V_j = \varepsilon_j - D_j` of its calls; the sum makes it exact for a constant
prediction. Given the grid, row i is the least-squares solution towards the states that the flow of the erring network
itself has at node i + 1, over all particles of `diffsolve.solvers.world`, which have come to node i by the rows before:
a row corrects what they left. A ridge draws towards Adams' weights. OLSS (2305.14677) solves such rows on one network's
own trajectories; here no network is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from diffsolve.common.checks import choice, integer, number, required
from diffsolve.grids import Arc, Grid
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver
from diffsolve.solvers.world import World, world
from diffsolve.tableau import Draft
from diffsolve.tableau.frames import FRAMES, PREDICTIONS

__all__ = ["ARCS", "ArcOf", "Designed"]

ARCS = {
    "noise": Arc(1.0, 0.3),
    "score": Arc(1.0, 0.35),
    "denoised": Arc(0.37, 0.3),
    "edm": Arc(0.6, 0.5),
    "v": Arc(0.6, 0.6),
    "velocity": Arc(0.6, 0.6),
}
"""Where the steps go for each prediction: nearly even in lambda where the error grows towards an end."""

MANY, EVEN = 15, Arc(1.6, 0.2)
"""Of noise and scores more steps than that are more even yet."""


@dataclass(frozen=True)
class ArcOf(Grid):
    """The grid `arc` with what goes with the prediction and the number of steps."""

    predicts: str = "v"

    def __post_init__(self) -> None:
        choice("predicts", self.predicts, PREDICTIONS)

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        even = steps > MANY and self.predicts in ("noise", "score")
        return (EVEN if even else ARCS[self.predicts]).nodes(path, steps, start, stop)


LONG = 40
"""More steps than that are Adams' of three values: their differences are too small to say what the world would have."""

RIDGE = 1e-3
DIGITS = 2.0**-40
"""Weights are multiples of this part of their step, so that machines whose solvers round differently agree."""


@dataclass(frozen=True)
class Designed(Solver):
    """One call a step, weights by least squares over problems whose network errs (this file's top has the equation).

    Args:
        predicts: what the network predicts; None for that of the run's model.
        delta: the root mean square of its error, in units of the prediction.
        spread: standard deviations of the problems, in units of the data.
        modes: distances of the problems' two modes from their middle; 0 is one mode.
        history: how many outputs a step may use.
        guidance: the scale of classifier-free guidance; None for that of the run.
    """

    predicts: str | None = None
    delta: float = 0.03
    spread: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    modes: tuple[float, ...] = (0.0, 0.5, 1.0)
    history: int = 4
    guidance: float | None = None

    order: ClassVar[int] = (
        2  # that of many steps, Adams' with an Euler step first; the world's rows are exact for constants
    )

    def __post_init__(self) -> None:
        if self.predicts is not None:
            choice("predicts", self.predicts, PREDICTIONS)
        number("delta", self.delta, low=0)
        integer("history", self.history, low=1)
        for name in ("spread", "modes"):
            values = getattr(self, name)
            required(isinstance(values, Sequence) and len(values) > 0, name, values, "a tuple of numbers", TypeError)
            object.__setattr__(self, name, tuple(number(name, value, low=0) for value in values))
        required(min(self.spread) > 0, "spread", self.spread, "numbers > 0")
        fits = 0 in self.modes or any(s <= 0.6 * m for s in self.spread for m in self.modes)
        required(fits, "modes", self.modes, "with 0 or some mode at least 1.7 standard deviations away")
        if self.guidance is not None:
            number("guidance", self.guidance)

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        return ArcOf(self.predicts or "v")

    def suited(self, predicts: str, guidance: float) -> Solver:
        own = self.predicts or predicts, guidance if self.guidance is None else self.guidance
        return replace(self, predicts=own[0], guidance=own[1])

    def write(self, draft: Draft, call_last: bool) -> None:
        problems = world(draft.path, self.predicts or "v", self.delta, self.spread, self.modes, self.guidance or 1.0)
        straight, grid = FRAMES["straight"], draft.grid
        weights = rows(problems, grid, self.history)
        for i, row in enumerate(weights):
            ratio, _ = straight.step(grid[i], grid[i + 1])
            c = float(straight.c(grid[i + 1]))
            changes: dict[str | int, float] = {j: c * float(w) for j, w in enumerate(row) if w != 0}
            draft.call(grid[i], "straight", y={**changes, "y": float(ratio)}, node=i + 1)


def rows(problems: World, grid: Position[np.ndarray], history: int) -> np.ndarray:
    """The weights w_ij of a run over the grid, shape (steps, steps)."""
    u = np.asarray(FRAMES["straight"].v(grid))
    # Finite at both ends, and between lambda and theta: where Adams' weights are taken from.
    place = np.arctan2(np.sqrt(grid.sigma), np.sqrt(grid.alpha))
    steps = len(u) - 1
    weights, outputs = np.zeros((steps, steps)), []
    y = problems.at(float(u[0]))
    beyond = problems.path.t_last != problems.path.t_data
    for i in range(steps):
        outputs.append(problems.velocity(y, float(u[i])))
        used = np.arange(max(0, i + 1 - history), i + 1)
        h = u[i + 1] - u[i]
        # The flow ends at the path's last call where there is none beyond: from there the step is the last output's.
        last = beyond and grid.t[i + 1] == problems.path.t_data
        v = [outputs[j] for j in used]
        share = np.zeros(0) if last else _shares(problems, y, v, u[i : i + 2], place[used], steps > LONG)
        share = np.round(share / DIGITS) * DIGITS
        weights[i, used[: len(share)]] = h * share
        weights[i, i] = h * (1 - share.sum())
        y = y + sum(weights[i, j] * outputs[j] for j in used)
    return weights


def _shares(
    problems: World, y: np.ndarray, v: list[np.ndarray], u: np.ndarray, place: np.ndarray, long: bool
) -> np.ndarray:
    """What part of the step each output but the newest gets; the newest has the rest."""
    h = u[1] - u[0]
    if len(v) == 1:
        return np.zeros(0)
    weight = problems.weight
    prior = np.zeros(len(v) - 1)
    prior[-2:] = _adams(u, place[-3:])[:-1]
    if long:
        return prior
    A = np.stack([(weight * h * (old - v[-1])).ravel() for old in v[:-1]], axis=1)
    target = (weight * (problems.at(float(u[1])) - y - h * v[-1])).ravel()
    gram = A.T @ A
    ridge = RIDGE * np.diag(gram) + 1e-14 * np.trace(gram) + 1e-300
    return np.asarray(prior + np.linalg.solve(gram + np.diag(ridge), A.T @ (target - A @ prior)))


def _adams(u: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The mean over the step, in u, of the Lagrange polynomials through the places of the outputs."""
    x, weight = np.polynomial.legendre.leggauss(12)
    between = u[0] + (u[1] - u[0]) * (x + 1) / 2
    at = np.arctan2(np.sqrt(between), np.sqrt(1 - between))
    out = []
    for j, own in enumerate(place):
        others = np.delete(place, j)
        out.append(float(((at[:, None] - others) / (own - others)).prod(1) @ weight / 2))
    return np.array(out)
