"""Distances against network calls, for solvers, budgets and seeds: deterministic and resumable.

Two things are measured. The `scores` compare samples with data: they combine the network's error, the solver's error
and the sampling error. The endpoint error is the solver's alone: the root mean square per value of the difference from
the endpoint of the exact probability flow of the same noise; it needs no reference and only a few hundred samples, and
is defined for deterministic solvers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from diffsolve.adaptive import Adaptive, AdaptiveSDE
from diffsolve.api.sampling import solve
from diffsolve.common.checks import integer, required
from diffsolve.common.fingerprint import describe
from diffsolve.common.options import shows
from diffsolve.common.records import Records
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import GridLike, plan
from diffsolve.execute.results import Step
from diffsolve.metrics.arguments import (
    chosen_budgets,
    chosen_scores,
    chosen_seeds,
    cycled,
    named_references,
    sample_shape,
)
from diffsolve.metrics.distances import Estimate, Score
from diffsolve.metrics.statistics import Statistics, extract
from diffsolve.metrics.table import ENDPOINT, ResultRow, Table, row_of
from diffsolve.models import Model, as_model
from diffsolve.models.conditions import conditions
from diffsolve.models.guidance import Guidance
from diffsolve.parallel import Parallel
from diffsolve.tableau import Tableau

__all__ = ["sweep"]

PLANNED = ("grid", "stop")  # options of `solve` that the plan uses


class SweepOptions(TypedDict, total=False):
    """Options of `ds.solve` that a sweep passes on; it sets the others itself, or they change what is returned."""

    grid: GridLike | None
    stop: float | None
    dtype: torch.dtype | None
    device: str | torch.device | None
    hook: Callable[[Step], Tensor | None] | None
    check: bool
    graph: bool
    parallel: Parallel | None


FINEST = "auto"  # the solver of the endpoints


@shows(SweepOptions, check=False, graph=False)
def sweep(
    model: ModelLike,
    shape: Shape,
    *,
    reference: Statistics | Mapping[str, Statistics] | None = None,
    solvers: Any = ("auto",),
    nfe: int | Sequence[int] = (5, 10, 20),
    num: int = 1000,
    batch: int = 250,
    seeds: int | Sequence[int] = 1,
    scores: Mapping[str, Score] | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    exact: int = 256,
    fine: int = 200,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
    **options: Unpack[SweepOptions],
) -> Table:
    """Sample with every solver, budget of network calls and seed; measure the samples against the reference.

    Sample i of a seed has the same noise and condition in every cell, so that solvers are compared on the same draw.

    Args:
        model, guidance: as in `ds.solve`.
        shape: of one sample, without the batch.
        reference: statistics of the data, with the features to use (see `Statistics.of`); or several by name, all
            measured in one pass, with the names as prefixes of the scores. None measures only the endpoint error.
        solvers: names, solver objects, tableaux, `ds.Adaptive` or `ds.AdaptiveSDE`; or a mapping from labels to these,
            or to options of `ds.solve`, as {"heun, karras": {"solver": "heun", "grid": "karras"}}.
        nfe: budgets of network calls (a guided call counts once); the actual calls are reported. Tableaux and adaptive
            solvers run once, with their own number of calls.
        num: samples per cell, whose features are all held in memory, in 4 num F bytes.
        batch: samples per batch; results depend on it only by rounding.
        seeds: the number of seeds, from 0; or the seeds themselves.
        scores: name -> distance of two `Statistics`, or names from `ds.metrics.names()`. By default "FD", "FD inf"
            if num is at least 4 F (fewer give a meaningless value), and "KID" if every reference kept its rows.
        cond: keyword arguments of the network. Tensors, at any depth, are cycled along their first dimension, but for
            a `ds.Shared`: sample i gets entry i modulo its length; so in the `uncond` of a Guidance. Cycled labels are
            a stratified, not an independent, sample: KID is then biased downwards by an amount of order 1 / num.
        guidance: as in `ds.solve`.
        decode: samples -> images, before the features, on the samples' device: a decoder, a clamp, a rounding to 8
            bits. None if samples are images.
        exact: samples per seed whose endpoint error is measured; 0 for none.
        fine: network calls of "auto" for the endpoints; half as many give their error estimate (`ResultRow.floor`).
        out: a file of JSON lines, the settings and then each finished cell. The same call after an interruption
            measures what is missing; solvers, budgets or seeds may be added. `force` starts the file anew.
        progress: show a bar, in samples.
        options: of `ds.solve`, for all cells: grid, stop, dtype, device and others.

    Returns:
        A `Table` of the requested cells: print it, or `plot` it. A score is None where a sample or a feature is not
        finite, or an adaptive run ended short.

    Raises:
        ValueError: if an argument is out of range, a solver exceeds a budget, or `out` has other settings.
        TypeError: if an argument is of the wrong type.
    """
    num, exact = integer("num", num, 1), integer("exact", exact, 0)
    references = named_references(reference)
    study = _Study(
        as_model(model),
        sample_shape(shape),
        num,
        integer("batch", batch, 1),
        conditions("cond", cond),
        Guidance.of(guidance),
        decode,
        min(num, exact),
        integer("fine", fine, 2),
        _passed_on("options", options),
        references,
        chosen_scores(scores, references, num),
    )
    required(bool(references or study.exact), "reference", None, "given with exact=0, which measures nothing else")
    budgets = chosen_budgets(nfe)
    cells = [cell for label, given in _configurations(solvers).items() for cell in study.cells(label, given, budgets)]
    return _filled(study, [(seed, cell) for seed in chosen_seeds(seeds) for cell in cells], out, force, progress)


def _filled(
    study: _Study, wanted: list[tuple[int, _Cell]], out: str | Path | None, force: bool, progress: bool
) -> Table:
    """The table of these cells, read from `out` where it has them, else measured."""
    from tqdm.auto import tqdm

    about = study.about
    with nullcontext() if out is None else Records(out, about, _key, force) as records:
        rows = {} if records is None else _known(records, [cell for _, cell in wanted])
        missing = [(seed, cell) for seed, cell in wanted if (cell.label, cell.nfe, seed) not in rows]
        with tqdm(total=len(missing) * study.num, disable=not progress, unit="sample") as bar:
            for seed, cell in missing:
                bar.set_description(f"{cell.label}, nfe={cell.nfe}, seed {seed}", refresh=False)
                row = study.measure(cell, seed, bar.update)
                rows[cell.label, cell.nfe, seed] = row
                if records is not None:
                    records.append(asdict(row))
    return Table(tuple(rows[cell.label, cell.nfe, seed] for seed, cell in wanted), about)


@dataclass(frozen=True)
class _Cell:
    label: str
    nfe: int | None
    """The budget; None where the solver has its own."""
    solver: Tableau | Adaptive | AdaptiveSDE
    options: Mapping[str, Any]
    """Options of `solve` that the plan does not use."""

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic if isinstance(self.solver, Tableau) else isinstance(self.solver, AdaptiveSDE)

    @property
    def method(self) -> str:
        return self.solver.solver if isinstance(self.solver, Tableau) else str(self.solver)

    @cached_property
    def table(self) -> Any:
        return describe([self.solver, _relevant(self.options)])


class _Batch(NamedTuple):
    first: int
    """The index of its first sample."""
    x: Tensor
    finite: bool
    """Whether every sample reached the end, and is finite."""
    calls: float
    """Network calls, summed over the samples."""
    seconds: float


@dataclass(frozen=True)
class _Study:
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
            "options": describe(_relevant(self.options)),
        }

    def cells(self, label: str, given: Mapping[str, Any], budgets: Sequence[int]) -> Iterator[_Cell]:
        """The cells of one solver, with their tableaux."""
        options = {**self.options, **given}
        solver = options.pop("solver")
        if isinstance(solver, Tableau | Adaptive | AdaptiveSDE):
            yield _Cell(label, None, solver, options)
            return
        planned = {name: options.pop(name) for name in PLANNED if name in options}
        for nfe in sorted(set(budgets)):
            tableau = plan(self.model, solver, nfe=nfe, guidance=self.guidance.scale, shape=(1, *self.shape), **planned)
            yield _Cell(label, nfe, tableau, options)

    def run(self, cell: _Cell, seed: int, num: int) -> Iterator[_Batch]:
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
            yield _Batch(first, run.x, finite, float(calls), seconds)

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

    def measure(self, cell: _Cell, seed: int, advance: Callable[[int], object]) -> ResultRow:
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
        return ResultRow(cell.label, cell.method, cell.table, cell.nfe, seed, calls / n, seconds / n, values, floor)


def _features(name: str, reference: Statistics, images: Tensor) -> Tensor:
    """The features of images, checked to be of the reference's size."""
    rows = extract(reference.features, images, finite=False)
    if rows.shape[1] != len(reference.mean):
        raise ValueError(
            f"reference {name!r} must have features of {rows.shape[1]} numbers, as those of the samples, got "
            f"{len(reference.mean)}; give Statistics.load the features that the file was computed with"
        )
    return rows


