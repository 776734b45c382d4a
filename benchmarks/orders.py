"""Measured orders of every solver: between interior times, and down to sigma = 0, frame by frame.

python benchmarks/orders.py > docs/orders.md
"""

from __future__ import annotations

import math

import numpy as np
import torch

import diffsolve as ds
from diffsolve.frames import FRAMES
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture

INTERIOR = {"condot": (0.4, 0.85), "edm": (1.5, 0.2), "vp": (0.6, 0.12)}
NETWORK = {"condot": "velocity", "edm": "denoised", "vp": "v"}
METHODS = ["euler", "heun", "midpoint", "ralston", "rk4", "ab-2", "ab-3", "ab-4"]


def mixture() -> GaussianMixture:
    """Three wide Gaussians in the plane: smooth enough to reach asymptotic orders with few steps."""
    means = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture.isotropic(means, 0.5)


def errors(
    path: str, solver: str, start: float, stop: float, steps: tuple[int, ...], target: GaussianMixture
) -> list[float]:
    """Endpoint errors against the exact flow, root sum of squares over 24 particles."""
    model = mixture_model(target, path, NETWORK[path])
    where = model.path
    ends = [(float(where.alpha(t)), float(where.sigma(t))) for t in (start, stop)]
    x = math.hypot(*ends[0]) * torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = target.flow(x, *ends)
    finish = {} if stop == where.t_data else {"stop": stop}
    return [
        float(
            (
                ds.sample(model, noise=x, solver=solver, steps=n, grid="uniform-theta", start=start, **finish) - exact
            ).norm()
        )
        for n in steps
    ]


def order(values: list[float], steps: tuple[int, ...]) -> str:
    slope = -np.polyfit(np.log(steps), np.log(values), 1)[0]
    return f"{abs(slope) if abs(slope) < 0.05 else slope:.2f}"


def main() -> None:
    torch.set_num_threads(1)
    target = mixture()
    print("# Orders, declared and measured\n")
    print(
        "Written by `python benchmarks/orders.py`: slopes of log error against log steps on an exact mixture of three"
    )
    print("Gaussians in the plane, float64, grid uniform in theta. `interior`: between times away from both ends.")
    print("`data`: from the same start down to sigma = 0. The error at the finer grid is beside each slope.\n")
    print(
        "Down to the data a frame that is regular there keeps its order on CondOT, where the network may be called at"
    )
    print(
        "the data itself. A frame that is singular there makes one first-order step at the end, with error h^2. On EDM"
    )
    print("and VP the last step is from `t_last`, which does not move with the number of steps: the slope flattens at")
    print("that step's own error.\n")
    names = [*dict.fromkeys([*(f"{m}(frame={f!r})" for m in METHODS for f in FRAMES), *ds.solvers.names()])]
    names = [n for n in names if n not in METHODS and n != "ab-1"]
    head = ["solver", "declared", *(f"{path} {kind}" for path in INTERIOR for kind in ("interior", "data"))]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for name in names:
        solver = ds.solvers.named(name)
        cells = [f"`{name}`", str(solver.order)]
        steps = (24, 48) if solver.order >= 4 else (128, 256)
        for path, (start, stop) in INTERIOR.items():
            for end in (stop, ds.paths.named(path).t_data):
                found = errors(path, name, start, end, steps, target)
                cells.append(f"{order(found, steps)} ({found[-1]:.0e})")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
