"""Repeat the accepted steps of a solve, with a graph.

The steps are chosen without a graph, so they are constants of it, and a rejected step leaves nothing behind: neither
its memory nor a NaN that its output may have held. The n-th step of all samples that have one is one
batch. With m_n samples in it and G of their steps in a graph at a time, the states between the graphs are sum m_n^2 / G
in all; G = (sum m_n^2)^(1/2) makes both least: the square root of N steps for each sample if all have as many, and
near the sum of their roots if one has many more than the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffsolve.adaptive.solution import BatchStep, Solution
from diffsolve.adaptive.step import Field, FloatTable, Parts, inside, step, take, values
from diffsolve.solvers.butcher import Butcher

__all__ = ["retrace"]


def retrace(
    field: Field, start: Parts, solution: Solution, method: Butcher, outputs: np.ndarray, checkpointed: bool
) -> Solution:
    """A solution, bit for bit, with a graph back to `start` and to all that the field depends on.

    Args:
        outputs: the values of v of the solution's dense output.
        checkpointed: keep states only, and rebuild the graph in the backward pass, one stretch at a time.
    """
    steps = solution.steps
    work = _Retrace(field, FloatTable(method), steps, outputs)
    sizes = np.array([len(s.rows) for s in steps])
    bounds = [0, len(steps)]
    if checkpointed and steps:
        graph = (np.cumsum(sizes) - sizes) // math.sqrt(np.square(sizes).sum())
        bounds = [0, *(np.flatnonzero(np.diff(graph)) + 1).tolist(), len(steps)]
    rows = steps[0].rows if steps else np.empty(0, dtype=np.int64)
    idle = np.setdiff1d(np.arange(len(start[0])), rows)
    order, ended, dense = [idle], [take(start, idle)], []
    state = take(start, rows)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if checkpointed:
            result: Any = checkpoint(work.stretch, first, last, *state, use_reentrant=False)
        else:
            result = work.stretch(first, last, *state)
        state = result[0]
        ended.extend(result[1])
        dense.extend(result[2])
    order.extend(s.rows[~work.staying(n)] for n, s in enumerate(steps))
    inverse = np.argsort(np.concatenate(order), kind="stable")
    whole = take(tuple(torch.cat(pieces) for pieces in zip(*ended, strict=True)), inverse)
    solution = replace(solution, parts=tuple(map(_valued, whole, solution.parts)))
    if solution.dense is None or not dense:
        return solution
    direction = 1.0 if steps[0].h[0] > 0 else -1.0
    at = [(which, s.rows[who]) for s in steps for who, which in [inside(outputs, direction, s.v, s.end)]]
    slots = [torch.from_numpy(np.concatenate(i)).to(solution.dense.device) for i in zip(*at, strict=True)]
    return replace(solution, dense=_valued(solution.dense.index_put(tuple(slots), torch.cat(dense)), solution.dense))


@dataclass(frozen=True)
class _Retrace:
    field: Field
    table: FloatTable
    steps: list[BatchStep]
    outputs: np.ndarray

    def staying(self, n: int) -> np.ndarray:
        """Which samples of step n make another."""
        rows = self.steps[n].rows
        return np.isin(rows, self.steps[n + 1].rows) if n + 1 < len(self.steps) else np.zeros(len(rows), dtype=bool)

    def stage(self, rows: np.ndarray, _: int, parts: Parts, v: np.ndarray) -> Parts:
        return self.field(parts, v, rows)

    def stretch(self, first: int, last: int, *parts: Tensor) -> tuple[Parts, list[Parts], list[Tensor]]:
        """The steps from `first` up to `last`: the state of those that go on, of those that ended, and the outputs."""
        ended, dense = [], []
        for n in range(first, last):
            current, stay = self.steps[n], self.staying(n)
            stage = partial(self.stage, current.rows)
            stages, new = step(stage, self.table, parts, current.v, current.h, current.end)
            who, which = inside(self.outputs, 1.0 if current.h[0] > 0 else -1.0, current.v, current.end)
            if len(who):
                slopes = [take(k[:1], who)[0] for k in stages]
                if self.table.dense:
                    few, back = np.unique(who, return_inverse=True)
                    end = self.field(take(new, few), current.end[few], current.rows[few])
                    slopes.append(take(end[:1], back)[0])
                (y0,), (y1,) = take(parts[:1], who), take(new[:1], who)
                dense.append(values(self.table, slopes, y0, y1, current.v[who], current.end[who], self.outputs[which]))
            if not stay.all():
                ended.append(take(new, np.flatnonzero(~stay)))
                new = take(new, np.flatnonzero(stay))
            parts = new
        return parts, ended, dense


class _Valued(torch.autograd.Function):
    """The value of one tensor with the graph of another, which may differ by the rounding of a network's batches."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _valued(graph: Tensor, value: Tensor) -> Tensor:
    attached: Tensor = _Valued.apply(graph, value)  # type: ignore[no-untyped-call]
    return attached
