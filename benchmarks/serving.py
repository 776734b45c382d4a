r"""Many requests in one batch, and runs of which only some rows call the network.

    python benchmarks/serving.py skip      # distance to the user's own picture, beside whole-call caches
    python benchmarks/serving.py update    # the update of a batch against one pass over its memory, and with solo runs
    python benchmarks/serving.py threads   # requests per second, beside solo executors stepped in turn
    python benchmarks/serving.py --quick   # little of each, to the terminal

`skip`: the user's own run has 50 steps; the distance is the mean over samples of |x - own| over the root mean square
norm of the own samples. The caches beside it make the same calls and change no weights: an output that is not called
for is the last one (reuse), or its polynomial in the number of the step (order 1: FSampler's h2; order 2: h3 and
TaylorSeer's second order on whole outputs), at even places; or the last output's difference to its input is kept, and
whether to call follows from the accumulated relative change (EasyCache, 2507.02860, eq. 6-9, of a batch as one), with
the threshold at which the budget is spent. `tuned` learned its times and weights from other noises.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from record import Recorder
from torch import Tensor

import diffsolve as ds
from diffsolve.kernels import Turn, update_requests
from diffsolve.tuning import fit

STEPS = 50


def cached(model: ds.Model, plan: ds.Tableau, x: Tensor, cond: dict[str, Tensor], rule: Rule) -> tuple[Tensor, int]:
    """The end of a run in which `rule` makes some of the outputs, and its calls."""
    ex, calls = ds.begin(model, noise=x, solver=plan), 0
    with torch.no_grad():
        while not ex.done:
            y, t = ex.query()
            out = rule(ex.call, y)
            if out is None:
                out = model.net(y, t, **cond)
                calls += 1
                rule.called(ex.call, y, out)
            ex.advance(out.clone())
    return ex.y, calls


class Rule:
    """Extrapolates outputs in the number of the step, at even places."""

    def __init__(self, budget: int, order: int) -> None:
        self.places = set(np.round(np.linspace(0, STEPS - 1, budget)).astype(int).tolist())
        self.order, self.known = order, list[tuple[int, Tensor]]()

    def called(self, i: int, y: Tensor, out: Tensor) -> None:
        self.known = [*self.known, (i, out.clone())][-self.order - 1 :]

    def __call__(self, i: int, y: Tensor) -> Tensor | None:
        if i in self.places:
            return None
        total = torch.zeros_like(y)
        for m, (node, out) in enumerate(self.known):
            others = [other for n, (other, _) in enumerate(self.known) if n != m]
            total += float(np.prod([(i - other) / (node - other) for other in others])) * out
        return total


class EasyCache(Rule):
    """Calls where the accumulated estimate of the relative change has reached a threshold."""

    def __init__(self, threshold: float, warm: int = 2) -> None:
        self.threshold, self.warm, self.sum, self.rate = threshold, warm, 0.0, 0.0
        self.y: Tensor | None = None
        self.input = self.out = self.shift = torch.empty(0)

    def called(self, i: int, y: Tensor, out: Tensor) -> None:
        if i:
            self.rate = float((out - self.out).norm() / (y - self.input).norm())
        self.input, self.out, self.shift, self.sum = y.clone(), out.clone(), out - y, 0.0

    def __call__(self, i: int, y: Tensor) -> Tensor | None:
        before, self.y = self.y, y.clone()
        if i < self.warm or i == STEPS - 1:
            return None
        assert before is not None
        self.sum += self.rate * float((y - before).norm() / self.out.norm())
        return y + self.shift if self.sum < self.threshold else None


def easy_cache(
    model: ds.Model, plan: ds.Tableau, x: Tensor, cond: dict[str, Tensor], budget: int
) -> tuple[Tensor, int]:
    """With the least threshold that keeps a few of the samples within the budget, found by bisection."""
    low, high = 0.0, 4.0
    some = {name: value[:8] for name, value in cond.items()}
    for _ in range(9):
        middle = (low + high) / 2
        within = cached(model, plan, x[:8], some, EasyCache(middle))[1] <= budget
        low, high = (low, middle) if within else (middle, high)
    return cached(model, plan, x, cond, EasyCache(high))


def skipping(recorder: Recorder, name: str, budgets: Sequence[int], count: int, noises: int, iterations: int) -> None:
    """The distance to the user's own picture."""
    model = ds.load(name)
    shape = {"digits": (1, 8, 8)}.get(name, (1, 28, 28))
    plan = ds.plan(model, "dpmpp-2m", steps=STEPS)
    table = recorder.table("skip", ["network", "calls"], dict.fromkeys(
        ("reuse", "order 1", "order 2", "EasyCache", "fewer steps", "skip 1", "skip 2", "skip 3", "tuned", "ratio"),
        ".4f",
    ))  # fmt: skip
    cond = {"label": torch.arange(count) % 10}
    x = ds.Key(1).normal((count, *shape))
    own = ds.sample(model, noise=x, solver=plan, cond=cond)
    norm = own.flatten(1).norm(dim=1).square().mean().sqrt()

    def off(found: Tensor) -> float:
        return float((found - own).flatten(1).norm(dim=1).mean() / norm)

    for budget in budgets:
        caches = [off(cached(model, plan, x, cond, Rule(budget, order))[0]) for order in (0, 1, 2)]
        caches.append(off(easy_cache(model, plan, x, cond, budget)[0]))
        fewer = off(ds.sample(model, noise=x, solver="dpmpp-2m", steps=budget, cond=cond))
        ours = [off(ds.sample(model, noise=x, solver=ds.skip(plan, budget, q), cond=cond)) for q in (1, 2, 3)]
        learned = fit(
            model, (noises, *shape), solver=ds.skip(plan, budget), teacher=plan, iterations=iterations,
            batch=noises, seed=0, cond={"label": torch.arange(noises) % 10},
        )  # fmt: skip
        tuned = off(ds.sample(model, noise=x, solver=learned.tableau, cond=cond))
        table.add([name, budget], [*caches, fewer, *ours, tuned, tuned / min(caches)])


