"""An executor at its first call: the plan of a run, and the state that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffsolve.execute.bind import bind
from diffsolve.execute.executor import BrownianPath, Executor, State
from diffsolve.execute.network import network_times
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, plan, refuse
from diffsolve.execute.results import Seed
from diffsolve.models import Model, as_model
from diffsolve.noise import Key, Stream
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["begin", "initial"]


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
    prediction: str | None = None,
    guidance: float = 1.0,
    brownian: BrownianPath | None = None,
) -> Executor:
    """An executor at its first call, for a program that owns the loop itself; see `diffsolve.execute`.

    Args:
        prediction: what `advance` will be given, if not the network's output: "denoised", say.
        guidance: the scale of classifier-free guidance that the outputs will have; see `plan`.

    The other arguments are those of `solve`.
    """
    model = as_model(model)
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", steps=steps, nfe=nfe, grid=grid, start=start, stop=stop)
        tableau = solver
    else:
        fed = model if prediction is None else replace(model, predicts=prediction)
        tableau = plan(fed, solver, steps=steps, nfe=nfe, grid=grid, start=start, stop=stop, guidance=guidance)
    if state is not None:
        refuse("state", shape=shape, noise=noise, seed=seed, dtype=dtype, device=device)
    two_states = state is not None and state.call == 0 and state.s is not state.y
    program = bind(tableau, model, prediction, two_states=two_states)
    if state is not None:
        x, key = state.y, state.key
    else:
        if start is not None and noise is None:
            raise ValueError(f"start={start!r}: a run from part-way needs noise=, the state at that time")
        key = Key.of(seed, index)
        x = initial(model, float(tableau.times[0]), shape, noise, key, dtype, device)
    network_time = network_times(model, torch.tensor(tableau.calls[:, 0]), x)
    return Executor(program, x, key, state=state, network_time=network_time, dtype=model.dtype, brownian=brownian)


def initial(
    model: Model,
    start: float,
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
    return x.mul_(model.path.prior_std(start))
