"""A small network for points, and for images as points."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffsolve.reference.embedding import Conditioned

__all__ = ["MLP"]


class MLP(Conditioned):
    r"""Residual layers :math:`f(x, t, s, y)` on a flat event, scaled and shifted by the times and the label.

    Args:
        size: Numbers of an event, of any shape.
        width: Of the residual stream.
        layers: Residual layers.
        num_classes: Number of classes; 0 makes the network unconditional.
        times: 1, or 2 for a flow map that is told where to go.
    """

    def __init__(self, size: int, width: int = 128, layers: int = 3, *, num_classes: int = 0, times: int = 1) -> None:
        super().__init__()
        self.inner = nn.Linear(size, width)
        self.embed_with(32, width, num_classes, times, highest=30.0)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (nn.Linear(width, 2 * width), nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width))
            )
            for _ in range(layers)
        )
        self.outer = nn.Linear(width, size)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Events (B, ...) to the same shape, as `Conditioned.forward` says."""
        h = self.inner(x.flatten(1))
        embedding = self.embed(t, s, label)
        for block in self.blocks:
            modulate, norm, first, second = block.children()
            scale, shift = modulate(embedding).chunk(2, 1)
            h = h + second(F.silu(first(norm(h) * (1 + scale) + shift)))
        out: Tensor = self.outer(h).view_as(x)
        return out
