"""The loop of an adaptive solve: every sample at its own time, with its own step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.options import Adaptive, Status
from diffsolve.flow import per_sample
from diffsolve.solvers.butcher import Butcher

__all__ = ["Field", "Parts", "Solution", "integrate"]

SAFETY = 0.9  # of the step that would just be accepted
SHRINK, GROW = 0.2, 10.0  # the most that a step may change
TRIES = 8  # steps with a non-finite output before a sample is given up

Parts = tuple[Tensor, ...]
"""The state: tensors whose first axis is the batch, each with an error of its own."""
Field = Callable[[Parts, np.ndarray, np.ndarray], Parts]
"""(parts, v, rows) -> derivatives: of the samples `rows`, each at its own v."""


@dataclass(frozen=True)
class Solution:
    """What `integrate` returns: for each sample of the batch its last state, and how it got there."""

    parts: Parts
    v: np.ndarray
    """(B,): where it stopped."""
    h: np.ndarray
    """(B,): the step that it would have tried next."""
    nfe: np.ndarray
    """(B,): its network calls."""
    status: np.ndarray
    """(B,): a `Status`."""
    error: np.ndarray
    """(B,): the sum over its steps of the estimated error of the last part, the mean over its numbers."""
    dense: Tensor | None
    """(m, B, ..): the first part at the values of v asked for; NaN where it did not get."""


class _Table:
    """A Butcher table in floats, with what the loop asks of it."""

    def __init__(self, method: Butcher) -> None:
        self.a = [[float(w) for w in row] for row in method.a]
        self.b = [float(w) for w in method.b]
        # The abscissae as they are rounded: 1 exactly where the last stage stands at the end.
        self.c = [float(c) for c in method.c]
        self.errors = []
        for weights in method.embedded.values():
            full = [*method.b, 0][: len(weights)]
            self.errors.append([float(b - b_hat) for b, b_hat in zip(full, weights, strict=True)])
        # The next step's first stage is called before this one is accepted, if the error or the middle needs it.
        self.ahead = any(len(error) > len(self.b) for error in self.errors) or bool(method.middle)
        self.middle = [float(w) for w in method.middle]
        self.dense = self.ahead and method.order <= 5
        self.order = method.order if len(self.errors) > 1 else 1 + min(method.order, *method.embedded)
        self.calls = len(self.b)


def integrate(
    field: Field,
    parts: Parts,
    start: float,
    stop: float,
    options: Adaptive,
    *,
    outputs: Sequence[float] = (),
    spent: int = 0,
    reserve: int = 0,
    tolerances: Sequence[tuple[float, float]] | None = None,
) -> Solution:
    """Solve d parts / dv = field from v = start to v = stop, sample by sample; nothing is called beyond either.

    With gradients enabled the result is differentiable for the steps as they were chosen.

    Args:
        outputs: values of v, in the order of the way, for `Solution.dense`.
        spent, reserve: network calls already made per sample, and to be left of `max_nfe` for what comes after.
        tolerances: (rtol, atol) of each part, if not those of the options.
    """
    table, tolerances = _Table(options.table), tolerances or [(options.rtol, options.atol)] * len(parts)
    batch, way, span = len(parts[0]), math.copysign(1.0, stop - start), abs(stop - start)
    budget = options.max_nfe - spent - reserve
    rows, v = np.arange(batch), np.full(batch, float(start))
    nfe, errors = np.zeros(batch, dtype=np.int64), np.ones((2, batch))
    bad, rejected, reached = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=bool), np.zeros(batch, np.int64)
    targets = np.array([*outputs, stop], dtype=np.float64)
    dense = torch.full((len(outputs), *parts[0].shape), math.nan).to(parts[0]) if len(outputs) else None
    done = Solution(
        tuple(part.clone() for part in parts),
        v=v.copy(),
        h=np.zeros(batch),
        nfe=nfe.copy(),
        status=np.zeros(batch, dtype=np.int64),
        error=np.zeros(batch),
        dense=dense,
    )
    k0 = field(parts, v, rows)
    nfe += 1
    h, calls = _first_step(field, parts, k0, v, rows, options, table, span, way, tolerances)
    nfe += calls
    while dense is not None and reached[0] < len(outputs) and (targets[reached[0]] - start) * way <= 0:
        dense[reached[0]] = parts[0]
        reached += 1
    first = True
    while len(rows):
        status = np.full(len(rows), -1)
        status[~_finite(k0)] = Status.NON_FINITE
        status[(status < 0) & (nfe + table.calls > budget)] = Status.BUDGET_SPENT
        status[(status < 0) & (bad >= TRIES)] = Status.NON_FINITE
        status[(status < 0) & (h <= 4 * np.spacing(np.maximum(np.abs(v), span / 10)))] = Status.STEP_TOO_SMALL
        status[v == stop] = Status.DONE
        if (left := status >= 0).any():
            leave = _index(left, parts[0])
            for whole, part in zip(done.parts, parts, strict=True):
                whole[torch.from_numpy(rows[left]).to(whole.device)] = part[leave]
            done.v[rows[left]], done.h[rows[left]], done.nfe[rows[left]] = v[left], way * h[left], nfe[left]
            done.status[rows[left]] = status[left]
            if left.all():
                break
            stay = _index(~left, parts[0])
            parts, k0 = tuple(part[stay] for part in parts), tuple(k[stay] for k in k0)
            rows, v, h, nfe, bad = rows[~left], v[~left], h[~left], nfe[~left], bad[~left]
            rejected, reached, errors = rejected[~left], reached[~left], errors[:, ~left]
        # A step that ends within 1 % of the target goes there; one that could not be followed by its like goes halfway.
        target = targets[-1] if table.dense else targets[reached]
        ahead = (target - v) * way
        size = np.where(ahead <= 1.01 * h, ahead, np.where(ahead < 2 * h, np.maximum(ahead / 2, h / 2), h))
        end = np.where(ahead <= 1.01 * h, target, v + way * size)
        if not table.ahead and not first:
            k0 = field(parts, v, rows)
        stages, new = _step(field, table, parts, k0, v, way * size, end, rows)
        nfe += table.calls - (first and not table.ahead)  # whose first stage is counted already
        first = False
        error, made = _error(table, stages, parts, new, size, tolerances)
        finite = np.isfinite(error)
        accepted = error <= 1
        bad = bad + ~finite
        factor = _factor(error, errors, options, table.order)
        factor = np.where(accepted & ~rejected, factor, np.minimum(factor, 1.0))
        # A step cut short to end at a target says nothing against the one that was meant.
        short = accepted & ~rejected & (size < h) & (factor == GROW)
        h_next = np.where(short, np.maximum(size * factor, h), size * factor)
        h_next = np.where(finite, h_next, size / 10)
        h_next = np.minimum(h_next, options.max_step or math.inf)
        if dense is not None:
            _fill(dense, table, stages, parts, new, v, end, way, targets, reached, accepted, rows)
        done.error[rows[accepted]] += made[accepted]
        if accepted.any():
            errors[:, accepted] = np.stack([np.maximum(error, 1e-10), errors[0]])[:, accepted]
            v = np.where(accepted, end, v)
            taken = torch.from_numpy(accepted).to(parts[0].device)
            parts = tuple(torch.where(per_sample(taken, y), n, y) for n, y in zip(new, parts, strict=True))
            if table.ahead:
                k0 = tuple(torch.where(per_sample(taken, k), n, k) for n, k in zip(stages[-1], k0, strict=True))
        rejected, h = ~accepted, h_next
    return done


def _step(
    field: Field,
    table: _Table,
    parts: Parts,
    k0: Parts,
    v: np.ndarray,
    h: np.ndarray,
    end: np.ndarray,
    rows: np.ndarray,
) -> tuple[list[Parts], Parts]:
    """The stages of one step, and where it leads."""
    stages = [k0]
    for row, c in zip(table.a[1:], table.c[1:], strict=True):
        at = end if c == 1 else v + c * h
        stages.append(field(_combine(parts, stages, row, h), at, rows))
    new = _combine(parts, stages, table.b, h)
    if table.ahead:
        stages.append(field(new, end, rows))
    return stages, new


def _combine(parts: Parts, stages: list[Parts], weights: Sequence[float], h: np.ndarray) -> Parts:
    """y + h sum_j w_j k_j, with each sample's own h."""
    return tuple(
        torch.addcmul(y, _sum([k[i] for k in stages], weights), per_sample(_tensor(h, y), y))
        for i, y in enumerate(parts)
    )


