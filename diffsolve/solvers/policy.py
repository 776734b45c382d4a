r"""The stochastic steps by which flow networks are trained with rewards, each as its code has it.

A run is then a chain of Gaussian transitions, whose log-probabilities `ds.transition_log_prob` gives. In the straight
frame z = x / (alpha + sigma), u = sigma / (alpha + sigma), which on the path of rectified flow is x and t themselves,

    z = (1 - u) x_0 + u eps,    v = eps - x_0,

and the steps go from u to u' < u, on any path. (`ds.solvers.DDIM(eta=1)` is the step of DDPO, 2305.13301.)
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import number
from diffsolve.solvers.base import Solver
from diffsolve.tableau import Draft

__all__ = ["CPS", "DanceSDE", "FlowSDE"]


class _StraightSDE(Solver):
    r"""Euler-Maruyama in z, with the diffusion g of the step's start:

    z' = z + (v + g^2 / (2 u) eps) (u' - u) + g sqrt(u - u') n,    n standard normal
    """

    @property
    def order(self) -> int:
        return 1

    @abstractmethod
    def g(self, u: np.ndarray) -> np.ndarray:
        """The diffusion at the start of each step, given all nodes u, from the noise to the data."""

    def write(self, draft: Draft, call_last: bool) -> None:
        grid = draft.grid
        if not (np.diff(grid.lam) > 0).all():
            raise ValueError(f"{self}: noise is added on the way from the noise to the data only")
        c = grid.alpha + grid.sigma
        u = grid.sigma / c
        g = self.g(u)
        for i in range(draft.steps):
            s, down = grid[i], u[i + 1] - u[i]
            noise = 1 + g[i] ** 2 / (2 * u[i])
            # z + down (noise eps - x_0), with eps = (x - alpha x_0) / sigma of the state: weights on x and on x_0.
            on_x = 1 / c[i] + down * noise / s.sigma
            on_data = -down * (1 + noise * s.alpha / s.sigma)
            std = c[i + 1] * g[i] * math.sqrt(-down)
            draft.call(s, "denoised", y={"y": c[i + 1] * on_x, i: c[i + 1] * on_data, "z": std}, node=i + 1)


@dataclass(frozen=True)
class FlowSDE(_StraightSDE):
    r"""The SDE of Flow-GRPO (Liu et al., 2505.05470, eq. 9): g = noise_level sqrt(u / (1 - u)).

    At u = 1, where that is infinite, 1 - u is that of the next node, as in its code. The last step adds noise too: the
    result is not quite clean at few steps.
    """

    noise_level: float = 0.7

    def __post_init__(self) -> None:
        number("noise_level", self.noise_level, above=0)

    def g(self, u: np.ndarray) -> np.ndarray:
        """noise_level sqrt(u / (1 - u))."""
        start = u[:-1]
        rest = np.where(start == 1, 1 - u[1], 1 - start)
        return np.asarray(self.noise_level * np.sqrt(start / rest))


@dataclass(frozen=True)
class DanceSDE(_StraightSDE):
    """The SDE of DanceGRPO (Xue et al., 2505.07818): g = eta, at the last step too."""

    eta: float = 0.3

    def __post_init__(self) -> None:
        number("eta", self.eta, above=0)

    def g(self, u: np.ndarray) -> np.ndarray:
        """eta."""
        return np.full(len(u) - 1, float(self.eta))


@dataclass(frozen=True)
class CPS(Solver):
    r"""Coefficients-preserving sampling (Wang and Yu, 2509.05952; `sde_type="cps"` of Flow-GRPO): DDIM's step with

        x_t = alpha_t D + sqrt(sigma_t^2 - s^2) eps + s z,    s = sigma_t sin(noise_level pi / 2)

    so that the coefficients of data and noise are those of the path. The share of new noise does not shrink with the
    step: more steps are more noise, and no SDE is their limit. No noise at the data.
    """

    noise_level: float = 0.7

    def __post_init__(self) -> None:
        number("noise_level", self.noise_level, low=0, high=1)

    @property
    def order(self) -> int:
        """None: the more steps, the more of the data's own variance is left out."""
        return 0

    def write(self, draft: Draft, call_last: bool) -> None:
        g = draft.grid
        if not (np.diff(g.lam) > 0).all():
            raise ValueError(f"{self}: noise is added on the way from the noise to the data only")
        share = math.sin(self.noise_level * math.pi / 2)
        for i in range(draft.steps):
            s, t = g[i], g[i + 1]
            ratio = t.sigma * math.sqrt(1 - share**2) / s.sigma
            y: dict[str | int, float] = {"y": ratio, i: t.alpha - s.alpha * ratio}
            draft.call(s, "denoised", y={**y, "z": share * t.sigma} if t.sigma else y, node=i + 1)
