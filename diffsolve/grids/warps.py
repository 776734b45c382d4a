"""Grids that are even, or follow a profile, in a variable along the path."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, number
from diffsolve.grids.base import Grid
from diffsolve.paths import Path
from diffsolve.tableau.ends import CUT, first_call, may_call
from diffsolve.tableau.frames import VARIABLES

__all__ = ["Angle", "Arc", "Beta", "Jumps", "Karras", "Power", "Shifted", "Uniform", "Warp"]


class Warp(Grid):
    """Nodes at `profile(i / n)` of the way in a variable, from the start to the last call."""

    @abstractmethod
    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        """The variable at the times t."""

    @abstractmethod
    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        """The times at which the variable is w."""

    def profile(self, r: np.ndarray) -> np.ndarray:
        """How far along the variable node r in [0, 1] stands."""
        return r

    def at(self, path: Path, r: np.ndarray) -> np.ndarray:
        """The times at the shares r in [0, 1] of the way from the noise end to the last call."""
        low, high, _, _ = self._stretch(path, path.t_noise, None)
        a, b = self.forward(path, np.array([low, high]))
        return np.asarray(np.clip(self.inverse(path, a + (b - a) * self.profile(r)), min(low, high), max(low, high)))

    def _stretch(self, path: Path, start: float, stop: float | None) -> tuple[float, float, list[float], list[float]]:
        """Where the variable is finite, and the nodes before and after that."""
        last = path.t_data if stop is None else stop
        low, high, head, tail = start, last, [], []
        if stop is None and not may_call(path, last) and path.lam(start) < path.lam(path.t_last):
            high, tail = path.t_last, [last]
        with np.errstate(divide="ignore"):
            finite = np.isfinite(self.forward(path, np.array([low, high])))
        if not finite[0]:
            low, head = first_call(path), [start]
        if not finite[1]:
            high, tail = float(path.time(CUT)), [last]
        return low, high, head, tail

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        last = path.t_data if stop is None else stop
        low, high, head, tail = self._stretch(path, start, stop)
        inner = steps - len(head) - len(tail)
        if inner < 0 or steps == 1:
            return np.array([start, last])
        a, b = self.forward(path, np.array([low, high]))
        r = np.linspace(0, 1, inner + 1) if inner else np.array([0.5])
        with np.errstate(divide="ignore"):
            times = self.inverse(path, a + (b - a) * self.profile(r))
        if inner:
            times[0], times[-1] = low, high  # exactly
        return np.array([*head, *times, *tail])


@dataclass(frozen=True)
class Uniform(Warp):
    """Even steps in t or in any of `diffsolve.tableau.frames.VARIABLES` (lambda, theta, u, rho, ...)."""

    variable: str = "t"

    def __post_init__(self) -> None:
        choice("variable", self.variable, _LAMBDA_OF)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        return t if self.variable == "t" else np.asarray(VARIABLES[self.variable](path.nodes(t)))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        return w if self.variable == "t" else path.time(_LAMBDA_OF[self.variable](w)).numpy()


_LAMBDA_OF = {
    "t": lambda w: w,
    "lambda": lambda w: w,
    "theta": lambda w: -np.log(np.tan(w)),
    "u": lambda w: np.log1p(-w) - np.log(w),
    "rho": lambda w: -np.log(w),
}


@dataclass(frozen=True)
class Jumps(Uniform):
    """Even steps to the data itself, for students: their last call jumps there from afar, not from the last time.

    The default is even in the noise's share u = sigma / (alpha + sigma), which on a straight path is the time.
    """

    variable: str = "u"

    def _stretch(self, path: Path, start: float, stop: float | None) -> tuple[float, float, list[float], list[float]]:
        low, high = start, path.t_data if stop is None else stop
        with np.errstate(divide="ignore"):
            finite = np.isfinite(self.forward(path, np.array([low, high]))).all()
        return (low, high, [], []) if finite else super()._stretch(path, start, stop)


@dataclass(frozen=True)
class Power(Uniform):
    """Nodes at (i / n)^power of the way from the last call to the start, in t or another variable.

    power = 2 in t is the quadratic spacing of DDIM (2010.02502, appendix D.3).
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("power", self.power, above=0)

    def profile(self, r: np.ndarray) -> np.ndarray:
        return 1 - (1 - r) ** self.power


