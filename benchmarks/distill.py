"""Students of every method: how near they come to the teacher's flow and to the data, and what they cost.

    python benchmarks/distill.py ring                        # all methods on eight Gaussians on a ring
    python benchmarks/distill.py ring --only lagrangian ayf
    python benchmarks/distill.py digits *.safetensors        # the students in files of `diffsolve distill`
    python benchmarks/distill.py digits *.safetensors --students    # their rows alone
    python benchmarks/distill.py fashion *.safetensors

Of the ring the teacher is exact; a student is an MLP of two times, made from scratch by 1000 updates of 256 samples.
Endpoints are 2000, against an exact run; the law is compared by the sliced Wasserstein distance. Of images they are
1000 in the features of a small classifier, as in fid.py; the error is that of 200 against `auto` at 100 calls on the
teacher; the seconds are those of the updates, not of the runs that some learn from. Beside the students are untrained
solvers and `ds.tune`. A student of `guided` has a table of its own, of the error against the guided teacher. Images end
in a picture, docs/students-NAME.png. Records are kept between runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image
from record import Recorder
from torch import Tensor

import diffsolve as ds
from diffsolve import distill
from diffsolve.distill.recipes import SHAPES, carrying
from diffsolve.metrics import Statistics, frechet, sliced_wasserstein
from diffsolve.metrics.data import DATA
from diffsolve.models import Model
from diffsolve.reference.mlp import MLP
from diffsolve.reference.students import student as student_of

plt.style.use("diffsolve.common.look")
CALLS = (1, 2, 4, 8)
UPDATES, BATCH, LR = 1000, 256, 2e-3
UNTRAINED = ("auto", "ddim", "dpmpp-2m", "unipc-3", "heun")
DOCS = Path(__file__).resolve().parents[1] / "docs"
SCALES = (1.0, 1.5, 2.0, 3.0)
"""Of guidance."""
TUNED = {"digits": (128, 100), "fashion": (32, 30)}
"""Noises and iterations of `ds.tune`."""
STRIP = 8
"""Images of each method and number of calls in the picture."""


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


class Images:
    """Samples and scores of a reference model's students, and what is beside them; all from the same noises."""

    def __init__(self, name: str, num: int = 1000) -> None:
        self.name, self.teacher, self.data = name, ds.load(name), DATA[name]()
        self.labels = torch.randint(10, (num,), generator=torch.Generator().manual_seed(0))
        self.exact = self.drawn(self.teacher, 200, nfe=100)

    def drawn(
        self, model: Model, num: int | None = None, told: Mapping[str, Any] | None = None, **options: Any
    ) -> Tensor:
        """Samples of the first `num` labels; the network is told more."""
        parts = []
        for first, labels in enumerate(self.labels[:num].split(200)):
            shape, cond = (len(labels), *SHAPES[self.name]), {"label": labels, **(told or {})}
            parts.append(ds.sample(model, shape, seed=0, index=200 * first, cond=cond, **options))
        return torch.cat(parts)

    def scores(self, x: Tensor, exact: Tensor | None = None) -> tuple[float, float]:
        """FD to the data, and the distance of the first samples from the ends of the teacher's flow."""
        exact = self.exact if exact is None else exact
        distance = frechet(Statistics.of(x, self.data.features, keep=0), self.data)
        return distance, float((x[:200] - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    def cost(self, method: str, batch: int, updates: int = 4) -> float:
        """Seconds of one update of a method, without the optimizer's and without making the runs it may learn from.

        The mean of its stages; of `distribution` a whole round, with the turns of the fake network.
        """
        recipe, cond = distill.RECIPES[method], {"label": self.labels[:batch]}
        noise, x0 = (ds.Key(k).normal((batch, recipe.nodes + 1, *SHAPES[self.name])) for k in (5, 6))
        x0, noise = x0 if recipe.data == "runs" else x0[:, 0], noise[:, 0]
        spent, teacher, stages = 0.0, self.teacher, (recipe.loss, *recipe.then)
        for stage in stages:
            loss, model = stage(teacher), student_of(self.name, self.teacher, recipe.highest)
            model.net.to(memory_format=torch.channels_last)
            teacher, model = model, carrying(model, loss)
            options: dict[str, Any] = {"target": model} if getattr(loss, "averaged", False) else {}
            if recipe.data == "pairs":
                options["noise"] = noise
            for step in range(updates + 1):
                if step == 1:  # the first is not counted
                    began = time.process_time()
                losses, _ = loss(model, x0, cond=cond, seed=0, step=step, **options)
                losses.mean().backward()
            spent += time.process_time() - began
        return spent / updates / len(stages)

    def tuned(self, calls: int) -> ds.Tableau:
        """What `ds.tune` makes of as many calls, on noises and labels of their own."""
        count, iterations = TUNED[self.name]
        labels, shape = torch.arange(count) % 10, (count, *SHAPES[self.name])
        cond = {"label": labels}
        return ds.tune(self.teacher, shape, nfe=calls, teacher=32, cond=cond, iterations=iterations, seed=1)


def on_images(name: str, files: Sequence[str], recorder: Recorder, students: bool = False) -> None:
    """The table of a reference model, and its picture; or the rows of the students alone."""
    images = Images(name)
    columns = {"seconds": ".3g", **{f"FD, {n}": ".3f" for n in CALLS}, **{f"error, {n}": ".3f" for n in CALLS}}
    table = recorder.table(name, ["method"], columns)
    seen: dict[str, dict[int, Tensor]] = {}
    lines: dict[str, list[float]] = {}

    def row(method: str, seconds: float | None, ends: Callable[[int], Tensor | None]) -> None:
        samples = {n: x for n in CALLS if (x := ends(n)) is not None}
        scores = {n: images.scores(x) for n, x in samples.items()}
        table.add([method], [seconds, *(scores[n][k] if n in scores else None for k in (0, 1) for n in CALLS)])
        seen[method] = {n: x[:STRIP] for n, x in samples.items()}
        lines[method] = [scores[n][0] if n in scores else float("nan") for n in CALLS]

    if not students:
        beside(images, row)
    for file in files:
        model, note = distill.load_student(file), distill.about(file)
        if note["method"] == "guided":
            guided(images, model, recorder)
            continue
        sampler, seconds = note["sampler"], images.cost(note["method"], note["batch"]) * note["steps"]
        row(note["method"], seconds, lambda n, m=model, s=sampler: images.drawn(m, solver=s, nfe=n))
    if not students:
        pictured(name, seen, lines)


def guided(images: Images, student: Model, recorder: Recorder) -> None:
    """The table of a student told the scale: it and the guided teacher, which makes two evaluations in each call."""
    calls = CALLS[1:]
    columns = {**{f"error, {n}": ".3f" for n in calls}, **{f"FD, {n}": ".3f" for n in calls}}
    table = recorder.table(f"{images.name}-guided", ["scale", "network"], columns)
    for scale in SCALES:
        exact = images.drawn(images.teacher, 200, guidance=scale, nfe=100)
        taught = [images.drawn(images.teacher, guidance=scale, nfe=n) for n in calls]
        own = [images.drawn(student, told={"scale": scale}, nfe=n) for n in calls]
        for name, samples in (("teacher", taught), ("student", own)):
            distances, errors = zip(*(images.scores(x, exact) for x in samples), strict=True)
            table.add([f"{scale:g}", name], [*errors, *distances])


def beside(images: Images, row: Callable[..., None]) -> None:
    """The rows of the teacher, of untrained solvers and of `ds.tune`."""
    at32 = images.drawn(images.teacher, nfe=32)
    row("teacher, 32 calls", None, lambda n: at32 if n == 1 else None)
    for solver in UNTRAINED:
        two = solver == "heun"
        row(
            solver,
            None,
            lambda n, s=solver, two=two: None if two and n == 1 else images.drawn(images.teacher, solver=s, nfe=n),
        )
    began = time.process_time()
    learned = {n: images.tuned(n) for n in CALLS[1:]}
    spent = time.process_time() - began
    row("ds.tune", spent, lambda n: images.drawn(images.teacher, solver=learned[n]) if n in learned else None)


def pictured(name: str, seen: dict[str, dict[int, Tensor]], lines: dict[str, list[float]]) -> None:
    """FD against calls, and a strip of the same noises for each method and number of calls."""
    teacher = lines.pop("teacher, 32 calls")[0]
    shown = {method: ends for method, ends in seen.items() if method not in UNTRAINED or method == "auto"}
    side, few = SHAPES[name][-1], CALLS[:3]
    canvas = torch.ones(len(shown) * (side + 2), (STRIP * side + 6) * len(few))
    for i, ends in enumerate(shown.values()):
        for j, n in enumerate(few):
            if n in ends:
                top, across = i * (side + 2), j * (STRIP * side + 6)
                canvas[top : top + side, across : across + STRIP * side] = torch.cat(list(ends[n][:, 0]), 1)
    figure = plt.figure(figsize=(13, 9 * canvas.shape[0] / canvas.shape[1] + 0.6))
    left, right = figure.subplots(1, 2, width_ratios=[1, 2.6])
    colours, drawn = plt.rcParams["axes.prop_cycle"].by_key()["color"], 0
    for method, values in lines.items():
        if method in UNTRAINED and method != "auto":
            left.plot(CALLS, values, label=method, color="0.6", lw=0.8)
            continue
        colour, marker = colours[drawn % len(colours)], "os^v"[drawn // len(colours)]
        left.plot(CALLS, values, label=method, color=colour, marker=marker, ms=4)
        drawn += 1
    left.axhline(teacher, color="black", ls=":", label="teacher, 32 calls")
    left.set(xscale="log", yscale="log", xlabel="network calls", ylabel="FD", xticks=CALLS, xticklabels=map(str, CALLS))
    left.set_ylim(0.6 * teacher, 50 * teacher)
    left.minorticks_off()
    left.legend(fontsize=7, loc="upper right")
    right.imshow(canvas.clamp(-1, 1), cmap="gray", aspect="equal", interpolation="nearest")
    right.grid(visible=False)
    right.set_yticks([i * (side + 2) + side / 2 for i in range(len(shown))], list(shown), fontsize=8)
    right.set_xticks(
        [(j + 0.5) * (STRIP * side + 6) for j in range(len(few))], [f"{n} call{'s' * (n > 1)}" for n in few]
    )
    file = DOCS / f"students-{name}.png"
    figure.savefig(file)
    Image.open(file).quantize(64).save(file, optimize=True)  # a third of the bytes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Students of every method.")
    parser.add_argument("target", choices=["ring", *SHAPES])
    parser.add_argument("files", nargs="*", help="digits, fashion: files of students")
    parser.add_argument("--only", nargs="*", default=(), help="ring: these methods")
    parser.add_argument("--students", action="store_true", help="digits, fashion: the rows of the files alone")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("distill", resume=True)
    if options.target == "ring":
        on_ring(options.only, recorder)
    else:
        on_images(options.target, options.files, recorder, options.students)


if __name__ == "__main__":
    main()
