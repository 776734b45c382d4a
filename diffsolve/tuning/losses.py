"""What learning makes small: how far the ends of a run are from those of an accurate one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diffsolve.common.checks import number, required
from diffsolve.common.tensors import flat

__all__ = ["Distance", "Loss", "relative", "scaled"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""(x, ends) -> a number, or one per sample."""


@dataclass(frozen=True)
class Distance:
    """|f(x) - f(end)| of each sample, over the root mean square of |f(end)|; x itself if there is no f.

    Not squared: the few samples that end in another mode would then have all the weight. As the length of a residual,
    which least squares can be taken of.

    Args:
        features: f, from a batch (B, ...) to features (B, ...): any module or function, such as a classifier's or
            LPIPS's layers.
        nodes: w, how much the way counts: with z_k - Z_k what the run is off at its k-th time (in the straight frame,
            x / (alpha + sigma)) from the teacher's run there, |end|^2 + w^2 mean_k |z_k - Z_k|^2 is what least squares
            make small, its root for a length. Which iterate is best, and what is reported, is of the ends alone.
        size: what lengths are divided by; it is set from the teacher's ends.
    """

    features: nn.Module | Callable[[Tensor], Tensor] | None = None
    nodes: float = 0.0
    size: float = 1.0

    def __post_init__(self) -> None:
        number("nodes", self.nodes, low=0)
        required(not self.nodes or self.features is None, "nodes", self.nodes, "0 with features")

    def seen(self, x: Tensor) -> Tensor:
        """(B, M): what is compared."""
        return flat(x if self.features is None else self.features(x))

    def residual(self, x: Tensor, ends: Tensor) -> Tensor:
        """(B, M): the difference whose length is the loss."""
        with torch.no_grad():
            wanted = self.seen(ends)
        return (self.seen(x) - wanted) / self.size

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        far: Tensor = self.residual(x, ends).norm(dim=1)
        return far


def relative(ends: Tensor) -> Distance:
    """The loss |x - end| of each sample over the root mean square of |end|."""
    return Distance(size=_size(ends))


def scaled(loss: Loss | None, ends: Tensor) -> Loss:
    """The loss, a distance in units of what it sees of the teacher's ends."""
    if loss is None:
        return relative(ends)
    if isinstance(loss, Distance):
        with torch.no_grad():
            return replace(loss, size=_size(torch.cat([loss.seen(part) for part in torch.split(ends, 64)])))
    return loss


def _size(x: Tensor) -> float:
    return float(x.square().sum() / len(x)) ** 0.5 or 1.0
