r"""Gradients through a run: with respect to the noise it starts from, the conditions, and the network's parameters.

| gradient     | keeps                                  | network calls            | is                        |
|--------------|----------------------------------------|--------------------------|---------------------------|
| "direct"     | every call's graph: N of them          | N, and a backward each   | exact                     |
| "checkpoint" | sqrt(N) states, sqrt(N) graphs at once | 2 N, and a backward each | exact                     |
| "adjoint"    | one state, one graph at once           | 2 N, and a backward each | exact as the steps shrink |

The first two run the rows of the executor's program without writing in place, in the executor's order of operations:
their values are those of a run without gradients, bit for bit. The adjoint (Chen et al., 1806.07366) solves

    dz/dv = d,    da/dv = -(dd/dz)^T a,    dg/dv = -(dd/dp)^T a

backwards with the same solver on the reversed grid, for the network's parameters and conditions p. With a solver
whose steps can be undone (`reversible-heun`) it undoes them, and is exact but for their rounding: of a row

    [s', y'] = w [s, y, d(y)]

the combination of s' and y' that is free of d gives y, one call of the network d, and either of them s.

An adaptive solve (`diffsolve.adaptive`) chooses its steps without a graph and repeats the accepted ones with one, at
the cost of one more call each; its adjoint is solved with steps of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from diffsolve.adaptive.flow import Flow, Point
from diffsolve.execute import Network, Program, bind
from diffsolve.gradients.cotangents import check_leaves, leaves_of, pull
from diffsolve.kernels import Row, weighted_sum
from diffsolve.kernels.terms import S, Z, beginning_with
from diffsolve.models import Model
from diffsolve.models.derivative import check_connected
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key, Stream
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tableau.augmented import Augmented, augmented
from diffsolve.tableau.frames import FRAMES

__all__ = ["GRADIENTS", "differentiable"]

GRADIENTS = ("direct", "checkpoint", "adjoint")

Look = Callable[[int, Tensor, Tensor, Tensor], object]


def differentiable(
    model: Model,
    tableau: Tableau,
    solver: Solver | None,
    x: Tensor,
    key: Key,
    cond: Mapping[str, Any],
    guidance: Guidance,
    gradient: str,
    look: Look | None = None,
) -> tuple[Tensor, Tensor]:
    """s and y after the last call of a run from x, with a graph.

    Args:
        solver: the solver that wrote the tableau; the adjoint runs it backwards.
        gradient: one of `GRADIENTS`.
        look: called after every call, those of the forward pass first: (number, input, output, next input).

    Raises:
        ValueError: if the adjoint cannot run this solver backwards, or a gradient would not reach a tensor.
    """
    rows = _PureProgram(bind(tableau, model), Network.of(model, tableau, guidance, x), cond, key, look)
    with torch.enable_grad():
        if gradient == "direct":
            return rows.result(x)
        if gradient == "checkpoint":
            return rows.result(x, math.ceil(math.sqrt(tableau.nfe)))
        return _adjoint(model, tableau, solver, x, rows, cond, guidance)


@dataclass(frozen=True)
class _PureProgram:
    """The rows of a program, without writing in place. A state is (s, y, history, newest first)."""

    program: Program
    network: Network
    cond: Mapping[str, Any]
    key: Key
    look: Look | None

    def result(self, x: Tensor, segment: int = 0) -> tuple[Tensor, Tensor]:
        """The last s and y; with checkpoints between segments of `segment` calls, if it is not 0."""
        state: tuple[Tensor, ...] = self.begin(x)
        calls = self.program.tableau.nfe
        if not segment:
            state = self.stretch(0, calls, *state)
        else:
            for first in range(0, calls, segment):
                state = checkpoint(self.stretch, first, min(first + segment, calls), *state, use_reentrant=False)
        return state[0], state[1]

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and y before the first call."""
        live = [x, x, x, x]
        if self.program.tableau.entry[:, 1].any():
            live[Z] = self._noise(0, x)
        entry = self.program.rows[0]
        return self._update(live, entry)

    def stretch(self, first: int, last: int, s: Tensor, y: Tensor, *history: Tensor) -> tuple[Tensor, ...]:
        """The calls from `first` up to `last`."""
        for i in range(first, last):
            row = self.program.rows[i + 1]
            out = self.network(i, y, self.cond)
            if i == 0 and y.requires_grad and torch.is_grad_enabled():
                check_connected(out, y, lambda y: self.network(0, y, self.cond), "with gradient=")
            before, live = y, [s, y, out, y]
            if row.noise:
                live[Z] = self._noise(i + 1, y)
            if self.program.depth:
                kept = y if row.keep is None else weighted_sum(row.kept, live)  # y where no row reads it
                history = (kept, *history)[: self.program.depth]
                live.extend(history)
            s, y = self._update(live, row)
            if self.look is not None:
                self.look(i, before, out, y)
        return s, y, *history

    @staticmethod
    def _update(live: Sequence[Tensor], row: Row) -> tuple[Tensor, Tensor]:
        """`kernels.linear_update` with new tensors; each sum begins with the tensor that is overwritten there."""
        if row.s is None:
            both = weighted_sum(beginning_with(row.y, row.target), live)
            return both, both
        return weighted_sum(beginning_with(row.s, S), live), weighted_sum(row.y, live)

    def _noise(self, row: int, like: Tensor) -> Tensor:
        return self.key.normal(like.shape, row=row, stream=Stream.ROW, dtype=like.dtype, device=like.device)


