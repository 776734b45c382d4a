"""Solvers made of another: stretches of a deterministic run with fresh noise between them.

Adding noise, x' = (alpha_h / alpha_l) x + alpha_h sqrt(rho_h^2 - rho_l^2) z, takes a sample of the marginal at the
level l to one of the noisier level h, so that whatever the inner solver keeps is kept. Each stretch begins anew: a
multistep method is of first order in a stretch of one step.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from diffsolve.common.checks import instance, integer, number, required
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver
from diffsolve.solvers.exponential import ExponentialRK, dpm2
from diffsolve.solvers.multistep import Multistep
from diffsolve.solvers.runge_kutta import HEUN, RungeKutta
from diffsolve.solvers.stochastic import DDIM
from diffsolve.tableau import Combination, Draft

__all__ = ["Ancestral", "Churn", "Renoised", "Repaint", "Restart", "splice"]

_HEUN = RungeKutta(HEUN, "noise")
"""EDM's own."""
_TWO_S = ExponentialRK(dpm2())
_DDPM = DDIM(1.0)


@dataclass(frozen=True)
class Stretch:
    """A run of the inner solver."""

    times: np.ndarray
    nodes: tuple[int, ...]
    """The node of the grid that each of the times is, or -1."""
    factor: float = 1.0
    """On the noise that leads to it."""


class Renoised(Solver):
    """Stretches of the inner solver's runs; where one begins noisier than the last one ended, noise is added."""

    inner: Solver

    def __post_init__(self) -> None:
        inner = instance("inner", self.inner, Solver, "a solver")
        stochastic = getattr(inner, "tau", 0) or getattr(inner, "eta", 0) or isinstance(inner, Renoised)
        required(not stochastic, "inner", inner, "a deterministic solver")

    @abstractmethod
    def stretches(self, path: Path, grid: Position[np.ndarray]) -> Iterator[Stretch]:
        """The stretches of a run, in order."""

    @property
    def order(self) -> int:
        """The weak order, where the stretches are single steps: a multistep method begins anew in each."""
        return 1 if isinstance(self.inner, Multistep) else self.inner.order

    @property
    def calls(self) -> int:
        return self.inner.calls

    def write(self, draft: Draft, call_last: bool) -> None:
        path, g = draft.path, draft.grid
        if not (np.diff(g.lam) > 0).all():
            raise ValueError(f"{self}: noise is added on the way from the noise to the data only")
        level, stretches = g[0], list(self.stretches(path, g))
        nodes = path.nodes(np.concatenate([stretch.times for stretch in stretches]))  # at once: a call costs 0.1 ms
        ends = np.cumsum([0] + [len(stretch.times) for stretch in stretches])
        for stretch, (begin, end) in zip(stretches, pairwise(ends), strict=True):
            piece = Draft(path, nodes[begin:end])
            _add_noise(draft, level, piece.grid[0], stretch.factor, stretch.nodes[0])
            self.inner.write(piece, call_last if stretch.nodes[-1] == draft.steps else True)
            splice(draft, piece, stretch.nodes)
            level = piece.grid[-1]
        _add_noise(draft, level, g[-1], 1.0, draft.steps)


