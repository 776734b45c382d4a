"""Regression on a teacher's runs, and flow matching on their ends: what a student learns from states on the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.api import solve
from diffsolve.common.checks import instance, integer, mapping, number, required
from diffsolve.distill.base import Loss, Parts, uniforms
from diffsolve.distill.metrics import Metric, Squared, squared
from diffsolve.distill.situation import Situation
from diffsolve.models import Guidance, Model
from diffsolve.noise import Key, Stream
from diffsolve.paths import Path
from diffsolve.solvers import Solver, named
from diffsolve.training.objective import objective
from diffsolve.training.update import Update

__all__ = ["Reflow", "Trajectory", "reflow", "runs", "trajectory"]


@dataclass(frozen=True)
class Trajectory(Loss):
    """The loss of `trajectory`."""

    nodes: tuple[float, ...]
    teacher: Model | None = None
    guidance: float | Guidance | None = None
    solver: str | Solver = "auto"
    fine: int = 2
    ends: float = 0.5
    metric: Metric = field(default_factory=Squared)

    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Parts]:
        """The loss, where x0 is (B, n + 1, ...), states of `runs` at the nodes; or with a teacher (B, ...), of which
        it takes the shape, and noise is where its runs begin."""
        x0, conditions = update.x0, update.cond
        if self.teacher is None:
            required(update.given is None, "noise", update.given, "left out without a teacher: the runs are x0")
        else:
            x0 = _run(self.teacher, self.nodes, self.solver, self.fine, update.noise, conditions, self.guidance)
        count = len(self.nodes)
        required(x0.dim() > 1 and x0.shape[1] == count, "x0", x0, f"of shape (B, {count}, ...), states at the nodes")
        u = uniforms(update)
        first = np.minimum((u[:, 0] * (count - 1)).astype(int), count - 2)
        last = first + 1 + np.minimum((u[:, 1] * (count - 1 - first)).astype(int), count - 2 - first)
        whole = u[:, 2] < self.ends
        first, last = np.where(whole, 0, first), np.where(whole, count - 1, last)
        rows, nodes = torch.arange(len(x0), device=x0.device), np.array(self.nodes)
        x, landed = (x0[rows, torch.from_numpy(place).to(x0.device)] for place in (first, last))
        t, s = nodes[first], nodes[last]
        at = Situation(
            student, student, None, "self", named("ddim"), x, x, x, t, s, s, conditions, conditions, None, update.step
        )
        output, wanted = at.call(t, s), at.reaching(landed)
        wide = torch.promote_types(output.dtype, torch.float32)
        residual = output.to(wide) - wanted.to(wide)
        begins, ends = torch.from_numpy(t), torch.from_numpy(s)
        return self.metric(residual), Parts(begins, ends, ends, x, output, wanted, squared(residual.detach()))


def trajectory(
    teacher: Model | None = None,
    path: Path | None = None,
    *,
    nodes: int | Sequence[float] = 1,
    guidance: float | Guidance | None = None,
    solver: str | Solver = "auto",
    fine: int = 2,
    ends: float = 0.5,
    metric: Metric | None = None,
) -> Trajectory:
    """Regression on a teacher's run: the student's jump between two of its nodes ends where the run does.

    The cheapest of all where the runs are kept: `states = ds.distill.runs(teacher, ..)` are then the data x0, and the
    loss needs no teacher but its path. With a teacher the runs are made in each update, from drawn noise.

    Args:
        path: of the runs, where no teacher is given.
        nodes: the times at which states are known, the noise end first; or how many even jumps ("jumps").
        guidance: of the teacher.
        solver: of the teacher, on `fine` steps between two nodes.
        ends: the share of samples that learn the one jump over everything; the others any two nodes.
    """
    required(teacher is not None or path is not None, "path", path, "given without a teacher")
    where = instance("path", path, Path, "a Path") if teacher is None else teacher.path
    number("ends", ends, low=0, high=1)
    return Trajectory(
        _nodes(where, nodes), teacher, guidance, solver, integer("fine", fine, 1), ends, metric or Squared()
    )


@torch.no_grad()
def runs(
    teacher: Model,
    shape: Sequence[int],
    *,
    nodes: int | Sequence[float] = 1,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    solver: str | Solver = "auto",
    fine: int = 16,
    seed: int = 0,
    batch: int = 1000,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """(N, n + 1, ...): states of the teacher's runs at the nodes, from the noise to the data, for `trajectory`.

    Args:
        shape: (N, ...).
        nodes, guidance, solver, fine: as of `trajectory`.
        cond: tensors whose first axis is N have a row for each run.
        batch: how many are made at once; sample i is that of (seed, i) whatever it is.
        dtype: of the states; by default as of `ds.solve`.
    """
    places = _nodes(teacher.path, nodes)
    made = []
    for first in range(0, shape[0], batch):
        count = min(batch, shape[0] - first)
        chosen = {
            name: value[first : first + count] if isinstance(value, Tensor) and len(value) == shape[0] else value
            for name, value in mapping("cond", cond).items()
        }
        wide = teacher.state_dtype if dtype is None else dtype
        noise = Key(seed, first).normal((count, *shape[1:]), dtype=wide, device=teacher.device)
        made.append(_run(teacher, places, solver, fine, noise, chosen, guidance))
    return torch.cat(made)


def _nodes(path: Path, nodes: int | Sequence[float]) -> tuple[float, ...]:
    if isinstance(nodes, int):
        from diffsolve import grids

        return tuple(grids.named("jumps")(path, nodes).tolist())
    return tuple(float(t) for t in nodes)


def _run(
    teacher: Model,
    nodes: tuple[float, ...],
    solver: str | Solver,
    fine: int,
    noise: Tensor,
    cond: Mapping[str, Any],
    guidance: float | Guidance | None,
) -> Tensor:
    """(B, n + 1, ...): states at the nodes of a run that makes `fine` steps between two of them."""
    times = np.array(nodes)
    places = np.arange(0, len(times) * fine - fine + 1)
    grid = np.interp(places, np.arange(len(times)) * fine, times)
    start = noise * teacher.path.prior_std(nodes[0])
    run = solve(teacher, noise=start, solver=solver, grid=grid, cond=dict(cond), guidance=guidance, trajectory=True)
    assert run.trajectory is not None
    return run.trajectory[::fine].movedim(0, 1).contiguous()


@dataclass(frozen=True)
class Reflow(Loss):
    """The loss of `reflow`."""

    teacher: Model | None
    nodes: tuple[float, ...]
    guidance: float | Guidance | None
    solver: str | Solver
    options: Mapping[str, Any]

    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Any]:
        """The flow matching loss of pairs: x0 and the noise it came from, or runs from drawn noise of its shape."""
        x0, noise = update.x0, update.given
        if noise is None:
            required(self.teacher is not None, "noise", noise, "the start of each x0, where no teacher is given")
            assert self.teacher is not None
            noise = update.normal(Stream.DISTILL)
            x0 = _run(self.teacher, self.nodes, self.solver, 1, noise, update.cond, self.guidance)[:, -1]
        key: dict[str, Any] = {"seed": update.seed, "step": update.step, "index": update.index}
        return objective(student, x0, cond=update.cond, noise=noise, **key, **self.options)


def reflow(
    teacher: Model | None = None,
    *,
    steps: int = 16,
    guidance: float | Guidance | None = None,
    solver: str | Solver = "auto",
    **options: Any,
) -> Reflow:
    """Flow matching on pairs of a teacher's runs, which makes their paths straight, so that few steps will do.

    Kept pairs of `ds.training.reflow` need no teacher here: x0 is an end and `noise` its start.

    Args:
        steps: of the teacher, on the solver's own grid where it has one.
        options: of `ds.training.objective`.
    """
    nodes: tuple[float, ...] = ()
    if teacher is not None:
        from diffsolve.execute.plan import plan

        nodes = tuple(plan(teacher, solver, steps=steps).times.tolist())
    return Reflow(teacher, nodes, guidance, solver, options)
