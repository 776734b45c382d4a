"""How far runs carry: to noises, classes or scales of guidance that are new to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.start import Problem
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau
from diffsolve.tuning.losses import Loss, scaled
from diffsolve.tuning.runs import Noises, drawn, run_teacher
from diffsolve.tuning.task import Measured, Task

__all__ = ["compare"]


def compare(
    model: ModelLike,
    runs: Mapping[str, Tableau],
    shape: Shape | None = None,
    *,
    noise: Tensor | None = None,
    teacher: int | Tableau | Tensor = 100,
    loss: Loss | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    seed: int | None = None,
    batch: int = 256,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Measured]:
    """The mean loss of runs, with its standard error, all from the same noises.

        tuning = fit(model, shape, nfe=6, guidance=3.0, seed=0)
        runs = {"start": tuning.start, "tuned": tuning.tableau}
        print([compare(model, runs, shape, guidance=scale, seed=1) for scale in (1.0, 3.0, 5.0)])

    Args:
        runs: name -> tableau, all between the same times.
        shape, noise, teacher, loss, cond, guidance, batch, dtype, device: as in `fit`.
        seed: of the noises; another than that of the learning, for noises that are new.

    Raises:
        ValueError: if an argument is out of range, or the teacher does not fit the runs.
    """
    required(bool(runs), "runs", runs, "at least one tableau by its name")
    first, *others = [instance(f"runs[{name!r}]", run, Tableau, "a Tableau") for name, run in runs.items()]
    for run in others:
        ends = run.times[[0, -1]].tolist()
        required(ends == first.times[[0, -1]].tolist(), "runs", ends, "between the same times")
    options = {"noise": noise, "cond": cond, "guidance": guidance, "seed": seed, "dtype": dtype, "device": device}
    problem = Problem.of(model, shape, options)
    noises = Noises(drawn(problem, float(first.times[0])), problem.cond, problem.guidance)
    ends, _ = run_teacher(problem.model, noises, teacher, first, integer("batch", batch, 1))
    task = Task(problem.model, noises, ends, scaled(loss, ends), batch, 0, {"held_out": 0.5})
    every = torch.arange(len(noises.x))
    return {name: Measured.of(task.errors(run, every)) for name, run in runs.items()}
