"""What is measured in a sweep: a cell, which is a solver with a budget, and the study that all cells share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve.adaptive import Adaptive, AdaptiveSDE
from diffsolve.api.sampling import solve
from diffsolve.common.fingerprint import describe
from diffsolve.execute.plan import plan
from diffsolve.metrics.arguments import cycled
from diffsolve.metrics.distances import Estimate, Score
from diffsolve.metrics.statistics import Statistics, extract
from diffsolve.metrics.table import ENDPOINT, ResultRow
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau

__all__ = ["Cell", "Study", "relevant"]

PLANNED = ("grid", "stop")  # options of `solve` that the plan uses
FINEST = "auto"  # the solver of the endpoints


@dataclass(frozen=True)
class Cell:
    label: str
    nfe: int | None
    """The budget; None where the solver has its own."""
    solver: Tableau | Adaptive | AdaptiveSDE
    options: Mapping[str, Any]
    """Options of `solve` that the plan does not use."""
    given: Mapping[str, Any]
    """The solver and options as they were given."""

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic if isinstance(self.solver, Tableau) else isinstance(self.solver, AdaptiveSDE)

    @property
    def written(self) -> dict[str, Any] | None:
        """The options as given, if a file can hold them."""
        given = {name: value for name, value in self.given.items() if value is not None}
        return given if all(isinstance(value, str | int | float | bool) for value in given.values()) else None

    @property
    def method(self) -> str:
        return self.solver.solver if isinstance(self.solver, Tableau) else str(self.solver)

    @cached_property
    def table(self) -> Any:
        return describe([self.solver, relevant(self.options)])


class Batch(NamedTuple):
    first: int
    """The index of its first sample."""
    x: Tensor
    finite: bool
    """Whether every sample reached the end, and is finite."""
    calls: float
    """Network calls, summed over the samples."""
    seconds: float


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    model: Model
    shape: tuple[int, ...]
    num: int
    batch: int
    cond: Mapping[str, Any]
    guidance: Guidance
    decode: Callable[[Tensor], Tensor] | None
    exact: int
    fine: int
    options: Mapping[str, Any]
    references: Mapping[str, Statistics]
    scores: Mapping[str, Score]

    @property
    def about(self) -> dict[str, Any]:
        """The settings that the results depend on, as JSON values."""
        named = ("model", "references", "cond", "guidance", "decode")
        about = {name: describe(getattr(self, name)) for name in named}
        return {
            "model": about["model"],
            "shape": self.shape,
            "num": self.num,
            "reference": about["references"],
            "scores": list(self.scores),
            "cond": about["cond"],
            "guidance": about["guidance"],
            "decode": about["decode"],
            "exact": self.exact,
            "fine": self.fine,
            "options": describe(relevant(self.options)),
        }

    def cells(self, label: str, given: Mapping[str, Any], budgets: Sequence[int]) -> Iterator[Cell]:
        """The cells of one solver, with their tableaux."""
        options = {**self.options, **given}
        solver = options.pop("solver")
        if isinstance(solver, Tableau | Adaptive | AdaptiveSDE):
            yield Cell(label, None, solver, options, given)
            return
        planned = {name: options.pop(name) for name in PLANNED if name in options}
        for nfe in sorted(set(budgets)):
            tableau = plan(self.model, solver, nfe=nfe, guidance=self.guidance.scale, shape=(1, *self.shape), **planned)
            yield Cell(label, nfe, tableau, options, {**self.options, **given})

    def run(self, cell: Cell, seed: int, num: int) -> Iterator[Batch]:
        """The samples, batch by batch, on the network's device."""
        for first in range(0, num, self.batch):
            count = min(self.batch, num - first)
            guidance = replace(self.guidance, uncond=cycled(self.guidance.uncond, first, count))
            began = time.perf_counter()
            run: Any = solve(
                self.model, (count, *self.shape), solver=cell.solver, seed=seed, index=first,
                cond=cycled(self.cond, first, count), guidance=guidance, **cell.options,
            )  # fmt: skip
            finite = run.done and bool(run.x.isfinite().all())  # the device has finished
            seconds = time.perf_counter() - began
            calls = run.nfe * count if isinstance(cell.solver, Tableau) else run.nfe.sum()
            yield Batch(first, run.x, finite, float(calls), seconds)

    @cached_property
    def _endpoints(self) -> dict[int, tuple[Tensor, float]]:
        return {}

    def endpoints(self, seed: int) -> tuple[Tensor, float]:
        """The exact endpoints of the first samples' noise, and their difference from those at half the calls."""
        if seed not in self._endpoints:
            ends = []
            for nfe in (self.fine, self.fine // 2):
                (cell,) = self.cells("endpoints", {"solver": FINEST, "grid": None}, [nfe])
                ends.append(torch.cat([batch.x.cpu() for batch in self.run(cell, seed, self.exact)]).double())
            self._endpoints[seed] = ends[0], _rms(ends[0] - ends[1])
        return self._endpoints[seed]

    def measure(self, cell: Cell, seed: int, advance: Callable[[int], object]) -> ResultRow:
        features: dict[str, list[Tensor]] = {name: [] for name in self.references}
        firsts, calls, seconds, finite = [], 0.0, 0.0, True
        for batch in self.run(cell, seed, self.num):
            calls, seconds, finite = calls + batch.calls, seconds + batch.seconds, finite and batch.finite
            firsts.append(batch.x[: max(0, self.exact - batch.first)].cpu())
            if finite and self.references:
                images = batch.x if self.decode is None else self.decode(batch.x)
                for name, reference in self.references.items():
                    features[name].append(_features(name, reference, images))
            advance(len(batch.x))
        values: dict[str, float | None] = {}
        for name, reference in self.references.items():
            rows = torch.cat(features[name]) if finite else None
            statistics = None if rows is None or not rows.isfinite().all() else Statistics.of(rows)
            for score, distance in self.scores.items():
                title = f"{name} {score}".strip()
                value = None if statistics is None else distance(statistics, reference)
                both: dict[str, Any] = {title: value}
                if isinstance(value, Estimate):
                    both = {title: value.value, f"{title} stderr": value.stderr}
                values.update({key: None if part is None else float(part) for key, part in both.items()})
        floor: float | None = None
        if self.exact and not cell.stochastic:
            ends, known = self.endpoints(seed)
            floor = known if math.isfinite(known) else None
            values[ENDPOINT] = _rms(torch.cat(firsts).double() - ends) if finite else None
        values = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        n = self.num
        return ResultRow(
            cell.label, cell.method, cell.table, cell.nfe, seed, calls / n, seconds / n, values, floor, cell.written,
        )  # fmt: skip

    def strips(self, wanted: Sequence[tuple[int, Cell]], count: int) -> dict[tuple[str, int | None], Tensor]:
        """The first images of the first seed, on the CPU."""
        shown = {}
        for seed, cell in wanted:
            if seed == wanted[0][0]:
                x = torch.cat([batch.x for batch in self.run(cell, seed, count)])
                shown[cell.label, cell.nfe] = (x if self.decode is None else self.decode(x)).detach().cpu()
        return shown


def _features(name: str, reference: Statistics, images: Tensor) -> Tensor:
    """The features of images, checked to be of the reference's size."""
    rows = extract(reference.features, images, finite=False)
    if rows.shape[1] != len(reference.mean):
        raise ValueError(
            f"reference {name!r} must have features of {rows.shape[1]} numbers, as those of the samples, got "
            f"{len(reference.mean)}; give Statistics.load the features that the file was computed with"
        )
    return rows


def relevant(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that results depend on."""
    return {name: value for name, value in options.items() if name != "device"}


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())
