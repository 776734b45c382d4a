"""Where the steps go: a grid names a variable along the path and spaces nodes evenly in it.

Every grid fits every path. A run to the data ends on `path.t_data`; where the network cannot be called there the
last-but-one node is `path.t_last`, as is the custom of Karras et al. (2206.00364, eq. 5). Where the variable is
infinite at an end of the path, the end itself is a node and the even spacing begins at |lambda| = log 1000.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from diffsolve.frames import VARIABLES
from diffsolve.names import Registry
from diffsolve.paths import Path

__all__ = ["Angle", "Beta", "Grid", "Karras", "Power", "Shifted", "Spaced", "Uniform", "Warp", "named", "names"]

CUT = math.log(1000.0)


class Grid(ABC):
    """A rule for where the steps go; a frozen dataclass of options."""

    @abstractmethod
    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        """steps + 1 times from `start` to `stop` (None: to the data itself)."""

    def __call__(self, path: Path, steps: int, *, start: float | None = None, stop: float | None = None) -> np.ndarray:
        """The n + 1 nodes, float64 times on the path's clock, from the noise to the data.

        Args:
            steps: n, the number of intervals.
            start: where to begin; the path's noise end if None.
            stop: where to end, exactly; the data itself if None.

        Raises:
            ValueError: if the grid has no n distinct steps there, or start does not lie noisier than stop.
        """
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
            raise ValueError(f"steps={steps!r}: an integer of at least 1 is accepted")
        first = path.t_noise if start is None else float(start)
        last = path.t_data if stop is None else float(stop)
        for name, t in (("start", first), ("stop", last)):
            if not path.within(t):
                raise ValueError(f"{name}={t!r} is beyond the ends of {path}: {path.t_noise} to {path.t_data}")
        toward_data = math.copysign(1.0, path.t_data - path.t_noise)
        if not (last - first) * toward_data > 0:
            raise ValueError(f"start={first!r}, stop={last!r}: start must lie on the noisier side of stop on {path}")
        times = self.nodes(path, int(steps), first, None if last == path.t_data else last)
        if not (np.diff(times) * toward_data > 0).all():
            raise ValueError(f"steps={steps}: {self} has fewer distinct steps than that between {first} and {last}")
        return times


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

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        last = path.t_data if stop is None else stop
        low, high, head, tail = start, last, [], []
        if stop is None and path.t_last != path.t_data and path.lam(start) < path.lam(path.t_last):
            high, tail = path.t_last, [last]
        with np.errstate(divide="ignore"):
            finite = np.isfinite(self.forward(path, np.array([low, high])))
        if not finite[0]:
            low, head = float(path.time(-CUT)), [start]
        if not finite[1]:
            high, tail = float(path.time(CUT)), [last]
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
    """Even steps in t or in any of `diffsolve.frames.VARIABLES` (lambda, theta, u, rho, ...)."""

    variable: str = "t"

    def __post_init__(self) -> None:
        if self.variable not in _LAMBDA_OF:
            raise ValueError(f"variable={self.variable!r} is unknown; accepted: {', '.join(_LAMBDA_OF)}")

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
class Power(Uniform):
    """Nodes at (i / n)^power of the way from the last call to the start, in t or another variable.

    power = 2 in t is the quadratic spacing of DDIM (2010.02502, appendix D.3).
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("power", self.power)

    def profile(self, r: np.ndarray) -> np.ndarray:
        return 1 - (1 - r) ** self.power


