r"""Samplers of k-diffusion and ComfyUI that are no points of the families here, each as rows.

All are written in x and sigma, on x = x_0 + sigma eps with sigma for the clock, but for `FlowAncestral`. A flow's
dx/dsigma = (x - D) / sigma is the same equation, so that most of those samplers take a flow's sigmas unchanged. Below,
s and t are the sigmas at the two ends of a step, and eps = (x - D) / s.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, number
from diffsolve.paths import Position
from diffsolve.solvers import ERSDE, DPMpp, ExponentialRK, Multistep, Solver, Tau
from diffsolve.solvers.exponential import dpm2, dpm3
from diffsolve.solvers.integrals import StepIntegrals, gauss_legendre, phi
from diffsolve.solvers.renoise import splice
from diffsolve.tableau import Combination, Draft
from diffsolve.tableau.frames import FRAMES

__all__ = [
    "DEIS", "SA", "ExactStart", "FlowAncestral", "GradientEstimation", "HeunPP", "ResAncestral", "Singlestep",
    "SummedERSDE", "Unconditional",
]  # fmt: skip


@dataclass(frozen=True)
class GradientEstimation(Multistep):
    """Gradient estimation (Permenter and Yuan, 2306.04848, algorithm 2): gamma eps + (1 - gamma) eps', the one before.

    Of gamma = 3/2 it is `IPNDM(2)`; 2 is the paper's and ComfyUI's.
    """

    points: int | tuple[int, ...] = 2
    frame: str = "noise"
    gamma: float = 2.0

    def predict(self, step: StepIntegrals) -> np.ndarray:
        return np.array([self.gamma, 1 - self.gamma]) if len(step.nodes) == 2 else step.omega()


@dataclass(frozen=True)
class ExactStart(DPMpp):
    """The 3M SDE there: its step of two values has the exact weights, with phi_2, and not those of 2M."""

    def predict(self, step: StepIntegrals) -> np.ndarray:
        return step.omega() if len(step.nodes) == 2 else super().predict(step)


@dataclass(frozen=True)
class DEIS(Multistep):
    r"""DEIS tAB (2204.13902) in the time of the VP path with linear betas whose sigmas are 0.002 to 80 from 0.001 to 1.

    t solves log(1 + sigma^2) = B t^2 / 2 + b t. ComfyUI takes the integrals by 10,000 rectangles.
    """

    points: int | tuple[int, ...] = 3
    frame: str = "noise"

    def predict(self, step: StepIntegrals) -> np.ndarray:
        def time(sigma: np.ndarray | float) -> np.ndarray:
            inner: np.ndarray = (
                np.sqrt(_VP_LEAST**2 + 2 * _VP_RISE * np.log1p(np.square(sigma))) - _VP_LEAST
            ) / _VP_RISE
            return inner

        at, (start, end) = time(step.at), map(float, map(time, step.ends))
        x, mass = gauss_legendre(64)
        t = start + (end - start) * x
        grown = np.exp(_VP_RISE * t**2 / 2 + _VP_LEAST * t)  # 1 + sigma^2
        density = mass * (_VP_RISE * t + _VP_LEAST) * grown / np.sqrt(grown - 1)
        density /= density.sum()
        others = [[k for k in range(len(at)) if k != j] for j in range(len(at))]
        basis = [np.prod([(t - at[k]) / (at[j] - at[k]) for k in ks], axis=0) for j, ks in enumerate(others)]
        return np.array([float(np.sum(L * density)) for L in basis])


_LEAST_LOG, _MOST_LOG = math.log1p(0.002**2), math.log1p(80.0**2)
_VP_RISE = 2 * (_LEAST_LOG / 1e-3 - _MOST_LOG) / (1e-3 - 1)
_VP_LEAST = _MOST_LOG - _VP_RISE / 2


_ERSDE = ERSDE()


@dataclass(frozen=True)
class SummedERSDE(Multistep):
    r"""ER-SDE-Solver-3 (2309.06169) with its integrals as sums of 200 rectangles, as in its authors' code."""

    points: int | tuple[int, ...] = 3
    frame: str = "denoised"
    variable: str | None = "rho"
    tau: float | Tau = _ERSDE

    def predict(self, step: StepIntegrals) -> np.ndarray:
        rho, (start, end) = step.at, step.ends
        if len(rho) == 1:
            return np.ones(1)

        def scale(rho: np.ndarray | float) -> np.ndarray:
            inner: np.ndarray = rho * (np.exp(np.power(rho, 0.3)) + 10)
            return inner

        h = end - start
        at = end - h * np.arange(200) / 200
        weight = -h / 200 * scale(end) / scale(at)
        unit = 1 - scale(end) / scale(start)
        first = np.array([1, -1, 0])[: len(rho)] / (rho[0] - rho[1])
        omega: np.ndarray = np.eye(len(rho))[0] + (h + weight.sum()) / unit * first
        if len(rho) == 3:
            second = 2 * (first - np.array([0, 1, -1]) / (rho[1] - rho[2])) / (rho[0] - rho[2])
            omega = omega + (h**2 / 2 + np.sum(weight * (at - start))) / unit * second
        return omega


