"""Small operations on batches of tensors, used throughout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["column", "flat", "normal_log_density", "per_sample"]


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, n), whatever its strides: of numbers (B,) n is 1, and an empty batch keeps its n."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def per_sample(weight: Tensor, x: Tensor) -> Tensor:
    """Weights of shape (n,) reshaped to multiply x of shape (n, ...)."""
    return weight.view(-1, *[1] * (x.dim() - 1))


def column(weights: Any, like: Tensor) -> Tensor:
    """Weights () or (B,) in the dtype and on the device of `like` (B, ...), to multiply it."""
    weights = torch.as_tensor(weights, dtype=torch.float64, device=None if isinstance(weights, Tensor) else "cpu")
    return per_sample(weights.expand(len(like)).to(like.device, like.dtype), like)


def normal_log_density(z: Tensor, std: float) -> Tensor:
    """(B,): the log-density of std z, for z standard normal of shape (B, ...); summed in float64 (float32 on MPS)."""
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    n = math.prod(z.shape[1:])
    return -0.5 * flat(z.square()).sum(-1, dtype=wide) - n * (math.log(std) + 0.5 * math.log(2 * math.pi))
