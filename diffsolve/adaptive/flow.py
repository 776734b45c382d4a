"""The probability-flow ODE of a model in the coordinates of a frame, each sample at its own time.

In a frame z = x / c, dz/dv = d (see `diffsolve.tableau.frames`). The network's output gives d as p x + q out, so that

    dz/dv = p c z + q out(c z),      div_z d = p c D + q c div_x out

for D numbers per sample: only the network's own divergence has to be estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.options import Adaptive
from diffsolve.common.checks import required
from diffsolve.execute import conversion
from diffsolve.execute.watch import Watch
from diffsolve.models import Model, undetermined
from diffsolve.models.conditions import picked, told
from diffsolve.models.guidance import Guidance
from diffsolve.paths import Position
from diffsolve.tableau.ends import first_call, first_order_frame, last_call, singular
from diffsolve.tableau.frames import Frame

__all__ = ["Flow", "Origin", "Point", "RegularInterval", "first_order", "make_step", "regular_interval"]

SampleIndex = np.ndarray | None
"""Indices of samples in the batch; None for all of them."""


@dataclass(frozen=True)
class Point:
    """The coefficients of the derivative at the time of each of n samples. Tensors of shape (n, 1, ..)."""

    c: Tensor
    p: Tensor
    q: Tensor
    output: Callable[[Tensor], Tensor]
    """The network with its guidance and times filled in: a function of x alone."""
    growth: Tensor
    """(2, n), float64: p c and q c, of which div_z d = p c D + q c div_x out."""
    t: np.ndarray
    """(n,): the times, on the path's clock."""
    watch: Watch | None

    def seen(self, out: Tensor) -> Tensor:
        """The network's output, unchanged, after it has been shown to `watch`."""
        if self.watch is not None:
            self.watch(out, self.t)
        return out

    def rate(self, x: Tensor) -> Tensor:
        """d at x."""
        return self.derivative(x, self.seen(self.output(x)))

    def derivative(self, x: Tensor, out: Tensor) -> Tensor:
        """d = p x + q out, in the dtype of x."""
        return torch.addcmul(self.p * x, self.q, out.to(x.dtype))

    def divergence(self, traces: Tensor, dim: int) -> Tensor:
        """div_z d of each sample, float64, from (n, m) values of div_x out; `dim` is D."""
        linear, gain = self.growth[:, :, None]
        rate: Tensor = linear * dim + gain * traces.to(gain.dtype)
        return rate


