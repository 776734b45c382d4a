r"""The marginal-preserving SDEs of a path, and the frame that the exponential methods step them in.

For every tau(lambda) >= 0 the diffusion (Xue et al., SA-Solver, 2309.05019, eq. 6; in lambda)

    dx = (probability-flow drift) dlambda - tau^2 sigma eps dlambda + sqrt(2) tau sigma dW

has the marginals of the path: tau = 0 is the probability flow, tau = 1 the reverse SDE (DDPM), more is more Langevin
noise. With A = \int tau^2 dlambda its solution is (eq. 10)

    x_t = (sigma_t / sigma_s) e^{A_s - A_t} x_s + c_t \int_{v_s}^{v_t} D dv + sigma_t sqrt(1 - e^{2 (A_s - A_t)}) z,

that is, the frame c = sigma e^{-A}, v = alpha / c = e^{lambda + A}, whose d is the denoised D and whose z = x / c
gathers a Brownian motion in the clock q = e^{2A}. ER-SDE's phi (2309.06169) is c / alpha: phi = rho e^{-A}.

Three quantities go by the name eta elsewhere: tau^2 in k-diffusion's DPM++ 2M SDE and 3M SDE (and SEEDS), a ratio of
standard deviations in DDIM and the ancestral samplers, with 1 - e^{-2 tau^2 h} = eta^2 (1 - e^{-2h}) in a step of h.
At 0 and 1 all agree.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsolve.common.checks import number, required
from diffsolve.paths import Path, Position
from diffsolve.tableau.frames import FRAMES, Frame

__all__ = ["ERSDE", "Constant", "Diffusion", "Interval", "Pieces", "Reverse", "Tau", "reverse", "tau_named"]


class Tau(ABC):
    """How much noise an SDE of the path renews: tau as a function along the path."""

    @abstractmethod
    def A(self, path: Path, p: Position[Any]) -> Any:
        """A(p) = int tau^2 dlambda up to p, from an origin of its own; it never falls towards the data."""

    @abstractmethod
    def square(self, path: Path, p: Position[Any]) -> Any:
        """tau^2 at p."""

    @property
    def breaks(self) -> tuple[float, ...]:
        """The lambda at which tau jumps, rising."""
        return ()


@dataclass(frozen=True)
class Constant(Tau):
    """The same tau everywhere: A = tau^2 lambda (SA-Solver, 2309.05019; SEEDS, 2305.14267, has tau = 1)."""

    tau: float

    def __post_init__(self) -> None:
        number("tau", self.tau, low=0)

    def A(self, path: Path, p: Position[Any]) -> Any:
        return self.tau**2 * p.lam if self.tau else p.alpha * 0.0

    def square(self, path: Path, p: Position[Any]) -> Any:
        return self.tau**2 + 0.0 * p.alpha


@dataclass(frozen=True)
class Interval(Tau):
    """tau between two noise levels rho = sigma / alpha, and the probability flow outside (2309.05019, section 5).

    A step that crosses an end has its share of the noise.
    """

    tau: float = 1.0
    low: float = 0.05
    high: float = 1.0

    def __post_init__(self) -> None:
        number("tau", self.tau, low=0)
        required(0 < self.low < self.high, "(low, high)", (self.low, self.high), "positive and rising")

    @property
    def breaks(self) -> tuple[float, ...]:
        return -math.log(self.high), -math.log(self.low)

    def A(self, path: Path, p: Position[Any]) -> Any:
        return self.tau**2 * np.clip(p.lam, self.breaks[0], self.breaks[1])

    def square(self, path: Path, p: Position[Any]) -> Any:
        start, stop = self.breaks
        return np.where((p.lam >= start) & (p.lam <= stop), self.tau**2, 0.0)


@dataclass(frozen=True)
class Pieces(Tau):
    """A tau of its own between any two levels lambda, as learned runs have for each step."""

    taus: tuple[float, ...]
    levels: tuple[float, ...]
    """Rising, and finite: tau changes at each from one of `taus` to the next."""

    def __post_init__(self) -> None:
        for tau in self.taus:
            number("taus", tau, low=0)
        fits = len(self.taus) == len(self.levels) + 1 and np.isfinite(self.levels).all()
        required(
            bool(fits and (np.diff(self.levels) > 0).all()),
            "levels",
            self.levels,
            "finite, rising, one fewer than taus",
        )

    @property
    def breaks(self) -> tuple[float, ...]:
        return self.levels

    def A(self, path: Path, p: Position[Any]) -> Any:
        lam, edges = np.asarray(p.lam, dtype=np.float64), np.array([-np.inf, *self.levels, np.inf])
        total = np.zeros_like(lam)
        for tau, low, high in zip(self.taus, edges[:-1], edges[1:], strict=True):
            if tau:
                total = total + tau**2 * (np.clip(lam, low, high) - (low if np.isfinite(low) else 0.0))
        return total[()]

    def square(self, path: Path, p: Position[Any]) -> Any:
        return np.asarray(self.taus)[np.searchsorted(self.levels, np.asarray(p.lam))] ** 2


@dataclass(frozen=True)
class ERSDE(Tau):
    """The SDE of ER-SDE-Solvers (Cui et al., 2309.06169, eq. 26): phi(rho) = rho (e^{rho^0.3} + 10).

    A = -log(phi / rho), so that tau^2 = dlog(phi) / dlog(rho) - 1: little noise near the data, more far from it.
    """

    def A(self, path: Path, p: Position[Any]) -> Any:
        # log(e^y + 10) = y + log(1 + 10 e^-y): y is infinite at alpha = 0
        y = np.exp(-0.3 * np.asarray(p.lam))
        return -(y + np.log1p(10 * np.exp(-y)))

    def square(self, path: Path, p: Position[Any]) -> Any:
        y = np.exp(-0.3 * np.asarray(p.lam))
        return 0.3 * y / (1 + 10 * np.exp(-y))


@dataclass(frozen=True)
class Diffusion(Tau):
    """Any diffusion coefficient on the path's own clock: dx = (..) dt + g(t) dW, in |dt|.

    tau^2 = g^2 / (2 sigma^2 |dlambda/dt|), A = int g^2 / (2 sigma^2) |dt| from the noise end. With a bounded g the
    first step out of alpha = 0 keeps part of its noise, where a constant tau > 0 replaces all of it.

    Args:
        g: takes a float64 array of times, returns one of the same shape, at least 0.
    """

    g: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        required(callable(self.g), "g", self.g, "a function of the path's clock", TypeError)

    def _half(self, path: Path, t: np.ndarray) -> np.ndarray:
        """g^2 / (2 sigma^2)."""
        g = np.asarray(self.g(t), dtype=np.float64)
        required(g.shape == t.shape, "g(t)", g, f"of the shape {t.shape} of t")
        required(bool((g >= 0).all()), "g(t)", float(g.min(initial=math.inf)), "numbers >= 0")
        half: np.ndarray = 0.5 * g**2 / path.sigma(t).numpy() ** 2
        return half

    def A(self, path: Path, p: Position[Any]) -> Any:
        # Panels that halve towards the data, where the integrand may grow like 1 / sigma^2.
        lam = np.asarray(p.lam, dtype=np.float64)
        t = np.where(np.isposinf(lam), path.t_noise, path.time(lam).numpy()).ravel()
        edges = path.t_data + (path.t_noise - path.t_data) * np.append(0.5 ** np.arange(48), 0.0)
        sign = np.sign(path.t_data - path.t_noise)
        x, mass = np.polynomial.legendre.leggauss(24)
        total = np.zeros(len(t))
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            end = np.where(sign * t < sign * stop, t, stop)
            length = np.maximum(sign * (end - start), 0.0)
            reached = length > 0
            if reached.any():
                inside = start + sign * length[reached, None] * (x + 1) / 2
                total[reached] += length[reached] * (self._half(path, inside) @ mass) / 2
        return np.where(np.isposinf(lam), np.inf, total.reshape(lam.shape))[()]

    def square(self, path: Path, p: Position[Any]) -> Any:
        lam = np.asarray(p.lam, dtype=np.float64)
        at = path.nodes(path.time(lam.ravel()))
        speed = np.abs(at.dalpha / at.alpha - at.dsigma / at.sigma)
        return (self._half(path, at.t) / speed).reshape(lam.shape)[()]


def tau_named(tau: float | Tau) -> Tau:
    """A number is the constant tau."""
    return tau if isinstance(tau, Tau) else Constant(tau)


@dataclass(frozen=True)
class Reverse(Frame):
    """The frame of an SDE of the path; see the top of this file. With tau = 0 it is the frame `denoised`."""

    A: Callable[[Position[Any]], Any] = lambda p: 0.0
    breaks: tuple[float, ...] = ()

    def step(self, s: Position[Any], t: Position[Any]) -> tuple[Any, Any]:
        ratio = t.sigma / s.sigma * np.exp(self.A(s) - self.A(t))
        return ratio, t.alpha - s.alpha * ratio

    def noise(self, s: Position[float], t: Position[float]) -> float:
        return float(t.sigma * np.sqrt(-np.expm1(2 * (self.A(s) - self.A(t))))) if t.sigma else 0.0

    def clock(self, s: Position[float], t: Position[float]) -> tuple[float, float]:
        if t.sigma == 0 or not 2 * self.A(t) < 700:  # no noise, or a clock beyond float64
            return 0.0, 0.0
        return float(np.exp(2 * self.A(s))), float(np.exp(2 * self.A(t)))


def reverse(path: Path, tau: Tau) -> Reverse:
    """The frame of that SDE on that path."""

    def A(p: Position[Any]) -> Any:
        return tau.A(path, p)

    lam = FRAMES["lambda"]
    denoised = FRAMES["denoised"]

    def slope(p: Position[Any]) -> Any:
        # Up to a factor for each row of positions: v itself grows beyond any float where much noise is renewed.
        log_v = p.lam + A(p)
        return np.exp(log_v - log_v.max(-1, keepdims=True)) * (1 + tau.square(path, p)) * lam.slope(p)

    return Reverse(
        "denoised",
        c=lambda p: p.sigma * np.exp(-A(p)),
        v=lambda p: np.exp(p.lam + A(p)),
        d=denoised.d,
        slope=slope,
        lam=denoised.lam,
        at_noise=True,
        A=A,
        breaks=tau.breaks,
    )


def frame_of(name: str, tau: float | Tau, path: Path, grid: Position[np.ndarray]) -> Frame:
    """The frame of that name, or that of the SDE, for a run over the grid.

    Raises:
        ValueError: if an SDE is to be run from the data to the noise.
    """
    tau = tau_named(tau)
    if tau == Constant(0.0):
        return FRAMES[name]
    if not (np.diff(grid.lam) > 0).all():
        raise ValueError(f"tau={tau!r}: only tau=0, the probability flow, runs from the data to the noise")
    return reverse(path, tau)
