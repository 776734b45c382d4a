"""Paths with a continuous clock, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffsolve.common.checks import number, required
from diffsolve.paths.base import Path, UnitVariance

__all__ = ["EDM", "VE", "VP", "CondOT", "Cosine", "Rectified", "SubVP"]


@dataclass(frozen=True)
class VP(UnitVariance):
    """Variance preserving with linear beta, t in [0, 1], t = 1 noise (Song et al., 2011.13456, eq. 32).

    log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,  sigma^2 = 1 - alpha^2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_last: float = 1e-3
    t_noise = 1.0
    t_data = 0.0
    grid = "uniform-lambda"

    def __post_init__(self) -> None:
        betas = self.beta_min, self.beta_max
        required(0 < betas[0] <= betas[1] < math.inf, "(beta_min, beta_max)", betas, "positive, finite and not falling")
        number("t_last", self.t_last, above=0, below=1)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -(t * t) * ((self.beta_max - self.beta_min) / 4) - t * (self.beta_min / 2)

    def _half_beta(self, t: Tensor) -> Tensor:
        """-d log alpha / dt."""
        return t * ((self.beta_max - self.beta_min) / 2) + self.beta_min / 2

    def _alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t).exp()

    def _sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self._log_alpha(t))).sqrt()

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        dalpha = -alpha * self._half_beta(t)
        return dalpha, -alpha * dalpha / sigma

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

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        dalpha = -alpha * self._half_beta(t)
        return dalpha, -2 * alpha * dalpha

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
    t_noise = 1.0
    t_data = -math.inf
    t_last = 0.0
    grid = "karras"

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * (t * math.log(self.sigma_max / self.sigma_min)).exp()

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), sigma * math.log(self.sigma_max / self.sigma_min)

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1 and the clock is sigma itself (Karras et al., 2206.00364, table 1)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    t_noise: float = field(init=False, repr=False)
    t_last: float = field(init=False, repr=False)
    t_data = 0.0
    grid = "karras"

    def __post_init__(self) -> None:
        _check_sigmas(self.sigma_min, self.sigma_max)
        object.__setattr__(self, "t_noise", float(self.sigma_max))
        object.__setattr__(self, "t_last", float(self.sigma_min))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True)
class CondOT(Path):
    """Conditional optimal transport (Lipman et al., 2210.02747): alpha = t, sigma = 1 - t; t = 0 is noise."""

    t_noise = 0.0
    t_data = 1.0
    t_last = 1.0
    regular = True

    def _alpha(self, t: Tensor) -> Tensor:
        return t.clone()

    def _sigma(self, t: Tensor) -> Tensor:
        return 1 - t

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t)
        return one, -one

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
    t_noise = 1.0
    t_data = 0.0
    t_last = 0.0
    regular = True

    def __post_init__(self) -> None:
        number("shift", self.shift, above=0)
        object.__setattr__(self, "grid", f"shifted(shift={self.shift!r})")

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t)
        return -one, one

    def _time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True)
class Cosine(UnitVariance):
    """The cosine path (Nichol and Dhariwal, 2102.09672, eq. 17) with a continuous clock, t = 1 noise.

    alpha = cos(phi) / cos(phi_0), phi = (pi / 2) (t + s) / (1 + s), sigma^2 = 1 - alpha^2. At t = 1 alpha is 0,
    where a noise-predicting network does not determine the data: give `t_noise=0.9946` for such a network.
    """

    s: float = 0.008
    t_noise: float = 1.0
    t_last: float = 1e-3
    t_data = 0.0
    grid = "uniform-lambda"

    def __post_init__(self) -> None:
        number("s", self.s, low=0)
        ends = self.t_last, self.t_noise
        required(0 < ends[0] < ends[1] <= 1, "(t_last, t_noise)", ends, "rising, above 0 and at most 1")

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

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # phi' sin(phi), and by sigma sigma' = -alpha alpha'; sin(phi) / sigma is 1 for s = 0, at t = 0 too.
        speed = math.pi / 2 / (1 + self.s)
        rise = torch.sin(t * speed + self._phi_0)
        steepness = rise / sigma if self.s else torch.ones_like(t)
        return -speed / math.cos(self._phi_0) * rise, speed / math.cos(self._phi_0) * alpha * steepness


def _check_sigmas(low: float, high: float) -> None:
    required(0 < low < high < math.inf, "(sigma_min, sigma_max)", (low, high), "positive, finite and rising")
