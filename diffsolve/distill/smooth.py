"""A time told more smoothly, for losses with a derivative in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.common.checks import number, required
from diffsolve.models.conditions import picked, told
from diffsolve.reference.embedding import fourier, refit
from diffsolve.reference.told import FEATURES, inside, layers

__all__ = ["SmoothTime"]

POINTS, ROWS = 512, 32
"""Times at which an embedding is fitted, and of how many a call of the network is told."""


class SmoothTime(nn.Module):
    """A network `net(x, t, **cond)` told t at low frequencies, in place of its own embedding of t, which is fitted.

        net = copy.deepcopy(teacher_net)
        net = ds.distill.SmoothTime(net, net.time_embedding, images[:1])

    For losses with a derivative in t, `scm`, `ayf` and `meanflow`, whose updates need not settle where a network is
    told t at high frequencies. It begins nearly as the network: `lost` is the share of the embedding, a ratio of root
    mean squares, that the fit leaves out. `net.time` is the new embedding, for `TwoTimes(net, net.time)`.

    Args:
        embedding: the module inside `net` whose output (B, width) is the embedding of t, and of nothing else.
        x: an input of one row or more, of which the first is shown to the network while its embedding is noted.
        cond: of x: tensors whose first axis is that of x have a row for each of its rows.
        times: the lowest and the highest that the network is told.
        highest: the highest frequency, in radians over the whole of these times.

    Raises:
        ValueError: if the module is not inside the network, or makes no (B, width).
    """

    def __init__(
        self,
        net: nn.Module,
        embedding: nn.Module,
        x: Tensor,
        cond: Mapping[str, Any] | None = None,
        *,
        times: tuple[float, float] = (0.0, 1.0),
        highest: float = 6.0,
    ) -> None:
        super().__init__()
        inside(net, embedding)
        self.low, self.high = (number("times", time) for time in times)
        required(self.low < self.high, "times", times, "the lowest and the highest")
        self.highest = number("highest", highest, above=0)
        t = torch.linspace(self.low, self.high, POINTS, dtype=torch.float64)
        wanted = _noted(net, embedding, x, t, cond or {})
        self.time = layers(wanted.shape[1]).to(wanted)
        self.lost = refit(self.time, self._features(t).to(wanted), wanted)
        self.net = net
        embedding.requires_grad_(False)
        self._t: Tensor | None = None
        embedding.register_forward_hook(self._replaced)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The network told t smoothly."""
        self._t = t
        try:
            out: Tensor = self.net(x, t, **cond)
        finally:
            self._t = None
        return out

    def _features(self, t: Tensor) -> Tensor:
        return fourier((t - self.low) / (self.high - self.low), FEATURES, self.highest)

    def _replaced(self, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        if self._t is None:
            return None
        first: Any = self.time[0]
        smooth: Tensor = self.time(self._features(self._t).to(first.weight))
        return smooth.to(out)


@torch.no_grad()
def _noted(net: nn.Module, embedding: nn.Module, x: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
    """(N, width), in float32 at least: what the embedding makes of the times t (N,)."""
    made: list[Tensor] = []
    hook = embedding.register_forward_hook(lambda module, args, out: made.append(out))
    told_as = x.dtype if x.is_floating_point() else torch.float32
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        for times in torch.split(t, ROWS):
            first = torch.zeros(len(times), dtype=torch.int64, device=x.device)
            net(x[first], times.to(x.device, told_as), **told(picked(cond, first, len(x))))
    finally:
        hook.remove()
        for module, training in modes.items():
            module.training = training
    shaped = bool(made) and all(isinstance(out, Tensor) and out.dim() == 2 for out in made)
    required(shaped, "embedding", type(embedding).__name__, "a module whose output is (B, width)")
    out = torch.cat(made)
    required(len(out) == len(t), "embedding", tuple(out.shape), "a module that makes a row for each time")
    return out.to(torch.promote_types(out.dtype, torch.float32))
