r"""Exponential Runge-Kutta methods in lambda: DPM-Solver, DPM-Solver++ (singlestep), RES and their kin.

In lambda the state in a frame obeys x' = -x + .. (denoised, x / alpha) or x' = x + .. (noise, x / sigma), so that
with h the step in lambda and z = -h (frame denoised) or z = +h (frame noise) a step is

    x_t = (sigma_t / sigma_s) x_s + alpha_t h sum_j b_j(z) D_j            (denoised)
    x_t = (alpha_t / alpha_s) x_s - sigma_t h sum_j b_j(z) eps_j          (noise)

with stages at lambda_s + c_i h, made alike from a_ij(z). The a and b are combinations of phi_k(c z), see `phi`;
always sum_j b_j = phi_1(z) and sum_j a_ij = c_i phi_1(c_i z), so a constant D or eps is exact.

The linear part is known, and is one number: what is stiff here is a large step, a run of few calls. The stiff
order (Hochbruck and Ostermann, SIAM J. Numer. Anal. 43, 2005, table 2) is what counts there, the classical order
as h goes to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, required
from diffsolve.solvers.integrals import phi
from diffsolve.solvers.runge_kutta import OneStep, Stages, low_storage
from diffsolve.solvers.sde import Constant
from diffsolve.tableau.frames import FRAMES, Frame

__all__ = ["ExponentialRK", "Scheme", "dpm2", "dpm3", "etdrk4", "res2", "res3", "res5"]


@dataclass(frozen=True)
class Scheme:
    """The coefficients of an explicit exponential Runge-Kutta method.

    Args:
        c: the abscissae of the stages in lambda, in units of the step; the first is 0.
        weights: (z, c) -> the rows (a_i2, a_i3, ..) of the stages from the second on, then (b_2, b_3, ..). The
            first column is what the sums leave over: a_i1 = c_i phi_1(c_i z) - .., b_1 = phi_1(z) - ..
        order: the classical order.
        stiff_order: the largest p such that all conditions of Hochbruck and Ostermann up to order p hold at every z.
    """

    name: str
    c: tuple[float, ...]
    weights: Callable[[float, tuple[float, ...]], Sequence[Sequence[float]]]
    order: int
    stiff_order: int

    def __post_init__(self) -> None:
        c = tuple(map(float, self.c))
        inside = bool(c) and c[0] == 0 and all(0 < x <= 1 for x in c[1:])
        required(inside, f"c of {self.name}", self.c, "0, then numbers > 0 and <= 1")
        object.__setattr__(self, "c", c)
        try:
            rows = self.weights(-1.0, c)
        except ZeroDivisionError:
            raise ValueError(f"c={self.c!r}: {self.name} has no such method (its weights are infinite)") from None
        if [len(row) for row in rows] != list(range(len(c))):
            raise ValueError(f"weights of {self.name} must be rows of 0, 1, .., {len(c) - 1} entries")

    def butcher(self, z: float) -> tuple[list[list[float]], list[float]]:
        """(a, b) of the step as a Runge-Kutta step in the frame's v, where h is v_t - v_s.

        There stage i stands at (v_i - v_s) / (v_t - v_s) = (e^{-c_i z} - 1) / (e^{-z} - 1), and that is its row sum.
        """
        ends = [*self.c[1:], 1.0]
        table: list[list[float]] = [[]]
        for c, rest in zip(ends, self.weights(z, self.c), strict=True):
            unit = np.expm1(-c * z) / np.expm1(-z)
            share = [float(unit * w / (c * phi(1, c * z))) for w in rest]
            table.append([float(unit) - sum(share), *share])
        return table[:-1], table[-1]


@dataclass(frozen=True)
class ExponentialRK(OneStep):
    """An exponential Runge-Kutta method, in the frame `denoised` (data prediction) or `noise`.

    Wherever lambda is infinite the step is one first-order call. The state gathers the result as the stages
    come, so that few values of d are kept: one by dpm2, res2 and dpm3, two by res3 and etdrk4, three by res5, and
    one more where a step in lambda is so large that saving it would multiply the rounding of the state.

    With tau it steps the SDE of that constant tau (`diffsolve.solvers.sde`), (1 + tau^2) h in the place of h: dpm2 and
    dpm3 are then SEEDS-2 and SEEDS-3 with data prediction, and dpm2 is the DPM-Solver++ SDE of k-diffusion.
    """

    scheme: Scheme
    frame: str = "denoised"
    tau: float = 0.0

    def __post_init__(self) -> None:
        choice("frame", self.frame, ("denoised", "noise"))
        Constant(self.tau)
        if self.tau and (self.frame != "denoised" or list(self.scheme.c) != sorted(self.scheme.c)):
            raise ValueError(
                f"tau={self.tau!r} with frame={self.frame!r}, c={self.scheme.c}: an SDE is stepped in the frame "
                "'denoised', by stages that do not fall back"
            )

    def __str__(self) -> str:
        c = ", ".join(f"{x:.6g}" for x in self.scheme.c)
        tau = f", tau={self.tau!r}" if self.tau else ""
        return f"ExponentialRK({self.scheme.name}, c=({c}), frame={self.frame!r}{tau})"

    @property
    def order(self) -> int:
        return min(self.scheme.order, 2) if self.tau else self.scheme.order  # the weak order

    @property
    def c(self) -> tuple[float, ...]:
        return self.scheme.c

    @property
    def spacing(self) -> Frame:
        return FRAMES["lambda"]

    def stages(self, h: float) -> Stages:
        return low_storage(*self.scheme.butcher(-h * (1 + self.tau**2) if self.frame == "denoised" else h))


def _dpm2(z: float, c: tuple[float, ...]) -> list[list[float]]:
    return [[], [phi(1, z) / (2 * c[1])]]


def _res2(z: float, c: tuple[float, ...]) -> list[list[float]]:
    return [[], [phi(2, z) / c[1]]]


def _dpm3(z: float, c: tuple[float, ...]) -> list[list[float]]:
    _, c2, c3 = c
    return [[], [c3**2 / c2 * phi(2, c3 * z)], [0.0, phi(2, z) / c3]]


def _res3(z: float, c: tuple[float, ...]) -> list[list[float]]:
    _, c2, c3 = c
    gamma = (3 * c3**2 - 2 * c3) / ((2 - 3 * c2) * c2)
    b3 = phi(2, z) / (gamma * c2 + c3)
    return [[], [gamma * c2 * phi(2, c2 * z) + c3**2 / c2 * phi(2, c3 * z)], [gamma * b3, b3]]


def _etdrk4(z: float, c: tuple[float, ...]) -> list[list[float]]:
    phi2, phi3 = phi(2, z), phi(3, z)
    middle = 2 * phi2 - 4 * phi3
    return [[], [phi(2, z / 2)], [0.0, 2 * phi2], [middle, middle, 4 * phi3 - phi2]]


def _res5(z: float, c: tuple[float, ...]) -> list[list[float]]:
    phi2, phi3 = phi(2, z), phi(3, z)
    half2, half3 = phi(2, z / 2), phi(3, z / 2)
    a52 = half2 / 2 - phi3 + phi2 / 4 - half3 / 2
    return [[], [half2], [phi2, phi2], [a52, a52, half2 / 4 - a52], [0.0, 0.0, 4 * phi3 - phi2, 4 * phi2 - 8 * phi3]]


def dpm2(r1: float = 0.5) -> Scheme:
    """DPM-Solver-2 (Lu et al., 2206.00927, algorithm 1) or, in the frame denoised, DPM-Solver++(2S) (2211.01095).

        a_21 = c_2 phi_1(c_2 z),  b_2 = phi_1(z) / (2 c_2),  c_2 = r1

    It is exact only for a constant: the condition sum b_i c_i = phi_2 holds at z = 0 alone.
    """
    return Scheme("dpm2", (0, r1), _dpm2, 2, 1)


def dpm3(r1: float = 1 / 3, r2: float = 2 / 3) -> Scheme:
    """DPM-Solver-3 (2206.00927, algorithm 2) or, in the frame denoised, DPM-Solver++(3S) as in its authors' code.

        a_32 = (c_3^2 / c_2) phi_2(c_3 z),  b_2 = 0,  b_3 = phi_2(z) / c_3,  c = (0, r1, r2)

    The order is 3 for r2 = 2/3 only, since b_3 c_3^2 -> c_3 / 2 must be 1/3; then it is `res3(r1, r2)`.
    """
    return Scheme("dpm3", (0, r1, r2), _dpm3, 3 if abs(r2 - 2 / 3) < 1e-12 else 2, 2)


def res2(c2: float = 0.5) -> Scheme:
    """The two-stage method of stiff order 2 (Hochbruck and Ostermann, 5.3), known as RES (2308.02157).

    a_21 = c_2 phi_1(c_2 z),  b_2 = phi_2(z) / c_2
    """
    return Scheme("res2", (0, c2), _res2, 2, 2)


def res3(c2: float = 0.5, c3: float = 1.0) -> Scheme:
    """The three-stage methods of Hochbruck and Ostermann (5.8), known as RES (2308.02157).

        g = (3 c_3^2 - 2 c_3) / ((2 - 3 c_2) c_2),  b_3 = phi_2(z) / (g c_2 + c_3),  b_2 = g b_3,
        a_32 = g c_2 phi_2(c_2 z) + (c_3^2 / c_2) phi_2(c_3 z)

    Of the conditions of order 3 one, sum b_i c_i^2 = 2 phi_3, holds at z = 0 alone: stiff order 3 in their weakened
    sense, 2 in the strict one.
    """
    return Scheme("res3", (0, c2, c3), _res3, 3, 2)


def etdrk4() -> Scheme:
    """Krogstad's ETDRK4-B (J. Comput. Phys. 203, 2005). Cox and Matthews' has stiff order 2 only, this one 3.

    c = (0, 1/2, 1/2, 1),  a_32 = phi_2(z/2),  a_42 = 0,  a_43 = 2 phi_2(z),
    b_2 = b_3 = 2 phi_2 - 4 phi_3,  b_4 = 4 phi_3 - phi_2
    """
    return Scheme("etdrk4", (0, 0.5, 0.5, 1), _etdrk4, 4, 3)


def res5() -> Scheme:
    """The five-stage method of Hochbruck and Ostermann (5.19).

        c = (0, 1/2, 1/2, 1, 1/2),  a_32 = phi_2(z/2),  a_42 = a_43 = phi_2(z),
        a_52 = a_53 = phi_2(z/2) / 2 - phi_3(z) + phi_2(z) / 4 - phi_3(z/2) / 2,  a_54 = phi_2(z/2) / 4 - a_52,
        b_2 = b_3 = 0,  b_4 = 4 phi_3 - phi_2,  b_5 = 4 phi_2 - 8 phi_3

    The conditions of order 4 hold with b(0) in the place of b(z): stiff order 4 in their weakened sense, 3 in the
    strict one.
    """
    return Scheme("res5", (0, 0.5, 0.5, 1, 0.5), _res5, 4, 3)
