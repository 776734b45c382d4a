"""The end of an embedded Runge-Kutta step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsolve.kernels.combine import LIMIT
from diffsolve.kernels.dispatch import fused

__all__ = ["rk_error"]


def rk_error(
    y: Tensor, slopes: Sequence[Tensor], h: Tensor, b: Sequence[float], e: Sequence[float], atol: float, rtol: float
) -> tuple[Tensor, Tensor]:
    r"""The new state of an embedded step and its scaled error, in one pass.

    .. math:: y' = y + h \sum_i b_i k_i, \qquad
              E = \Big( \frac1D \sum_{j=1}^D \Big(
                  \frac{h \sum_i e_i k_{ij}}{\mathrm{atol} + \mathrm{rtol} \max(|y_j|, |y'_j|)} \Big)^2 \Big)^{1/2}

    per sample: a step with E <= 1 is accepted (Hairer, Norsett and Wanner, "Solving ODEs I", II.4, eq. 4.11).

    Args:
        y: (B, ...), with D elements per sample.
        slopes: up to 12 k_i, of y's shape.
        h: (B,), a step of its own for each sample.
        b: weights of the solution.
        e: weights of the error: b minus the embedded method's.

    Returns:
        y', and E of shape (B,): float32, or float64 if y or a slope has it. NaN where the step is NaN.

    Raises:
        ValueError: if shapes or lengths disagree.
    """
    if not 1 <= len(slopes) <= LIMIT or len(b) != len(slopes) or len(e) != len(slopes):
        raise ValueError(f"slopes, b, e: {len(slopes)}, {len(b)}, {len(e)} of them; accepted: as many, 1 to {LIMIT}")
    if y.dim() == 0 or any(k.shape != y.shape for k in slopes) or h.shape != y.shape[:1]:
        raise ValueError(
            f"y, slopes, h have shapes {tuple(y.shape)}, {[tuple(k.shape) for k in slopes]}, {tuple(h.shape)}; "
            "accepted: one shape (B, ...) and (B,)"
        )
    run = fused(y.device, "rk_error")
    if run is None:
        return _rk_error(y, slopes, h, b, e, atol, rtol)
    weights = _on_device(tuple(map(float, b)), tuple(map(float, e)), y.device)
    masks = sum((w != 0) << i for i, w in enumerate(b)), sum((w != 0) << i for i, w in enumerate(e))
    found: tuple[Tensor, Tensor] = run(y, slopes, h, weights, masks, atol, rtol)
    return found


_tables: dict[tuple[tuple[float, ...], tuple[float, ...], torch.device], Tensor] = {}


def _on_device(b: tuple[float, ...], e: tuple[float, ...], device: torch.device) -> Tensor:
    """The weights of a method, copied to a device once."""
    if (b, e, device) not in _tables:
        _tables[b, e, device] = torch.tensor([b, e], dtype=torch.float64, device=device)
    return _tables[b, e, device]


def _rk_error(
    y: Tensor, slopes: Sequence[Tensor], h: Tensor, b: Sequence[float], e: Sequence[float], atol: float, rtol: float
) -> tuple[Tensor, Tensor]:
    """The same with torch."""
    acc = torch.float64 if torch.float64 in (y.dtype, *(k.dtype for k in slopes)) else torch.float32
    step = h.to(acc).view(-1, *[1] * (y.dim() - 1))
    slope, error = torch.zeros_like(y, dtype=acc), torch.zeros_like(y, dtype=acc)
    for k, b_i, e_i in zip(slopes, b, e, strict=True):
        if b_i != 0:
            slope.add_(k, alpha=b_i)
        if e_i != 0:
            error.add_(k, alpha=e_i)
    new = (y.to(acc) + step * slope).to(y.dtype)
    scale = atol + rtol * torch.maximum(y.to(acc).abs(), new.to(acc).abs())
    scaled = (step * error / scale).flatten(1)
    return new, (scaled.square().sum(1) / max(scaled.shape[1], 1)).sqrt()
