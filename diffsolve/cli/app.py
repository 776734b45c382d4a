"""The command line: `diffsolve sample`, `tune`, `bench`, `logprob`, `plan`, `train digits`, and lists of names."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import getdoc, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

try:
    import PIL  # noqa: F401
    import typer
except ImportError as error:  # the script imports this module first: one line, and no traceback
    raise SystemExit(f"diffsolve: {error.name} is not installed; pip install 'diffsolve[cli]' brings it") from None

if TYPE_CHECKING:  # what takes long to import is imported by the commands that need it
    from diffsolve.common.registry import Registry

__all__ = ["app"]

SHAPES = {"digits": (1, 8, 8), "mixture-2d": (2,)}  # of one sample of each reference model
NFE = 20  # network calls, if neither --nfe nor --steps is given

app = typer.Typer(
    help="Sample from diffusion, score and flow-matching models, and look at the solvers that do it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
train = typer.Typer(help="Train a reference model.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train, name="train")

SolverSpec = Annotated[str, typer.Option(help="A solver with options, as 'ddim(eta=0.5)'; see `diffsolve solvers`.")]
GridSpec = Annotated[str | None, typer.Option(help="A grid with options; see `diffsolve grids`. [default: the path's]")]
Nfe = Annotated[int | None, typer.Option(help=f"Budget of network calls. [default: {NFE}, without --steps]")]
Steps = Annotated[int | None, typer.Option(help="Number of grid intervals, in place of --nfe.")]
Label = Annotated[
    str, typer.Option("--class", help="A digit, all for 0 to 9 in turn, or none for the network without a label.")
]
Progress = Annotated[bool | None, typer.Option(help="Show a bar. [default: on a terminal]", show_default=False)]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What the library says of a bad value (exit code 2) or of a failure (1), in one line and without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    except (FloatingPointError, ImportError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
@_plain_errors()
def sample(
    model: Annotated[str, typer.Option(help="digits or mixture-2d, as \"mixture-2d(path='edm')\".")] = "digits",
    solver: Annotated[
        str, typer.Option(help="A solver with options, as 'ddim(eta=0.5)'; or a .json file of `plan` or `tune`.")
    ] = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    grid: GridSpec = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    label: Label = "all",
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Calls of each sample to make at once, by Picard iteration. [default: one]"),
    ] = None,
    tol: Annotated[
        float | None, typer.Option(help="How far --parallel may be off, relative to a step's noise. [default: 0.1]")
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png file for a picture, .npy for the array.")] = Path("samples.png"),
    progress: Progress = None,
) -> None:
    """Draw samples from a reference model and write them to a file."""
    import torch

    import diffsolve as ds
    from diffsolve.cli.pictures import encoded
    from diffsolve.execute.plan import refuse

    _check_out(out, ".png", ".npy")
    if tol is not None and parallel is None:
        raise ValueError(f"tol={tol!r} without parallel: the two go together")
    picard = None if parallel is None else ds.Picard(window=parallel, tol=ds.Picard.tol if tol is None else tol)
    net = ds.load(model)
    if solver.endswith(".json"):
        refuse("a tableau as solver", nfe=nfe, steps=steps, grid=grid)
        tableau = ds.Tableau.load(solver)
    else:
        tableau = ds.plan(net, solver, nfe=_budget(nfe, steps), steps=steps, grid=grid)
    shape, cond = _batch(model, label, num)
    torch.set_num_threads(1)  # these networks are too small to gain from more, and lose much on busy cores
    began = time.perf_counter()
    run = ds.solve(
        net, shape, solver=tableau, seed=seed, cond=cond, progress=_bar(progress), check=True, parallel=picard
    )
    seconds = time.perf_counter() - began
    rounds = {"parallel": f"{run.parallel.rounds} rounds in place of {tableau.nfe} calls"} if run.parallel else {}
    _write(out, encoded(run.x.numpy(), out.suffix))
    _report(
        model=f"{model}, class {label}" if cond else model,
        solver=f"{solver}, {tableau.steps} steps, {run.nfe} network calls",
        method=tableau.solver,  # what "auto" chose
        **rounds,
        samples=f"{num} in {seconds:.2f} seconds, seed {seed}",
        file=out,
    )


@app.command()
@_plain_errors()
def bench(
    model: Annotated[str, typer.Option(help="digits or mixture-2d, as \"mixture-2d(path='edm')\".")] = "digits",
    solver: Annotated[list[str] | None, typer.Option(help="As in `sample`; may be repeated. [default: auto]")] = None,
    nfe: Annotated[list[int] | None, typer.Option(help="As in `sample`; may be repeated. [default: 5, 10, 20]")] = None,
    grid: GridSpec = None,
    num: Annotated[int, typer.Option(min=1, help="Samples of each solver, budget and seed.")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 250,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 1,
    label: Label = "all",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance, of the digits.")] = None,
    exact: Annotated[int, typer.Option(min=0, help="Samples whose endpoint error is taken.")] = 256,
    out: Annotated[
        Path | None, typer.Option(help="A .jsonl file, one line per result; a second run goes on from it.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="A .png file for a plot.")] = None,
    progress: Progress = None,
) -> None:
    """Distance to the data, and to the exact endpoints, against network calls, as tables in Markdown."""
    import torch

    import diffsolve as ds
    from diffsolve import metrics
    from diffsolve.metrics.data import DATA

    for file, suffix in ((out, ".jsonl"), (plot, ".png")):
        if file is not None:
            _check_out(file, suffix)
    net, name = ds.load(model), model.partition("(")[0].strip().lower()
    if name != "digits" and guidance is not None:
        raise ValueError(f"guidance={guidance!r}: only the model digits has classes")
    shape, cond = _batch(model, label, 10)
    torch.set_num_threads(1)
    options: dict[str, Any] = {} if grid is None else {"grid": grid}
    table = metrics.sweep(
        net, shape[1:], reference=DATA[name](), solvers=solver or ["auto"], nfe=nfe or (5, 10, 20), num=num,
        batch=batch, seeds=seeds, cond=cond, guidance=guidance, exact=exact, out=out, progress=_bar(progress),
        **options,
    )  # fmt: skip
    typer.echo(table)
    if plot is not None:
        table.plot(plot)


@app.command()
@_plain_errors()
def tune(
    model: Annotated[str, typer.Option(help="A reference model, as in `sample`.")] = "digits",
    nfe: Annotated[int, typer.Option(help="Network calls of the run that is learned.")] = 6,
    solver: Annotated[str, typer.Option(help="What to begin with: a solver of one call a step.")] = "auto",
    grid: GridSpec = None,
    out: Annotated[Path, typer.Option(help="A .json file, for `diffsolve sample --solver`.")] = Path("tuned.json"),
    num: Annotated[int, typer.Option(min=2, help="Noises to learn from and to validate on.")] = 256,
    label: Label = "all",
    teacher: Annotated[int, typer.Option(help="Network calls of the accurate run.")] = 100,
    iterations: Annotated[int, typer.Option(help="Updates in all.")] = 300,
    batch: Annotated[int, typer.Option(help="Noises in each update.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the noises.")] = 0,
    progress: Progress = None,
) -> None:
    """Learn the times and weights of a run of few calls. A run that was cut off goes on where it was."""
    import torch

    import diffsolve as ds
    from diffsolve.tuning import fit

    _check_out(out, ".json")
    net = ds.load(model)
    shape, cond = _batch(model, label, num)
    torch.set_num_threads(1)
    tuning = fit(
        net, shape, nfe=nfe, solver=solver, grid=grid, teacher=teacher, iterations=iterations, batch=batch,
        cond=cond, seed=seed, checkpoint=f"{out}.checkpoint", progress=_bar(progress),
    )  # fmt: skip
    tuning.tableau.save(out)
    _report(
        method=tuning.tableau.solver,
        error=f"{tuning.before:.4g} -> {tuning.after:.4g}, relative, on held-out noises",
        cost=f"{tuning.calls} network calls in {tuning.seconds:.1f} seconds",
        file=out,
    )


@app.command()
@_plain_errors()
def logprob(
    model: Annotated[str, typer.Option(help="A reference model.")] = "digits",
    data: Annotated[str, typer.Option(help="A data set of integers: digits.")] = "digits",
    out: Annotated[Path, typer.Option(help="A .jsonl file, one line per sample; a second run goes on from it.")] = Path(
        "logprob.jsonl"
    ),
    num: Annotated[int | None, typer.Option(min=1, help="Samples from the beginning. [default: all]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 64,
    trace: Annotated[str, typer.Option(help="exact, 'hutchinson(probes=8)' or hutch++.")] = "hutchinson(probes=8)",
    tol: Annotated[float, typer.Option(help="Tolerance of the adaptive solver, dopri5.")] = 1e-4,
    dequantisation: Annotated[str, typer.Option(help="uniform or truncated-normal.")] = "uniform",
    stop: Annotated[float | None, typer.Option(help="Early-stopping time. [default: the data itself]")] = None,
    conditional: Annotated[bool, typer.Option(help="Give the network the labels.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the probes and the dequantisation.")] = 0,
) -> None:
    """Bits per dimension of a data set under a reference model, with its error bar."""
    import torch

    import diffsolve as ds
    from diffsolve.metrics.bits import evaluate

    _check_out(out, ".jsonl")
    torch.set_num_threads(1)
    about = {"model": model, "trace": trace, "tol": tol, "dequantisation": dequantisation, "stop": stop, "seed": seed}
    count, mean, error = evaluate(
        ds.load(model), data, out, num=num, batch=batch, conditional=conditional, about=about, trace=trace,
        solver=ds.Adaptive("dopri5", rtol=tol, atol=tol), dequantisation=dequantisation, stop=stop, seed=seed,
    )  # fmt: skip
    _report(samples=count, bits=f"{mean:.4f} +- {error:.4f} per dimension", file=out)


@app.command()
@_plain_errors()
def plan(
    path: Annotated[str, typer.Option(help="A path with options; see `diffsolve paths`.")] = "condot",
    solver: SolverSpec = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    grid: GridSpec = None,
    out: Annotated[Path | None, typer.Option(help="A .json file to save it in too, for `Tableau.load`.")] = None,
) -> None:
    """Print the weights of a run, call by call, before any network is called."""
    import diffsolve as ds

    tableau = ds.plan(path, solver, nfe=_budget(nfe, steps), steps=steps, grid=grid)
    if out is not None:
        _check_out(out, ".json")
        tableau.save(out)
    typer.echo(tableau)


@app.command()
def solvers() -> None:
    """List the solvers: what --solver accepts."""
    import diffsolve as ds

    def on_condot(solver: ds.solvers.Solver) -> ds.Tableau:
        return ds.plan("condot", solver, steps=12)

    _tables(
        ds.solvers.registry,
        {
            "order": lambda solver: solver.order,
            "calls": lambda solver: solver.calls,
            "history": lambda solver: on_condot(solver).history,
            "frame": lambda solver: on_condot(solver).frame[on_condot(solver).nfe // 2],  # away from the ends
        },
    )


@app.command()
def grids() -> None:
    """List the grids: what --grid accepts."""
    import diffsolve as ds

    _tables(ds.grids.registry, {"is": str})


@app.command()
def paths() -> None:
    """List the paths: what --path accepts."""
    import diffsolve as ds

    _tables(ds.paths.registry, {"grid": lambda path: path.grid})


@train.command("digits")
@_plain_errors()
def train_digits(
    out: Annotated[Path, typer.Option(help="The file of weights to write.")] = Path("digits.safetensors"),
    steps: Annotated[int, typer.Option(help="Number of updates in all.")] = 4000,
    batch: Annotated[int, typer.Option(help="Images in each update.")] = 128,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-3,
    ema: Annotated[float, typer.Option(help="Decay of the moving average of the weights.")] = 0.999,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Stop after that long; the same command goes on.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside the file, if there is one.")] = True,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 500,
    progress: Progress = None,
) -> None:
    """Train the model of handwritten digits, on the CPU. A run that was stopped goes on where it was."""
    from diffsolve.reference import digits

    report = digits.train(
        out, steps=steps, batch=batch, lr=lr, ema=ema, seed=seed, minutes=minutes, resume=resume,
        checkpoint_every=checkpoint_every, progress=_bar(progress),
    )  # fmt: skip
    done = "finished" if report["finished"] else "stopped; the same command goes on"
    _report(
        steps=f"{report['steps']} of {steps} in {report['seconds']:.1f} seconds, {done}",
        loss=f"{report['loss']:.4f}",
        file=out if report["finished"] else f"{out}.checkpoint",
    )


def _budget(nfe: int | None, steps: int | None) -> int | None:
    return NFE if nfe is None and steps is None else nfe


def _batch(model: str, label: str, num: int) -> tuple[tuple[int, ...], dict[str, Any] | None]:
    """The shape of so many samples of a reference model, and their conditions."""
    import torch

    name = model.partition("(")[0].strip().lower()
    if name != "digits" and label != "all":
        raise ValueError(f"class={label!r}: only the model digits has classes")
    cond = {"label": torch.tensor(_labels(label, num))} if name == "digits" else None
    return (num, *SHAPES[name]), cond


def _labels(which: str, num: int) -> list[int]:
    """The class of each sample; -1 tells the network that it has none."""
    accepted = {"all": tuple(range(10)), "none": (-1,), **{str(digit): (digit,) for digit in range(10)}}
    if which not in accepted:
        raise ValueError(f"class={which!r}: accepted: {', '.join(accepted)}")
    turn = accepted[which]
    return [turn[i % len(turn)] for i in range(num)]


def _bar(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _report(**lines: object) -> None:
    for name, value in lines.items():
        typer.echo(f"{name:8} {value}")


def _tables(registry: Registry[Any], columns: dict[str, Callable[[Any], object]]) -> None:
    """All names of one kind, with columns computed from what they name; a table for those that share a description.

    Above it stand the options that all of them have, with the most common defaults; the others stand beside a name.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(markup=False, highlight=False)
    families: dict[str, dict[str, dict[str, str]]] = {}
    for name in registry.names():
        make = registry.entries[name]
        about = (getdoc(make) or getdoc(type(registry.resolve(name))) or "").partition("\n")[0]
        options = {p.name: f"{p.name}={p.default!r}" for p in signature(make).parameters.values()}
        families.setdefault(about, {})[name] = options
    for about, members in families.items():
        common = set.intersection(*map(set, members.values()))
        first, *_ = members.values()
        shared = [Counter(m[key] for m in members.values()).most_common(1)[0][0] for key in first if key in common]
        own = {name: [text for text in options.values() if text not in shared] for name, options in members.items()}
        last = "own options" if any(own.values()) else ""
        heads = [Column(registry.kind, no_wrap=True), *(Column(head, overflow="fold") for head in (*columns, last))]
        table = Table(*heads, box=None, padding=(0, 0, 0, 2))
        for name in members:
            value = registry.resolve(name)
            table.add_row(name, *(str(cell(value)) for cell in columns.values()), ", ".join(own[name]))
        console.print(about)
        if shared:
            console.print("Options:", ", ".join(shared))
        console.print(table)
        console.print()


def _check_out(out: Path, *accepted: str) -> None:
    if out.suffix.lower() not in accepted:
        raise ValueError(f"out={str(out)!r}: a file ending in {' or '.join(accepted)} is accepted")
    if out.is_dir():
        raise ValueError(f"out={str(out)!r} is a directory: a file is accepted")
    if not out.parent.is_dir():
        raise ValueError(f"out={str(out)!r}: there is no directory {str(out.parent)!r}")


def _write(out: Path, data: bytes) -> None:
    """The whole file or none of it."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
