"""Gaussian paths x_t = alpha(t) x_0 + sigma(t) eps: alpha, sigma, their inverse and their ends.

A path is a value: two equal paths give equal numbers, and building one twice changes nothing. All of it is
float64, whatever the network's dtype. `t` is the path's own clock, which is also the clock of the network
unless `adapt(..., clock=...)` says otherwise. Writing lambda = log(alpha / sigma), every path runs from its
noise end (`t_noise`, lambda smallest) to its data end (`t_data`, sigma = 0, lambda = +inf).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffsolve.names import Registry

__all__ = [
    "EDM",
    "VE",
    "VP",
    "CondOT",
    "Cosine",
    "Custom",
    "Discrete",
    "Path",
    "Position",
    "Rectified",
    "SubVP",
    "named", "names",
]  # fmt: skip

Times = float | Sequence[float] | np.ndarray | Tensor


@dataclass(frozen=True)
class Position:
    """One or many points of a path: its clock, alpha, sigma and their derivatives by the clock.

    Fields are floats, float64 arrays or float64 tensors of one shape.
    """

    t: Any
    alpha: Any
    sigma: Any
    dalpha: Any
    dsigma: Any

    def __getitem__(self, index: Any) -> Position:
        return Position(self.t[index], self.alpha[index], self.sigma[index], self.dalpha[index], self.dsigma[index])

    @property
    def lam(self) -> Any:
        """lambda = log(alpha / sigma), infinite at the ends."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)


class Path(ABC):
    """x_t = alpha(t) x_0 + sigma(t) eps.

    A subclass gives `_alpha` and `_sigma`, elementwise in torch and float64, and the ends. It may give the
    inverse of lambda (`_time`); otherwise that is found by bisection.
    """

    t_noise: float
    """The clock at the noise end, where sampling starts."""
    t_data: float
    """The clock at the data end, where sigma = 0."""
    t_last: float
    """The clock nearest to the data at which the network may be called: `t_data` itself if it may be there."""
    regular: bool = False
    """Whether dx/dt is bounded, and known to the network, at both ends of the clock."""
    integer: ClassVar[bool] = False
    """Whether the clock counts the rows of a table."""
    grid: str = "uniform-t"
    """The grid that a run uses when none is named."""

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Times) -> Tensor:
        """alpha(t), the weight of the data; float64, the shape of t."""
        return self._alpha(_float64(t))

    def sigma(self, t: Times) -> Tensor:
        """sigma(t), the weight of the noise; float64, the shape of t."""
        return self._sigma(_float64(t))

    def lam(self, t: Times) -> Tensor:
        """lambda(t) = log(alpha / sigma): half the log signal-to-noise ratio."""
        t = _float64(t)
        return self._alpha(t).log() - self._sigma(t).log()

    def rho(self, t: Times) -> Tensor:
        """rho(t) = sigma / alpha: the noise level in units of the data."""
        t = _float64(t)
        return self._sigma(t) / self._alpha(t)

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), infinite where they are."""
        t = _float64(t)
        return _derivative(self._alpha, t), _derivative(self._sigma, t)

    def at(self, t: Times) -> Position:
        """alpha, sigma and their derivatives at t, as float64 tensors of t's shape."""
        t = _float64(t)
        return Position(t, self._alpha(t), self._sigma(t), *self.derivatives(t))

    def nodes(self, t: Times) -> Position:
        """`at`, as numpy arrays: what solvers compute weights from."""
        p = self.at(t)
        return Position(*(value.cpu().numpy() for value in (p.t, p.alpha, p.sigma, p.dalpha, p.dsigma)))

    def time(self, lam: Times) -> Tensor:
        """The clock at which lambda(t) = lam; +inf is the data end, -inf the end where alpha = 0.

        Raises:
            ValueError: if some lam lies beyond the path's ends by more than rounding.
        """
        lam = _float64(lam)
        low, high = self.lam(self.t_noise).to(lam.device), self.lam(self.t_data).to(lam.device)
        slack = 1e-9 * (1 + low.abs())
        if bool((~(lam >= low - slack) | ~(lam <= high + 1e-9 * (1 + high.abs()))).any()):
            raise ValueError(
                f"lam={_brief(lam)} is beyond the ends of {self}: lambda runs from {float(low):.6g} to "
                f"{float(high):.6g} there"
            )
        t = self._time(lam.clamp(low, high))
        t = torch.where(lam <= low, torch.full_like(t, self.t_noise), t)
        return torch.where(lam >= high, torch.full_like(t, self.t_data), t)

    def _time(self, lam: Tensor) -> Tensor:
        # 200 halvings close any finite interval to neighbouring floats; the loop stops when it has.
        low, high = torch.full_like(lam, self.t_noise), torch.full_like(lam, self.t_data)
        for _ in range(200):
            middle = low + (high - low) / 2
            if bool(((middle == low) | (middle == high)).all()):
                break
            noisier = self.lam(middle) < lam
            low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
        return low + (high - low) / 2

    def prior_std(self, t: float | None = None) -> float:
        """The standard deviation of the Gaussian from which a run at clock t (the noise end) starts."""
        return float(self.sigma(self.t_noise if t is None else t))

    def within(self, t: Times) -> bool:
        """Whether every t lies on the path's clock, ends included."""
        low, high = sorted((self.t_noise, self.t_data))
        return bool(((_float64(t) >= low) & (_float64(t) <= high)).all())


