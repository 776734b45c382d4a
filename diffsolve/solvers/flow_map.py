r"""Sampling students: each call jumps over a whole stretch, and noise may bring the state back up to the next node.

Where the network is told two times the jump is the flow itself (`Model.jump`); where it is told one, it is the step
with data and noise as predicted: to the data, a consistency network's function. One class has the published samplers as
its points; they differ in how far a call jumps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, number
from diffsolve.grids import Grid
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver
from diffsolve.tableau import Draft
from diffsolve.tableau.ends import first_order_frame

__all__ = ["FlowMap"]


@dataclass(frozen=True)
class FlowMap(Solver):
    r"""One call for each step s -> t: jump to a level d below t, then add noise up to t.

        x_d = jump(x_s, s, d),    x_t = (alpha_t / alpha_d) x_d + sqrt(sigma_t^2 - (alpha_t sigma_d / alpha_d)^2) z

    gamma = 0 adds none, d = t: with exact jumps that is the exact flow for any number of steps, and DDIM of a network
    told one time. gamma = 1 jumps to the data each time: multistep consistency sampling (2303.01469, algorithm 1), LCM
    (2310.04378) and sCM (2410.11081). Between them are the gamma-sampling of CTM (2310.02279, algorithm 3) and TCD
    (2402.19159, algorithm 2). No noise is added at the data.

    Args:
        gamma: the share that is made anew, in [0, 1].
        by: what it is a share of. "noise": rho_d = sqrt(1 - gamma^2) rho_t, as in CTM. "time": of the clock's way from
            t to the data, as in TCD; on a table from t to row 0, rounded down.
        floor: whether what the network calls data is x at the path's last time, as in 2303.01469, whose networks are
            the identity there. The noise is then less by as much: sqrt(sigma_t^2 - sigma_last^2) on EDM's path; to a
            node at that time there is none, and with gamma < 1 the jump is to the node itself.
        grid: that goes with it: a name, a Grid, or None for the path's own.
    """

    gamma: float = 0.0
    by: str = "noise"
    floor: bool = False
    grid: str | Grid | None = "jumps"  # type: ignore[misc]  # an option here

    def __post_init__(self) -> None:
        number("gamma", self.gamma, low=0, high=1)
        choice("by", self.by, ("noise", "time"))
        choice("floor", self.floor, (False, True))

    @property
    def order(self) -> int:
        """For networks told one time; none where they are called data that they do not know."""
        return 0 if self.gamma else 1

    def write(self, draft: Draft, call_last: bool) -> None:
        g, path = draft.grid, draft.path
        if self.gamma and not (np.diff(g.lam) > 0).all():
            raise ValueError(f"{self}: noise is added on the way from the noise to the data only")
        least = path.nodes([path.t_last])[0]
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            floored = self.floor and self.gamma < 1 and t.lam >= least.lam
            d = t if t.sigma == 0 or floored else self.below(path, t)
            frame = first_order_frame(s, d)
            on_x, on_d = map(float, frame.step(s, d))
            y: dict[str | int, float] = {"y": on_x, i: on_d}
            if d.t != t.t:
                up = float(t.alpha / d.alpha)
                kept = max(d.sigma / d.alpha, least.sigma / least.alpha if self.floor else 0.0)
                noise = math.sqrt(max(float(t.sigma**2 - (t.alpha * kept) ** 2), 0.0))
                y = {"y": up * on_x, i: up * on_d, "z": noise}
            draft.call(s, frame.name, y=y, node=i + 1, to=d)

    def below(self, path: Path, t: Position[float]) -> Position[float]:
        """Where a step to t jumps to."""
        if self.gamma == 0:
            return t
        if self.by == "time":
            base = path.t_last if path.integer or math.isinf(path.t_data) else path.t_data
            time = base + (1 - self.gamma) * (t.t - base)
            time = math.floor(time) if path.integer else time
        elif self.gamma == 1:
            time = path.t_data
        else:
            time = float(path.time(float(t.lam) - math.log(1 - self.gamma**2) / 2))
        return path.nodes([time])[0]
