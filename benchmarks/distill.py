"""Students of every method: how near they come to the teacher's flow and to the data, and what they cost.

    python benchmarks/distill.py ring                        # all methods on eight Gaussians on a ring
    python benchmarks/distill.py ring --only lagrangian ayf
    python benchmarks/distill.py digits student.safetensors  # the students in files of `diffsolve distill`

Of the ring the teacher is exact; a student is an MLP of two times, made from scratch by 1000 updates of 256 samples.
Endpoints are 2000, against an exact run; the law is compared by the sliced Wasserstein distance. Of the digits they are
1000 in the features of a small classifier, as in fid.py. Records are kept between runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import Recorder
from torch import Tensor

import diffsolve as ds
from diffsolve import distill
from diffsolve.metrics import Statistics, frechet, sliced_wasserstein
from diffsolve.metrics.data import DATA
from diffsolve.models import Model
from diffsolve.reference.mlp import MLP

CALLS = (1, 2, 4, 8)
UPDATES, BATCH, LR = 1000, 256, 2e-3
UNTRAINED = ("auto", "ddim", "dpmpp-2m", "unipc-3", "heun")
RESULTS = Path(__file__).resolve().parent / "results"


def student() -> Model:
    """An MLP of two times for points in the plane."""
    torch.manual_seed(0)
    return ds.adapt(MLP(2, 64, 2, times=2), "condot", "velocity", jumps="straight")


def ring(teacher: Model) -> dict[str, tuple[Any, str]]:
    """Each method's loss, and the solver of its students."""
    ends = distill.Between("uniform-t", noise=0.25)
    return {
        "trajectory": (distill.trajectory(path=teacher.path, nodes=8, ends=0.3), "flow-map"),
        "lagrangian": (distill.lagrangian(teacher), "flow-map"),
        "ayf": (distill.ayf(teacher), "flow-map"),
        "eulerian": (distill.ayf(teacher, metric=distill.Squared()), "flow-map"),
        "meanflow": (distill.meanflow(0.5, times="uniform-t"), "flow-map"),
        "shortcut": (distill.shortcut(16, 0.5), "flow-map"),
        "semigroup": (distill.shortcut(source="teacher", teacher=teacher, stretches=ends), "flow-map"),
        "consistency": (distill.consistency(teacher, 18), "consistency"),
        "ect": (distill.ect(every=150), "consistency"),
        "scm": (distill.scm(teacher, warmup=300), "scm"),
        "sct": (distill.scm(warmup=300), "scm"),
        "reflow": (distill.reflow(), "euler"),
    }


def train(
    loss: Callable[..., Any], model: Model, draw: Callable[[int], tuple[Tensor, dict[str, Any]]], updates: int
) -> Model:
    """The running average of a student after a plain loop; a slow copy of it is the target where a loss wants one."""
    net = model.net
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for step in range(updates):
        x0, options = draw(step)
        if loss.averaged:
            options = {**options, "target": replace(model, net=average.module)}
        losses, _ = loss(model, x0, seed=0, step=step, **options)
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        rates.step()
        average.update_parameters(net)
    return replace(model, net=average.module.eval().requires_grad_(False))


def draws(name: str, teacher: Model) -> Callable[[int], tuple[Tensor, dict[str, Any]]]:
    """Batches of what a method learns from: samples of the ring, or the teacher's runs or pairs."""
    target = ds.reference.ring()
    if name in ("trajectory", "reflow"):
        kept = distill.runs(teacher, (8000, 2), nodes=8, fine=4, seed=1)

        def from_kept(step: int) -> tuple[Tensor, dict[str, Any]]:
            rows = torch.randint(len(kept), (BATCH,), generator=torch.Generator().manual_seed(step))
            states = kept[rows]
            return (states, {}) if name == "trajectory" else (states[:, -1], {"noise": states[:, 0]})

        return from_kept
    return lambda step: (target.sample(BATCH, seed=step + 10).float(), {})


