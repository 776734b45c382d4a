"""Runs in parallel in time against the same runs one call after another.

python benchmarks/parallel.py > benchmarks/results/parallel.md         (about 13 minutes on one core)

Its records are in results/parallel.jsonl.

The two networks predict the noise on the linear table of 1000 betas, so that diffusers' parallel schedulers can be
run beside: the exact one of a 64-dimensional mixture, and the digits network, whose velocity is converted.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from record import Recorder, Table, processor
from torch import Tensor

import diffsolve as ds
from diffsolve.parallel.base import Calls
from diffsolve.reference import mixture_model
from diffsolve.reference.digits import load_data
from diffsolve.reference.mixture import random_means

WORKERS = (1, 2, 4, 8, 64)
GROUPS = 8  # of samples, left out in turn for the standard error of the Frechet distance

INTRODUCTION = """# Parallel in time, measured

Written by `python benchmarks/parallel.py`, on {machine}, one thread, float32, torch {torch}. Nothing was run on a GPU.
The machine was shared: columns of times are good to a factor of 2 or so; the others repeat.

Each sample has a window of its own and does not depend on the others, so rounds and calls are those of one sample made
alone: mean, and the most of any.

- `rounds`: sweeps (parareal: iterations); `depth`: batches of the network one after another; `calls`: network
  evaluations of one sample in all.
- `on w`: modelled time of one sample on w workers over that of the sequential run: per batch of m calls, the measured
  cost of a batch of ceil(m / w). Communication and the sweeps' own vector work are left out. **Above 1 is slower.**
  `here` is measured, not modelled: the wall time of the whole batch of samples on this one core, over the sequential
  run's.
- `rms`: root mean square distance to the sequential run from the same noise, per dimension, median over samples.
  `far`: share of samples that ended further than 0.3 from it, in another mode of the mixture, say. `left`: share of
  samples that were not within the tolerance when a bound on the rounds ended the run.
- `FD`: Frechet distance of the samples' mean and covariance to the data's, with the standard error of a jackknife over
  {groups} groups of samples. With so few samples it is far from 0 for the sequential run too; what counts is the
  difference.

