"""What a table of results says to do: the Pareto front, and the cheapest configuration as good as the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffsolve.metrics.table import ENDPOINT, Table

__all__ = ["Advice", "Configuration", "advice", "configurations", "main_measure", "pareto"]


@dataclass(frozen=True)
class Configuration:
    """A solver at one budget, over the seeds."""

    solver: str
    nfe: int | None
    method: str
    calls: float
    """Network calls per sample."""
    seconds: float
    """Of sampling, per sample."""
    scores: Mapping[str, tuple[float, float]]
    """Measure -> (mean, its standard error or NaN); the mean is NaN where samples were not finite."""
    options: Mapping[str, Any] | None
    """What `ds.sample` is to be given, where that can be written."""

    @property
    def code(self) -> str:
        """A line of Python that samples so."""
        options = {"solver": self.solver} if self.options is None else self.options
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        budget = "" if self.nfe is None else f", nfe={self.nfe}"
        return f"x = ds.sample(model, shape, {given}{budget}, seed=0)"


def configurations(table: Table) -> list[Configuration]:
    """The configurations of a table, by solver and budget."""
    found = []
    for solver in table.solvers:
        for nfe in table.budgets:
            rows = [row for row in table.rows if (row.solver, row.nfe) == (solver, nfe)]
            if rows:
                cells = {measure: table.cell(measure, solver, nfe) for measure in table.measures}
                found.append(
                    Configuration(
                        solver,
                        nfe,
                        rows[0].method,
                        math.fsum(row.calls for row in rows) / len(rows),
                        math.fsum(row.seconds for row in rows) / len(rows),
                        {measure: cell[:2] for measure, cell in cells.items() if cell is not None},
                        rows[0].options,
                    )
                )
    return found


MORE = ("precision", "recall", "density", "coverage", "vendi", "accuracy")
"""Scores of which more is better: they decide nothing here."""


def main_measure(table: Table) -> str | None:
    """The measure that decides: the first Frechet distance, else the first distance of any kind, else the endpoint
    error; None if there is none of them."""
    kinds = {measure: measure.split()[-1].partition("(")[0] for measure in table.measures}
    distances = [measure for measure, kind in kinds.items() if kind not in MORE and measure != ENDPOINT]
    ordered = [*(measure for measure in distances if kinds[measure] in ("FD", "frechet")), *distances]
    return next(iter([*ordered, *(measure for measure in kinds if measure == ENDPOINT)]), None)


def pareto(found: Sequence[Configuration], measure: str, cost: str = "calls") -> list[Configuration]:
    """The configurations that no other beats in both cost and measure, the cheapest first."""
    front: list[Configuration] = []
    for one in sorted(_finite(found, measure), key=lambda c: (getattr(c, cost), c.scores[measure][0])):
        if not front or one.scores[measure][0] < front[-1].scores[measure][0]:
            front.append(one)
    return front


@dataclass(frozen=True)
class Advice:
    """What to use with at most so many network calls."""

    budget: float
    use: Configuration
    best: Configuration
    """The least in the mean, at any cost within the budget."""


def advice(found: Sequence[Configuration], measure: str) -> list[Advice]:
    """For each budget the cheapest configuration within one standard error of the best.

    The error is that of the difference, the root of both squares; without error bars the best is the advice.
    """
    usable, told = _finite(found, measure), list[Advice]()
    for budget in sorted({c.calls for c in usable}):
        within = [c for c in usable if c.calls <= budget]
        best = min(within, key=lambda c: c.scores[measure][0])
        near = [c for c in within if c is best or _near(c.scores[measure], best.scores[measure])]
        told.append(Advice(budget, min(near, key=lambda c: (c.calls, c.scores[measure][0])), best))
    return told


def _near(one: tuple[float, float], best: tuple[float, float]) -> bool:
    error = math.hypot(*(0.0 if math.isnan(part[1]) else part[1] for part in (one, best)))
    return one[0] - best[0] <= error and error > 0


def _finite(found: Sequence[Configuration], measure: str) -> list[Configuration]:
    return [c for c in found if measure in c.scores and math.isfinite(c.scores[measure][0])]
