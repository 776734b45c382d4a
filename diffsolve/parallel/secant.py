"""Slopes of the derivative held fixed in a sweep, one number per call and sample."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.parallel.rows import shifted

__all__ = ["Slopes"]


class Slopes:
    """j of f(y) = f(x) + j (y - x): the least-squares secant <dx, df> / <dx, dx> of a call's last two inputs.

    A scalar in place of the network's Jacobian in Newton's method. Which frame's derivative is held fixed is a choice
    of such a scalar too, one made beforehand. At the fixed point y = x, and j drops out.
    """

    def __init__(self, f: Tensor) -> None:
        self.j = f.new_zeros(f.shape[:2])
        self.x = torch.zeros_like(f)
        self.seen = torch.zeros(f.shape[:2], dtype=torch.bool, device=f.device)

    def learn(self, part: slice, slot: Tensor, column: Tensor, x: Tensor, df: Tensor) -> None:
        """Update the slopes: these slots were called at x, and their f changed by df since the last call."""
        dx = x - self.x[part][slot, column]
        size = (dx * dx).sum(-1)
        j = (dx * df).sum(-1) / size
        # Between two inputs that differ by rounding there is no slope.
        apart = size > (64 * torch.finfo(x.dtype).eps) ** 2 * (x * x).sum(-1)
        good = self.seen[part][slot, column] & apart & j.isfinite()
        self.j[part][slot, column] = torch.where(good, j, 0.0)
        self.x[part][slot, column] = x
        self.seen[part][slot, column] = True

    def __call__(self, f: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """(f - j x, j): f(y) as a constant and a slope."""
        j = self.j[part]
        return torch.addcmul(f, j[..., None], self.x[part], value=-1), j

    def slide(self, index: Tensor, samples: Tensor) -> None:
        """Move to the window whose slot l is the old slot index[l, b], and keep these samples."""
        self.x = shifted(self.x, index)[:, samples]
        self.j, self.seen = (shifted(slots[..., None], index)[..., 0][:, samples] for slots in (self.j, self.seen))
