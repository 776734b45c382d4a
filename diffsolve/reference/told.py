"""More that a network is told for which it was not made: where to go, or the scale of guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import instance, number, required
from diffsolve.reference.embedding import fourier, zero

__all__ = ["TwoTimes", "WithScale"]

FEATURES = 32


class _Told(nn.Module):
    """A network to whose embedding of t one of another number is added, zero at first."""

    def __init__(self, net: nn.Module, embedding: nn.Module, span: float, highest: float) -> None:
        super().__init__()
        self.span, self.highest = number("span", span, above=0), number("highest", highest, above=0)
        inside(net, embedding)
        linear = [module for module in embedding.modules() if isinstance(module, nn.Linear)]
        required(bool(linear), "embedding", embedding, "a module with a linear layer")
        self.net = net
        self.added = layers(linear[-1].out_features)
        zero(self.added[-1])
        self.added.to(next(net.parameters()))
        self._number: Tensor | None = None
        embedding.register_forward_hook(self._add)

    def _told(self, value: Tensor | None, *inputs: Tensor, **cond: Any) -> Tensor:
        """The network told the value (B,) too."""
        self._number = value
        try:
            out: Tensor = self.net(*inputs, **cond)
        finally:
            self._number = None
        return out

    def _add(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        if self._number is None:
            return out
        first: Any = self.added[0]
        added: Tensor = self.added(fourier(self._number / self.span, FEATURES, self.highest).to(first.weight))
        return out + added


class TwoTimes(_Told):
    """A network `net(x, t, **cond)` as one `net(x, t, s, **cond)`: an embedding of s is added to that of t.

        student = ds.adapt(ds.distill.TwoTimes(net, net.time_embedding), path, predicts, jumps="straight")

    It is zero at first, so that the student begins as the network. For consistency alone, jumps to the data, the
    network itself will do.

    Args:
        embedding: the module inside `net` whose output (B, width) is the embedding of t. Its last linear layer says the
            width.
        span: the largest time that the network is told: 1, or 999 of a table of 1000.
        highest: the highest frequency of s / span, in radians. With much more, losses that have a derivative in s may
            not converge.

    Raises:
        ValueError: if the module is not inside the network, or has no linear layer.
    """

    def __init__(self, net: nn.Module, embedding: nn.Module, span: float = 1.0, highest: float = 6.0) -> None:
        super().__init__(net, embedding, span, highest)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """The network told both times."""
        return self._told(s, x, t, **cond)


class WithScale(_Told):
    """A network that is told the scale of guidance, `net(x, t, scale=.., **cond)`, for `guided`.

        student = ds.adapt(ds.distill.WithScale(net, net.time_embedding), path, predicts)
        ds.sample(student, shape, cond={"scale": 2.0, ..})

    An embedding of the scale is added to that of t, zero at first. Of a network of two times it may be too.

    Args:
        embedding: as of `TwoTimes`.
        span: the largest scale.
        highest: the highest frequency of scale / span, in radians.

    Raises:
        ValueError: as of `TwoTimes`; when called, if a scale is beyond the span.
    """

    def __init__(self, net: nn.Module, embedding: nn.Module, span: float = 4.0, highest: float = 6.0) -> None:
        super().__init__(net, embedding, span, highest)

    def forward(self, x: Tensor, t: Tensor, *s: Tensor, scale: float | Tensor = 1.0, **cond: Any) -> Tensor:
        """The network told a scale, a number or (B,); by default 1, no guidance."""
        if not isinstance(scale, Tensor):
            number("scale", scale, high=self.span)
        value = torch.as_tensor(scale, dtype=t.dtype, device=t.device).expand(len(x))
        return self._told(value, x, t, *s, **cond)


def layers(width: int) -> nn.Sequential:
    """Of the cosines and sines of a number to an embedding."""
    return nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), nn.Linear(width, width))


def inside(net: nn.Module, embedding: nn.Module) -> None:
    """Refuse an embedding that is no part of the network."""
    instance("net", net, nn.Module, "a torch module")
    found = any(module is embedding for module in net.modules())
    required(found, "embedding", type(embedding).__name__, "a module inside the network")
