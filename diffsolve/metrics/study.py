"""What is measured in a sweep: a cell, which is a solver with a budget, and the study that all cells share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffsolve.adaptive import Adaptive, AdaptiveSDE
from diffsolve.api.sampling import solve
from diffsolve.common.fingerprint import describe
from diffsolve.execute.plan import plan
from diffsolve.metrics.arguments import cycled
from diffsolve.metrics.distances import Estimate, Score
from diffsolve.metrics.gathered import Checkpoint, Gathered, features_of
from diffsolve.metrics.scores import needs_rows
from diffsolve.metrics.statistics import Statistics
from diffsolve.metrics.table import ENDPOINT, ResultRow
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import World, together

__all__ = ["Cell", "Study", "gathered", "relevant"]

ALONE = World()
T = TypeVar("T")

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
    number: int
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
            tableau = plan(self.model, solver, nfe=nfe, guidance=self.guidance.level, shape=(1, *self.shape), **planned)
            yield Cell(label, nfe, tableau, options, {**self.options, **given})

    def run(self, cell: Cell, seed: int, num: int, world: World = ALONE, but: Sequence[int] = ()) -> Iterator[Batch]:
        """The samples, batch by batch, on the network's device: this rank's batches, but for those that are done."""
        for number, first in enumerate(range(0, num, self.batch)):
            if number % world.size != world.rank or number in but:
                continue
            count = min(self.batch, num - first)
            guidance = self.guidance.mapped(partial(cycled, first=first, count=count))
            began = time.perf_counter()
            run: Any = solve(
                self.model, (count, *self.shape), solver=cell.solver, seed=seed, index=first,
                cond=cycled(self.cond, first, count), guidance=guidance, **cell.options,
            )  # fmt: skip
            finite = run.done and bool(run.x.isfinite().all())  # the device has finished
            seconds = time.perf_counter() - began
            calls = run.nfe * count if isinstance(cell.solver, Tableau) else run.nfe.sum()
            yield Batch(number, first, run.x, finite, float(calls), seconds)

    @cached_property
    def _endpoints(self) -> dict[int, tuple[Tensor, float]]:
        return {}

    def endpoints(self, seed: int, world: World = ALONE) -> tuple[Tensor, float]:
        """The exact endpoints of the first samples' noise, and their difference from those at half the calls."""
        if seed not in self._endpoints:
            ends = []
            for nfe in (self.fine, self.fine // 2):
                (cell,) = self.cells("endpoints", {"solver": FINEST, "grid": None}, [nfe])
                own = {batch.number: batch.x.cpu() for batch in self.run(cell, seed, self.exact, world)}
                parts = {number: x for part in gathered(world, own) for number, x in part.items()}
                ends.append(torch.cat([parts[number] for number in sorted(parts)]).double())
            self._endpoints[seed] = ends[0], _rms(ends[0] - ends[1])
        return self._endpoints[seed]

    def measure(
        self,
        cell: Cell,
        seed: int,
        advance: Callable[[int], object],
        checkpoint: Checkpoint | None = None,
        world: World = ALONE,
    ) -> ResultRow:
        """The results of a cell, of the batches of all ranks; from where the checkpoint has it."""
        kept = any(map(needs_rows, self.scores.values()))
        identity = [cell.label, cell.nfe, seed, cell.table, self.batch]
        own = Gathered(tuple(self.references), kept)
        own = own if checkpoint is None else checkpoint.load(own, identity)
        advance(min(self.num, len(own.batches) * self.batch))
        for batch in self.run(cell, seed, self.num, world, own.batches):
            own.calls, own.seconds = own.calls + batch.calls, own.seconds + batch.seconds
            own.finite = own.finite and batch.finite
            rows: Mapping[str, Tensor] = {}
            if own.finite and self.references:
                rows = features_of(self.references, batch.x if self.decode is None else self.decode(batch.x))
            own.add(batch.number, rows, batch.x[: max(0, self.exact - batch.first)].cpu())
            if checkpoint is not None:
                checkpoint.save(own, identity)
            advance(len(batch.x))
        found = Gathered.joined(gathered(world, own))
        values: dict[str, float | None] = {}
        for name, reference in self.references.items():
            statistics = found.statistics(name)
            for score, distance in self.scores.items():
                title = f"{name} {score}".strip()
                value = None if statistics is None else distance(statistics, reference)
                both: dict[str, Any] = {title: value}
                if isinstance(value, Estimate):
                    both = {title: value.value, f"{title} stderr": value.stderr}
                values.update({key: None if part is None else float(part) for key, part in both.items()})
        floor: float | None = None
        if self.exact and not cell.stochastic:
            ends, known = self.endpoints(seed, world)
            floor = known if math.isfinite(known) else None
            values[ENDPOINT] = _rms(found.first_ends().double() - ends) if found.finite else None
        values = {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
        calls, seconds = found.calls / self.num, found.seconds / self.num
        return ResultRow(
            cell.label, cell.method, cell.table, cell.nfe, seed, calls, seconds, values, floor, cell.written
        )

    def strips(self, wanted: Sequence[tuple[int, Cell]], count: int) -> dict[tuple[str, int | None], Tensor]:
        """The first images of the first seed, on the CPU."""
        shown = {}
        for seed, cell in wanted:
            if seed == wanted[0][0]:
                x = torch.cat([batch.x for batch in self.run(cell, seed, count)])
                shown[cell.label, cell.nfe] = (x if self.decode is None else self.decode(x)).detach().cpu()
        return shown


def gathered(world: World, part: T) -> list[T]:
    """The parts of all ranks, on each of them.

    Raises:
        ConnectionError: if a rank is gone.
    """
    if world.size == 1:
        return [part]
    parts: list[Any] = [None] * world.size
    with together():
        dist.all_gather_object(parts, part)
    return parts


def relevant(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that results depend on."""
    return {name: value for name, value in options.items() if name != "device"}


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())
