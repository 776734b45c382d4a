"""The loop of an adaptive solve: every sample at its own time, with its own step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.batch import Batch
from diffsolve.adaptive.options import Adaptive, Status
from diffsolve.adaptive.retrace import retrace
from diffsolve.adaptive.solution import BatchStep, Solution, packed
from diffsolve.adaptive.step import Field, FloatTable, Parts, index, inside, step, tensor, values
from diffsolve.common.tensors import flat, per_sample
from diffsolve.kernels import weighted_sum

__all__ = ["Field", "Parts", "Solution", "finite", "integrate"]

SAFETY = 0.9  # of the step that would just be accepted
SHRINK, GROW = 0.2, 10.0  # the most that a step may change
TRIES = 8  # steps with a non-finite output before a sample is given up


Gauge = Callable[[Parts, Parts, np.ndarray], Tensor]


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
    gauge: Gauge | None = None,
) -> Solution:
    """Solve d parts / dv = field from v = start to v = stop, sample by sample; nothing is called beyond either.

    With gradients enabled the result is differentiable, for the steps as they were chosen: the accepted ones are then
    made once more, with a graph (see `retrace`).

    Args:
        start: one for all samples, or one for each.
        outputs: values of v after the start, in the order of integration, at which `Solution.dense` is wanted.
        spent, reserve: of `max_nfe`, the calls per sample already made, and those to keep for what comes after.
        tolerances: (rtol, atol) of each part, if not those of the options.
        gauge: (parts, derivatives, v) -> the gradient, in the first of several parts, of a quantity that the exact flow
            carries along: what each step's error of that part changes in it is summed up in `Solution.drift`.
        checkpointed: hold the graph of only about the square root of the steps at a time.
    """
    wanted = np.asarray(outputs, dtype=np.float64)
    tolerances = tolerances or [(options.rtol, options.atol)] * len(parts)
    budget = options.max_nfe - spent - reserve
    with torch.no_grad():
        solution = _Solve(field, parts, start, stop, options, wanted, budget, tolerances, gauge).run()
    if not torch.is_grad_enabled():
        return solution
    return retrace(field, parts, solution, options.table, wanted, checkpointed)


@dataclass
class _Batch(Batch):
    """The state of the unfinished samples."""

    parts: Parts
    slopes: Parts
    """The first stage of the next step."""
    v: np.ndarray
    h: np.ndarray
    """The size of the step to try next, positive."""
    nfe: np.ndarray
    failures: np.ndarray
    """Steps with a non-finite output."""
    rejected: np.ndarray
    """Whether the previous step was rejected."""
    reached: np.ndarray
    """How many outputs each sample has passed."""
    errors: np.ndarray
    """(n, 2): of the last accepted step and the one before."""


class _Solve:
    """A solve as a loop over the unfinished samples.

    Example: two samples from v = 0 to v = 1, both with h = 0.4:

        pass 1    sample 0: error 0.1, accepted: v = 0.4, h = 0.6        sample 1: error 5, rejected: v = 0, h = 0.25
        pass 2    sample 0: from 0.4 to 1, the target, in one step       sample 1: from 0 to 0.25, accepted
        pass 3    sample 0 is DONE: its state goes into its row of the solution, and the batch is sample 1 alone
    """

    def __init__(
        self,
        field: Field,
        parts: Parts,
        start: float | np.ndarray,
        stop: float,
        options: Adaptive,
        outputs: np.ndarray,
        budget: int,
        tolerances: Sequence[tuple[float, float]],
        gauge: Gauge | None,
    ) -> None:
        self.gauge = gauge
        self.field, self.options, self.table = field, options, FloatTable(options.table)
        self.stop, self.outputs, self.budget, self.tolerances = stop, outputs, budget, tolerances
        n, v = len(parts[0]), np.array(np.broadcast_to(np.float64(start), len(parts[0])))
        self.span = float(np.abs(stop - v).max(initial=0.0)) or 1.0
        self.direction = -1.0 if (v > stop).any() else 1.0
        self.fresh = True
        """Whether the slopes are those at v: always, if the method calls the network at the end of its steps."""
        self.steps: list[BatchStep] = []
        self.solution = Solution(
            tuple(part.clone() for part in parts),
            v=v.copy(),
            h=np.zeros(n),
            nfe=np.zeros(n, dtype=np.int64),
            status=np.zeros(n, dtype=np.int64),
            error=np.zeros(n),
            drift=np.zeros(n),
            dense=torch.full((len(outputs), *parts[0].shape), math.nan).to(parts[0]) if len(outputs) else None,
            steps=[],
        )
        rows = np.arange(n)
        slopes = field(parts, v, rows)
        h, calls = _first_step(
            field, parts, slopes, v, rows, options, self.table, self.span, self.direction, tolerances
        )
        self.batch = _Batch(
            rows, parts, slopes, v, h, nfe=np.full(n, 1 + calls), failures=np.zeros(n, dtype=np.int64),
            rejected=np.zeros(n, dtype=bool), reached=np.zeros(n, dtype=np.int64), errors=np.ones((n, 2)),
        )  # fmt: skip

    def run(self) -> Solution:
        batch = self.batch
        while len(batch):
            status = self.status(batch)
            ended = status >= 0
            if ended.any():
                self.record(batch, status)
                batch.leave(ended)
            else:
                self.advance(batch, self.aim(batch))
        return replace(self.solution, steps=packed(self.steps))

    def status(self, batch: _Batch) -> np.ndarray:
        """The `Status` of each sample that ends here, -1 for one that goes on."""
        smallest = 4 * np.spacing(np.maximum(np.abs(batch.v), self.span / 10))
        status = np.full(len(batch), -1)
        status[~finite(batch.slopes)] = Status.NON_FINITE
        status[(status < 0) & (batch.nfe + self.table.calls > self.budget)] = Status.BUDGET_SPENT
        status[(status < 0) & (batch.failures >= TRIES)] = Status.NON_FINITE
        status[(status < 0) & (batch.h <= smallest)] = Status.STEP_TOO_SMALL
        status[batch.v == self.stop] = Status.DONE
        return status

    def record(self, batch: _Batch, status: np.ndarray) -> None:
        """Write the last state of the samples that end into their rows of the solution."""
        ended, solution = status >= 0, self.solution
        rows, some = batch.rows[ended], index(ended, batch.parts[0])
        for whole, part in zip(solution.parts, batch.parts, strict=True):
            whole[torch.from_numpy(rows).to(whole.device)] = part[some]
        solution.v[rows], solution.h[rows] = batch.v[ended], self.direction * batch.h[ended]
        solution.nfe[rows], solution.status[rows] = batch.nfe[ended], status[ended]

    def aim(self, batch: _Batch) -> BatchStep:
        """The steps to try: one that would end within 1 % of the target goes there; if less than two steps are left,
        one goes halfway."""
        stops = np.append(self.outputs, self.stop)
        target = stops[-1] if self.table.dense else stops[batch.reached]
        v, h, ahead = batch.v, batch.h, (target - batch.v) * self.direction
        size = np.where(ahead <= 1.01 * h, ahead, np.where(ahead < 2 * h, np.maximum(ahead / 2, h / 2), h))
        end = np.where(ahead <= 1.01 * h, target, v + self.direction * size)
        return BatchStep(batch.rows, v, self.direction * size, end)

    def advance(self, batch: _Batch, tried: BatchStep) -> None:
        """Try the steps, accept those that are accurate enough, and choose the next sizes."""
        table = self.table
        if not (table.ahead or self.fresh):
            batch.slopes = self.field(batch.parts, batch.v, batch.rows)
        stages, new = _attempt(self.field, table, batch.parts, batch.slopes, tried)
        batch.nfe += table.calls - (self.fresh and not table.ahead)  # whose first stage is counted already
        self.fresh = False
        size = self.direction * tried.h
        slope = None
        if self.gauge is not None:
            slope = self.gauge(*((new, stages[-1], tried.end) if table.ahead else (batch.parts, stages[0], tried.v)))
        error, own = _error(table, stages, batch.parts, new, size, self.tolerances, slope)
        accepted = error <= 1
        h = self.next_size(batch, size, error)
        for total, errors in zip((self.solution.error, self.solution.drift), own, strict=False):
            total[batch.rows[accepted]] += errors[accepted]
        if accepted.any():
            self.take(batch, tried, stages, new, accepted)
            batch.errors[accepted] = np.stack([np.maximum(error, 1e-10), batch.errors[:, 0]], -1)[accepted]
        batch.failures = batch.failures + ~np.isfinite(error)
        batch.rejected, batch.h = ~accepted, h

    def next_size(self, batch: _Batch, size: np.ndarray, error: np.ndarray) -> np.ndarray:
        accepted = error <= 1
        factor = _factor(error, batch.errors, self.options, self.table.order)
        factor = np.where(accepted & ~batch.rejected, factor, np.minimum(factor, 1.0))
        # A step cut short by a target is no reason to shrink the one that was planned.
        short = accepted & ~batch.rejected & (size < batch.h) & (factor == GROW)
        h = np.where(short, np.maximum(size * factor, batch.h), size * factor)
        h = np.where(np.isfinite(error), h, size / 10)
        return np.asarray(np.minimum(h, self.options.max_step or math.inf))

    def take(self, batch: _Batch, tried: BatchStep, stages: list[Parts], new: Parts, accepted: np.ndarray) -> None:
        """Move the samples whose step is accepted to its end."""
        self.steps.append(tried[accepted])
        if self.solution.dense is not None:
            _keep(
                self.solution.dense, self.table, stages, batch.parts, new, self.steps[-1], np.flatnonzero(accepted),
                self.outputs, self.direction,
            )  # fmt: skip
            ends = self.direction * tried.end[accepted]
            batch.reached[accepted] = np.searchsorted(self.direction * self.outputs, ends, side="right")
        batch.v = np.where(accepted, tried.end, batch.v)
        taken = torch.from_numpy(accepted).to(batch.parts[0].device)
        batch.parts = tuple(
            torch.where(per_sample(taken, y), y_new, y) for y_new, y in zip(new, batch.parts, strict=True)
        )
        if self.table.ahead:
            batch.slopes = tuple(
                torch.where(per_sample(taken, k), k_new, k) for k_new, k in zip(stages[-1], batch.slopes, strict=True)
            )


def _attempt(field: Field, table: FloatTable, parts: Parts, k0: Parts, where: BatchStep) -> tuple[list[Parts], Parts]:
    """The derivatives of one step, with that at its end if the method needs it, and the state there."""
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
    direction: float,
) -> None:
    """Write the outputs inside the steps just accepted, those of the samples `taken` of the batch."""
    who, which = inside(outputs, direction, where.v, where.end)
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
    slope: Tensor | None,
) -> tuple[np.ndarray, np.ndarray]:
    """E of each sample: the largest over the parts of the root mean square of error / tolerance; and (1 or 2, n), the
    error of the last part itself, and what `slope`, of a function of the first of several parts, makes of its error."""
    sizes: list[Tensor] = []
    last, along = [], []
    for i, (y, y_new) in enumerate(zip(parts, new, strict=True)):
        rtol, atol = tolerances[i]
        scale = torch.maximum(y.abs(), y_new.abs()).mul_(rtol).add_(atol)
        for weights in table.errors:
            error = weighted_sum(weights, [k[i] for k in stages])
            sizes.append(_rms(error / scale))
            if i + 1 == len(parts):
                last.append(flat(error).mean(1).abs().to(sizes[0]))
            elif i == 0 and slope is not None:
                along.append(_dot(error, slope).to(sizes[0]))
    norms = torch.stack([*sizes, *last, *along]).cpu().numpy()
    few = len(table.errors)
    norms = norms.reshape(-1, few, len(h))
    return np.asarray(h * _estimate(norms[: len(parts)]).max(0)), np.asarray(h * _estimate(norms[len(parts) :]))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """|a . b| of each sample, float64; 0 where it is not finite."""
    return (flat(a).double() * flat(b)).sum(1).abs().nan_to_num(0.0, 0.0, 0.0)


def _estimate(errors: np.ndarray) -> np.ndarray:
    """One error from those of the embedded methods (axis 1); of two, Hairer's combination for DOP853."""
    first = errors[:, 0]
    if errors.shape[1] == 1:
        return first
    with np.errstate(all="ignore"):
        return np.where(first == 0, 0.0, first**2 / np.sqrt(first**2 + 0.01 * errors[:, 1] ** 2))


