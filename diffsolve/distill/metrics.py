r"""How far a student's output is from its target: metrics of the residual R (B, ...), with a graph to the output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.common.tensors import per_sample

__all__ = ["Adaptive", "Huber", "Metric", "Normalised", "Squared"]


class Metric(ABC):
    """A metric; a frozen dataclass of options. |R|^2 is the mean over a sample's numbers."""

    @abstractmethod
    def __call__(self, residual: Tensor) -> Tensor:
        """(B,): 0 where the residual is 0."""


def squared(residual: Tensor) -> Tensor:
    """|R|^2 of each sample."""
    return residual.square().flatten(1).mean(1) if residual.dim() > 1 else residual.square()


@dataclass(frozen=True)
class Squared(Metric):
    """|R|^2."""

    def __call__(self, residual: Tensor) -> Tensor:
        return squared(residual)


@dataclass(frozen=True)
class Huber(Metric):
    """sqrt(|R|^2 + c^2) - c, the pseudo-Huber of iCT (2310.14189, eq. 8), there 0.00054 for the sum over a sample.

    That sum is D |R|^2, so that its c = 0.00054 sqrt(D) is this one's 0.00054, on |R| sqrt(D).
    """

    c: float = 0.00054

    def __post_init__(self) -> None:
        number("c", self.c, above=0)

    def __call__(self, residual: Tensor) -> Tensor:
        return (squared(residual) + self.c**2).sqrt() - self.c


@dataclass(frozen=True)
class Adaptive(Metric):
    """|R|^2 over sg(|R|^2 + c)^power: MeanFlow's weight (2505.13447, eq. 22); power = 0.5 is like a Huber loss."""

    power: float = 1.0
    c: float = 1e-3

    def __post_init__(self) -> None:
        number("power", self.power, low=0, high=1)
        number("c", self.c, above=0)

    def __call__(self, residual: Tensor) -> Tensor:
        square = squared(residual)
        return square / (square.detach() + self.c) ** self.power


@dataclass(frozen=True)
class Normalised(Metric):
    """|g|^2, g = R / (|R| + c), with the gradient 2 g to R: tangent normalisation (sCM, 2410.11081, section 4.1).

    There g takes the place of R in |o - sg(o) + g|^2, so that no sample pulls harder than another; |R| is a root mean
    square here.
    """

    c: float = 0.1

    def __post_init__(self) -> None:
        number("c", self.c, above=0)

    def __call__(self, residual: Tensor) -> Tensor:
        fixed = residual.detach()
        size = squared(fixed).sqrt() + self.c
        return squared(residual - fixed + fixed / per_sample(size, residual))
