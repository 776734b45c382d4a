"""Numbers per sample: the rescaling of guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.kernels.dispatch import fused

__all__ = ["spread"]


def spread(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """std(cond) / std(guided) per sample, shape (B,): for rescaled guidance (Lin et al., 2305.08891, eq. 15).

    The guided output is uncond + scale (cond - uncond).
    """
    run = fused(cond.device, "moments")
    if run is None:
        acc = torch.float64 if torch.float64 in (cond.dtype, uncond.dtype) else torch.float32
        c, u = cond.to(acc).flatten(1), uncond.to(acc).flatten(1)
        return c.std(1) / torch.lerp(u, c, scale).std(1)
    first, second = run(cond, uncond, scale).unbind(1)
    count = max(cond[0].numel(), 1) if len(cond) else 1
    variance = second.double() - first.double().square() / count
    ratio: Tensor = (variance[0] / variance[1]).sqrt()
    return ratio
