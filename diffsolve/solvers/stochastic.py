"""Solvers that draw noise at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffsolve.solvers.base import Solver
from diffsolve.tableau import Draft

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Solver):
    r"""DDIM (Song et al., 2010.02502, eq. 12 and 16) on any path.

        x_t = alpha_t D + sqrt(sigma_t^2 - s^2) eps + s z,    s = eta sigma_t sqrt(1 - e^{-2 h}),

    h the step in lambda. eta = 0 is the first-order exponential step (Euler in the frames denoised, noise and
    straight), eta = 1 is ancestral sampling with the posterior variance (DDPM). Here eta is a ratio of standard
    deviations, and at most 1: beyond that the variance sigma_t^2 would not be kept.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.eta, bool) or not isinstance(self.eta, int | float) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta!r}: a number from 0 to 1 is accepted")

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        g = draft.grid
        if self.eta and not (np.diff(g.lam) > 0).all():
            raise ValueError(f"eta={self.eta!r}: only eta=0 runs from the data to the noise")
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            if s.sigma == 0:  # out of the data, where D says nothing of the noise
                draft.call(
                    s,
                    "noise",
                    y={"y": t.alpha / s.alpha, i: t.sigma - s.sigma * t.alpha / s.alpha},
                    node=i + 1,
                )
                continue
            noise = self.eta * t.sigma * np.sqrt(-np.expm1(2 * (s.lam - t.lam))) if self.eta else 0.0
            ratio = np.sqrt(t.sigma**2 - noise**2) / s.sigma
            draft.call(s, "denoised", y={"y": ratio, i: t.alpha - s.alpha * ratio, "z": noise}, node=i + 1)
