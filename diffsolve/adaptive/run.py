"""An adaptive solve of a model, from one time of its path to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.flow import Flow, Origin, RegularInterval, make_step, regular_interval
from diffsolve.adaptive.integrate import Parts, Solution, integrate
from diffsolve.adaptive.options import Adaptive, Status, warn
from diffsolve.common.checks import required
from diffsolve.common.result import one_line
from diffsolve.common.tensors import per_sample
from diffsolve.execute.watch import Watch
from diffsolve.models import Model
from diffsolve.models.derivative import check_connected
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.tableau.frames import FRAMES

__all__ = ["AdaptiveRun", "solve_ode", "warn"]


Adjoint = Callable[[Tensor, Tensor, Origin], Tensor]
"""(z at the start, z at the end, its origin) -> z at the end with a gradient; see `diffsolve.gradients.adaptive`."""


@dataclass(frozen=True, repr=False)
class AdaptiveRun:
    """What `ds.solve` returns for an adaptive solver; numbers per sample are arrays of shape (B,)."""

    x: Tensor
    """(B, ..): the result; for a sample that stopped early, its state at `t`."""
    status: tuple[Status, ...]
    """How each sample's solve ended."""
    nfe: np.ndarray
    """Network calls of each sample. The batch was called as often as the largest of them."""
    t: np.ndarray
    """The time at which each sample stopped, on the path's clock."""
    h: np.ndarray
    """The step that each sample would have tried next, in units of the frame's variable."""
    times: np.ndarray | None
    """The times of the trajectory."""
    trajectory: Tensor | None
    """(n + 1, B, ..): the states at `times`, NaN beyond where a sample stopped; None unless asked for."""
    seed: int | Sequence[int] | Key | None = None

    @property
    def done(self) -> bool:
        """Whether every sample reached the end."""
        return all(status == Status.DONE for status in self.status)

    def __repr__(self) -> str:
        return one_line(self)


def solve_ode(
    model: Model,
    x: Tensor,
    options: Adaptive,
    start: float,
    stop: float,
    *,
    times: Sequence[float] | np.ndarray | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    gradient: str | None = None,
    adjoint: Adjoint | None = None,
    watch: Watch | None = None,
) -> AdaptiveRun:
    """Solve the probability-flow ODE from x at `start` to `stop`, in either direction.

    Where the frame is singular at an end, or the network does not determine the flow there, a first-order step replaces
    the method at that end (see `diffsolve.adaptive.flow.regular_interval`).

    Args:
        times: strictly monotone, from `start` to `stop`: where the trajectory is kept.
        gradient: "direct" or "checkpoint": differentiate x and the trajectory; see `diffsolve.gradients`.
        adjoint: gives the result the gradient of an adjoint equation instead.
        watch: is shown every output of the network.

    Raises:
        ValueError: if an end or one of the times is refused.

    Warns:
        RuntimeWarning: if some samples stop early, saying why and where.
    """
    with torch.set_grad_enabled(gradient is not None or adjoint is not None):
        flow = Flow(model, FRAMES[options.frame], len(x), x.dim(), cond or {}, guidance, watch)
        return _run(flow, x, options, start, stop, times, gradient, adjoint)


def _run(
    flow: Flow,
    x: Tensor,
    options: Adaptive,
    start: float,
    stop: float,
    times: Sequence[float] | np.ndarray | None,
    gradient: str | None,
    adjoint: Adjoint | None,
) -> AdaptiveRun:
    model, frame = flow.model, flow.frame
    interval = regular_interval(model, frame, start, stop)
    before, after = int(interval.first != interval.start), int(interval.last != interval.stop)
    kept = _Kept(times, interval, x)
    kept.at(interval.start, x)
    if before:
        x = make_step(flow, x, interval.start, interval.first)
        kept.at(interval.first, x)
    status, nfe = np.zeros(len(x), dtype=int), np.full(len(x), before)
    t, h = np.full(len(x), float(interval.last)), np.zeros(len(x))
    if interval.first != interval.last:
        x, solution = _between(flow, x, interval, options, before, after, kept, gradient, adjoint)
        status, nfe, h = solution.status, nfe + solution.nfe, solution.h
        with np.errstate(all="ignore"):
            t = np.asarray(frame.time(model.path, solution.v))
        t = np.where(status == Status.DONE, interval.last, t)
    if after and (rows := np.flatnonzero(status == Status.DONE)).size:
        finished = torch.from_numpy(rows).to(x.device)
        result = make_step(flow, x[finished], interval.last, interval.stop, rows)
        x, missing = x.index_copy(0, finished, result), torch.full_like(x, torch.nan)
        nfe, t = nfe + (status == Status.DONE), np.where(status == Status.DONE, interval.stop, t)
        kept.at(interval.stop, missing.index_copy(0, finished, result))
    outcome = tuple(Status(int(code)) for code in status)
    warn(outcome, t, h)
    return AdaptiveRun(x, outcome, nfe, t, h, kept.times, kept.states)