@dataclass(frozen=True)
class SA(Multistep):
    """SA-Solver (2309.05019) whose corrector never uses more values than steps are left to the last but one.

    The corrector of a step has a value more than its predictor, unless the end has lowered that: step j of n to
    sigma = 0 is predicted by min(3, j + 1, n - 1 - j) values.
    """

    frame: str = "denoised"
    variable: str | None = "lambda"

    def corrects(self, count: int, step: int) -> int:
        ahead = len(self.points) - 1 - step if isinstance(self.points, tuple) else count + 1
        return min(self.corrector, max(1, ahead))


class OnSigmas(Solver):
    """Rows of first order between equal levels of noise."""

    @property
    def order(self) -> int:
        return 1

    def write(self, draft: Draft, call_last: bool) -> None:
        if getattr(self, "eta", 0) and not (np.diff(draft.grid.sigma) < 0).all():
            raise ValueError(f"{self}: noise is added on the way from the noise to the data only")
        for i in range(draft.steps):
            self.step(draft, i)

    @abstractmethod
    def step(self, draft: Draft, i: int) -> None:
        """The rows of step i."""


@dataclass(frozen=True)
class HeunPP(OnSigmas):
    r"""Heun++: a step's eps is a mean of that at its start and after one and two steps of Euler's from there.

        x_t = x + (t - s) (w_0 eps_0 + w_1 eps_1 + w_2 eps_2),    w_k = sigma_{i+k} / (3 sigma_0),   w_0 = 1 - w_1 - w_2

    The last step but one has two values and 2 sigma_0 in the place of 3 sigma_0, the last step one.
    """

    @property
    def calls(self) -> int:
        return 3

    def step(self, draft: Draft, i: int) -> None:
        g, base = draft.grid, len(draft)
        count = min(3, draft.steps - i)
        later = g.sigma[i + 1 : i + count] / (count * g.sigma[0])
        weights = [1 - later.sum(), *later]
        for k, weight in enumerate(weights):
            s = {"s" if k else "y": 1.0, base + k: float((g.sigma[i + 1] - g.sigma[i]) * weight)}
            if k + 1 == count:
                draft.call(g[i + k], "noise", y=s, node=i + 1)
            else:
                on: Combination = {"y": 1.0, base + k: float(g.sigma[i + k + 1] - g.sigma[i + k])}
                draft.call(g[i + k], "noise", y=on, s=s)


