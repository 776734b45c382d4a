"""Linear systems, one for each sample of a batch, of operators that are known by what they do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffsolve.common.tensors import per_sample
from diffsolve.conditioning.operators import Operator
from diffsolve.guidance.base import dot

__all__ = ["conjugate_gradients", "solve_gram"]


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, least: float = 0.0) -> Tensor:
    """u with apply(u) = b, by conjugate gradients from u = 0 (Hestenes and Stiefel, 1952), sample by sample.

    `apply` should be symmetric with eigenvalues >= `least`. Of a trained network's derivative that is so only nearly:
    where a direction shows otherwise, and where the residual has reached rounding, a sample keeps the u that it has. No
    value is read from the device.

    Args:
        apply: (B, ...) -> (B, ...), linear.
        iterations: exact, up to rounding, after as many as `apply` has different eigenvalues that b meets.
    """
    u, residual = torch.zeros_like(b), b
    direction, size = residual, dot(residual, residual)
    reached = size * (4 * torch.finfo(b.dtype).eps) ** 2
    going = size > reached
    for _ in range(iterations):
        moved = apply(direction)
        curvature = dot(direction, moved)
        going = going & (curvature > least * dot(direction, direction))
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0).to(b.dtype)
        u, residual = u + step * direction, residual - step * moved
        before, size = size, dot(residual, residual)
        going = going & (size > reached)
        direction = residual + torch.where(going, size / torch.where(going, before, 1.0), 0.0).to(b.dtype) * direction
    return u


def solve_gram(operator: Operator, like: Tensor, b: Tensor, weight: Tensor, variance: float, iterations: int) -> Tensor:
    """u with (weight A A^T + variance I) u = b; 0 where both sides are.

    Args:
        like: states (B, ...).
        weight: (B,), >= 0.
        iterations: of conjugate gradients, unless A A^T is known to be a multiple of the identity.
    """
    scale = per_sample(weight.to(b), b)
    if operator.gram is None:
        return conjugate_gradients(
            lambda v: scale * operator(operator.transpose(v, like)) + variance * v, b, iterations
        )
    V = scale * operator.gram + variance
    return torch.where(V > 0, b / torch.where(V > 0, V, 1.0), 0.0)
