"""A rule that looks at the size of the difference.

References:
    | MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance (Zhu et al., 2025), https://arxiv.org/abs/2508.03442
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.guidance.base import Rule, Scale, dot, scaled

__all__ = ["MagnitudeAware"]


@dataclass(frozen=True)
class MagnitudeAware(Rule):
    r"""MAMBO-G: less guidance where the outputs are far apart,

    .. math:: u + (1 + (w - 1) e^{-\alpha |c - u| / |u|}) (c - u)

    with the norms of each sample.

    Args:
        alpha: how fast it falls, >= 0; 0 is classifier-free guidance.
    """

    alpha: float = 8.0

    def __post_init__(self) -> None:
        number("alpha", self.alpha, low=0)

    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output."""
        apart, size = dot(c - u, c - u).sqrt(), dot(u, u).sqrt()
        ratio = torch.where(apart > 0, apart / size, 0.0)  # equal outputs, though both be zero
        gain = 1 + (scaled(scale, c) - 1) * torch.exp(-self.alpha * ratio).to(c.dtype)
        return u + gain * (c - u)
