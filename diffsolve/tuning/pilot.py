"""Where learning starts: the solver given, or the best of a few in a pilot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve.execute.plan import plan, refuse
from diffsolve.execute.start import Problem
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tuning.runs import Loss, Noises, executed, held_out, relative, run_teacher

__all__ = ["STARTS", "Start", "best", "candidates"]

STARTS: tuple[tuple[str, str | None], ...] = (
    ("auto", None),
    ("unipc-3", None),
    ("unipc-2", "uniform-lambda"),
    ("deis-2", "karras"),
    ("dpmpp-2m", "karras"),
    ("ab-3(variable='lambda')", "quadratic"),
)
"""(solver, grid), of different orders and spacings; None is the solver's own grid."""

PILOT = 16
"""Noises of the pilot, of those to learn from."""


class Start(NamedTuple):
    """An initial run and what its solver is called."""

    tableau: Tableau
    name: str


def candidates(problem: Problem, settings: Mapping[str, Any]) -> list[Start]:
    """The initial run that the settings name, or those of the short list."""
    solver, planned = settings["solver"], {name: settings[name] for name in ("nfe", "grid", "start", "stop")}
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", **planned)
        starts = [Start(solver, solver.solver)]
    else:
        fixed = planned.pop("grid")
        about: dict[str, Any] = {"guidance": problem.guidance.level, "shape": problem.sizes}
        pairs = STARTS if solver is None else ((solver, None),)
        chosen = {name: fixed if fixed is not None else grid for name, grid in pairs}
        starts = [
            Start(plan(problem.model, name, grid=grid, **planned, **about), str(name)) for name, grid in chosen.items()
        ]
    if starts[0].tableau.nfe < 2:
        raise ValueError(f"nfe must be at least 2 for there to be something to learn, got {starts[0].tableau.nfe}")
    return starts


def best(model: Model, noises: Noises, starts: list[Start], settings: Mapping[str, Any]) -> tuple[Start, int]:
    """The start that ends nearest to the teacher from a few noises, and the calls that it took to know."""
    count, teacher = len(noises.x), settings["teacher"]
    if len(starts) == 1 or (isinstance(teacher, Tensor) and teacher.shape != noises.x.shape):
        return starts[0], 0  # there is nothing to choose; ends of another shape are refused later
    index = torch.arange(min(PILOT, count - held_out(count, settings["held_out"])))
    some = noises.some(index)
    if isinstance(teacher, Tensor):
        teacher = teacher[index.to(teacher.device)]
    ends, calls = run_teacher(model, some, teacher, starts[0].tableau, settings["batch"])
    loss: Loss = settings["loss"] or relative(ends)
    found = [float(loss(executed(model, start.tableau, some), ends).mean()) for start in starts]
    calls += len(index) * sum(start.tableau.nfe for start in starts)
    least = min(range(len(starts)), key=lambda i: math.inf if math.isnan(found[i]) else found[i])
    return starts[least], calls
