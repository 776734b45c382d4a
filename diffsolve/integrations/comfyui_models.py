"""ComfyUI's models, as their `model_sampling` tells them: the path, and grids on it as lists of sigmas."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import grids
from diffsolve.common.checks import integer, number
from diffsolve.grids import Grid
from diffsolve.paths import EDM, Discrete, Path, Rectified

__all__ = ["path_of", "sigmas_of"]


def path_of(sampling: Any) -> Path:
    """The path of a model: a table, a flow with its shift, or EDM's between its two sigmas."""
    kinds = {base.__name__ for base in type(sampling).__mro__}
    if "CONST" in kinds:
        shift = float(getattr(sampling, "shift", 1.0))
        return Rectified(math.exp(shift) if "ModelSamplingFlux" in kinds else shift)  # Flux's is a logarithm
    table = sampling.sigmas.cpu().double()
    if "ModelSamplingDiscrete" in kinds:
        products = 1 / (1 + table**2)
        return Discrete(1 - products / torch.cat([products.new_ones(1), products[:-1]]))
    return EDM(float(sampling.sigma_min), float(sampling.sigma_max))


def sigmas_of(sampling: Any, grid: str | Grid, steps: int, denoise: float = 1.0) -> Tensor:
    """The (steps + 1,) sigmas of a grid on a model's path, falling to 0, float32.

    Args:
        sampling: the model's `model_sampling`.
        grid: a name, with options or without.
        denoise: the share of the way that is run: the last steps of a list of steps / denoise, as in ComfyUI.

    Raises:
        ValueError: if the grid is unknown, or the model has no so many distinct steps.
    """
    integer("steps", steps, 1)
    number("denoise", denoise, low=0, high=1)
    if denoise == 0:
        return torch.empty(0)
    path = path_of(sampling)
    times = grids.named(grid)(path, int(steps / denoise))
    at = path.nodes(times)
    sigma = at.sigma if isinstance(path, Rectified) else np.divide(at.sigma, at.alpha)
    return torch.from_numpy(np.array(sigma, dtype=np.float32))[-(steps + 1) :]
