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

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffsolve.common.checks import integer, number, required
from diffsolve.grids import Arc, Grid, Karras
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver
from diffsolve.solvers.integrals import Integrals, StepIntegrals
from diffsolve.solvers.multistep import Multistep
from diffsolve.solvers.world import World, world
from diffsolve.tableau import Draft
from diffsolve.tableau.ends import may_call
from diffsolve.tableau.frames import FRAMES, check_prediction

__all__ = ["STEPS", "ArcOf", "Designed", "ForNetwork", "of_image"]


@dataclass(frozen=True)
class Steps:
    """Where the steps of a prediction go.

    Args:
        arc: the grid of few numbers: nearly even in lambda where the network's error grows towards an end.
        growth: its scale grows with that power of the size of a sample: a smooth image of d pixels has directions of
            standard deviation in proportion to sqrt(d), which are decided at that noise.
        last: lambda of the last call of five steps to the data: what is decided below that noise is worth no call.
        each: how much further that is for each step more.
    """

    arc: Arc
    growth: float = 0.2
    last: float = math.inf
    each: float = 0.0


STEPS = {
    "noise": Steps(Arc(0.8, 0.9, even=0.48), 0.4, 1.8, 0.7),
    "score": Steps(Arc(0.8, 0.9, even=0.48), 0.4, 1.8, 0.7),
    "denoised": Steps(Arc(0.37, 0.3)),
    "edm": Steps(Arc(0.45, 0.9, even=0.0635), 0.4, 2.6, 1.2),
    "v": Steps(Arc(0.6, 0.6)),
    "velocity": Steps(Arc(0.6, 0.6)),
}

SMALL, LARGE = 25, 3600
"""Numbers of a sample from which on and up to which its size counts."""

IMAGE = 256
"""Samples of more numbers, where the noise or a score is predicted, are an image's: theirs are the steps of EDM."""


def of_image(predicts: str, size: int | None) -> bool:
    """Whether a network of that prediction errs most where the largest directions of its samples are decided."""
    return predicts in ("noise", "score") and (size or 1) > IMAGE


@dataclass(frozen=True)
class ArcOf(Grid):
    """The grid `arc` with what goes with the prediction, the size of a sample and the number of steps; or `karras`."""

    predicts: str = "v"
    size: int | None = None

    def __post_init__(self) -> None:
        check_prediction("predicts", self.predicts)

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        where = STEPS[self.predicts]
        size = min(max(1.0, (self.size or 1) / SMALL), LARGE / SMALL)
        image, arc = of_image(self.predicts, self.size), where.arc
        grid = Karras() if image else replace(arc, scale=arc.scale * size**where.growth)
        last = where.last + where.each * (steps - 5)
        if stop is None and steps > 1 and path.lam(start) < last - 1 and last < path.lam(path.t_last):
            return np.append(grid.nodes(path, steps - 1, start, float(path.time(last))), path.t_data)
        return grid.nodes(path, steps, start, stop)


LONG, ADAMS = 40, Multistep(3, "straight", "arc")
"""More steps than that are Adams': the outputs' differences are too small to say what the world would have."""

RIDGE = 1e-3
DIGITS = 2.0**-40
"""Weights are multiples of this part of their step, so that machines whose solvers round differently agree."""


@dataclass(frozen=True)
class ForNetwork(Solver):
    """A solver that depends on the network of the run, with a grid that does.

    Args:
        guidance: the scale w of classifier-free guidance. If None, that of the run: `ds.solve(guidance=...)`.
        predicts: what the network predicts. If None, that of the run's model; "v" where there is no model.
        size: how many numbers a sample has. If None, as the run's; few where there is no shape.
    """

    guidance: float | None = None
    predicts: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            integer("size", self.size, low=1)
        if self.guidance is not None:
            number("guidance", self.guidance)
        if self.predicts is not None:
            check_prediction("predicts", self.predicts)

    @property
    def grid(self) -> Grid:  # type: ignore[override]
        return ArcOf(self.predicts or "v", self.size)

    def suited(self, predicts: str, guidance: float, size: int | None = None, told_two: bool = False) -> Solver:
        w = guidance if self.guidance is None else self.guidance
        return replace(self, guidance=w, predicts=self.predicts or predicts, size=self.size or size)


