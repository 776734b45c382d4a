"""Runs that blur their derivatives, or sharpen them: a small operator in space, outside the span of the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.tensors import neighbours, per_sample
from diffsolve.tableau import Tableau

__all__ = ["Blur", "blurred"]


def blurred(d: Tensor, share: float | Tensor) -> Tensor:
    """d + share (m - d) of d (B, C, ...), m the mean of the neighbours; `share` is one number or broadcasts.

    Raises:
        ValueError: if d has no axes after the first two.
    """
    return d + _rough(d * share)


def _rough(x: Tensor) -> Tensor:
    """m - x, which is 0 for what is constant in space."""
    wanted = "(B, C, ...), with axes of space to blur along, for a tableau that blurs"
    required(x.dim() > 2, "the shape of the state", tuple(x.shape), wanted)
    return neighbours(x) - x


@dataclass(frozen=True)
class Blur:
    """What `Tableau.blurs` makes of the outputs of a run.

    With d = p y + q out, d + k (m(d) - d) is the d of out + (m - 1)(k out + (k p / q) y), since m is linear.
    """

    on: np.ndarray
    """(N, 2): k and k p / q."""

    @classmethod
    def of(cls, tableau: Tableau, p: np.ndarray, q: np.ndarray) -> Blur | None:
        """For outputs with d = p y + q out, (N,) each; None where nothing is blurred.

        Raises:
            ValueError: if a d that is to be blurred does not depend on the output.
        """
        k = tableau.blurs
        if not k.any():
            return None
        told = bool(((q != 0) | (k == 0)).all())
        required(told, "solver", tableau.solver, "one that blurs only what depends on the network's output")
        return cls(np.stack([k, np.where(k != 0, k * p / np.where(q != 0, q, 1.0), 0.0)], -1))

    def __call__(self, i: int, y: Tensor, out: Tensor) -> Tensor:
        """The output of call i at y (B, C, ...), in the dtype of y."""
        on_out, on_y = self.on[i].tolist()
        return self._of(on_out, on_y, y, out) if on_out else out

    def at_calls(self, rows: Tensor, y: Tensor, out: Tensor) -> Tensor:
        """The outputs at y (M, C, ...) of the calls `rows` (M,)."""
        on = torch.from_numpy(self.on).to(y.device, y.dtype)[rows]
        on_out, on_y = (per_sample(part, y) for part in on.unbind(1))
        return self._of(on_out, on_y, y, out)

    @staticmethod
    def _of(on_out: float | Tensor, on_y: float | Tensor, y: Tensor, out: Tensor) -> Tensor:
        wide = out.to(y.dtype)
        # Where d is the output itself, y stays out of it: it may be as large as the noise.
        mixed = wide * on_out if isinstance(on_y, float) and on_y == 0 else wide * on_out + y * on_y
        return wide + _rough(mixed)
