"""Products of a network's Jacobian with directions, by the passes that the network has.

- "forward" gives J v, by `torch.func.jvp` for all directions at once;
- "math" gives J v too, with attention and group normalisation in plain operations;
- "reverse" gives J^T v, by the network's graph and one backward pass for each direction;
- "auto" is the first of these whose derivatives the network has. (A trace called by itself goes forward.)

A trace may take J^T in the place of J: both have the same. Torch has no forward derivative of fused attention
(`scaled_dot_product_attention`), nor of group normalisation of tensors that are not contiguous, nor of an
`autograd.Function` without a `jvp`. "math" switches the kernel of attention for the whole process while it runs, as
torch has it: other threads' attention then differs by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.func import jvp, vmap

from diffsolve.common.derivatives import plain_operations

__all__ = ["MODES", "WAYS", "push"]

WAYS = ("forward", "math", "reverse")
MODES = ("auto", *WAYS)

Network = Callable[[Tensor], Tensor]


def push(net: Network, x: Tensor, directions: Tensor, mode: str = "forward") -> tuple[Tensor, Tensor]:
    """(net(x), J v or J^T v) for directions v of shape (m, n, ..); the network itself is run once."""
    if mode == "reverse":
        return _reverse(net, x, directions)

    def along(v: Tensor) -> tuple[Tensor, Tensor]:
        out, pushed = jvp(net, (x,), (v,))[:2]
        return out, pushed

    with plain_operations() if mode == "math" else nullcontext():
        both: tuple[Tensor, Tensor] = vmap(along, out_dims=(None, 0))(directions)  # type: ignore[arg-type]
    return both


def _reverse(net: Network, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    differentiable = torch.is_grad_enabled()
    # Fused attention has no second derivative either.
    with torch.enable_grad(), plain_operations() if differentiable else nullcontext():
        start = x if differentiable and x.requires_grad else x.detach().requires_grad_()
        out = net(start)
        if not out.requires_grad:
            return out, torch.zeros_like(directions)
        pulled = [_pulled(out, start, v, differentiable) for v in directions]
    return out if differentiable else out.detach(), torch.stack(pulled)


def _pulled(out: Tensor, x: Tensor, v: Tensor, differentiable: bool) -> Tensor:
    (back,) = torch.autograd.grad(
        out, x, v.to(out.dtype), retain_graph=True, create_graph=differentiable, allow_unused=True
    )
    return torch.zeros_like(x) if back is None else back
