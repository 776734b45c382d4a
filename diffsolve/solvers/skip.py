r"""Runs on the user's own grid in which only some rows call the network: `ds.skip`.

Neighbouring outputs of a long run differ little. With z = x / c and v = dz/du in the straight frame
(`diffsolve.tableau.frames`), a row without a call takes for its v the polynomial in u through the last outputs,

.. math:: \hat v(u_i) = \sum_{l=0}^{q} L_l(u_i) \, v_{c_l},
          \qquad L_l(u) = \prod_{m \ne l} \frac{u - u_{c_m}}{u_{c_l} - u_{c_m}},

and all else of the run is as it was. A run in another frame than denoised, noise or straight keeps its own frame and
variable for that. Such rows do no more than linear algebra, so they are multiplied out: what is left is a tableau with
a row for each call. q = 0 is reuse; a threshold on the change of the input (EasyCache, TeaCache's whole-call form) is a
rule for where to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from diffsolve.common.checks import integer, required
from diffsolve.grids import Grid
from diffsolve.paths import Path, Position
from diffsolve.solvers import named
from diffsolve.solvers.base import Solver
from diffsolve.tableau import DRIFT, Draft, Tableau
from diffsolve.tableau.frames import FRAMES, STRAIGHT, convert

__all__ = ["Skip", "skip"]

MOST = 4
"""The highest degree: polynomials through more values swing where they extrapolate."""
ZERO = 1e-13
"""Weights of a row below this, next to its largest, are the rounding of zeros."""


class _Rows:
    """The rows of a run, each as a step from combinations of x and the d that were called for to others."""

    def __init__(self, tableau: Tableau) -> None:
        theta = np.arctan2(tableau.calls[:, 2], tableau.calls[:, 1])
        one_way = (np.diff(theta) < 0).all() or (np.diff(theta) > 0).all()
        frames = set(tableau.frame)
        plain = not tableau.stochastic and one_way and not tableau.jumps.any() and (tableau.entry[:, 0] == 1).all()
        required(plain, "solver", tableau.solver, "deterministic, and call the network once at each of its times")
        one_frame = frames <= STRAIGHT or (len(frames) == 1 and DRIFT not in frames)
        required(one_frame, "solver", tableau.solver, f"of one frame, or of {', '.join(sorted(STRAIGHT))}")
        self.tableau, self.frame = tableau, "straight" if frames <= STRAIGHT else tableau.frame[0]
        frame = FRAMES[self.frame]
        t, alpha, sigma = np.concatenate([tableau.calls, tableau.grid[-1:]]).T
        at = Position(t, alpha, sigma, np.full(t.shape, np.nan), np.full(t.shape, np.nan))
        self.c, self.v = (np.broadcast_to(part, at.t.shape) for part in (frame.c(at), frame.v(at)))
        a, b = tableau.d.T
        self.d = np.array([[-1.0, 1.0]] * tableau.nfe) if self.frame == "straight" else tableau.d
        self.p, self.q = convert((a, b), tuple(self.d.T), at.alpha[:-1], at.sigma[:-1])
        # The v of a blurred d is the blurred v only where one is a multiple of the other.
        required(not (tableau.blurs * self.p).any(), "solver", tableau.solver, f"one that blurs its {self.frame} d")

    def inputs(self, places: np.ndarray, order: int) -> np.ndarray:
        """(k + 1, 1 + k): the network's inputs at the calls, and the result, as combinations of x, d_1, .., d_k."""
        k, tableau = len(places), self.tableau
        unit = np.eye(1 + k)
        called = np.searchsorted(places, np.arange(tableau.nfe), side="right")  # calls up to each row
        s = y = unit[0]
        history = np.zeros((tableau.history, 1 + k))
        found = []
        for i in range(tableau.nfe):
            if called[i] and places[called[i] - 1] == i:
                found.append(y)
            last = np.arange(max(0, called[i] - order - 1), called[i])
            d = _lagrange(self.v[places[last]], self.v[i]) @ unit[1 + last]
            history = np.concatenate([[self.p[i] * y + self.q[i] * d], history[:-1]])
            s, y = tableau.weights[i, :, :-1] @ np.concatenate([[s, y], history])
        return np.array([*found, y])


def _lagrange(nodes: np.ndarray, v: float) -> np.ndarray:
    """The weights of values at the nodes in their polynomial at v."""
    apart = nodes[:, None] - nodes + np.eye(len(nodes))
    ratios = (v - nodes)[None, :] / apart
    return np.asarray(np.where(np.eye(len(nodes), dtype=bool), 1.0, ratios).prod(1))


