r"""Linear combinations of tensors with shared or per-sample weights: the differentiable form of the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffsolve import native
from diffsolve.common.checks import required
from diffsolve.kernels.dispatch import fused
from diffsolve.noise import Draw

__all__ = ["LIMIT", "combine"]

LIMIT = 12
"""The most inputs, and the most outputs, of one combination."""


def combine(
    inputs: Sequence[Tensor],
    weights: Tensor,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    draw: Draw | None = None,
) -> tuple[Tensor, ...]:
    r"""out_m = sum_k W_mk x_k, each sum rounded once, in one pass over memory on a GPU.

    Differentiable in the inputs (the transposed combination) and in the weights (inner products).

    Args:
        inputs: K of them, of one shape (B, ...), of any floating dtypes.
        weights: (M, K), or (B, M, K) with weights of its own for each sample. Sums are in float32, or in float64 if an
            input or an output has it.
        dtypes: of the M outputs; that of the first input by default.
        draw: standard normals as one more input, whose weights are the last column.

    Raises:
        ValueError: if shapes or devices disagree, or there are more than 12 inputs or outputs.
    """
    _check(inputs, weights, dtypes, draw)
    M = weights.shape[-2]
    dtypes = (inputs[0].dtype,) * M if dtypes is None else tuple(dtypes)
    run = fused(inputs[0].device, "combine") if native.is_plain(weights, *inputs, graph=True) else None
    if run is None or not inputs[0].is_contiguous() or not (draw is None or draw.plain):
        return _combine(inputs, weights, dtypes, draw)
    tensors = (weights, *inputs)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        out: tuple[Tensor, ...] = _Combine.apply(run, dtypes, draw, weights, *inputs)  # type: ignore[no-untyped-call]
        return out
    return _launch(run, inputs, weights, dtypes, draw)


def _combine(
    inputs: Sequence[Tensor], weights: Tensor, dtypes: Sequence[torch.dtype], draw: Draw | None
) -> tuple[Tensor, ...]:
    """The same with torch."""
    wide = torch.float64 in (*dtypes, *(x.dtype for x in inputs))
    acc = torch.float64 if wide else torch.float32
    xs = [x.to(acc) for x in inputs]
    if draw is not None:
        xs.append(draw.tensor(xs[0]))
    shape = (-1, *[1] * (xs[0].dim() - 1)) if weights.dim() == 3 else ()
    w = weights.to(xs[0].device, acc)
    sums = [sum(w[..., m, k].reshape(shape) * x for k, x in enumerate(xs)) for m in range(len(dtypes))]
    return tuple(torch.as_tensor(total).to(dtype) for total, dtype in zip(sums, dtypes, strict=True))


def _launch(
    run: Any, inputs: Sequence[Tensor], weights: Tensor, dtypes: Sequence[torch.dtype], draw: Draw | None
) -> tuple[Tensor, ...]:
    outputs = tuple(torch.empty_like(inputs[0], dtype=dtype) for dtype in dtypes)
    run(inputs, weights.to(inputs[0].device, torch.float64), outputs, draw=draw)
    return outputs


class _Combine(torch.autograd.Function):
    """The launch with its gradients, which are combinations themselves."""

    @staticmethod
    def forward(ctx: Any, run: Any, dtypes: Any, draw: Draw | None, weights: Tensor, *inputs: Tensor) -> Any:
        ctx.save_for_backward(weights, *inputs)
        ctx.draw = draw
        return _launch(run, inputs, weights, dtypes, draw)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        weights, *inputs = ctx.saved_tensors
        K = len(inputs)
        on_inputs: tuple[Tensor | None, ...] = (None,) * K
        if any(ctx.needs_input_grad[4:]):
            back = weights[..., :K].transpose(-1, -2)
            on_inputs = combine([g.contiguous() for g in grads], back, dtypes=[x.dtype for x in inputs])
        on_weights = None
        if ctx.needs_input_grad[3]:
            columns = [*inputs, *([ctx.draw.tensor(inputs[0])] if ctx.draw is not None else [])]
            x = torch.stack([c.to(weights.dtype).flatten(1) for c in columns])
            g = torch.stack([g.to(weights.dtype).flatten(1) for g in grads])
            on_weights = torch.einsum("mbe,kbe->bmk" if weights.dim() == 3 else "mbe,kbe->mk", g, x)
        return None, None, None, on_weights, *on_inputs


def _check(inputs: Sequence[Tensor], weights: Tensor, dtypes: Sequence[torch.dtype] | None, draw: Draw | None) -> None:
    K, shape = len(inputs) + (draw is not None), inputs[0].shape
    required(1 <= K <= LIMIT, "inputs", K, f"1 to {LIMIT} tensors, the noise of draw counted")
    alike = len(shape) > 0 and all(x.shape == shape for x in inputs)
    required(alike, "inputs", [tuple(x.shape) for x in inputs], "tensors of one shape (B, ...)")
    devices = {str(x.device) for x in inputs}
    required(len(devices) == 1, "inputs", sorted(devices), "on one device")
    fits = weights.dim() in (2, 3) and weights.shape[-1] == K and 1 <= weights.shape[-2] <= LIMIT
    required(fits, "weights", weights, f"of shape (M, {K}) or (B, M, {K}), M <= {LIMIT}")
    required(weights.dim() == 2 or len(weights) == shape[0], "weights", weights, f"of shape ({shape[0]}, M, {K})")
    outputs = weights.shape[-2]
    required(dtypes is None or len(dtypes) == outputs, "dtypes", dtypes, f"{outputs}, one for each output")
