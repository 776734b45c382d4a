"""Shared by the fused implementations: accumulation, layouts and the counters of noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsolve.noise import Draw
from diffsolve.noise import key as noise

__all__ = ["accumulator", "same_layout", "seeds_on"]


def accumulator(*tensors: Tensor) -> torch.dtype:
    """float64 if any operand has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def same_layout(like: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors with the strides of `like`, which must be dense: copies of those that have others."""
    stride = like.stride()
    return [t if t.stride() == stride else torch.empty_like(like, dtype=t.dtype).copy_(t) for t in tensors]


def seeds_on(draw: Draw, device: torch.device) -> tuple[Tensor, int, int, int, bool]:
    """(seeds, sample of row 0, row, stream, whether the seeds are one per sample) of a draw with a plain key."""
    seed = draw.key.seed
    listed = not isinstance(seed, int)
    seeds = noise.seeds_on((seed,) if isinstance(seed, int) else tuple(seed), device)
    return seeds, draw.key.index, draw.row, int(draw.stream), listed
