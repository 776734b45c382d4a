"""Small operations on batches of tensors, used throughout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["column", "flat", "neighbours", "normal_log_density", "per_sample"]


def flat(x: Tensor) -> Tensor:
    """(B, ...) as (B, n), whatever its strides: of numbers (B,) n is 1, and an empty batch keeps its n."""
    return x.reshape(len(x), math.prod(x.shape[1:]))


def neighbours(x: Tensor) -> Tensor:
    """The mean of the neighbours of each element of x (B, C, ...), along all axes after the channels.

    At an edge the element itself stands for the one beyond it. So the mean of a constant is that constant, and cosines
    cos(pi k (i + 1/2) / n) along an axis of n are its eigenvectors, with cos(pi k / n): those of the DCT-II.
    """
    sums = torch.zeros_like(x)
    for axis in range(2, x.dim()):
        n = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
        sums = sums + (before + after)
    return sums / (2 * (x.dim() - 2))


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