def matched(teacher: Model, updates: int) -> Model:
    """Distribution matching with its fake network, five updates of that for one of the student's."""
    model, fake = student(), ds.adapt(MLP(2, 64, 2), "condot", "velocity")
    x0 = torch.zeros(BATCH, 2)
    train_fake = torch.optim.Adam(fake.net.parameters(), lr=1e-3)
    loss = distill.distribution(teacher, fake)
    # Both begin as the teacher: flow matching of data from a few updates.
    start = train(distill.reflow(), fake, lambda step: _paired(teacher, step), updates // 2)
    fake.net.load_state_dict(start.net.state_dict())
    optimizer = torch.optim.Adam(model.net.parameters(), lr=5e-4)
    for step in range(updates // 2):
        for k in range(3):
            losses, _ = loss.fake_loss(model, x0, seed=1, step=3 * step + k)
            train_fake.zero_grad()
            losses.mean().backward()
            train_fake.step()
        losses, _ = loss(model, x0, seed=0, step=step)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return replace(model, net=model.net.eval().requires_grad_(False))


def _paired(teacher: Model, step: int) -> tuple[Tensor, dict[str, Any]]:
    x0 = ds.reference.ring().sample(BATCH, seed=step + 10).float()
    return x0, {"noise": ds.Key(step).normal(x0.shape)}


def staged(teacher: Model, updates: int) -> dict[int, Model]:
    """Progressive distillation: the student of n steps for each of the budgets."""
    found: dict[int, Model] = {}
    before: Model = teacher
    for calls in sorted(CALLS, reverse=True):
        model = student()
        if found:
            model.net.load_state_dict(before.net.state_dict())
        loss = distill.progressive(before, calls, weight="none", solver="flow-map" if found else "heun")
        found[calls] = before = train(loss, model, draws("progressive", teacher), updates // 3)
    return found


def on_ring(only: Sequence[str], recorder: Recorder) -> None:
    """The table of the ring."""
    teacher = ds.load("mixture-2d")
    noise = ds.Key(3).normal((2000, 2))
    exact = ds.sample(teacher, noise=noise.double(), solver="rk4", steps=100).float()
    law = Statistics.of(ds.reference.ring().sample(2000, seed=7).float())
    columns = {"seconds": ".3g", **{f"error, {n}": ".3f" for n in CALLS}, **{f"law, {n}": ".3f" for n in CALLS}}
    table = recorder.table("ring", ["method"], columns)

    def row(name: str, seconds: float | None, ends: Callable[[int], Tensor | None]) -> None:
        samples = [ends(n) for n in CALLS]
        size = exact.square().mean().sqrt()
        errors = [None if x is None else float((x - exact).square().mean().sqrt() / size) for x in samples]
        laws = [None if x is None else float(sliced_wasserstein(Statistics.of(x), law)) for x in samples]
        table.add([name], [seconds, *errors, *laws])

    row("exact", None, lambda n: exact if n == 1 else None)
    for solver in UNTRAINED if not only else ():
        row(
            solver,
            None,
            lambda n, s=solver: None if s == "heun" and n == 1 else ds.sample(teacher, noise=noise, solver=s, nfe=n),
        )
    methods = {**ring(teacher), "progressive": (None, "flow-map"), "distribution": (None, "flow-map")}
    for name, (loss, solver) in methods.items():
        if only and name not in only:
            continue
        began = time.process_time()
        if name == "progressive":
            students = staged(teacher, UPDATES)
        elif name == "distribution":
            students = {1: matched(teacher, UPDATES)}
        else:
            students = dict.fromkeys(CALLS, train(loss, student(), draws(name, teacher), UPDATES))
        seconds = time.process_time() - began

        def ends(n: int, students: dict[int, Model] = students, solver: str = solver) -> Tensor | None:
            return ds.sample(students[n], noise=noise, solver=solver, nfe=n, seed=0) if n in students else None

        row(name, seconds, ends)


def on_digits(files: Sequence[str], recorder: Recorder) -> None:
    """The table of the digits, of students in files; without files, of untrained solvers and a tuned one."""
    teacher, reference = ds.load("digits"), DATA["digits"]()
    labels = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    exact = ds.sample(teacher, (200, 1, 8, 8), solver="auto", nfe=200, seed=0, cond={"label": labels[:200]})
    columns = {"seconds": ".3g", **{f"FD, {n}": ".3f" for n in CALLS}, **{f"error, {n}": ".3f" for n in CALLS}}
    table = recorder.table("digits", ["method"], columns)

    def row(name: str, seconds: float | None, ends: Callable[[int], Tensor | None]) -> None:
        samples = [ends(n) for n in CALLS]
        scores = [
            None if x is None else frechet(Statistics.of(x, reference.features, keep=0), reference) for x in samples
        ]
        size = exact.square().mean().sqrt()
        errors = [None if x is None else float((x[:200] - exact).square().mean().sqrt() / size) for x in samples]
        table.add([name], [seconds, *scores, *errors])

    def drawn(model: Model, **options: Any) -> Tensor:
        parts = []
        for first in range(0, 1000, 200):
            cond = {"label": labels[first : first + 200]}
            parts.append(ds.sample(model, (200, 1, 8, 8), seed=0, index=first, cond=cond, **options))
        return torch.cat(parts)

    if not files:
        at32 = drawn(teacher, solver="auto", nfe=32)
        row("teacher, 32 calls", None, lambda n: at32 if n == 1 else None)
        row("auto", None, lambda n: drawn(teacher, solver="auto", nfe=n))
        row("ddim", None, lambda n: drawn(teacher, solver="ddim", nfe=n))
        return
    for file in files:
        model, about = distill.load_student(file), distill.about(file)
        row(about["method"], None, lambda n, m=model, s=about["sampler"]: drawn(m, solver=s, nfe=n))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Students of every method.")
    parser.add_argument("target", choices=["ring", "digits"])
    parser.add_argument("files", nargs="*", help="digits: files of students; none for what is not trained")
    parser.add_argument("--only", nargs="*", default=(), help="ring: these methods")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("distill", resume=True)
    on_ring(options.only, recorder) if options.target == "ring" else on_digits(options.files, recorder)


if __name__ == "__main__":
    main()
