r"""Error against network calls, on targets whose exact answer is known.

From the same noise, in float64: the mean over particles of |x - x*| over the root mean square norm of the data,
where the run stops. x* is the probability flow of an exact mixture, solved to 1e-12 (1e-10 in more than 64 dimensions).

    python benchmarks/accuracy.py            # all of it
    python benchmarks/accuracy.py --quick    # two targets, four budgets, no shortlist
    python benchmarks/accuracy.py --check    # the shortcuts taken here, against the library
    python benchmarks/accuracy.py --rule     # auto again, beside the best of results/accuracy.json: some minutes
    python benchmarks/accuracy.py --join     # auto again, and what the last run lacks
    python benchmarks/accuracy.py --search   # make results/shortlist.json anew, on the targets for tuning

| path | start          | stop          |
|------|----------------|---------------|
| ve   | sigma = 80     | sigma = 0.002 |
| vp   | row 999        | row 0         |  (the linear table of 1000 betas)
| flow | t = 0, noise   | t = 1, data   |  (CondOT)

Configurations are chosen on the targets marked `tune` and reported on the others. The parts are in `endpoint/`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path as FilePath

import torch
from endpoint import ours, peers, search
from endpoint.plot import plot
from endpoint.problems import COURSES, PARTICLES, TARGETS, TUNE, Bundle, Course, Problem
from endpoint.runner import errors, lacking, measure
from endpoint.tables import Study, cells, markdown, rules, summary
from record import Recorder

HERE = FilePath(__file__).resolve().parent
BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)


def check(cache: FilePath) -> None:
    """That the shortcuts taken here change nothing: against the library's executor and the full dimension."""
    import diffsolve as ds
    from diffsolve.reference import mixture_model

    for course, name in itertools.product(COURSES.values(), ("iso64", "aniso8")):
        problem = Problem(name, 64, cache)
        generator = torch.Generator().manual_seed(7)
        x = torch.randn((64, problem.dim), generator=generator, dtype=torch.float64) * course.path.prior_std()
        model = mixture_model(problem.full, course.path, "velocity" if course.name == "flow" else "noise")
        exact = problem.full.flow(x, course.start, course.end, tol=1e-10)
        for solver, grid in (("auto", "angle"), ("heun", "uniform-theta"), ("unipc-3", "uniform-theta")):
            found = ds.sample(model, noise=x, solver=solver, nfe=10, grid=grid, stop=course.stop)
            library = float((found - exact).norm(dim=-1).mean() / problem.rms)
            here = errors(course, [(solver, grid)], 10, [problem])[name][0]
            assert abs(library - here) < 1e-6 * library + 1e-8, (course.name, name, solver, library, here)
    print("the shortcuts agree with the library")


def run(
    course: Course, budgets: Sequence[int], problems: Sequence[Problem], shortlist: FilePath | None, known: Study
) -> Study:
    """Every configuration on one course, the family's if a shortlist is given; auto, and what is not known yet."""
    began = time.perf_counter()
    study = {"auto": ours.auto(course, budgets, problems)}
    wanted = {
        "points": ours.POINTS,
        "named": ours.named(course.name),
        "family": search.load(shortlist, course.name) if shortlist else [],
    }
    for kind, pairs in wanted.items():
        old = known.get(kind, {})
        new = measure(course, lacking(old, pairs), budgets, problems, kind)
        study[kind] = {problem.name: old.get(problem.name, {}) | new[problem.name] for problem in problems}
    study["peers"] = known.get("peers") or peers.errors(course, Bundle(problems), budgets)
    print(f"{course.name}: everything, {time.perf_counter() - began:.0f} s", flush=True)
    return study


