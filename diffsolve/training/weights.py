r"""How much each noise level counts in a loss, as the weight w of the squared error of x_0.

Whatever a network predicts, a x_0 + b eps, an error e of its output is the error
:math:`\sigma e / (a \sigma - b \alpha)` of x_0: one weight means the same loss for every prediction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.common.registry import Registry
from diffsolve.paths import Position

__all__ = ["EDM", "SNR", "DataWeight", "MinSNR", "Plain", "Sigmoid", "Weight", "named", "register"]


class Weight(ABC):
    """A weight of the noise levels; a frozen dataclass of options."""

    @abstractmethod
    def of_output(self, p: Position[Tensor], a: Tensor, b: Tensor) -> Tensor:
        """At each position, the weight of the squared error of an output a x_0 + b eps."""


class DataWeight(Weight):
    """One that is of x_0's error, and so the same loss whatever is predicted."""

    @abstractmethod
    def of_data(self, p: Position[Tensor]) -> Tensor:
        """w at each position, of the squared error of x_0."""

    def of_output(self, p: Position[Tensor], a: Tensor, b: Tensor) -> Tensor:
        return self.of_data(p) * (p.sigma / (a * p.sigma - b * p.alpha)) ** 2


@dataclass(frozen=True)
class Plain(Weight):
    """1 for the network's own output: DDPM's simple loss, and that of flow matching and of raw EDM networks."""

    def of_output(self, p: Position[Tensor], a: Tensor, b: Tensor) -> Tensor:
        return torch.ones_like(p.sigma)


@dataclass(frozen=True)
class SNR(DataWeight):
    """(alpha / sigma)^2: an error of the noise counts alike everywhere."""

    def of_data(self, p: Position[Tensor]) -> Tensor:
        return (p.alpha / p.sigma) ** 2


@dataclass(frozen=True)
class MinSNR(DataWeight):
    """min((alpha / sigma)^2, gamma) (Hang et al., 2303.09556)."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        number("gamma", self.gamma, above=0)

    def of_data(self, p: Position[Tensor]) -> Tensor:
        return ((p.alpha / p.sigma) ** 2).clamp(max=self.gamma)


@dataclass(frozen=True)
class EDM(DataWeight):
    """(rho^2 + s^2) / (rho s)^2 with rho = sigma / alpha and s = sigma_data (Karras et al., 2206.00364, table 1)."""

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        number("sigma_data", self.sigma_data, above=0)

    def of_data(self, p: Position[Tensor]) -> Tensor:
        return (p.alpha / p.sigma) ** 2 + self.sigma_data**-2


@dataclass(frozen=True)
class Sigmoid(DataWeight):
    """sigmoid(bias - log SNR) of the noise's error, which is that times SNR of x_0's (Kingma and Gao, 2303.00848)."""

    bias: float = 0.0

    def __post_init__(self) -> None:
        number("bias", self.bias)

    def of_data(self, p: Position[Tensor]) -> Tensor:
        snr = (p.alpha / p.sigma) ** 2
        return torch.sigmoid(self.bias - snr.log()) * snr


registry: Registry[Weight] = Registry(
    "weight",
    Weight,
    {"none": Plain, "snr": SNR, "min-snr": MinSNR, "edm": EDM, "sigmoid": Sigmoid},
    group="diffsolve.training.weights",
)
register = registry.register


def named(weight: str | Weight) -> Weight:
    """The weight of that name."""
    return registry.resolve(weight)
