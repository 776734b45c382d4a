"""Encoding that can be undone: data to noise and back to rounding, by an algebraically reversible solver."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffsolve.api.sampling import solve
from diffsolve.execute import State
from diffsolve.execute.plan import GridLike, last_time, plan, plan_back, refuse
from diffsolve.models import Model
from diffsolve.noise import Key
from diffsolve.solvers.reversible import ReversibleHeun

__all__ = ["decode", "encode"]


def encode(
    model: Model, x: Tensor, *, steps: int, grid: GridLike = "angle", frame: str = "trig", **options: Any
) -> tuple[Tensor, Tensor]:
    """Data to noise: the pair (z, y) of states at the noise end, which `decode` turns back into x.

    In float64 the round trip closes to some 1e-9 at 50 steps; docs/likelihood.md has the growth of the error. Either
    state is the latent to second order in the step. Where the network cannot be called at the data, the run begins at
    the path's last time from alpha x.

    Args:
        x: data.
        steps, grid, frame: those of `decode` must be the same.
        options: cond, guidance and the like, as in `ds.solve`, but for gradient: see `ds.encode`.
    """
    refuse("reversible.encode, whose result is a pair", gradient=options.get("gradient"))
    tableau = plan_back(model, ReversibleHeun(frame), steps=steps, grid=grid)
    run = solve(model, noise=x * float(tableau.grid[0, 1]), solver=tableau, **options)
    return run.x, run.state.s


def decode(
    model: Model,
    pair: tuple[Tensor, Tensor],
    *,
    steps: int,
    grid: GridLike = "angle",
    frame: str = "trig",
    **options: Any,
) -> Tensor:
    """The data that `encode` made the pair of."""
    last = last_time(model)
    stop = None if last == model.path.t_data else last
    tableau = plan(model, ReversibleHeun(frame), steps=steps, grid=grid, stop=stop)
    z, y = pair
    state = State(0, z, y, (), Key(0))
    x: Tensor = solve(model, solver=tableau, state=state, **options).x / float(tableau.grid[-1, 1])
    return x
