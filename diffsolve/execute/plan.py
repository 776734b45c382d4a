"""From a model, a solver, a grid and a budget to a tableau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffsolve import grids, solvers
from diffsolve.common.caching import remembered
from diffsolve.common.checks import described, exactly_one, integer
from diffsolve.grids import Grid, Whole
from diffsolve.models import Model, adapt
from diffsolve.paths import Path
from diffsolve.solvers import Solver
from diffsolve.solvers.aliases import expand_grid
from diffsolve.tableau import Tableau
from diffsolve.tableau.ends import last_call

__all__ = ["DEFAULT_SOLVER", "GridLike", "last_time", "one_of", "own_times", "plan", "plan_back", "refuse"]

DEFAULT_SOLVER = "auto"

GridLike = str | Grid | Sequence[float] | np.ndarray | Tensor


def plan(
    model: Model | str | Path,
    solver: str | Solver = DEFAULT_SOLVER,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    start: float | None = None,
    stop: float | None = None,
    guidance: float = 1.0,
    predicts: str | None = None,
    shape: Sequence[int] | None = None,
) -> Tableau:
    """The tableau of a run, before any network is called: print it, save it, compare it.

    Args:
        model: a Model, or its path.
        solver: a name with options, as in "ddim(eta=0.5)", or a solver object. `ds.solvers.names()` lists them,
            `ds.solvers.aliases()` other libraries' names for them.
        steps: the number of grid intervals; or
        nfe: a budget of network calls, for the largest number of steps that fits.
        grid: a name with options, a grid object, or the times themselves, used bit for bit without steps or nfe. If
            None, the grid in the solver's name ("DPM++ 2M Karras"), else the path's own. With `clock="index"` every
            node but custom times is moved to the nearest whole row of the table.
        start: the initial time, on the path's clock; the noise end if None.
        stop: the final time. If None the run ends on the data: the last update is the denoised estimate.
        guidance: the scale of classifier-free guidance of the run; "auto" and "designed" depend on it.
        predicts: with a path, what its network predicts, on which the same two depend; "v" if None. A Model knows.
        shape: of the state, as in `sample`: the same two begin with larger steps where a sample is a few numbers, as
            a large image has directions that are decided at far higher noise. If None, as for a few.

    Raises:
        ValueError: if the solver, grid or prediction is unknown, predicts is given with a Model, not exactly one of
            steps and nfe is given (neither with custom times), or no step fits into the budget.
        TypeError: if solver or grid is of the wrong type.
    """
    method, its_grid = solvers.resolve(solver)
    if not isinstance(model, Model):
        model = adapt(_nothing, model, "v" if predicts is None else predicts)
    elif predicts is not None:
        raise ValueError(f"predicts={predicts!r} cannot be given with a Model, which has its own: {model.predicts!r}")
    else:
        method.meet(model, guidance)
    path, determined = model.path, model.determined
    method = method.suited(model.learned or model.predicts, guidance, _size(shape), model.jumps is not None)
    grid = its_grid or method.grid if grid is None else grid
    times = own_times(grid)
    if times is not None:
        refuse("a custom grid", start=start, stop=stop, nfe=nfe)
        if steps is not None and steps != len(times) - 1:
            raise ValueError(f"steps must be {len(times) - 1}, that of the given grid, or left out, got {steps}")
        return method(path, times, call_last=determined(float(times[-1])))
    one_of(steps=steps, nfe=nfe)
    last = path.t_data if stop is None else float(stop)
    return _plan(method, _named_grid(grid, model), path, steps, nfe, start, stop, determined(last))


def plan_back(
    model: Model,
    solver: str | Solver = DEFAULT_SOLVER,
    *,
    steps: int | None = None,
    nfe: int | None = None,
    grid: GridLike | None = None,
    guidance: float = 1.0,
    begin: float | None = None,
    end: float | None = None,
    shape: Sequence[int] | None = None,
) -> Tableau:
    """The tableau of a run from the data to the noise, on the reversed grid of sampling.

    It runs from the time `begin` (default: the data end, or the last time at which the network can be called) to `end`
    (default: the noise end).
    """
    path = model.path
    method, its_grid = solvers.resolve(solver)
    method = method.suited(model.learned or model.predicts, guidance, _size(shape))
    grid = its_grid or method.grid if grid is None else grid
    begin = last_time(model) if begin is None else begin
    stop = None if begin == path.t_data else begin
    times = own_times(grid)
    if times is not None:
        refuse("a custom grid", stop=end)
        return method(path, times, call_last=model.determined(float(times[-1])))
    one_of(steps=steps, nfe=nfe)
    call_last = model.determined(path.t_noise if end is None else end)
    return _plan(method, _Reversed(_named_grid(grid, model)), path, steps, nfe, end, stop, call_last)


def _size(shape: Sequence[int] | None) -> int | None:
    """How many numbers a sample has; None where the shape does not say (the state's check refuses it)."""
    try:
        size = 0 if shape is None else math.prod(int(n) for n in shape[1:])
    except (TypeError, ValueError):
        return None
    return size if size > 0 else None


def last_time(model: Model) -> float:
    """The time nearest to the data at which the network may be called and determines both data and noise."""
    path = model.path
    if model.determined(path.t_data):
        return path.t_data
    return last_call(path)


@remembered(maxsize=64)
def _plan(
    method: Solver,
    grid: Grid,
    path: Path,
    steps: int | None,
    nfe: int | None,
    start: float | None,
    stop: float | None,
    call_last: bool,
) -> Tableau:
    def write(n: int) -> Tableau:
        return method(path, grid(path, n, start=start, stop=stop), call_last=call_last)

    if steps is not None:
        return write(steps)
    assert nfe is not None
    n = max(1, nfe // method.calls)
    tableau = write(n)
    while tableau.nfe > nfe and n > 1:
        n -= 1
        tableau = write(n)
    if tableau.nfe > nfe:
        raise ValueError(f"nfe must be at least {tableau.nfe} for {method} here, got {nfe}")
    while tableau.nfe < nfe and method.calls > 1 and (longer := write(n + 1)).nfe <= nfe:
        n, tableau = n + 1, longer
    return tableau


@dataclass(frozen=True)
class _Reversed(Grid):
    """A grid in reverse order."""

    grid: Grid

    def __call__(self, path: Path, steps: int, *, start: float | None = None, stop: float | None = None) -> np.ndarray:
        return self.grid(path, steps, start=start, stop=stop)[::-1]

    def nodes(self, path: Path, steps: int, start: float, stop: float | None) -> np.ndarray:
        return self.grid.nodes(path, steps, start, stop)[::-1]


def own_times(grid: GridLike | None) -> np.ndarray | None:
    """The times of a custom grid, float64, or None if it is a name or a Grid.

    Raises:
        TypeError: if the grid is not a list of times either.
    """
    if grid is None or isinstance(grid, str | Grid):
        return None
    if isinstance(grid, Tensor):
        grid = grid.detach().cpu().double().numpy()
    try:
        return np.ascontiguousarray(grid, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"grid must be a name, a Grid or a list of times, got {described(grid)}") from None


def _named_grid(grid: GridLike | None, model: Model) -> Grid:
    """The grid of that name, or the path's own; at whole rows for a network that knows no others."""
    assert grid is None or isinstance(grid, str | Grid)
    if isinstance(grid, str):
        grid = expand_grid(grid, grids.registry.entries)
    grid = grids.named(model.path.grid if grid is None else grid)
    return Whole(grid) if model.clock == "index" and model.path.integer else grid


def one_of(**values: int | None) -> None:
    """Check that exactly one of the counts is given, and is an integer >= 1."""
    name = exactly_one(**values)
    integer(name, values[name], 1)


def refuse(why: str, **values: object) -> None:
    """Raise a ValueError for the first value that is not None, as it cannot be given with `why`."""
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name}={described(value)} cannot be given with {why}")


def _nothing(x: Tensor, t: Tensor) -> Tensor:
    return x
