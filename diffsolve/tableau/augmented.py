"""A tableau as a method for more than x: it carries log-densities, or the adjoint of a run, along with the state.

Where d = 0 a tableau only rescales: y_i = u_i x for some u_i > 0. In z = x / u the weights of s and y sum to 1, and the
rows are a general linear method for dz = d dv, whatever the frames; what belongs to dv d is then a quantity q with
dq/dv = k, and the same weights integrate it:

    [s', q'] = weights @ [s, q, k_i, .., k_{i-K+1}]        (`Augmented.weights`)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.kernels.terms import in_order, weighted_sum
from diffsolve.tableau.tableau import USUAL, Tableau

__all__ = ["Augmented", "augmented", "drop_final_denoise"]

Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class Augmented:
    """A deterministic tableau in the coordinates z = x / u."""

    tableau: Tableau
    units: np.ndarray
    """(N + 1,): u of each network input, and of the result; the first is 1."""
    weights: np.ndarray
    """(N, 2, K + 2): s' and q' from s, q, k_i .. k_{i-K+1}."""
    d: np.ndarray
    """(N, 2): a_i, b_i of k_i."""

    @property
    def shares(self) -> np.ndarray:
        """(N,): w with q = sum_i w_i k_i at the end, for a quantity of which nothing in between is asked for."""
        history = self.tableau.history
        found, on = np.zeros(len(self.weights) + history), np.array([0.0, 1.0])  # what the end is made of s and y
        for i in reversed(range(len(self.weights))):
            made = on @ self.weights[i]
            found[i : i + history] += made[:1:-1]  # k_{i-K+1} .. k_i
            on = made[:2]
        return found[history - 1 : len(self.weights) + history - 1]

    def run(self, field: Callable[[int, Parts], Parts], parts: Parts, calls: slice = slice(None)) -> Parts:
        """The parts after the calls of the tableau, or after some at its beginning.

        Nothing is written in place: the result is differentiable.

        Args:
            field: (number of the call, parts) -> k; the first part is z.
        """
        s = y = parts
        history: deque[Parts] = deque(maxlen=self.tableau.history)
        for i, (on_s, on_y) in list(enumerate(self.weights.tolist()))[calls]:
            history.appendleft(field(i, y))
            live = list(zip(s, y, *history, strict=True))  # of each part
            s, y = (tuple(weighted_sum(in_order(side), part) for part in live) for side in (on_s, on_y))
        return y


def augmented(tableau: Tableau) -> Augmented:
    """The tableau in coordinates in which it can carry more than x.

    A last step to alpha = 0 in the frame noise puts eps for the state; it is taken as what it equals,
    x / sigma - (alpha / sigma) D, which has an inverse.

    Raises:
        ValueError: if it is stochastic, or a step has no inverse (a last step onto the denoised estimate has none).
    """
    required(not tableau.stochastic, "solver", tableau.solver, "deterministic")
    required(not tableau.jumps.any(), "solver", tableau.solver, "one that tells the network one time here")
    own = {*tableau.unusual} <= {"to"}
    wanted = "one that tells the network the state's own time, guides evenly and blurs nothing, here"
    required(own, "solver", tableau.solver, wanted)
    n, K = tableau.nfe, tableau.history
    unit, units = tableau.entry[:, 0].copy(), np.ones(n + 1)
    weights, given, d = np.zeros((n, 2, K + 2)), tableau.weights.copy(), tableau.d.copy()
    (_, alpha, sigma), last = tableau.calls[-1], given[-1, 1]
    if tableau.frame[-1] == "noise" and np.flatnonzero(last).tolist() == [2] and sigma > 0:
        d[-1] = 1.0, 0.0
        last[1:3] = last[2] / sigma, -last[2] * alpha / sigma
    for i, w in enumerate(given):
        units[i] = unit[1]
        after = w[:, :2] @ unit
        if i + 1 == n:
            after[0] = after[0] or 1.0  # the state after the last call is not read
        if not (after > 0).all():
            raise ValueError(
                f"solver must be one whose steps have an inverse, got {tableau.solver!r}: call {i}, at "
                f"t={tableau.calls[i, 0]:.6g}, leads to a state that keeps nothing of the one before, and so has no "
                "density. Stop short of the end"
            )
        weights[i, :, :2] = w[:, :2] * unit / after[:, None]
        weights[i, :, 2:] = w[:, 2:-1] / after[:, None]
        unit = after
    units[n] = unit[1]
    return Augmented(tableau, units, weights, d)


def drop_final_denoise(tableau: Tableau) -> tuple[Tableau, bool]:
    """(the tableau without its last call, True) if that puts the denoised estimate for the state, else (it, False)."""
    if tableau.nfe < 2 or tableau.weights[-1, 1, :2].any():
        return tableau, False
    rows = ("grid", "calls", "frame", "d", "node", "weights", "clock", *USUAL)
    return replace(tableau, **{name: getattr(tableau, name)[:-1] for name in rows}), True
