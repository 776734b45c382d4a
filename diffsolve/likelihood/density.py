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
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict

from diffsolve.adaptive import Adaptive
from diffsolve.common.checks import required
from diffsolve.common.tensors import flat
from diffsolve.execute.options import ModelLike
from diffsolve.execute.plan import GridLike, last_time, own_times, plan, plan_back, refuse
from diffsolve.execute.watch import Watch, bar
from diffsolve.likelihood.carried import AnySolver, Density
from diffsolve.likelihood.results import LogProb
from diffsolve.likelihood.traces import Trace
from diffsolve.models import Model, as_model
from diffsolve.models.guidance import Guidance
from diffsolve.models.hints import hints
from diffsolve.noise import Key, SeedLike
from diffsolve.tableau import Tableau
from diffsolve.tableau.augmented import drop_final_denoise
from diffsolve.tableau.ends import CUT

__all__ = ["DEFAULT", "Density", "DensityOptions", "log_prob", "sample_with_density"]

DEFAULT = Adaptive("dopri5", rtol=1e-5, atol=1e-5)


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
    with (
        hints(model, cond or {}, Guidance.of(guidance)),
        torch.set_grad_enabled(gradient),
        bar(progress, None) as shown,
    ):
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
