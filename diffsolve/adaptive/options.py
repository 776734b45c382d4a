"""The options of an adaptive solver, and the status of a sample when it ends."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffsolve.common.checks import choice, instance, integer, number, required
from diffsolve.common.result import Status
from diffsolve.solvers.base import frame_named
from diffsolve.solvers.butcher import BOSH3, DOPRI5, DOPRI8, TSIT5, Butcher

__all__ = ["METHODS", "Adaptive", "Status", "check_tolerances", "warn"]

METHODS = {method.name: method for method in (BOSH3, DOPRI5, DOPRI8, TSIT5)}


@dataclass(frozen=True)
class Adaptive:
    """An adaptive solver: `ds.solve(model, shape, solver=ds.Adaptive("dopri5", rtol=1e-5, atol=1e-5))`.

    A step is accepted where the root mean square over the sample of error / (atol + rtol |z|) is at most 1; the next is

        h' = h 0.9 E_n^-(kI + kP + kD) E_(n-1)^(kP + 2 kD) E_(n-2)^-kD,    exponents divided by the order,

    at most 10 and at least 0.2 of h, and no larger right after a rejection.

    Args:
        method: "bosh3", "dopri5", "tsit5" or "dopri8", or a `Butcher` with embedded weights.
        rtol, atol: the relative tolerance, and the absolute one in units of z = x / c; both in [0, 1), not both 0.
        frame: the coordinates; a name in `diffsolve.tableau.frames.FRAMES`. "trig" and "straight" suit every path.
        first_step: the first step, in units of the frame's variable; chosen from the problem if None.
        max_step: the largest step, in the same units; unbounded if None.
        max_nfe: the most network calls per sample.
        pid: (kP, kI, kD) of the controller.

    Raises:
        ValueError: if an option is out of range or a name is unknown.
        TypeError: if `method` is neither a name nor a Butcher.

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
        if not isinstance(instance("method", self.method, (str, Butcher), "a name or a Butcher"), Butcher):
            choice("method", self.method, METHODS)
        estimated = len(self.table.embedded) in (1, 2)
        required(estimated, "method", self.table, "one with one or two embedded methods, which estimate its error")
        frame_named(self.frame)
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            number(name, value, low=0, below=1)
        required(self.rtol > 0 or self.atol > 0, "rtol or atol", 0, "positive")
        for name, step in (("first_step", self.first_step), ("max_step", self.max_step)):
            if step is not None:
                number(name, step, above=0)
        integer("max_nfe", self.max_nfe, low=1)
        required(len(self.pid) == 3, "pid", self.pid, "three numbers")
        for k in self.pid:
            number("pid", k)

    @property
    def table(self) -> Butcher:
        """The method's coefficients."""
        return METHODS[self.method] if isinstance(self.method, str) else self.method


def check_tolerances(rtol: float, atol: float) -> None:
    """Raise a ValueError unless both are in [0, 1), and one of them above 0."""
    number("rtol", rtol, low=0, below=1)
    number("atol", atol, low=0, below=1)
    required(rtol > 0 or atol > 0, "rtol", rtol, f"> 0 with atol={atol!r}")


def warn(status: Sequence[Status], t: np.ndarray, h: np.ndarray, what: str = "samples", clock: str = "t") -> None:
    """Warn which samples stopped before the end, and why."""
    for reason in (Status.NON_FINITE, Status.STEP_TOO_SMALL, Status.BUDGET_SPENT):
        those = [i for i, s in enumerate(status) if s == reason]
        if those:
            warnings.warn(
                f"{len(those)} of {len(status)} {what} stopped early: {reason.name.lower().replace('_', ' ')}, the "
                f"first of them sample {those[0]} at {clock}={t[those[0]]:.6g} with a step of {h[those[0]]:.3g}",
                RuntimeWarning,
                stacklevel=4,
            )
