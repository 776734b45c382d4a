r"""Learned runs against the best of those that are written down.

    python benchmarks/tune.py mixtures     # results/tune.md: twenty minutes or so of an idle core; or --path
    python benchmarks/tune.py digits       # results/tune_digits.md: twenty or so
    python benchmarks/tune.py statistics   # results/tune_statistics.md: DPM-Solver-v3's on the digits; one or so
    python benchmarks/tune.py --quick      # little of all, to the terminal

On exact mixtures, as in `accuracy.py`: the mean over 2048 particles of |x - x*| over the root mean square norm of the
data, in float64: so many, as one that ends in another mode counts as much as thousands. `best` is the least error of
all our configurations that `accuracy.py` tries, picked after the fact in each cell; `tuned` has seen other noises, 4096
of them, and a run of 100 calls in the place of the exact flow.

On the digits network, by classes in turn: the same distance to a run of 100 calls over noises that the learning had no
part in, and the Frechet distance between the pixels (64 of them, as they are) of the samples and of the data set.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path as FilePath

import torch
from endpoint import ours, search
from endpoint.problems import COURSES, Course, Problem, reduced
from endpoint.runner import errors, run_together
from record import Recorder, Table, read, stamped
from torch import Tensor

import diffsolve as ds
from diffsolve.reference import digits, mixture_model
from diffsolve.tuning import Tunings, dpm_v3, fit
from diffsolve.tuning.pilot import Start
from diffsolve.tuning.runs import Noises

HERE = FilePath(__file__).resolve().parent
TARGETS = ("ring", "iso64")
BUDGETS = (4, 5, 6, 8, 10)
AUTO = [("auto", grid) for grid in ("angle", "angle(scale=2)", "angle(scale=5)", "uniform-u")]
"""The first is what the tables call auto."""
PARTICLES = 2048
FRESH = 512
"""Images of the digits network that the runs are compared on."""
LEARNED = {"tuned": (4, 6), "tuned, also told and blurs": (4, 6)}
"""Budgets of what is learned on the digits network."""
RIVALS = (
    "auto", "euler", "ab-2", "ab-3", "abm-2", "abm-3", "deis-2", "deis-3", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3",
    "ipndm-2", "ipndm-4", "res-2m", "res-3m", "heun", "midpoint",
)  # fmt: skip
"""The solvers that are tried on the digits network, each on its own grid."""


def best_of_all(course: Course, problem: Problem, nfe: int) -> tuple[float, float, str]:
    """The errors of auto and of the best configuration, and its name."""
    shortlist = search.load(HERE / "results/shortlist.json", course.name)
    pairs = list(dict.fromkeys([*AUTO, *ours.POINTS, *ours.named(course.name), *shortlist]))
    found = errors(course, pairs, nfe, [problem])[problem.name]
    least = min(range(len(pairs)), key=lambda c: (found[c] != found[c], found[c]))  # nan last
    return found[0], found[least], " @ ".join(pairs[least])


def learned(course: Course, problem: Problem, budgets: Sequence[int], noises: int) -> Tunings:
    """Runs learned from other noises; in the span of the means, as the particles are (`endpoint.problems.reduced`)."""
    z = torch.randn((noises, problem.dim), generator=torch.Generator().manual_seed(11), dtype=torch.float64)
    mixture, z = reduced(problem.full, z)
    model = mixture_model(mixture, course.path, "velocity" if course.name == "flow" else "noise")
    return fit(model, noise=z * course.path.prior_std(), nfe=budgets, stop=course.stop, seed=0)


def mixtures(
    recorder: Recorder, paths: Sequence[str], targets: Sequence[str], budgets: Sequence[int], noises: int
) -> list[str]:
    columns = {
        "auto": ".1e", "best": ".1e", "which": "", "tuned": ".1e", "tuned / best": ".2f", "where it learned": ".1e",
        "seconds": ".0f",
    }  # fmt: skip
    table = recorder.table("mixtures", ["path", "target", "NFE"], columns)
    cache = HERE / ".cache"
    cache.mkdir(exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    for path, target in itertools.product(paths, targets):
        if all(table.value([path, target, nfe], "tuned") is not None for nfe in budgets):
            continue
        course, problem = COURSES[path], Problem(target, PARTICLES, cache)
        tunings = learned(course, problem, budgets, noises)
        for nfe, tuning in tunings.items():
            auto, best, name = best_of_all(course, problem, nfe)
            x = run_together([tuning.tableau], problem, problem.start(course))
            tuned = float(problem.error(course, x)[0])
            case = [path, target, nfe]
            table.add(case, [auto, best, f"`{name}`", tuned, tuned / best, tuning.learning, tuning.seconds])
    return [*table.markdown(), "", *means(table, paths, targets, budgets)]


def means(table: Table, paths: Sequence[str], targets: Sequence[str], budgets: Sequence[int]) -> list[str]:
    """The geometric means over paths and targets."""
    lines = ["| NFE | tuned / best | tuned / auto | the worst tuned / best |", "|---|---|---|---|"]
    for nfe in budgets:
        cases = [[path, target, nfe] for path, target in itertools.product(paths, targets)]
        tuned, best, auto = (torch.tensor([table.value(c, name) for c in cases]) for name in ("tuned", "best", "auto"))
        over = [float((tuned / other).log().mean().exp()) for other in (best, auto)]
        lines.append(f"| {nfe} | {over[0]:.2f} | {over[1]:.2f} | {float((tuned / best).max()):.2f} |")
    return lines


def frechet(x: Tensor, y: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2) of the Gaussians with the moments of two samples (n, ...)."""
    a, b = x.flatten(1).double(), y.flatten(1).double()
    C, D = a.T.cov(), b.T.cov()
    values, vectors = torch.linalg.eigh(C)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ D @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + C.trace() + D.trace() - 2 * mixed)


