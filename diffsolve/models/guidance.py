"""Classifier-free guidance: the conditional and unconditional outputs, combined before the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import number, required
from diffsolve.common.tensors import per_sample
from diffsolve.kernels import Guided, deviation_ratio
from diffsolve.models.buffers import note, reuses, same_memory
from diffsolve.models.conditions import Told, conditions, joined, told
from diffsolve.models.model import Model
from diffsolve.tableau import Tableau

__all__ = ["Guidance"]


@dataclass(frozen=True)
class Guidance:
    """out = uncond + scale (cond - uncond) (Ho and Salimans, 2207.12598; there w = scale - 1).

    Every prediction is linear in the network's output at given x, so the result does not depend on the prediction type.
    A guided call evaluates the network twice but counts as one; where the scale is 1 the network is evaluated once.

    Args:
        scale: 1 is no guidance.
        uncond: the keyword arguments of the unconditional call; none by default, for networks that have defaults.
        interval: (low, high) of rho = sigma / alpha within which guidance is applied (Kynkaanniemi et al., 2404.07724).
        batched: evaluate both in one call with twice the batch; cond and uncond must have the same names, and tensors
            one entry per sample, or be a `ds.Shared` of one value in both.
        rescale: phi in [0, 1]: scale each sample's output this fraction of the way to the standard deviation of its
            conditional output (Lin et al., 2305.08891, section 3.4). An output that is constant over the sample, or of
            one number, is left as it is.

    Raises:
        ValueError: if scale, interval or rescale is out of range.
        TypeError: if uncond is not a mapping.
    """

    scale: float
    uncond: Mapping[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] = (0.0, math.inf)
    batched: bool = False
    rescale: float = 0.0

    def __post_init__(self) -> None:
        number("scale", self.scale)
        number("rescale", self.rescale, low=0, high=1)
        object.__setattr__(self, "uncond", conditions("uncond", self.uncond))
        levels = len(self.interval) == 2 and 0 <= self.interval[0] < self.interval[1]
        required(levels, "interval", self.interval, "two noise levels, 0 <= low < high")

    @staticmethod
    def of(value: float | Guidance | None) -> Guidance:
        """The Guidance that `guidance=` gives: a scale, a Guidance, or None."""
        return value if isinstance(value, Guidance) else Guidance(1.0 if value is None else value)

    def active(self, tableau: Tableau) -> list[bool]:
        """For each call of a run, whether it is guided."""
        with np.errstate(divide="ignore"):
            rho = tableau.calls[:, 2] / tableau.calls[:, 1]
        active: list[bool] = (self.scales(rho) != 1).tolist()
        return active

    def scales(self, rho: np.ndarray) -> np.ndarray:
        """The scale at each noise level; 1, no guidance, outside the interval."""
        low, high = self.interval
        return np.where((rho >= low) & (rho <= high), self.scale, 1.0)

    def outputs(self, model: Model, tableau: Tableau) -> Callable[..., Tensor | Guided]:
        """The guided network of a run: (call number, x, clock, cond) -> the output, or a `Guided` pair to combine.

        Unconditional arguments may follow cond, in place of `uncond`.
        """
        guided, plain = self.active(tableau), (Told(), Told())

        def call(
            i: int, x: Tensor, network_time: Tensor, cond: Mapping[str, Any], uncond: Mapping[str, Any] = self.uncond
        ) -> Tensor | Guided:
            if not guided[i]:
                return model.call(x, network_time, plain[0](cond))
            if not self.batched:  # which tells what is shared from what is not
                cond, uncond = plain[0](cond), plain[1](uncond)
            return Guided(*self.pair(model, x, network_time, cond, uncond), self.scale, self.rescale)

        return call

    def around(self, model: Model, tableau: Tableau) -> Callable[..., Tensor]:
        """`outputs`, with the pair combined into one tensor."""
        outputs = self.outputs(model, tableau)

        def call(*given: Any) -> Tensor:
            out = outputs(*given)
            return out if isinstance(out, Tensor) else out.tensor()

        return call

    def output(
        self,
        model: Model,
        x: Tensor,
        network_time: Tensor,
        rho: np.ndarray,
        cond: Mapping[str, Any],
        uncond: Mapping[str, Any],
    ) -> Tensor:
        """The guided output for samples each at its own noise level rho (B,)."""
        scales = self.scales(rho)
        if (scales == 1).all():
            return model.call(x, network_time, told(cond))
        if not self.batched:
            cond, uncond = told(cond), told(uncond)
        with_, without = self.pair(model, x, network_time, cond, uncond)
        scale = torch.from_numpy(scales).to(with_.device, with_.dtype)
        out = without + per_sample(scale, with_) * (with_ - without)
        if self.rescale:  # 1 where there is no guidance
            ratio = deviation_ratio(with_, out)
            out = out * per_sample(torch.lerp(torch.ones_like(ratio), ratio, self.rescale), out)
        return out

    def pair(
        self, model: Model, x: Tensor, network_time: Tensor, cond: Mapping[str, Any], uncond: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The network's outputs with and without the condition."""
        if not self.batched:
            with_ = model.call(x, network_time, cond)
            if reuses(model.net):
                return with_.clone(), model.call(x, network_time, uncond)
            without = model.call(x, network_time, uncond)
            if not same_memory(with_, without):
                return with_, without
            note(model.net)  # which has overwritten its first output: once more
            without = without.clone()
            return model.call(x, network_time, cond), without
        both = joined(cond, uncond, len(x))
        with_, without = model.call(torch.cat([x, x]), torch.cat([network_time, network_time]), both).chunk(2)
        return with_, without
