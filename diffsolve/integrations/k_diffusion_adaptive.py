"""DPM-Solver-23 with adaptive steps, as k-diffusion and ComfyUI have it under the name dpm_adaptive."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.solvers.exponential import dpm2, dpm3

__all__ = ["dpm_adaptive"]


def dpm_adaptive(
    denoiser: Callable[[Tensor, float], Tensor],
    x: Tensor,
    high: float,
    low: float,
    shown: Callable[[int, float, Tensor, Tensor], None],
    *,
    rtol: float = 0.05,
    atol: float = 0.0078,
    first: float = 0.05,
) -> Tensor:
    r"""x at the sigma `low`, from x at `high`, by steps in log sigma (Lu et al., 2206.00927, appendix C).

    A step of h is DPM-Solver-3 on eps = (x - D) / sigma; its error e is the root mean square, over the whole batch, of
    its distance from DPM-Solver-2 on the same calls, in units of max(atol, rtol |x|). The next h is f h with
    f = 1 + atan(e^{-1/3} - 1), and a step with f < 0.81 is made anew. `ds.Adaptive` keeps an error for each sample.

    Args:
        denoiser: of (x, sigma).
        shown: is called with the number of the trial, its sigma, x and the denoised.
        first: the first h.

    Raises:
        ValueError: if the levels do not fall, or the error of a step is not finite.
    """
    required(high > low > 0, "sigmas", (high, low), "positive and falling")
    scheme, embedded = dpm3(), dpm2(1 / 3)
    at, end, h, trial, before = -math.log(high), -math.log(low), first, 0, x
    while at < end - 1e-5:
        to = min(end, at + h)
        step = to - at
        sigma, length = math.exp(-at), math.exp(-to) - math.exp(-at)
        a, b = scheme.butcher(step)
        eps: list[Tensor] = []
        for c, row in zip(scheme.c, a, strict=True):
            y, level = _sum(x, length, row, eps), math.exp(-at - c * step)
            denoised = denoiser(y, level)
            if not eps:
                shown(trial, sigma, x, denoised)
            eps.append((y - denoised) / level)
        fine, coarse = _sum(x, length, b, eps), _sum(x, length, embedded.butcher(step)[1], eps[:2])
        unit = torch.clamp(rtol * torch.maximum(coarse.abs(), before.abs()), min=atol)
        error = float(torch.linalg.vector_norm((coarse - fine) / unit)) / math.sqrt(x.numel())
        required(math.isfinite(error), "the error of a step", error, f"finite, at sigma={sigma:.6g}")
        factor = 1 + math.atan((error + 1e-8) ** (-1 / 3) - 1)
        h *= factor
        trial += 1
        if factor >= 0.81:
            at, x, before = to, fine, coarse
    return x


def _sum(x: Tensor, length: float, weights: list[float], eps: list[Tensor]) -> Tensor:
    for weight, each in zip(weights, eps, strict=True):
        x = x + length * weight * each
    return x
