"""What learning compares: runs from given noises, and the teacher's ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.api.sampling import sample
from diffsolve.common.checks import described, integer
from diffsolve.execute.plan import plan
from diffsolve.execute.start import Problem
from diffsolve.models import Model
from diffsolve.models.conditions import picked
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import World

__all__ = ["Noises", "dealt", "drawn", "executed", "held_out", "run_teacher", "teacher_of"]

ALONE = World()
KEYS = 2**40
"""Seeds of the noise of stochastic runs from here on, which nobody is likely to use for another one."""


@dataclass(frozen=True)
class Noises:
    """Initial states, with their conditions."""

    x: Tensor
    cond: Mapping[str, Any]
    guidance: Guidance
    numbers: Tensor | None = None
    """(n,): by which the noise of stochastic runs is drawn; 0, 1, .. if None."""

    def some(self, index: Tensor) -> Noises:
        """The ones at these indices."""
        at, size = index.to(self.x.device), len(self.x)
        guidance = self.guidance.mapped(lambda given: picked(given, at, size))
        numbers = index if self.numbers is None else self.numbers[index]
        return Noises(self.x[at], picked(self.cond, at, size), guidance, numbers)


def drawn(problem: Problem, start: float) -> Tensor:
    """The initial states of a problem (n, ...); drawn noises differ from those of every run of `ds.sample`.

    Raises:
        ValueError: if there are fewer than two.
    """
    x = problem.state(start)
    if problem.noise is None:  # runs start from other draws than row 1
        std = problem.model.path.prior_std(start)
        x = problem.key.normal(x.shape, row=1, dtype=x.dtype, device=x.device) * std
    if len(x) < 2:
        raise ValueError(f"shape must be of at least 2 noises, to learn from and to hold out, got {tuple(x.shape)}")
    return x


def executed(model: Model, tableau: Tableau, noises: Noises) -> Tensor:
    """The end of a tableau's run; of a stochastic one with the noise that these initial states always get."""
    numbers = torch.arange(len(noises.x)) if noises.numbers is None else noises.numbers
    seed = (numbers + KEYS).tolist() if tableau.stochastic else None
    return sample(
        model, noise=noises.x, solver=tableau, cond=noises.cond, guidance=noises.guidance, dtype=noises.x.dtype,
        seed=seed,
    )  # fmt: skip


def dealt(index: Tensor, batch: int, ranks: World) -> Iterator[tuple[int, slice, Tensor]]:
    """This rank's batches of some noises: the number of each, its place among all of them, and its noises.

    They are the batches of one process, dealt out in turn, so that the numbers are those of one process too.
    """
    for number, some in enumerate(torch.split(index, batch)):
        if number % ranks.size == ranks.rank:
            yield number, slice(number * batch, number * batch + len(some)), some


def teacher_of(model: Model, calls: int, begin: Tableau, noises: Noises) -> Tableau:
    """The run of "auto" with so many calls, between the times of the run that is to learn."""
    ends = (model.path.t_noise, model.path.t_data)
    start, stop = (None if t == end else t for t, end in zip(begin.times[[0, -1]].tolist(), ends, strict=True))
    return plan(model, nfe=calls, start=start, stop=stop, guidance=noises.guidance.level, shape=noises.x.shape)


def run_teacher(
    model: Model, noises: Noises, teacher: int | Tableau | Tensor, begin: Tableau, batch: int, ranks: World = ALONE
) -> tuple[Tensor, int]:
    """The ends of the teacher's run, and its network calls, summed over the samples; the ranks share the noises."""
    if isinstance(teacher, Tensor):
        if teacher.shape != noises.x.shape or not teacher.is_floating_point():
            shape = tuple(noises.x.shape)
            raise ValueError(f"teacher must be floating, the ends of the noises {shape}, got {described(teacher)}")
        return teacher.detach().to(noises.x), 0
    if not isinstance(teacher, Tableau):
        teacher = teacher_of(model, integer("teacher", teacher, 1), begin, noises)
    if teacher.stochastic or not np.array_equal(teacher.times[[0, -1]], begin.times[[0, -1]]):
        raise ValueError(
            f"teacher must be a deterministic run from t={begin.times[0]:.6g} to {begin.times[-1]:.6g}, got "
            f"{teacher.solver!r} from t={teacher.times[0]:.6g} to {teacher.times[-1]:.6g}"
        )
    ends = torch.zeros_like(noises.x)
    for _, place, some in dealt(torch.arange(len(ends)), batch, ranks):
        ends[place] = executed(model, teacher, noises.some(some))
    return ranks.summed(ends, ends.device), len(ends) * teacher.nfe


def held_out(count: int, fraction: float) -> int:
    """How many of the noises, the last ones, are for validation."""
    return max(1, min(count - 1, round(fraction * count)))