class _UnitVariance(Path):
    """Paths whose prior is N(0, 1) by convention, though alpha(t_noise) may be a little above 0."""

    def prior_std(self, t: float | None = None) -> float:
        return 1.0


@dataclass(frozen=True)
class VP(_UnitVariance):
    """Variance preserving with linear beta, t in [0, 1], t = 1 noise (Song et al., 2011.13456, eq. 32).

    log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,  sigma^2 = 1 - alpha^2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_last: float = 1e-3
    t_noise: ClassVar[float] = 1.0
    t_data: ClassVar[float] = 0.0
    grid: ClassVar[str] = "uniform-lambda"

    def __post_init__(self) -> None:
        _check(
            0 < self.beta_min <= self.beta_max,
            "beta_min, beta_max",
            (self.beta_min, self.beta_max),
            "0 < min <= max",
        )
        _check(0 < self.t_last < 1, "t_last", self.t_last, "a time between 0 and 1")

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(t * t) * ((self.beta_max - self.beta_min) / 4) - t * (self.beta_min / 2)

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _time(self, lam: Tensor) -> Tensor:
        # -2 log alpha = softplus(-2 lam) is a quadratic in t; this root does not cancel.
        integral = torch.nn.functional.softplus(-2 * lam, threshold=1e3)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class SubVP(VP):
    """Sub-VP (2011.13456, eq. 29): alpha as in VP, sigma = 1 - alpha^2."""

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self._log_alpha(t))

    def _time(self, lam: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = e^lam gives alpha; -log alpha = log(sigma... ) in the form that keeps digits:
        # 1 / alpha = r / 2 + sqrt(1 + r^2 / 4) with r = e^-lam, so -log alpha = asinh(r / 2).
        integral = 2 * torch.asinh(torch.exp(-lam) / 2)
        root = (self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral).sqrt()
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class VE(Path):
    """Variance exploding, geometric (2011.13456, eq. 31): alpha = 1, sigma = s_min (s_max / s_min)^t.

    The clock is t in [0, 1]; sigma = 0 is reached at t = -inf. Give the network sigma itself with
    `adapt(..., clock="rho")`.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_noise: ClassVar[float] = 1.0
    t_data: ClassVar[float] = -math.inf
    t_last: ClassVar[float] = 0.0
    grid: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1 and the clock is sigma itself (Karras et al., 2206.00364, table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_noise: float = field(init=False, repr=False)
    t_last: float = field(init=False, repr=False)
    t_data: ClassVar[float] = 0.0
    grid: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        object.__setattr__(self, "t_noise", float(self.sigma_max))
        object.__setattr__(self, "t_last", float(self.sigma_min))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class CondOT(Path):
    """Conditional optimal transport (Lipman et al., 2210.02747): alpha = t, sigma = 1 - t; t = 0 is noise."""

    t_noise: ClassVar[float] = 0.0
    t_data: ClassVar[float] = 1.0
    t_last: ClassVar[float] = 1.0
    regular: ClassVar[bool] = True

    def _alpha(self, t: Tensor) -> Tensor:
        return t.clone()

    def _sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def _time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(lam)


@dataclass(frozen=True)
class Rectified(Path):
    """Rectified flow (Liu et al., 2209.03003) on the other clock: alpha = 1 - t, sigma = t; t = 1 is noise.

    `shift` (Esser et al., 2403.03206, eq. 23) says where the steps go, not what the network means: it makes
    `shifted(shift)` the path's grid and leaves alpha(t) and sigma(t) as they are.
    """

    shift: float = 1.0
    grid: str = field(init=False, repr=False)
    t_noise: ClassVar[float] = 1.0
    t_data: ClassVar[float] = 0.0
    t_last: ClassVar[float] = 0.0
    regular: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(0 < self.shift < math.inf, "shift", self.shift, "a positive number")
        object.__setattr__(self, "grid", f"shifted(shift={self.shift!r})")

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True)
class Cosine(_UnitVariance):
    """The cosine path (Nichol and Dhariwal, 2102.09672, eq. 17) with a continuous clock, t = 1 noise.

    alpha = cos(phi) / cos(phi_0), phi = (pi / 2) (t + s) / (1 + s), sigma^2 = 1 - alpha^2. At t = 1 alpha is 0,
    where a noise-predicting network does not determine the data: give `t_noise=0.9946` for such a network.
    """

    s: float = 0.008
    t_noise: float = 1.0
    t_last: float = 1e-3
    t_data: ClassVar[float] = 0.0
    grid: ClassVar[str] = "uniform-lambda"

    def __post_init__(self) -> None:
        _check(self.s >= 0, "s", self.s, "a number >= 0")
        _check(
            0 < self.t_last < self.t_noise <= 1,
            "t_last, t_noise",
            (self.t_last, self.t_noise),
            "0 < t_last < t_noise <= 1",
        )

    @property
    def _phi_0(self) -> float:
        return math.pi / 2 * self.s / (1 + self.s)

    def _alpha(self, t: Tensor) -> Tensor:
        # cos(phi) = sin(pi / 2 - phi) is exactly 0 at t = 1.
        return torch.sin((1 - t) * (math.pi / 2 / (1 + self.s))) / math.cos(self._phi_0)

    def _sigma(self, t: Tensor) -> Tensor:
        # cos^2 phi_0 - cos^2 phi = sin(phi - phi_0) sin(phi + phi_0) keeps its digits near t = 0.
        rise = t * (math.pi / 2 / (1 + self.s))
        return (torch.sin(rise) * torch.sin(rise + 2 * self._phi_0)).clamp(min=0).sqrt() / math.cos(self._phi_0)


