"""The commands that run something: sample, tune, logprob, plan, distill and train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsolve.cli.options import (
    Force,
    GridSpec,
    Label,
    ModelSpec,
    Nfe,
    Progress,
    SolverSpec,
    Steps,
    bar,
    batch_of,
    budget,
    budgets,
    check_out,
    plain_errors,
    report,
)

MOST_PLANNED = 2000  # calls: seconds to plan and weigh, and as many lines

__all__ = ["distill", "logprob", "plan", "sample", "train_digits", "train_fashion", "tune"]


@plain_errors()
def sample(
    model: ModelSpec = "digits",
    solver: Annotated[
        str, typer.Option(help="A solver with options, as 'ddim(eta=0.5)'; or a .json file of `plan` or `tune`.")
    ] = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    grid: GridSpec = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Number of samples.")] = 64,
    label: Label = "all",
    guidance: Annotated[
        float | None,
        typer.Option(help="Scale of classifier-free guidance, two network calls in one; students told it need one."),
    ] = None,
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
    """Draw samples from a reference model, or from a student's file, and write them to a file."""
    import torch

    import diffsolve as ds
    from diffsolve.cli.pictures import encoded
    from diffsolve.common.files import write_whole
    from diffsolve.execute.plan import refuse
    from diffsolve.reference.told import WithScale
    from diffsolve.tuning.family import learned_solver

    check_out(out, ".png", ".npy")
    if tol is not None and parallel is None:
        raise ValueError(f"tol must be given together with parallel, got {tol!r} alone")
    picard = None if parallel is None else ds.Picard(window=parallel, tol=ds.Picard.tol if tol is None else tol)
    net, kind, own = _loaded(model)
    shape, cond = batch_of(kind, label, num)
    if guidance is not None and not cond:
        raise ValueError(f"guidance must be left out for a model without classes, got {guidance!r}")
    if cond and guidance is not None and isinstance(net.net, WithScale):
        cond, guidance = {**cond, "scale": guidance}, None
    solver = own if solver == "auto" else solver
    run_by = learned_solver(solver) if solver.endswith(".json") else solver
    if isinstance(run_by, ds.Tableau):
        refuse("a tableau as solver", nfe=nfe, steps=steps, grid=grid)
        tableau = run_by
    else:
        scale = 1.0 if guidance is None else guidance
        tableau = ds.plan(net, run_by, nfe=budget(nfe, steps), steps=steps, grid=grid, guidance=scale, shape=shape)
    torch.set_num_threads(1)  # these networks are too small to gain from more, and lose much on busy cores
    began = time.perf_counter()
    run = ds.solve(
        net, shape, solver=tableau, seed=seed, cond=cond, guidance=guidance, progress=bar(progress), check=True,
        parallel=picard,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    rounds = {"parallel": f"{run.parallel.rounds} rounds in place of {tableau.nfe} calls"} if run.parallel else {}
    decode = getattr(net.net, "decode", None)  # of latents
    images = run.x if decode is None else decode(run.x)
    write_whole(out, encoded(images.numpy(), out.suffix))
    report(
        model=f"{model}, class {label}" if cond else model,
        solver=f"{solver}, {tableau.steps} steps, {run.nfe} network calls",
        method=tableau.solver,  # the choice of "auto"
        **rounds,
        samples=f"{num} in {seconds:.2f} seconds, seed {seed}",
        file=out,
    )


@plain_errors()
def tune(
    model: ModelSpec = "digits",
    nfe: Annotated[
        str, typer.Option(help="Network calls of the run that is learned; '4,6,8' or '4-12' for a family of runs.")
    ] = "6",
    solver: Annotated[
        str | None,
        typer.Option(help="What to begin with: a solver of one call a step. [default: the best of a few in a pilot]"),
    ] = None,
    grid: GridSpec = None,
    out: Annotated[Path, typer.Option(help="A .json file, for `diffsolve sample --solver`.")] = Path("tuned.json"),
    num: Annotated[int, typer.Option(min=2, help="Noises to learn from and to validate on.")] = 256,
    label: Label = "all",
    teacher: Annotated[int, typer.Option(help="Network calls of the accurate run.")] = 100,
    iterations: Annotated[int | None, typer.Option(help="Updates, at most. [default: the method's]")] = None,
    batch: Annotated[int | None, typer.Option(help="Noises at once. [default: the method's]")] = None,
    method: Annotated[str | None, typer.Option(help="least-squares, adam, differences, gits, ays or dpm-v3.")] = None,
    also: Annotated[list[str] | None, typer.Option(help="Learned beside times and weights: told, blurs.")] = None,
    together: Annotated[int, typer.Option(min=1, help="Calls made as one, after the first.")] = 1,
    history: Annotated[int | None, typer.Option(help="Outputs that a row may use. [default: all, at most 11]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noises.")] = 0,
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Learn the times and weights of a run of few calls. A run that was cut off goes on where it was."""
    import torch

    import diffsolve as ds
    from diffsolve.tuning import Tunings, fit

    check_out(out, ".json")
    net = ds.load(model)
    shape, cond = batch_of(model, label, num)
    torch.set_num_threads(1)
    how: Any = {"method": method} if method else {}
    found = fit(
        net, shape, nfe=budgets(nfe), solver=solver, grid=grid, teacher=teacher, iterations=iterations, batch=batch,
        also=tuple(also or ()), together=together, history=history, cond=cond, seed=seed,
        checkpoint=f"{out}.checkpoint", out=out, force=force, progress=bar(progress), **how,
    )  # fmt: skip
    for tuning in found.values() if isinstance(found, Tunings) else [found]:
        report(
            method=tuning.tableau.solver,
            error=f"{tuning.before} -> {tuning.after}, relative, on held-out noises",
            cost=f"{tuning.calls} network calls in {tuning.seconds:.1f} seconds",
            file=out,
        )


@plain_errors()
def logprob(
    model: ModelSpec = "digits",
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
    force: Force = False,
    progress: Progress = None,
) -> None:
    """Bits per dimension of a data set under a reference model, with its error bar."""
    import torch

    import diffsolve as ds
    from diffsolve.common.fingerprint import weights_of
    from diffsolve.metrics.bits import evaluate

    check_out(out, ".jsonl")
    torch.set_num_threads(1)
    net = ds.load(model)
    about = {"model": model, "trace": trace, "tol": tol, "dequantisation": dequantisation, "stop": stop, "seed": seed}
    about["network"] = f"{weights_of(net.net):x}"  # the file of weights may be another one tomorrow
    count, mean, error = evaluate(
        net, data, out, num=num, batch=batch, conditional=conditional, about=about, trace=trace,
        solver=ds.Adaptive("dopri5", rtol=tol, atol=tol), dequantisation=dequantisation, stop=stop, seed=seed,
        force=force, progress=bar(progress),
    )  # fmt: skip
    report(samples=count, bits=f"{mean:.4f} +- {error:.4f} per dimension", file=out)


@plain_errors()
def plan(
    path: Annotated[str, typer.Option(help="A path with options; see `diffsolve paths`.")] = "condot",
    solver: SolverSpec = "auto",
    nfe: Nfe = None,
    steps: Steps = None,
    grid: GridSpec = None,
    predicts: Annotated[str, typer.Option(help="What the network predicts, on which auto and designed depend.")] = "v",
    out: Annotated[Path | None, typer.Option(help="A .json file to save it in too, for `Tableau.load`.")] = None,
) -> None:
    """Print the weights of a run, call by call, before any network is called.

    The last column is how far an error of 1 in the network's output at that call moves the end, and the last line how
    far the run is expected to end from the network's own flow; both on paper, for Gaussian data (docs/designed.md).
    """
    import diffsolve as ds
    from diffsolve.common.checks import required

    for name, count in (("nfe", nfe), ("steps", steps)):
        few = count is None or count <= MOST_PLANNED
        required(few, name, count, f"at most {MOST_PLANNED} here, where every call is printed (ds.plan takes more)")
    if out is not None:
        check_out(out, ".json")
    tableau = ds.plan(path, solver, nfe=budget(nfe, steps), steps=steps, grid=grid, predicts=predicts)
    if out is not None:
        tableau.save(out)
    typer.echo(tableau.table(("end/error", tableau.amplification(predicts=predicts, path=path))))
    if not tableau.stochastic:
        error = tableau.expected_error(predicts=predicts, path=path)
        typer.echo(f"expected distance from the own end of a {predicts} network that errs by 0.03: {error:.3g}")


@plain_errors()
def distill(
    method: Annotated[str, typer.Argument(help="How: trajectory, lagrangian, consistency, ..; docs/distillation.md.")],
    model: Annotated[str, typer.Option(help="The teacher: digits or fashion.")] = "digits",
    out: Annotated[Path, typer.Option(help="The file of weights to write.")] = Path("student.safetensors"),
    steps: Annotated[int | None, typer.Option(help="Number of updates in all. [default: the recipe's]")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in each update. [default: the recipe's]")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate. [default: the recipe's]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Stop after that long; the same command goes on.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside the file, if there is one.")] = True,
    progress: Progress = None,
) -> None:
    """Distil a reference model into a student of a few calls; `sample --model student.safetensors` draws from it."""
    import torch

    from diffsolve.distill import distill_reference

    torch.set_num_threads(1)
    given = {name: value for name, value in (("steps", steps), ("batch", batch), ("lr", lr)) if value is not None}
    training = distill_reference(
        method, out, model, seed=seed, minutes=minutes, resume=resume, progress=bar(progress), **given
    )
    _report_training(training, steps, out)


def _loaded(model: str) -> tuple[Any, str, str]:
    """A model, the kind of its samples, and the solver that goes with it: a reference model or a student in a file."""
    import diffsolve as ds

    if not model.endswith(".safetensors"):
        return ds.load(model), model, "auto"
    about = ds.distill.about(model)
    return ds.distill.load_student(model), about["model"], about["sampler"]


@plain_errors()
def train_digits(
    out: Annotated[Path, typer.Option(help="The file of weights to write.")] = Path("digits.safetensors"),
    steps: Annotated[int, typer.Option(help="Number of updates in all.")] = 4000,
    batch: Annotated[int, typer.Option(help="Images in each update.")] = 128,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-3,
    ema: Annotated[float, typer.Option(help="Decay of the moving average of the weights.")] = 0.999,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Stop after that long; the same command goes on.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside the file, if there is one.")] = True,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 30.0,
    progress: Progress = None,
) -> None:
    """Train the model of handwritten digits, on the CPU. A run that was stopped goes on where it was."""
    from diffsolve.training import digits

    training = digits.train(
        out, steps=steps, batch=batch, lr=lr, ema=ema, seed=seed, minutes=minutes, resume=resume,
        checkpoint_every=checkpoint_every, progress=bar(progress),
    )  # fmt: skip
    _report_training(training, steps, out)


@plain_errors()
def train_fashion(
    objective: Annotated[
        str, typer.Option(help="flow, noise, edm, latent, or the autoencoder of the latents.")
    ] = "flow",
    out: Annotated[
        Path | None, typer.Option(help="The file of weights to write. [default: fashion-OBJECTIVE.safetensors]")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of updates in all. [default: the recipe's]")] = None,
    batch: Annotated[int | None, typer.Option(help="Images in each update. [default: the recipe's]")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate. [default: the recipe's]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where the idx files are. [default: the Debian package's]")
    ] = None,
    autoencoder: Annotated[Path | None, typer.Option(help="For latent. [default: the one that ships]")] = None,
    start: Annotated[Path | None, typer.Option(help="Another objective's weights, to begin with.")] = None,
    log: Annotated[Path | None, typer.Option(help="A .jsonl file of the loss.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after that long; the same command goes on.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint beside the file, if there is one.")] = True,
    progress: Progress = None,
) -> None:
    """Train a model of Fashion-MNIST, on the CPU. A run that was stopped goes on where it was."""
    import torch

    from diffsolve.training import fashion

    torch.set_num_threads(1)  # small layers gain little from more, and lose much on busy cores
    file = out or Path(f"fashion-{objective}.safetensors")
    given = {name: value for name, value in (("steps", steps), ("batch", batch), ("lr", lr)) if value is not None}
    training = fashion.train(
        objective, file, seed=seed, folder=folder, autoencoder=autoencoder, start=start, log=log, minutes=minutes,
        resume=resume, progress=bar(progress), **given,
    )  # fmt: skip
    _report_training(training, steps, file)


def _report_training(training: dict[str, Any], steps: int | None, out: Path) -> None:
    total = f" of {steps}" if steps else ""  # else the recipe's
    how = "finished" if training["finished"] else "stopped; the same command goes on"
    report(
        steps=f"{training['steps']}{total} in {training['seconds']:.1f} seconds, {how}",
        loss=f"{training['loss']:.4f}",
        file=out if training["finished"] else f"{training['out']}.checkpoint",
    )
