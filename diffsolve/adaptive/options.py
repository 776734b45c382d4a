"""What an adaptive solver is told, and what it says of a sample when it ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffsolve.common.result import Status
from diffsolve.solvers.base import frame_named
from diffsolve.solvers.butcher import BOSH3, DOPRI5, DOPRI8, TSIT5, Butcher

__all__ = ["METHODS", "Adaptive", "Status", "warn"]

METHODS = {method.name: method for method in (BOSH3, DOPRI5, DOPRI8, TSIT5)}


@dataclass(frozen=True)
class Adaptive:
    """An adaptive solver: `ds.solve(model, shape, solver=ds.Adaptive("dopri5", rtol=1e-5, atol=1e-5))`.

    A step is accepted where the root mean square over the sample of error / (atol + rtol |z|) is at most 1; the next is

        h' = h 0.9 E_n^-(kI + kP + kD) E_(n-1)^(kP + 2 kD) E_(n-2)^-kD,    exponents divided by the order,

    at most 10 and at least 0.2 of h, and no larger right after a rejection.

    Args:
        method: "bosh3", "dopri5", "tsit5" or "dopri8", or a `Butcher` with embedded weights.
        rtol, atol: the relative and absolute tolerance of z = x / c.
        frame: the coordinates; a name in `diffsolve.tableau.frames.FRAMES`. "trig" and "straight" suit every path.
        first_step, max_step: in units of the frame's variable; found from the problem, and unbounded, if None.
        max_nfe: the most network calls per sample.
        pid: (kP, kI, kD) of the controller.

    Sources: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, II.4; Soderlind, ACM Trans. Math.
    Softw. 29 (2003), for the controller.
    """

    method: str | Butcher = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    frame: str = "trig"
    first_step: float | None = None
    max_step: float | None = None
    max_nfe: int = 10_000
    pid: tuple[float, float, float] = (0.0, 1.0, 0.0)

    def __post_init__(self) -> None:
        if isinstance(self.method, str) and self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is unknown; accepted: {', '.join(METHODS)}, or a Butcher")
        if not isinstance(self.method, str | Butcher):
            raise TypeError(f"method={self.method!r}: a name or a Butcher is accepted")
        if len(self.table.embedded) not in (1, 2):
            raise ValueError(
                f"method={self.table.name!r}: one or two embedded methods are needed to estimate its error"
            )
        frame_named(self.frame)
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not (isinstance(value, int | float) and 0 <= value < 1):
                raise ValueError(f"{name}={value!r}: a number in [0, 1) is accepted")
        if self.rtol == self.atol == 0:
            raise ValueError("rtol=0, atol=0: at least one of them must be positive")
        for name, step in (("first_step", self.first_step), ("max_step", self.max_step)):
            if step is not None and not (isinstance(step, int | float) and 0 < step < math.inf):
                raise ValueError(f"{name}={step!r}: a positive number or None is accepted")
        if isinstance(self.max_nfe, bool) or not isinstance(self.max_nfe, int) or self.max_nfe < 1:
            raise ValueError(f"max_nfe={self.max_nfe!r}: an integer of at least 1 is accepted")
        if len(self.pid) != 3 or not all(isinstance(k, int | float) and math.isfinite(k) for k in self.pid):
            raise ValueError(f"pid={self.pid!r}: three numbers are accepted")

    @property
    def table(self) -> Butcher:
        """The method's coefficients."""
        return METHODS[self.method] if isinstance(self.method, str) else self.method


def warn(status: Sequence[Status], t: np.ndarray, h: np.ndarray, what: str = "samples", clock: str = "t") -> None:
    """Say which samples did not get to the end, and why."""
    for reason in (Status.NON_FINITE, Status.STEP_TOO_SMALL, Status.BUDGET_SPENT):
        those = [i for i, s in enumerate(status) if s == reason]
        if those:
            warnings.warn(
                f"{len(those)} of {len(status)} {what} stopped early: {reason.name.lower().replace('_', ' ')}, the "
                f"first of them sample {those[0]} at {clock}={t[those[0]]:.6g} with a step of {h[those[0]]:.3g}",
                RuntimeWarning,
                stacklevel=4,
            )
