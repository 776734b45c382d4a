r"""The integrals behind exponential and multistep methods: phi functions, and Lagrange polynomials over a step.

By Gauss-Legendre quadrature, since closed forms cancel for small steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from diffsolve.paths import Path, Position
from diffsolve.solvers.sde import Reverse
from diffsolve.tableau.frames import VARIABLES, Frame

__all__ = ["Integrals", "StepIntegrals", "gauss_legendre", "phi"]


def phi(k: int, z: float) -> float:
    """phi_k(z) = int_0^1 e^{(1 - s) z} s^{k-1} / (k - 1)! ds: phi_1 = (e^z - 1) / z, phi_{k+1} = (phi_k - 1/k!) / z.

    By quadrature, since the recursion cancels for small z.
    """
    s, mass = gauss_legendre(64)
    return float(np.sum(mass * np.exp((1 - s) * z) * s ** (k - 1)) / math.factorial(k - 1))


@lru_cache
def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes in [0, 1] and weights that sum to 1."""
    x, w = np.polynomial.legendre.leggauss(count)
    return (x + 1) / 2, w / 2


def _panels(
    start: np.ndarray, stop: np.ndarray, breaks: tuple[float, ...], finite: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre nodes of each interval, and their weights, in panels between the breaks that it contains."""
    x, mass = gauss_legendre(64)
    low, high = np.minimum(start, stop), np.maximum(start, stop)
    inner = [np.where(finite, np.clip(at, low, high), high) for at in breaks]
    edges = np.stack([low, *inner, high], -1)
    length = np.diff(edges)[..., None]
    return ((edges[:, :-1, None] + length * x).reshape(len(start), -1), (length * mass).reshape(len(start), -1))


class Integrals:
    """Gauss-Legendre nodes of every step: where the interpolation variable is, and the normalised measure dv."""

    def __init__(self, path: Path, frame: Frame, variable: str | None, grid: Position[np.ndarray]) -> None:
        self.grid = grid
        w = frame.v if variable is None else VARIABLES[variable]
        with np.errstate(all="ignore"):
            self.node: np.ndarray = w(grid)
            self.lam: np.ndarray = grid.lam
            self.A: np.ndarray = frame.A(grid) if isinstance(frame, Reverse) else np.zeros_like(grid.lam)
            if variable is None:  # a polynomial in v: few nodes are exact
                x, mass = gauss_legendre(8)
                v = self.node[:-1, None] + np.diff(self.node)[:, None] * x
                self.inner, self.mass = v, np.broadcast_to(mass, v.shape)
                return
            # Else integrate in lambda, in which all frames and variables are analytic in a strip, or, out of an
            # end, in theta.
            theta = np.arctan2(grid.sigma, grid.alpha)
            finite = np.isfinite(self.lam[:-1]) & np.isfinite(self.lam[1:])
            start, stop = (np.where(finite, a, b) for a, b in ((self.lam[:-1], theta[:-1]), (self.lam[1:], theta[1:])))
            q, mass = _panels(start, stop, frame.breaks if isinstance(frame, Reverse) else (), finite)
            angle = np.where(finite[:, None], np.arctan(np.exp(-q)), q)
            p = Position(angle, np.cos(angle), np.sin(angle), *[np.full_like(angle, np.nan)] * 2)
            if frame.lam is None or variable == "t":
                p = path.nodes(path.time(np.clip(p.lam, *np.sort(path.lam([path.t_noise, path.t_data]).numpy()))))
            density = frame.slope(p) * np.where(finite[:, None], -p.alpha * p.sigma / (p.alpha**2 + p.sigma**2), 1)
            weighted = density * mass
            self.inner, self.mass = w(p), weighted / weighted.sum(-1, keepdims=True)


@dataclass(frozen=True)
class StepIntegrals:
    """One grid interval and the nodes whose values of d are interpolated over it."""

    integrals: Integrals
    index: int
    nodes: tuple[int, ...]

    @cached_property
    def lam(self) -> np.ndarray:
        """lambda at the nodes."""
        return self.integrals.lam[list(self.nodes)]

    @cached_property
    def at(self) -> np.ndarray:
        """The interpolation variable at the nodes."""
        return self.integrals.node[list(self.nodes)]

    @property
    def ends(self) -> tuple[float, float]:
        """The interpolation variable at the two ends of the step."""
        start, end = self.integrals.node[self.index : self.index + 2]
        return float(start), float(end)

    @cached_property
    def h(self) -> float:
        """The step in lambda."""
        return float(self.integrals.lam[self.index + 1] - self.integrals.lam[self.index])

    @property
    def renewed(self) -> float:
        """The integral of tau^2 over the step in lambda."""
        A = self.integrals.A
        return float(A[self.index + 1] - A[self.index])

    def omega(self) -> np.ndarray:
        """The integral of each Lagrange polynomial, in units of the whole: they sum to 1."""
        w, x = self.integrals.node[list(self.nodes)], self.integrals.inner[self.index]
        basis = [np.prod([(x - w[k]) / (w[j] - w[k]) for k in range(len(w)) if k != j], axis=0) for j in range(len(w))]
        return np.array([np.sum(L * self.integrals.mass[self.index]) for L in basis])
