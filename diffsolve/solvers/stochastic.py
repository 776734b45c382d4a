"""Stochastic solvers of one published form each.

The families are `Multistep` and `ExponentialRK` with tau; `renoise` adds noise between the steps of another solver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, integer, number
from diffsolve.paths import Position
from diffsolve.solvers.base import Solver
from diffsolve.solvers.sde import Tau, frame_of, reverse, tau_named
from diffsolve.tableau import DRIFT, Combination, Draft
from diffsolve.tableau.ends import TINY, first_order_frame, leaves_data

__all__ = ["DDIM", "DDPM", "Maruyama", "ReverseDiffusion"]


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
        number("eta", self.eta, low=0, high=1)

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        g = draft.grid
        if self.eta and not (np.diff(g.lam) > 0).all():
            raise ValueError(f"eta={self.eta!r}: only eta=0 runs from the data to the noise")
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            if leaves_data(s, t):
                frame = first_order_frame(s, t)
                ratio, gain = frame.step(s, t)
                draft.call(s, frame.name, y={"y": ratio, i: gain}, node=i + 1)
                continue
            noise = self.eta * t.sigma * np.sqrt(-np.expm1(2 * (s.lam - t.lam))) if self.eta else 0.0
            ratio = np.sqrt(t.sigma**2 - noise**2) / s.sigma
            draft.call(
                s, "denoised", y={"y": ratio, i: t.alpha - s.alpha * ratio, "z": noise}, node=i + 1,
                clock=_ancestral_clock(s, t) if noise else (0.0, 0.0),
            )  # fmt: skip


@dataclass(frozen=True)
class DDPM(Solver):
    r"""Ancestral sampling (Ho et al., 2006.11239, algorithm 2) on any path: the posterior of x_t given x_s and D.

        x_t = (a sigma_t^2 / sigma_s^2) x_s + (alpha_t q^2 / sigma_s^2) D + std z,
        a = alpha_s / alpha_t,   q^2 = sigma_s^2 - a^2 sigma_t^2,

    where q^2 is the variance that the path adds from t to s. `variance="small"` is the posterior's own, std = q
    sigma_t / sigma_s (beta-tilde): DDIM with eta = 1, which keeps the marginals. `variance="large"` is std = q (beta),
    right for data that is white noise; otherwise it leaves too much noise behind at few steps. No noise at the data.
    """

    variance: str = "small"

    def __post_init__(self) -> None:
        choice("variance", self.variance, ("small", "large"))

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        g = draft.grid
        if not (np.diff(g.lam) > 0).all():
            raise ValueError(f"{self}: ancestral sampling runs from the noise to the data only")
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            a = s.alpha / t.alpha
            q2 = s.sigma**2 - a**2 * t.sigma**2
            std = np.sqrt(q2) * (t.sigma / s.sigma if self.variance == "small" else t.sigma > 0)
            y: Combination = {"y": a * t.sigma**2 / s.sigma**2, i: t.alpha * q2 / s.sigma**2, "z": std}
            draft.call(s, "denoised", y=y, node=i + 1, clock=_ancestral_clock(s, t) if std else (0.0, 0.0))


@dataclass(frozen=True)
class Maruyama(Solver):
    r"""Euler-Maruyama, or with two stages stochastic Heun, on the path's own clock.

        dx = (alpha' D + sigma' eps - tau^2 sigma lambda' eps) dt + tau sigma sqrt(2 |lambda'|) dW

    The noise of a step has the mean of the variances 2 tau^2 sigma^2 lambda' dt at its two ends. With two stages the
    drift is the mean of those at the start and at the first stage's end, both with the same noise: of weak order 2, as
    the noise does not depend on x. Out of alpha = 0 and into sigma = 0, where the clock is singular, the step is the
    exact one of first order in lambda.

    For tests against textbooks; at few steps `Multistep` and `ExponentialRK` with tau are far better.
    """

    stages: int = 1
    tau: float | Tau = 1.0

    def __post_init__(self) -> None:
        integer("stages", self.stages, low=1, high=2)
        tau_named(self.tau)

    @property
    def order(self) -> int:
        return self.stages

    @property
    def calls(self) -> int:
        return self.stages

    def write(self, draft: Draft, call_last: bool) -> None:
        path, g, n, tau = draft.path, draft.grid, draft.steps, tau_named(self.tau)
        if not (np.diff(g.lam) > 0).all():
            raise ValueError(f"{self}: an SDE is run from the noise to the data only")
        exact = reverse(path, tau)
        with np.errstate(all="ignore"):
            speed = g.dalpha / g.alpha - g.dsigma / g.sigma
            square = tau.square(path, g)
            drift = np.stack([g.dalpha, g.dsigma - square * g.sigma * speed], -1)
            variance = 2 * square * g.sigma**2 * np.abs(speed)
        usable = np.isfinite(drift).all(-1) & np.isfinite(variance) & (g.sigma > TINY * g.alpha) & (g.alpha > 0)
        for i in range(n):
            s, t, base = g[i], g[i + 1], len(draft)
            clock = exact.clock(s, t)
            if not (usable[i] and usable[i + 1]):
                ratio, gain = exact.step(s, t)
                y: Combination = {"y": ratio, base: gain, "z": exact.noise(s, t)}
                draft.call(s, "denoised", y=y, node=i + 1, clock=clock)
                continue
            dt = t.t - s.t
            std = np.sqrt((variance[i] + variance[i + 1]) / 2 * abs(dt))
            two = self.stages == 2 and (i + 1 < n or call_last)
            start: Combination = {"y": 1.0, base: dt, "z": std}
            half: Combination = {"y": 1.0, base: dt / 2, "z": std}
            d = (float(drift[i, 0]), float(drift[i, 1]))
            draft.call(s, DRIFT, y=start, s=half if two else None, node=-1 if two else i + 1, d=d, clock=clock)
            if two:
                d = (float(drift[i + 1, 0]), float(drift[i + 1, 1]))
                draft.call(t, DRIFT, y={"s": 1.0, base + 1: dt / 2}, node=i + 1, d=d)


@dataclass(frozen=True)
class ReverseDiffusion(Solver):
    r"""The reverse-diffusion predictor of score_sde (Song et al., 2011.13456, eq. 46), on any path.

        x_t = (2 - a) x_s - (q^2 / sigma_s) eps + q z,   a = alpha_s / alpha_t,   q^2 = sigma_s^2 - a^2 sigma_t^2

    With a and q^2 as in `DDPM`: the forward step x_s = a x_t + q z turned round to first order. No noise at the data.
    Out of alpha = 0, where it is far from the truth, and into sigma = 0 the step is DDPM's.
    """

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        path, g = draft.path, draft.grid
        exact = frame_of("denoised", 1.0, path, g)
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            if s.alpha == 0 or t.sigma == 0:
                ratio, gain = exact.step(s, t)
                y: Combination = {"y": ratio, i: gain, "z": exact.noise(s, t)}
                draft.call(s, "denoised", y=y, node=i + 1, clock=exact.clock(s, t))
                continue
            a, dt = s.alpha / t.alpha, t.t - s.t
            q2 = s.sigma**2 - a**2 * t.sigma**2
            d = ((1 - a) * s.alpha / dt, ((1 - a) * s.sigma - q2 / s.sigma) / dt)
            y = {"y": 1.0, i: dt, "z": np.sqrt(q2)}
            draft.call(s, DRIFT, y=y, node=i + 1, d=d, clock=exact.clock(s, t))


def _ancestral_clock(s: Position[float], t: Position[float]) -> tuple[float, float]:
    """The Brownian clock of the reverse SDE, e^{2 lambda}."""
    return float((s.alpha / s.sigma) ** 2), float((t.alpha / t.sigma) ** 2)
