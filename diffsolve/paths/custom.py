"""A user's own path."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from diffsolve.common.checks import required
from diffsolve.paths.base import Path

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
        ends = self.t_noise, self.t_data
        required(bool(np.isfinite(ends).all()) and ends[0] != ends[1], "(t_noise, t_data)", ends, "two finite times")
        t = torch.linspace(self.t_noise, self.t_data, 1001, dtype=torch.float64, device="cpu")
        for name, value in (("alpha(t)", self._alpha(t)), ("sigma(t)", self._sigma(t))):
            required(value.shape == t.shape, name, value, f"of shape {tuple(t.shape)} for t of that shape")
            good = bool((value.isfinite() & (value >= 0)).all())
            required(good, name, float(value.min()), "finite and >= 0 between the ends")
        last = float(self._sigma(t[-1]))
        required(last == 0, f"sigma(t_data={self.t_data!r})", last, "0, the data end")
        falls = torch.diff(self.lam(t)) <= 0
        for where in t[:-1][falls][:1].tolist():
            raise ValueError(
                f"log(alpha / sigma) must be strictly rising from t_noise to t_data, but is not at t={where:.6g}"
            )

    def _alpha(self, t: Tensor) -> Tensor:
        return self.alpha_fn(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_fn(t)

    def _slopes(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return _slope(self.alpha_fn, t), _slope(self.sigma_fn, t)


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt of an elementwise function, by reverse-mode autograd; differentiable where t asks for it.

    Not by `torch.func.jvp`, whose first call costs a second and each further one several times as much, but inside
    transforms of torch.func, where there is no other way.
    """
    differentiable = torch.is_grad_enabled() and t.requires_grad
    # A checkpoint around this call keeps its hands off a graph that is over when the call returns.
    private = nullcontext() if differentiable else saved_tensors_hooks(_unchanged, _unchanged)
    with torch.enable_grad(), private:
        try:
            t = t if differentiable else t.detach().requires_grad_(True)
        except RuntimeError:  # inside a transform of torch.func
            t = t.detach().contiguous()
            slope: Tensor = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
        else:
            value = function(t)
            if not value.requires_grad:
                return torch.zeros_like(t)
            (slope,) = torch.autograd.grad(value.sum(), t, create_graph=differentiable)
    slope = slope if differentiable else slope.detach()
    return slope.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # 0 * inf inside a chain rule


def _unchanged(x: Tensor) -> Tensor:
    return x
