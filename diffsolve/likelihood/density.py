r"""Log-densities of a model: the change of variables along its probability-flow ODE.

In a frame z = x / c, dz/dv = d (`diffsolve.tableau.frames`), the linear drift of x is in c, in closed form, and

    log p(x_s) = log p(x_t) + D log(c_t / c_s) + integral of div_z d dv from v_s to v_t

where x_t, at the noise end, is a normal of the prior's deviation. Of div_z d only the divergence of the network itself
has to be computed or estimated (`diffsolve.likelihood.traces`).

Where the network cannot be called at the data, the solve starts at its last time t from alpha x, and the rest is
extrapolated: along z = x / alpha the density obeys the heat equation in rho^2 / 2, so that to first order in rho^2

    log p_0(x) = log p_t(alpha x) + D log alpha + sigma div_x(eps) / 2 - |eps|^2 / 2

with one more call. The error is of order rho^4; without the extrapolation it is of order rho^2.
A solver whose frame is singular at the data (deis, dpmpp) likewise starts at rho = 1 / 1000.

Sources: Chen et al., 1806.07366, and Grathwohl et al., 1810.01367 (FFJORD); Song et al., 2011.13456, appendix D.2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict

from diffsolve.adaptive import Adaptive, Status, integrate
from diffsolve.adaptive.flow import Flow, Point, first_order, regular_interval
from diffsolve.adaptive.integrate import Parts
from diffsolve.adaptive.run import warn
from diffsolve.common.checks import mapping, required
from diffsolve.common.tensors import flat
from diffsolve.execute.options import ModelLike
from diffsolve.execute.plan import GridLike, last_time, own_times, plan, plan_back, refuse
from diffsolve.execute.watch import Watch, bar
from diffsolve.likelihood import traces
from diffsolve.likelihood.results import LogProb
from diffsolve.likelihood.traces import Trace
from diffsolve.models import Model, as_model
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key, SeedLike
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tableau.augmented import augmented, drop_final_denoise
from diffsolve.tableau.ends import CUT
from diffsolve.tableau.frames import FRAMES

__all__ = ["DEFAULT", "Density", "DensityOptions", "log_prob", "sample_with_density"]

DEFAULT = Adaptive("dopri5", rtol=1e-5, atol=1e-5)
EXACT = 128  # numbers per sample up to which the trace is exact by default

AnySolver = str | Solver | Tableau | Adaptive


class DensityOptions(TypedDict, total=False):
    """The options of `log_prob` that `bits_per_dim` passes on."""

    solver: AnySolver
    steps: int | None
    nfe: int | None
    grid: GridLike | None
    trace: str | Trace | None
    guidance: float | Guidance | None
    gradient: bool
    progress: bool
    check: bool


def log_prob(
    model: ModelLike,
    x: Tensor,
    *,
    solver: AnySolver = DEFAULT,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    trace: str | Trace | None = None,
    stop: float | None = None,
    seed: SeedLike | None = 0,
    index: int = 0,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    gradient: bool = False,
    progress: bool = False,
    check: bool = False,
) -> LogProb:
    """The log-density of samples under the model, that is, under the law of `ds.sample` with an exact solver.

    Args:
        x: (B, ..), data; float32 or float64.
        solver: `ds.Adaptive`, or any deterministic solver, with steps, nfe and grid as in `ds.encode`; or a Tableau
            from the data to the noise.
        trace: "exact", "hutchinson(probes=8)", "hutch++" or a `diffsolve.likelihood.traces.Trace`. By default exact
            for samples of at most 128 numbers, and 8 Rademacher probes beyond.
        stop: the early-stopping time: the density is that of x_stop / alpha, slightly noisy data. If None, it is that
            of the data itself, extrapolated where the network cannot be called there.
        seed, index: for the probes, as for the noise in `ds.solve`.
        cond, guidance: as in `ds.solve`.
        gradient: keep the graph of the solve, to differentiate `value` in x, cond and the network's parameters.
        progress, check: as in `ds.solve`.

    Raises:
        ValueError: if an option is out of range or unknown, or the solver has no density at the data.
        TypeError: if x is not a floating tensor, or cond not a mapping.

    Warns:
        RuntimeWarning: if the solver's error exceeds the error bar, the network is in half precision, or some samples
            stop before the end.
    """
    model = as_model(model)
    required(isinstance(x, Tensor) and x.is_floating_point(), "x", x, "a floating tensor of shape (B, ...)", TypeError)
    required(x.dim() > 0, "x", x, "of shape (B, ...)", TypeError)
    x = x if x.dtype == torch.float64 else x.float()
    path = model.path
    stop = None if stop == path.t_data else stop
    method, first = _backwards(model, solver, stop, steps=steps, nfe=nfe, grid=grid, shape=x.shape)
    with torch.set_grad_enabled(gradient), bar(progress, None) as shown:
        density = Density.of(model, x, solver, trace, Key.of(seed, index), cond, guidance, Watch(check, shown))
        alpha = float(path.alpha(first))
        start = alpha * x
        known = torch.full((len(x), 1), density.dim * math.log(alpha), dtype=torch.float64, device=x.device)
        extra = 0
        if first != path.t_data and stop is None and not isinstance(solver, Tableau):
            noise, half = density.at_end(start, first)
            known, extra = known + half - flat(noise.double().square()).sum(1, keepdim=True) / 2, 1
        flow = density.follow(start, first, path.t_noise, method)
        values = density.prior(flow.x)[:, None] + known + flow.growth
    return density.result(values, flow, flow.x, extra, path.t_data if stop is None else first)


def _backwards(
    model: Model,
    solver: AnySolver,
    stop: float | None,
    *,
    steps: int | None,
    nfe: int | None,
    grid: GridLike | None,
    shape: Sequence[int],
) -> tuple[Adaptive | Tableau, float]:
    """The solver or tableau from the data end to the noise, and the time at which it starts."""
    path = model.path
    first = last_time(model) if stop is None else float(stop)
    if not path.within(first) or not model.determined(first):
        raise ValueError(f"stop must be a time on {path} where the network gives the data and the noise, got {stop!r}")
    if isinstance(solver, Adaptive):
        refuse("an adaptive solver", steps=steps, nfe=nfe, grid=grid)
        return solver, first
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", steps=steps, nfe=nfe, grid=grid, stop=stop)
        tableau = solver
    else:
        tableau = plan_back(model, solver, steps=steps, nfe=nfe, grid=grid, begin=first, shape=shape)
        if _singular(tableau) and own_times(grid) is None:
            tableau = plan_back(
                model, solver, steps=steps, nfe=nfe, grid=grid, begin=float(path.time(CUT)), shape=shape
            )
    if _singular(tableau):
        raise ValueError(
            f"solver must be in the frame 'straight' or 'trig' on a grid from the data, got {tableau.solver!r}: its "
            f"frame {tableau.frame[0]!r} is singular at the data, where a step has no density; begin the grid off it"
        )
    if tableau.times[-1] != path.t_noise:
        raise ValueError(f"grid must end at the noise end t={path.t_noise}, got t={tableau.times[-1]}")
    return tableau, float(tableau.times[0])


def sample_with_density(
    model: Model,
    x: Tensor,
    solver: AnySolver,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    trace: str | Trace | None = None,
    key: Key,
    cond: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    watch: Watch | None = None,
) -> tuple[Tensor, LogProb]:
    """(samples, their log-densities) from x at the noise end, in one pass.

    Where the network cannot be called at the data, or the solver's frame is singular there, the samples are the
    denoised estimate at the last time t, as in any run, and by the same extrapolation as in `log_prob`

        log p_0(D(x_t)) = log p_t(x_t) + D log alpha + sigma div_x(eps) / 2 + |eps|^2 / 2

    The same holds for a tableau that ends with a step onto the denoised estimate, from any time; for one that stops
    short of the data, the result is log p_t(x_t).
    """
    path, last = model.path, last_time(model)
    density = Density.of(model, x, solver, trace, key, cond, guidance, watch)
    extrapolated, stop = last != path.t_data, path.t_data
    if isinstance(solver, Adaptive):
        refuse("an adaptive solver", steps=steps, nfe=nfe, grid=grid)
        flow = density.follow(x, path.t_noise, last, solver)
    else:
        if isinstance(solver, Tableau):
            refuse("a tableau as solver", steps=steps, nfe=nfe, grid=grid)
            tableau, extrapolated = drop_final_denoise(solver)
            last = float(tableau.times[-1])
            stop = path.t_data if extrapolated else last
        else:
            tableau = plan(
                model, solver, steps=steps, nfe=nfe, grid=grid, stop=last if extrapolated else None, shape=x.shape
            )
            if drop_final_denoise(tableau)[1] and not extrapolated:
                last, extrapolated = float(path.time(CUT)), True
                tableau = plan(model, solver, steps=steps, nfe=nfe, grid=grid, stop=last, shape=x.shape)
        if tableau.times[0] != path.t_noise:
            raise ValueError(f"grid must begin at the noise end t={path.t_noise}, got t={tableau.times[0]}")
        flow = density.follow(x, path.t_noise, last, tableau)
    values, end, extra = density.prior(x)[:, None] - flow.growth, flow.x, 0
    if extrapolated:
        alpha, sigma = float(path.alpha(last)), float(path.sigma(last))
        noise, half = density.at_end(end, last)
        squares = flat(noise.double().square()).sum(1, keepdim=True)
        values, extra = values + density.dim * math.log(alpha) + half + squares / 2, 1
        end = (end - sigma * noise) / alpha
    return end, density.result(values, flow, x, extra, stop)


def _singular(tableau: Tableau) -> bool:
    """Whether the tableau starts at the data, in a frame where a step from there has no density."""
    return bool(tableau.calls[0, 2] == 0 and tableau.frame[0] in ("noise", "denoised", "lambda"))


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
        cond = mapping("cond", cond)
        if model.dtype in (torch.float16, torch.bfloat16):
            warnings.warn(
                f"the network computes in {model.dtype}: its rounding enters the log-density, and no error bar knows "
                "of it; float32 weights are better here",
                RuntimeWarning,
                stacklevel=3,
            )
        dim = x.shape[1:].numel()
        if trace is None:
            trace = "exact" if dim <= EXACT else "hutchinson"
        trace = traces.named(trace)
        frame = FRAMES[solver.frame if isinstance(solver, Adaptive) else "trig"]
        guided = guidance if isinstance(guidance, Guidance | None) else Guidance(guidance)
        flow = Flow(model, frame, len(x), x.dim(), cond, guided, watch)
        return cls(flow, trace, trace.directions(x.shape, key, x), dim)

    def rates(self, point: Point, x: Tensor, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(d, div_z d) at x."""
        v = self.directions
        if v is not None and rows is not None and len(rows) < v.shape[1]:
            v = v[:, torch.from_numpy(rows).to(v.device)]
        out, estimates = self.trace(point.output, x, v)
        return point.derivative(x, point.seen(out)), point.divergence(estimates, self.dim)

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

        after = int(interval.last != interval.stop)
        solution = integrate(field, (x / c[0], growth), float(v[0]), float(v[1]), options, spent=before, reserve=after)
        x, growth = solution.parts[0] * c[1], solution.parts[1] + self.dim * math.log(c[1] / c[0])
        if after:
            x, growth = self._step(x, growth, interval.last, interval.stop)
        status = tuple(Status(int(code)) for code in solution.status)
        with np.errstate(all="ignore"):
            warn(status, np.asarray(frame.time(path, solution.v)), solution.h)
        finished = torch.from_numpy(solution.status == Status.DONE).to(x.device)
        return FlowResult(
            x, torch.where(finished[:, None], growth, torch.nan), solution.nfe + before + after, solution.error, status
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
