"""Distances against network calls, for solvers, budgets and seeds: deterministic and resumable.

Two things are measured. The `scores` compare samples with data: they combine the network's error, the solver's error
and the sampling error. The endpoint error is the solver's alone: the root mean square per value of the difference from
the endpoint of the exact probability flow of the same noise; it needs no reference and only a few hundred samples, and
is defined for deterministic solvers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from diffsolve.common.checks import integer, required
from diffsolve.common.options import shows
from diffsolve.common.records import Records
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import GridLike
from diffsolve.execute.results import Step
from diffsolve.metrics.arguments import (
    chosen_budgets,
    chosen_scores,
    chosen_seeds,
    named_references,
    sample_shape,
)
from diffsolve.metrics.distances import Score
from diffsolve.metrics.gathered import Checkpoint
from diffsolve.metrics.statistics import Statistics
from diffsolve.metrics.study import Cell, Study
from diffsolve.metrics.table import ResultRow, Table, row_of
from diffsolve.models import as_model
from diffsolve.models.conditions import conditions
from diffsolve.models.guidance import Guidance
from diffsolve.parallel import Parallel
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import world

__all__ = ["sweep"]


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
    part: tuple[int, int] = (1, 1),
    scores: Mapping[str, Score] | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    exact: int = 256,
    fine: int = 200,
    strip: int = 0,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool = False,
    **options: Unpack[SweepOptions],
) -> Table:
    """Sample with every solver, budget of network calls and seed; measure the samples against the reference.

    Sample i of a seed has the same noise and condition in every cell, so that solvers are compared on the same draw.
    Under `torchrun` the ranks share the batches of each cell, and the first one writes.

    Args:
        model, guidance: as in `ds.solve`.
        shape: of one sample, without the batch.
        reference: statistics of the data, with the features to use (see `Statistics.of`); or several by name, all
            measured in one pass, with the names as prefixes of the scores. None measures only the endpoint error.
        solvers: names, solver objects, tableaux, `ds.Adaptive` or `ds.AdaptiveSDE`; or a mapping from labels to these,
            or to options of `ds.solve`, as {"heun, karras": {"solver": "heun", "grid": "karras"}}.
        nfe: budgets of network calls (a guided call counts once); the actual calls are reported. Tableaux and adaptive
            solvers run once, with their own number of calls.
        num: samples per cell. Scores other than `frechet` hold the features of all, in 4 num F bytes.
        batch: samples per batch; results depend on it only by rounding.
        seeds: the number of seeds, from 0; or the seeds themselves.
        part: (i, n): the i-th of n parts of the cells, from 1, for machines with a file each (`Table.read`).
        scores: name -> distance of two `Statistics`, or names from `ds.metrics.names()`. By default "FD", "FD inf"
            if num is at least 4 F (fewer give a meaningless value), and "KID" if every reference kept its rows.
        cond: keyword arguments of the network. Tensors, at any depth, are cycled along their first dimension, but for
            a `ds.Shared`: sample i gets entry i modulo its length; so in the `uncond` of a Guidance. Cycled labels are
            a stratified, not an independent, sample: KID is then biased downwards by an amount of order 1 / num.
        decode: samples -> images, before the features, on the samples' device: a decoder, a clamp, a rounding to 8
            bits. None if samples are images.
        exact: samples per seed whose endpoint error is measured; 0 for none.
        fine: network calls of "auto" for the endpoints; half as many give their error estimate (`ResultRow.floor`).
        strip: samples of the first seed kept in `Table.strips`, for `ds.metrics.report`.
        out: a file of JSON lines, the settings and then each finished cell. The same call after an interruption
            measures what is missing, from the batch on that a cell was at (`<out>.cell` has it meanwhile); solvers,
            budgets or seeds may be added. `force` starts the file anew.
        progress: show a bar, in samples.
        options: of `ds.solve`, for all cells: grid, stop, dtype, device and others.

    Returns:
        A `Table` of the requested cells: print it, or `plot` it. A score is None where a sample or a feature is not
        finite, or an adaptive run ended short.

    Raises:
        ValueError: if an argument is out of range, a solver exceeds a budget, or `out` has other settings.
        TypeError: if an argument is of the wrong type.
        BlockingIOError, ConnectionError: while another process writes `out`; if another rank is gone.
    """
    num, exact = integer("num", num, 1), integer("exact", exact, 0)
    references = named_references(reference)
    required(bool(references or exact), "reference", None, "given with exact=0, which measures nothing else")
    study = Study(
        as_model(model), sample_shape(shape), num, integer("batch", batch, 1), conditions("cond", cond),
        Guidance.of(guidance), decode, min(num, exact), integer("fine", fine, 2), _passed_on("options", options),
        references, chosen_scores(scores, references, num),
    )  # fmt: skip
    budgets, (i, n) = chosen_budgets(nfe), part
    cells = [cell for label, given in _configurations(solvers).items() for cell in study.cells(label, given, budgets)]
    integer("part[0]", i, 1, integer("part[1]", n, 1))
    wanted = [(seed, cell) for seed in chosen_seeds(seeds) for cell in cells][i - 1 :: n]
    table = _filled(study, wanted, out, force, progress)
    return table if integer("strip", strip, 0) == 0 else replace(table, strips=study.strips(wanted, strip))


def _filled(study: Study, wanted: list[tuple[int, Cell]], out: str | Path | None, force: bool, progress: bool) -> Table:
    """The table of these cells, read from `out` where it has them, else measured, by all ranks together."""
    from tqdm.auto import tqdm

    about = study.about
    with world(study.model.device) as ranks, ExitStack() as files:
        records = ranks.once(lambda: None if out is None else files.enter_context(Records(out, about, _key, force)))
        known = ranks.once(lambda: {} if records is None else _known(records, [cell for _, cell in wanted]))
        rows = ranks.shared(known or {})
        missing = [(seed, cell) for seed, cell in wanted if (cell.label, cell.nfe, seed) not in rows]
        part = "" if ranks.size == 1 else f"-{ranks.rank + 1}of{ranks.size}"
        checkpoint = Checkpoint(out, about, part)
        checkpoint.settle(rows)
        total = len(missing) * study.num // ranks.size
        with tqdm(total=total, disable=not (progress and ranks.first), unit="sample") as bar:
            for seed, cell in missing:
                bar.set_description(f"{cell.label}, nfe={cell.nfe}, seed {seed}", refresh=False)
                row = study.measure(cell, seed, bar.update, checkpoint, ranks)
                rows[cell.label, cell.nfe, seed] = row
                if records is not None:  # of the first rank alone
                    records.append(asdict(row))
                checkpoint.remove()
    return Table(tuple(rows[cell.label, cell.nfe, seed] for seed, cell in wanted), about)


def _known(records: Records, cells: Sequence[Cell]) -> dict[Any, ResultRow]:
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


def _passed_on(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    accepted = {"solver", *SweepOptions.__annotations__} if name != "options" else SweepOptions.__annotations__
    for option in options:
        if option not in accepted:
            listed = ", ".join(accepted)
            raise ValueError(f"{name} must be options of ds.solve that a sweep passes on ({listed}), got {option!r}")
    return dict(options)
