"""Samples and their log-densities, carried along the flow of a model; see `diffsolve.likelihood.density`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive import Adaptive, Status, integrate
from diffsolve.adaptive.flow import Flow, Point, first_order, regular_interval
from diffsolve.adaptive.integrate import Parts
from diffsolve.adaptive.run import warn
from diffsolve.adaptive.step import tensor
from diffsolve.common.tensors import flat, per_sample
from diffsolve.execute.watch import Watch
from diffsolve.likelihood import traces
from diffsolve.likelihood.results import LogProb
from diffsolve.likelihood.traces import Trace
from diffsolve.models import Model
from diffsolve.models.conditions import conditions
from diffsolve.models.derivative import check_derivative, unwrapped
from diffsolve.models.guidance import Guidance
from diffsolve.models.hints import warn_training
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tableau.augmented import augmented
from diffsolve.tableau.frames import FRAMES, PREDICTIONS, convert

__all__ = ["AnySolver", "Density", "FlowResult"]

MARGIN = 3.0
"""On the effect of errors of x, which is an estimate and no bound. Measured far from the data: 2.4 times it on a ring
in the plane (EDM, VP, CondOT), .85 on two modes on a line (EDM, VP, rectified, cosine). No factor makes it a bound:
on four modes in three dimensions (cosine), whose flow turns within a step, 17 times it at 1e-5, 3.5 at 1e-6."""
EXACT = 128  # numbers per sample up to which the trace is exact by default

AnySolver = str | Solver | Tableau | Adaptive


@dataclass(frozen=True)
class FlowResult:
    """The end of a solve along the flow, with log |det dx_end / dx_start|."""

    x: Tensor
    growth: Tensor
    """(B, m), float64."""
    nfe: np.ndarray
    error: np.ndarray
    status: tuple[Status, ...]


@dataclass(frozen=True)
class Density:
    """Carries samples and their log-densities along the flow of a model."""

    flow: Flow
    trace: Trace
    directions: Tensor | None
    dim: int
    ways: list[Trace] = field(default_factory=list)
    """The trace in the modes that are left to try; the first of them is in use."""
    checked: list[bool] = field(default_factory=list)
    """Not empty once the network's derivative has been looked at."""

    @classmethod
    def of(
        cls,
        model: Model,
        x: Tensor,
        solver: AnySolver,
        trace: str | Trace | None,
        key: Key,
        cond: Mapping[str, Any] | None,
        guidance: float | Guidance | None,
        watch: Watch | None = None,
    ) -> Density:
        cond = conditions("cond", cond)
        if model.dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"the network computes in {model.dtype}: its rounding enters the log-density, and no error bar knows "
                "of it; float32 weights are better here",
                RuntimeWarning,
                stacklevel=3,
            )
        if not torch.is_grad_enabled():
            warn_training(model.net)
        dim = x.shape[1:].numel()
        if trace is None:
            trace = "exact" if dim <= EXACT else "hutchinson"
        trace = traces.named(trace)
        frame = FRAMES[solver.frame if isinstance(solver, Adaptive) else "trig"]
        guided = guidance if isinstance(guidance, Guidance | None) else Guidance(guidance)
        model = replace(model, net=unwrapped(model.net, gradient=torch.is_grad_enabled()))
        flow = Flow(model, frame, len(x), x.dim(), cond, guided, watch)
        return cls(flow, trace, trace.directions(x.shape, key, x), dim, traces.ways(trace))

    def rates(self, point: Point, x: Tensor, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(d, div_z d) at x."""
        v = self.directions
        if v is not None and rows is not None and len(rows) < v.shape[1]:
            v = v[:, torch.from_numpy(rows).to(v.device)]
        out, estimates = self._traced(point, x, v)
        return point.derivative(x, point.seen(out)), point.divergence(estimates, self.dim)

    def _traced(self, point: Point, x: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output and the estimates, in the first mode whose derivatives the network has.

        Raises:
            ValueError: if the network changes with x but has no derivative in it, which is looked at once.
        """
        while True:
            try:
                out, estimates = self.ways[0](point.output, x, v)
                break
            except RuntimeError as error:  # NotImplementedError is one
                if len(self.ways) == 1 or isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                del self.ways[0]
        if not self.checked:
            self.checked.append(True)
            if not bool(estimates.any()):  # as they are, too, where the network does not depend on x
                check_derivative(point.output, x, "for a density")
        return out, estimates

    def prior(self, x: Tensor) -> Tensor:
        """The log-density of x at the noise end."""
        std = self.flow.model.path.prior_std()
        squares = flat((x.double() / std).square()).sum(1)
        return -squares / 2 - self.dim * math.log(std * math.sqrt(2 * math.pi))

    def at_end(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(eps, sigma div_x(eps) / 2) at the last time before the data."""
        at = self.flow.model.path.nodes(np.full(len(x), t))
        point = self.flow.place(at, FRAMES["noise"].d(at), 1.0, x)
        noise, divergence = self.rates(point, x)
        return noise, divergence * (float(self.flow.model.path.sigma(t)) / 2)

    def follow(self, x: Tensor, start: float, stop: float, solver: Adaptive | Tableau) -> FlowResult:
        """Solve from `start` to `stop`; sigma may be 0 at either only where the network may be called there."""
        return self._adaptive(x, start, stop, solver) if isinstance(solver, Adaptive) else self._fixed(x, solver)

    def _fixed(self, x: Tensor, tableau: Tableau) -> FlowResult:
        rows = augmented(tableau)
        at = self.flow.model.path.nodes(tableau.calls[:, 0])
        # The part of d along x is known, and large at an end in the exponential frames. Its effect on volumes, from end
        # to end (alpha^2 + sigma^2)^(D / 2), is exact and not left to the weights. In "trig" there is no such part.
        _, alpha, sigma = tableau.calls.T
        along = self.dim * rows.units[:-1] * (alpha * rows.d[:, 0] + sigma * rows.d[:, 1]) / (alpha**2 + sigma**2)

        def field(i: int, parts: Parts) -> Parts:
            here, d = at[np.full(len(x), i)], rows.d[i]
            point = self.flow.place(here, (np.full(len(x), d[0]), np.full(len(x), d[1])), rows.units[i], x)
            derivative, divergence = self.rates(point, point.c * parts[0])
            return derivative, divergence - along[i]

        z, growth = rows.run(field, (x, self._none(x)))
        radii = np.hypot(tableau.grid[[0, -1], 1], tableau.grid[[0, -1], 2])
        growth = growth + self.dim * math.log(radii[1] / radii[0])
        calls = np.full(len(x), tableau.nfe)
        return FlowResult(z * rows.units[-1], growth, calls, np.full(len(x), math.nan), (Status.DONE,) * len(x))

    def _adaptive(self, x: Tensor, start: float, stop: float, options: Adaptive) -> FlowResult:
        frame, path = self.flow.frame, self.flow.model.path
        interval = regular_interval(self.flow.model, frame, start, stop)
        growth, before = self._none(x), 0
        if interval.first != interval.start:
            (x, growth), before = self._step(x, growth, interval.start, interval.first), before + 1
        nodes = path.nodes(np.array([interval.first, interval.last]))
        v, c = np.asarray(frame.v(nodes)), np.asarray(frame.c(nodes))
        exact_times = ((float(v[0]), interval.first), (float(v[1]), interval.last))

        def field(parts: Parts, v: np.ndarray, rows: np.ndarray) -> Parts:
            point = self.flow.point(v, parts[0], rows, exact_times)
            return self.rates(point, point.c * parts[0], rows)

        def score(parts: Parts, slopes: Parts, v: np.ndarray) -> Tensor:
            """c grad log p: the flow carries log p - growth along, and an error of z changes log p by this times it."""
            at = path.nodes(np.asarray(frame.time(path, v)))
            with np.errstate(all="ignore"):
                c = np.broadcast_to(frame.c(at), v.shape)
                on_x, on_d = convert(PREDICTIONS["score"](at, 1.0), frame.d(at), at.alpha, at.sigma)
            (z, _), (d, _) = parts, slopes
            return per_sample(tensor(on_x * c * c, z), z) * z + per_sample(tensor(on_d * c, z), z) * d

        after = int(interval.last != interval.stop)
        solution = integrate(
            field, (x / c[0], growth), float(v[0]), float(v[1]), options, spent=before, reserve=after, gauge=score
        )
        x, growth = solution.parts[0] * c[1], solution.parts[1] + self.dim * math.log(c[1] / c[0])
        if after:
            x, growth = self._step(x, growth, interval.last, interval.stop)
        status = tuple(Status(int(code)) for code in solution.status)
        with np.errstate(all="ignore"):
            warn(status, np.asarray(frame.time(path, solution.v)), solution.h)
        finished = torch.from_numpy(solution.status == Status.DONE).to(x.device)
        return FlowResult(
            x,
            torch.where(finished[:, None], growth, torch.nan),
            solution.nfe + before + after,
            solution.error + MARGIN * solution.drift,
            status,
        )

    def _step(self, x: Tensor, growth: Tensor, s: float, t: float) -> tuple[Tensor, Tensor]:
        """The first-order step at an end, with its growth to first order."""
        point, ratio, gain = first_order(self.flow, x, s, t)
        d, divergence = self.rates(point, x)
        return ratio * x + gain * d, growth + self.dim * math.log(ratio) + gain / ratio * divergence

    def _none(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), self.trace.estimates, dtype=torch.float64, device=x.device)

    def result(self, values: Tensor, flow: FlowResult, latent: Tensor, extra: int, stop: float) -> LogProb:
        """The mean and error of estimates (B, m); `extra` calls were made besides those of the solve."""
        stderr = self.trace.stderr(values.detach(), self.dim)
        nfe = flow.nfe + extra
        bars = stderr.detach().cpu().numpy()
        over = (bars > 0) & (flow.error > bars)
        if over.sum() > len(over) / 2:
            warnings.warn(
                f"the solver's own error, {np.median(flow.error):.2g} nats, exceeds the error bar, "
                f"{np.median(bars):.2g}: lower its tolerance",
                RuntimeWarning,
                stacklevel=3,
            )
        return LogProb(
            values.mean(1), stderr, latent, nfe, nfe * self.trace.count(self.dim), flow.error, flow.status, stop,
            self.dim,
        )  # fmt: skip