Methods: `secant` is `ds.Picard(tol=0.1)` as it comes; `published` has `finish=0`, so that the last stretch is held to
what the rest is; `at most 8` has `max_rounds=8`; `plain` has `accelerate=None`, `anderson` `ds.Anderson()`;
`seidel` is `secant` in parts of 8 calls (`workers=8`); `parareal` is `ds.Parareal(tol=0.1)`, and has `coarse="ddim"`
in `parareal ddim` (of deterministic runs: beside noise a coarse run without it is no guess). `paradigms` is the
update and the rule of 2305.16317 through diffusers' `DDPMParallelScheduler` and `DDIMParallelScheduler` (trailing
steps; the other solvers have no such scheduler), with tolerance 0.1 and the same window, on fewer samples, against its
own sequential run.
"""


class OnTable(torch.nn.Module):
    """The digits network, a velocity on CondOT, as a noise prediction on a table of noise levels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ds.load("digits").net
        at = ds.paths.named("ddpm").nodes(np.arange(1000.0))
        levels = torch.from_numpy(np.stack([at.alpha, at.sigma], -1)).float()
        self.register_buffer("levels", levels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.levels[t.round().long()].unbind(-1)
        scale = (alpha + sigma).view(-1, 1, 1, 1)
        u = alpha / (alpha + sigma)
        z = x / scale
        return z - u.view(-1, 1, 1, 1) * self.net(z, u)


@dataclass(frozen=True)
class Target:
    """A network, the moments of its data, and how many samples to take of a run by its length."""

    name: str
    model: ds.Model
    shape: tuple[int, ...]
    moments: tuple[Tensor, Tensor]
    samples: Callable[[int], int]

    @functools.cached_property
    def cost(self) -> Callable[[np.ndarray], np.ndarray]:
        """Seconds of a network call as a function of the batch, measured and interpolated."""
        sizes, seconds = [1, 2, 4, 8, 16, 32, 64, 128, 256], []
        with torch.no_grad():
            for size in sizes:
                x, t = torch.randn(size, *self.shape), torch.full((size,), 500.0)
                times = []
                for _ in range(40):
                    start = time.perf_counter()
                    self.model.net(x, t)
                    times.append(time.perf_counter() - start)
                seconds.append(min(times))
        return lambda batch: np.interp(batch, sizes, seconds)


def targets(quick: bool) -> list[Target]:
    mixture = random_means()
    spread = torch.cov(mixture.means.T, correction=0) + 0.09 * torch.eye(64, dtype=torch.float64)
    digits = load_data()[0].double().flatten(1)
    return [
        Target(
            "64-dimensional mixture",
            mixture_model(mixture, "ddpm", "noise"),
            (64,),
            (mixture.means.mean(0), spread),
            lambda steps: 32 if quick else 256,
        ),
        Target(
            "digits network",
            ds.adapt(OnTable(), "ddpm", "noise", clock="index"),
            (1, 8, 8),
            (digits.mean(0), torch.cov(digits.T)),
            lambda steps: 4 if quick else 16 if steps > 100 else 64,
        ),
    ]


RUNS = {  # name: solver, steps, window
    "DDPM-1000": ("ddim(eta=1.0)", 1000, 200),
    "DDIM-100": ("ddim", 100, 100),
    "DDIM-50": ("ddim", 50, 50),
    "dpmpp-2m-20": ("dpmpp-2m", 20, 20),
    "unipc-10": ("unipc-3", 10, 10),
}


def methods(name: str, window: int) -> dict[str, ds.Picard | ds.Parareal]:
    deterministic = {} if name.startswith("DDPM") else {"parareal ddim": ds.Parareal(coarse="ddim")}
    return {
        "secant": ds.Picard(window=window),
        "published": ds.Picard(window=window, finish=0),
        **({"at most 8": ds.Picard(window=window, max_rounds=8)} if name.startswith("DDIM") else {}),
        "plain": ds.Picard(window=window, accelerate=None),
        "anderson": ds.Picard(window=window, accelerate=ds.Anderson()),
        "seidel": ds.Picard(window=window, workers=8),
        "parareal": ds.Parareal(),
        **deterministic,
    }


def recorded(batch: int, work: Callable[[], ds.Run]) -> tuple[ds.Run, np.ndarray]:
    """A run, and (batches, B): how many calls of each sample were in each batch of the network."""
    sizes, original = [], Calls.__call__

    def spy(self: Calls, row: Tensor, sample: Tensor, y: Tensor) -> Tensor:
        sizes.append(torch.bincount(sample, minlength=batch))
        return original(self, row, sample, y)

    Calls.__call__ = spy  # type: ignore[method-assign]
    try:
        run = work()
    finally:
        Calls.__call__ = original  # type: ignore[method-assign]
    return run, torch.stack(sizes).numpy()


def frechet(x: Tensor, mean: Tensor, covariance: Tensor) -> float:
    x = x.double().flatten(1)
    mine = torch.cov(x.T)
    root = torch.linalg.eigvals(mine @ covariance).real.clamp(min=0).sqrt().sum()
    return float((x.mean(0) - mean).square().sum() + mine.trace() + covariance.trace() - 2 * root)


def distance(x: Tensor, target: Target) -> str | None:
    if len(x) < 16:
        return None
    whole, group = frechet(x, *target.moments), torch.arange(len(x)) % GROUPS
    left = np.array([frechet(x[group != g], *target.moments) for g in range(GROUPS)])
    return f"{whole:.3f} ± {math.sqrt((GROUPS - 1) * left.var()):.3f}"


def modelled(target: Target, sizes: np.ndarray, steps: int) -> list[float]:
    """Time on w workers over the sequential run's: a sample's own batches, shared out."""
    alone = steps * target.cost(np.array(1))
    out = []
    for workers in WORKERS:
        seconds = np.where(sizes > 0, target.cost(-(-sizes // workers)), 0.0).sum(0).mean()
        out.append(float(seconds / alone))
    return out


def paradigms(target: Target, name: str, window: int, samples: int) -> tuple[np.ndarray, Tensor, Tensor, list[int]]:
    """ParaDiGMS (2305.16317, algorithm 1) over diffusers' schedulers: batch sizes, samples, sequential ones, rounds."""
    from diffusers import DDIMParallelScheduler, DDPMParallelScheduler

    stochastic, steps = name.startswith("DDPM"), RUNS[name][1]
    kind = DDPMParallelScheduler if stochastic else DDIMParallelScheduler
    scheduler = kind(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    variance = torch.tensor([float(scheduler._get_variance(int(t))) for t in times])
    scale = variance.clone()
    scale[variance <= 1e-15] = variance[variance > 1e-15].min()  # its last step's is 0

    def step(x: Tensor, i: Tensor) -> Tensor:
        eps = target.model.net(x, times[i].float())
        return scheduler.batch_step_no_noise(eps, timesteps=times[i], sample=x)

    sizes, ends, alone, rounds = np.zeros((steps, samples), int), [], [], []
    for sample in range(samples):
        generator = torch.Generator().manual_seed(sample)
        start = torch.randn(target.shape, generator=generator)
        noise = torch.randn(steps, *target.shape, generator=generator)
        noise *= (variance.sqrt() if stochastic else 0 * variance).view(-1, *[1] * len(target.shape))
        x = start[None]
        for i in range(steps):
            x = step(x, torch.tensor([i])) + noise[i]
        alone.append(x[0])
        points, at, count = start.expand(steps + 1, *target.shape).clone(), 0, 0
        while at < steps:
            end = min(at + window, steps)
            drift = step(points[at:end], torch.arange(at, end)) - points[at:end] + noise[at:end]
            new = points[at] + drift.cumsum(0)
            error = (new - points[at + 1 : end + 1]).flatten(1).square().mean(1)
            wrong = (error > 0.1**2 * scale[at:end]).nonzero()
            points[at + 1 : end + 1] = new
            points[end + 1 :] = new[-1]
            sizes[count, sample], count = end - at, count + 1
            at = at + int(wrong[0]) + 1 if len(wrong) else end
        ends.append(points[-1])
        rounds.append(count)
    return sizes, torch.stack(ends), torch.stack(alone), rounds


def line(
    table: Table,
    target: Target,
    method: str,
    rounds: Tensor,
    sizes: np.ndarray,
    x: Tensor,
    alone: Tensor,
    steps: int,
    here: float | None,
    left: float = 0.0,
) -> None:
    far = (x - alone).flatten(1).square().mean(1).sqrt()
    depth = (sizes > 0).sum(0)
    cells = [
        f"{rounds.mean():.1f} ({int(rounds.max())})",
        float(depth.mean()),
        float(sizes.sum(0).mean()),
        *modelled(target, sizes, steps),
        here,
        float(far.median()),
        float((far > 0.3).double().mean()),
        left,
        distance(x, target),
    ]
    table.add([method], cells)


def report(recorder: Recorder, target: Target, name: str) -> None:
    solver, steps, window = RUNS[name]
    batch = target.samples(steps)
    solve = functools.partial(
        ds.solve, target.model, (batch, *target.shape), solver=solver, steps=steps, seed=0, dtype=torch.float32
    )
    start = time.perf_counter()
    alone = solve().x
    sequential = time.perf_counter() - start
    print(f"\n### {name}, window {window}, {batch} samples\n")
    columns = {"rounds": "", "depth": ".1f", "calls": ".0f", **{f"on {w}": ".2f" for w in WORKERS}, "here": ".1f"}
    columns |= {"rms": ".1e", "far": ".3f", "left": ".3f", "FD": ""}
    table = recorder.table(f"{target.name}: {name}, window {window}, {batch} samples", ["method"], columns)
    ones = [1.0] * (len(WORKERS) + 1)
    table.add(["sequential"], [str(steps), steps, steps, *ones, 0.0, 0.0, 0.0, distance(alone, target)])
    for method, parallel in methods(name, window).items():
        start = time.perf_counter()
        run, sizes = recorded(batch, functools.partial(solve, parallel=parallel))
        here = (time.perf_counter() - start) / sequential
        assert run.parallel is not None
        left = 1 - float(run.parallel.converged.double().mean())
        line(table, target, method, run.parallel.each.double(), sizes, run.x, alone, steps, here, left)
    if name.startswith("DD"):
        few = 8 if steps <= 100 or "mixture" in target.name else 2
        with torch.no_grad():
            sizes, x, own, rounds = paradigms(target, name, window, few)
        line(table, target, "paradigms", torch.tensor(rounds).double(), sizes, x, own, steps, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    recorder = Recorder("parallel", None if quick else "")
    machine = f"a CPU ({processor()})"
    print(INTRODUCTION.format(machine=machine, torch=torch.__version__.split("+")[0], groups=GROUPS), end="")
    for target in targets(quick):
        one = float(target.cost(np.array(1)))
        costs = ", ".join(f"{b}: {float(target.cost(np.array(b))) / one:.1f}" for b in (1, 4, 16, 64, 256))
        print(f"\n## {target.name}\n\nCost of a batch, over that of a batch of one ({one * 1e3:.2f} ms): {costs}.")
        for name in RUNS:
            report(recorder, target, name)


if __name__ == "__main__":
    main()
