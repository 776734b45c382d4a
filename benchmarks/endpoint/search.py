"""The shortlist: the best of the multistep family on the targets for tuning, kept in a file."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path as FilePath

import numpy as np

from endpoint.ours import family, family_grids
from endpoint.problems import TUNE, Course, Problem
from endpoint.runner import Pair, measure


def shortlist(course: Course, budgets: Sequence[int], problems: Sequence[Problem], keep: int = 4) -> list[Pair]:
    """Per budget, the best over all targets (geometric mean of the errors) and the best on each."""
    pairs = list(itertools.product(family(), family_grids(course.name)))
    table = measure(course, pairs, budgets, problems, "search")
    errors = np.array([list(rows.values()) for rows in table.values()])  # (targets, pairs, budgets)
    logs = np.log(np.where(np.isfinite(errors), errors, 1e3))
    chosen: dict[Pair, None] = {}
    for b in range(len(budgets)):
        best = [*np.argsort(logs[..., b].mean(0))[:keep], *logs[..., b].argmin(1)]
        chosen.update((pairs[i], None) for i in best)
    return list(chosen)


def search(courses: Sequence[Course], budgets: Sequence[int], particles: int, cache: FilePath, file: FilePath) -> None:
    """Write the shortlist of every course to a file."""
    problems = [Problem(name, min(32, particles), cache) for name in TUNE]
    stored = json.loads(file.read_text()) if file.exists() else {}
    for course in courses:
        stored[course.name] = shortlist(course, budgets, problems)
        file.write_text(json.dumps(stored, indent=0) + "\n")
        print(f"{course.name}: {len(stored[course.name])} configurations in {file}", flush=True)


def load(file: FilePath, course: str) -> list[Pair]:
    """The shortlist of a course."""
    if not file.exists():
        raise FileNotFoundError(f"{file}: no shortlist there; `accuracy.py --search` makes one")
    return [(solver, grid) for solver, grid in json.loads(file.read_text())[course]]
