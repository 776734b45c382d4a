"""Anderson mixing along a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.parallel.rows import shifted

__all__ = ["Anderson", "Mixer"]


@dataclass(frozen=True)
class Anderson:
    r"""Anderson mixing of the points of a window, restricted to the triangle (ParaTAA, Tang et al., 2402.09970).

    With the points x evaluated in a sweep, its results g, and r = g - x, the next points are

    .. math:: x_l' = g_l - \sum_i \gamma_{l,i} \Delta_i g_l, \qquad
              \gamma_l = \Big(\sum_{j \le l} \Delta r_j^T \Delta r_j / v_j + \mu I\Big)^{-1}
                         \sum_{j \le l} \Delta r_j^T r_j / v_j,

    with Delta_i the differences of the last sweeps and v_j the variance that the tolerance is relative to. The sums for
    point l run over it and *earlier* points alone, so that unconverged points do not disturb a converged one. Only
    guesses are mixed: points that a window has passed come from the plain sweep, so that the iteration always ends.

    Args:
        memory: the number of differences kept.
        ridge: mu, relative to the mean of the diagonal.

    Raises:
        ValueError: if memory or ridge is out of range.
    """

    memory: int = 2
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        integer("memory", self.memory, 1)
        number("ridge", self.ridge, above=0)


class Mixer:
    """The memory of an Anderson iteration: earlier sweeps, at the points of the current window."""

    def __init__(self, options: Anderson) -> None:
        self.options = options
        self._last: tuple[Tensor, Tensor] | None = None  # r, g
        self._deltas: list[tuple[Tensor, Tensor]] = []  # of r and g, newest first

    def __call__(self, r: Tensor, g: Tensor, variance: Tensor) -> Tensor:
        """The next points, from the change r and the result g (L, B, n) of this sweep, and the variances (L, B)."""
        if self._last is not None:
            self._deltas.insert(0, (r - self._last[0], g - self._last[1]))
            del self._deltas[self.options.memory :]
        self._last = r, g
        if not self._deltas:
            return g
        dr = torch.stack([delta for delta, _ in self._deltas])  # (m, L, B, n)
        m = len(dr)

        def products(other: Tensor) -> Tensor:
            return ((dr * other).sum(-1, dtype=torch.float64) / variance).cumsum(1)

        gram = torch.stack([products(delta) for delta in dr], -1).movedim(0, -1)  # (L, B, m, m)
        scale = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        # A tiny number beside the ridge: where nothing changed, gamma is 0.
        ridge = (self.options.ridge * scale + torch.finfo(torch.float64).tiny)[..., None, None]
        gram = gram + ridge * torch.eye(m, dtype=torch.float64, device=r.device)
        gamma, _ = torch.linalg.solve_ex(gram, products(r).movedim(0, -1)[..., None])
        gamma = gamma.to(g.dtype)
        mixed = g.clone()
        for i, (_, dg) in enumerate(self._deltas):
            mixed.addcmul_(dg, gamma[..., i, :], value=-1)
        # The safeguard: where mixing is not finite, the plain sweep.
        return torch.where(mixed.isfinite().all(-1, keepdim=True), mixed, g)

    def slide(self, index: Tensor, samples: Tensor) -> None:
        """Move to the window whose slot l is the old slot index[l, b], and keep these samples."""

        def moved(slots: Tensor) -> Tensor:
            return shifted(slots, index)[:, samples]

        if self._last is not None:
            self._last = moved(self._last[0]), moved(self._last[1])
        self._deltas = [(moved(dr), moved(dg)) for dr, dg in self._deltas]