def rule(courses: dict[str, Course], budgets: Sequence[int], problems: Sequence[Problem], out: FilePath) -> None:
    """Auto again, in `accuracy.json` and the records, beside the peers of the run that is there."""
    results = json.loads((out / "accuracy.json").read_text())
    recorder = Recorder("accuracy", out / "accuracy.jsonl", resume=True)
    columns = {"geometric mean": ".2f", "worst": ".2f"}
    table = recorder.table("auto over the best peer", ["path", "rule and targets"], columns)
    for name, course in courses.items():
        found = {t: by for t, by in results["cells"][name].items() if t in {p.name for p in problems}}
        auto = ours.auto(course, budgets, problems)
        peers = {t: {"best": [by[str(nfe)]["peer"][1] for nfe in budgets]} for t, by in found.items()}
        for (target, by_budget), (b, nfe) in itertools.product(found.items(), enumerate(budgets)):
            by_budget[str(nfe)] |= {title: errors[b] for title, errors in auto[target].items()}
        for title, row in rules({"auto": auto, "peers": peers}, budgets).items():
            results["summary"][name][title] = row
            table.add([name, title], [row["all"], row["worst"]])
    (out / "accuracy.json").write_text(json.dumps(results, indent=1) + "\n")


def record(recorder: Recorder, studies: dict[str, Study], budgets: Sequence[int]) -> None:
    """The best peer and the best of ours of every cell, and auto for every prediction."""
    columns = {"best peer": ".2e", "which peer": "", "best of ours": ".2e", "which": ""}
    table = recorder.table("cells", ["path", "target", "NFE"], columns)
    auto = recorder.table("auto", ["path", "rule", "target", "NFE"], {"error": ".2e", "over the best peer": ".2f"})
    for name, study in studies.items():
        for target, by_budget in cells(study, budgets).items():
            for nfe, cell in by_budget.items():
                (peer, error), (own, least) = cell["peer"], cell["ours"]
                table.add([name, target, nfe], [error, peer, least, own], live=False)
                for rule in study["auto"][target]:
                    auto.add([name, rule, target, nfe], [cell[rule], cell[rule] / error], live=False)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Error against network calls, ours and the peers'.")
    parser.add_argument("--quick", action="store_true", help="two targets, four budgets, and no shortlist")
    parser.add_argument("--check", action="store_true", help="only check the shortcuts taken here against the library")
    parser.add_argument("--search", action="store_true", help="only make the shortlist of the multistep family")
    parser.add_argument("--rule", action="store_true", help="only auto, beside the peers of results/accuracy.json")
    parser.add_argument("--join", action="store_true", help="only auto, and what the last run (in the cache) lacks")
    parser.add_argument("--paths", nargs="+", choices=list(COURSES), default=list(COURSES))
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--particles", type=int, default=128)
    parser.add_argument("--out", type=FilePath, default=HERE / "results")
    parser.add_argument("--cache", type=FilePath, default=HERE / ".cache")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cache, shortlist = options.cache, options.out / "shortlist.json"
    out = options.out / "quick" if options.quick else options.out
    for folder in (out, cache):
        folder.mkdir(parents=True, exist_ok=True)
    (cache / ".gitignore").write_text("*\n")
    budgets = options.budgets or ([5, 10, 20, 50] if options.quick else list(BUDGETS))
    courses = {name: COURSES[name] for name in options.paths}
    if options.check:
        return check(cache)
    if options.search:
        return search.search(list(courses.values()), budgets, options.particles, cache, shortlist)

    began = time.perf_counter()
    targets = options.targets or (["ring", "iso64"] if options.quick else list(TARGETS))
    particles = {t: min(options.particles, PARTICLES.get(t, options.particles)) for t in targets}
    if options.rule:
        return rule(courses, budgets, [Problem(t, particles[t], cache) for t in targets], out)
    studies = {}
    for name, course in courses.items():
        stored = cache / f"study-{name}{'-quick' if options.quick else ''}.json"
        problems = [Problem(t, particles[t], cache) for t in targets]
        known = json.loads(stored.read_text()) if options.join else {}
        studies[name] = run(course, budgets, problems, None if options.quick else shortlist, known)
        stored.write_text(json.dumps(studies[name]))
        text = markdown(course, studies[name], budgets)
        (out / f"{name}.md").write_text(text)
    results = {
        "budgets": budgets,
        "particles": particles,
        "tuned on": TUNE,
        "summary": {name: summary(study, budgets) for name, study in studies.items()},
        "cells": {name: cells(study, budgets) for name, study in studies.items()},
    }
    (out / "accuracy.json").write_text(json.dumps(results, indent=1) + "\n")
    record(Recorder("accuracy", out / "accuracy.jsonl"), studies, budgets)
    plot(studies, budgets, out / "accuracy.png")
    print(json.dumps(results["summary"], indent=1))
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
