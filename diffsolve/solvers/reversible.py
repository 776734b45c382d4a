"""A solver that can be run backwards exactly: the round trip from data to noise and back closes to rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffsolve.solvers.base import Solver, frame_named
from diffsolve.tableau import Combination, Draft

__all__ = ["ReversibleHeun"]


@dataclass(frozen=True)
class ReversibleHeun(Solver):
    """Reversible Heun: a pair (z, y) of states, one network call a step, order 2.

        y' = 2 z - y + h d(y),      z' = z + h (d(y) + d(y')) / 2,      h the step in the frame's v

    Swapping the ends and the sign of h gives the same equations: the step backwards from (z', y') is (z, y), whatever
    the step and the network. What is left is rounding, which the method carries on without damping.

    The run ends at its last node with a call there, so the network must be callable at both ends of the grid: stop at
    the path's last time where it is not. `run.x` is z, and `run.state.s` the y that goes with it; start the way back
    from both, as `diffsolve.reversible` does.

    Source: Kidger, Foster, Li and Lyons, 2105.13493, section 3.
    """

    frame: str = "trig"

    def __post_init__(self) -> None:
        frame_named(self.frame)

    @property
    def order(self) -> int:
        return 2

    def write(self, draft: Draft, call_last: bool) -> None:
        frame, g = frame_named(self.frame), draft.grid
        with np.errstate(all="ignore"):
            v, c = frame.v(g), frame.c(g)
        if not call_last or not (np.isfinite(v).all() and (c > 0).all()):
            raise ValueError(
                f"{self}: the network must be called at every node, from t={g.t[0]:.6g} to t={g.t[-1]:.6g}, in a frame "
                "regular there: stop where the network can be called, in the frame 'trig' or 'straight'"
            )
        h = [0.0, *np.diff(v).tolist(), 0.0]
        for i in range(draft.steps + 1):
            # s is z with half a step of the last d, in units of c here: the call at y completes it to z.
            last = i == draft.steps
            scale = c[min(i + 1, draft.steps)]
            z: Combination = {"s": scale / c[i], i: scale * h[i] / 2}
            y: Combination = {"s": 2 * scale / c[i], "y": -scale / c[i], i: scale * (h[i] + h[i + 1])}
            if last:
                draft.call(g[i], frame.name, y=z, s={"y": 1.0}, node=i)
            else:
                draft.call(g[i], frame.name, y=y, s={**z, i: scale * (h[i] + h[i + 1]) / 2})
