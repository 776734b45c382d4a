"""`sample`, `solve` and `encode`: the executor and the loop around it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.execute import Executor, State, bind, conversion
from diffsolve.graph import replay
from diffsolve.guidance import Guidance
from diffsolve.kernels import Guided
from diffsolve.models import Model, undetermined
from diffsolve.noise import Key, Stream
from diffsolve.planning import DEFAULT_SOLVER, GridLike, one_of, plan, plan_back, refuse
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["DEFAULT_SOLVER", "Run", "Step", "begin", "diffuse", "encode", "plan", "sample", "solve"]

Seed = int | Sequence[int]


@dataclass(frozen=True)
class Step:
    """One network call, as hooks and callbacks see it."""

    call: int
    """The number of the call, from 0."""
    calls: int
    """How many there will be."""
    t: float
    """Where it was made, on the path's clock."""
    alpha: float
    sigma: float
    x: Tensor
    """The network's input (hook), or the next one (callback: in the end the result). Clone it to keep it."""
    denoised: Tensor | None
    """The estimate of x_0 at the call; None where the network does not determine it."""


@dataclass(frozen=True)
class Run:
    """What `solve` returns."""

    x: Tensor
    """The result; after `max_calls`, the input of the next call."""
    tableau: Tableau
    nfe: int
    """Network calls made."""
    seed: Seed
    """What was given, or the seed drawn in its place: `solve(..., seed=run.seed)` repeats the run."""
    trajectory: Tensor | None
    """(n + 1, B, ...): the states at the grid nodes reached, the start first; None unless asked for."""
    executor: Executor

    @property
    def state(self) -> State:
        """A copy of where the run stands: `solve(model, solver=run.tableau, state=run.state)` goes on from there."""
        return self.executor.state

    @property
    def times(self) -> np.ndarray:
        """(n + 1,): the grid, on the path's clock."""
        return self.tableau.times

    @property
    def done(self) -> bool:
        """Whether every call has been made."""
        return self.executor.done


