"""A model as the right-hand side that torchdiffeq integrates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffsolve.models import Model

__all__ = ["ODE"]


class ODE(nn.Module):
    """dx/dt of the probability-flow ODE on the path's own clock: f(t, x), for `odeint` and `odeint_adjoint`.

        x = odeint(model.as_ode(), noise, torch.tensor([path.t_noise, path.t_last]))[-1]

    It integrates in either direction; t is one number, or has shape (B,). The network's parameters are parameters of
    this module, where `odeint_adjoint` looks for them.
    torchdiffeq's adaptive methods step past the last time and interpolate back, unless `options={"step_t": t[-1:]}`
    forbids it. The network is not called beyond the ends even then: t is clamped to them.

    Raises:
        ValueError: where dx/dt is infinite, or the network does not determine it; see `Model.predict`.
    """

    def __init__(self, model: Model, cond: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.cond = model, dict(cond)
        if isinstance(model.net, nn.Module):
            self.net = model.net

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        path = self.model.path
        t = t.clamp(*sorted((path.t_noise, path.t_last)))
        if not all(bool(slope.isfinite().all()) for slope in path.derivatives(t)):
            raise ValueError(f"t must be a time at which dx/dt is finite on {path}, got {t.tolist()}")
        return self.model.velocity(x, t, **self.cond).to(x.dtype)
