"""The accepted steps of a solve made once more, with a graph.

The steps are found without one, so that they are constants of it, and what was rejected leaves nothing behind: not its
memory, nor the NaN that a rejected step's output may have been. The n-th step of all samples that have one is one
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
    field: Field, start: Parts, found: Solution, method: Butcher, outputs: np.ndarray, checkpointed: bool
) -> Solution:
    """A solution, bit for bit, with a graph back to `start` and to whatever the field depends on.

    Args:
        outputs: those of the solution's dense output.
        checkpointed: keep states, and make the graph again in the backward pass, a stretch at a time.
    """
    steps = found.steps
    work = _Retrace(field, FloatTable(method), steps, outputs)
    sizes = np.array([len(s.rows) for s in steps])
    bounds = [0, len(steps)]
    if checkpointed and steps:
        graph = (np.cumsum(sizes) - sizes) // math.sqrt(np.square(sizes).sum())
        bounds = [0, *(np.flatnonzero(np.diff(graph)) + 1).tolist(), len(steps)]
    rows = steps[0].rows if steps else np.empty(0, dtype=np.int64)
    idle = np.setdiff1d(np.arange(len(start[0])), rows)
    order, gone, dense = [idle], [take(start, idle)], []
    state = take(start, rows)
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        if checkpointed:
            made: Any = checkpoint(work.stretch, first, last, *state, use_reentrant=False)
        else:
            made = work.stretch(first, last, *state)
        state = made[0]
        gone.extend(made[1])
        dense.extend(made[2])
    order.extend(s.rows[~work.staying(n)] for n, s in enumerate(steps))
    back = np.argsort(np.concatenate(order), kind="stable")
    whole = take(tuple(torch.cat(pieces) for pieces in zip(*gone, strict=True)), back)
    found = replace(found, parts=tuple(map(_valued, whole, found.parts)))
    if found.dense is None or not dense:
        return found
    way = 1.0 if steps[0].h[0] > 0 else -1.0
    at = [(which, s.rows[who]) for s in steps for who, which in [inside(outputs, way, s.v, s.end)]]
    slots = [torch.from_numpy(np.concatenate(i)).to(found.dense.device) for i in zip(*at, strict=True)]
    return replace(found, dense=_valued(found.dense.index_put(tuple(slots), torch.cat(dense)), found.dense))


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
        gone, dense = [], []
        for n in range(first, last):
            made, stay = self.steps[n], self.staying(n)
            stage = partial(self.stage, made.rows)
            stages, new = step(stage, self.table, parts, made.v, made.h, made.end)
            who, which = inside(self.outputs, 1.0 if made.h[0] > 0 else -1.0, made.v, made.end)
            if len(who):
                slopes = [take(k[:1], who)[0] for k in stages]
                if self.table.dense:
                    few, back = np.unique(who, return_inverse=True)
                    end = self.field(take(new, few), made.end[few], made.rows[few])
                    slopes.append(take(end[:1], back)[0])
                (y0,), (y1,) = take(parts[:1], who), take(new[:1], who)
                dense.append(values(self.table, slopes, y0, y1, made.v[who], made.end[who], self.outputs[which]))
            if not stay.all():
                gone.append(take(new, np.flatnonzero(~stay)))
                new = take(new, np.flatnonzero(stay))
            parts = new
        return parts, gone, dense


class _Valued(torch.autograd.Function):
    """The value of one tensor with the graph of another, which may differ by the rounding of a network's batches."""

    @staticmethod
    def forward(ctx: Any, graph: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _valued(graph: Tensor, value: Tensor) -> Tensor:
    found: Tensor = _Valued.apply(graph, value)  # type: ignore[no-untyped-call]
    return found
