r"""Error against network calls on networks that err, imperfect mixtures and trained ones: `auto` beside the peers.

    python benchmarks/trained.py                 # all of it, results/trained.jsonl; goes on from what is there
    python benchmarks/trained.py --role report   # only what the rule was not chosen on
    python benchmarks/trained.py --targets net/digits-v-cosine ring/ddpm/noise/0.05
    python benchmarks/trained.py --own           # auto beside the best of some 250 configurations of our own instead

The truth is each network's own flow in 400 steps (120 for 28 x 28 pixels), from the same noise; the error is the mean
distance to it over the root mean square norm. "Best peer" is the best of the methods of diffusers and k-diffusion,
under our names (the tests hold them equal to rounding), on their grids, in each cell, picked after the fact.
Imperfect mixtures are exact ones plus delta times a smooth field on what is predicted; networks.py trains the networks.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import networks
import numpy as np
import torch
from endpoint import ours, search
from record import RESULTS, Recorder
from torch import Tensor
from tqdm import tqdm

import diffsolve as ds
from diffsolve.models import Model
from diffsolve.reference import imperfect_model
from diffsolve.reference.mixture import GaussianMixture, anisotropic, random_means, ring

BUDGETS = (5, 6, 8, 10, 15, 20, 30)
METHODS = (
    "ddim", "dpmpp-2m", "dpmpp-3m", "dpmpp-2m(frame='noise')", "deis-2", "deis-3(lower_final=False)", "unipc-2",
    "unipc-3", "unipc-3(bh='bh1')", "unipc-3(frame='noise')", "ipndm-2", "ipndm-3", "ipndm-4", "lms-3", "res-3m",
)  # fmt: skip
FEWER = (
    "ddim",
    "dpmpp-2m",
    "dpmpp-3m",
    "deis-2",
    "deis-3(lower_final=False)",
    "unipc-2",
    "unipc-3",
    "ipndm-3",
    "ipndm-4",
)
GRIDS = ("uniform-t", "uniform-lambda", "karras", "quadratic")
FLOW_GRIDS = (*GRIDS, "shifted(shift=3)")
KINDS = (
    ("ddpm", "noise"), ("edm", "denoised"), ("condot", "velocity"), ("cosine", "v"), ("ve", "score"), ("edm", "edm"),
)  # fmt: skip


LARGE = ("net/fashion", "net/wide")
"""Networks of 28 x 28 pixels: fewer samples, methods and steps of the truth."""


def scaled(mixture: GaussianMixture, by: float) -> GaussianMixture:
    """The mixture with every point moved to `by` times itself."""
    return GaussianMixture(mixture.weights, mixture.means * by, mixture.std * by, mixture.basis)


MIXTURES: dict[str, Callable[[], GaussianMixture]] = {
    "ring": lambda: scaled(ring(), 0.25),
    "aniso16": partial(anisotropic, 16, seed=1),
    "iso24": lambda: scaled(random_means(24, seed=1), 0.5),
    "plane": partial(random_means, 2, modes=6, std=0.15, seed=3),
    "aniso8": partial(anisotropic, 8, seed=0),
}
TARGETS = {
    **{f"{m}/{p}/{q}/0.05": "tune" for m in ("ring", "aniso16", "iso24") for p, q in KINDS},
    **{f"plane/{p}/{q}/0.02": "report" for p, q in KINDS},
    **{f"aniso8/{p}/{q}/0.15": "report" for p, q in KINDS},
    **{f"net/{name}": spec.role for name, spec in networks.NETWORKS.items()},
    "net/packaged": "report",
}


@dataclass(frozen=True)
class Target:
    """A network, noise to start from, and the ends of its own flow."""

    model: Model
    noise: Tensor
    ends: Tensor

    @classmethod
    def of(cls, name: str) -> Target:
        if name == "net/packaged":
            model, shape, count, dtype = ds.load("digits"), (1, 8, 8), 24, torch.float32
        elif name.startswith("net/"):
            model, shape = networks.load(name.removeprefix("net/"))
            count, dtype = 8 if name.startswith(LARGE) else 128 if "moons" in name else 64, torch.float32
        else:
            mixture, path, predicts, delta = name.split("/")
            target = MIXTURES[mixture]()
            model = imperfect_model(target, path, predicts, delta=float(delta))
            shape, count, dtype = (target.dim,), 128, torch.float64
        g = torch.Generator().manual_seed(11)
        noise = torch.randn(count, *shape, generator=g, dtype=torch.float64) * model.path.prior_std()
        noise = noise.to(dtype)
        solver = "abm-3" if model.predicts == "velocity" else "unipc-3"
        grid = own_grid(model, 120 if name.startswith(LARGE) else 400)
        return cls(model, noise, ds.sample(model, noise=noise, solver=solver, grid=grid))

    def error(self, nfe: int, **options: str) -> float:
        x = ds.sample(self.model, noise=self.noise, nfe=nfe, **options)
        size = float(self.ends.double().flatten(1).square().sum(1).mean().sqrt())
        error = float((x.double() - self.ends.double()).flatten(1).norm(dim=1).mean()) / size
        return error if math.isfinite(error) else math.inf


def predicts_of(name: str) -> str:
    """What the network of a target predicts."""
    if name == "net/packaged":
        return "velocity"
    return networks.NETWORKS[name.removeprefix("net/")].predicts if name.startswith("net/") else name.split("/")[2]


def own_grid(model: Model, steps: int) -> np.ndarray:
    """Even in lambda within |lambda| <= 7, with the ends."""
    path = model.path
    low, high = max(float(path.lam(path.t_noise)), -7.0), min(float(path.lam(path.t_last)), 7.0)
    times = path.time(torch.linspace(low, high, steps, dtype=torch.float64)).numpy()
    head = [path.t_noise] if float(path.lam(path.t_noise)) < low else []
    if not head:
        times[0] = path.t_noise
    if path.t_last == path.t_data:
        return np.array([*head, *times, path.t_data])
    if float(path.lam(path.t_last)) <= high:
        times = times[:-1]
    return np.array([*head, *times, path.t_last, path.t_data])


def best_peer(target: Target, name: str, nfe: int) -> tuple[float, str]:
    """The least error of the peers' methods on their grids."""
    methods = FEWER if name.startswith(LARGE) else METHODS
    grids = FLOW_GRIDS if target.model.predicts == "velocity" else GRIDS
    found = []
    for solver, grid in itertools.product(methods, grids):
        try:
            found.append((target.error(nfe, solver=solver, grid=grid), f"{solver} {grid}"))
        except ValueError:  # a method that has no run of so few calls
            continue
    return min(found)