def _rms(x: Tensor) -> Tensor:
    """The root mean square of each sample, in float64."""
    return flat(x).double().square().mean(1).sqrt() if x.dim() > 1 else x.double().abs()


def _factor(error: np.ndarray, before: np.ndarray, options: Adaptive, order: int) -> np.ndarray:
    k_p, k_i, k_d = (k / order for k in options.pid)
    now = np.maximum(np.nan_to_num(error, nan=1e10, posinf=1e10), 1e-10)
    factor = SAFETY * now ** -(k_i + k_p + k_d) * before[:, 0] ** (k_p + 2 * k_d) * before[:, 1] ** -k_d
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
    direction: float,
    tolerances: Sequence[tuple[float, float]],
) -> tuple[np.ndarray, int]:
    """(h, network calls): Hairer's guess, II.4, in units of the interval, so that no clock's scale matters."""
    most = min(span, options.max_step or math.inf)
    if options.first_step is not None:
        return np.full(len(v), min(options.first_step, most)), 0
    scales = [y.abs() * rtol + atol for y, (rtol, atol) in zip(parts, tolerances, strict=True)]

    def norm(values: Sequence[Tensor]) -> np.ndarray:
        norms = torch.stack([_rms(y / s) for y, s in zip(values, scales, strict=True)])
        return np.asarray(norms.amax(0).nan_to_num(nan=math.inf).cpu().numpy())

    size, slope = norm(parts), norm(k0) * span
    with np.errstate(all="ignore"):
        guess = np.where((size < 1e-5) | (slope < 1e-5), 1e-3, 0.01 * size / slope)
    guess = np.minimum(np.where(np.isfinite(slope) & (guess > 0), guess, 1e-6), most / span)
    trial = tuple(
        torch.addcmul(y, k, per_sample(tensor(direction * span * guess, y), y)) for y, k in zip(parts, k0, strict=True)
    )
    k1 = field(trial, v + direction * span * guess, rows)
    bend = norm([b - a for a, b in zip(k0, k1, strict=True)]) * span / guess
    steepest = np.maximum(slope, bend)
    with np.errstate(all="ignore"):
        h = np.where(steepest <= 1e-15, 100 * guess, (0.01 / steepest) ** (1 / table.order))
    return np.asarray(np.minimum(np.where(np.isfinite(h) & (h > 0), np.minimum(100 * guess, h), guess) * span, most)), 1


def finite(parts: Parts) -> np.ndarray:
    """(n,): whether all numbers of each sample are finite."""
    good = torch.stack([flat(part.detach()).isfinite().all(1) for part in parts]).all(0)
    return np.asarray(good.cpu().numpy())
