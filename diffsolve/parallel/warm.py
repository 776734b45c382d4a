"""Guesses of the derivatives at points that enter a window."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffsolve.execute import bind
from diffsolve.parallel.base import Calls
from diffsolve.parallel.coarse import one_by_one
from diffsolve.parallel.rows import Rows
from diffsolve.tableau import Tableau

__all__ = ["InitialGuess"]


class InitialGuess:
    """The derivative of the frame ahead of the window: a base curve, plus the last call's deviation from it.

    The base is 0 without a coarse run, so that the last derivative is carried on. With one it is linear in the angle
    atan(sigma / alpha) between its calls.
    """

    def __init__(self, warm: str | Tableau, rows: Rows, calls: Calls, y: Tensor) -> None:
        self.made = self.depth = 0
        self._y, self._rows = y, rows
        self._curve: Tensor | None = None
        if isinstance(warm, Tableau):
            bind(warm, calls.model)  # to check that it is a tableau of this path
            coarse = calls.of(warm, y)
            everyone = torch.arange(len(y), device=y.device)
            self._curve, _ = one_by_one(Rows(warm, calls.model, rows.frame, y), coarse, everyone, y)
            self.made, self.depth = coarse.made, coarse.depth
            angle, knots = (np.arctan2(t.calls[:, 2], t.calls[:, 1]) for t in (rows.tableau, warm))
            order = np.argsort(knots, kind="stable")
            place = np.interp(np.append(angle, angle[-1]), knots[order], order.astype(np.float64))
            left = np.clip(np.floor(place).astype(np.int64), 0, max(0, warm.nfe - 2))
            self._left = torch.from_numpy(left).to(y.device)
            self._part = torch.from_numpy(place - left).to(y)

    def first(self, row: Tensor) -> Tensor:
        """f before any call, at rows (L, B): the coarse run's, or that of unit normal data."""
        if self._curve is not None:
            return self._base(row, torch.arange(row.shape[1], device=row.device))
        return self._rows.guess(self._y)[row][..., None] * self._y

    def next(self, row: Tensor, last: Tensor, f: Tensor, who: Tensor) -> Tensor:
        """f at rows (L, B) that no call has been made for; at the rows `last` (B,) it was f (B, n)."""
        if self._curve is None:
            return f.expand(len(row), -1, -1)
        return self._base(row, who) + (f - self._base(last[None], who)[0])

    def _base(self, row: Tensor, who: Tensor) -> Tensor:
        assert self._curve is not None
        left, part = self._left[row], self._part[row][..., None]
        right = (left + 1).clamp(max=len(self._curve) - 1)
        return torch.lerp(self._curve[left, who], self._curve[right, who], part)
