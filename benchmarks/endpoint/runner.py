"""Many solvers and grids of ours on one problem at a time, each network call serving all that make it together."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffsolve import grids, solvers
from diffsolve.execute import plan as planning
from diffsolve.tableau import Tableau
from endpoint.problems import Course, Problem

Pair = tuple[str, str]
"""A solver and a grid, by the names and options that a user would type."""

OWN_GRID = "own"
"""In the place of a grid: the solver's own."""

Table = dict[str, dict[str, list[float]]]
"""target -> configuration -> an error per budget; nan where it has no such run."""


def planned(course: Course, pair: Pair, nfe: int) -> Tableau | None:
    """The longest run of at most `nfe` calls; None if there is none."""
    solver, grid = pair
    try:
        where = None if grid == OWN_GRID else grids.named(grid)
        return planning.plan(course.path, solvers.named(solver), nfe=nfe, grid=where, stop=course.stop)
    except ValueError:
        return None


@torch.no_grad()
def run_together(tableaux: Sequence[Tableau], problem: Problem, x: Tensor) -> Tensor:
    """(C, B, d): what each tableau makes of x (B, d). They must call the network at the same places.

    The executor of the library runs one tableau; this runs the same weights for all of them, one network call
    serving all. `accuracy.py --check` compares the two.
    """
    first, C = tableaux[0], len(tableaux)
    K = max(t.history for t in tableaux)
    W = np.zeros((C, first.nfe, 2, K + 2))
    for c, t in enumerate(tableaux):
        assert np.array_equal(t.calls, first.calls)
        W[c, :, :, : t.history + 2] = t.weights[..., :-1]
    weights = torch.from_numpy(W)[..., None, None]  # (C, N, 2, K + 2, 1, 1)
    on_data, on_noise = (torch.from_numpy(np.stack([t.d[:, j] for t in tableaux]))[..., None, None] for j in (0, 1))
    s = y = x.expand(C, *x.shape)
    history: list[Tensor] = []
    for i, (_, alpha, sigma) in enumerate(first.calls.tolist()):
        data, noise = problem.fast(y.reshape(-1, x.shape[-1]), alpha, sigma)
        d = on_data[:, i] * data.view(s.shape) + on_noise[:, i] * noise.view(s.shape)
        history = [d, *history[: K - 1]]
        live = [s, y, *history]
        used = np.abs(W[:, i]).max(0) > 0
        sums = []
        for side in (0, 1):
            terms = [weights[:, i, side, j] * live[j] for j in range(len(live)) if used[side, j]]
            total = terms[0]
            for term in terms[1:]:
                total += term
            sums.append(total)
        s, y = sums
    return y


def errors(course: Course, pairs: Sequence[Pair], nfe: int, problems: Sequence[Problem]) -> dict[str, list[float]]:
    """problem -> the error of each configuration with one budget; nan where it does not fit."""
    found = [planned(course, pair, nfe) for pair in pairs]
    groups: dict[bytes, list[int]] = {}
    for c, tableau in enumerate(found):
        if tableau is not None:
            groups.setdefault(tableau.calls.tobytes(), []).append(c)
    table = {problem.name: [math.nan] * len(pairs) for problem in problems}
    for problem, group in itertools.product(problems, groups.values()):
        # As many at once as stay in the cache.
        chunk = max(1, int(6e5 / (problem.noise.numel() * (1 if problem.fast.shared else len(problem.full.means)))))
        for members in (group[j : j + chunk] for j in range(0, len(group), chunk)):
            x = run_together([t for c in members if (t := found[c])], problem, problem.start(course))
            for c, error in zip(members, problem.error(course, x).tolist(), strict=True):
                table[problem.name][c] = error if math.isfinite(error) else math.inf
    return table


def named(pair: Pair) -> str:
    """The name of a configuration in a table."""
    return " @ ".join(pair)


def lacking(table: Table, pairs: Iterable[Pair]) -> list[Pair]:
    """The configurations that have no run in the table."""
    ran = [{name for name, row in rows.items() if not all(map(math.isnan, row))} for rows in table.values()]
    return [pair for pair in pairs if not ran or any(named(pair) not in names for names in ran)]


def measure(
    course: Course, pairs: Iterable[Pair], budgets: Sequence[int], problems: Sequence[Problem], note: str
) -> Table:
    """Every configuration on every problem with every budget."""
    pairs = list(dict.fromkeys(pairs))
    names = list(map(named, pairs))
    table: Table = {problem.name: {name: [] for name in names} for problem in problems}
    began = time.perf_counter()
    for nfe in budgets:
        for target, row in errors(course, pairs, nfe, problems).items():
            for name, error in zip(names, row, strict=True):
                table[target][name].append(error)
    print(f"{course.name}: {note}, {len(pairs)} configurations, {time.perf_counter() - began:.0f} s", flush=True)
    return table
