r"""What a network knows of the data at a state: the mean of x_0 given x_t, and products with its covariance.

By Tweedie's formulas, with D(x) the exact denoised estimate,

.. math::
    E[x_0 | x_t] = D(x_t), \qquad \mathrm{Cov}[x_0 | x_t] = \frac{\sigma^2}{\alpha} \frac{\partial D}{\partial x}(x_t),

so a product with the covariance is one product with the network's derivative (Boys et al., 2310.06721, proposition 1;
Rozet et al., 2405.13712, eq. 15).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.tensors import column
from diffsolve.models import Model
from diffsolve.models.derivative import Pullback, pullback
from diffsolve.tableau.frames import PREDICTIONS, convert

__all__ = ["Estimate"]


class Estimate:
    """The denoised estimate of a model at states x (B, ...) and times t (B,).

    Args:
        derivative: whether `covariance` is asked for, which keeps the network's graph.
        rho_max: the level sigma / alpha beyond which the covariance is `variance`. There the network's derivative,
            whose error the covariance takes rho times and more, tells nothing; at alpha = 0 it is 0.
        sigma_data: the standard deviation of the data, for `variance`.
    """

    def __init__(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Any],
        *,
        derivative: bool,
        rho_max: float,
        sigma_data: float,
    ) -> None:
        def network(y: Tensor) -> Tensor:
            return model(y, t, **cond).to(y.dtype)

        self.x, self.at = x, model.path.at(t)
        self._pullback: Pullback | None = None
        if derivative:
            why = "for this method of conditioning (method='replacement' needs none)"
            self.out, self._pullback = pullback(network, x, why)
        else:
            self.out = network(x)
        at = self.at
        target = PREDICTIONS["denoised"](at, model.sigma_data)
        self._on_x, self._on_out = (column(w, x) for w in convert(target, model.coefficients(at), at.alpha, at.sigma))
        self._gain = column(at.sigma**2 / at.alpha.clamp(min=torch.finfo(torch.float32).tiny), x)
        self._far = column(at.sigma > rho_max * at.alpha, x) > 0
        square = sigma_data**2
        self.variance = at.sigma**2 * square / (at.sigma**2 + at.alpha**2 * square)
        """(B,), float64: the variance of x_0 given x_t if the data were N(0, sigma_data^2 I), PiGDM's r_t^2."""

    @property
    def denoised(self) -> Tensor:
        """D(x), (B, ...)."""
        return self._on_x * self.x + self._on_out * self.out

    def covariance(self, v: Tensor) -> Tensor:
        """Cov[x_0 | x_t] v, for v (B, ...) of the shape of x."""
        assert self._pullback is not None
        slope = self._pullback(self._on_out * v)
        return torch.where(self._far, column(self.variance, v) * v, self._gain * (self._on_x * v + slope))
