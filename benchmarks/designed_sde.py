r"""Solvers with fresh noise on networks that err: how far the law of their samples is from the data's.

    python benchmarks/designed_sde.py             # all of it, results/designed_sde.jsonl; goes on from what is there
    python benchmarks/designed_sde.py --targets net/moons-noise-ddpm

The distance is a Frechet distance of the numbers themselves: the root of |m - m'|^2 + tr(C + C' - 2 (C C')^{1/2}) over
the root of tr C, with the mean and covariance of the data (those of its training data, for a network). "Best of the
others" is the best of the published solvers on their grids in each cell, picked after the fact; ours are `designed-sde`
as it stands, with the noise that it chooses on paper. Noise and seeds are the same for all.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import networks
import numpy as np
import torch
from record import Recorder
from scipy.linalg import sqrtm
from torch import Tensor
from tqdm import tqdm
from trained import MIXTURES

import diffsolve as ds
from diffsolve.models import Model
from diffsolve.reference import imperfect_model

BUDGETS = (5, 10, 20, 30)
TARGETS = (
    "net/moons-noise-ddpm", "net/digits-noise-ddpm-labelled", "net/moons-velocity-condot", "aniso8/ddpm/noise/0.15",
    "net/moons-score-ve", "net/digits-v-cosine",
)  # fmt: skip
PUBLISHED = ("ddim(eta=1)", "dpmpp-2m-sde", "dpmpp-2m-sde(tau=0.5)", "er-sde-3", "sa-3", "sa-3(tau=0.5)")
GRIDS = ("karras", "uniform-lambda")
OURS = ("designed-sde", "designed-sde(tau=0.5)", "designed-sde(tau=1.0)", "designed")
SAMPLES = 2048


@dataclass(frozen=True)
class Target:
    """A network, noise to start from, and the mean and covariance of the data."""

    model: Model
    noise: Tensor
    mean: Tensor
    cov: Tensor

    @classmethod
    def of(cls, name: str) -> Target:
        if name.startswith("net/"):
            model, shape = networks.load(name.removeprefix("net/"))
            data = networks.data_of(networks.NETWORKS[name.removeprefix("net/")].data)[0].double().flatten(1)
            mean, cov, dtype = data.mean(0), torch.cov(data.T), torch.float32
        else:
            mixture, path, predicts, delta = name.split("/")
            target = MIXTURES[mixture]()
            model = imperfect_model(target, path, predicts, delta=float(delta))
            mean, cov, dtype, shape = target.mean, target.covariance, torch.float64, (target.dim,)
        noise = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        return cls(model, (noise * model.path.prior_std()).to(dtype), mean, cov)

    def distance(self, solver: str, nfe: int, grid: str | None = None) -> float:
        x = ds.sample(self.model, noise=self.noise, solver=solver, nfe=nfe, grid=grid, seed=3).double().flatten(1)
        if not x.isfinite().all():
            return math.inf
        cov = torch.cov(x.T)
        root = float(np.real(sqrtm((cov @ self.cov).numpy())).trace())
        squared = float((x.mean(0) - self.mean).square().sum() + cov.trace() + self.cov.trace()) - 2 * root
        return math.sqrt(max(squared, 0) / float(self.cov.trace()))


def best_published(target: Target, nfe: int) -> tuple[float, str]:
    """The least distance of the published solvers on their grids."""
    found = []
    for solver, grid in itertools.product(PUBLISHED, GRIDS):
        try:
            found.append((target.distance(solver, nfe, grid), f"{solver} {grid}"))
        except ValueError:  # no run of so few calls
            continue
    return min(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Solvers with fresh noise on networks that err.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    recorder = Recorder("designed_sde", resume=True)
    others = recorder.table("best of the others", ["target", "NFE"], {"distance": ".3f", "solver": ""})
    columns = {**{name: ".3f" for name in OURS}, "over the best of the others": ".2f"}
    ours = recorder.table("designed", ["target", "NFE"], columns)
    for name in tqdm(options.targets, unit="target"):
        target = Target.of(name)
        for nfe in options.budgets:
            if others.value([name, nfe], "distance") is None:
                others.add([name, nfe], best_published(target, nfe), live=False)
            if ours.value([name, nfe], OURS[0]) is None:
                row = [target.distance(solver, nfe) for solver in OURS]
                ours.add([name, nfe], [*row, row[0] / others.value([name, nfe], "distance")], live=False)
                tqdm.write(f"{name:36} {nfe:3} {others.value([name, nfe], 'distance'):.3f} " + str(np.round(row, 3)))
    ratios = [
        ratio
        for name, nfe in itertools.product(TARGETS, BUDGETS)
        if (ratio := ours.value([name, nfe], "over the best of the others")) is not None
    ]
    mean = math.exp(float(np.mean(np.log(ratios))))
    table = recorder.table("over the best of the others", ["cells"], {"geometric mean": ".2f", "worst": ".2f"})
    table.add([len(ratios)], [mean, max(ratios)])


if __name__ == "__main__":
    main()
