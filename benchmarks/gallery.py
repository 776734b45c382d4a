"""One mixture in the plane sampled in six ways, and the Frechet distance of each against network calls.

python benchmarks/gallery.py              # a minute; docs/gallery.png and results/gallery.jsonl
"""

from __future__ import annotations

import math
from pathlib import Path as FilePath

import numpy as np
import torch
from record import Recorder
from scipy.linalg import sqrtm
from torch import Tensor

import diffsolve as ds
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture

CALLS = (5, 10, 20, 40, 80)
WAYS = {
    "ODE: heun": {"solver": "heun", "grid": "karras"},
    "SDE, tau = 0.5: sa-2": {"solver": "sa-2(tau=0.5)", "grid": "karras"},
    "SDE, tau = 1: sa-2": {"solver": "sa-2", "grid": "karras"},
    "SDE, tau = 1.5: sa-2": {"solver": "sa-2(tau=1.5)", "grid": "karras"},
    "Restart of heun": {"solver": "restart(low=0.1, high=1.0, times=1)", "grid": "karras"},
    "predictor-corrector": {"solver": "ddim", "grid": "karras", "corrector": ds.Langevin(step=0.3)},
}
COUNT = 20000


def spiral() -> GaussianMixture:
    """Modes along a spiral, narrow across it, of unequal weight."""
    turn = torch.linspace(0.6, 3.2, 24, dtype=torch.float64) * math.pi
    along = torch.stack([turn.cos() - turn * turn.sin(), turn.sin() + turn * turn.cos()], -1)
    along = along / along.norm(dim=-1, keepdim=True)
    across = torch.stack([-along[:, 1], along[:, 0]], -1)
    covariance = 0.12**2 * along[:, :, None] * along[:, None] + 0.03**2 * across[:, :, None] * across[:, None]
    means = 0.15 * torch.stack([turn * turn.cos(), turn * turn.sin()], -1)
    return GaussianMixture.full(means, covariance, torch.linspace(1, 2, 24, dtype=torch.float64))


def frechet(target: GaussianMixture, x: Tensor) -> float:
    """Between the samples' mean and covariance and the exact ones."""
    cov, exact = torch.cov(x.T.double()), target.covariance
    root = np.real(sqrtm((cov @ exact).numpy())).trace()
    return float((x.double().mean(0) - target.mean).square().sum() + cov.trace() + exact.trace() - 2 * root)


def run(model: ds.Model, way: dict, calls: int) -> ds.Run | None:
    """At most so many calls; None if even one step costs more."""
    for steps in range(calls, 0, -1):
        options = {name: value for name, value in way.items() if name != "corrector"}
        each = ds.plan(model, **options, steps=steps).nfe
        if each + ("corrector" in way) * (steps - 1) * 1 <= calls:
            return ds.solve(model, (COUNT, 2), **way, steps=steps, seed=0)
    return None


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.style.use("diffsolve.common.look")
    torch.set_num_threads(1)
    target = spiral()
    model = mixture_model(target, "edm", "denoised")
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4))
    places = [*axes[:, :3].ravel()]
    curve, exact = axes[0, 3], axes[1, 3]
    columns = {f"{n} calls": ".1e" for n in CALLS}
    table = Recorder("gallery").table("Frechet distance", ["sampler"], columns)
    for place, (title, way) in zip(places, WAYS.items(), strict=True):
        runs = [run(model, way, n) for n in CALLS]
        assert all(r is None or r.nfe <= n for r, n in zip(runs, CALLS, strict=True))
        distances = [math.nan if r is None else frechet(target, r.x) for r in runs]
        table.add([title], distances)
        curve.loglog(CALLS, distances, ".-", lw=1, label=title)
        shown = runs[2].x[:4000]
        place.plot(shown[:, 0], shown[:, 1], ",", alpha=0.6)
        place.set_title(f"{title}, {runs[2].nfe} calls", fontsize=9)
    x = target.sample(COUNT, seed=1)
    exact.plot(x[:4000, 0], x[:4000, 1], ",", color="k", alpha=0.6)
    exact.set_title("exact samples", fontsize=9)
    curve.axhline(frechet(target, x), color="k", lw=0.6, ls="--")
    curve.set_title("Frechet distance against calls", fontsize=9)
    curve.set_xticks(CALLS, map(str, CALLS))
    curve.minorticks_off()
    curve.legend(fontsize=6)
    for place in [*places, exact]:
        place.set(xlim=(-1.8, 1.8), ylim=(-1.8, 1.8), xticks=[], yticks=[], aspect="equal")
    figure.savefig(FilePath(__file__).resolve().parent.parent / "docs" / "gallery.png", dpi=90)
    table.add(["exact samples"], [frechet(target, x)] * len(CALLS))


if __name__ == "__main__":
    main()
