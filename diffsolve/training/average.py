r"""Averages of the weights over a training, by `torch.optim.swa_utils.AveragedModel`.

A decay beta_t at update t = 1, 2, .. makes :math:`\hat\theta_t = \beta_t \hat\theta_{t-1} + (1 - \beta_t) \theta_t`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from diffsolve.common.checks import number

__all__ = ["Average", "Exponential", "Power", "averaged", "named"]


class Average(ABC):
    """How a moving average forgets; a frozen dataclass of options."""

    @abstractmethod
    def decay(self, t: int) -> float:
        """beta_t at the update t = 1, 2, .."""


@dataclass(frozen=True)
class Exponential(Average):
    """beta_t = min(beta, t / (t + 9)): constant, after a shorter memory at the start."""

    beta: float = 0.999

    def __post_init__(self) -> None:
        number("ema", self.beta, low=0, below=1)

    def decay(self, t: int) -> float:
        return min(self.beta, t / (t + 9))


@dataclass(frozen=True)
class Power(Average):
    r"""beta_t = (1 - 1/t)^{gamma + 1}: the weight of theta_t grows as t^gamma (Karras et al., 2312.02696, eq. 124-127).

    Args:
        length: sigma_rel, the standard deviation of the averaging profile, as a share of the training so far.
    """

    length: float = 0.05

    def __post_init__(self) -> None:
        number("length", self.length, above=0, below=12**-0.5)

    @property
    def gamma(self) -> float:
        """The positive root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
        return _gamma(self.length)

    def decay(self, t: int) -> float:
        return float((1 - 1 / t) ** (self.gamma + 1))


@cache
def _gamma(length: float) -> float:
    # (g + 2)^2 (g + 3) = (g + 1) / length^2
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def named(ema: float | Average) -> Average:
    """The average itself, or the exponential one of that decay."""
    return ema if isinstance(ema, Average) else Exponential(ema)


def averaged(net: nn.Module, average: Average) -> AveragedModel:
    """A copy of the network that each `update_parameters(net)` moves towards it; buffers are copied."""

    @torch.no_grad()
    def move(mean: Any, now: Any, count: Any) -> None:
        torch._foreach_lerp_(mean, now, 1 - average.decay(int(count) + 1))

    return AveragedModel(net, multi_avg_fn=move)
