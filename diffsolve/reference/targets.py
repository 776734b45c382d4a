r"""The networks of Gaussian mixtures: exact, or with a smooth bounded error on what they predict.

A trained network errs on **what it predicts**. With the exact prediction :math:`o`, the field here adds

.. math::
    \hat o = o + \delta f(x, \lambda), \qquad
    f(x, \lambda) = \sqrt{2 / F} \sum_{r=1}^{F} a_r \cos(k_r \cdot \bar x + \omega_r \bar\lambda + \phi_r)

with :math:`\bar x = x / \sqrt{(L \alpha)^2 + \sigma^2}` of about unit size (L the root mean square of the data),
:math:`\bar\lambda = 8 \tanh(\lambda / 8)`, and random :math:`a_r \sim N(0, I)`, :math:`k_r \sim N(0, I / D)`,
:math:`\omega_r \sim N(0, 1/4)`: every number of f has mean 0 and variance 1 over such fields. Converted to another
prediction the error is multiplied by what `docs/designed.md` lists: 1 / alpha for noise, 1 / sigma for data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.models import Model, adapt
from diffsolve.paths import Path
from diffsolve.paths import named as path_named
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.tableau.frames import PREDICTIONS

__all__ = ["imperfect_model", "mixture_model"]

FEATURES = 128
LONGEST = 8.0  # beyond this |lambda| the field hardly changes with it


def mixture_model(mixture: GaussianMixture, path: str | Path = "condot", predicts: str = "velocity") -> Model:
    """The exact network of a Gaussian mixture: its posterior means, combined into any prediction on any path.

    A raw EDM prediction ("edm") uses sigma_data = 0.5, whatever the mixture's standard deviation.
    """
    return _model(mixture, path, predicts, None)


def imperfect_model(
    mixture: GaussianMixture,
    path: str | Path = "condot",
    predicts: str = "velocity",
    *,
    delta: float = 0.05,
    seed: int = 0,
) -> Model:
    """The network of `mixture_model` with an error of size `delta` on what it predicts.

    Args:
        delta: the root mean square of the error, >= 0, in units of the prediction; of a score, times sigma.
        seed: of the field, an integer >= 0.

    Raises:
        ValueError: if path or predicts is unknown, or delta is negative.
    """
    field = _Field(mixture, number("delta", delta, low=0), integer("seed", seed, 0))
    return _model(mixture, path, predicts, field)


def _model(mixture: GaussianMixture, path: str | Path, predicts: str, field: _Field | None) -> Model:
    where, sigma_data = path_named(path), 0.5

    def net(x: Tensor, network_time: Tensor) -> Tensor:
        # A raw EDM network gets c_noise = log(rho) / 4 as its time, and x scaled by c_in.
        t = (
            network_time
            if predicts != "edm"
            else where.time((-4 * network_time.double()).clamp(*where.lam([where.t_noise, where.t_data])))
        )
        p = where.at(t)
        wide = (-1, *[1] * (x.dim() - 1))
        a, b = (weight.to(x).view(wide) for weight in PREDICTIONS[predicts](p, sigma_data))
        scale = model.input_scale(p)
        if scale is not None:
            x = x / scale.to(x).view(wide)
        alpha, sigma = p.alpha.to(x), p.sigma.to(x)
        data, noise = mixture.expectations(x, alpha, sigma)
        out: Tensor = a * data + b * noise
        if field is None:
            return out
        error = field(x, alpha, sigma)
        return out + (error / sigma.view(wide) if predicts == "score" else error)

    model = adapt(net, where, predicts, sigma_data=sigma_data)
    return model


class _Field:
    """delta f: random features of the state and the level, in float64 on the CPU, moved to where the state is."""

    def __init__(self, mixture: GaussianMixture, delta: float, seed: int) -> None:
        g, D = torch.Generator().manual_seed(seed), mixture.dim

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64)

        self.a, self.k, self.omega = (
            delta * normal(FEATURES, D),
            normal(D, FEATURES) / math.sqrt(D),
            normal(FEATURES) / 2,
        )
        self.phase = 2 * math.pi * torch.rand(FEATURES, generator=g, dtype=torch.float64)
        self.size = mixture.covariance.diagonal().add(mixture.mean.square()).mean().sqrt().item() or 1.0

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        rows, alpha, sigma = x.flatten(1), alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        unit = rows / torch.hypot(self.size * alpha, sigma)
        lam = LONGEST * torch.tanh(torch.log(alpha / sigma) / LONGEST)
        a, k, omega, phase = (part.to(x) for part in (self.a, self.k, self.omega, self.phase))
        return (math.sqrt(2 / FEATURES) * torch.cos(unit @ k + omega * lam + phase) @ a).view_as(x)
