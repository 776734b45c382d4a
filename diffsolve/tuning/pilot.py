"""Where learning starts: the solver given, or the best of a short list after a few iterations from each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from diffsolve.common.checks import required
from diffsolve.execute.plan import plan, refuse
from diffsolve.execute.start import Problem
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tuning.noisy import SAMPLERS
from diffsolve.tuning.student import flattened, written
from diffsolve.tuning.task import Task

__all__ = ["STARTS", "Start", "candidates", "grown", "ranked", "spread"]

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
    """An initial run and what its solver is called, with its options: a name of `ds.solvers`, or of a learned run."""

    tableau: Tableau
    name: str


def candidates(problem: Problem, settings: Mapping[str, Any]) -> list[Start]:
    """The initial run that the settings name, or those of the short list."""
    solver, planned = settings["solver"], {name: settings[name] for name in ("nfe", "grid", "start", "stop")}
    together = settings["together"]
    if planned["nfe"] is not None and together > 1:  # of starts, which call one after the other
        groups = f"1 more than a multiple of together={together}"
        required((planned["nfe"] - 1) % together == 0, "nfe", planned["nfe"], groups)
        planned["nfe"] = 1 + (planned["nfe"] - 1) // together
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", **planned)
        starts = [Start(solver, solver.solver)]
    else:
        fixed = planned.pop("grid")
        about: dict[str, Any] = {"guidance": problem.guidance.level, "shape": problem.sizes}
        listed = STARTS if settings["method"] != "differences" else [(name, None) for name in SAMPLERS]
        pairs = listed if solver is None else ((solver, None),)
        chosen = dict.fromkeys((name, grid if fixed is None else None) for name, grid in pairs)
        starts = [
            Start(plan(problem.model, name, grid=grid if fixed is None else fixed, **planned, **about), str(name))
            for name, grid in chosen
        ]
    if starts[0].tableau.nfe < 2:
        raise ValueError(f"nfe must be at least 2 for there to be something to learn, got {starts[0].tableau.nfe}")
    if together > 1:
        starts = [Start(spread(problem.model, start.tableau, together), start.name) for start in starts]
    return starts


def ranked(task: Task, starts: list[Start]) -> list[Start]:
    """The starts, those first that end nearest to the teacher from a few noises."""
    if len(starts) == 1:
        return starts
    index = task.learning[:PILOT]
    found = [task.error(start.tableau, index) for start in starts]
    return [starts[i] for i in sorted(range(len(starts)), key=lambda i: found[i])]


def grown(model: Model, tableau: Tableau, nfe: int, gap: int = 0, together: int = 1) -> Start:
    """A run of `nfe` calls that ends where that of fewer calls ends: the new calls have no weight yet.

    Each is put in the middle, in the angle, of the longest step (or of the `gap`-th longest, the first of them); its
    state is interpolated between the two. Of calls made together a whole group is put there.
    """
    while tableau.nfe < nfe:
        path, times = model.path, tableau.times
        at = path.nodes(np.append(times[:-1], times[-1] if times[-1] != path.t_data else path.t_last))
        steps = np.diff(np.arctan2(at.sigma, at.alpha))  # angles fall
        # Between two groups, or the state of a call would be made of outputs of its own group.
        steps[[k for k in range(len(steps)) if k % together]] = 0.0
        k, gap = int(np.argsort(steps)[gap]), 0
        tableau = _with_calls(model, tableau, k, together, f"{tableau.nfe} calls")
    return Start(tableau, tableau.solver)


def spread(model: Model, tableau: Tableau, together: int) -> Tableau:
    """The run with groups of so many calls in the place of each call after the first: the new ones have no weight.

    They lie within the step that leads to the call.
    """
    for k in reversed(range(tableau.nfe - 1)):
        tableau = _with_calls(model, tableau, k, together - 1, tableau.solver)
    return tableau


def _with_calls(model: Model, tableau: Tableau, k: int, count: int, name: str) -> Tableau:
    """A run with so many more calls, of no weight, evenly in the angle of step k; their states lie between its ends."""
    path, B, times = model.path, flattened(tableau), tableau.times
    last = times[k + 1] if times[k + 1] != path.t_data else path.t_last
    at = path.nodes(np.array([times[k], last]))
    first, stop = np.arctan2(at.sigma, at.alpha)
    angles = first + (stop - first) * np.arange(1, count + 1) / (count + 1)
    new = np.array([float(path.time(-np.log(np.tan(angle)))) for angle in angles])
    ends = path.nodes(np.array([times[k], *new, times[k + 1]]))
    u = ends.sigma / (ends.alpha + ends.sigma)
    before = B[k - 1] if k else np.zeros(tableau.nfe)
    rows = before + ((u[1:-1] - u[0]) / (u[-1] - u[0]))[:, None] * (B[k] - before)
    B = np.insert(B, [k] * count, rows, axis=0)
    B = np.insert(B, [k + 1] * count, 0.0, axis=1)
    made = written(path, np.insert(times, [k + 1] * count, new), B, name, None)
    told = np.insert(tableau.told, [k + 1] * count, new)
    guides, blurs = (np.insert(old, [k + 1] * count, new) for old, new in ((tableau.guides, 1.0), (tableau.blurs, 0.0)))
    return replace(made, told=told, guides=guides, blurs=blurs)