@dataclass(frozen=True)
class Karras(Warp):
    """Even steps in (sigma / alpha)^(1 / rho) (Karras et al., 2206.00364, eq. 5)."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)

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
        _positive("scale", self.scale)
        _positive("power", self.power)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        p = path.nodes(t)
        return np.asarray(np.arctan2(p.sigma, self.scale * p.alpha) ** (1 / self.power))

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        # Rounding must not carry the angle beyond pi / 2, where alpha = 0.
        return path.time(-np.log(self.scale * np.tan(np.minimum(w**self.power, math.pi / 2)))).numpy()


@dataclass(frozen=True)
class Shifted(Uniform):
    """Even steps in t, each moved by t -> shift t / (1 + (shift - 1) t) (Esser et al., 2403.03206, eq. 23).

    t is the part of the way that is left, so that the ends stay where they are on any path.
    """

    shift: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive("shift", self.shift)

    def profile(self, r: np.ndarray) -> np.ndarray:
        return 1 - self.shift * (1 - r) / (1 + (self.shift - 1) * (1 - r))


@dataclass(frozen=True)
class Beta(Warp):
    """Quantiles of a Beta(a, b) law over the clock (2407.12173): a = b = 0.6 puts more steps at both ends."""

    a: float = 0.6
    b: float = 0.6

    def __post_init__(self) -> None:
        _positive("a", self.a)
        _positive("b", self.b)

    def forward(self, path: Path, t: np.ndarray) -> np.ndarray:
        return t

    def inverse(self, path: Path, w: np.ndarray) -> np.ndarray:
        return w

    def profile(self, r: np.ndarray) -> np.ndarray:
        from scipy.stats import beta

        return np.asarray(1 - beta.ppf(1 - r, self.a, self.b))


@dataclass(frozen=True)
class Spaced(Grid):
    """The spacings of tables: n calls at rows of 0..T-1, then the end (Lin et al., 2305.08891, table 2).

    leading:  0, m, 2m, .. with m = T // n, plus `offset`
    trailing: T - 1, T - 1 - T/n, ..
    linspace: n rows from 0 to T - 1, both included

    Row T - 1 is the start, row 0 the last time before the end. A continuous clock is divided into T = 1000 rows
    and not rounded. `leading` begins below the noise end, which is its known flaw.
    """

    spacing: str = "trailing"
    offset: int = 0

    def __post_init__(self) -> None:
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"spacing={self.spacing!r}: leading, trailing or linspace is accepted")
        if isinstance(self.offset, bool) or not isinstance(self.offset, int) or self.offset < 0:
            raise ValueError(f"offset={self.offset!r}: an integer of at least 0 is accepted")
        if self.offset and self.spacing != "leading":
            raise ValueError(f"offset={self.offset!r}: only the leading spacing has an offset")

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        end = path.t_data if stop is None else stop
        count = round(start - end) if path.integer else 1000
        if path.integer:
            low = end + 1
        else:
            low = path.t_last if stop is None and path.t_last != end else end + (start - end) / count
        if steps > count:
            raise ValueError(f"steps={steps}: at most {count} are accepted, the rows from {start} to {end}")
        i = np.arange(steps, 0, -1)
        if self.spacing == "leading":
            rows = (i - 1) * float(count // steps) + self.offset
        elif self.spacing == "trailing":
            rows = i * count / steps
        else:
            rows = np.linspace(0, count - 1, steps)[::-1] if steps > 1 else np.array([count - 1.0])
        if path.integer:
            rows = np.round(rows)
        if self.spacing == "trailing":  # rounded before, as in the paper: halves go to the even side
            rows = rows - 1
        times = low + rows * ((start - low) / (count - 1) if count > 1 else 0.0)
        return np.append(np.where(rows > count - 1 - 1e-9, start, times), end)


registry: Registry[Grid] = Registry(
    "grid",
    Grid,
    {
        "angle": Angle,
        "beta": Beta,
        "exponential": lambda: Uniform("lambda"),
        "karras": Karras,
        "leading": lambda offset=0: Spaced("leading", offset),
        "linspace": lambda: Spaced("linspace"),
        "polynomial": lambda power=2.0, variable="t": Power(variable, power),
        "quadratic": lambda: Power("t", 2.0),
        "shifted": lambda shift=3.0, variable="t": Shifted(variable, shift),
        "trailing": lambda: Spaced("trailing"),
        "uniform-lambda": lambda: Uniform("lambda"),
        "uniform-rho": lambda: Uniform("rho"),
        "uniform-t": lambda: Uniform("t"),
        "uniform-theta": lambda: Uniform("theta"),
        "uniform-u": lambda: Uniform("u"),
    },
)


def named(grid: str | Grid) -> Grid:
    """The grid of that name, as in `"karras(rho=5)"`; a `Grid` is returned as it is."""
    return registry.resolve(grid)


def names() -> list[str]:
    """The names that `grid=` accepts."""
    return registry.names()


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r}: a positive number is accepted")
