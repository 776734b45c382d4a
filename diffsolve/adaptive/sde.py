r"""Adaptive steps for the SDE of a constant tau, every sample at its own time along its own Brownian path.

A step is SA-Solver's predictor and corrector of one and two values (2309.05019; `sa-1`), whose difference, free of
noise, is the error estimate:

    x' = r x + sqrt(..) z + g D_s,    x = x' + g omega (D_t - D_s),    omega = phi_2(-h') / phi_1(-h'),

with h' = (1 + tau^2) h, and r, g and z those of the exact step in lambda. The network's value at x' is the D_s of the
next step, so that a step costs one call, and a rejected one too. Steps are dyadic cells of the range of lambda: a
rejected one is halved, and its halves' noise is that of the same path, a Brownian bridge given the whole step's. Noise
drawn anew after a rejection would bias the law (Jolicoeur-Martineau et al., 2105.14080); a path that is fixed
beforehand cannot (Gaines and Lyons, SIAM J. Appl. Math. 57, 1997).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.adaptive.batch import Batch
from diffsolve.adaptive.flow import Flow
from diffsolve.adaptive.integrate import finite
from diffsolve.adaptive.options import Status, warn
from diffsolve.adaptive.run import AdaptiveRun
from diffsolve.common.checks import integer, number, required
from diffsolve.common.tensors import flat, per_sample
from diffsolve.execute import BrownianPath
from diffsolve.execute.watch import Watch
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.noise.brownian import Brownian
from diffsolve.paths import Position
from diffsolve.solvers.integrals import phi
from diffsolve.solvers.sde import Constant, reverse
from diffsolve.tableau.ends import CUT, first_call, last_call
from diffsolve.tableau.frames import FRAMES

__all__ = ["AdaptiveSDE", "solve_sde"]

LEVELS = 20
"""The smallest step is 2^-20 of the range of lambda."""
FIRST = 3
"""The first step tried is 2^-3 of it."""


@dataclass(frozen=True)
class AdaptiveSDE:
    """An adaptive stochastic solver: `ds.solve(model, shape, solver=ds.AdaptiveSDE(tau=1.0, rtol=0.01), seed=0)`.

    A step is accepted where the root mean square over the sample of error / (atol + rtol max(|x_s|, |x_t|)) is at most
    1; it is doubled where that is below 1/8, and halved, once or more, where it is rejected.

    Args:
        tau: the noise level of the SDE, > 0: 1 is the reverse SDE (tau = 0 is the probability flow: use `ds.Adaptive`).
        rtol, atol: the relative tolerance, and the absolute one in units of x; both in [0, 1), not both 0.
        max_nfe: the most network calls per sample, at least 3.

    Raises:
        ValueError: if an option is out of range.
    """

    tau: float = 1.0
    rtol: float = 0.02
    atol: float = 0.01
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        Constant(self.tau)
        required(self.tau > 0, "tau", self.tau, "a number > 0 (ds.Adaptive solves the probability flow)")
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            number(name, value, low=0, below=1)
        required(self.rtol > 0 or self.atol > 0, "rtol or atol", 0, "positive")
        integer("max_nfe", self.max_nfe, low=3)


def solve_sde(
    model: Model,
    x: Tensor,
    options: AdaptiveSDE,
    start: float,
    stop: float,
    key: Key,
    *,
    cond: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    brownian: BrownianPath | None = None,
    watch: Watch | None = None,
) -> AdaptiveRun:
    """Solve the SDE from x at `start` to `stop`, from the noise to the data.

    From alpha = 0 the first step, exact in lambda, goes to alpha = 1e-3. Where `stop` is the data, the last step is the
    denoised estimate, taken at the path's last time or at sigma = min(1e-3, atol) alpha.

    Raises:
        ValueError: if `stop` is not nearer to the data than `start`.

    Warns:
        RuntimeWarning: if some samples stop early, saying why and where.
    """
    path = model.path
    lam = path.lam([start, stop]).tolist()
    if not lam[0] < lam[1]:
        raise ValueError(
            f"stop must be nearer to the data than start={start!r} with an SDE, which is solved from the noise to the "
            f"data only, got {stop!r}"
        )
    first = start if math.isfinite(lam[0]) else first_call(path)
    last = stop if math.isfinite(lam[1]) else last_call(path, max(CUT, -math.log(options.atol or 1.0)))
    solve = _Solve(model, x, options, first, last, key, cond or {}, guidance, brownian, watch)
    if first != start:
        solve.leave(start)
    solve.go(reserve=int(last != stop))
    if last != stop:
        solve.denoise(stop)
    outcome = tuple(Status(int(code)) for code in solve.status)
    warn(outcome, solve.t, solve.h)
    return AdaptiveRun(solve.x, outcome, solve.nfe, solve.t, solve.h, None, None)


@dataclass
class _Batch(Batch):
    """The state of the unfinished samples."""

    tick: np.ndarray
    """The position in the range of lambda, in units of 2^-LEVELS of it."""
    level: np.ndarray
    """The next step to try is 2^level ticks long."""
    s: Position[np.ndarray]
    """The path at the tick."""
    x: Tensor
    D: Tensor
    """The denoised estimate at x."""


class _Solve:
    """A solve as a loop over the unfinished samples."""

    def __init__(
        self,
        model: Model,
        x: Tensor,
        options: AdaptiveSDE,
        first: float,
        last: float,
        key: Key,
        cond: Mapping[str, Any],
        guidance: Guidance | None,
        brownian: BrownianPath | None,
        watch: Watch | None,
    ) -> None:
        self.model, self.options, self.ends = model, options, (first, last)
        self.flow = Flow(model, FRAMES["denoised"], len(x), x.dim(), cond, guidance, watch)
        self.frame = reverse(model.path, Constant(options.tau))
        self.x = x.clone()
        self.path: BrownianPath = (
            Brownian(x.shape, key, dtype=x.dtype, device=x.device) if brownian is None else brownian
        )
        self.lam = model.path.lam(list(self.ends)).tolist()
        self.status = np.full(len(x), int(Status.DONE))
        self.nfe = np.zeros(len(x), dtype=np.int64)
        self.t, self.h = np.full(len(x), last), np.zeros(len(x))

    def at(self, tick: np.ndarray) -> Position[np.ndarray]:
        """The path at ticks; exact at the ends."""
        low, high = self.lam
        t = self.model.path.time(low + (high - low) * tick / 2**LEVELS).numpy()
        t = np.where(tick == 0, self.ends[0], np.where(tick == 2**LEVELS, self.ends[1], t))
        return self.model.path.nodes(t)

    def denoised(self, x: Tensor, p: Position[np.ndarray], rows: np.ndarray) -> Tensor:
        point = self.flow.place(p, FRAMES["denoised"].d(p), p.alpha * 0 + 1, x, rows)
        self.nfe[rows] += 1
        return point.rate(x)

    def noise(self, s: Position[np.ndarray], t: Position[np.ndarray], rows: np.ndarray) -> Tensor:
        """z of each sample's step: the increment of its path over the root of its clock."""
        clocks = np.exp(2 * np.stack([self.frame.A(s), self.frame.A(t)], -1))
        pairs, which = np.unique(clocks, axis=0, return_inverse=True)
        z = torch.empty_like(self.x[: len(rows)])
        for k, (q, r) in enumerate(pairs.tolist()):  # few: the steps are cells of one tree
            samples = np.flatnonzero(which.ravel() == k)
            z[torch.from_numpy(samples)] = self.path(q, r)[torch.from_numpy(rows[samples])].to(z) / math.sqrt(r - q)
        return z

    def leave(self, start: float) -> None:
        """The step from alpha = 0, whose result does not depend on x."""
        if not len(self.x):
            return
        rows, ends = np.arange(len(self.x)), (np.full(len(self.x), start), np.full(len(self.x), self.ends[0]))
        s, t = (self.model.path.nodes(end) for end in ends)
        alpha, sigma = float(t.alpha[0]), float(t.sigma[0])
        self.x = alpha * self.denoised(self.x, s, rows) + sigma * self.noise(s, t, rows)

    def denoise(self, stop: float) -> None:
        """The last step, for the samples that reached its start."""
        rows = np.flatnonzero(self.status == Status.DONE)
        if len(rows):
            p = self.model.path.nodes(np.full(len(rows), self.ends[1]))
            alpha = float(self.model.path.alpha(stop))
            self.x[torch.from_numpy(rows)] = alpha * self.denoised(self.x[torch.from_numpy(rows)], p, rows)
            self.t[rows] = stop

    def go(self, reserve: int) -> None:
        """From the first tick to the last."""
        rows = np.arange(len(self.x))
        tick = np.zeros(len(rows), dtype=np.int64)
        s = self.at(tick)
        batch = _Batch(rows, tick, np.full(len(rows), LEVELS - FIRST), s, self.x, self.denoised(self.x, s, rows))
        while len(batch):
            status = self.ended(batch, reserve)
            ended = status >= 0
            if ended.any():
                self.record(batch, status)
                batch.leave(ended)
            else:
                self.advance(batch)

    def ended(self, batch: _Batch, reserve: int) -> np.ndarray:
        """The `Status` of each sample that ends here, -1 for one that goes on."""
        status = np.full(len(batch), -1)
        status[~finite((batch.D,))] = Status.NON_FINITE
        status[(status < 0) & (self.nfe[batch.rows] + 1 + reserve > self.options.max_nfe)] = Status.BUDGET_SPENT
        status[(status < 0) & (batch.level < 0)] = Status.STEP_TOO_SMALL
        status[batch.tick == 2**LEVELS] = Status.DONE
        return status

    def record(self, batch: _Batch, status: np.ndarray) -> None:
        """Write the last state of the samples that end into their rows."""
        ended = status >= 0
        rows = batch.rows[ended]
        self.status[rows], self.t[rows] = status[ended], batch.s.t[ended]
        self.h[rows] = (self.lam[1] - self.lam[0]) * 2.0 ** (batch.level[ended] - LEVELS)
        self.x[torch.from_numpy(rows)] = batch.x[torch.from_numpy(ended)]

    def advance(self, batch: _Batch) -> None:
        """Try one step of each sample, and accept those that are accurate enough."""
        options, x, s, level = self.options, batch.x, batch.s, batch.level
        end = batch.tick + 2**level
        t = self.at(end)
        ratio, gain = self.frame.step(s, t)
        std = t.sigma * np.sqrt(-np.expm1(2 * (self.frame.A(s) - self.frame.A(t))))
        stretch = (1 + options.tau**2) * (t.lam - s.lam)
        omega = np.array([phi(2, -h) / phi(1, -h) for h in stretch.tolist()])
        r, g, w, b = (per_sample(torch.from_numpy(v).to(x), x) for v in (ratio, gain, gain * omega, std))
        predicted = torch.addcmul(r * x, b, self.noise(s, t, batch.rows)).addcmul_(g, batch.D)
        D = self.denoised(predicted, t, batch.rows)
        change = w * (D - batch.D)
        corrected = predicted + change
        scale = options.atol + options.rtol * torch.maximum(x.abs(), corrected.abs())
        error = flat(change / scale).square().mean(1).sqrt().double().cpu().numpy()
        accepted = error <= 1  # not where it is NaN
        with np.errstate(all="ignore"):  # the error falls with h^2
            halvings = np.where(np.isfinite(error), np.ceil(0.5 * np.log2(np.maximum(error, 1.0))), 3)
        taken = torch.from_numpy(accepted).to(x.device)
        batch.x = torch.where(per_sample(taken, x), corrected, x)
        batch.D = torch.where(per_sample(taken, x), D, batch.D)
        batch.tick = tick = np.where(accepted, end, batch.tick)
        batch.s = self.at(tick)
        wider = accepted & (error < 0.125) & (tick % 2 ** (level + 1) == 0) & (tick + 2 ** (level + 1) <= 2**LEVELS)
        batch.level = np.where(accepted, level + wider, level - np.maximum(halvings, 1)).astype(np.int64)