@dataclass(frozen=True)
class Singlestep(OnSigmas):
    """DPM-Solver of order 1, 2 or 3 (2206.00927), chosen for each step."""

    orders: tuple[int, ...] = ()

    @property
    def calls(self) -> int:
        return max(self.orders)

    def step(self, draft: Draft, i: int) -> None:
        inner = {1: Multistep(1, "noise"), 2: ExponentialRK(dpm2(), "noise"), 3: ExponentialRK(dpm3(), "noise")}
        piece = Draft(draft.path, draft.grid[i : i + 2])
        inner[self.orders[i]].write(piece, True)
        splice(draft, piece, (i, i + 1))


def _ancestral(s: float, t: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up) of an ancestral step, whose squares sum to t^2."""
    up = min(t, eta * t * math.sqrt(max(1 - (t / s) ** 2, 0.0)))
    return math.sqrt(t**2 - up**2), up


def _res(draft: Draft, i: int, eta: float) -> tuple[float, float] | None:
    """What D and the D of the call before get in step i of RES of two values; None where the step is Euler's.

    The steps go to sigma_down, and the D before is taken to stand as far back as the step before went to its own.
    """
    sigma = draft.grid.sigma
    down, _ = _ancestral(sigma[i], sigma[i + 1], eta)
    if i == 0 or down == 0:
        return None
    h = math.log(sigma[i] / down)
    back = math.log(sigma[i - 1] / _ancestral(sigma[i - 1], sigma[i], eta)[0])
    older = -phi(2, -h) * h**2 / back
    return h * phi(1, -h) - older, older


@dataclass(frozen=True)
class ResAncestral(OnSigmas):
    """RES of two values (2308.02157) to sigma_down, then noise up to t, as ComfyUI has it."""

    eta: float = 1.0

    def __post_init__(self) -> None:
        number("eta", self.eta, low=0, high=1)

    def step(self, draft: Draft, i: int) -> None:
        s, t = draft.grid.sigma[i : i + 2].tolist()
        down, up = _ancestral(s, t, self.eta)
        both = _res(draft, i, self.eta)
        on_d: Combination = {i: 1 - down / s} if both is None else {i: both[0], i - 1: both[1]}
        draft.call(draft.grid[i], "denoised", y={"y": down / s, **on_d, "z": up}, node=i + 1)


@dataclass(frozen=True)
class Unconditional(OnSigmas):
    r"""CFG++ samplers of ComfyUI that extrapolate unconditional outputs: two rows a call, told D_g (guided), then D_u.

    With r = down / s and t the next sigma, after the first step and before the last, where x_t = D_g + r (x - D_u):

        dpmpp-2m               r (x + D_g - D_u) + (1 - r) (D_g + k (D_g - D_u')),   k = h / (2 h')
        res-2m                 r (x + D_g - D_u) + b D_u + b' D_u'
        dpmpp-2s               r (x + D_g - E_u) + (1 - r) E_g,   E at m (x + D_g - D_u) + (1 - m) D_g, m = sqrt(r)
        gradient-estimation    D_g + t eps_u + (t - s) (eps_u - eps_u')

    A dash is the call before; h = log(s / t); b and b' are the weights of `ResAncestral`.
    """

    method: str = "dpmpp-2m"
    eta: float = 0.0

    @property
    def calls(self) -> int:
        return 4 if self.method == "dpmpp-2s" else 2

    def __post_init__(self) -> None:
        choice("method", self.method, ("dpmpp-2m", "dpmpp-2s", "res-2m", "gradient-estimation"))
        number("eta", self.eta, low=0, high=1)

    def step(self, draft: Draft, i: int) -> None:
        at, sigma, base = draft.grid[i], draft.grid.sigma, len(draft)
        frame = "noise" if self.method == "gradient-estimation" else "denoised"
        s, t = sigma[i : i + 2].tolist()
        down, up = _ancestral(s, t, self.eta)
        if self.method == "dpmpp-2s" and down > 0:
            middle = draft.path.nodes([math.sqrt(s * down)])[0]
            m, r = float(middle.sigma / s), down / s
            draft.call(at, frame, y={"y": 1.0})
            draft.call(at, frame, y={"y": m, base: 1.0, base + 1: -m}, s={"s": 1.0, base: 1.0})
            draft.call(middle, frame, y={"y": 1.0}, s={"s": r, base + 2: 1 - r})
            draft.call(middle, frame, y={"s": 1.0, base + 3: -r, "z": up}, node=i + 1)
            return
        on_y, on_g, on_u, older = self.weights(draft, i, s, down)
        draft.call(at, frame, y={"y": 1.0})
        y: Combination = {"y": on_y, base: on_g, base + 1: on_u, "z": up}
        draft.call(at, frame, y={**y, base - 1: older} if older else y, node=i + 1)

    def weights(self, draft: Draft, i: int, s: float, t: float) -> tuple[float, float, float, float]:
        """On x, the guided and the unconditional output, and the unconditional one of the call before."""
        r, inside = t / s, i > 0 and t > 0
        if self.method == "gradient-estimation":
            return (1.0, -s, 2 * t - s, s - t) if inside else (1.0, -s, t, 0.0)
        if not inside:
            return r, 1.0, -r, 0.0
        if self.method == "res-2m":
            both = _res(draft, i, self.eta)
            assert both is not None
            return r, r, both[0] - r, both[1]
        k = math.log(s / t) / (2 * math.log(draft.grid.sigma[i - 1] / s))
        return r, 1 + (1 - r) * k, -r, -(1 - r) * k


@dataclass(frozen=True)
class FlowAncestral(OnSigmas):
    r"""Ancestral sampling of a flow in ComfyUI: a step to sigma_down = t (1 + eta (t / s - 1)), then noise up to t.

    x_t = (alpha_t / alpha_down) x_down + sqrt(t^2 - (alpha_t down / alpha_down)^2) z keeps the marginals. The step is
    Euler's, or is made of the call at sigma_mid: half-way in log sigma, on (x - D) / sigma, for "dpm-2s", half-way in
    lambda, on D, for "dpmpp-2s", where s = 1 is followed by 0.9999.
    """

    inner: str = "euler"
    eta: float = 1.0

    def __post_init__(self) -> None:
        choice("inner", self.inner, ("euler", "dpm-2s", "dpmpp-2s"))
        number("eta", self.eta, low=0, high=1)

    @property
    def calls(self) -> int:
        return 1 if self.inner == "euler" else 2

    def step(self, draft: Draft, i: int) -> None:
        s, t, base = draft.grid[i], draft.grid[i + 1], len(draft)
        if t.sigma == 0:
            draft.call(s, "denoised", y={base: 1.0}, node=i + 1)
            return
        down = draft.path.nodes([t.sigma * (1 + self.eta * (t.sigma / s.sigma - 1))])[0]
        up = float(t.alpha / down.alpha)
        noise = math.sqrt(max(t.sigma**2 - (up * down.sigma) ** 2, 0.0))
        frame = FRAMES["native" if self.inner == "dpm-2s" else "denoised"]
        ratio, gain = map(float, frame.step(s, down))
        if self.inner == "euler":
            draft.call(s, frame.name, y={"y": up * ratio, base: up * gain, "z": noise}, node=i + 1)
            return
        middle = draft.path.nodes([self.between(s, down)])[0]
        on_y, on_d = map(float, frame.step(s, middle))
        draft.call(s, frame.name, y={"y": on_y, base: on_d}, s={"y": 1.0})
        draft.call(middle, frame.name, y={"s": up * ratio, base + 1: up * gain, "z": noise}, node=i + 1)

    def between(self, s: Position[float], down: Position[float]) -> float:
        """The sigma of the second call."""
        if self.inner == "dpm-2s":
            return math.sqrt(s.sigma * down.sigma)
        return 0.9999 if s.alpha == 0 else 1 / (1 + math.exp((s.lam + down.lam) / 2))
