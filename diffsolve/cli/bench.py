"""The commands that compare solvers on one model: bench and choose."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsolve.cli.options import Force, Label, ModelSpec, Progress, bar, check_out, first_rank, plain_errors
from diffsolve.cli.options import report as show_lines
from diffsolve.cli.subject import Cond, Data, Decode, FeaturesSpec, ModelArgs, Shape, reference_of, subject_of

if TYPE_CHECKING:
    from diffsolve.metrics import Table

__all__ = ["bench", "choose"]

Seed = Annotated[int, typer.Option(help="Seed of the noises.")]
Grids = Annotated[
    list[str] | None, typer.Option(help="A grid; may be repeated. See `diffsolve grids`. [default: the solver's own]")
]


@plain_errors()
def bench(
    model: ModelSpec = "digits",
    model_args: ModelArgs = None,
    data: Data = None,
    features: FeaturesSpec = None,
    shape: Shape = None,
    cond: Cond = None,
    decode: Decode = None,
    solver: Annotated[list[str] | None, typer.Option(help="As in `sample`; may be repeated. [default: auto]")] = None,
    nfe: Annotated[list[int] | None, typer.Option(help="As in `sample`; may be repeated. [default: 5, 10, 20]")] = None,
    grid: Grids = None,
    num: Annotated[int, typer.Option(min=1, help="Samples of each solver, budget and seed.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 250,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 1,
    label: Label = "all",
    guidance: Annotated[
        str | None,
        typer.Option(help="A scale, of models with classes, or package.module:function, which returns a ds.Guidance."),
    ] = None,
    score: Annotated[
        list[str] | None, typer.Option(help="precision, recall, cmmd, ..; may be repeated. [default: FD, FD inf, KID]")
    ] = None,
    exact: Annotated[int, typer.Option(min=0, help="Samples whose endpoint error is taken.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="A .jsonl file, one line per result; a second run goes on from it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file for a plot.")] = None,
    page: Annotated[
        Path | None, typer.Option("--report", help="An .html file for a page with tables, charts and samples.")
    ] = None,
    strip: Annotated[int, typer.Option(min=0, help="Samples of each solver and budget shown in --report.")] = 8,
    cells: Annotated[
        str | None, typer.Option(help="A part of the results, as 3/16: for array jobs with an --out each.")
    ] = None,
    join: Annotated[
        list[Path] | None, typer.Option(help="Measure nothing: the results of these .jsonl files; to be repeated.")
    ] = None,
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Distance to the data, and to the exact endpoints, against network calls, as tables in Markdown.

    Of a reference model, or of any model: `--model package.module:factory` calls a function that returns what
    `ds.adapt` takes, `--data` says what its samples should look like.
    """
    from diffsolve import metrics

    for file, suffix in ((out, ".jsonl"), (plot, ".png"), (page, ".html")):
        if file is not None:
            check_out(file, suffix)
    if join:
        _show(metrics.Table.read(*join), "Joined results", plot, page)
        return
    subject = subject_of(model, model_args, shape, label, 10, cond, decode, data)
    table = metrics.sweep(
        subject.model, subject.shape, reference=reference_of(subject, data, features, label, batch),
        solvers=_configurations(solver or ["auto"], grid or []), nfe=nfe or (5, 10, 20), num=num, batch=batch,
        seeds=seeds, part=_part(cells), scores=score or None, cond=subject.cond,
        guidance=subject.guidance(guidance), exact=exact, out=out, force=force, progress=bar(progress),
        decode=subject.decode, strip=0 if page is None else strip,
    )  # fmt: skip
    if first_rank():
        _show(table, f"{model}: which solver, how many calls?", plot, page)


def _show(table: Table, title: str, plot: Path | None, page: Path | None) -> None:
    from diffsolve.metrics import report

    typer.echo(table)
    if plot is not None:
        table.plot(plot)
    if page is not None:
        report(table, page, title)


def _part(cells: str | None) -> tuple[int, int]:
    """(i, n) of "i/n"."""
    i, slash, n = (cells or "1/1").partition("/")
    if not (slash and i.isdecimal() and n.isdecimal()):
        raise ValueError(f"cells must be a part as 3/16, got {cells!r}")
    return int(i), int(n)


def _configurations(solvers: list[str], grids: list[str]) -> Any:
    """Every solver on every grid; one grid needs no label."""
    if not grids:
        return solvers
    pairs = [(solver, grid) for solver in solvers for grid in grids]
    label = "{0}" if len(grids) == 1 else "{0}, {1}"
    return {label.format(solver, grid): {"solver": solver, "grid": grid} for solver, grid in pairs}


@plain_errors()
def choose(
    model: ModelSpec = "digits",
    model_args: ModelArgs = None,
    data: Annotated[str | None, typer.Option(help="As in `bench`; only for the shape of a sample.")] = None,
    shape: Shape = None,
    cond: Cond = None,
    nfe: Annotated[list[int] | None, typer.Option(help="As in `sample`; may be repeated. [default: 5, 10, 20]")] = None,
    num: Annotated[int, typer.Option(min=2, help="Noises, for the pilot and to hold out.")] = 64,
    trials: Annotated[int, typer.Option(min=1, help="Runs tried for each budget.")] = 48,
    teacher: Annotated[int, typer.Option(help="Network calls of the accurate run.")] = 200,
    batch: Annotated[int, typer.Option(min=1, help="Noises at a time.")] = 64,
    label: Label = "all",
    guidance: Annotated[str | None, typer.Option(help="As in `bench`.")] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="A .json file for the run of one --nfe, for `diffsolve sample --solver`.")
    ] = None,
    progress: Progress = None,
) -> None:
    """The best solver and grid for a model and each budget, by a pilot on the model itself."""
    import diffsolve as ds
    from diffsolve.metrics.arguments import cycled

    if out is not None:
        check_out(out, ".json")
    budgets = nfe or [5, 10, 20]
    if out is not None and len(budgets) != 1:
        raise ValueError(f"out must be left out for more than one budget, got {str(out)!r} with nfe={budgets}")
    subject = subject_of(model, model_args, shape, label, num, cond, None, data)
    cycle = partial(cycled, first=0, count=num)
    found = ds.choose(
        subject.model, (num, *subject.shape), nfe=budgets, trials=trials, teacher=teacher, batch=batch,
        cond=cycle(subject.cond or {}), guidance=ds.Guidance.of(subject.guidance(guidance)).mapped(cycle), seed=seed,
        progress=bar(progress),
    )  # fmt: skip
    typer.echo(found)
    if out is not None:
        found[budgets[0]].tableau.save(out)
        show_lines(file=out)