class Discrete(_UnitVariance):
    """A table of `betas` (Ho et al., 2006.11239): alpha(k)^2 = prod_{j <= k} (1 - beta_j), k = 0..T-1.

    The clock is the index k. Between two indices lambda is linear in k (as in k-diffusion), so that alpha and
    sigma are continuous and their derivatives, hence "velocity" on this clock, jump at the indices. In a
    segment with an infinite end (from index 0 to the data at k = -1, and the last one of a table with zero
    terminal SNR) the angle atan2(sigma, alpha) is linear instead.

    Args:
        betas: the T variances, each in [0, 1); the last may be 1 (zero terminal SNR).
        zero_terminal_snr: rescale the table so that alpha(T - 1) = 0 (Lin et al., 2305.08891, algorithm 1).
    """

    integer: ClassVar[bool] = True
    grid: ClassVar[str] = "trailing"
    t_data: ClassVar[float] = -1.0
    t_last: ClassVar[float] = 0.0

    def __init__(self, betas: Sequence[float] | np.ndarray | Tensor, *, zero_terminal_snr: bool = False) -> None:
        table = _float64(betas).detach().cpu().numpy()
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"betas has shape {table.shape}: a list of at least 2 numbers is needed")
        bad = ~((table > 0) & (table < 1))
        bad[-1] &= table[-1] != 1
        if bad.any():
            where = int(np.flatnonzero(bad)[0])
            raise ValueError(f"betas[{where}]={table[where]!r}: each beta must be between 0 and 1 (the last may be 1)")
        with np.errstate(divide="ignore"):
            log_alpha2 = np.cumsum(np.log1p(-table))
        if zero_terminal_snr:
            alpha = np.exp(log_alpha2 / 2)
            alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
            with np.errstate(divide="ignore"):
                log_alpha2 = 2 * np.log(alpha)
        with np.errstate(divide="ignore"):
            lam = (log_alpha2 - np.log(-np.expm1(log_alpha2))) / 2
        self._lam = torch.from_numpy(lam)
        self.t_noise = float(len(table) - 1)

    @classmethod
    def linear(
        cls, start: float = 1e-4, end: float = 0.02, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """Linear betas (Ho et al., 2006.11239)."""
        return cls(np.linspace(start, end, count), zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def scaled_linear(
        cls, start: float = 0.00085, end: float = 0.012, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """Betas whose square roots are linear (Stable Diffusion)."""
        return cls(np.linspace(start**0.5, end**0.5, count) ** 2, zero_terminal_snr=zero_terminal_snr)

    @classmethod
    def cosine(
        cls, s: float = 0.008, max_beta: float = 0.999, count: int = 1000, zero_terminal_snr: bool = False
    ) -> Discrete:
        """The cosine table with clipped betas (Nichol and Dhariwal, 2102.09672)."""
        level = np.cos((np.arange(count + 1) / count + s) / (1 + s) * math.pi / 2) ** 2
        betas = np.minimum(1 - level[1:] / level[:-1], max_beta)
        return cls(betas, zero_terminal_snr=zero_terminal_snr)

    def __len__(self) -> int:
        return len(self._lam)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Discrete) and torch.equal(self._lam, other._lam)

    def __hash__(self) -> int:
        return hash((Discrete, self._lam.numpy().tobytes()))

    def __repr__(self) -> str:
        lam = self._lam
        return f"Discrete({len(self)} steps, lambda {float(lam[-1]):.4g} to {float(lam[0]):.4g})"

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each t: whether the angle is linear here, the angle from the data or the noise end, and lambda."""
        lam = self._lam.to(t.device)
        k = torch.nan_to_num(t.detach()).floor().clamp(0, len(self) - 2).long()
        left, right = lam[k], lam[k + 1]
        at_noise = torch.isinf(right) & (t > k)  # the last segment, if the table ends at alpha = 0
        at_data = t < 0
        right = torch.where(torch.isinf(right), left, right)
        linear = left + (t - k) * (right - left)
        from_noise = (k + 1 - t) * torch.atan(left.exp())  # pi / 2 - theta
        from_data = (t + 1) * torch.atan((-lam[0]).exp())
        return at_noise, at_data, torch.where(at_noise, from_noise, from_data), linear

    def _alpha(self, t: Tensor) -> Tensor:
        at_noise, at_data, angle, lam = self._angles(t)
        value = torch.where(at_noise, torch.sin(angle), torch.sigmoid(2 * lam).sqrt())
        return torch.where(at_data, torch.cos(angle), value)

    def _sigma(self, t: Tensor) -> Tensor:
        at_noise, at_data, angle, lam = self._angles(t)
        value = torch.where(at_noise, torch.cos(angle), torch.sigmoid(-2 * lam).sqrt())
        return torch.where(at_data, torch.sin(angle), value)

    def _time(self, lam: Tensor) -> Tensor:
        table = self._lam.to(lam.device)
        # The table falls from lambda(0); searchsorted wants it rising.
        k = (torch.searchsorted(-table, -lam, right=True) - 1).clamp(0, len(self) - 2)
        left, right = table[k], table[k + 1]
        t = k + (left - lam) / (left - torch.where(torch.isinf(right), left - 1, right))
        noise = k + 1 - torch.atan(lam.exp()) / torch.atan(left.exp())
        t = torch.where(torch.isinf(right), noise, t)
        data = torch.atan((-lam).exp()) / torch.atan((-table[0]).exp()) - 1
        return torch.where(lam > table[0], data, t)


@dataclass(frozen=True)
class Custom(Path):
    """A user's own path from `alpha(t)` and `sigma(t)`, elementwise functions written in torch.

    Derivatives come from autograd and the inverse from bisection. lambda must rise strictly from `t_noise` to
    `t_data`, and sigma(t_data) must be 0. Pass `t_last` if the network must not be called at t_data itself, and
    `regular=True` if dx/dt is bounded at both ends.
    """

    alpha_fn: Callable[[Tensor], Tensor]
    sigma_fn: Callable[[Tensor], Tensor]
    t_noise: float = 1.0
    t_data: float = 0.0
    t_last: float = math.nan
    regular: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.t_last):
            object.__setattr__(self, "t_last", self.t_data)
        ends = np.array([self.t_noise, self.t_data])
        _check(
            bool(np.isfinite(ends).all()) and ends[0] != ends[1],
            "t_noise, t_data",
            tuple(ends),
            "two finite times",
        )
        t = torch.linspace(self.t_noise, self.t_data, 1001, dtype=torch.float64)
        for name, value in (("alpha", self._alpha(t)), ("sigma", self._sigma(t))):
            if value.shape != t.shape:
                raise ValueError(f"{name}(t) has shape {tuple(value.shape)} for t of shape {tuple(t.shape)}")
            if not bool((value.isfinite() & (value >= 0)).all()):
                raise ValueError(f"{name}(t) must be finite and >= 0 between the ends, got {float(value.min()):.6g}")
        if float(self._sigma(t[-1])) != 0:
            raise ValueError(
                f"sigma(t_data={self.t_data!r})={float(self._sigma(t[-1])):.6g}: it must be 0 at the data end"
            )
        falls = torch.diff(self.lam(t)) <= 0
        if bool(falls.any()):
            where = float(t[int(falls.nonzero()[0])])
            raise ValueError(
                f"lambda = log(alpha / sigma) must rise strictly from t_noise to t_data; it does not at t={where:.6g}"
            )

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alpha_fn(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_fn(t)


registry: Registry[Path] = Registry(
    "path",
    Path,
    {
        "condot": CondOT,
        "cosine": Cosine,
        "ddpm": Discrete.linear,
        "ddpm-cosine": Discrete.cosine,
        "ddpm-scaled-linear": Discrete.scaled_linear,
        "edm": EDM,
        "rectified": Rectified,
        "subvp": SubVP,
        "ve": VE,
        "vp": VP,
    },
)


def named(path: str | Path) -> Path:
    """The path of that name, as in `"edm"` or `"rectified(shift=3.0)"`; a `Path` is returned as it is."""
    return registry.resolve(path)


def names() -> list[str]:
    """The names that `path=` accepts."""
    return registry.names()


def _float64(t: Times) -> Tensor:
    if isinstance(t, Tensor) and t.device.type == "mps":  # has no float64
        t = t.cpu()
    if isinstance(t, np.ndarray):
        t = np.ascontiguousarray(t)
    return torch.as_tensor(t, dtype=torch.float64)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_(True)
        value = function(t)
        if not value.requires_grad:
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
    return slope.detach().nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # 0 * inf inside a chain rule


def _check(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: {accepted} is accepted")


def _check_sigmas(low: float, high: float) -> None:
    _check(0 < low < high < math.inf, "sigma_min, sigma_max", (low, high), "0 < sigma_min < sigma_max")


def _brief(values: Tensor) -> str:
    flat = values.flatten().tolist()
    return str(flat[0] if len(flat) == 1 else flat[:4] + (["..."] if len(flat) > 4 else []))
