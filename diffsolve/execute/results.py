"""The result of a run, and the steps that hooks and callbacks see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from diffsolve.common.result import Status, one_line
from diffsolve.execute.executor import Executor, State
from diffsolve.execute.network import conversion
from diffsolve.models import Model, undetermined
from diffsolve.noise import Key, SeedLike
from diffsolve.tableau import Tableau

__all__ = ["DenoisedEstimate", "Rounds", "Run", "Seed", "Step", "seed_of"]

Seed = int | Sequence[int] | Key
"""A `seed=` that repeats a run."""


@dataclass(frozen=True)
class Step:
    """One network call, as hooks and callbacks see it."""

    call: int
    """The index of the call, from 0."""
    calls: int
    """The number of calls of the whole run."""
    t: float
    """The time of the call, on the path's clock."""
    alpha: float
    sigma: float
    x: Tensor
    """The network's input (hook), or the next input or the result (callback). Clone it to keep it."""
    denoised: Tensor | None
    """The estimate of x_0 at the call; None where the network does not determine it."""


@dataclass(frozen=True)
class Rounds:
    """The cost of a parallel run, against N sequential calls."""

    rounds: int
    """Sweeps over the window, or parareal iterations, until the last sample converged."""
    calls: int
    """Network evaluations, summed over samples and ranks."""
    wasted: int
    """The number of them that a sequential run would not have needed."""
    depth: int
    """Sequential network calls: the time of the run with enough workers."""
    each: Tensor
    """(B,): the rounds of each sample."""
    converged: Tensor
    """(B,): whether each sample is within the tolerance; False only if `max_rounds` was reached first."""


@dataclass(frozen=True, repr=False)
class Run:
    """The result of `solve`."""

    x: Tensor
    """The result; after `max_calls`, the input of the next call."""
    tableau: Tableau
    nfe: int
    """Number of network calls."""
    seed: Seed
    """The given seed, or the one drawn if none was given: `solve(..., seed=run.seed)` repeats the run."""
    trajectory: Tensor | None
    """(n + 1, B, ...): the states at the grid nodes reached, the start first; or (N + 1, B, ...), every network input
    and the result. None unless requested."""
    log_prob: Tensor | None
    """(N, B): the log-density of each call's Gaussian transition, 0 where it has no noise; None unless requested."""
    executor: Executor
    parallel: Rounds | None = None
    """The cost of a parallel run; None for others."""

    @property
    def state(self) -> State:
        """A copy of the state: `solve(model, solver=run.tableau, state=run.state)` continues the run."""
        return self.executor.state

    @property
    def times(self) -> np.ndarray:
        """(n + 1,): the grid, on the path's clock."""
        return self.tableau.times

    @property
    def done(self) -> bool:
        """Whether every call has been made."""
        return self.executor.done

    @property
    def status(self) -> tuple[Status, ...]:
        """How each sample ended: BUDGET_SPENT after `max_calls`, when `state` continues the run."""
        return (Status.DONE if self.done else Status.BUDGET_SPENT,) * len(self.x)

    def __repr__(self) -> str:
        return one_line(self, solver=self.tableau.solver)


class DenoisedEstimate:
    """The denoised estimate of each call, for hooks and callbacks."""

    def __init__(self, model: Model, tableau: Tableau, needed: bool) -> None:
        self.tableau, at = tableau, model.path.nodes(tableau.calls[:, 0])
        p, q = conversion((np.ones_like(at.t), np.zeros_like(at.t)), model, at)
        known = np.isfinite(p) & np.isfinite(q)
        if needed and not known.all():
            raise undetermined(model.predicts, "denoised", at.t[~known])
        self.weights = [pair if good else None for *pair, good in zip(p.tolist(), q.tolist(), known, strict=True)]

    def __call__(self, i: int, y: Tensor, out: Tensor) -> Step:
        weights = self.weights[i]
        denoised = None if weights is None else (y * weights[0] + out * weights[1]).to(y.dtype)
        t, alpha, sigma = self.tableau.calls[i].tolist()
        return Step(i, self.tableau.nfe, t, alpha, sigma, y, denoised)


def seed_of(given: SeedLike | None, key: Key) -> Seed:
    """The seed that repeats the run: a Key if one was given, or if the integers do not determine the noise."""
    if isinstance(given, Key) or key.antithetic or key.shared:
        return key
    return key.seed if isinstance(key.seed, int) else list(key.seed)
