"""`sample`, `solve`, `encode` and `diffuse`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

from torch import Tensor
from typing_extensions import Unpack

from diffsolve.adaptive import Adaptive, AdaptiveRun, AdaptiveSDE
from diffsolve.api.drivers import driver_for
from diffsolve.api.options import DEFAULTS, RunOptions, SampleOptions, SolveOptions, check_values
from diffsolve.common.options import given, refuse_unknown, shows
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import DEFAULT_SOLVER, last_time, plan_back, refuse
from diffsolve.execute.results import Run
from diffsolve.execute.start import Problem
from diffsolve.likelihood import DensityRun, LogProb
from diffsolve.likelihood.traces import Trace
from diffsolve.models import Guidance, as_model
from diffsolve.models.hints import hints
from diffsolve.noise import Key, SeedLike, Stream
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["diffuse", "encode", "sample", "sample_with_log_prob", "solve"]


@overload
def solve(
    model: ModelLike,
    shape: Shape | None = None,
    *,
    solver: Adaptive | AdaptiveSDE,
    log_prob: Literal[False] = False,
    **options: Unpack[RunOptions],
) -> AdaptiveRun: ...
@overload
def solve(
    model: ModelLike,
    shape: Shape | None = None,
    *,
    log_prob: Literal["model"],
    solver: str | Solver | Tableau | Adaptive = DEFAULT_SOLVER,
    **options: Unpack[RunOptions],
) -> DensityRun: ...
@overload
def solve(
    model: ModelLike,
    shape: Shape | None = None,
    *,
    solver: str | Solver | Tableau = DEFAULT_SOLVER,
    log_prob: bool = False,
    **options: Unpack[RunOptions],
) -> Run: ...
@shows(SolveOptions, **DEFAULTS)
def solve(
    model: ModelLike, shape: Shape | None = None, **options: Unpack[SolveOptions]
) -> Run | AdaptiveRun | DensityRun:
    """Run a solver on a model.

    Every option is honoured or refused; `diffsolve.api.drivers` lists which driver accepts which.

    Args:
        model: a Model, from `ds.adapt` or `ds.load`; or an object that `ds.adapt` takes, such as a diffusers pipeline.
        shape: (B, ...), the shape of the batch; its noise is drawn from `seed`. Or
        noise: (B, ...), the initial state, at the path's noise end (with the prior's standard deviation) or at `start`.
        solver, steps, nfe, grid, start, stop: as in `plan`; or `solver` is a finished Tableau, `ds.AdaptiveSDE`, or
            `ds.Adaptive`: then `grid` may be the times at which the trajectory is kept.
        seed: an int, or one per sample. Sample i depends only on (seed, index + i), or on its own seed, not on the rest
            of the batch. If None a seed is drawn, and kept in `Run.seed`. A `torch.Generator` gives the next seed
            of its stream. A `ds.Key` can also make the noise antithetic or shared, and has its own index.
        index: the index of the first sample, for a larger batch that is sampled in shards.
        cond: keyword arguments for the network, passed unchanged. Where samples are picked from the batch (adaptive
            solvers, densities, `parallel`, `ds.tune`), a tensor whose first axis is the batch size B, in mappings,
            lists and tuples too, has one entry per sample; `ds.Shared(tensor)` is one that all samples share,
            whatever its shape. Both are so in every function with `cond`.
        guidance: classifier-free guidance: a scale, or a `Guidance` with the arguments of the unconditional call.
        corrector: Langevin steps at each node before the network is called there (predictor-corrector, 2011.13456).
            Its calls are included in `Run.nfe`; it cannot be combined with nfe or with a hook.
        hook: called with each `Step` before the update; it may return another denoised estimate.
        callback: called with each `Step` after the update.
        trajectory: True keeps the states at the grid nodes that are a network's input or the result; "calls" keeps
            every network input and the result.
        log_prob: True computes the log-density of every stochastic transition (see `ds.transition_log_prob`), for
            which each row's noise is drawn twice. "model" computes the log-densities of the samples in the same pass:
            see `ds.sample_with_log_prob`.
        brownian: a `ds.Brownian` of the state's shape (or torchsde's `BrownianInterval`) as the source of the noise, so
            that runs with different numbers of steps follow the same path. For solvers whose noise is that of an SDE;
            the clock is e^{2A}, from 0 at alpha = 0 (see `diffsolve.solvers.sde`).
        progress: show a bar.
        check: raise a FloatingPointError at the first call whose output is not finite (of a graph, if its result is
            not finite). Costs a device synchronisation per call.
        max_calls: stop after this number of calls; `Run.state` continues the run.
        variance: "learned" gives the noise of a step of "ddpm" the variance that the network has learned; see
            `ds.models.LearnedVariance`.
        graph: record the run as a CUDA graph, or replay it if the same run of this network was recorded. The network
            must support recording, and the tensors in `cond` must have the recorded shapes; the seed may change between
            replays of a deterministic solver, but is part of the recording of a stochastic one.
        state: the `Run.state` to continue from, with the solver (or tableau) of that run.
        parallel: make many calls at once: `ds.Picard(...)`, `ds.Parareal(...)`, `ds.Independent(...)`.
        gradient: "direct", "checkpoint" or "adjoint": x is differentiable in `noise`, `cond` and the network's
            parameters; see `diffsolve.gradients`. So is the trajectory of an adaptive solver, except with "adjoint".
        dtype: of the state. By default float32, or float64 if the noise, the network or torch's default dtype is.
        device: of the state; by default that of `noise` or of the network.

    Returns:
        A `Run`, an `AdaptiveRun` of an adaptive solver, or a `DensityRun` for log_prob="model"; its x is of the
        state's dtype.

    Raises:
        ValueError: if an option is out of range or not accepted by the driver, or the network returns another shape.
        TypeError: if an option is unknown or of the wrong type, or the network needs an argument in `uncond`.
        FloatingPointError: with `check`, if an output is not finite.
    """
    refuse_unknown("solve", options, SolveOptions)
    check_values(options)
    run: Run | AdaptiveRun | DensityRun = _solved(model, shape, options)
    return run


def _solved(model: ModelLike, shape: Shape | None, options: Mapping[str, Any]) -> Any:
    """What the driver of the options returns."""
    driver, problem = driver_for(options), Problem.of(model, shape, options)
    with hints(problem.model, problem.cond, problem.guidance):
        return driver.solve(problem, options)


@shows(SampleOptions, **DEFAULTS)
def sample(model: ModelLike, shape: Shape | None = None, **options: Unpack[SampleOptions]) -> Tensor:
    """Samples from a model: `ds.solve(model, shape, ...).x`.

        x = ds.sample(model, (64, 3, 32, 32), solver="unipc-3", nfe=10, seed=0)

    The options are those of `ds.solve`, except trajectory and log_prob, whose results only a `Run` holds.

    Raises:
        ValueError, TypeError, FloatingPointError: as `ds.solve`; ValueError also if trajectory or log_prob is given.
    """
    kept = [name for name in ("trajectory", "log_prob") if name in given(options)]
    if kept:
        raise ValueError(f"{kept[0]} is not an option of sample, which returns only the samples; use ds.solve")
    plain: dict[str, Any] = {name: value for name, value in options.items() if name not in ("trajectory", "log_prob")}
    refuse_unknown("sample", plain, SampleOptions)
    x: Tensor = solve(model, shape, **plain).x
    return x


@shows(SampleOptions, **DEFAULTS)
def sample_with_log_prob(
    model: ModelLike,
    shape: Shape | None = None,
    *,
    trace: str | Trace | None = None,
    **options: Unpack[SampleOptions],
) -> tuple[Tensor, LogProb]:
    """Samples and their log-densities under the model, computed in one pass; see `ds.log_prob`.

        x, log_prob = ds.sample_with_log_prob(model, (64, 2), solver="rk4", steps=20, seed=0)

    Args:
        trace: as in `ds.log_prob`.

    The other options are those of `ds.solve` with a deterministic solver, from the noise end to the data.
    """
    refuse_unknown("sample_with_log_prob", options, SampleOptions)
    check_values(options)
    every: dict[str, Any] = {**options, "log_prob": "model", "trace": trace}
    run: DensityRun = _solved(model, shape, every)
    return run.x, run.log_prob


ENCODED = ("noise", "state", "shape")


@shows(SampleOptions, **DEFAULTS)
def encode(model: ModelLike, x: Tensor, **options: Unpack[SampleOptions]) -> Tensor:
    """Data to noise: the probability-flow ODE from the data end to the noise end, at the prior's scale.

        z = ds.encode(model, x, solver="heun", steps=50)
        back = ds.sample(model, noise=z, solver="heun", steps=50)       # x, up to the solver's error

    The grid is that of sampling, reversed. Where the network cannot be called on the data itself, the run starts at the
    last time at which it can, from the mean alpha x.

    Args:
        x: (B, ...): data; with `start`, the state at that time.
        solver: a deterministic solver: a name, a solver object, or `ds.Adaptive`.
        start, stop: times on the path's clock, from the data towards the noise.

    The other options are those of `ds.solve`.

    Raises:
        ValueError, TypeError, FloatingPointError: as `ds.solve`; ValueError also if `noise` or `state` is given.
    """
    refuse_unknown("encode", options, SampleOptions)
    refuse("encode, which starts from x", **{name: options.get(name) for name in ENCODED})
    model, guided = as_model(model), Guidance.of(options.get("guidance"))
    solver, start, stop = options.get("solver", DEFAULT_SOLVER), options.get("start"), options.get("stop")
    rest: dict[str, Any] = {
        k: v for k, v in options.items() if k not in ("solver", "start", "stop", "steps", "nfe", "grid")
    }
    planned: dict[str, Any] = {name: options.get(name) for name in ("steps", "nfe", "grid")}
    if isinstance(solver, Tableau | AdaptiveSDE):
        raise ValueError(
            f"solver must be the name of a deterministic solver, a solver object or a ds.Adaptive, got {solver!r:.80}"
        )
    begin = last_time(model) if start is None else float(start)
    if isinstance(solver, Adaptive):
        refuse("an adaptive solver", **planned)
        state = x * float(model.path.alpha(begin)) if start is None else x
        end = model.path.t_noise if stop is None else float(stop)
        return sample(model, noise=state, solver=solver, start=begin, stop=end, **rest)
    tableau = plan_back(model, solver, **planned, guidance=guided.level, begin=begin, end=stop, shape=x.shape)
    state = x * float(tableau.grid[0, 1]) if start is None else x
    if options.get("gradient") == "adjoint":  # which needs the solver itself, not its tableau
        return sample(model, noise=state, solver=solver, grid=tableau.times, **rest)
    return sample(model, noise=state, solver=tableau, **rest)


def diffuse(model: ModelLike, x: Tensor, t: float, *, seed: SeedLike | None = None, index: int = 0) -> Tensor:
    """x_t = alpha(t) x + sigma(t) eps: data noised to the time t, to start a run there (image to image).

        x_t = ds.diffuse(model, image, t=0.6, seed=0)
        ds.sample(model, noise=x_t, start=0.6, solver="dpmpp-2m", steps=20, seed=0)

    Sample i gets the noise of (seed, index + i), with which a run from the noise end would start.

    Raises:
        ValueError: if t is not between the path's ends.
    """
    path = as_model(model).path
    if not path.within(t):
        raise ValueError(f"t must be from {path.t_noise} to {path.t_data} on {path}, got {t!r}")
    eps = Key.of(seed, index).normal(x.shape, stream=Stream.PRIOR, dtype=x.dtype, device=x.device)
    return x * float(path.alpha(t)) + eps * float(path.sigma(t))
