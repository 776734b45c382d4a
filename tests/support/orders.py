"""The order of a solver as it is measured, against the exact flow of a mixture."""

import math
from functools import lru_cache

import numpy as np
import torch

import diffsolve as ds
from diffsolve import paths
from diffsolve.tableau.frames import PREDICTIONS

TIMES = {
    "edm": [80.0, 20.0, 6.0, 2.0, 0.9, 0.3, 0.1, 0.002, 0.0],
    "condot": [0.0, 0.1, 0.3, 0.45, 0.7, 0.8, 0.95, 1.0],
    "vp": [1.0, 0.8, 0.65, 0.5, 0.3, 0.1, 0.01],
    "ddpm": [999.0, 800.0, 540.0, 300.0, 120.0, 20.0, -1.0],
}
"""A grid of a few uneven steps on each path."""
INTERIOR = {"condot": (0.4, 0.85, "velocity"), "edm": (1.5, 0.2, "denoised"), "vp": (0.6, 0.12, "noise")}
"""Two times away from both ends, and what the network predicts there."""


@lru_cache
def exact_run(mixture, path, start, stop):
    """(x at start, its exact image at stop)."""
    pair = lambda t: (float(path.alpha(t)), float(path.sigma(t)))  # noqa: E731
    x = math.hypot(*pair(start)) * torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x, mixture.flow(x, pair(start), pair(stop))


def equal_modes(mixture, path, predicts):
    """The exact network of a mixture of equal round modes, told one time for all samples: a third of the cost.

    With v = alpha^2 std^2 + sigma^2 and m the mean of the modes by their responsibilities at x, the posterior means are
    E[x_0] = m + alpha std^2 / v (x - alpha m) and E[eps] = sigma / v (x - alpha m).
    """
    path, means, variance = paths.named(path), mixture.means, float(mixture.std[0, 0]) ** 2
    assert (mixture.std == mixture.std[0, 0]).all()
    assert (mixture.weights == mixture.weights[0]).all()
    half = means.square().sum(1) / 2

    def net(x, t):
        (p,) = path.nodes(t[:1].numpy())
        on_data, on_noise = PREDICTIONS[predicts](p, 0.5)
        v = p.alpha**2 * variance + p.sigma**2
        m = torch.softmax((x @ means.T * p.alpha - p.alpha**2 * half) / v, 1) @ means
        return on_data * m + (on_data * p.alpha * variance + on_noise * p.sigma) / v * (x - p.alpha * m)

    return ds.adapt(net, path, predicts)


def measured_order(mixture, path, predicts, solver, start, stop, steps, grid="uniform-theta"):
    """The slope of log error against log steps."""
    model = equal_modes(mixture, path, predicts)
    x, exact = exact_run(mixture, model.path, start, stop)
    where = {} if stop == model.path.t_data else {"stop": stop}
    errors = [
        float((ds.sample(model, noise=x, solver=solver, steps=n, grid=grid, start=start, **where) - exact).norm())
        for n in steps
    ]
    return float(np.polyfit(np.log(steps), -np.log(errors), 1)[0])
