r"""How an observation y = A x_0 + noise changes the denoised estimate D: E[x_0 | x_t, y] = D + change.

The score of the posterior is that of the network plus :math:`\nabla \log p(y | x_t)`, so by Tweedie's formula the exact
change is :math:`(\sigma^2 / \alpha) \nabla \log p(y | x_t)`. With p(y | x_t) taken to be Gaussian around A D with a
covariance V that does not vary with x_t, it is

.. math:: C A^T V^{-1} (y - A D), \qquad C = \mathrm{Cov}[x_0 | x_t]

where C is known from the network's derivative; see `Estimate`. The methods differ in V.

References:
    | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022),
      https://arxiv.org/abs/2209.14687
    | Pseudoinverse-Guided Diffusion Models for Inverse Problems (Song et al., 2023),
      https://openreview.net/forum?id=9_gsMA8MRKQ
    | Tweedie Moment Projected Diffusions for Inverse Problems (Boys et al., 2023), https://arxiv.org/abs/2310.06721
    | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024),
      https://arxiv.org/abs/2405.13712
    | Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model (Wang et al., 2022),
      https://arxiv.org/abs/2212.00490
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.common.tensors import column, per_sample
from diffsolve.conditioning.estimate import Estimate
from diffsolve.conditioning.linear import conjugate_gradients, solve_gram
from diffsolve.conditioning.operators import Operator
from diffsolve.guidance.base import dot
from diffsolve.paths import Position, named

__all__ = ["DPS", "MMPS", "TMPD", "Method", "PiGDM", "Replacement"]


class Method(ABC):
    """An approximation of the posterior's denoised estimate. Immutable."""

    derivative: ClassVar[bool] = True
    """Whether it needs the network's derivative: about twice the cost of a call, and one more for each product."""

    @abstractmethod
    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """What is added to the denoised estimate, (B, ...).

        Args:
            y: the observations, of the shape of A D.
            variance: of their noise.
        """


@dataclass(frozen=True)
class Replacement(Method):
    r"""The observed part of D is put in its place: :math:`D + A^+ (y - A D)`, :math:`A^+ = A^T (A A^T)^{-1}`.

    With a mask it is inpainting by replacement: the known pixels of the state are then alpha y + sigma z at every call,
    with the noise z of the run itself (Song et al., 2011.13456, appendix I.2, draw a z for each step). Of any operator
    it is the range-null-space decomposition of DDNM. The noise of y is not allowed for. What is unknown hears of
    what is known through the network alone, a step late: the solver "repaint" makes up for that.

    Args:
        iterations: of conjugate gradients for A A^T; a mask and blocks of pixels need none.
    """

    iterations: int = 10
    derivative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        integer("iterations", self.iterations, 1)

    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """A^+ (y - A D)."""
        apart, ones = y - operator(estimate.denoised), torch.ones_like(estimate.variance)
        u = solve_gram(operator, estimate.x, apart, ones, 0.0, self.iterations)
        return operator.transpose(u, estimate.x)


@dataclass(frozen=True)
class DPS(Method):
    r"""Diffusion posterior sampling (2209.14687, algorithm 1): a step down the slope of |y - A D| in each step.

    .. math:: x_{i-1} = x'_{i-1} - \zeta \nabla_{x_i} |y - A D(x_i)|

    is, on the paper's schedule of 1000 rows and with its sampler, what a change of D by
    :math:`\zeta (a / q^2) C A^T (y - A D) / |y - A D|` makes of every step, q^2 and a = alpha_s / alpha_t those of a
    step of `ds.solvers.DDPM`. The factor a / q^2 is taken at the same sigma / alpha on other paths, so that it is one
    method on all, and with fewer steps each does the work of several.

    It takes no account of how uncertain D is or of the noise of y: zeta is found by trial, and the posterior is not
    sampled exactly, even of Gaussian data.

    Args:
        zeta: the size of a step; the paper has 0.3 to 1 for images in [-1, 1].
        steps: of the run that zeta is meant for.
    """

    zeta: float = 1.0
    steps: int = 1000

    def __post_init__(self) -> None:
        number("zeta", self.zeta, low=0)
        integer("steps", self.steps, 1)

    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """zeta (a / q^2) C A^T (y - A D) / |y - A D|."""
        apart = y - operator(estimate.denoised)
        size = dot(apart, apart).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
        slope = estimate.covariance(operator.transpose((apart / size).to(apart.dtype), estimate.x))
        return column(self.zeta * self._rate(estimate.at), slope) * slope

    def _rate(self, at: Position[Tensor]) -> Tensor:
        """a / q^2 of a step of the paper's run from the same level."""
        table = named("ddpm")
        s = table.at(table.time(at.lam.clamp(min=float(table.lam(table.t_noise)))))
        t = table.at((s.t - (table.t_noise - table.t_data) / self.steps).clamp(min=table.t_data))
        a = s.alpha / t.alpha
        added = s.sigma**2 - (a * t.sigma) ** 2
        return torch.where(added > 0, a / torch.where(added > 0, added, 1.0), 0.0)


