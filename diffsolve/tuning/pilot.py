"""Where learning starts: the solver given, or the best of a short list after a few iterations from each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from diffsolve.execute.plan import plan, refuse
from diffsolve.execute.start import Problem
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tuning.student import flattened, written
from diffsolve.tuning.task import Task

__all__ = ["STARTS", "Start", "candidates", "grown", "ranked"]

STARTS: tuple[tuple[str, str | None], ...] = (
    ("auto", None),
    ("unipc-3", None),
    ("unipc-2", "uniform-lambda"),
    ("deis-2", "karras"),
    ("dpmpp-2m", "karras"),
    ("ab-3(variable='lambda')", "quadratic"),
    ("ab-1(frame='straight', corrector=2)", "angle(scale=2, power=2)"),
    ("ab-1(frame='straight', corrector=2)", "angle(scale=5, power=2.5)"),
    ("ab-2(frame='denoised', variable='theta', corrector=3)", "angle(scale=3, power=2)"),
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
        chosen = dict.fromkeys((name, grid if fixed is None else None) for name, grid in pairs)
        starts = [
            Start(plan(problem.model, name, grid=grid if fixed is None else fixed, **planned, **about), str(name))
            for name, grid in chosen
        ]
    if starts[0].tableau.nfe < 2:
        raise ValueError(f"nfe must be at least 2 for there to be something to learn, got {starts[0].tableau.nfe}")
    return starts


def ranked(task: Task, starts: list[Start]) -> list[Start]:
    """The starts, those first that end nearest to the teacher from a few noises."""
    if len(starts) == 1:
        return starts
    index = task.learning[:PILOT]
    found = [task.error(start.tableau, index) for start in starts]
    return [starts[i] for i in sorted(range(len(starts)), key=lambda i: found[i])]


def grown(model: Model, tableau: Tableau, nfe: int, gap: int = 0) -> Start:
    """A run of `nfe` calls that ends where that of fewer calls ends: the new calls have no weight yet.

    Each is put in the middle, in the angle, of the longest step (or of the `gap`-th longest, the first of them); its
    state is interpolated between the two.
    """
    while tableau.nfe < nfe:
        path, B, times = model.path, flattened(tableau), tableau.times
        at = path.nodes(np.append(times[:-1], times[-1] if times[-1] != path.t_data else path.t_last))
        angle = np.arctan2(at.sigma, at.alpha)
        k = int(np.argsort(np.diff(angle))[gap])  # angles fall
        middle = (angle[k] + angle[k + 1]) / 2
        t = float(path.time(-np.log(np.tan(middle))))
        ends = path.nodes(np.array([times[k], t, times[k + 1]]))
        u = ends.sigma / (ends.alpha + ends.sigma)
        before = B[k - 1] if k else np.zeros(tableau.nfe)
        between = before + (u[1] - u[0]) / (u[2] - u[0]) * (B[k] - before)
        rows = np.insert(np.insert(B, k, between, axis=0), k + 1, 0.0, axis=1)
        tableau, gap = written(path, np.insert(times, k + 1, t), rows, f"{tableau.nfe} calls", None), 0
    return Start(tableau, tableau.solver)
