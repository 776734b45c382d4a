"""A user's own path."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve.paths.base import Path, check

__all__ = ["Custom"]


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
        check(
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
