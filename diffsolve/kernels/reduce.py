"""Numbers per sample: the rescaling of guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.common.tensors import flat
from diffsolve.kernels.dispatch import fused

__all__ = ["deviation_ratio", "spread"]


def spread(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """std(cond) / std(guided) per sample, shape (B,): for rescaled guidance (Lin et al., 2305.08891, eq. 15).

    The guided output is uncond + scale (cond - uncond). Where it is constant over a sample, or a sample is one number,
    it has no spread to compare, and the ratio is 1.
    """
    run = fused(cond.device, "moments")
    if run is None:
        acc = torch.float64 if torch.float64 in (cond.dtype, uncond.dtype) else torch.float32
        c, u = cond.to(acc), uncond.to(acc)
        return deviation_ratio(c, torch.lerp(u, c, scale))
    first, second = run(cond, uncond, scale).unbind(1)
    count = max(cond[0].numel(), 1) if len(cond) else 1
    variance = second.double() - first.double().square() / count
    rounding = 8 * torch.finfo(second.dtype).eps * second  # which is all that is left of a constant
    return _ratio(*torch.where(variance > rounding, variance, 0.0).sqrt())


def deviation_ratio(cond: Tensor, guided: Tensor) -> Tensor:
    """std(cond) / std(guided) per sample, shape (B,); 1 where std(guided) is 0."""
    c, g = flat(cond), flat(guided)
    return _ratio(c.std(1), g.std(1)) if len(c) and c.shape[1] > 1 else c.new_ones(len(c))


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    some = under > 0
    return torch.where(some, over / torch.where(some, under, 1.0), 1.0)
