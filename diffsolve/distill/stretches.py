r"""Which stretches a student learns: laws of (t, m, s), the times where one begins, is cut and ends."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from diffsolve import grids
from diffsolve.common.checks import choice, integer, number, required
from diffsolve.grids import Grid, Warp
from diffsolve.paths import Path
from diffsolve.tableau.frames import VARIABLES
from diffsolve.training import laws
from diffsolve.training.laws import TimeLaw

__all__ = ["Between", "Halves", "Shrinking", "Steps", "Stretches"]

Uniforms = np.ndarray
"""(B, 4) numbers in (0, 1); the first column of a batch is spread evenly."""


class Stretches(ABC):
    """A law of stretches from t, the noisier end, over m to s; a frozen dataclass of options."""

    @abstractmethod
    def draw(self, u: Uniforms, path: Path, step: int) -> np.ndarray:
        """(B, 3): t, m, s on the path's clock for the update number `step`."""


@dataclass(frozen=True)
class Between(Stretches):
    """t and s are two draws of a law of times, in order; m is even between them, in the share of all draws.

    Args:
        times: a law of `ds.training.objective`.
        diagonal: the share of samples with s = t, which learn the velocity (0.75 in MeanFlow, 2505.13447, table 1a).
        data: the share of the others with s at the data itself.
        noise: the share of the others with t at the noise end itself, where sampling begins.
    """

    times: str | TimeLaw | Warp = "uniform-t"
    diagonal: float = 0.0
    data: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        laws.named(self.times)
        for name in ("diagonal", "data", "noise"):
            number(name, getattr(self, name), low=0, high=1)

    def draw(self, u: Uniforms, path: Path, step: int) -> np.ndarray:
        early, late = np.minimum(u[:, 0], u[:, 1]), np.maximum(u[:, 0], u[:, 1])
        stays = u[:, 2] < self.diagonal
        late = np.where(stays, early, late)
        shares = np.stack([early, early + u[:, 3] * (late - early), late], -1)
        times: np.ndarray = laws.named(self.times).quantile(shares.clip(1e-9, 1 - 1e-9), path)
        rest = (u[:, 2] - self.diagonal) / max(1 - self.diagonal, 1e-9)
        times[~stays & (rest < self.data), 2] = path.t_data
        times[~stays & (rest > 1 - self.noise), 0] = path.t_noise
        return times


@dataclass(frozen=True)
class Steps(Stretches):
    """Two neighbours t and m of a grid, with s at the data: the pairs of consistency models (2303.01469, section 4).

    Args:
        grid: of `steps` steps.
        steps: how many there are at first, 18 in consistency distillation; iCT (2310.14189, eq. 13) begins with 10,
        most: and has up to 1280,
        every: doubling them after so many updates; 0 never does.
    """

    grid: str | Grid = "jumps(variable='theta')"
    steps: int = 18
    most: int = 1280
    every: int = 0

    def __post_init__(self) -> None:
        grids.named(self.grid)
        for name, low in (("steps", 1), ("most", 1), ("every", 0)):
            integer(name, getattr(self, name), low)

    def draw(self, u: Uniforms, path: Path, step: int) -> np.ndarray:
        count = min(self.steps << min(step // self.every, 30), self.most) if self.every else self.steps
        nodes = grids.named(self.grid)(path, count)
        i = np.minimum((u[:, 0] * count).astype(int), count - 1)
        return np.stack([nodes[i], nodes[i + 1], np.full(len(i), path.t_data)], -1)


@dataclass(frozen=True)
class Shrinking(Stretches):
    """t of a law and m nearer to the data by a share that shrinks, with s at the data (ECT, 2406.14548, eq. 11-13).

        w_m / w_t = 1 - n(t) / q^(1 + step // every),    n(t) = 1 + k sigmoid(-b w_t), at most w_t itself

    in w = rho = sigma / alpha, or another variable that is 0 at the data. At first m is the data: x_0 is the target.
    """

    times: str | TimeLaw | Warp = "log-normal(mean=-1.1, std=2.0)"
    variable: str = "rho"
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    every: int = 1000

    def __post_init__(self) -> None:
        laws.named(self.times)
        choice("variable", self.variable, ("rho", "theta", "u"))
        number("q", self.q, above=1)
        for name in ("k", "b"):
            number(name, getattr(self, name), low=0)
        integer("every", self.every, 1)

    def draw(self, u: Uniforms, path: Path, step: int) -> np.ndarray:
        t = np.asarray(laws.named(self.times).quantile(u[:, 0].clip(1e-9, 1 - 1e-9), path))
        w = np.asarray(VARIABLES[self.variable](path.nodes(t)))
        n = 1 + self.k * expit(-self.b * w)
        less = w * np.maximum(1 - n * self.q ** -float(min(1 + step // self.every, 60)), 0.0)
        m = np.full(len(t), path.t_data)
        inside = less > 0
        m[inside] = grids.Uniform(self.variable).inverse(path, less[inside])
        return np.stack([t, m, np.full(len(t), path.t_data)], -1)


@dataclass(frozen=True)
class Halves(Stretches):
    """A step of an even grid and its middle, in a grid of twice as many steps: shortcuts and progressive distillation.

    Args:
        grid: of `steps` steps.
        steps: their number; the longest step is one of `least` steps. Each power of two between them is as likely
            (2410.12557, section 3.2), or with least = steps, that one number (2202.00512, algorithm 2).
        diagonal: the share of samples with s = t, which learn the velocity (0.75 for shortcuts).
    """

    grid: str | Grid = "jumps"
    steps: int = 64
    least: int = 1
    diagonal: float = 0.0

    def __post_init__(self) -> None:
        grids.named(self.grid)
        integer("steps", self.steps, 1)
        integer("least", self.least, 1, self.steps)
        doublings = math.log2(self.steps / self.least)
        required(doublings % 1 == 0, "steps", self.steps, f"least={self.least} times a power of two")
        number("diagonal", self.diagonal, low=0, high=1)

    def draw(self, u: Uniforms, path: Path, step: int) -> np.ndarray:
        levels = int(math.log2(self.steps / self.least)) + 1
        count = self.least << np.minimum((u[:, 1] * levels).astype(int), levels - 1)
        fine = 2 * self.steps
        nodes = grids.named(self.grid)(path, fine)
        wide = fine // count  # of the finest grid's steps
        i = np.minimum((u[:, 0] * count).astype(int), count - 1) * wide
        stays = u[:, 2] < self.diagonal
        return np.stack([nodes[i + np.where(stays, 0, part)] for part in (0, wide // 2, wide)], -1)
