"""A solver that can be run backwards exactly: the round trip from data to noise and back closes to rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffsolve.solvers.base import Solver, frame_named
from diffsolve.tableau import Combination, Draft
from diffsolve.tableau.ends import end_frame, first_order_frame

__all__ = ["ReversibleHeun"]


@dataclass(frozen=True)
class ReversibleHeun(Solver):
    """Reversible Heun: a pair (z, y) of states, one network call a step, order 2.

        y' = 2 z - y + h d(y),      z' = z + h (d(y) + d(y')) / 2,      h the step in the frame's v

    Swapping the ends and the sign of h gives the same equations: the step backwards from (z', y') is (z, y), whatever
    the step and the network. What is left is rounding, which the method carries on without damping.

    The network is called at every node, the last one included. Where it may not be called there, or the frame is
    singular at an end, the pair is made one, and the step there is by the rule for the ends and cannot be undone.

    `run.x` is z, and `run.state.s` the y that goes with it; the way back starts from both, as `ds.reversible`
    does. gradient="adjoint" undoes the steps: exact gradients at the memory of one state.

    Source: Kidger, Foster, Li and Lyons, 2105.13493, section 3.
    """

    frame: str = "trig"

    def __post_init__(self) -> None:
        frame_named(self.frame)

    @property
    def order(self) -> int:
        return 2

    def write(self, draft: Draft, call_last: bool) -> None:
        path, frame, g = draft.path, frame_named(self.frame), draft.grid
        with np.errstate(all="ignore"):
            v, c = frame.v(g), frame.c(g)
        ends = [end_frame(frame, path, g[i], g[i + 1]) for i in range(draft.steps)]
        if not call_last:
            ends[-1] = first_order_frame(g[-2], g[-1])
        before = 0.0  # the step that led here, of which s still wants half
        for i, end in enumerate([*ends, None]):
            after = v[i + 1] - v[i] if end is None and i < draft.steps else 0.0
            # s is z with half a step of the last d, in units of c here: the call at y completes it to z.
            if after:
                scale = c[i + 1]
                z: Combination = {"s": scale / c[i], len(draft): scale * (before + after) / 2}
                y: Combination = {"s": 2 * z["s"], "y": -z["s"], len(draft): 2 * z[len(draft)]}
                closed = i + 1 == draft.steps or ends[i + 1] is not None  # the next call gives the node its z
                draft.call(g[i], frame.name, y=y, s=z, node=-1 if closed else i + 1)
            elif before:
                draft.call(g[i], frame.name, y={"s": 1.0, len(draft): c[i] * before / 2}, s={"y": 1.0}, node=i)
            if end is not None:
                ratio, gain = end.step(g[i], g[i + 1])
                draft.call(g[i], end.name, y={"y": ratio, len(draft): gain}, node=i + 1)
            before = after
