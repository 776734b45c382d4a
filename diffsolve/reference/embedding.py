"""What every reference network is told besides x: one time or two, and a class or none."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffsolve.common.checks import integer, required

__all__ = ["Conditioned", "fourier", "refit", "zero"]


def fourier(t: Tensor, size: int, highest: float = 100.0) -> Tensor:
    """Cosines and sines of `t`, of shape (B,), at `size / 2` frequencies: (B, size), always in float32.

    The angular frequencies are spaced geometrically from 1 to `highest`: for `t` in [0, 1] that resolves
    differences of 1/1000, and keeps the network smooth in `t`, which high-order solvers rely on.
    """
    steps = torch.arange(size // 2, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(steps * (math.log(highest) / (size // 2 - 1)))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Conditioned(nn.Module):
    """A network `net(x, t, s, label)`: x at time t, moved to time s if it is a flow map, of a class or of none.

    A network of one time takes no s. One of two times begins as that of one time: its embedding of s is zero at first,
    so weights of a network of one time go into it with `load_state_dict(.., strict=False)`.
    """

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: Samples, with shape (B, ...), in the dtype of the parameters.
            t: Times in [0, 1], with shape (B,).
            s: Where a flow map of two times goes, with shape (B,); None is t.
            label: Classes as int64, with shape (B,); -1 means "no label", None means no label for any sample.

        Returns:
            A tensor like `x`.

        Raises:
            ValueError: if a network of one time is told two.
            TypeError: if s is no floating tensor.
        """
        raise NotImplementedError

    def embed_with(
        self,
        features: int,
        width: int,
        num_classes: int,
        times: int,
        highest: float = 100.0,
        until: float | None = None,
    ) -> None:
        """Make the layers: of `features` cosines and sines of a time, and of a label, to `width` numbers.

        `highest` is the highest frequency of t, `until` that of s: `highest` by default, less for losses with a
        derivative in s.
        """
        self.features, self.highest, self.highest_until = features, highest, highest if until is None else until
        self.num_classes = integer("num_classes", num_classes, 0)
        self.times = integer("times", times, 1, 2)
        self.time = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(num_classes + 1, width)  # row 0 is "no label", class y is row y + 1
        if times == 2:
            self.until = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
            nn.init.zeros_(self.until[2].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.until[2].bias)  # type: ignore[arg-type]

    def embed(self, t: Tensor, s: Tensor | None, label: Tensor | None) -> Tensor:
        """(B, width): of the times, about in [0, 1], and the label; s = None is s = t, label = None is -1, no label.

        Raises:
            ValueError: if the network knows one time and is told two.
            TypeError: if s is no floating tensor, such as a label given in its place.
        """
        if label is None:
            label = torch.full_like(t, -1, dtype=torch.int64)
        dtype = self.label.weight.dtype
        e: Tensor = self.time(fourier(t, self.features, self.highest).to(dtype)) + self.label(label + 1)
        if s is not None:
            required(s.is_floating_point(), "s", s, "a floating tensor; label= has the class", TypeError)
            required(self.times == 2, "s", s, "None for a network of one time; times=2 makes one of two")
        if self.times == 2:
            e = e + self.until(fourier(t if s is None else s, self.features, self.highest_until).to(dtype))
        return F.silu(e)


def zero(layer: nn.Module) -> nn.Module:
    """The same layer with its parameters set to zero."""
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def refit(layers: nn.Sequential, inputs: Tensor, wanted: Tensor, steps: int = 1500) -> float:
    """Train layers, of which the last is linear, to make `wanted` (N, width) of `inputs` (N, features).

    It is done on everything at once by least squares and Adam, from the weights as they are.

    Returns:
        The root mean square of what is left over that of `wanted`.
    """
    inputs, wanted = inputs.detach(), wanted.detach()
    size = wanted.square().mean().sqrt().clamp(min=1e-12)
    last: Any = layers[-1]
    with torch.no_grad():  # so that a step of Adam is as long for wanted values of any size
        for parameter in last.parameters():
            parameter /= size
    optimizer = torch.optim.Adam(layers.parameters(), lr=3e-3)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.enable_grad():
        for _ in range(steps):
            error = (layers(inputs) - wanted / size).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            rates.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for parameter in last.parameters():
            parameter *= size
    return float(error.detach().sqrt())
