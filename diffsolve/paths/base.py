"""What a Gaussian path is: alpha, sigma, their derivatives and inverse, and the ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Path", "Position", "Times", "UnitVariance", "check", "float64"]

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
    integer: bool = False
    """Whether the clock counts the rows of a table."""
    grid: str = "uniform-t"
    """The grid that a run uses when none is named."""

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    def alpha(self, t: Times) -> Tensor:
        """alpha(t), the weight of the data; float64, the shape of t."""
        return self._alpha(float64(t))

    def sigma(self, t: Times) -> Tensor:
        """sigma(t), the weight of the noise; float64, the shape of t."""
        return self._sigma(float64(t))

    def lam(self, t: Times) -> Tensor:
        """lambda(t) = log(alpha / sigma): half the log signal-to-noise ratio."""
        t = float64(t)
        return self._alpha(t).log() - self._sigma(t).log()

    def rho(self, t: Times) -> Tensor:
        """rho(t) = sigma / alpha: the noise level in units of the data."""
        t = float64(t)
        return self._sigma(t) / self._alpha(t)

    def derivatives(self, t: Times) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, d sigma / dt), infinite where they are."""
        t = float64(t)
        return _derivative(self._alpha, t), _derivative(self._sigma, t)

    def at(self, t: Times) -> Position:
        """alpha, sigma and their derivatives at t, as float64 tensors of t's shape."""
        t = float64(t)
        return Position(t, self._alpha(t), self._sigma(t), *self.derivatives(t))

    def nodes(self, t: Times, *, slopes: bool = True) -> Position:
        """`at`, as numpy arrays: what solvers compute weights from; NaN for the derivatives where not asked for."""
        if not slopes:
            t = float64(t)
            alpha, sigma = self._alpha(t).cpu().numpy(), self._sigma(t).cpu().numpy()
            return Position(t.cpu().numpy(), alpha, sigma, np.full_like(alpha, np.nan), np.full_like(alpha, np.nan))
        p = self.at(t)
        return Position(*(value.cpu().numpy() for value in (p.t, p.alpha, p.sigma, p.dalpha, p.dsigma)))

    def time(self, lam: Times) -> Tensor:
        """The clock at which lambda(t) = lam; +inf is the data end, -inf the end where alpha = 0.

        Raises:
            ValueError: if some lam lies beyond the path's ends by more than rounding.
        """
        lam = float64(lam)
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
        return bool(((float64(t) >= low) & (float64(t) <= high)).all())


class UnitVariance(Path):
    """Paths whose prior is N(0, 1) by convention, though alpha(t_noise) may be a little above 0."""

    def prior_std(self, t: float | None = None) -> float:
        return 1.0


def float64(t: Times) -> Tensor:
    if isinstance(t, Tensor) and t.device.type == "mps":  # has no float64
        t = t.cpu()
    if isinstance(t, np.ndarray):
        t = np.array(t, dtype=np.float64)  # torch wants it writable and with positive strides
    return torch.as_tensor(t, dtype=torch.float64)


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    twice = torch.is_grad_enabled() and t.requires_grad  # as torchdiffeq's step sizes have gradients too
    # Its own graph is over when it returns: a checkpoint around it is not to forget it, and be made again for it.
    with torch.enable_grad(), nullcontext() if twice else saved_tensors_hooks(_itself, _itself):
        try:
            t = t if twice else t.detach().requires_grad_(True)
        except RuntimeError:  # inside a transform of torch.func, which has no other derivatives; it is the slower way
            at = t.detach().contiguous()
            slope: Tensor = torch.func.jvp(function, (at,), (torch.ones_like(at),))[1]
        else:
            value = function(t)
            if not value.requires_grad:
                return torch.zeros_like(t)
            (slope,) = torch.autograd.grad(value.sum(), t, create_graph=twice)
    slope = slope if twice else slope.detach()
    return slope.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # 0 * inf inside a chain rule


def _itself(x: Tensor) -> Tensor:
    return x


def check(holds: bool, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r}: {accepted} is accepted")


def _brief(values: Tensor) -> str:
    flat = values.flatten().tolist()
    return str(flat[0] if len(flat) == 1 else flat[:4] + (["..."] if len(flat) > 4 else []))
