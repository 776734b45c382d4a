"""`sample`, `solve` and `encode`: the executor and the loop around it, and the other ways to make a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from diffsolve import adaptive
from diffsolve.adaptive import Adaptive, AdaptiveRun, AdaptiveSDE
from diffsolve.common.tensors import normal_log_density
from diffsolve.dynamics import Correction, Langevin
from diffsolve.execute import BrownianPath, Executor, State, executor_at_end
from diffsolve.execute.graph import replay
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, last_time, one_of, own_times, plan_back, refuse
from diffsolve.execute.results import DenoisedEstimate, Run, Seed, Step, seed_of
from diffsolve.execute.start import begin, initial
from diffsolve.gradients import GRADIENTS, differentiable
from diffsolve.gradients.adaptive import attached
from diffsolve.kernels import Guided
from diffsolve.likelihood import DensityRun, sample_with_density
from diffsolve.models import Model, as_model
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key, Stream
from diffsolve.parallel import Parallel
from diffsolve.parallel.base import Calls, flat
from diffsolve.solvers import Solver, resolve
from diffsolve.tableau import Tableau

__all__ = ["diffuse", "encode", "sample", "solve"]


@overload
def solve(
    model: Model, shape: Sequence[int] | None = None, *, solver: Adaptive | AdaptiveSDE, **options: Any
) -> AdaptiveRun: ...
@overload
def solve(model: Model, shape: Sequence[int] | None = None, *, log_prob: str, **options: Any) -> DensityRun: ...
@overload
def solve(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    solver: str | Solver | Tableau = DEFAULT_SOLVER,
    **options: Any,
) -> Run: ...
def solve(  # type: ignore[misc]
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    solver: str | Solver | Tableau | Adaptive | AdaptiveSDE = DEFAULT_SOLVER,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    seed: Seed | None = None,
    index: int = 0,
    start: float | None = None,
    stop: float | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    corrector: Langevin | None = None,
    hook: Callable[[Step], Tensor | None] | None = None,
    callback: Callable[[Step], object] | None = None,
    trajectory: bool | str = False,
    log_prob: bool | str = False,
    brownian: BrownianPath | None = None,
    progress: bool = False,
    check: bool = False,
    max_calls: int | None = None,
    graph: bool = False,
    state: State | None = None,
    parallel: Parallel | None = None,
    gradient: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Run | AdaptiveRun | DensityRun:
    """Run a solver on a model.

    Args:
        model: a Model, from `ds.adapt` or `ds.load`; or what `ds.adapt` takes alone, such as a diffusers pipeline.
        shape: the shape of the batch; its noise is drawn from `seed`. Or
        noise: the state to start from, at the path's noise end (at the prior's scale) or at `start`.
        solver, steps, nfe, grid, start, stop: as in `plan`; or `solver` is a finished Tableau, `ds.AdaptiveSDE`, or
            `ds.Adaptive`: then `grid` may be the times at which the trajectory is kept.
        seed: an int, or one per sample. Sample i depends on (seed, index + i), or on its own seed, and on nothing
            else of the batch. If None one is drawn, and kept in `Run.seed`. A `ds.Key` also makes the noise
            antithetic or shared, and brings its own index.
        index: where this batch begins in a larger one that is sampled in shards.
        cond: keyword arguments for the network, passed on unchanged.
        guidance: classifier-free guidance: a scale, or a `Guidance` that also says what the unconditional call gets.
        corrector: Langevin steps at each node before the network is called there (predictor-corrector, 2011.13456).
            Its calls are in `Run.nfe`; it goes with steps, not with a budget of calls, nor with a hook.
        hook: sees each denoised estimate before the update, and may return another in its place.
        callback: sees each step after the update.
        trajectory: True keeps the states at the grid nodes, where they are a network's input or the result; "calls"
            every input and the result.
        log_prob: True finds the log-density of every stochastic transition (see `ds.transition_log_prob`), and draws
            each row's noise a second time for it. "model" finds the log-densities of the samples in the same pass, as
            `ds.log_prob` would, for a deterministic solver from the noise to the data.
        brownian: a `ds.Brownian` of the state's shape (or torchsde's `BrownianInterval`) that the noise is taken from,
            in the place of draws keyed by the row: runs of any number of steps then follow one path. For solvers whose
            noise is that of an SDE; the clock is e^{2A}, from 0 at alpha = 0 (see `diffsolve.solvers.sde`).
        progress: show a bar.
        check: stop with a FloatingPointError at the first call whose output is not finite. Costs a device
            synchronisation per call; nothing when off.
        max_calls: stop after so many calls; `Run.state` goes on from there.
        graph: record the run as a CUDA graph, or replay it where the same run of this network was recorded. The network
            must be one that a graph can record, and `cond` have the same tensors by shape; seeds of deterministic
            solvers may change between replays, those of stochastic ones are part of the recording.
        state: go on from there, with the solver (or tableau) of that run.
        parallel: make many calls at once: `ds.Picard(...)` or `ds.Parareal(...)`. A tensor in cond (or in a mapping,
            list or tuple there) whose first dimension is the batch size B is then taken to have one entry per
            sample, and repeated for each of its calls. Not together with hook, callback, corrector, log_prob,
            brownian, max_calls or state.
        gradient: "direct", "checkpoint" or "adjoint": x has a graph back to `noise`, `cond` and the network's
            parameters; see `diffsolve.gradients`. So has the trajectory of an adaptive solver, but for "adjoint".
        dtype: of the state. float32, or float64 if the noise or the network has it.
        device: of the state; where `noise` or the network is, by default.

    Returns:
        A `Run`, an `AdaptiveRun` of an adaptive solver, or a `DensityRun` for log_prob="model"; its x is of the
        state's dtype.

    Raises:
        ValueError, TypeError: for bad arguments, by name, before the network is called; for a network that returns
            another shape or type.
        FloatingPointError: see `check`.
    """
    model, guided, cond = as_model(model), Guidance.of(guidance), _conditions(cond)
    if gradient is not None:
        if gradient not in GRADIENTS:
            raise ValueError(f"gradient={gradient!r} is unknown; accepted: {', '.join(GRADIENTS)}")
        refuse("gradient", hook=hook, callback=callback, state=state, max_calls=max_calls, log_prob=log_prob or None)
        refuse("gradient", corrector=corrector, brownian=brownian, parallel=parallel)
    if not isinstance(log_prob, bool):
        if log_prob != "model":
            raise ValueError(f"log_prob={log_prob!r}: True, False or 'model' is accepted")
        refuse("log_prob='model'", start=start, stop=stop, hook=hook, callback=callback, state=state)
        refuse("log_prob='model'", max_calls=max_calls, trajectory=trajectory or None, corrector=corrector)
        refuse("log_prob='model'", brownian=brownian, parallel=parallel)
        if isinstance(solver, AdaptiveSDE):
            raise ValueError(f"log_prob='model' with solver={solver}: a deterministic solver is accepted")
        key = Key.of(seed, index)
        x = initial(model, model.path.t_noise, shape, noise, key, dtype, device)
        with torch.no_grad():
            x, found = sample_with_density(
                model, x, solver, steps=steps, nfe=nfe, grid=grid, key=key, cond=cond, guidance=guided
            )
        return DensityRun(x, found, seed_of(seed, key))
    if isinstance(solver, Adaptive | AdaptiveSDE):
        refuse("an adaptive solver", steps=steps, nfe=nfe, hook=hook, callback=callback, corrector=corrector)
        refuse("an adaptive solver", max_calls=max_calls, state=state, parallel=parallel, log_prob=log_prob or None)
        return _adaptive(
            model, shape, noise, solver, grid, seed, index, start, stop, cond, guided, trajectory, dtype, device,
            gradient, brownian,
        )  # fmt: skip
    if corrector is not None:
        refuse("corrector", nfe=nfe, hook=hook, log_prob=log_prob or None)
    ex = begin(
        model, shape, noise=noise, solver=solver, steps=steps, nfe=nfe, grid=grid, seed=seed, index=index,
        start=start, stop=stop, state=state, dtype=dtype, device=device,
        prediction=None if hook is None else "denoised",
        guidance=guided.scale, brownian=brownian,
    )  # fmt: skip
    if gradient is not None:
        refuse("gradient", trajectory=trajectory or None)
        method = None if isinstance(solver, Tableau) else resolve(solver)[0]
        x = ex.y if noise is None else noise.to(ex.y)
        s, x = differentiable(model, ex.tableau, method, x, ex.key, cond, guided, gradient)
        end = executor_at_end(ex.program, s, x, ex.key)
        return Run(x, ex.tableau, ex.tableau.nfe, seed_of(seed, ex.key), None, None, end)
    if max_calls is not None:
        one_of(max_calls=max_calls)
    if not isinstance(trajectory, bool) and trajectory != "calls":
        raise ValueError(f"trajectory={trajectory!r}: True, False or 'calls' is accepted")
    if log_prob and not ex.tableau.stochastic:
        raise ValueError(f"log_prob=True with {ex.tableau.solver}: a solver that adds noise is accepted")
    tableau = ex.tableau
    if parallel is not None:
        if not isinstance(parallel, Parallel):
            raise TypeError(f"parallel={parallel!r}: a ds.Picard or a ds.Parareal is accepted")
        refuse(
            "parallel", hook=hook, callback=callback, max_calls=max_calls, state=state, corrector=corrector,
            log_prob=log_prob or None, brownian=brownian,
        )  # fmt: skip
        return _in_parallel(parallel, ex, model, guided, cond, check, progress, seed, trajectory)
    network = guided.outputs(model, tableau)
    if graph:
        refuse("graph", hook=hook, callback=callback, max_calls=max_calls, state=state)
        refuse("graph", trajectory=trajectory or None, progress=progress or None, check=check or None)
        refuse("graph", corrector=corrector, log_prob=log_prob or None, brownian=brownian)
        return _replayed(model, ex, guided, cond)
    correct = None if corrector is None else Correction(corrector, model, tableau, guided)
    first, last = ex.call, tableau.nfe if max_calls is None else min(ex.call + max_calls, tableau.nfe)
    estimate = DenoisedEstimate(model, tableau, needed=hook is not None) if hook or callback else None
    nodes = [ex.y.clone()] if trajectory else None
    densities: list[Tensor] | None = [] if log_prob else None
    with torch.no_grad(), _bar(progress, last - first) as bar:
        while ex.call < last:
            i = ex.call
            out = network(i, *ex.query(), cond)
            if isinstance(out, Guided) and (check or estimate):
                out = out.tensor()  # it is looked at before the update, which would make it on the way
            if check and isinstance(out, Tensor) and not bool(out.isfinite().all()):
                bad = int((~out.isfinite()).sum())
                raise FloatingPointError(
                    f"net returned {bad} non-finite values of {out.numel()} in call {i} of {tableau.nfe}, "
                    f"at t={tableau.calls[i, 0]:.6g}"
                )
            step = estimate(i, ex.y, out) if estimate and isinstance(out, Tensor) else None
            if hook and step:
                assert step.denoised is not None
                changed = hook(step)
                out = step.denoised if changed is None else _checked(changed, ex.y)
                step = replace(step, denoised=out)
            ex.advance(out)
            if densities is not None:
                std = float(tableau.weights[i, 1, -1])
                densities.append(normal_log_density(ex.noise(i + 1), std) if std else normal_log_density(ex.y, 1.0) * 0)
            if correct:
                correct(ex, cond)
            if callback and step:
                callback(replace(step, x=ex.y))
            if nodes is not None and (trajectory == "calls" or tableau.node[i] >= 0):
                nodes.append(ex.y.clone())
            bar.update()
            del out, step  # before the next call makes its own
    kept, logs = (None if tensors is None else torch.stack(tensors) for tensors in (nodes, densities))
    calls = ex.call - first + (correct.calls if correct else 0)
    return Run(ex.y, tableau, calls, seed_of(seed, ex.key), kept, logs, ex)


def _in_parallel(
    parallel: Parallel,
    ex: Executor,
    model: Model,
    guidance: Guidance,
    cond: Mapping[str, Any],
    check: bool,
    progress: bool,
    seed: Seed | None,
    trajectory: bool | str,
) -> Run:
    if parallel.ranks is not None:
        if seed is None:
            raise ValueError("seed=None with ranks: the same seed is to be given on each of them")
        parallel.ranks.agree(ex)
    calls = Calls(
        model, ex.tableau, ex.y, guidance, cond, max_batch=parallel.max_batch, ranks=parallel.ranks, check=check
    )
    points = None
    if trajectory:
        points = flat(ex.y).repeat(ex.tableau.nfe + 1, 1, 1)
    with torch.no_grad(), _bar(progress, ex.tableau.nfe) as bar:
        ex, statistics = parallel.run(ex, calls, bar.update, points)
    if points is not None:
        kept = slice(None) if trajectory == "calls" else torch.from_numpy(np.insert(ex.tableau.node >= 0, 0, True))
        points = points[kept]
        points = points.view(len(points), *ex.y.shape)
    each = -(-statistics.calls // max(1, len(ex.y)))
    return Run(ex.y, ex.tableau, each, seed_of(seed, ex.key), points, None, ex, statistics)


def _adaptive(
    model: Model,
    shape: Sequence[int] | None,
    noise: Tensor | None,
    solver: Adaptive | AdaptiveSDE,
    grid: GridLike | None,
    seed: Seed | None,
    index: int,
    start: float | None,
    stop: float | None,
    cond: Mapping[str, Any],
    guidance: Guidance,
    trajectory: bool | str,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
    gradient: str | None,
    brownian: BrownianPath | None,
) -> AdaptiveRun:
    times = own_times(grid)
    if (trajectory is True) != (times is not None) or trajectory == "calls":
        raise ValueError(f"trajectory={trajectory}, grid={grid!r}: with an adaptive solver the times of the trajectory "
                         "are accepted as grid, and nothing else")  # fmt: skip
    if times is not None:
        refuse("a grid of one's own", start=start, stop=stop)
        if times.ndim != 1 or len(times) < 2:
            raise ValueError(f"grid has shape {times.shape}; a list of at least 2 times is needed")
        start, stop = float(times[0]), float(times[-1])
    elif start is not None and noise is None:
        raise ValueError(f"start={start!r}: a run from part-way needs noise=, the state at that time")
    key, path = Key.of(seed, index), model.path
    begun = path.t_noise if start is None else float(start)
    x = initial(model, begun, shape, noise, key, dtype, device)
    ended = path.t_data if stop is None else float(stop)
    if isinstance(solver, AdaptiveSDE):
        refuse("an adaptive SDE", grid=grid, gradient=gradient)
        with torch.no_grad():
            sde = adaptive.solve_sde(
                model, x, solver, begun, ended, key, cond=cond, guidance=guidance, brownian=brownian
            )
        return replace(sde, seed=seed_of(seed, key))
    refuse("an adaptive solver of the probability flow", brownian=brownian)
    if gradient == "adjoint" and trajectory:
        raise ValueError(f"gradient='adjoint' with trajectory={trajectory}: 'direct' and 'checkpoint' are accepted")
    if gradient is not None and noise is not None:
        x = noise.to(x)
    run = adaptive.solve_ode(
        model, x, solver, begun, ended, times=times, cond=cond, guidance=guidance,
        gradient=None if gradient == "adjoint" else gradient, adjoint=attached if gradient == "adjoint" else None,
    )  # fmt: skip
    return replace(run, seed=seed_of(seed, key))


def _replayed(model: Model, ex: Executor, guided: Guidance, cond: Mapping[str, Any]) -> Run:
    """The run as a CUDA graph; `ex` stands at its first call, and is left at the last."""
    kinds = {"cond": cond, "uncond": guided.uncond}
    inputs = {**ex.start, **{(kind, name): v for kind, given in kinds.items() for name, v in given.items()}}

    def work(inputs: Mapping[Any, Any]) -> Tensor:
        again = {kind: {name: inputs[kind, name] for name in given} for kind, given in kinds.items()}
        network = replace(guided, uncond=again["uncond"]).outputs(model, ex.tableau)
        run = ex.again(inputs)
        with torch.no_grad():
            while not run.done:
                run.advance(network(run.call, *run.query(), again["cond"]))
        return run.y

    how = (guided.scale, guided.interval, guided.batched, guided.rescale)
    about = (ex.tableau, replace(model, net=replay), ex.key if ex.tableau.stochastic else None, how)
    x = replay(model.net, work, inputs, about)
    ex.finish(x)
    return Run(x, ex.tableau, ex.tableau.nfe, seed_of(None, ex.key), None, None, ex)


def sample(model: Model, shape: Sequence[int] | None = None, **options: Any) -> Tensor:
    """Samples from a model: `solve(model, shape, **options).x`."""
    x: Tensor = solve(model, shape, **options).x
    return x


def encode(
    model: Model,
    x: Tensor,
    *,
    solver: str | Solver | Adaptive = DEFAULT_SOLVER,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    guidance: float | Guidance | None = None,
    **options: Any,
) -> Tensor:
    """Data to noise: the probability-flow ODE from the data end to the noise end, at the prior's scale.

    The grid is that of sampling, turned round. Where the network cannot be called on the data itself the run
    begins at the last time where it can, from the mean alpha x. `solve(model, noise=encode(model, x, ...), ...)`
    gives x back up to the solver's error. Options are those of `solve`, gradient among them.
    """
    model, guided = as_model(model), Guidance.of(guidance)
    if isinstance(solver, Adaptive):
        refuse("an adaptive solver", steps=steps, nfe=nfe, grid=grid)
        begun = last_time(model)
        x = x * float(model.path.alpha(begun))
        options |= {"start": begun, "stop": model.path.t_noise}
        return sample(model, noise=x, solver=solver, guidance=guided, **options)
    tableau = plan_back(model, solver, steps=steps, nfe=nfe, grid=grid, guidance=guided.scale)
    start = x * float(tableau.grid[0, 1])
    if options.get("gradient") == "adjoint":  # for which it takes the solver that wrote the tableau
        return sample(model, noise=start, solver=solver, grid=tableau.times, guidance=guided, **options)
    return sample(model, noise=start, solver=tableau, guidance=guided, **options)


def diffuse(model: Model, x: Tensor, t: float, *, seed: Seed | None = None, index: int = 0) -> Tensor:
    """x_t = alpha(t) x + sigma(t) eps: data brought to the noise level t, to start a run there (image to image).

        x_t = ds.diffuse(model, image, t=0.6, seed=0)
        ds.sample(model, noise=x_t, start=0.6, solver="dpmpp-2m", steps=20, seed=0)

    Sample i gets the noise of (seed, index + i), the same as a run from the noise end would start from.
    """
    path = as_model(model).path
    if not path.within(t):
        raise ValueError(f"t={t!r} is beyond the ends of {path}: {path.t_noise} to {path.t_data}")
    eps = Key.of(seed, index).normal(x.shape, stream=Stream.PRIOR, dtype=x.dtype, device=x.device)
    return x * float(path.alpha(t)) + eps * float(path.sigma(t))


def _checked(changed: Tensor, like: Tensor) -> Tensor:
    if not isinstance(changed, Tensor) or changed.shape != like.shape:
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(f"hook returned {got}: None or a tensor of shape {tuple(like.shape)} is accepted")
    return changed


def _conditions(cond: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not isinstance(cond, Mapping | None):
        raise TypeError(f"cond={cond!r}: a mapping of the network's keyword arguments is accepted")
    return cond or {}


def _bar(progress: bool, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not progress, unit="call")
