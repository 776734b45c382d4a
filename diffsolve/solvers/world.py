r"""A world to design solvers in: many small problems whose network errs, all solved on paper, without a network.

A trained network's posterior mean behaves along a path as a sum of few things: directions of small and of large
variance that are decided at different noise levels, choices between modes, and an error on what it predicts. So the
world is a set of problems in one dimension, the equal mixtures of :math:`N(\pm m, s^2)` over several m and s, whose
network gives the exact prediction plus an error field of its own: with straight levels :math:`\alpha = 1 - u`,
:math:`\sigma = u` (every path is this one but for a factor of the state), :math:`q = \alpha^2 s^2 + \sigma^2`,
:math:`\tau = \tanh(\alpha m y / q)`

.. math::
    D = (\alpha s^2 y + \sigma^2 m \tau) / q, \qquad \varepsilon = \sigma (y - \alpha m \tau) / q, \qquad
    V = \varepsilon - D + \frac{\alpha + \sigma}{\alpha b - \sigma a} \, \delta f(y, \lambda),

where the network predicts :math:`a x_0 + b \varepsilon`: converted to the straight velocity V its error is multiplied
by 1 / alpha for noise and by 1 / sigma for the denoised, which is why the prediction decides which solver is good.
"""

from __future__ import annotations

import math

import numpy as np

from diffsolve.common.caching import remembered
from diffsolve.paths import Path
from diffsolve.tableau.theory import FAR, output_unit

__all__ = ["World", "world"]

FINE = 240
"""Steps of the world's own solution."""

FEATURES = 24
DRAWS, PARTICLES = 6, 6


class World:
    """Problems, particles and error fields for a path and a prediction, with the trajectories of the particles.

    Args:
        path: fixes where the run begins, where the last call is, and what "velocity" means.
        predicts: what the network predicts, and so what it errs on.
        delta: the root mean square of the error, in units of the prediction (of the noise for a score).
        spread: the standard deviations s.
        modes: the distances m; those with s > 0.6 m are left out, but for m = 0.
        guidance: the scale w of guidance towards the mode that a particle wants: w - 1 of the way to it, and beyond.
    """

    def __init__(
        self,
        path: Path,
        predicts: str,
        delta: float,
        spread: tuple[float, ...],
        modes: tuple[float, ...],
        guidance: float = 1.0,
    ) -> None:
        from scipy.special import ndtri

        self.predicts, self.guidance = predicts, guidance
        random = np.random.RandomState(0)  # the generator whose stream NumPy promises not to change
        kinds = [(s, m) for m in modes for s in spread if m == 0 or s <= 0.6 * m] * DRAWS
        self.s, self.m = (np.array(column)[:, None] for column in zip(*kinds, strict=True))
        self.size = np.hypot(self.s, self.m)
        problems = len(kinds)
        self.k, self.omega = random.randn(problems, 1, FEATURES), random.randn(problems, 1, FEATURES) / 2
        self.phase = 2 * math.pi * random.rand(problems, 1, FEATURES)
        self.a = delta * math.sqrt(2 / FEATURES) * random.randn(problems, 1, FEATURES)
        # One particle in each sixth of the prior, so that few do for all of it.
        share = (np.arange(PARTICLES) + random.rand(problems, PARTICLES)) / PARTICLES
        self.z = ndtri(share)
        self.sign = np.where(random.rand(problems, PARTICLES) < 0.5, -1.0, 1.0)
        self.weight = self.size**-0.25
        """Of an error in each problem: between absolute and relative."""
        self._solve(path)

    def velocity(self, y: np.ndarray, u: float) -> np.ndarray:
        """The network's output, as the straight velocity V, at the states y and the level u."""
        alpha, sigma, s, m = 1 - u, u, self.s, self.m
        q = (alpha * s) ** 2 + sigma**2
        pull = m * np.tanh(alpha * m * y / q)
        if self.guidance != 1:
            pull = pull + (self.guidance - 1) * (m * self.sign - pull)
        exact = (sigma * (y - alpha * pull) - alpha * s * s * y - sigma * sigma * pull) / q
        lam = min(max(_lam(u), -30.0), 30.0)
        angle = (
            self.k * (y / np.hypot(alpha * self.size, sigma))[..., None]
            + self.omega * 8 * math.tanh(lam / 8)
            + self.phase
        )
        error = (self.a * np.cos(angle)).sum(-1)
        return np.asarray(exact + float(np.interp(lam, self.lam, self.factors)) * error)

    def at(self, u: float) -> np.ndarray:
        """The particles of the erring network's own flow at the level u, shape (problems, particles)."""
        lam = _lam(u)
        if lam < self.low:
            return np.asarray(self.first + (u - self.u_first) * self.v_first)
        if lam > self.high:
            return np.asarray(self.last + (u - self.u_last) * self.v_last)
        return np.asarray(self.spline(lam))

    def _solve(self, path: Path) -> None:
        """Adams-Bashforth of order 4 in lambda, begun by Runge-Kutta steps; an interpolation in between."""
        from scipy.interpolate import CubicSpline

        self.low = max(float(path.lam(path.t_noise)), -FAR)
        self.high = min(float(path.lam(path.t_last)), FAR)
        self.lam = lam = np.linspace(self.low, self.high, FINE + 1)
        p = path.nodes(path.time(lam))
        self.factors = (p.alpha + p.sigma) * abs(output_unit(self.predicts, p))
        h = lam[1] - lam[0]

        def slope(y: np.ndarray, at: float) -> np.ndarray:
            u = _u(at)
            return -u * (1 - u) * self.velocity(y, u)

        u = _u(self.low)
        y = self.z * np.hypot((1 - u) * self.size, u)
        states, slopes = [y], []
        for i in range(FINE):
            slopes.append(slope(y, lam[i]))
            if i < 3:
                k2 = slope(y + h / 2 * slopes[-1], lam[i] + h / 2)
                k3 = slope(y + h / 2 * k2, lam[i] + h / 2)
                y = y + h / 6 * (slopes[-1] + 2 * k2 + 2 * k3 + slope(y + h * k3, lam[i + 1]))
            else:
                y = y + h / 24 * (55 * slopes[-1] - 59 * slopes[-2] + 37 * slopes[-3] - 9 * slopes[-4])
            states.append(y)
        self.spline = CubicSpline(lam, np.array(states))
        self.first, self.last = states[0], states[-1]
        self.u_first, self.u_last = _u(self.low), _u(self.high)
        self.v_first, self.v_last = self.velocity(self.first, self.u_first), self.velocity(self.last, self.u_last)


@remembered(maxsize=16)
def world(
    path: Path,
    predicts: str,
    delta: float,
    spread: tuple[float, ...],
    modes: tuple[float, ...],
    guidance: float,
) -> World:
    """The world of that path and prediction: made once, in some 100 ms."""
    return World(path, predicts, delta, spread, modes, guidance)


def _lam(u: float) -> float:
    if u <= 0 or u >= 1:
        return math.inf if u <= 0 else -math.inf
    return math.log1p(-u) - math.log(u)


def _u(lam: float) -> float:
    return 1 / (1 + math.exp(lam))