def digit_images(
    recorder: Recorder, wanted: Mapping[str, Sequence[int]], more: Sequence[int], iterations: int, n: int, teacher: int
) -> list[str]:
    """Learned runs beside fixed ones; of `more` budgets the fixed ones alone."""
    model, (images, _) = ds.load("digits"), digits.load_data()
    cond = {"label": torch.arange(n) % 10}
    x = ds.Key(0).normal((n, 1, 8, 8), row=1)  # as `tune` draws them, for the longest run to be made once
    ends = ds.sample(model, noise=x, nfe=teacher, cond=cond)
    fresh = ds.sample(model, (FRESH, 1, 8, 8), nfe=teacher, seed=1, cond={"label": torch.arange(FRESH) % 10})
    norm = fresh.flatten(1).norm(dim=1).square().mean().sqrt()

    def row(solver: str | ds.Tableau, nfe: int | None) -> tuple[float, float]:
        label = {"label": torch.arange(FRESH) % 10}
        found = ds.sample(model, (FRESH, 1, 8, 8), solver=solver, nfe=nfe, seed=1, cond=label)
        error = float((found - fresh).flatten(1).norm(dim=1).mean() / norm)
        return error, frechet(found, images)

    table = recorder.table("digits", ["NFE", "solver"], {"distance": ".4f", "Frechet": ".3f", "seconds": ".0f"})
    table.add([teacher, "the teacher"], [0.0, frechet(fresh, images), None])
    for nfe in sorted({*more, *itertools.chain(*wanted.values())}):
        rivals = {name: row(name, nfe) for name in RIVALS}
        best = min(rivals, key=lambda name: rivals[name][0])
        table.add([nfe, "`auto`"], [*rivals["auto"], None])
        table.add([nfe, f"best: `{best}`"], [*rivals[best], None])
    how = {"noise": x, "teacher": ends, "cond": cond, "iterations": iterations, "batch": 64, "seed": 0}
    for name, budgets in wanted.items():
        tunings = fit(model, nfe=budgets, also=("told", "blurs") if "also" in name else (), **how)
        for nfe in budgets:
            table.add([nfe, name], [*row(tunings[nfe].tableau, None), tunings[nfe].seconds])
    return table.markdown()


