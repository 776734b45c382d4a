"""Gradients through a run: with respect to the noise it starts from, the conditions, and the network's parameters.

| gradient     | keeps                                  | network calls            | is                        |
|--------------|----------------------------------------|--------------------------|---------------------------|
| "direct"     | every call's graph: N of them          | N, and a backward each   | exact                     |
| "checkpoint" | sqrt(N) states, sqrt(N) graphs at once | 2 N, and a backward each | exact                     |
| "adjoint"    | one state, one graph at once           | 2 N, and a backward each | exact as the steps shrink |

The first two run the rows of the executor's program without writing in place, in the executor's order of operations:
their values are those of a run without gradients, bit for bit. The adjoint (Chen et al., 1806.07366) solves

    dz/dv = d,    da/dv = -(dd/dz)^T a,    dg/dv = -(dd/dp)^T a

backwards with the same solver on the grid turned round, for the network's parameters and conditions p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffsolve.augmented import Augmented, augmented
from diffsolve.execute import Executor, Program, State, bind
from diffsolve.flow import Flow
from diffsolve.frames import FRAMES
from diffsolve.guidance import Guidance
from diffsolve.kernels.update import OUT, S, Terms, Y, Z
from diffsolve.models import Model
from diffsolve.noise import Key, Stream
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["GRADIENTS", "differentiable"]

GRADIENTS = ("direct", "checkpoint", "adjoint")

Network = Callable[[int, Tensor, Tensor, Mapping[str, Any]], Tensor]


def differentiable(
    model: Model,
    tableau: Tableau,
    solver: Solver | None,
    x: Tensor,
    key: Key,
    cond: Mapping[str, Any],
    guidance: Guidance,
    gradient: str,
) -> Tensor:
    """The result of a run from x, with a graph.

    Args:
        solver: what wrote the tableau, which the adjoint runs backwards.
        gradient: one of `GRADIENTS`.
    """
    told = model.told(torch.from_numpy(tableau.calls[:, 0].copy())).to(x.device, model.time_dtype(x.dtype))
    rows = _Rows(bind(tableau, model), guidance.around(model, tableau), told, cond, key)
    with torch.enable_grad():
        if gradient == "direct":
            return rows.result(x)
        if gradient == "checkpoint":
            return rows.result(x, math.ceil(math.sqrt(tableau.nfe)))
        return _adjoint(model, tableau, solver, x, rows, cond, guidance)


@dataclass(frozen=True)
class _Rows:
    """The rows of a program, without writing in place. A state is (s, y, history, newest first)."""

    program: Program
    network: Network
    told: Tensor
    cond: Mapping[str, Any]
    key: Key

    def result(self, x: Tensor, segment: int = 0) -> Tensor:
        """The last y; with checkpoints between segments of so many calls."""
        live = [x, x, x, x]
        if self.program.tableau.entry[:, 1].any():
            live[Z] = self._noise(0, x)
        entry = self.program.rows[0]
        state = self._update(live, entry.s, entry.y)
        calls = self.program.tableau.nfe
        if not segment:
            return self._stretch(0, calls, *state)[1]
        for first in range(0, calls, segment):
            state = checkpoint(self._stretch, first, min(first + segment, calls), *state, use_reentrant=False)
        return state[1]

    def _stretch(self, first: int, last: int, s: Tensor, y: Tensor, *history: Tensor) -> tuple[Tensor, ...]:
        """The calls from `first` up to `last`."""
        for i in range(first, last):
            row, scaled = self.program.rows[i + 1], self.program.scaled
            x = y * self.program.rows[i].scale if scaled else y
            out = self.network(i, x, self.told[i].expand(len(y)), self.cond)
            live = [s, y, out, y]
            if row.noise:
                live[Z] = self._noise(i + 1, y)
            if self.program.depth:
                history = (self._keep(row.keep, y, out), *history)[: self.program.depth]
                live.extend(history)
            s, y = self._update(live, row.s, row.y)
        return s, y, *history

    @staticmethod
    def _keep(keep: tuple[float, float] | None, y: Tensor, out: Tensor) -> Tensor:
        p, q = keep or (1.0, 0.0)
        return y if q == 0 else out.to(y.dtype) if p == 0 else torch.add(out, y, alpha=p).to(y.dtype)

    @staticmethod
    def _update(live: Sequence[Tensor], s: Terms | None, y: Terms) -> tuple[Tensor, Tensor]:
        """`kernels.linear_update`, with results of their own."""
        if s is None:
            used = {place for place, _ in y}
            both = _combine(y, live, live[Y] if S not in used and Y in used else live[S])
            return both, both
        return _combine(s, live, live[S]), _combine(y, live, None)

    def _noise(self, row: int, like: Tensor) -> Tensor:
        return self.key.normal(like.shape, row=row, stream=Stream.ROW, dtype=like.dtype, device=like.device)


def _combine(terms: Terms, live: Sequence[Tensor], into: Tensor | None) -> Tensor:
    """The sum of weight * live[place], the terms in the order in which the executor adds them up."""
    if not terms:
        return torch.zeros_like(live[S])
    own = next((k for k, (place, _) in enumerate(terms) if live[place] is into), None)
    if own is None:
        (place, weight), *rest = sorted(terms, key=lambda term: (term[0] == OUT, term[1] != 1))
    else:
        (place, weight), rest = terms[own], [*terms[:own], *terms[own + 1 :]]
    total = live[place].to(live[S].dtype)
    if weight != 1:
        total = total * weight
    for place, weight in rest:
        total = torch.add(total, live[place], alpha=weight)
    return total


def _adjoint(
    model: Model,
    tableau: Tableau,
    solver: Solver | None,
    x: Tensor,
    rows: _Rows,
    cond: Mapping[str, Any],
    guidance: Guidance,
) -> Tensor:
    if solver is None:
        raise ValueError(f"gradient='adjoint' with the tableau {tableau.solver!r}: a solver that can be turned round")
    if tableau.stochastic:
        raise ValueError(f"gradient='adjoint': {tableau.solver} draws noise on the way; accepted: direct, checkpoint")
    times, last = tableau.times, len(tableau.times) - 1
    if not model.determined(float(times[-1])):  # the last step, from which there is no way back, has a graph of its own
        last -= 1
    if last == 0:
        return rows.result(x)
    backward = augmented(solver(model.path, times[: last + 1][::-1], call_last=model.determined(float(times[0]))))
    if not np.array_equal(backward.d, backward.tableau.d):
        raise ValueError(
            f"gradient='adjoint' with {tableau.solver!r}: its frame is singular at the noise end; accepted are "
            "'direct' and 'checkpoint', or the frame 'straight' or 'trig'"
        )
    names = [name for name, value in cond.items() if isinstance(value, Tensor) and value.requires_grad]
    weights = [p for p in model.net.parameters() if p.requires_grad] if isinstance(model.net, nn.Module) else []
    leaves = [*(cond[name] for name in names), *weights]
    first = int(np.flatnonzero(tableau.node == last)[-1]) + 1  # the call after that node
    flow = Flow(model, FRAMES["trig"], len(x), x.dim(), cond, guidance)
    middle: Tensor = _Backwards.apply(x, rows, first, backward, flow, *leaves)  # type: ignore[no-untyped-call]
    return middle if first == tableau.nfe else rows._stretch(first, tableau.nfe, middle, middle)[1]


class _Backwards(torch.autograd.Function):
    """The run up to a node; backwards, the augmented equation. Nothing but the node's state is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: _Rows, calls: int, backward: Augmented, flow: Flow, *leaves: Tensor
    ) -> Tensor:
        executor = Executor(rows.program, x, rows.key, told=rows.told)
        while executor.call < calls:
            executor.advance(rows.network(executor.call, *executor.query(), rows.cond))
        ctx.backward_, ctx.flow, ctx.leaves = backward, flow, leaves
        ctx.save_for_backward(executor.y.clone())
        return executor.y.clone()

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        (x,), rows, flow, leaves = ctx.saved_tensors, ctx.backward_, ctx.flow, ctx.leaves
        tableau = rows.tableau
        at = flow.model.path.nodes(tableau.calls[:, 0])

        def field(i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (slope_a, slope_b), unit = rows.d[i], float(rows.units[i])
            n = len(parts[0])
            point = flow.place(at[np.full(n, i)], (np.full(n, slope_a), np.full(n, slope_b)), unit, parts[0])
            with torch.enable_grad():
                y = (parts[0] * unit).detach().requires_grad_()
                d = point.derivative(y, point.output(y))
                pulled = torch.autograd.grad(d, [y, *leaves], parts[1], allow_unused=True)
            found = [torch.zeros_like(p) if g is None else g for g, p in zip(pulled, [y, *leaves], strict=True)]
            return d.detach(), found[0] * -unit, *(-g for g in found[1:])

        with torch.no_grad():
            _, a, *found = rows.run(field, (x, a, *(torch.zeros_like(leaf) for leaf in leaves)))
        return a / float(rows.units[-1]), None, None, None, None, *found


def finished(program_of: Tableau, model: Model, x: Tensor, key: Key) -> Executor:
    """An executor at the end of a run whose result is x."""
    y = x.detach()
    return Executor(bind(program_of, model), None, key, state=State(program_of.nfe, y, y, (), key))
