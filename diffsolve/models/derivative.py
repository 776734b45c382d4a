"""Whether a network has a derivative in its input: what is not in its graph looks like a derivative of 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.tensors import flat

__all__ = ["Pullback", "check_connected", "check_derivative", "connected", "pullback", "unwrapped"]

Pullback = Callable[[Tensor], Tensor]
"""v -> J^T v, for the Jacobian J of a function at a point."""

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def connected(out: Tensor, x: Tensor) -> bool:
    """Whether the graph of `out` leads to x."""
    queue, seen = [out.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        if node is x.grad_fn or getattr(node, "variable", None) is x:
            return True
        seen.add(node)
        queue.extend(before for before, _ in node.next_functions)
    return out is x


def check_connected(out: Tensor, x: Tensor, net: Callable[[Tensor], Tensor], why: str) -> None:
    """Check that out = net(x), made with a graph, leads to x; or that the network does not depend on x.

    Raises:
        ValueError: if a small change of x changes the output of most samples all the same.
    """
    if not len(x) or connected(out, x):
        return
    with torch.no_grad():  # copies, as the network may overwrite its last output
        first = flat(out).clone()
        again, moved = (flat(net(y)).clone() for y in (x, x + 0.01 * (1 + x.abs())))
        # A network that differs from call to call, by a dropout, says nothing.
        if not torch.equal(again, first) or int((moved != first).any(1).sum()) * 2 <= len(x):
            return
    raise ValueError(
        f"net must have a derivative in x {why}, got one whose output changes with x though its graph does not lead to "
        "x: remove the no_grad, inference_mode or detach inside it, or the CUDA graph that it replays"
    )


def check_derivative(net: Callable[[Tensor], Tensor], x: Tensor, why: str) -> None:
    """`check_connected`, by one more call of the network."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = net(x)
    check_connected(out, x, net, why)


def pullback(net: Callable[[Tensor], Tensor], x: Tensor, why: str) -> tuple[Tensor, Pullback]:
    """(net(x), v -> J^T v), of which the second may be called many times; both have gradients if they are enabled.

    By the graph of net: what `torch.func.vjp` does cannot be recomputed by a checkpoint. Inside transforms of
    torch.func, where a tensor cannot be told to require a gradient, there is no other way.

    Raises:
        ValueError: of the second, as `check_connected`.
    """
    differentiable = torch.is_grad_enabled()
    try:
        start = x if differentiable and x.requires_grad else x.detach().requires_grad_()
    except RuntimeError:  # inside such a transform
        made: Any = torch.func.vjp(net, x)
        return made[0], lambda v: made[1](v)[0]
    with torch.enable_grad():
        out = net(start)

    def pull(v: Tensor) -> Tensor:
        back = None
        if out.requires_grad:
            (back,) = torch.autograd.grad(
                out, start, v, retain_graph=True, create_graph=differentiable, allow_unused=True
            )
        if back is None:
            check_connected(out, start, net, why)
        return torch.zeros_like(start) if back is None else back

    return out if differentiable else out.detach(), pull


def unwrapped(net: Any, *, gradient: bool) -> Any:
    """The network inside `torch.compile`, which may not differentiate in forward mode, and inside DDP.

    Args:
        gradient: whether the network's parameters may get a gradient, which DDP has to see.
    """
    while True:
        inner = getattr(net, "_orig_mod", None) or getattr(net, "_torchdynamo_orig_callable", None)
        if inner is None and isinstance(net, WRAPPERS) and not gradient:
            inner = net.module
        if inner is None:
            return net
        net = inner
