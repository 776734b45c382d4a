r"""Linear multistep methods in any frame: Adams, exponential Adams, and the published points near them.

In a frame, z = x / c and dz/dv = d. A step integrates the Lagrange polynomial through the last p values of d,

    x_t = (c_t / c_s) x_s + c_t \int_{v_s}^{v_t} sum_j L_j(w(v)) d_j dv = ratio x_s + gain sum_j omega_j d_j,

where the polynomial may live in another variable w than v. With `omega` summing to 1, only `omega` tells
methods of one frame apart. Examples: frame noise and w = t is DEIS tAB (2204.13902); frame denoised and
w = lambda the exact form of DPM-Solver++ (2211.01095) and UniPC (2302.04867); frame straight and w = v
Adams-Bashforth on the velocity of CondOT.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from diffsolve.frames import VARIABLES, Frame
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver, end_frame, frame_named
from diffsolve.tableau import Combination, Draft

__all__ = ["DPMpp", "Multistep", "UniPC"]


@dataclass(frozen=True)
class Multistep(Solver):
    """Adams-Bashforth of any order in any frame, with an optional Adams-Moulton corrector.

    The corrector makes no call of its own: the call at the predicted point also corrects that point, and the
    corrected state steps on (PEC, as in UniPC). The result of the last step is a predicted one.

    Args:
        points: how many values of d the predictor uses; the first steps use those there are.
        frame: the coordinates; see `diffsolve.frames`.
        variable: where the polynomial lives: a name in `diffsolve.frames.VARIABLES`, or None for the frame's v.
        corrector: how many values the corrector uses, the newest included; 0 for none.
        lower_final: use no more than n - i values in step i of n, so that the last step is of first order; the
            corrector is lowered with it.
    """

    points: int = 2
    frame: str = "straight"
    variable: str | None = None
    corrector: int = 0
    lower_final: bool = False

    def __post_init__(self) -> None:
        frame_named(self.frame)
        for name, low in (("points", 1), ("corrector", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= 8:
                raise ValueError(f"{name}={value!r}: an integer from {low} to 8 is accepted")
        if self.variable is not None and self.variable not in VARIABLES:
            raise ValueError(f"variable={self.variable!r} is unknown; accepted: {', '.join(VARIABLES)}, or None")

    @property
    def order(self) -> int:
        # The first step has one value of d: local error h^2, or h^3 once corrected. A last step of first order
        # has local error h^2, as has any last step of one value, which nothing corrects.
        if self.corrector < 2:
            return min(self.points, 2)
        return min(self.corrector, 2 if self.lower_final else min(self.points + 1, 3))

    def _count(self, i: int, n: int) -> int:
        """How many values the predictor of step i may use."""
        return min(self.points, n - i) if self.lower_final else self.points

    def predict(self, step: Step) -> np.ndarray:
        """omega over the values of d at and before the start of the step, newest first."""
        return step.omega()

    def correct(self, step: Step) -> np.ndarray:
        """omega over the value of d at the end of the step and those before it."""
        return step.omega()

    def write(self, draft: Draft, call_last: bool) -> None:
        frame, path, g, n = frame_named(self.frame), draft.path, draft.grid, draft.steps
        integrals = Integrals(path, frame, self.variable, g)
        usable: list[int] = []  # nodes whose d may be interpolated, newest first
        fresh = True  # whether the step to this node was made by the rule for the ends, or there was none
        for i in range(n):
            end = end_frame(frame, path, g[i], g[i + 1])
            own = end is None or end is frame
            if own and math.isfinite(integrals.node[i]):
                usable = [i, *usable]
            state: Combination = {"y": 1.0}
            if self.corrector and not fresh and own and len(usable) > 1:
                step = Step(integrals, i - 1, tuple(usable[: self.corrector - self.points + self._count(i - 1, n)]))
                ratio, gain = frame.step(g[i - 1], g[i])
                state = {"s": ratio, **_scaled(gain, step.nodes, self.correct(step))}
            ratio, gain = (end or frame).step(g[i], g[i + 1])
            if end is None and usable and math.isfinite(integrals.node[i + 1]):
                step = Step(integrals, i, tuple(usable[: self._count(i, n)]))
                new = _scaled(gain, step.nodes, self.predict(step))
            else:
                new = {i: gain}
            y = _sum(ratio, state, new)
            keeps = self.corrector and end is None and i + 1 < n
            draft.call(g[i], (end or frame).name, y=y, s=state if keeps else y, node=i + 1)
            fresh = not keeps


class Integrals:
    """Gauss-Legendre nodes of every step: where the interpolation variable is, and the normalised measure dv."""

    def __init__(self, path: Path, frame: Frame, variable: str | None, grid: Position) -> None:
        self.grid = grid
        w = frame.v if variable is None else VARIABLES[variable]
        with np.errstate(all="ignore"):
            self.node: np.ndarray = w(grid)
            self.lam: np.ndarray = grid.lam
            if variable is None:  # a polynomial in v: few nodes are exact
                x, mass = _gauss_legendre(8)
                v = self.node[:-1, None] + np.diff(self.node)[:, None] * x
                self.inner, self.mass = v, np.broadcast_to(mass, v.shape)
                return
            # Else integrate in lambda, in which all frames and variables are analytic in a strip, or, out of an
            # end, in theta.
            x, mass = _gauss_legendre(64)
            theta = np.arctan2(grid.sigma, grid.alpha)
            finite = np.isfinite(self.lam[:-1]) & np.isfinite(self.lam[1:])
            start, stop = (np.where(finite, a, b) for a, b in ((self.lam[:-1], theta[:-1]), (self.lam[1:], theta[1:])))
            q = start[:, None] + (stop - start)[:, None] * x
            angle = np.where(finite[:, None], np.arctan(np.exp(-q)), q)
            p = Position(angle, np.cos(angle), np.sin(angle), np.nan, np.nan)
            if frame.lam is None or variable == "t":
                p = path.nodes(path.time(np.clip(p.lam, *np.sort(path.lam([path.t_noise, path.t_data]).numpy()))))
            density = frame.slope(p) * np.where(finite[:, None], -p.alpha * p.sigma / (p.alpha**2 + p.sigma**2), 1)
            weighted = density * mass
            self.inner, self.mass = w(p), weighted / weighted.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Step:
    """One grid interval and the nodes whose values of d are interpolated over it."""

    integrals: Integrals
    index: int
    nodes: tuple[int, ...]

    @cached_property
    def lam(self) -> np.ndarray:
        """lambda at the nodes."""
        return self.integrals.lam[list(self.nodes)]

    @cached_property
    def h(self) -> float:
        """The step in lambda."""
        return float(self.integrals.lam[self.index + 1] - self.integrals.lam[self.index])

    def omega(self) -> np.ndarray:
        """The integral of each Lagrange polynomial, in units of the whole: they sum to 1."""
        w, x = self.integrals.node[list(self.nodes)], self.integrals.inner[self.index]
        basis = [np.prod([(x - w[k]) / (w[j] - w[k]) for k in range(len(w)) if k != j], axis=0) for j in range(len(w))]
        return np.array([np.sum(L * self.integrals.mass[self.index]) for L in basis])


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC of order p (Zhao et al., 2302.04867) with data or noise prediction: `frame` denoised or noise.

    It is the exponential Adams pair in lambda of p and p + 1 values, but for the two places where the paper
    sets a coefficient to 1/2: the predictor of two values and the corrector of two. There B(h) matters:
    `bh="bh2"` is e^h - 1, `bh="bh1"` is h (with the sign of the prediction). UniP-2 with bh2 is DPM-Solver++(2M).
    """

    points: int = 3
    frame: str = "denoised"
    variable: str | None = "lambda"
    corrector: int = -1
    lower_final: bool = True
    bh: str = "bh2"

    def __post_init__(self) -> None:
        if self.corrector == -1:
            object.__setattr__(self, "corrector", self.points + 1)
        super().__post_init__()
        if self.frame not in ("denoised", "noise"):
            raise ValueError(f"frame={self.frame!r}: 'denoised' or 'noise' is accepted by UniPC")
        if self.bh not in ("bh1", "bh2"):
            raise ValueError(f"bh={self.bh!r}: 'bh1' or 'bh2' is accepted")

    def _half(self, step: Step) -> float:
        """B(h) / (2 (e^h - 1)), with h = -h for data prediction."""
        h = -step.h if self.frame == "denoised" else step.h
        return 0.5 * (h / math.expm1(h) if self.bh == "bh1" else 1.0)

    def predict(self, step: Step) -> np.ndarray:
        if len(step.nodes) != 2:
            return step.omega()
        older = self._half(step) * step.h / (step.lam[1] - step.lam[0])
        return np.array([1 - older, older])

    def correct(self, step: Step) -> np.ndarray:
        if len(step.nodes) != 2:
            return step.omega()
        newer = self._half(step)
        return np.array([newer, 1 - newer])