@dataclass(frozen=True)
class Karras(Warp):
    """Even steps in (sigma / alpha)^(1 / rho) (Karras et al., 2206.00364, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        number("rho", self.rho, above=0)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        return np.asarray((p.sigma / p.alpha) ** (1 / self.rho))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        return path.time(-self.rho * np.log(w)).numpy()


@dataclass(frozen=True)
class Angle(Warp):
    """Even steps in atan(sigma / (scale alpha))^(1 / power): finite at both ends of every path.

    `scale` is the noise level, in units of the data, around which the steps gather; a larger power puts more of
    them near the data. scale = 1, power = 1 is uniform in theta.
    """

    scale: float = 3.0
    power: float = 2.0

    def __post_init__(self) -> None:
        number("scale", self.scale, above=0)
        number("power", self.power, above=0)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        return np.asarray(np.arctan2(p.sigma, self.scale * p.alpha) ** (1 / self.power))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        # Rounding must not carry the angle beyond pi / 2, where alpha = 0.
        return path.time(-np.log(self.scale * np.tan(np.minimum(w**self.power, math.pi / 2)))).numpy()


@dataclass(frozen=True)
class Arc(Warp):
    """Even steps in atan((sigma / (scale alpha))^power) - even lambda.

    The steps per unit of lambda are even + power / (2 cosh(power (lambda + log scale))): the second part gathers them
    around the level sigma = scale alpha, alike on both sides. With even = 0 the variable is finite at both ends of
    every path, power = 1 is uniform in theta and power -> 0 uniform in lambda, as is even -> infinity.
    """

    scale: float = 1.0
    power: float = 0.5
    even: float = 0.0

    def __post_init__(self) -> None:
        number("scale", self.scale, above=0)
        number("power", self.power, above=0)
        number("even", self.even, low=0)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        arc = np.asarray(np.arctan2(p.sigma**self.power, (self.scale * p.alpha) ** self.power))
        return arc if self.even == 0 else arc - self.even * p.lam

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        # Rounding must not carry the angle beyond pi / 2, where alpha = 0.
        if self.even == 0:
            lam = -np.log(self.scale) - np.log(np.tan(np.minimum(w, math.pi / 2))) / self.power
        else:
            lam = self._solved(np.asarray(w))
        return path.time(lam).numpy()

    def _solved(self, w: np.ndarray) -> np.ndarray:
        """lambda at which the variable is w, by bisection: it falls, and the arc is between 0 and pi / 2."""
        low, high = -w / self.even, (math.pi / 2 - w) / self.even
        for _ in range(60):
            lam = (low + high) / 2
            above = np.arctan(np.exp(-self.power * (lam + math.log(self.scale)))) - self.even * lam > w
            low, high = np.where(above, lam, low), np.where(above, high, lam)
        return np.asarray((low + high) / 2)


@dataclass(frozen=True)
class Shifted(Uniform):
    """Even steps in t, each moved by t -> shift t / (1 + (shift - 1) t) (Esser et al., 2403.03206, eq. 23).

    t is the part of the way that is left, so that the ends stay where they are on any path.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("shift", self.shift, above=0)

    def profile(self, r: np.ndarray) -> np.ndarray:
        return 1 - self.shift * (1 - r) / (1 + (self.shift - 1) * (1 - r))


@dataclass(frozen=True)
class Beta(Warp):
    """Quantiles of a Beta(a, b) law over the clock (2407.12173): a = b = 0.6 puts more steps at both ends."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        number("a", self.a, above=0)
        number("b", self.b, above=0)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        return t

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        return w

    def profile(self, r: np.ndarray) -> np.ndarray:
        from scipy.stats import beta

        return np.asarray(1 - beta.ppf(1 - r, self.a, self.b))