@dataclass(frozen=True)
class Designed(ForNetwork):
    """One call a step, weights by least squares over problems whose network errs (this file's top has the equation).

    Runs of more than `LONG` steps are `ADAMS`, and of its order; the weights of fewer steps
    are exact for a constant prediction, and otherwise the best in their world.

    Args:
        delta: the root mean square of the network's error, in units of the prediction.
        spread: standard deviations of the problems, in units of the data.
        modes: distances of the problems' two modes from their middle; 0 is one mode.
        history: how many outputs a step may use.
    """

    delta: float = 0.03
    spread: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    modes: tuple[float, ...] = (0.0, 0.5, 1.0)
    history: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        number("delta", self.delta, low=0)
        integer("history", self.history, low=1)
        for name in ("spread", "modes"):
            values = getattr(self, name)
            listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
            required(listed, name, values, "a tuple of numbers", TypeError)
            object.__setattr__(self, name, tuple(number(name, value, low=0) for value in values))
        required(min(self.spread) > 0, "spread", self.spread, "numbers > 0")
        fits = 0 in self.modes or any(s <= 0.6 * m for s in self.spread for m in self.modes)
        required(fits, "modes", self.modes, "with 0 or some mode at least 1.7 standard deviations away")

    @property
    def order(self) -> int:
        return ADAMS.order

    def write(self, draft: Draft, call_last: bool) -> None:
        if draft.steps > LONG:
            return ADAMS.write(draft, call_last)
        w = 1.0 if self.guidance is None else self.guidance
        problems = world(draft.path, self.predicts or "v", self.delta, self.spread, self.modes, w)
        straight, grid = FRAMES["straight"], draft.grid
        for i, row in enumerate(rows(problems, draft.path, grid, self.history)):
            ratio, _ = straight.step(grid[i], grid[i + 1])
            c = float(straight.c(grid[i + 1]))
            changes: dict[str | int, float] = {j: c * float(w) for j, w in enumerate(row) if w != 0}
            draft.call(grid[i], "straight", y={**changes, "y": float(ratio)}, node=i + 1)


def rows(problems: World, path: Path, grid: Position[np.ndarray], history: int) -> np.ndarray:
    """The weights w_ij of a run over the grid, shape (steps, steps)."""
    frame = FRAMES["straight"]
    u = np.asarray(frame.v(grid))
    steps = len(u) - 1
    integrals = Integrals(path, frame, "arc", grid)
    weights, outputs = np.zeros((steps, steps)), []
    y = problems.at(float(u[0]))
    for i in range(steps):
        outputs.append(problems.velocity(y, float(u[i])))
        used = np.arange(max(0, i + 1 - history), i + 1)
        h = u[i + 1] - u[i]
        # The flow ends at the path's last call where there is none beyond: from there the step is the last output's.
        share = np.zeros(0)
        if len(used) > 1 and may_call(path, grid.t[i + 1]):
            prior = StepIntegrals(integrals, i, tuple(used[::-1][:3])).omega()[:0:-1]
            target = problems.at(float(u[i + 1])) - y
            share = _shares([h * outputs[j] for j in used], target, problems.weight, prior)
        weights[i, used[: len(share)]] = h * share
        weights[i, i] = h * (1 - share.sum())
        y = y + sum(weights[i, j] * outputs[j] for j in used)
    return weights


def _shares(steps: list[np.ndarray], target: np.ndarray, weight: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """What part of the step each output but the newest gets, the newest having the rest.

    Args:
        steps: where each output alone would lead, oldest first.
        target: where to go.
        weight: of the error in each problem.
        prior: Adams' shares, of the newest outputs but one.
    """
    A = np.stack([(weight * (old - steps[-1])).ravel() for old in steps[:-1]], axis=1)
    start = np.zeros(A.shape[1])
    start[len(start) - len(prior) :] = prior
    gram = A.T @ A
    ridge = RIDGE * np.diag(gram) + 1e-14 * np.trace(gram) + 1e-300
    left = A.T @ ((weight * (target - steps[-1])).ravel() - A @ start)
    return np.asarray(np.round((start + np.linalg.solve(gram + np.diag(ridge), left)) / DIGITS) * DIGITS)
