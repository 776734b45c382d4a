r"""The identities of an average, as residuals of a student's output that are zero at the optimum.

A student o(x, t, s) lands at X(x_t, t, s) = P x_t + Q o (`Model.landing`). In its frame z = x / c, dz/dv = d that is
X / c_s = x_t / c_t + (v_s - v_t) D, and D is affine in o. Any of three says that D is the average of d:

    Eulerian    D = d(x_t, t) + (v_s - v_t) dD/dv_t along the flow      X does not change along the flow
    Lagrangian  D = d(X, s) - (v_s - v_t) dD/dv_s                       X moves with the flow
    semigroup   (v_s - v_t) D(t, s) = (v_m - v_t) D(t, m) + (v_s - v_m) D(X_m, m, s)     a jump is two jumps

On the diagonal s = t all of them are D = d. Each is turned into R = o - o*, the residual of the output: o* is the
output that would fulfil it with everything else as it is. The loss is a metric of R with a gradient to o alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import choice, integer, required
from diffsolve.common.derivatives import plain_operations
from diffsolve.common.tensors import column
from diffsolve.distill.situation import Situation
from diffsolve.models import Model
from diffsolve.paths import Path, Position
from diffsolve.tableau.frames import FRAMES, Frame, convert, landing

__all__ = ["Eulerian", "Identity", "Lagrangian", "Semigroup"]

STEP = 1e-3
"""Of central differences, as a share of the path's clock."""


class Identity(ABC):
    """An identity; a frozen dataclass of options."""

    @abstractmethod
    def output(self, at: Situation) -> tuple[Tensor, Tensor]:
        """(o, o*): the student's output with its graph, and its target without one."""


@dataclass(frozen=True)
class Eulerian(Identity):
    """o* = o - R, with R = E / (dD/do) and E = D - d - r (v_s - v_t) dD/dv_t, by one forward derivative of the network.

    A batch that is all on the diagonal s = t, as those of `guided`, needs none.

    Args:
        frame: whose D is meant; None for that of the student, or "straight" for one told one time. A step to s = data
            needs one whose c is not 0 there: "straight", "noise" or "trig". sCM (2410.11081, eq. 8) is "noise".
        warmup: updates over which r rises to 1; 0 for r = 1 at once.
        derivative: "forward" for `torch.func.jvp`; "difference" for central differences, where a network has none.
    """

    frame: str | None = None
    warmup: int = 0
    derivative: str = "forward"

    def __post_init__(self) -> None:
        choice("frame", self.frame, (None, *FRAMES))
        integer("warmup", self.warmup, 0)
        choice("derivative", self.derivative, ("forward", "difference"))

    def output(self, at: Situation) -> tuple[Tensor, Tensor]:
        student, t, s = at.student, at.t, at.s
        velocity = at.velocity
        if (t == s).all():  # its factor is 0
            return at.call(t, s), at.predicted(velocity)
        slope = _along(at, self.derivative, velocity)
        out = at.call(t, s)
        (on_x, on_out), (x_slope, out_slope) = _rates(student, t, s, by="t")
        moves = column(x_slope, at.x) * at.x + column(on_x, at.x) * velocity
        moves = moves + column(out_slope, at.x) * out.detach() + column(on_out, at.x) * slope  # dX/dt along the flow
        frame = FRAMES[self.frame or _frame(student).name]
        p, q = student.path.nodes(t), student.path.nodes(s)
        with np.errstate(all="ignore"):
            # E = -dX/dt / (c_s v_t'), and dD/do is the conversion's factor at t.
            unit = frame.c(q) * _slope(frame, student.path, p) * _factor(student, frame, p)
        required(bool((np.isfinite(unit) & (unit != 0)).all()), "frame", frame.name, "regular at the times drawn")
        residual = -moves / column(unit, at.x)
        share = min(1.0, at.step / self.warmup) if self.warmup else 1.0
        if share < 1:
            residual = share * residual + (1 - share) * (out.detach() - at.predicted(velocity))
        return out, out.detach() - residual


@dataclass(frozen=True)
class Lagrangian(Identity):
    """o* from D* = d(X, s) - (v_s - v_t) dD/dv_s, at the student's own landing X, by one forward derivative.

    Flow map matching's (2406.07507, eq. 9) and AYF's (2506.14603, eq. 8) second identity.

    Args:
        frame, derivative: as of `Eulerian`.
    """

    frame: str | None = None
    derivative: str = "forward"

    def __post_init__(self) -> None:
        choice("frame", self.frame, (None, *FRAMES))
        choice("derivative", self.derivative, ("forward", "difference"))

    def output(self, at: Situation) -> tuple[Tensor, Tensor]:
        student, t, s = at.student, at.t, at.s
        slope = _along(at, self.derivative, None)
        out = at.call(t, s)
        (on_x, on_out), (x_slope, out_slope) = _rates(student, t, s, by="s")
        fixed = out.detach()
        landed = column(on_x, at.x) * at.x + column(on_out, at.x) * fixed
        moves = column(x_slope, at.x) * at.x + column(out_slope, at.x) * fixed + column(on_out, at.x) * slope
        frame = FRAMES[self.frame or _frame(student).name]
        p, q = student.path.nodes(t), student.path.nodes(s)
        with np.errstate(all="ignore"):
            unit = frame.c(q) * _slope(frame, student.path, q) * _factor(student, frame, p)
        required(bool((np.isfinite(unit) & (unit != 0)).all()), "frame", frame.name, "regular at the times drawn")
        return out, fixed - (moves - at.field(landed, s)) / column(unit, at.x)


