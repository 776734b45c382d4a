"""One step of an embedded Runge-Kutta method for a batch, each sample with its own time and size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import per_sample
from diffsolve.kernels.terms import Terms, in_order, weighted_sum
from diffsolve.solvers.butcher import Butcher

__all__ = ["Field", "FloatTable", "Parts", "index", "inside", "step", "take", "tensor", "values"]

Parts = tuple[Tensor, ...]
"""The state: tensors whose first axis is the batch, each with an error of its own."""
Field = Callable[[Parts, np.ndarray, np.ndarray], Parts]
"""(parts, v, rows) -> derivatives: of the samples `rows`, each at its own v."""


class FloatTable:
    """A Butcher tableau in floats, with what a solve derives from it."""

    def __init__(self, method: Butcher) -> None:
        self.a = [in_order(row) for row in method.a]
        self.b = [float(w) for w in method.b]
        self.solution = in_order(self.b)
        # The abscissae as they are rounded: 1 exactly where the last stage stands at the end.
        self.c = [float(c) for c in method.c]
        self.errors = []
        for weights in method.embedded.values():
            full = [*method.b, 0][: len(weights)]
            self.errors.append(in_order([b - b_hat for b, b_hat in zip(full, weights, strict=True)]))
        # The next step's first stage is called before this one is accepted, if the error or the middle needs it.
        self.ahead = any(len(weights) > len(self.b) for weights in method.embedded.values()) or bool(method.middle)
        self.middle = in_order(method.middle)
        self.dense = self.ahead and method.order <= 5
        self.order = method.order if len(self.errors) > 1 else 1 + min(method.order, *method.embedded)
        self.calls = len(self.b)


def step(
    stage: Callable[[int, Parts, np.ndarray], Parts], table: FloatTable, parts: Parts, v: np.ndarray, h: np.ndarray,
    end: np.ndarray,
) -> tuple[list[Parts], Parts]:  # fmt: skip
    """The derivatives of one step, from stage(number, parts, v), and the state at its end.

    Args:
        end: v + h, as rounded.
    """
    stages: list[Parts] = []
    for i, (row, c) in enumerate(zip(table.a, table.c, strict=True)):
        at = end if c == 1 else v + c * h
        stages.append(stage(i, _moved(parts, stages, row, h) if i else parts, at))
    return stages, _moved(parts, stages, table.solution, h)


def _moved(parts: Parts, stages: list[Parts], weights: Terms, h: np.ndarray) -> Parts:
    """y + h sum_j w_j k_j, with each sample's own h."""
    return tuple(
        torch.addcmul(y, weighted_sum(weights, [k[i] for k in stages]), per_sample(tensor(h, y), y))
        for i, y in enumerate(parts)
    )


def inside(outputs: np.ndarray, direction: float, v: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(who, which): output `which` lies in the step of `who`, in (v, end]; direction is 1 or -1."""
    first, last = (np.searchsorted(direction * outputs, direction * at, side="right") for at in (v, end))
    count = last - first
    before = np.cumsum(count) - count
    who = np.repeat(np.arange(len(v)), count)
    return who, np.arange(len(who)) - before[who] + first[who]


def values(
    table: FloatTable, slopes: Sequence[Tensor], y0: Tensor, y1: Tensor, v: np.ndarray, end: np.ndarray, at: np.ndarray
) -> Tensor:
    """The states at `at` in steps from v to `end`.

    They lie on the polynomial through both ends, their slopes, and the middle where the method has one. A method
    without dense output ends its steps at the outputs.

    Args:
        slopes: of the stages, and at the end.
    """
    if not table.dense:
        return y1
    h = end - v
    t, size = (per_sample(tensor(a, y0), y0) for a in ((at - v) / h, h))
    rise, left, right = y1 - y0, size * slopes[0], size * slopes[-1]
    # Cubic Hermite, and then a multiple of (theta (1 - theta))^2 that brings it through the middle.
    value = y0 + t * (left + t * (3 * rise - 2 * left - right + t * (left + right - 2 * rise)))
    if table.middle:
        middle = size * weighted_sum(table.middle, slopes)
        value = value + 16 * (t * (1 - t)).square() * (middle - rise / 2 - (left - right) / 8)
    return value


def index(mask: np.ndarray, like: Tensor) -> Tensor:
    """The indices at which a mask is true, on the device of `like`."""
    return torch.from_numpy(np.flatnonzero(mask)).to(like.device)


def take(parts: Parts, which: np.ndarray) -> Parts:
    """The samples `which` of a state."""
    if np.array_equal(which, np.arange(len(parts[0]))):
        return parts
    where = torch.from_numpy(which).to(parts[0].device)
    return tuple(part[where] for part in parts)


def tensor(values: np.ndarray, like: Tensor) -> Tensor:
    """An array as a tensor of the dtype and device of `like`."""
    return torch.from_numpy(np.asarray(values)).to(like.device, like.dtype)