def statistics(recorder: Recorder, budgets: Sequence[int], n: int, fresh: int, teacher: int) -> list[str]:
    """Weights by measured statistics at the times of other solvers, the best on the noises they were measured from."""
    model, table = ds.load("digits"), recorder.table("statistics", ["NFE", "times of"], {
        "its distance": ".4f", "dpm-v3": ".4f", "which": "", "defect": ".3f",
    })  # fmt: skip
    few = ds.Key(0).normal((n, 1, 8, 8), row=1)
    others = ds.Key(1).normal((fresh, 1, 8, 8), row=1)

    def ends(x: Tensor, solver: str | ds.Tableau, nfe: int | None = None) -> Tensor:
        return ds.sample(model, noise=x, solver=solver, nfe=nfe, cond={"label": torch.arange(len(x)) % 10})

    accurate = {len(x): ends(x, "auto", teacher) for x in (few, others)}

    def distance(x: Tensor, table: ds.Tableau) -> float:
        far, size = (part.flatten(1).norm(dim=1) for part in (ends(x, table) - accurate[len(x)], accurate[len(x)]))
        return float(far.mean() / size.square().mean().sqrt())

    about = Noises(few, {"label": torch.arange(n) % 10}, ds.Guidance(1.0))
    found = dpm_v3.measured(model, about, ds.plan(model, nfe=teacher), ds.Key(0))
    for nfe, name in itertools.product(budgets, ("auto", "unipc-3", "dpmpp-2m", "ab-3(variable='lambda')")):
        own = ds.plan(model, name, nfe=nfe, grid="quadratic" if name.startswith("ab") else None)
        runs = dpm_v3.starts(model.path, found, [Start(own, name)])
        best = min(runs, key=lambda run: distance(few, run.tableau))
        u = own.grid[:, 2] / own.grid[:, 1:].sum(1)
        points = int(best.name.split("(")[1][0])
        raw = dpm_v3.rows(found if "s=0" not in best.name else replace(found, s=0 * found.s), u, points, mended=False)
        off = max(math.hypot(*dpm_v3.defect(row, u[0], u[i + 1])) for i, row in enumerate(raw))
        table.add([nfe, f"`{name}`"], [distance(others, own), distance(others, best.tableau), f"`{best.name}`", off])
    return table.markdown()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learned runs against the best of the others.")
    parser.add_argument(
        "part", nargs="?", choices=("mixtures", "digits", "statistics"), help="one of them; all if not given"
    )
    parser.add_argument("--path", choices=COURSES, help="of the mixtures; all if not given")
    parser.add_argument("--resume", action="store_true", help="keep the mixtures that are recorded")
    parser.add_argument("--quick", action="store_true", help="little of everything, and no file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*nothing learned is better")
    if options.quick:
        mixtures(Recorder("tune", None), ["flow"], ["ring"], [4, 5], 128)
        digit_images(Recorder("tune_digits", None), {"tuned, also told and blurs": [4]}, [], 2, 32, 30)
        statistics(Recorder("tune_statistics", None), [4], 16, 17, 20)
        return
    paths, recorder = (
        [options.path] if options.path else list(COURSES),
        partial(Recorder, "tune", resume=options.resume),
    )
    parts = {
        "mixtures": ("tune.md", lambda: mixtures(recorder(), paths, TARGETS, BUDGETS, 4096)),
        "digits": ("tune_digits.md", lambda: digit_images(Recorder("tune_digits"), LEARNED, [8, 12], 20, 384, 100)),
        "statistics": (
            "tune_statistics.md",
            lambda: statistics(Recorder("tune_statistics"), [4, 6, 8, 11], 64, FRESH, 100),
        ),
    }
    for name, (file, measured) in parts.items():
        if options.part in (None, name):
            began = time.perf_counter()
            found = measured()
            records = HERE / "results" / file.replace(".md", ".jsonl")
            about = f"`benchmarks/tune.py` says how; {stamped(read(records))}."
            lines = [f"# Learned runs: {name}", "", about, "", *found, ""]
            (HERE / "results" / file).write_text("\n".join(lines))
            print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