def _adjoint(
    model: Model,
    tableau: Tableau,
    solver: Solver | None,
    x: Tensor,
    rows: _PureProgram,
    cond: Mapping[str, Any],
    guidance: Guidance,
) -> tuple[Tensor, Tensor]:
    if tableau.stochastic:
        raise ValueError(
            f"gradient must be 'direct' or 'checkpoint' with {tableau.solver}, which draws noise, got 'adjoint'"
        )
    leaves = leaves_of(model, cond, guidance)
    field = _Field(tableau, Flow(model, FRAMES["trig"], len(x), x.dim(), cond, guidance))
    check_leaves(field.point(0, x).output, x, leaves)
    first, last = _reversible_calls(tableau)
    if last - first >= max(1, tableau.nfe - 2):  # the others are first-order steps at the ends
        s, y = _Undoing.apply(*rows.stretch(0, first, *rows.begin(x)), rows, first, last, field, *leaves)  # type: ignore[no-untyped-call]
        s, y = rows.stretch(last, tableau.nfe, s, y)
        return s, y
    if solver is None:
        raise ValueError(
            "solver must be a solver, or its name, with gradient='adjoint', which runs it backwards, got the tableau "
            f"{tableau.solver!r}"
        )
    times, last = tableau.times, len(tableau.times) - 1
    if not model.determined(float(times[-1])):  # the last step cannot be run backwards: it has a graph
        last -= 1
    if last == 0:
        return rows.result(x)
    backward = augmented(solver(model.path, times[: last + 1][::-1], call_last=model.determined(float(times[0]))))
    first = int(np.flatnonzero(tableau.node == last)[-1]) + 1  # the call after that node
    if len({*backward.tableau.frame}) > 1 or not np.array_equal(backward.d, backward.tableau.d):
        why = "its frame is singular at an end, where the way back is of first order"
    elif any(row[:, 3 + i : -1].any() for i, row in enumerate(tableau.weights[first:])):
        why = "the step to the data, where the network cannot be called, uses calls before it"
    else:
        why = ""
    if why:
        raise ValueError(
            f"solver must be a Runge-Kutta method in the frame 'straight' or 'trig', or 'reversible-heun', with "
            f"gradient='adjoint', got {tableau.solver!r}: {why}. gradient='direct' and 'checkpoint' take any solver"
        )
    turned = replace(field, tableau=backward.tableau)
    middle: Tensor = _Backwards.apply(x, rows, first, backward, turned, *leaves)  # type: ignore[no-untyped-call]
    s, y, *_ = rows.stretch(first, tableau.nfe, middle, middle)
    return s, y


