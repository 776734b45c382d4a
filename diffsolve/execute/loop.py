"""The loop around an executor: one network call after another, with hooks, callbacks and records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.tensors import normal_log_density
from diffsolve.execute.apart import Apart
from diffsolve.execute.executor import Executor
from diffsolve.execute.results import DenoisedEstimate, Run, Step, seed_of
from diffsolve.execute.start import Problem
from diffsolve.execute.variance import Learned
from diffsolve.execute.watch import bar, check_finite
from diffsolve.kernels import Guided

__all__ = ["Correct", "Observers", "solve_in_order"]


class Correct(Protocol):
    """Corrects an executor's state between two calls, in place, with additional network calls."""

    calls: int

    def __call__(self, ex: Executor, cond: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Hooks, callbacks and records of a run; see `ds.solve`."""

    hook: Callable[[Step], Tensor | None] | None = None
    callback: Callable[[Step], object] | None = None
    trajectory: bool | str = False
    log_prob: bool = False
    progress: bool = False
    check: bool = False
    max_calls: int | None = None
    variance: str | None = None


class _Record:
    """The states and transition densities that a run keeps."""

    def __init__(self, ex: Executor, observers: Observers) -> None:
        self.ex, self.every = ex, observers.trajectory == "calls"
        self.nodes: list[Tensor] | None = [ex.y.clone()] if observers.trajectory else None
        self.densities: list[Tensor] | None = [] if observers.log_prob else None

    def transition(self, i: int) -> None:
        """After call i, before any correction."""
        if self.densities is not None:
            std = float(self.ex.tableau.weights[i, 1, -1])
            z = self.ex.noise(i + 1) if std else torch.zeros_like(self.ex.y)
            self.densities.append(normal_log_density(z, std) if std else normal_log_density(z, 1.0) * 0)

    def state(self, i: int) -> None:
        """After call i and its correction."""
        if self.nodes is not None and (self.every or self.ex.tableau.node[i] >= 0):
            self.nodes.append(self.ex.y.clone())

    @property
    def kept(self) -> tuple[Tensor | None, Tensor | None]:
        """(trajectory, log_prob) of a `Run`."""
        trajectory, densities = (None if t is None else torch.stack(t) for t in (self.nodes, self.densities))
        return trajectory, densities


def solve_in_order(ex: Executor, problem: Problem, observers: Observers, correct: Correct | None = None) -> Run:
    """Run an executor to its end, or for `max_calls`, without a graph of autograd."""
    tableau, cond = ex.tableau, problem.cond
    learned = Learned(problem.model, tableau) if observers.variance else None
    network = problem.guidance.outputs(learned.model if learned else problem.model, tableau, ex.memory)
    apart = Apart.of(tableau, problem.model) if problem.guidance.plus else None
    hook, callback = observers.hook, observers.callback
    estimate = DenoisedEstimate(problem.model, tableau, needed=hook is not None) if hook or callback else None
    most = observers.max_calls
    first, last = ex.call, tableau.nfe if most is None else min(ex.call + most, tableau.nfe)
    record = _Record(ex, observers)
    with torch.no_grad(), bar(observers.progress, last - first) as progress:
        while ex.call < last:
            i = ex.call
            out = network(i, *ex.inputs(), cond)
            pair, difference = out if apart and isinstance(out, Guided) else None, None
            if isinstance(out, Guided) and (observers.check or estimate):
                out = out.tensor()  # needed before the update, which would otherwise combine the pair
            if observers.check and isinstance(out, Tensor):
                check_finite(out, f"in call {i} of {tableau.nfe}, at t={tableau.calls[i, 0]:.6g}")
            step = estimate(i, ex.y, out) if estimate and isinstance(out, Tensor) else None
            if hook and step:
                assert step.denoised is not None
                changed = hook(step)
                out = step.denoised if changed is None else _checked(changed, ex.y)
                step = replace(step, denoised=out)
            if apart and pair is not None:
                out, difference = apart(i, pair)
            ex.take(ex.blurred(out), learned.spread(i, ex.y) if learned else None)
            if apart and difference is not None:
                ex.shift(difference, *apart.shift(i))
            record.transition(i)
            if correct:
                correct(ex, cond)
            if callback and step:
                callback(replace(step, x=ex.y))
            record.state(i)
            progress.update()
            del out, pair, difference, step  # free their memory before the next call
    calls = ex.call - first + (correct.calls if correct else 0)
    return Run(ex.y, tableau, calls, seed_of(problem.seed, ex.key), *record.kept, ex)


def _checked(changed: object, like: Tensor) -> Tensor:
    if not isinstance(changed, Tensor) or changed.shape != like.shape:
        got = f"shape {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise ValueError(f"hook must return None or a tensor of shape {tuple(like.shape)}, got {got}")
    required(changed.is_floating_point(), "what hook returns", changed, "a floating tensor", TypeError)
    return changed
