"""The loop of an adaptive solve: every sample at its own time, with its own step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.options import Adaptive, Status
from diffsolve.adaptive.retrace import retrace
from diffsolve.adaptive.solution import BatchStep, Solution, packed
from diffsolve.adaptive.step import Field, FloatTable, Parts, index, inside, step, tensor, values
from diffsolve.common.tensors import per_sample
from diffsolve.kernels import weighted_sum

__all__ = ["Field", "Parts", "Solution", "integrate"]

SAFETY = 0.9  # of the step that would just be accepted
SHRINK, GROW = 0.2, 10.0  # the most that a step may change
TRIES = 8  # steps with a non-finite output before a sample is given up


def integrate(
    field: Field,
    parts: Parts,
    start: float | np.ndarray,
    stop: float,
    options: Adaptive,
    *,
    outputs: Sequence[float] = (),
    spent: int = 0,
    reserve: int = 0,
    tolerances: Sequence[tuple[float, float]] | None = None,
    checkpointed: bool = False,
) -> Solution:
    """Solve d parts / dv = field from v = start to v = stop, sample by sample; nothing is called beyond either.

    With gradients enabled the result is differentiable, for the steps as they were chosen: the accepted ones are then
    made once more, with a graph (see `retrace`).

    Args:
        start: one for all samples, or one each.
        outputs: values of v after the start, in the order of the way, for `Solution.dense`.
        spent, reserve: network calls already made per sample, and to be left of `max_nfe` for what comes after.
        tolerances: (rtol, atol) of each part, if not those of the options.
        checkpointed: keep no more than about the square root of the steps of the graph at a time.
    """
    wanted, budget = np.asarray(outputs, dtype=np.float64), options.max_nfe - spent - reserve
    tolerances = tolerances or [(options.rtol, options.atol)] * len(parts)
    with torch.no_grad():
        found = _solve(field, parts, start, stop, options, wanted, budget, tolerances)
    return retrace(field, parts, found, options.table, wanted, checkpointed) if torch.is_grad_enabled() else found


def _solve(
    field: Field,
    parts: Parts,
    start: float | np.ndarray,
    stop: float,
    options: Adaptive,
    outputs: np.ndarray,
    budget: int,
    tolerances: Sequence[tuple[float, float]],
) -> Solution:
    table, batch = FloatTable(options.table), len(parts[0])
    rows, v = np.arange(batch), np.array(np.broadcast_to(np.float64(start), batch))
    span = float(np.abs(stop - v).max(initial=0.0)) or 1.0
    way = -1.0 if (v > stop).any() else 1.0
    nfe, errors = np.zeros(batch, dtype=np.int64), np.ones((2, batch))
    bad, rejected, reached = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=bool), np.zeros(batch, np.int64)
    targets, made = np.append(outputs, stop), []
    dense = torch.full((len(outputs), *parts[0].shape), math.nan).to(parts[0]) if len(outputs) else None
    done = Solution(
        tuple(part.clone() for part in parts),
        v=v.copy(),
        h=np.zeros(batch),
        nfe=nfe.copy(),
        status=np.zeros(batch, dtype=np.int64),
        error=np.zeros(batch),
        dense=dense,
        steps=[],
    )
    k0 = field(parts, v, rows)
    nfe += 1
    h, calls = _first_step(field, parts, k0, v, rows, options, table, span, way, tolerances)
    nfe += calls
    first = True
    while len(rows):
        status = np.full(len(rows), -1)
        status[~_finite(k0)] = Status.NON_FINITE
        status[(status < 0) & (nfe + table.calls > budget)] = Status.BUDGET_SPENT
        status[(status < 0) & (bad >= TRIES)] = Status.NON_FINITE
        status[(status < 0) & (h <= 4 * np.spacing(np.maximum(np.abs(v), span / 10)))] = Status.STEP_TOO_SMALL
        status[v == stop] = Status.DONE
        if (left := status >= 0).any():
            leave = index(left, parts[0])
            for whole, part in zip(done.parts, parts, strict=True):
                whole[torch.from_numpy(rows[left]).to(whole.device)] = part[leave]
            done.v[rows[left]], done.h[rows[left]], done.nfe[rows[left]] = v[left], way * h[left], nfe[left]
            done.status[rows[left]] = status[left]
            if left.all():
                break
            stay = index(~left, parts[0])
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
        stages, new = _attempt(field, table, parts, k0, BatchStep(rows, v, way * size, end))
        nfe += table.calls - (first and not table.ahead)  # whose first stage is counted already
        first = False
        error, off = _error(table, stages, parts, new, size, tolerances)
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
        done.error[rows[accepted]] += off[accepted]
        if accepted.any():
            made.append(BatchStep(rows, v, way * size, end)[accepted])
            if dense is not None:
                _keep(dense, table, stages, parts, new, made[-1], np.flatnonzero(accepted), outputs, way)
                reached[accepted] = np.searchsorted(way * outputs, way * end[accepted], side="right")
            errors[:, accepted] = np.stack([np.maximum(error, 1e-10), errors[0]])[:, accepted]
            v = np.where(accepted, end, v)
            taken = torch.from_numpy(accepted).to(parts[0].device)
            parts = tuple(torch.where(per_sample(taken, y), n, y) for n, y in zip(new, parts, strict=True))
            if table.ahead:
                k0 = tuple(torch.where(per_sample(taken, k), n, k) for n, k in zip(stages[-1], k0, strict=True))
        rejected, h = ~accepted, h_next
    return replace(done, steps=packed(made))


def _attempt(field: Field, table: FloatTable, parts: Parts, k0: Parts, where: BatchStep) -> tuple[list[Parts], Parts]:
    """The derivatives of one step, that at its end among them if the method asks for it, and where it leads."""
    stages, new = step(
        lambda i, parts, v: field(parts, v, where.rows) if i else k0, table, parts, where.v, where.h, where.end
    )
    if table.ahead:
        stages.append(field(new, where.end, where.rows))
    return stages, new


def _keep(
    dense: Tensor,
    table: FloatTable,
    stages: list[Parts],
    parts: Parts,
    new: Parts,
    where: BatchStep,
    taken: np.ndarray,
    outputs: np.ndarray,
    way: float,
) -> None:
    """The outputs inside the steps just accepted, those of the samples `taken` of the batch."""
    who, which = inside(outputs, way, where.v, where.end)
    if not len(who):
        return
    some = torch.from_numpy(taken[who]).to(dense.device)
    at = torch.from_numpy(which).to(dense.device), torch.from_numpy(where.rows[who]).to(dense.device)
    slopes = [k[0][some] for k in stages]
    dense[at] = values(table, slopes, parts[0][some], new[0][some], where.v[who], where.end[who], outputs[which])


@torch.no_grad()
def _error(
    table: FloatTable,
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
            error = weighted_sum(weights, [k[i] for k in stages])
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
    table: FloatTable,
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
        torch.addcmul(y, k, per_sample(tensor(way * span * guess, y), y)) for y, k in zip(parts, k0, strict=True)
    )
    k1 = field(trial, v + way * span * guess, rows)
    bend = norm([b - a for a, b in zip(k0, k1, strict=True)]) * span / guess
    steepest = np.maximum(slope, bend)
    with np.errstate(all="ignore"):
        h = np.where(steepest <= 1e-15, 100 * guess, (0.01 / steepest) ** (1 / table.order))
    return np.asarray(np.minimum(np.where(np.isfinite(h) & (h > 0), np.minimum(100 * guess, h), guess) * span, most)), 1


def _finite(parts: Parts) -> np.ndarray:
    good = torch.stack([part.detach().view(len(part), -1).isfinite().all(1) for part in parts]).all(0)
    return np.asarray(good.cpu().numpy())
