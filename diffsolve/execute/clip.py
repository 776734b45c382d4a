"""Clipping the denoised estimate of each call: static and dynamic thresholds, as a hook."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import number, required
from diffsolve.execute.results import Step

__all__ = ["Clip"]


def quantile(rows: Tensor, share: float) -> Tensor:
    """(B,): the quantile of each of (B, n), between two numbers linearly; of any size and dtype, no rows included.

    `torch.quantile` has these numbers, but takes neither half precision, nor 2^24 numbers, nor no rows.
    """
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not rows.numel():
        return rows.new_zeros(len(rows))
    place = share * (rows.shape[1] - 1)
    below, above = (rows.kthvalue(rank + 1, dim=1).values for rank in (math.floor(place), math.ceil(place)))
    return torch.lerp(below, above, place - math.floor(place))


@dataclass(frozen=True)
class Clip:
    """A hook that clips the denoised estimate of each call, after guidance: `ds.sample(.., hook=ds.Clip())`.

        D -> clamp(D, -bound, bound)                            static: `clip_denoised=True` of guided-diffusion
        D -> bound clamp(D, -s, s) / s,  s = clamp(q, bound, most)      dynamic (Imagen, 2205.11487, section 2.3)

    with q the `quantile` of |D| over each sample. The solver goes on from the clipped estimate: the noise of a DDIM
    step is made anew from it. Runs that take no hook refuse it by name.

    Args:
        bound: the largest magnitude in the data: 1 for images in [-1, 1].
        quantile: the share of a sample's numbers that is left as it is, such as 0.995; None for the static threshold.
        most: the largest s.

    Raises:
        ValueError: if bound is not > 0, quantile not between 0 and 1, or most below bound.
    """

    bound: float = 1.0
    quantile: float | None = None
    most: float = math.inf

    def __post_init__(self) -> None:
        number("bound", self.bound, above=0)
        if self.quantile is not None:
            number("quantile", self.quantile, low=0, high=1)
        fits = isinstance(self.most, int | float) and self.most >= self.bound
        required(fits, "most", self.most, f"a number >= bound={self.bound!r}")

    def __call__(self, step: Step) -> Tensor:
        """The clipped estimate of a step."""
        assert step.denoised is not None  # for a hook it is determined at every call
        return self.clipped(step.denoised)

    def clipped(self, x: Tensor) -> Tensor:
        """x, of shape (B, ...), within the threshold."""
        if self.quantile is None:
            return x.clamp(-self.bound, self.bound)
        size = quantile(x.abs().reshape(len(x), x[:1].numel()), self.quantile).clamp(self.bound, self.most)
        size = size.view(-1, *[1] * (x.dim() - 1)).to(x.dtype)
        return torch.minimum(torch.maximum(x, -size), size) / size * self.bound