def _between(
    flow: Flow,
    x: Tensor,
    interval: RegularInterval,
    options: Adaptive,
    before: int,
    after: int,
    kept: _Kept,
    gradient: str | None,
    adjoint: Adjoint | None,
) -> tuple[Tensor, Solution]:
    """The interval that the method itself covers: the state where each sample stopped, and how it got there."""
    path, frame = flow.model.path, flow.frame
    nodes = path.nodes(np.array([interval.first, interval.last]))
    (v0, v1), (c0, _) = np.asarray(frame.v(nodes)).tolist(), np.asarray(frame.c(nodes)).tolist()
    exact_times = ((v0, interval.first), (v1, interval.last))
    looked: list[bool] = []

    def field(parts: Parts, v: np.ndarray, rows: np.ndarray) -> Parts:
        (z,) = parts
        point = flow.point(v, z, rows, exact_times)
        y = point.c * z
        out = point.seen(point.output(y))
        if y.requires_grad and not looked:
            looked.append(True)
            check_connected(out, y, point.output, "with gradient=")
        return (point.derivative(y, out),)

    inside = kept.inside(path, interval)
    outputs = np.asarray(frame.v(path.nodes(inside))) if len(inside) else inside
    z = x / c0
    with torch.set_grad_enabled(gradient is not None):
        solution = integrate(
            field, (z,), v0, v1, options, outputs=outputs.tolist(), spent=before, reserve=after,
            checkpointed=gradient == "checkpoint",
        )  # fmt: skip
    end = solution.parts[0]
    if adjoint is not None:
        end = adjoint(z, end, Origin(flow, options, exact_times, v0, solution.v))
    with np.errstate(all="ignore"):
        c = frame.c(path.nodes(np.asarray(frame.time(path, solution.v))))
    x = end * per_sample(torch.from_numpy(np.broadcast_to(c, len(x)).copy()).to(x.device, x.dtype), x)
    if solution.dense is not None:
        for time, z in zip(inside.tolist(), solution.dense, strict=True):
            kept.at(time, z * float(frame.c(path.nodes(np.array([time])))[0]))
    return x, solution


class _Kept:
    """The states at the times asked for."""

    def __init__(self, times: Sequence[float] | np.ndarray | None, interval: RegularInterval, x: Tensor) -> None:
        self.times, self.states = None if times is None else np.asarray(times, dtype=np.float64), None
        if self.times is None:
            return
        steps = np.diff(self.times)
        monotone = self.times.ndim == 1 and len(steps) > 0 and bool((steps > 0).all() or (steps < 0).all())
        required(monotone, "grid", self.times.tolist(), "strictly rising or strictly falling times")
        whole = self.times[0] == interval.start and self.times[-1] == interval.stop
        required(whole, "grid", self.times.tolist(), f"times from start={interval.start!r} to stop={interval.stop!r}")
        self.states = torch.full((len(self.times), *x.shape), torch.nan, dtype=x.dtype, device=x.device)

    def at(self, t: float, x: Tensor) -> None:
        if self.times is not None and self.states is not None:
            for i in np.flatnonzero(self.times == t):
                self.states[i] = x

    def inside(self, path: Any, interval: RegularInterval) -> np.ndarray:
        """The times in the method's own interval: after `first`, up to `last`."""
        if self.times is None:
            return np.empty(0)
        if interval.last > interval.first:
            inside = (self.times > interval.first) & (self.times <= interval.last)
            left_out = ((self.times > interval.start) & (self.times < interval.first)) | (
                (self.times > interval.last) & (self.times < interval.stop)
            )
        else:
            inside = (self.times < interval.first) & (self.times >= interval.last)
            left_out = ((self.times < interval.start) & (self.times > interval.first)) | (
                (self.times < interval.last) & (self.times > interval.stop)
            )
        if left_out.any():
            raise ValueError(
                f"grid must have no times inside the first-order steps at the ends, from {interval.start} to "
                f"{interval.first} and from {interval.last} to {interval.stop}, got {self.times[left_out].tolist()}"
            )
        return self.times[inside]
