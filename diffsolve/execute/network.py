"""The network of a run: its time, input scale, guidance and conversion at each call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.tensors import per_sample
from diffsolve.execute.blur import Blur
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.paths import Position
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import FRAMES, STRAIGHT, Coefficients, averaged, convert

__all__ = ["Network", "conversion", "derivatives", "network_times"]


@dataclass(frozen=True)
class Network:
    """A model at the calls of a run: out_i(y) = guided net(scale_i y, time_i)."""

    outputs: Callable[..., Tensor]
    """The guided network, from `Guidance.around`: (call index, input, clock, cond, given) -> output."""
    times: Tensor
    """(N,) or (N, 2): the network's clock at each call, from `network_times`."""
    scales: Sequence[float] | Tensor | None
    """(N,): the factors on the inputs; None for 1."""
    blur: Blur | None = None
    """What the tableau makes of the outputs in space."""

    @classmethod
    def of(cls, model: Model, tableau: Tableau, guidance: Guidance, like: Tensor) -> Network:
        """The network at the calls of a tableau, for states such as `like`."""
        at = model.path.nodes(tableau.calls[:, 0])
        scale, times = model.input_scale(at), network_times(model, tableau, like)
        blur = Blur.of(tableau, *conversion(derivatives(model, tableau), model, at))
        return cls(guidance.around(model, tableau), times, None if scale is None else scale.tolist(), blur)

    def __call__(self, i: int, y: Tensor, *conditions: Mapping[str, Any]) -> Tensor:
        """The output at call i for states y (B, ...), given cond and, in place of the guidance's own, `given`."""
        x = y if self.scales is None else y * self.scales[i]
        out = self.outputs(i, x, self.times[i].expand(len(y), *self.times.shape[1:]), *conditions)
        return out if self.blur is None else self.blur(i, y, out)

    def at_calls(self, rows: Tensor, y: Tensor, *conditions: Mapping[str, Any], example: int) -> Tensor:
        """The outputs for states y (M, ...) at the calls `rows` (M,), all guided like the call `example`."""
        # The scale in the dtype of y, to which a Python number would be rounded too.
        x = y if self.scales is None else y * per_sample(self._scale_table[rows].to(y.dtype), y)
        out = self.outputs(example, x, self.times[rows], *conditions)
        return out if self.blur is None else self.blur.at_calls(rows, y, out)

    @cached_property
    def _scale_table(self) -> Tensor:
        device = self.times.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        return torch.as_tensor(self.scales, dtype=wide, device=device)  # of float32, if it were not said


def network_times(model: Model, at: Tableau | Tensor, like: Tensor) -> Tensor:
    """The network's clock at the calls of a tableau, or at the path's times (n,); (n, 2) if it is told two.

    In the dtype and on the device for states such as `like`.
    """
    if isinstance(at, Tableau):
        t, s = (torch.tensor(times, device="cpu") for times in (at.told, at.to))
        times = model.network_time(t, s)
    else:
        times = model.network_time(at)
    return times.to(like.device, model.time_dtype(like.dtype))


def derivatives(model: Model, tableau: Tableau) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of d at each call, as what the network's output is converted to.

    That is the tableau's own d; of a network that averages over a stretch in another frame, the average of d.
    """
    d = tableau.d
    if model.jumps is not None and not {model.jumps, *tableau.frame} <= STRAIGHT:
        d = d.copy()
        at, to = model.path.nodes(tableau.calls[:, 0]), model.path.nodes(tableau.to)
        for i in np.flatnonzero(tableau.jumps):
            d[i] = averaged(FRAMES[tableau.frame[i]], FRAMES[model.jumps], at[i], to[i])
    return d[:, 0], d[:, 1]


def conversion(target: Coefficients, model: Model, at: Position[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(p, q) per position with target = p y + q out; not finite where the network does not determine the target."""
    with np.errstate(all="ignore"):
        source = model.coefficients(at)
        p, q = convert(target, source, at.alpha, at.sigma)
    same = (source[0] == target[0]) & (source[1] == target[1])  # no conversion: exact even where it would be singular
    return np.where(same, 0.0, p), np.where(same, 1.0, q)
