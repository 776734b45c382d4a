"""Losses of a whole set of ends: how far their distribution is from another, for runs that draw noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffsolve.common.tensors import flat
from diffsolve.noise import Key

__all__ = ["Distribution", "Frechet", "SlicedWasserstein"]


@dataclass(frozen=True)
class Distribution(ABC):
    """A distance between the distributions of two sets of features, of any numbers of samples.

    Like all such estimates it is biased by an amount that falls with the number of samples: compare values of equally
    many.

    Args:
        features: from a batch (B, ...) to features (B, ...): any module or function; the samples themselves if None.
        reference: (m, ...), samples of the data, in the place of the teacher's ends.
    """

    features: nn.Module | Callable[[Tensor], Tensor] | None = None
    reference: Tensor | None = None

    def seen(self, x: Tensor) -> Tensor:
        """(B, F): what is compared, float64 where the device has it."""
        found = flat(x if self.features is None else self.features(x))
        return found if found.device.type == "mps" else found.double()

    def __call__(self, x: Tensor, ends: Tensor) -> Tensor:
        """The distance, a number; differentiable in x."""
        with torch.no_grad():
            wanted = self.seen(ends if self.reference is None else self.reference.to(ends))
        return self.between(self.seen(x), wanted)

    @abstractmethod
    def between(self, x: Tensor, y: Tensor) -> Tensor:
        """Of features (n, F) and (m, F)."""


@dataclass(frozen=True)
class Frechet(Distribution):
    r"""The squared Frechet distance of two Gaussians with their moments; with Inception's features that of FID.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

    With C_i = R_i^T R_i the trace of the last root is the sum of the singular values of R_1 R_2^T.
    """

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = _root(x), _root(y)
        common = torch.linalg.svdvals(a @ b.T).sum()
        apart = (x.mean(0) - y.mean(0)).square().sum()
        distance: Tensor = apart + a.square().sum() + b.square().sum() - 2 * common
        return distance


@dataclass(frozen=True)
class SlicedWasserstein(Distribution):
    """The squared sliced 2-Wasserstein distance (Bonneel et al., 2015): the mean over directions of that along each.

    Args:
        directions: how many, the same in every call.
    """

    directions: int = 128

    def between(self, x: Tensor, y: Tensor) -> Tensor:
        lines = Key(0).normal((self.directions, x.shape[1]), dtype=torch.float64).to(x)
        lines = (lines / lines.norm(dim=1, keepdim=True)).T
        a, b = (x @ lines).sort(0).values, (y @ lines).sort(0).values
        distance: Tensor = (a - _quantiles(b, len(a))).square().mean()
        return distance


def _root(x: Tensor) -> Tensor:
    """R (min(n, F), F) with R^T R the covariance of x (n, F)."""
    centred: Tensor = (x - x.mean(0)) / max(1, len(x) - 1) ** 0.5
    if len(x) <= x.shape[1]:
        return centred
    R: Tensor = torch.linalg.qr(centred).R
    return R


def _quantiles(ordered: Tensor, count: int) -> Tensor:
    """(count, ..): ordered values (m, ..) at the middles of so many equal parts."""
    if len(ordered) == count:
        return ordered
    place = ((torch.arange(count, device=ordered.device) + 0.5) * len(ordered) / count - 0.5).clamp(0, len(ordered) - 1)
    low = place.floor().long()
    share = (place - low).to(ordered)[:, None]
    return torch.lerp(ordered[low], ordered[(low + 1).clamp(max=len(ordered) - 1)], share)