@dataclass(frozen=True)
class PiGDM(Method):
    r"""Pseudoinverse guidance: V = r^2 A A^T + variance I, with r^2 the variance that x_0 would have given x_t if the
    data were N(0, sigma_data^2 I): :math:`r^2 = \sigma^2 s^2 / (\sigma^2 + \alpha^2 s^2)`. Exact for such data.

    Args:
        iterations: of conjugate gradients for V; a mask and blocks of pixels need none.
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        integer("iterations", self.iterations, 1)

    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """C A^T V^-1 (y - A D)."""
        apart = y - operator(estimate.denoised)
        u = solve_gram(operator, estimate.x, apart, estimate.variance, variance, self.iterations)
        return estimate.covariance(operator.transpose(u, estimate.x))


@dataclass(frozen=True)
class TMPD(Method):
    r"""Tweedie moment projection: V is the diagonal whose entries are the sums of the rows of A C A^T, plus the noise's
    variance (2310.06721, eq. 16). Exact for Gaussian data where A C A^T is diagonal; one product with C."""

    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """C A^T V^-1 (y - A D)."""
        apart, x = y - operator(estimate.denoised), estimate.x
        sums = operator(estimate.covariance(operator.transpose(torch.ones_like(apart), x)))
        V = sums.clamp(min=0) + variance  # a variance, which a network that errs may miss by its sign
        u = torch.where(V > 0, apart / torch.where(V > 0, V, 1.0), 0.0)
        return _contracted(estimate.covariance(operator.transpose(u, x)), operator, apart)


@dataclass(frozen=True)
class MMPS(Method):
    r"""Moment matching: V = A C A^T + variance I itself (2405.13712, eq. 16), by conjugate gradients. Exact for
    Gaussian data and any A.

    Args:
        iterations: of conjugate gradients, a product with C each; the paper has 1 to 5.
    """

    iterations: int = 3

    def __post_init__(self) -> None:
        integer("iterations", self.iterations, 1)

    def change(self, estimate: Estimate, operator: Operator, y: Tensor, variance: float) -> Tensor:
        """C A^T V^-1 (y - A D)."""
        x = estimate.x

        def V(v: Tensor) -> Tensor:
            return operator(estimate.covariance(operator.transpose(v, x))) + variance * v

        apart = y - operator(estimate.denoised)
        u = conjugate_gradients(V, apart, self.iterations, variance)
        return _contracted(estimate.covariance(operator.transpose(u, x)), operator, apart)


def _contracted(change: Tensor, operator: Operator, apart: Tensor) -> Tensor:
    """The change, shortened where it moves A D by more than A D is apart from y.

    K (K + variance I)^-1 with K = A C A^T positive never does; the derivative of a trained network is not quite.
    """
    moved = operator(change)
    size, most = dot(moved, moved).sqrt(), dot(apart, apart).sqrt()
    share = torch.where(size > most, most / torch.where(size > most, size, 1.0), 1.0)
    return change * per_sample(share.flatten(), change).to(change.dtype)
