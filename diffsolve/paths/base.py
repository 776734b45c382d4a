"""What a Gaussian path is: alpha, sigma, their derivatives and inverse, and the ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.fingerprint import rounded

__all__ = ["Array", "Path", "Position", "Times", "UnitVariance", "float64"]

Times = float | Sequence[float] | np.ndarray | Tensor
Array = TypeVar("Array", float, np.ndarray, Tensor)
"""What a position is made of: one point, or float64 arrays or tensors of one shape for many."""


@dataclass(frozen=True)
class Position(Generic[Array]):
    """One or many points of a path: its clock, alpha, sigma and their derivatives by the clock."""

    t: Array
    alpha: Array
    sigma: Array
    dalpha: Array
    dsigma: Array

    @overload
    def __getitem__(self: Position[np.ndarray], index: int | tuple[int, ...]) -> Position[float]: ...
    @overload
    def __getitem__(self: Position[np.ndarray], index: Any) -> Position[np.ndarray]: ...
    @overload
    def __getitem__(self: Position[Tensor], index: Any) -> Position[Tensor]: ...
    def __getitem__(self: Position[Any], index: Any) -> Position[Any]:
        return Position(self.t[index], self.alpha[index], self.sigma[index], self.dalpha[index], self.dsigma[index])

    @property
    def lam(self) -> Array:
        """lambda = log(alpha / sigma), infinite at the ends."""
        log: Any = torch.log if isinstance(self.alpha, Tensor) else np.log
        with np.errstate(divide="ignore"):
            lam: Array = log(self.alpha) - log(self.sigma)
        return lam


class Path(ABC):
    """x_t = alpha(t) x_0 + sigma(t) eps.

    A subclass gives `_alpha`, `_sigma`, their derivatives `_slopes` from t and both of them, elementwise in torch and
    float64, and the ends. It may give the inverse of lambda (`_time`); otherwise that is found by bisection.
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

    @abstractmethod
    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]: ...

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
        p = self.at(t)
        return p.dalpha, p.dsigma

    def at(self, t: Times) -> Position[Tensor]:
        """alpha, sigma and their derivatives at t, as float64 tensors of t's shape."""
        t = float64(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        return Position(t, alpha, sigma, *self._slopes(t, alpha, sigma))

    def nodes(self, t: Times) -> Position[np.ndarray]:
        """`at`, as numpy arrays: what solvers compute weights from."""
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
                f"lam must be between {float(low):.6g} and {float(high):.6g}, the ends of {self}, got {_brief(lam)}"
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

    def __fingerprint__(self) -> list[str]:
        at = self.nodes(np.linspace(self.t_noise, self.t_last, 33))
        return [type(self).__name__, rounded(at.alpha), rounded(at.sigma)]

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
    # Numbers stay on the CPU, whatever torch's default device is.
    return torch.as_tensor(t, dtype=torch.float64, device=t.device if isinstance(t, Tensor) else "cpu")


def _brief(values: Tensor) -> str:
    flat = values.flatten().tolist()
    return str(flat[0] if len(flat) == 1 else flat[:4] + (["..."] if len(flat) > 4 else []))
