"""Multistep methods as published, where they differ from the `Multistep` of the same points, frame and variable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, required
from diffsolve.paths import Path, Position
from diffsolve.solvers.integrals import StepIntegrals, phi
from diffsolve.solvers.multistep import Multistep
from diffsolve.tableau.frames import Frame

__all__ = ["IPNDM", "PNDM", "DPMpp", "UniPC"]


@dataclass(frozen=True)
class UniPC(Multistep):
    """UniPC of order p (Zhao et al., 2302.04867) with data or noise prediction: `frame` denoised or noise.

    It is the exponential Adams pair in lambda of p and p + 1 values, but for the two places where the paper
    sets a coefficient to 1/2: the predictor of two values and the corrector of two. There B(h) matters:
    `bh="bh2"` is e^h - 1, `bh="bh1"` is h (with the sign of the prediction). UniP-2 with bh2 is DPM-Solver++(2M).
    """

    points: int | tuple[int, ...] = 3
    frame: str = "denoised"
    variable: str | None = "lambda"
    corrector: int = -1
    lower_final: bool | int = True
    bh: str = "bh2"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("frame", self.frame, ("denoised", "noise"))
        required(not self.tau, "tau of UniPC", self.tau, "0")
        choice("bh", self.bh, ("bh1", "bh2"))

    def _half(self, step: StepIntegrals) -> float:
        """B(h) / (2 (e^h - 1)), with h = -h for data prediction."""
        h = -step.h if self.frame == "denoised" else step.h
        return 0.5 * (h / math.expm1(h) if self.bh == "bh1" else 1.0)

    def predict(self, step: StepIntegrals) -> np.ndarray:
        if len(step.nodes) != 2:
            return step.omega()
        older = self._half(step) * step.h / (step.lam[1] - step.lam[0])
        return np.array([1 - older, older])

    def correct(self, step: StepIntegrals) -> np.ndarray:
        if len(step.nodes) != 2:
            return step.omega()
        newer = self._half(step)
        return np.array([newer, 1 - newer])


@dataclass(frozen=True)
class DPMpp(Multistep):
    """DPM-Solver++(2M) and (3M) as published (Lu et al., 2211.01095, algorithm 2, and its code for 3M).

    With tau they are the 2M SDE and 3M SDE of k-diffusion, whose eta is tau^2: h is (1 + tau^2) h in the phi.
    2M replaces phi_2 by phi_1 / 2, which keeps order 2. 3M lacks a factor 2 on phi_3, so that it is not exact
    for D quadratic in lambda; below 50 calls it is yet the more accurate of the two on mixtures. The exact
    form is `Multistep(3, "denoised", "lambda")`. In the frame noise these are DPM-Solver-2 and -3, multistep: the
    `algorithm_type="dpmsolver"` of diffusers.
    """

    points: int | tuple[int, ...] = 2
    frame: str = "denoised"
    variable: str | None = "lambda"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("frame", self.frame, ("denoised", "noise"))
        own = self.variable == "lambda" or (self.variable is not None and self.most < 3)
        if not own or self.corrector or self.most > 3:
            raise ValueError(
                f"{self}: DPMpp has 1 or 2 points, or 3 in lambda, and is not corrected; Multistep has the others"
            )

    def predict(self, step: StepIntegrals) -> np.ndarray:
        node, (start, end) = step.at, step.ends
        if len(node) < 2:
            return np.ones(1)
        h = end - start
        r = (node[:-1] - node[1:]) / h
        if len(node) == 2:
            return np.array([1 + 0.5 / r[0], -0.5 / r[0]])
        # D1, D2 as combinations of (m0, m1, m2); phi_1(z) is the unit of omega.
        z = -h if self.frame == "denoised" else h
        first, second = np.array([1, -1, 0]) / r[0], np.array([0, 1, -1]) / r[1]
        D2 = (first - second) / (r[0] + r[1])
        D1 = first + r[0] * D2
        z -= step.renewed
        omega: np.ndarray = np.array([1, 0, 0]) + (phi(2, z) * D1 + phi(3, z) * D2) / phi(1, z)
        return omega


@dataclass(frozen=True)
class IPNDM(Multistep):
    """iPNDM (Zhang and Chen, 2204.13902, section 3.2): Adams-Bashforth as if all steps were equal.

    In the frame noise, x_t / alpha_t = x_s / alpha_s + (rho_t - rho_s) sum_j w_j eps_j with the w of Liu et al.
    (2202.09778, eq. 12): 1; (3, -1) / 2; (23, -16, 5) / 12; (55, -59, 37, -9) / 24, whatever the grid. The order is
    2 where the steps change smoothly along the grid, 1 on any other. With weights for the steps there are (Adams
    in rho) it is `Multistep(points, "noise")`.
    """

    points: int | tuple[int, ...] = 4
    frame: str = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable is not None or self.corrector or self.most > len(_UNIFORM):
            raise ValueError(f"{self}: IPNDM has 1 to 4 points and no corrector; Multistep has the others")

    @property
    def order(self) -> int:
        return min(super().order, 2)

    def predict(self, step: StepIntegrals) -> np.ndarray:
        return np.array(_UNIFORM[len(step.nodes) - 1])


_UNIFORM = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class PNDM(IPNDM):
    """PNDM (Liu et al., 2202.09778, algorithm 2): iPNDM begun by three steps of pseudo Runge-Kutta.

    That is rk4 in the frame, each stage a DDIM step from the start of the step, but for the stages half-way: they
    stand half-way on the path's clock, not in rho. The weights (1, 2, 2, 1) / 6 stay, so that it is of order 4 only
    where both are the same. Twelve calls for the first three steps, one for each later one.
    """

    start: str | None = "rk4"

    def between(self, path: Path, frame: Frame, s: Position[float], t: Position[float], c: float) -> Position[float]:
        return s if c == 0 else t if c == 1 else path.nodes([s.t + c * (t.t - s.t)])[0]