def begin(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    solver: str | Solver | Tableau = DEFAULT_SOLVER,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    seed: Seed | None = None,
    index: int = 0,
    start: float | None = None,
    stop: float | None = None,
    state: State | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    takes: str | None = None,
) -> Executor:
    """An executor at its first call, for a program that owns the loop itself; see `diffsolve.execute`.

    Args:
        takes: what `advance` will be given, if not the network's output: "denoised", say.

    The other arguments are those of `solve`.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model={type(model).__name__}: a Model is accepted; ds.adapt(net, path, predicts) makes one")
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", steps=steps, nfe=nfe, grid=grid, start=start, stop=stop)
        tableau = solver
    else:
        fed = model if takes is None else replace(model, predicts=takes)
        tableau = plan(fed, solver, steps=steps, nfe=nfe, grid=grid, start=start, stop=stop)
    program = bind(tableau, model, takes)
    if state is not None:
        refuse("state", shape=shape, noise=noise, seed=seed, dtype=dtype, device=device)
        x, key = state.y, state.key
    else:
        if start is not None and noise is None:
            raise ValueError(f"start={start!r}: a run from part-way needs noise=, the state at that time")
        key = _key(seed, index)
        x = _initial(model, tableau, shape, noise, key, dtype, device)
    told = model.told(torch.from_numpy(tableau.calls[:, 0].copy()))
    told = told.to(x.device, model.time_dtype(x.dtype))
    return Executor(program, x, key, state=state, told=told, dtype=model.dtype)


def solve(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    solver: str | Solver | Tableau = DEFAULT_SOLVER,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    seed: Seed | None = None,
    index: int = 0,
    start: float | None = None,
    stop: float | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    hook: Callable[[Step], Tensor | None] | None = None,
    callback: Callable[[Step], object] | None = None,
    trajectory: bool = False,
    progress: bool = False,
    check: bool = False,
    max_calls: int | None = None,
    graph: bool = False,
    state: State | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Run:
    """Run a solver on a model.

    Args:
        model: a Model, from `ds.adapt` or `ds.load`.
        shape: the shape of the batch; its noise is drawn from `seed`. Or
        noise: the state to start from, at the path's noise end (at the prior's scale) or at `start`.
        solver, steps, nfe, grid, start, stop: as in `plan`; or `solver` is a finished Tableau.
        seed: an int, or one per sample. Sample i depends on (seed, index + i), or on its own seed, and on nothing
            else of the batch. If None one is drawn, and kept in `Run.seed`.
        index: where this batch begins in a larger one that is sampled in shards.
        cond: keyword arguments for the network, passed on unchanged.
        guidance: classifier-free guidance: a scale, or a `Guidance` that also says what the unconditional call gets.
        hook: sees each denoised estimate before the update, and may return another in its place.
        callback: sees each step after the update.
        trajectory: keep the states at the grid nodes.
        progress: show a bar.
        check: stop with a FloatingPointError at the first call whose output is not finite. Costs a device
            synchronisation per call; nothing when off.
        max_calls: stop after so many calls; `Run.state` goes on from there.
        graph: record the run as a CUDA graph, or replay it where the same run of this network was recorded. The network
            must be one that a graph can record, and `cond` have the same tensors by shape; seeds of deterministic
            solvers may change between replays, those of stochastic ones are part of the recording.
        state: go on from there, with the solver (or tableau) of that run.
        dtype: of the state. float32, or float64 if the noise or the network has it.
        device: of the state; where `noise` or the network is, by default.

    Returns:
        A `Run`; its x is of the state's dtype.

    Raises:
        ValueError, TypeError: for bad arguments, by name, before the network is called; for a network that returns
            another shape or type.
        FloatingPointError: see `check`.
    """
    ex = begin(
        model, shape, noise=noise, solver=solver, steps=steps, nfe=nfe, grid=grid, seed=seed, index=index,
        start=start, stop=stop, state=state, dtype=dtype, device=device, takes=None if hook is None else "denoised",
    )  # fmt: skip
    if not isinstance(cond, Mapping | None):
        raise TypeError(f"cond={cond!r}: a mapping of the network's keyword arguments is accepted")
    if max_calls is not None:
        one_of(max_calls=max_calls)
    tableau, cond = ex.tableau, cond or {}
    guided = Guidance(1.0) if guidance is None else guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    network = guided.around(model, tableau)
    if graph:
        refuse("graph", hook=hook, callback=callback, max_calls=max_calls, state=state)
        refuse("graph", trajectory=trajectory or None, progress=progress or None, check=check or None)
        return _replayed(model, ex, guided, cond)
    first, last = ex.call, tableau.nfe if max_calls is None else min(ex.call + max_calls, tableau.nfe)
    estimate = _Estimate(model, tableau, needed=hook is not None) if hook or callback else None
    nodes = [ex.y.clone()] if trajectory else None
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
            if callback and step:
                callback(replace(step, x=ex.y))
            if nodes is not None and tableau.node[i] >= 0:
                nodes.append(ex.y.clone())
            bar.update()
            del out, step  # before the next call makes its own
    seed = ex.key.seed if isinstance(ex.key.seed, int) else list(ex.key.seed)
    return Run(ex.y, tableau, ex.call - first, seed, None if nodes is None else torch.stack(nodes), ex)


def _replayed(model: Model, ex: Executor, guided: Guidance, cond: Mapping[str, Any]) -> Run:
    """The run as a CUDA graph; `ex` stands at its first call, and is left at the last."""
    kinds = {"cond": cond, "uncond": guided.uncond}
    inputs = {**ex.start, **{(kind, name): v for kind, given in kinds.items() for name, v in given.items()}}

    def work(inputs: Mapping[Any, Any]) -> Tensor:
        again = {kind: {name: inputs[kind, name] for name in given} for kind, given in kinds.items()}
        network = replace(guided, uncond=again["uncond"]).around(model, ex.tableau)
        run = ex.again(inputs)
        with torch.no_grad():
            while not run.done:
                run.advance(network(run.call, *run.query(), again["cond"]))
        return run.y

    how = (guided.scale, guided.interval, guided.batched, guided.rescale)
    about = (ex.tableau, replace(model, net=replay), ex.key if ex.tableau.stochastic else None, how)
    x = replay(model.net, work, inputs, about)
    ex.finish(x)
    seed = ex.key.seed if isinstance(ex.key.seed, int) else list(ex.key.seed)
    return Run(x, ex.tableau, ex.tableau.nfe, seed, None, ex)


def sample(model: Model, shape: Sequence[int] | None = None, **options: Any) -> Tensor:
    """Samples from a model: `solve(model, shape, **options).x`."""
    return solve(model, shape, **options).x


def encode(
    model: Model,
    x: Tensor,
    *,
    solver: str | Solver = DEFAULT_SOLVER,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    **options: Any,
) -> Tensor:
    """Data to noise: the probability-flow ODE from the data end to the noise end, at the prior's scale.

    The grid is that of sampling, turned round. Where the network cannot be called on the data itself the run
    begins at the last time where it can, from the mean alpha x. `solve(model, noise=encode(model, x, ...), ...)`
    gives x back up to the solver's error. Options are those of `solve`.
    """
    tableau = plan_back(model, solver, steps=steps, nfe=nfe, grid=grid)
    return solve(model, noise=x * float(tableau.grid[0, 1]), solver=tableau, **options).x


def diffuse(model: Model, x: Tensor, t: float, *, seed: Seed | None = None, index: int = 0) -> Tensor:
    """x_t = alpha(t) x + sigma(t) eps: data brought to the noise level t, to start a run there (image to image).

        x_t = ds.diffuse(model, image, t=0.6, seed=0)
        ds.sample(model, noise=x_t, start=0.6, solver="dpmpp-2m", steps=20, seed=0)

    Sample i gets the noise of (seed, index + i), the same as a run from the noise end would start from.
    """
    path = model.path
    if not path.within(t):
        raise ValueError(f"t={t!r} is beyond the ends of {path}: {path.t_noise} to {path.t_data}")
    eps = _key(seed, index).normal(x.shape, stream=Stream.PRIOR, dtype=x.dtype, device=x.device)
    return x * float(path.alpha(t)) + eps * float(path.sigma(t))


class _Estimate:
    """The denoised estimate of each call, for hooks and callbacks."""

    def __init__(self, model: Model, tableau: Tableau, needed: bool) -> None:
        self.tableau, at = tableau, model.path.nodes(tableau.calls[:, 0])
        p, q = conversion((np.ones_like(at.t), np.zeros_like(at.t)), model, at)
        known = np.isfinite(p) & np.isfinite(q)
        if needed and not known.all():
            raise undetermined(model.predicts, "denoised", at.t[~known])
        self.weights = [pair if good else None for *pair, good in zip(p.tolist(), q.tolist(), known, strict=True)]

    def __call__(self, i: int, y: Tensor, out: Tensor) -> Step:
        weights = self.weights[i]
        denoised = None if weights is None else (y * weights[0] + out * weights[1]).to(y.dtype)
        t, alpha, sigma = self.tableau.calls[i].tolist()
        return Step(i, self.tableau.nfe, t, alpha, sigma, y, denoised)


def _initial(
    model: Model,
    tableau: Tableau,
    shape: Sequence[int] | None,
    noise: Tensor | None,
    key: Key,
    dtype: torch.dtype | None,
    device: str | torch.device | None,
) -> Tensor:
    """The state at the start: what was given, or the prior's noise."""
    if (shape is None) == (noise is None):
        raise ValueError(
            f"shape={shape}, noise={'None' if noise is None else 'a tensor'}: exactly one of them is accepted"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r}: a floating torch.dtype is accepted")
    if noise is not None:
        if not isinstance(noise, Tensor) or not noise.is_floating_point():
            kind = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
            raise TypeError(f"noise={kind}: a floating tensor is accepted")
        if noise.dim() < 1:
            raise ValueError("noise has no dimensions: a tensor of shape (B, ...) is accepted")
        wide = torch.float64 if noise.dtype == torch.float64 else torch.float32
        return noise.detach().to(noise.device if device is None else device, wide if dtype is None else dtype)
    if dtype is None:
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape={shape!r}: a sequence of sizes, the batch first, is accepted")
    x = key.normal(tuple(shape), stream=Stream.PRIOR, dtype=dtype, device=model.device if device is None else device)
    return x.mul_(model.path.prior_std(float(tableau.times[0])))


def _checked(changed: Tensor, like: Tensor) -> Tensor:
    if not isinstance(changed, Tensor) or changed.shape != like.shape:
        got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(f"hook returned {got}: None or a tensor of shape {tuple(like.shape)} is accepted")
    return changed


def _key(seed: Seed | None, index: int) -> Key:
    return Key(secrets.randbits(63) if seed is None else seed, index)


def _bar(progress: bool, total: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not progress, unit="call")
