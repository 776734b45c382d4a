"""The adjoint of an adaptive solve: the state and its cotangent, solved backwards with the same options.

    dz/dv = d,    da/dv = -(dd/dz)^T a

Each sample has its own steps, which are chosen by the errors of its z and a. a enters divided by its root mean square,
sample by sample, so that the unit of the loss does not matter to the tolerances. What the samples share, the network's
parameters and the conditions p, is not part of that state. Its gradient is the integral

    dL/dp = -integral of (dd/dp)^T a dv

along the accepted steps, by the weights of the method, in a second pass over them: as accurate as if it were part of
the state, without a copy of it per sample, and never a reason for a smaller step (Kidger, Chen and Lyons,
2009.09457, on leaving it out of the error's norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffsolve.adaptive.flow import Origin
from diffsolve.adaptive.integrate import integrate
from diffsolve.adaptive.options import Status, warn
from diffsolve.adaptive.solution import BatchStep
from diffsolve.adaptive.step import FloatTable, Parts, step, take, tensor
from diffsolve.common.tensors import flat, per_sample
from diffsolve.gradients.cotangents import check_leaves, leaves_of, pull

__all__ = ["attached"]


def attached(z: Tensor, end: Tensor, origin: Origin) -> Tensor:
    """`end`, the result of a solve from z, with the gradient of the adjoint.

    Raises:
        ValueError: if the network depends on tensors that no gradient would reach.
    """
    leaves = leaves_of(origin.flow.model, origin.flow.cond, origin.flow.guidance)
    rows = np.arange(len(z))
    point = origin.flow.point(np.full(len(z), origin.start), z, rows, origin.exact_times)
    check_leaves(point.output, point.c * z, leaves)
    with_gradient: Tensor = _Backwards.apply(z, end, origin, *leaves)  # type: ignore[no-untyped-call]
    return with_gradient


class _Backwards(torch.autograd.Function):
    """Only the last state is kept."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, end: Tensor, origin: Origin, *leaves: Tensor) -> Tensor:
        ctx.origin, ctx.leaves = origin, leaves
        ctx.save_for_backward(end)
        return end.view_as(end)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        (end,), origin, leaves = ctx.saved_tensors, ctx.origin, ctx.leaves
        size = flat(a).double().square().mean(1).sqrt() if a.dim() > 1 else a.double().abs()
        size = per_sample(torch.where(size > 0, size, 1.0).to(a), a)

        def field(parts: Parts, v: np.ndarray, rows: np.ndarray) -> Parts:
            z, a = parts
            d, pulled = pull(origin.derivative(v, rows), z, a)
            return d, -pulled

        start = (end, a / size)
        solution = integrate(field, start, origin.ended, origin.start, origin.options)
        warn([Status(int(code)) for code in solution.status], solution.v, solution.h, "adjoints", "v")
        finished = per_sample(torch.from_numpy(solution.status == Status.DONE).to(a.device), a)
        fill = 0.0 if bool(finished.all()) else torch.nan
        totals = [torch.full_like(leaf, fill) for leaf in leaves]
        if leaves:
            _quadrature(origin, start, solution.steps, FloatTable(origin.options.table), size, leaves, totals)
        return torch.where(finished, solution.parts[1] * size, torch.nan), None, None, *totals


def _quadrature(
    origin: Origin, state: Parts, steps: Sequence[BatchStep], table: FloatTable, size: Tensor, leaves: Sequence[Tensor],
    totals: Sequence[Tensor],
) -> None:  # fmt: skip
    """Add dL/dp along the steps to the totals."""
    rows = np.arange(len(size))
    for current in steps:
        state, rows = take(state, np.searchsorted(rows, current.rows)), current.rows
        weight = per_sample(tensor(current.h, size), size) * take((size,), rows)[0]

        def stage(i: int, parts: Parts, v: np.ndarray, current: BatchStep = current, weight: Tensor = weight) -> Parts:
            z, a = parts
            derivative = origin.derivative(v, current.rows)
            if not table.b[i]:
                d, pulled = pull(derivative, z, a)
                return d, -pulled
            # One pass through the network for both: in p the samples are summed with their weights.
            share = table.b[i] * weight
            d, pulled, *gradients = pull(derivative, z, share * a, leaves)
            for total, g in zip(totals, gradients, strict=True):
                total.sub_(g)
            return d, -pulled / share

        _, state = step(stage, table, state, current.v, current.h, current.end)