def _known(records: Records, cells: Sequence[_Cell]) -> dict[Any, ResultRow]:
    """The rows of a file by label, budget and seed.

    Raises:
        ValueError: if a label has another solver in the file.
    """
    tables = {(cell.label, cell.nfe): cell.table for cell in cells}
    rows = [row_of(entry, records.path) for entry in records.found.values()]
    for row in rows:
        here = tables.get((row.solver, row.nfe), row.table)
        if here != row.table:
            raise ValueError(
                f"file {str(records.path)!r} must be of the same settings, got other settings: solver {row.solver!r} "
                f"with nfe={row.nfe} as {row.table} there and {here} here; give it a label of its own, as "
                "solvers={label: solver}"
            )
    return {(row.solver, row.nfe, row.seed): row for row in rows}


def _key(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What the cell of a record is found by."""
    return entry["solver"], entry["nfe"], entry["seed"]


def _configurations(solvers: Any) -> dict[str, dict[str, Any]]:
    """label -> options of `solve`."""
    if isinstance(solvers, Mapping):
        by_label = {str(label): given for label, given in solvers.items()}
    else:
        given = solvers if isinstance(solvers, Sequence) and not isinstance(solvers, str) else [solvers]
        by_label = {entry.solver if isinstance(entry, Tableau) else str(entry): entry for entry in given}
        if len(by_label) < len(given):
            raise ValueError(f"solvers must be different, got {list(by_label)!r} more than once; a mapping labels them")
    required(bool(by_label), "solvers", solvers, "at least one")
    configurations = {}
    for label, entry in by_label.items():
        name = f"solvers[{label!r}]"
        if not isinstance(entry, Mapping):
            configurations[label] = {"solver": entry}
            continue
        configurations[label] = _passed_on(name, entry)
        required("solver" in entry, name, dict(entry), "a mapping with 'solver' and other options of ds.solve")
        required("stop" not in entry, name, dict(entry), "without 'stop', which is one for all solvers")
    return configurations


def _relevant(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that results depend on."""
    return {name: value for name, value in options.items() if name != "device"}


def _rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _passed_on(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    accepted = {"solver", *SweepOptions.__annotations__} if name != "options" else SweepOptions.__annotations__
    for option in options:
        if option not in accepted:
            listed = ", ".join(accepted)
            raise ValueError(f"{name} must be options of ds.solve that a sweep passes on ({listed}), got {option!r}")
    return dict(options)
