"""A rule that combines two outputs of a network, and the products of samples that rules are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from diffsolve.common.tensors import flat, per_sample

__all__ = ["Rule", "Scale", "dot", "scaled"]

Scale = float | Tensor
"""The scale of guidance: a number, or one per sample (B,)."""


class Rule(ABC):
    """Combines the outputs c with and u without the condition (or of a weaker network) to one. Immutable.

    What it combines is the network's own output, whatever that predicts: nonlinear rules depend on it.
    """

    momentum: float = 0.0
    """beta: the difference that the rule is given is that of this call, plus beta times that of the call before."""

    forced: int = 0
    """So many calls from the first are combined whatever the scale."""

    @property
    def by_call(self) -> bool:
        """Whether the number of the call counts, so that samples must be in step."""
        return self.forced > 0

    @abstractmethod
    def __call__(self, c: Tensor, u: Tensor, difference: Tensor, scale: Scale, call: int) -> Tensor:
        """The guided output, of the shape (B, ...) of c.

        Args:
            difference: c - u, gathered with the momentum.
            scale: in the convention in which 1 is c.
            call: the number of the network call, from 0.
        """


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b of each sample, float64, as (B, 1, ..)."""
    return per_sample((flat(a).double() * flat(b).double()).sum(1), a)


def scaled(scale: Scale, like: Tensor) -> Scale:
    """The scale, shaped to multiply tensors (B, ...) such as `like`."""
    return per_sample(scale.to(like), like) if isinstance(scale, Tensor) else scale