def timed(work: Callable[[], object], repeats: int) -> float:
    """The least seconds of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - begun)
    return best


SOLVERS = ("dpmpp-2m", "unipc-2", "euler", "deis-2", "ab-3", "dpmpp-3m", "res-2m", "ddim")


def moved(turns: Sequence[Turn]) -> int:
    """States that an update reads and writes: every operand once, every result once."""
    total = 0
    for turn in turns:
        row = turn.row
        kept = set() if row.keep is None else {place for place, _ in row.kept}
        read = {place for side in (row.y, row.s or ()) for place, _ in side} | kept
        fresh = row.keep is not None  # what is kept is not read again
        total += len({0 if p == 1 and turn.s == turn.y else p for p in read}) - fresh + 1 + (row.s is not None) + fresh
    return total


def updating(recorder: Recorder, repeats: int) -> None:
    """One update of 32 requests at (4, 64, 64) of eight solvers, against a copy of as many bytes."""
    model = ds.adapt(lambda x, t: 0.5 * x, "condot", "velocity")
    stepper = ds.Stepper(model, max_batch=32)
    for i in range(32):
        stepper.submit((4, 64, 64), solver=SOLVERS[i % 8], steps=20 + i, seed=i)
    for _ in range(6):
        stepper.tick()
    ring = next(iter(stepper._rings.values()))
    assert ring.seen is not None
    turns, outputs = list(ring.seen.turns.values()), ring.seen.outputs
    states = moved(turns)
    source = torch.randn(states // 2, 4, 64, 64)
    into = torch.empty_like(source)
    executors = [ds.begin(model, (1, 4, 64, 64), solver=SOLVERS[i % 8], steps=20 + i, seed=i) for i in range(32)]
    outs = outputs.split(1)
    for ex in executors:
        for _ in range(6):
            ex.advance(model.net(*ex.query()))

    def solo() -> None:
        for ex, out in zip(executors, outs, strict=True):
            ex.call = 6
            ex.advance(out)

    times = [timed(work, repeats) for work in (
        lambda: update_requests(ring.memory, outputs, turns), lambda: into.copy_(source), solo)]  # fmt: skip
    columns = {"update": (".2f", "ms"), "pass": (".2f", "ms"), "update / pass": ".2f", "solo / update": ".2f"}
    table = recorder.table("update", ["requests"], columns)
    table.add([32], [times[0] * 1e3, times[1] * 1e3, times[0] / times[1], times[2] / times[0]])


def throughput(recorder: Recorder, batches: Sequence[int], requests: int, steps: int) -> None:
    """Requests a second of the digits network, beside solo executors stepped in turn."""
    model = ds.load("digits")
    table = recorder.table(
        "throughput", ["batch"], {"in turn": (".2f", "1/s"), "Stepper": (".2f", "1/s"), "ratio": ".2f"}
    )
    label = [torch.tensor(i % 10) for i in range(requests)]

    def solo() -> None:
        with torch.no_grad():
            lot = [ds.begin(model, (1, 1, 8, 8), solver=SOLVERS[i % 8], steps=steps, seed=i) for i in range(requests)]
            while any(not ex.done for ex in lot):
                for ex, one in zip(lot, label, strict=True):
                    if not ex.done:
                        ex.advance(model.net(*ex.query(), label=one[None]))

    alone = requests / timed(solo, 2)
    for batch in batches:

        def together(batch: int = batch) -> None:
            stepper = ds.Stepper(model, max_batch=batch)
            for i, one in enumerate(label):
                stepper.submit((1, 8, 8), solver=SOLVERS[i % 8], steps=steps, seed=i, cond={"label": one})
            stepper.run()

        rate = requests / timed(together, 2)
        table.add([batch], [alone, rate, rate / alone])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[], metavar="skip, update, threads")
    parser.add_argument("--network", default="digits", help="for skip: digits or fashion")
    parser.add_argument("--iterations", type=int, default=10, help="of tuning")
    parser.add_argument("--noises", type=int, default=96, help="of tuning")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 17])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    parts = given.parts or ["skip", "update", "threads"]
    recorder = Recorder("serving", None if given.quick else "", resume=True)
    if "skip" in parts:
        count, noises, iterations = (16, 16, 4) if given.quick else (64, given.noises, given.iterations)
        skipping(recorder, given.network, given.calls, count, noises, iterations)
    if "update" in parts:
        updating(recorder, 5 if given.quick else 200)
    if "threads" in parts:
        batches, requests, steps = ((1, 4), 4, 3) if given.quick else ((1, 8, 32), 32, 4)
        throughput(recorder, batches, requests, steps)


if __name__ == "__main__":
    main()
