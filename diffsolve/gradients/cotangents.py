"""Pull cotangents back through one derivative: to the state, and to all else that the network depends on.

The adjoint of dz/dv = d(z, p) is a = dL/dz with (Pontryagin; Chen et al., 1806.07366)

    da/dv = -(dd/dz)^T a,    dL/dp = -integral of (dd/dp)^T a dv from the end to the start
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.models import Model
from diffsolve.models.conditions import Shared, leaves
from diffsolve.models.derivative import check_connected
from diffsolve.models.guidance import Guidance

__all__ = ["check_leaves", "leaves_of", "pull"]


def leaves_of(model: Model, cond: Mapping[str, Any], guidance: Guidance | None) -> list[Tensor]:
    """The tensors that need a gradient: those in the conditions, at any depth, and the network's parameters."""
    weights = model.net.parameters() if isinstance(model.net, nn.Module) else ()
    given = [cond, {} if guidance is None else guidance.given, list(weights)]
    return list({id(t): t for t in _tensors(given) if t.requires_grad}.values())


def pull(
    derivative: Callable[[Tensor], Tensor], x: Tensor, a: Tensor, leaves: Sequence[Tensor] = ()
) -> tuple[Tensor, ...]:
    """(d(x), (dd/dx)^T a, (dd/dp)^T a of each leaf p); no graph is kept."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        d = derivative(x)
    wanted = [x, *leaves]
    pulled = torch.autograd.grad(d, wanted, a, allow_unused=True)
    return d.detach(), *(torch.zeros_like(p) if g is None else g for g, p in zip(pulled, wanted, strict=True))


def check_leaves(output: Callable[[Tensor], Tensor], x: Tensor, leaves: Sequence[Tensor]) -> None:
    """Check, by one call of the network, that a gradient can reach all that it depends on.

    Raises:
        ValueError: if it depends on another tensor that requires a gradient, such as one in a closure; or on x without
            a graph that leads there.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = output(x)
    check_connected(out, x, output, "with gradient='adjoint'")
    known = {id(leaf) for leaf in (x, *leaves)}
    seen = {leaf.grad_fn for leaf in leaves if leaf.grad_fn is not None}
    queue = [out.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue.extend(before for before, _ in node.next_functions)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ValueError(
                "gradient must be 'direct' or 'checkpoint' with this network, got 'adjoint': it depends on a tensor of "
                f"shape {tuple(leaf.shape)} that is neither in cond nor among the parameters of the nn.Module given as "
                "net; or make it one of these"
            )


def _tensors(given: Any) -> Iterator[Tensor]:
    for leaf in leaves(given):
        yield leaf.value if isinstance(leaf, Shared) else leaf