@dataclass(frozen=True)
class DPMpp(Multistep):
    """DPM-Solver++(2M) and (3M) as published (Lu et al., 2211.01095, algorithm 2, and its code for 3M).

    2M replaces phi_2 by phi_1 / 2, which keeps order 2. 3M lacks a factor 2 on phi_3, so that it is not exact
    for D quadratic in lambda; below 50 calls it is yet the more accurate of the two on mixtures. The exact
    form is `Multistep(3, "denoised", "lambda")`.
    """

    points: int = 2
    frame: str = "denoised"
    variable: str | None = "lambda"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame != "denoised" or self.variable != "lambda" or self.corrector or self.points > 3:
            raise ValueError(f"{self}: DPMpp has 1 to 3 points in the frame denoised; Multistep has the others")

    def predict(self, step: Step) -> np.ndarray:
        h, lam = step.h, step.lam
        if len(lam) < 2:
            return np.ones(1)
        r = (lam[:-1] - lam[1:]) / h
        if len(lam) == 2:
            return np.array([1 + 0.5 / r[0], -0.5 / r[0]])
        # D1, D2 as combinations of (m0, m1, m2); phi_1 = (1 - e^-h) / h is the unit of omega.
        first, second = np.array([1, -1, 0]) / r[0], np.array([0, 1, -1]) / r[1]
        D2 = (first - second) / (r[0] + r[1])
        D1 = first + r[0] * D2
        omega: np.ndarray = np.array([1, 0, 0]) + (phi(2, -h) * D1 + phi(3, -h) * D2) / phi(1, -h)
        return omega


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^{(1 - s) z} s^{k-1} / (k - 1)! ds: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1/k!) / z.

    By quadrature, since the recursion cancels for small z.
    """
    s, mass = _gauss_legendre(64)
    return float(np.sum(mass * np.exp((1 - s) * z) * s ** (k - 1)) / math.factorial(k - 1))


@lru_cache
def _gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights that sum to 1."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (x + 1) / 2, w / 2


def _scaled(gain: float, nodes: tuple[int, ...], omega: np.ndarray) -> Combination:
    return {j: gain * float(weight) for j, weight in zip(nodes, omega, strict=True)}


def _sum(ratio: float, state: Combination, new: Combination) -> Combination:
    total = {key: ratio * weight for key, weight in state.items()}
    for key, weight in new.items():
        total[key] = total.get(key, 0.0) + weight
    return total