def _sum(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    used = [(k, w) for k, w in zip(terms, weights, strict=False) if w]
    if not used:
        return torch.zeros_like(terms[0])
    total = used[0][0] * used[0][1]
    for k, w in used[1:]:
        total = total.add_(k, alpha=w)
    return total


@torch.no_grad()
def _error(
    table: _Table,
    stages: list[Parts],
    parts: Parts,
    new: Parts,
    h: np.ndarray,
    tolerances: Sequence[tuple[float, float]],
) -> tuple[np.ndarray, np.ndarray]:
    """E of each sample: the largest over the parts of the root mean square of error / tolerance; and the error of the
    last part itself."""
    found = []
    for i, (y, y_new) in enumerate(zip(parts, new, strict=True)):
        rtol, atol = tolerances[i]
        scale = torch.maximum(y.abs(), y_new.abs()).mul_(rtol).add_(atol)
        for weights in table.errors:
            error = _sum([k[i] for k in stages], weights)
            found.append(_rms(error / scale))
            if i + 1 == len(parts):
                found.append(error.view(len(error), -1).mean(1).abs().to(found[0]))
    norms = torch.stack(found).cpu().numpy()
    few = len(table.errors)
    last = norms[-2 * few :].reshape(few, 2, len(h))
    norms = np.concatenate([norms[: -2 * few].reshape(len(parts) - 1, few, len(h)), last[None, :, 0]])
    return np.asarray(h * _estimate(norms).max(0)), np.asarray(h * _estimate(last[None, :, 1])[0])


def _estimate(errors: np.ndarray) -> np.ndarray:
    """One error of those by the embedded methods, the second axis; of two Hairer's for DOP853, of the order of both."""
    first = errors[:, 0]
    if errors.shape[1] == 1:
        return first
    with np.errstate(all="ignore"):
        return np.where(first == 0, 0.0, first**2 / np.sqrt(first**2 + 0.01 * errors[:, 1] ** 2))


def _rms(x: Tensor) -> Tensor:
    """Of each sample, in float64."""
    return x.flatten(1).double().square().mean(1).sqrt() if x.dim() > 1 else x.double().abs()


def _factor(error: np.ndarray, before: np.ndarray, options: Adaptive, order: int) -> np.ndarray:
    k_p, k_i, k_d = (k / order for k in options.pid)
    now = np.maximum(np.nan_to_num(error, nan=1e10, posinf=1e10), 1e-10)
    factor = SAFETY * now ** -(k_i + k_p + k_d) * before[0] ** (k_p + 2 * k_d) * before[1] ** -k_d
    return np.asarray(np.clip(factor, SHRINK, GROW))


@torch.no_grad()
def _first_step(
    field: Field,
    parts: Parts,
    k0: Parts,
    v: np.ndarray,
    rows: np.ndarray,
    options: Adaptive,
    table: _Table,
    span: float,
    way: float,
    tolerances: Sequence[tuple[float, float]],
) -> tuple[np.ndarray, int]:
    """(h, network calls): Hairer's guess, II.4, in units of the way to go, so that no clock's scale matters."""
    most = min(span, options.max_step or math.inf)
    if options.first_step is not None:
        return np.full(len(v), min(options.first_step, most)), 0
    scales = [y.abs() * rtol + atol for y, (rtol, atol) in zip(parts, tolerances, strict=True)]

    def norm(values: Sequence[Tensor]) -> np.ndarray:
        found = torch.stack([_rms(y / s) for y, s in zip(values, scales, strict=True)])
        return np.asarray(found.amax(0).nan_to_num(nan=math.inf).cpu().numpy())

    size, slope = norm(parts), norm(k0) * span
    with np.errstate(all="ignore"):
        guess = np.where((size < 1e-5) | (slope < 1e-5), 1e-3, 0.01 * size / slope)
    guess = np.minimum(np.where(np.isfinite(slope) & (guess > 0), guess, 1e-6), most / span)
    trial = tuple(
        torch.addcmul(y, k, per_sample(_tensor(way * span * guess, y), y)) for y, k in zip(parts, k0, strict=True)
    )
    k1 = field(trial, v + way * span * guess, rows)
    bend = norm([b - a for a, b in zip(k0, k1, strict=True)]) * span / guess
    steepest = np.maximum(slope, bend)
    with np.errstate(all="ignore"):
        h = np.where(steepest <= 1e-15, 100 * guess, (0.01 / steepest) ** (1 / table.order))
    return np.asarray(np.minimum(np.where(np.isfinite(h) & (h > 0), np.minimum(100 * guess, h), guess) * span, most)), 1


def _fill(
    dense: Tensor,
    table: _Table,
    stages: list[Parts],
    parts: Parts,
    new: Parts,
    v: np.ndarray,
    end: np.ndarray,
    way: float,
    targets: np.ndarray,
    reached: np.ndarray,
    accepted: np.ndarray,
    rows: np.ndarray,
) -> None:
    """The outputs inside the steps just accepted; `reached` moves on."""
    while True:
        here = accepted & (reached < len(targets) - 1)
        here &= (targets[np.minimum(reached, len(targets) - 1)] - end) * way <= 0
        if not here.any():
            return
        index = _index(here, dense)
        at = targets[reached[here]]
        slot = torch.from_numpy(np.stack([reached[here], rows[here]])).to(dense.device)
        y0, y1 = parts[0][index], new[0][index]
        if table.dense:
            h = end[here] - v[here]
            value = _between(table, [k[0][index] for k in stages], y0, y1, h, (at - v[here]) / h)
        else:
            value = y1
        dense[slot[0], slot[1]] = value
        reached[here] += 1


def _between(table: _Table, k: list[Tensor], y0: Tensor, y1: Tensor, h: np.ndarray, theta: np.ndarray) -> Tensor:
    """The polynomial through both ends, their slopes, and the middle where the method has one, at theta in [0, 1]."""
    t = per_sample(_tensor(theta, y0), y0)
    step = per_sample(_tensor(h, y0), y0)
    rise, left, right = y1 - y0, step * k[0], step * k[-1]
    # Cubic Hermite, and then a multiple of (theta (1 - theta))^2 that brings it through the middle.
    value = y0 + t * (left + t * (3 * rise - 2 * left - right + t * (left + right - 2 * rise)))
    if table.middle:
        middle = step * _sum(k, table.middle)
        value = value + 16 * (t * (1 - t)).square() * (middle - rise / 2 - (left - right) / 8)
    return value


def _finite(parts: Parts) -> np.ndarray:
    good = torch.stack([part.detach().view(len(part), -1).isfinite().all(1) for part in parts]).all(0)
    return np.asarray(good.cpu().numpy())


def _index(mask: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(mask)).to(like.device)


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values)).to(like.device, like.dtype)