@dataclass(frozen=True)
class Churn(Renoised):
    r"""EDM's stochastic sampler (Karras et al., 2206.00364, algorithm 2): noise is added before every step of `inner`.

        rho_hat = (1 + gamma) rho,  gamma = min(s_churn / N, sqrt(2) - 1) where s_min <= rho <= s_max, else 0

    in rho = sigma / alpha, hence on any path; no noise takes a run beyond the path's noise end. `s_noise` is a factor
    on the added noise: other than 1 it does not keep the marginals, and makes up for a network that removes too much.
    """

    inner: Solver = _HEUN
    s_churn: float = 40.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("s_churn", "s_min", "s_max", "s_noise"):
            required(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        required(self.s_min <= self.s_max, "s_min", self.s_min, f"at most s_max={self.s_max!r}")

    def stretches(self, path: Path, grid: Position[np.ndarray]) -> Iterator[Stretch]:
        steps = len(grid.t) - 1
        gamma = min(self.s_churn / steps, math.sqrt(2) - 1)
        start, rho = grid.t[:-1].copy(), np.exp(-grid.lam[:-1])
        churned = (self.s_min <= rho) & (rho <= self.s_max) & (grid.alpha[:-1] > 0) & (gamma > 0)
        start[churned] = _time(path, rho[churned] * (1 + gamma))
        for i, t in enumerate(start):
            yield Stretch(np.array([t, grid.t[i + 1]]), (i if t == grid.t[i] else -1, i + 1), self.s_noise)


@dataclass(frozen=True)
class Ancestral(Renoised):
    r"""Ancestral sampling with any inner solver (k-diffusion's `_ancestral`): each step overshoots, then adds noise.

        rho_up = eta rho_t sqrt(1 - rho_t^2 / rho_s^2),   rho_down = sqrt(rho_t^2 - rho_up^2)

    The inner solver goes from rho_s to rho_down, noise brings it to rho_t. With inner = "euler" that is DDIM(eta); with
    "dpm-2s" and "dpmpp-2s" k-diffusion's dpm_2_ancestral and dpmpp_2s_ancestral. eta is a ratio of standard deviations.
    """

    inner: Solver = _TWO_S
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("eta", self.eta, low=0, high=1)

    def stretches(self, path: Path, grid: Position[np.ndarray]) -> Iterator[Stretch]:
        lam, down = grid.lam, grid.t[1:].copy()
        noised = (grid.sigma[1:] > 0) & (self.eta > 0)
        up = self.eta**2 * -np.expm1(2 * (lam[:-1] - lam[1:])[noised])
        down[noised] = _time(path, np.exp(-lam[1:][noised]) * np.sqrt(1 - up))
        for i, t in enumerate(down):
            yield Stretch(np.array([grid.t[i], t]), (i, -1 if noised[i] else i + 1))


@dataclass(frozen=True)
class Restart(Renoised):
    r"""Restart sampling (Xu et al., 2306.14878, algorithm 1): go down, jump back up with fresh noise, again.

    Once the inner solver has reached the first node of the grid with rho <= `low`, noise takes the run up to the last
    node with rho >= `high`, and the grid is run down again from there; `times` times over.

    Args:
        inner: any deterministic solver.
        low, high: the interval in rho = sigma / alpha.
        times: how often it is repeated.
    """

    inner: Solver = _HEUN
    low: float = 0.1
    high: float = 1.0
    times: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        required(0 < self.low < self.high, "(low, high)", (self.low, self.high), "positive and rising")
        integer("times", self.times, low=0)

    def stretches(self, path: Path, grid: Position[np.ndarray]) -> Iterator[Stretch]:
        rho = np.exp(-grid.lam)
        below = np.flatnonzero((rho <= self.low) & (rho > 0))
        above = np.flatnonzero((rho >= self.high) & (grid.alpha > 0))
        if not len(below) or not len(above) or not self.times:
            yield Stretch(grid.t, tuple(range(len(grid.t))))
            return
        bottom, top = int(below[0]), int(above[-1])
        # Of a node that is passed several times, the last pass counts.
        yield Stretch(grid.t[: bottom + 1], (*range(top), *[-1] * (bottom + 1 - top)))
        for _ in range(self.times - 1):
            yield Stretch(grid.t[top : bottom + 1], (-1,) * (bottom + 1 - top))
        yield Stretch(grid.t[top:], (top or -1, *range(top + 1, len(grid.t))))  # the start itself comes once


@dataclass(frozen=True)
class Repaint(Renoised):
    r"""RePaint's resampling (Lugmayr et al., 2201.09865, section 4.2 and its `get_schedule_jump`): some steps down,
    as many back up with fresh noise, several times, before the run goes on.

    At every `jump`-th node before the data the run has been down `resamples` times: what is unknown of an image is
    made to fit what is known, which `ds.conditioning`'s "replacement" puts in its place at each call.

    Args:
        inner: any solver of one tensor of state; the paper's is DDPM's step.
        jump: steps down and up again, at least 1.
        resamples: how often a stretch is run; 1 is the inner solver alone.
    """

    inner: Solver = _DDPM
    jump: int = 1
    resamples: int = 5

    def __post_init__(self) -> None:
        inner = instance("inner", self.inner, Solver, "a solver")
        required(not isinstance(inner, Renoised), "inner", inner, "a solver that does not go back by itself")
        integer("jump", self.jump, 1)
        integer("resamples", self.resamples, 1)

    def stretches(self, path: Path, grid: Position[np.ndarray]) -> Iterator[Stretch]:
        steps = len(grid.t) - 1
        # Where noise can lead up to and the data is not yet reached: every jump-th node from the last but one.
        left = {at: self.resamples - 1 for at in range(steps - 1, self.jump - 1, -self.jump)}
        left = {at: times for at, times in left.items() if times and grid.alpha[at - self.jump] > 0}
        down, nodes = [[0]], 0
        while nodes < steps:
            nodes += 1
            down[-1].append(nodes)
            if left.get(nodes):
                left[nodes] -= 1
                nodes -= self.jump
                down.append([nodes])
        # Of a node that is passed several times, the last pass counts; the start itself comes once.
        last = {node: run for run, passed in enumerate(down) for node in passed}
        for run, passed in enumerate(down):
            yield Stretch(grid.t[passed], tuple(node if node and last[node] == run else -1 for node in passed))


def _add_noise(draft: Draft, low: Position[float], high: Position[float], factor: float, node: int) -> None:
    """From the level that the draft has reached to a noisier one: into its last row, or its entry."""
    if high.t == low.t:
        return
    ratio = float(high.alpha / low.alpha)
    noise = factor * math.sqrt(max(float(high.sigma**2 - (ratio * low.sigma) ** 2), 0.0))
    if not draft.rows:
        draft.entry = (ratio, noise)
        return
    last = draft.rows[-1]
    y = {key: ratio * weight for key, weight in last.y.items()}
    if "z" in y:  # two normals added up, of which no clock tells
        noise, last = math.hypot(y["z"], noise), replace(last, clock=(0.0, 0.0))
    y["z"] = noise
    draft.rows[-1] = replace(last, s=y, y=y, node=node)


def _time(path: Path, rho: np.ndarray) -> np.ndarray:
    """The clock at rho = sigma / alpha, 0 at the data, or the noise end where that is beyond it."""
    with np.errstate(divide="ignore"):
        lam = np.maximum(-np.log(rho), float(path.lam(path.t_noise)))
    times: np.ndarray = path.time(lam).numpy()
    return times


def splice(draft: Draft, piece: Draft, nodes: Sequence[int]) -> None:
    """Add the rows of a stretch to a draft, whose nodes those of the stretch are; -1 for none of them."""
    base = len(draft)
    for row in piece.rows:
        node = nodes[row.node] if row.node >= 0 else -1
        draft.rows.append(replace(row, s=_shifted(row.s, base), y=_shifted(row.y, base), node=node))


def _shifted(combination: Combination, base: int) -> Combination:
    return {key + base if isinstance(key, int) else key: weight for key, weight in combination.items()}