def skipped(tableau: Tableau, calls: int | Sequence[int], order: int) -> Tableau:
    """The tableau of a run in which only some rows call; see `skip`."""
    rows, n = _Rows(tableau), tableau.nfe
    if np.ndim(calls) == 0:
        places = np.round(np.linspace(0, n - 1, integer("calls", calls, 1, n))).astype(int)
    else:
        places = np.asarray(calls)
        whole = places.ndim == 1 and len(places) > 0 and places.dtype.kind == "i"
        fits = whole and places[0] == 0 and (np.diff(places) > 0).all() and places[-1] < n
        required(bool(fits), "calls", calls, f"a number, or rising numbers of rows from 0 on, below {n}")
    k, ends = len(places), [*places, n]
    c = rows.c[ends]
    z = rows.inputs(places, order)[:, 1:] / c[:, None]
    steps = np.diff(z, axis=0) * c[1:, None]
    steps[np.abs(steps) < ZERO * np.abs(steps).max(1, keepdims=True)] = 0.0
    history = 1 + max(int(j - np.flatnonzero(step).min(initial=j)) for j, step in enumerate(steps))
    weights = np.zeros((k, 2, history + 3))
    weights[:, :, 1] = (c[1:] / c[:-1])[:, None]
    for j in range(k):
        for back in range(min(history, j + 1)):
            weights[j, :, 2 + back] = steps[j, j - back]
    return Tableau(
        solver=f"skip({tableau.solver}, calls={k}, order={order})",
        path=tableau.path,
        order=1,
        grid=tableau.grid,
        calls=tableau.calls[places],
        frame=(rows.frame,) * k,
        d=rows.d[places],
        node=tableau.node[np.asarray(ends[1:]) - 1],
        entry=tableau.entry,
        weights=weights,
        clock=np.zeros((k, 2)),
        told=tableau.told[places],
        guides=tableau.guides[places],
        blurs=tableau.blurs[places],
    )


@dataclass(frozen=True)
class Skip(Solver):
    """A solver of which only some rows call the network; `skip` says the rest."""

    solver: Solver
    rows: int | tuple[int, ...]
    degree: int = 2

    @property
    def order(self) -> int:
        return 1

    @property
    def grid(self) -> str | Grid | None:  # type: ignore[override]
        return self.solver.grid

    def suited(self, predicts: str, guidance: float, size: int | None = None, told_two: bool = False) -> Solver:
        required(not told_two, "solver", self, "one for a network that is told one time")
        return replace(self, solver=self.solver.suited(predicts, guidance, size))

    def write(self, draft: Draft, call_last: bool) -> None:
        raise NotImplementedError("its tableau is made of another")

    def __call__(self, path: Path, times: Sequence[float] | np.ndarray, *, call_last: bool | None = None) -> Tableau:
        return skipped(self.solver(path, times, call_last=call_last), self.rows, self.degree)


@overload
def skip(solver: Tableau, calls: int | Sequence[int], order: int = 2) -> Tableau: ...
@overload
def skip(solver: str | Solver, calls: int | Sequence[int], order: int = 2) -> Skip: ...
def skip(solver: str | Solver | Tableau, calls: int | Sequence[int], order: int = 2) -> Tableau | Skip:
    """A run of which only some rows call the network, and the others extrapolate.

        x = ds.sample(model, (8, 3, 32, 32), solver=ds.skip("dpmpp-2m", calls=10), steps=50, seed=0)

    makes nearly the picture of `solver="dpmpp-2m", steps=50` in 10 calls. `ds.tune(model, (512, 3, 32, 32),
    solver=ds.skip(plan, calls=10), teacher=plan)` learns where to call, and the weights.

    Args:
        solver: a deterministic solver that calls the network once a step, or its tableau.
        calls: how many rows call, evenly spread from the first to the last; or which: their numbers, from 0 on.
        order: the degree of the polynomial in u = sigma / (alpha + sigma) through the last straight velocities, which
            stands for the ones not called for: 0 is reuse.

    Returns:
        A tableau of a tableau, a solver of a solver: with it `steps` is the number of the user's own steps.

    Raises:
        ValueError: if calls or order is out of range, or the run draws noise or calls twice at one time.
    """
    integer("order", order, 0, MOST)
    given: Any = calls
    which = tuple(int(i) for i in given) if np.ndim(given) == 1 else given
    if isinstance(solver, Tableau):
        return skipped(solver, which, order)
    return Skip(named(solver), which, order)