@dataclass(frozen=True)
class Semigroup(Identity):
    """o* is the output that lands where two jumps do, from t to m and from m to s.

    Args:
        first: who makes the first jump. "self": the student's target; "teacher": a run of the teacher; "data": the
            sample's own x_0 and noise, x_m = alpha_m x_0 + sigma_m eps (consistency training).
        second: who makes the second: "self" or "teacher".
    """

    first: str = "self"
    second: str = "self"

    def __post_init__(self) -> None:
        choice("first", self.first, ("self", "teacher", "data"))
        choice("second", self.second, ("self", "teacher"))

    def output(self, at: Situation) -> tuple[Tensor, Tensor]:
        t, m, s = at.t, at.m, at.s
        with torch.no_grad(), at.same_dropout():
            if self.first == self.second == "teacher":
                landed = at.teach(at.x, np.stack([t, m, s], -1))
            else:
                firsts: dict[str, Callable[[], Tensor]] = {
                    "self": lambda: at.jump(at.x, t, m),
                    "teacher": lambda: at.teach(at.x, np.stack([t, m], -1)),
                    "data": lambda: at.noised(m),
                }
                middle = firsts[self.first]()
                landed = at.jump(middle, m, s) if self.second == "self" else at.teach(middle, np.stack([m, s], -1))
        return at.call(t, s), at.reaching(landed)


def _frame(model: Model) -> Frame:
    return FRAMES[model.jumps or "straight"]


def _factor(model: Model, frame: Frame, p: Position[np.ndarray]) -> Any:
    """dD/do at p."""
    return convert(frame.d(p), model.coefficients(p), p.alpha, p.sigma)[1]


def _slope(frame: Frame, path: Path, p: Position[np.ndarray]) -> Any:
    """dv/dt of a frame along the clock: dv/dtheta of its table times dtheta/dt."""
    if frame.lam is None:
        return np.ones_like(p.t)
    return frame.slope(p) * (p.alpha * p.dsigma - p.sigma * p.dalpha) / (p.alpha**2 + p.sigma**2)


def _rates(model: Model, t: np.ndarray, s: np.ndarray, by: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(P, Q) of X = P x_t + Q o, and their derivatives by the time t or s, float64."""
    frame, path = _frame(model), model.path

    def weights(time: Tensor) -> tuple[Tensor, Tensor]:
        begins, ends = (time, torch.from_numpy(s)) if by == "t" else (torch.from_numpy(t), time)
        p = path.at(begins)
        on_x, on_out = landing(frame, model.coefficients(p), p, path.at(ends))
        return on_x, on_out

    moving = torch.from_numpy(t if by == "t" else s)
    both: Any = torch.func.jvp(weights, (moving,), (torch.ones_like(moving),))
    values, rates = both
    return values, rates


def _forward(outputs: Callable[..., Tensor], values: tuple[Tensor, ...], rates: tuple[Tensor, ...]) -> Tensor:
    """A forward derivative.

    Raises:
        NotImplementedError: if a network has none.
    """
    try:
        with plain_operations():
            slope: Tensor = torch.func.jvp(outputs, values, rates)[1]
        return slope
    except RuntimeError as error:  # NotImplementedError is one
        if not any(word in str(error) for word in ("forward AD", "forward mode AD", "functorch transforms")):
            raise
        way = "identity=ds.distill.Eulerian(derivative='difference'), or Lagrangian(..), needs none"
        raise NotImplementedError(f"the student's network has no forward derivative ({error}); {way}") from error


def _along(at: Situation, derivative: str, direction: Tensor | None) -> Tensor:
    """The derivative of the student's output along dx/dt = direction, or by s if there is none; without a graph."""
    by_s = direction is None
    student, t, s = at.student, torch.from_numpy(at.t), torch.from_numpy(at.s)

    def outputs(x: Tensor, time: Tensor) -> Tensor:
        times = (t, time) if by_s else (time, s)
        return student(x, *times[: 2 if student.jumps else 1], **at.cond)

    moving = s if by_s else t
    direction = torch.zeros_like(at.x) if direction is None else direction
    with torch.no_grad(), at.same_dropout():
        if derivative == "forward":
            return _forward(outputs, (at.x, moving), (direction, torch.ones_like(moving)))
        low, high = sorted((student.path.t_noise, student.path.t_last))
        size = STEP * (high - low)
        # One-sided at the ends, as the network is not told a time beyond them.
        ahead, behind = ((moving + step).clamp(low, high) - moving for step in (size, -size))
        ends = [outputs(at.x + column(shift, at.x) * direction, moving + shift) for shift in (ahead, behind)]
        return (ends[0] - ends[1]) / column(ahead - behind, at.x)
