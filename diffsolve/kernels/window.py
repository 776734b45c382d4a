"""One sweep of a parallel-in-time solve."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsolve.kernels.dispatch import fused

__all__ = ["window_update"]


def window_update(rows: Tensor, old: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r"""new_j = sum_{k <= K - W + j} L_jk r_k and, in the same pass, |new_j - old_j|^2 per sample.

    A Picard (Jacobi) sweep on a window of W network inputs: the run is a strictly lower-triangular system, so input j
    is made of what stands before it (Shih et al., 2305.16317, eq. 9, in the form of the tableau's rows).

    Args:
        rows: (K, B, ...): the window's start, predictions and noises, in order of first use.
        old: (W, B, ...): the inputs before the sweep, W <= K.
        weights: (W, K) float64; what stands above the diagonal k = K - W + j is not read.

    Returns:
        new, of the shape and dtype of old, and (W, B): the squared change of each input and sample, float32, or
        float64 if rows or old have it.

    Raises:
        ValueError: if shapes disagree.
    """
    if rows.dim() < 2 or old.shape[1:] != rows.shape[1:] or not 1 <= len(old) <= len(rows):
        raise ValueError(
            f"rows, old have shapes {tuple(rows.shape)}, {tuple(old.shape)}; accepted: (K, B, ...) and (W, B, ...) "
            "with 1 <= W <= K"
        )
    if weights.shape != (len(old), len(rows)):
        raise ValueError(f"weights has shape {tuple(weights.shape)}; accepted: ({len(old)}, {len(rows)})")
    run = fused(rows.device, "window_update")
    if run is None:
        return _window_update(rows, old, weights)
    found: tuple[Tensor, Tensor] = run(rows, old, weights.to(rows.device, torch.float64))
    return found


def _window_update(rows: Tensor, old: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same with torch."""
    acc = torch.float64 if torch.float64 in (rows.dtype, old.dtype) else torch.float32
    causal = weights.tril(len(rows) - len(old)).to(rows.device, acc)
    new = (causal @ rows.to(acc).flatten(1)).view(old.shape).to(old.dtype)
    change = (new.to(acc) - old.to(acc)).flatten(2).square().sum(-1)
    return new, change
