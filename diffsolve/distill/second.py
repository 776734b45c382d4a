"""A second time for a network that was made for one."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diffsolve.common.checks import instance, number, required
from diffsolve.reference.embedding import fourier, zero

__all__ = ["TwoTimes"]

FEATURES = 32


class TwoTimes(nn.Module):
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
        super().__init__()
        self.span, self.highest = number("span", span, above=0), number("highest", highest, above=0)
        instance("net", net, nn.Module, "a torch module")
        inside = any(module is embedding for module in net.modules())
        required(inside, "embedding", type(embedding).__name__, "a module inside the network")
        layers = [module for module in embedding.modules() if isinstance(module, nn.Linear)]
        required(bool(layers), "embedding", embedding, "a module with a linear layer")
        width = layers[-1].out_features
        self.net = net
        self.until = nn.Sequential(nn.Linear(FEATURES, width), nn.SiLU(), zero(nn.Linear(width, width)))
        self.until.to(next(net.parameters()))
        self._s: Tensor | None = None
        embedding.register_forward_hook(self._add)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, **cond: Any) -> Tensor:
        """The network told both times."""
        self._s = s
        try:
            out: Tensor = self.net(x, t, **cond)
        finally:
            self._s = None
        return out

    def _add(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        if self._s is None:
            return out
        first = self.until[0].weight
        added: Tensor = self.until(fourier(self._s / self.span, FEATURES, self.highest).to(first))  # type: ignore[arg-type]
        return out + added