@dataclass(frozen=True)
class Flow:
    """dz/dv = d of `model` in `frame`, with its conditions and guidance.

    When a sample leaves the batch, its row leaves the tensors in `cond` whose first axis is the batch; what is `Shared`
    stays whole.
    """

    model: Model
    frame: Frame
    batch: int
    ndim: int
    """The number of axes of x."""
    cond: Mapping[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None
    watch: Watch | None = None

    def point(
        self, v: np.ndarray, like: Tensor, rows: SampleIndex = None, exact_times: Sequence[tuple[float, float]] = ()
    ) -> Point:
        """The samples `rows` at the values v of the frame's variable.

        Args:
            v: (n,), float64.
            like: a tensor of the dtype and device to compute in.
            exact_times: (v, t) of the ends, where t is known without rounding.
        """
        with np.errstate(all="ignore"):
            t = np.asarray(self.frame.time(self.model.path, v))
        for end, time in exact_times:
            t = np.where(v == end, time, t)
        at = self.model.path.nodes(t)
        with np.errstate(all="ignore"):
            d, c = self.frame.d(at), self.frame.c(at)
        return self.place(at, d, c, like, rows)

    def place(
        self, at: Position[np.ndarray], d: tuple[Any, Any], c: Any, like: Tensor, rows: SampleIndex = None
    ) -> Point:
        """The samples at positions `at`, for derivatives d = (a, b) in coordinates z = x / c."""
        p, q = conversion(d, self.model, at)
        bad = ~(np.isfinite(p) & np.isfinite(q))
        if bad.any():
            raise undetermined(self.model.predicts, self.frame.name, at.t[bad])
        scale = self.model.input_scale(at)
        columns = np.stack([np.broadcast_to(w, at.t.shape) for w in (c, p, q, 1.0 if scale is None else scale)])
        shape = (4, -1, *[1] * (self.ndim - 1))
        c_, p_, q_, scale_ = torch.from_numpy(columns).to(like.device, like.dtype).view(shape)
        network_time = self.model.network_time(torch.from_numpy(np.array(at.t)))
        network_time = network_time.to(like.device, self.model.time_dtype(like.dtype))
        with np.errstate(divide="ignore"):
            rho = at.sigma / at.alpha

        cond = _select(self.cond, rows, self.batch)
        given = {} if self.guidance is None else _select(self.guidance.given, rows, self.batch)
        if self.guidance is None:
            cond = told(cond)

        def output(x: Tensor) -> Tensor:
            scaled = x if scale is None else x * scale_
            if self.guidance is None:
                return self.model.call(scaled, network_time, cond)
            return self.guidance.output(self.model, scaled, network_time, rho, cond, given)

        wide = torch.float32 if like.device.type == "mps" else torch.float64
        growth = torch.from_numpy(columns[1:3] * columns[0]).to(like.device, wide)
        return Point(c_, p_, q_, output, growth, np.asarray(at.t), self.watch)


@dataclass(frozen=True)
class Origin:
    """What the adjoint of a solve needs to know of it."""

    flow: Flow
    options: Adaptive
    exact_times: Sequence[tuple[float, float]]
    """(v, t) of its ends."""
    start: float
    """v at which the solve starts."""
    ended: np.ndarray
    """(B,): v at which each sample stopped."""

    def derivative(self, v: np.ndarray, rows: np.ndarray) -> Callable[[Tensor], Tensor]:
        """z -> d of the samples `rows` at v."""

        def d(z: Tensor) -> Tensor:
            # The rows of the conditions are picked here, where there is a graph.
            point = self.flow.point(v, z, rows, self.exact_times)
            x = point.c * z
            return point.derivative(x, point.output(x))

        return d


@dataclass(frozen=True)
class RegularInterval:
    """The three parts of a run, on the path's clock: a first-order step from `start` to `first`, the method
    itself to `last`, and a first-order step to `stop`. A part whose ends are equal is left out."""

    start: float
    first: float
    last: float
    stop: float


def regular_interval(model: Model, frame: Frame, start: float, stop: float) -> RegularInterval:
    """The interval between two times on which the frame is regular and the network determines it, in either direction.

    Where the data end is singular, the method starts or stops at the path's last time, or at lambda = log 1000 if there
    is none; where the noise end is singular, at lambda = -log 1000.

    Raises:
        ValueError: if a time is outside the path, both are equal, or the network does not determine the flow at one.
    """
    path = model.path
    for name, t in (("start", start), ("stop", stop)):
        required(path.within(t), name, t, f"between {path.t_noise} and {path.t_data}, the ends of {path}")
    if start == stop:
        raise ValueError(f"start and stop must be different times, got {start!r} and {stop!r}")

    def inner(t: float) -> float:
        at = path.nodes([t])[0]
        with np.errstate(all="ignore"):
            v, c = frame.v(at), frame.c(at)
        if model.determined(t) and not singular(frame, path, at) and np.isfinite(v) and c > 0:
            return t
        if t == path.t_data:
            return last_call(path)
        if at.alpha > 0:
            raise undetermined(model.predicts, frame.name, t)
        return first_call(path)

    interval = RegularInterval(start, inner(start), inner(stop), stop)
    orientation = path.t_data - path.t_noise if np.isfinite(path.t_data) else -path.t_noise
    orientation = orientation if float(path.lam(start)) < float(path.lam(stop)) else -orientation
    if (interval.last - interval.first) * orientation <= 0:  # nothing is left in between: one first-order step
        return RegularInterval(start, start, start, stop)
    return interval


def first_order(flow: Flow, x: Tensor, s: float, t: float, rows: SampleIndex = None) -> tuple[Point, float, float]:
    """(point, ratio, gain) of the rule for the ends: x_t = ratio x_s + gain d, d the denoised, or out of sigma = 0 the
    noise; `point` has c = 1. x is that of the samples `rows`."""
    here, there = (flow.model.path.nodes([time])[0] for time in (s, t))
    frame = first_order_frame(here, there)
    with np.errstate(all="ignore"):
        ratio, gain = frame.step(here, there)
    at = flow.model.path.nodes(np.full(len(x), s))
    return flow.place(at, frame.d(at), 1.0, x, rows), float(ratio), float(gain)


def make_step(flow: Flow, x: Tensor, s: float, t: float, rows: SampleIndex = None) -> Tensor:
    """x_t by one network call at s; see `first_order`."""
    point, ratio, gain = first_order(flow, x, s, t, rows)
    return ratio * x + gain * point.rate(x)


def _select(given: Mapping[str, Any], rows: SampleIndex, batch: int) -> Mapping[str, Any]:
    if rows is None or len(rows) == batch:
        return given
    selected: Mapping[str, Any] = picked(given, torch.from_numpy(rows), batch)
    return selected
