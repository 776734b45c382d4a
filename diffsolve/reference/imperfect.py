r"""Networks that err, with everything known: an exact mixture plus a smooth bounded field on what the network predicts.

A trained network errs on **what it predicts**. With the exact prediction :math:`o`, the field here adds

.. math::
    \hat o = o + \delta f(x, \lambda), \qquad
    f(x, \lambda) = \sqrt{2 / F} \sum_{r=1}^{F} a_r \cos(k_r \cdot \bar x + \omega_r \bar\lambda + \phi_r)

with :math:`\bar x = x / \sqrt{(L \alpha)^2 + \sigma^2}` of about unit size (L the root mean square of the data),
:math:`\bar\lambda = 8 \tanh(\lambda / 8)`, and random :math:`a_r \sim N(0, I)`, :math:`k_r \sim N(0, I / D)`,
:math:`\omega_r \sim N(0, 1/4)`: every number of f has mean 0 and variance 1 over such fields. Converted to another
prediction the error is multiplied by what `docs/theory.md` lists: 1 / alpha for noise, 1 / sigma for data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.models import Model
from diffsolve.paths import Path
from diffsolve.paths import named as path_named
from diffsolve.reference.mixture import GaussianMixture

__all__ = ["imperfect_model"]

FEATURES = 128
LONGEST = 8.0  # beyond this |lambda| the field hardly changes with it


def imperfect_model(
    mixture: GaussianMixture,
    path: str | Path = "condot",
    predicts: str = "velocity",
    *,
    delta: float = 0.05,
    seed: int = 0,
) -> Model:
    """The network of `mixture_model` with an error of size `delta` on what it predicts.

    `delta` is the root mean square of the error, in units of the prediction; a score's is that of noise, over sigma.

    Args:
        delta: >= 0; 0 is the exact network.
        seed: of the field.

    Raises:
        ValueError: if path or predicts is unknown, or delta is negative.
    """
    from diffsolve.reference import mixture_model

    where, delta = path_named(path), number("delta", delta, low=0)
    exact = mixture_model(mixture, where, predicts)
    field = _Field(mixture, integer("seed", seed, 0))

    def net(x: Tensor, network_time: Tensor) -> Tensor:
        out = exact.net(x, network_time)
        t = network_time
        if predicts == "edm":
            t = where.time((-4 * network_time.double()).clamp(*where.lam([where.t_noise, where.t_data])))
        p = where.at(t)
        wide = (-1, *[1] * (x.dim() - 1))
        if (scale := exact.input_scale(p)) is not None:
            x = x / scale.to(x).view(wide)
        error = delta * field(x, p.alpha.to(x), p.sigma.to(x))
        return out + (error / p.sigma.to(x).view(wide) if predicts == "score" else error)

    return Model(net, where, predicts, exact.clock, exact.sigma_data, exact.dtype)


class _Field:
    """Random features of the state and the level, in float64 on the CPU, moved to where the state is."""

    def __init__(self, mixture: GaussianMixture, seed: int) -> None:
        g, D = torch.Generator().manual_seed(seed), mixture.dim

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        self.a, self.k, self.omega = normal(FEATURES, D), normal(D, FEATURES) / math.sqrt(D), normal(FEATURES) / 2
        self.phase = 2 * math.pi * torch.rand(FEATURES, generator=g, dtype=torch.float64)
        self.size = mixture.covariance.diagonal().add(mixture.mean.square()).mean().sqrt().item() or 1.0

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        rows, alpha, sigma = x.flatten(1), alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        unit = rows / torch.hypot(self.size * alpha, sigma)
        lam = LONGEST * torch.tanh(torch.log(alpha / sigma) / LONGEST)
        a, k, omega, phase = (part.to(x) for part in (self.a, self.k, self.omega, self.phase))
        return (math.sqrt(2 / FEATURES) * torch.cos(unit @ k + omega * lam + phase) @ a).view_as(x)