@dataclass(frozen=True)
class _Field:
    """The derivatives at the calls of a tableau."""

    tableau: Tableau
    flow: Flow

    def point(self, i: int, like: Tensor, unit: float = 1.0) -> Point:
        """Call i, in coordinates z = x / unit."""
        n = len(like)
        at = self.flow.model.path.nodes(np.full(n, self.tableau.calls[i, 0]))
        a, b = self.tableau.d[i]
        return self.flow.place(at, (np.full(n, a), np.full(n, b)), unit, like)

    def derivative(self, i: int, like: Tensor, unit: float = 1.0) -> Callable[[Tensor], Tensor]:
        """z -> d of call i, at x = unit z."""
        point = self.point(i, like, unit)
        return lambda z: point.derivative(z * unit, point.output(z * unit))


class _Backwards(torch.autograd.Function):
    """Forward the run up to a node, backward the augmented equation. Only the state at the node is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: _PureProgram, calls: int, backward: Augmented, field: _Field, *leaves: Tensor
    ) -> Tensor:
        ctx.backward_, ctx.field, ctx.leaves = backward, field, leaves
        _, y, *_ = rows.stretch(0, calls, *rows.begin(x))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        (x,), rows, field, leaves = ctx.saved_tensors, ctx.backward_, ctx.field, ctx.leaves
        totals, shares = [torch.zeros_like(leaf) for leaf in leaves], rows.shares.tolist()

        def slopes(i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z, a = parts
            d, pulled, *gradients = pull(field.derivative(i, z, float(rows.units[i])), z, a, leaves)
            for total, g in zip(totals, gradients, strict=True):
                total.sub_(g, alpha=shares[i])
            return d, -pulled

        _, a = rows.run(slopes, (x, a))
        return a / float(rows.units[-1]), None, None, None, None, *totals


class _Undoing(torch.autograd.Function):
    """Rows that can be undone; the backward pass undoes them one after another. Only the last s and y are kept."""

    @staticmethod
    def forward(
        ctx: Any, s: Tensor, y: Tensor, rows: _PureProgram, first: int, last: int, field: _Field, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.calls, ctx.field, ctx.leaves = range(first, last), field, leaves
        s, y = rows.stretch(first, last, s, y)
        ctx.save_for_backward(s, y)
        return s, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a_s: Tensor, a_y: Tensor) -> tuple[Tensor | None, ...]:
        (s, y), field, leaves = ctx.saved_tensors, ctx.field, ctx.leaves
        totals = [torch.zeros_like(leaf) for leaf in leaves]
        for i in reversed(ctx.calls):
            w = field.tableau.weights[i, :, :3].tolist()
            on_s, on_y = _without_d(w)
            before = on_s * s + on_y * y
            d, pulled, *shares = pull(field.derivative(i, before), before, w[0][2] * a_s + w[1][2] * a_y, leaves)
            known, row = (s, w[0]) if w[0][0] else (y, w[1])
            s, y = (known - row[1] * before - row[2] * d) / row[0], before
            a_s, a_y = w[0][0] * a_s + w[1][0] * a_y, w[0][1] * a_s + w[1][1] * a_y + pulled
            for total, share in zip(totals, shares, strict=True):
                total.add_(share)
        return a_s, a_y, None, None, None, None, *totals


def _without_d(w: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The weights on s' and y' whose sum is y, for rows [s', y'] = w [s, y, d].

    The sum must be free of s and of d. It is free of d as f s' - e y', and free of s too where f a = e p, which
    `_reversible_calls` asks for; what is left is (f b - e q) y.
    """
    (_, b, e), (_, q, f) = w
    return f / (f * b - e * q), -e / (f * b - e * q)


def _reversible_calls(tableau: Tableau) -> tuple[int, int]:
    """The longest stretch of calls, (first, last + 1), whose s and y follow from the s' and y' that they lead to.

    A row [s', y'] = [[a, b, e], [p, q, f]] [s, y, d(y)] has two equations for three unknowns, since d needs the network
    at y: so one combination of them must give y alone (`_without_d`), and then either row gives s.
    """
    current = longest = (0, 0)
    for i, w in enumerate(tableau.weights):
        (a, b, e), (p, q, f) = w[:, :3].tolist()
        alone = tableau.history == 1 and not w[:, 3:].any() and abs(f * a - e * p) <= 1e-12 * (abs(f * a) + abs(e * p))
        current = (current[0], i + 1) if alone and f * b != e * q and (a or p) else (i + 1, i + 1)
        longest = max(longest, current, key=lambda stretch: stretch[1] - stretch[0])
    return longest
