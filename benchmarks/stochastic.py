r"""Stochastic samplers against network calls: how far the law of their samples is from that of the data.

A 64-dimensional mixture with its exact network; per configuration 8192 samples, compared with the data's exact mean
and covariance (Frechet distance) and with as many exact samples (sliced Wasserstein distance, 256 directions). "floor"
is what 8192 exact samples score.

    python benchmarks/stochastic.py > benchmarks/results/stochastic.md         # half an hour on one core

The peers are k-diffusion's stochastic samplers with their own grids and, on the table of betas, diffusers' stochastic
schedulers as they are shipped. Ours are run by name from the same start.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from endpoint.peers.base import loader
from endpoint.problems import TARGETS, FastMixture
from record import Recorder
from scipy.linalg import sqrtm
from torch import Tensor

import diffsolve as ds
from diffsolve import paths
from diffsolve.solvers import ERSDE, Churn, Interval, Multistep, RungeKutta
from diffsolve.solvers.runge_kutta import HEUN

SAMPLES = 8192
BUDGETS = (20, 30, 50, 100)
PATHS = {"ve": paths.EDM(), "vp": paths.Discrete.linear()}
Sampler = Callable[[int], Tensor | None]
"""At most so many calls -> samples, or None."""


class Target:
    """The data: its law, exact samples and the network."""

    def __init__(self, name: str, count: int) -> None:
        self.mixture = TARGETS[name][0]()
        self.fast = FastMixture(self.mixture)
        self.start = ds.Key(1).normal((count, self.mixture.dim), dtype=torch.float64)
        self.exact = self.mixture.sample(count, seed=2)
        self.directions = torch.randn(
            self.mixture.dim, 256, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        self.directions /= self.directions.norm(dim=0)
        self.sorted = (self.exact @ self.directions).sort(0).values
        self.mean, self.cov = self.mixture.mean, self.mixture.covariance

    def scores(self, x: Tensor) -> tuple[float, float]:
        """(Frechet distance, sliced Wasserstein-1 distance)."""
        x = x.double()
        cov = torch.cov(x.T)
        root = np.real(sqrtm((cov @ self.cov).numpy()))
        frechet = float((x.mean(0) - self.mean).square().sum() + cov.trace() + self.cov.trace() - 2 * root.trace())
        sliced = float(((x @ self.directions).sort(0).values - self.sorted).abs().mean())
        return frechet, sliced


def model_of(target: Target, path: paths.Path) -> tuple[ds.Model, list[int]]:
    """The exact network, and the count of its calls."""
    calls = [0]

    def net(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return target.fast(x, float(path.alpha(t[0])), float(path.sigma(t[0])))[0]

    return ds.adapt(net, path, "denoised"), calls


def ours(target: Target, course: str) -> Iterator[tuple[str, Sampler]]:
    path = PATHS[course]
    model, calls = model_of(target, path)
    heun = RungeKutta(HEUN, "straight")
    names = (
        "ddim(eta=0.3)", "dpmpp-2m-sde", "dpmpp-2m-sde(tau=0.5)", "dpmpp-3m-sde", "dpmpp-2s-ancestral", "seeds-3",
        "er-sde-2", "er-sde-3", "sa-2(tau=0.5)", "sa-3", "sa-3(tau=0.5)", "sa-3(tau=0.2)",
    )  # fmt: skip
    methods: dict[str, Any] = {name: name for name in names}
    methods["sa-3, interval"] = Multistep(3, "denoised", "lambda", 4, tau=Interval(0.5, 0.3, 3.0))
    methods["sa-3, ER-SDE"] = Multistep(3, "denoised", "lambda", 4, tau=ERSDE())
    methods["edm-heun(s_churn=2, straight)"] = Churn(heun, 2.0, 0.05, 20.0)

    def run(solver: Any, grid: str, nfe: int) -> Tensor | None:
        try:
            table = ds.plan(model, solver, nfe=nfe, grid=grid)
        except ValueError:
            return None
        calls[0] = 0
        x = ds.sample(model, noise=target.start * path.prior_std(), solver=table, seed=4)
        assert calls[0] == table.nfe <= nfe
        return x

    for name, solver in methods.items():
        for grid in ("karras", "angle", "uniform-lambda")[: 3 if name in ("dpmpp-2m-sde", "seeds-3", "sa-3") else 2]:
            yield f"{name} @ {grid}", lambda nfe, solver=solver, grid=grid: run(solver, grid, nfe)


def k_diffusion(target: Target, course: str) -> Iterator[tuple[str, Sampler]]:
    kd = loader().k_diffusion("sampling")
    path = PATHS[course]
    high, low = (float(path.rho(t)) for t in (path.t_noise, path.t_last))
    made = [0]

    def denoised(x: Tensor, rho: Tensor) -> Tensor:
        made[0] += 1
        return target.fast(x, 1.0, float(rho[0]))[0]

    churn = {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.0}
    samplers: dict[str, tuple[str, dict[str, Any], int]] = {
        "euler_ancestral": ("euler_ancestral", {}, 1),
        "dpm_2_ancestral": ("dpm_2_ancestral", {}, 2),
        "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}, 2),
        "dpmpp_sde": ("dpmpp_sde", {}, 2),
        "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 1),
        "dpmpp_2m_sde heun": ("dpmpp_2m_sde", {"solver_type": "heun"}, 1),
        "dpmpp_3m_sde": ("dpmpp_3m_sde", {}, 1),
        **{f"{kind} churn": (kind, churn, calls) for kind, calls in (("euler", 1), ("heun", 2), ("dpm_2", 2))},
    }

    def run(name: str, options: dict[str, Any], stages: int, grid: str, nfe: int) -> Tensor:
        n = nfe if stages == 1 else (nfe + 1) // 2
        sigmas = getattr(kd, f"get_sigmas_{grid}")(n, low, high).double()
        torch.manual_seed(5)
        made[0] = 0
        if options is not churn:
            options = {**options, "noise_sampler": lambda *_: torch.randn_like(target.start)}
        x = target.start * (path.prior_std() / float(path.alpha(path.t_noise)))
        x = getattr(kd, f"sample_{name}")(denoised, x, sigmas, disable=True, **options)
        assert made[0] <= nfe
        return x

    for name, (function, options, stages) in samplers.items():
        for grid in ("karras", "exponential"):
            yield f"k-diffusion {name} {grid}", lambda nfe, a=(function, options, stages, grid): run(*a, nfe)


def diffusers(target: Target, course: str) -> Iterator[tuple[str, Sampler]]:
    if course != "vp":
        return
    import diffusers as df

    path = PATHS["vp"]
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for spacing in ("leading", "trailing"):
        for variance in ("small", "large"):
            options = {"variance_type": f"fixed_{variance}", "clip_sample": False, "timestep_spacing": spacing}
            cases[f"DDPM {variance} {spacing}"] = ("DDPMScheduler", options, {})
    for eta in (0.3, 1.0):
        cases[f"DDIM eta={eta}"] = (
            "DDIMScheduler",
            {"clip_sample": False, "timestep_spacing": "trailing"},
            {"eta": eta},
        )
    for karras in (False, True):
        tail = " karras" if karras else ""
        for p in (1, 2, 3):
            options = {"algorithm_type": "sde-dpmsolver++", "solver_order": p, "use_karras_sigmas": karras}
            cases[f"DPM++ SDE order {p}{tail}"] = ("DPMSolverMultistepScheduler", options, {})
        for p, c in ((2, 2), (3, 3), (3, 4)):
            options = {"predictor_order": p, "corrector_order": c, "use_karras_sigmas": karras}
            cases[f"SASolver {p}, {c}{tail}"] = ("SASolverScheduler", options, {})

    def run(kind: str, options: dict[str, Any], step: dict[str, Any], nfe: int) -> Tensor:
        scheduler = getattr(df, kind)(**options)
        scheduler.set_timesteps(nfe)
        torch.manual_seed(6)
        x = target.start.float()
        for i, t in enumerate(scheduler.timesteps):
            at = float(t)
            if hasattr(scheduler, "sigmas"):  # its own level: some round the timestep
                at = float(path.time(-math.log(float(scheduler.sigmas[i]))))
            eps = target.fast(x.double(), float(path.alpha(at)), float(path.sigma(at)))[1]
            x = scheduler.step(eps.to(x.dtype), t, x, **step).prev_sample
        return x

    for name, case in cases.items():
        yield f"diffusers {name}", lambda nfe, case=case: run(*case, nfe)


def table(recorder: Recorder, target: Target, course: str, budgets: Sequence[int]) -> None:
    """Print the best of each side per budget, and the five best of each."""
    floor = target.scores(target.mixture.sample(len(target.start), seed=9))
    found: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {"ours": [], "peers": []}
    measures = {"Frechet": ".4f", "sliced": ".4f"}
    records = recorder.table("distances", ["path", "side", "sampler", "NFE"], measures)
    records.add([course, "exact", "floor", None], floor, live=False)
    for side, made in (
        ("ours", ours(target, course)),
        ("peers", (p for f in (k_diffusion, diffusers) for p in f(target, course))),
    ):
        for name, sampler in made:
            row = []
            for nfe in budgets:
                began = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    x = sampler(nfe)
                good = x is not None and bool(x.isfinite().all())
                row.append(target.scores(x) if good else (math.inf, math.inf))
                print(
                    f"{course} {name} {nfe}: {row[-1][0]:.4g} {row[-1][1]:.4g} {time.perf_counter() - began:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
            found[side].append((name, row))
            for nfe, scores in zip(budgets, row, strict=True):
                records.add([course, side, name, nfe], scores, live=False)
    print(f"## {course}: {PATHS[course]}\n\nfloor: Frechet {floor[0]:.3g}, sliced {floor[1]:.3g}\n")
    for measure, title in enumerate(("Frechet distance", "Sliced Wasserstein distance")):
        print(f"| NFE | {title}: best of ours | | best peer | | ratio |\n|--|--|--|--|--|--|")
        for b, nfe in enumerate(budgets):
            (us, our_name), (they, their_name) = (
                min((row[b][measure], name) for name, row in found[side]) for side in ("ours", "peers")
            )
            print(f"| {nfe} | {us:.4f} | {our_name} | {they:.4f} | {their_name} | {us / they:.2f} |")
        print()
    for side, rows in found.items():
        print(
            f"{side}, the eight of least Frechet distance in the geometric mean:\n\n| | "
            + " | ".join(map(str, budgets))
            + " |\n"
            + "|--" * (len(budgets) + 1)
            + "|"
        )
        for name, row in sorted(rows, key=lambda item: np.mean([np.log(f) for f, _ in item[1]]))[:8]:
            print(f"| {name} | " + " | ".join(f"{f:.4f}" for f, _ in row) + " |")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description="Stochastic samplers, ours and the peers'.")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--paths", nargs="+", choices=list(PATHS), default=list(PATHS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# Stochastic samplers, iso64, {options.samples} samples\n")
    recorder = Recorder("stochastic")
    for course in options.paths:
        table(recorder, Target("iso64", options.samples), course, options.budgets)


if __name__ == "__main__":
    main()