COURSES = {"ddpm": "vp", "vp": "vp", "cosine": "vp", "edm": "ve", "ve": "ve", "condot": "flow"}
"""Whose configurations of the accuracy benchmark are tried on which path."""


def own(recorder: Recorder, names: Sequence[str], budgets: Sequence[int]) -> None:
    """auto beside the best of our own configurations: all that the accuracy benchmark names, and its shortlist."""
    columns = {"auto": ".2e", "best": ".2e", "configuration": "", "auto over the best": ".2f"}
    table = recorder.table("auto over the best of ours", ["target", "NFE"], columns)
    for name in tqdm(names, unit="target"):
        path = networks.NETWORKS[name.removeprefix("net/")].path if name.startswith("net/") else name.split("/")[1]
        whole = Target.of(name)
        target = Target(whole.model, whole.noise[:32], whole.ends[:32])
        pairs = [*ours.named(COURSES[path]), *search.load(RESULTS / "shortlist.json", COURSES[path])]
        for nfe in budgets:
            auto, found = target.error(nfe, solver="auto"), []
            for solver, grid in pairs:
                try:
                    found.append((target.error(nfe, solver=solver, grid=grid), f"{solver} {grid}"))
                except ValueError:  # no run of so few calls
                    continue
            error, best = min([*found, (auto, "auto")])
            table.add([name, nfe], [auto, error, best, auto / error], live=False)
            tqdm.write(f"{name:36} {nfe:3} {auto / error:5.2f} {best}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="auto beside the best peer on networks that err.")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--role", choices=["tune", "report"])
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--own", action="store_true", help="beside the best of our own configurations instead")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    names = [name for name in options.targets if options.role in (None, TARGETS[name])]
    if options.own:
        return own(Recorder("trained_own", resume=True), names, options.budgets)
    recorder = Recorder("trained", resume=True)
    peers = recorder.table("best peer", ["target", "role", "NFE"], {"error": ".2e", "method": ""})
    ours = recorder.table("auto", ["target", "role", "NFE"], {"error": ".2e", "over the best peer": ".2f"})
    for name in tqdm(names, unit="target"):
        target = Target.of(name)
        row = []
        for nfe in options.budgets:
            case = [name, TARGETS[name], nfe]
            if peers.value(case, "error") is None:
                peers.add(case, best_peer(target, name, nfe), live=False)
            error = target.error(nfe, solver="auto")
            row.append(error / peers.value(case, "error"))
            ours.add(case, [error, row[-1]], live=False)
        tqdm.write(f"{name:36} " + " ".join(f"{ratio:5.2f}" for ratio in row))
    # Of all that is recorded, whatever this run measured.
    ratios: dict[str, list[float]] = {}
    for name, nfe in itertools.product(TARGETS, BUDGETS):
        if (ratio := ours.value([name, TARGETS[name], nfe], "over the best peer")) is not None:
            ratios.setdefault(f"{TARGETS[name]}, {predicts_of(name)}", []).append(ratio)
    columns = {"geometric mean": ".2f", "worst": ".2f", "cells": ""}
    table = recorder.table("auto over the best peer", ["role and prediction"], columns)
    for kind, row in sorted(ratios.items()):
        table.add([kind], [math.exp(float(np.mean(np.log(row)))), max(row), len(row)])


if __name__ == "__main__":
    main()
