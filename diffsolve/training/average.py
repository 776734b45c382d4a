r"""Averages of the weights over a training, by `torch.optim.swa_utils.AveragedModel`.

A decay beta_t at update t = 1, 2, .. makes :math:`\hat\theta_t = \beta_t \hat\theta_{t-1} + (1 - \beta_t) \theta_t`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from diffsolve.common.checks import integer, number, required
from diffsolve.common.files import read_tensors, reading

__all__ = ["Average", "Exponential", "Power", "averaged", "combine", "named", "weights_of_profiles"]

KEY = "diffsolve"  # the one entry of the metadata of what a training writes, a JSON object
ACCEPTED = "a power average of a training"


class Average(ABC):
    """How a moving average forgets; a frozen dataclass of options."""

    @abstractmethod
    def decay(self, t: int) -> float:
        """beta_t at the update t = 1, 2, .."""


@dataclass(frozen=True)
class Exponential(Average):
    """beta_t = min(beta, t / (t + 9)): constant, after a shorter memory at the start."""

    beta: float = 0.999

    def __post_init__(self) -> None:
        number("ema", self.beta, low=0, below=1)

    def decay(self, t: int) -> float:
        return min(self.beta, t / (t + 9))


@dataclass(frozen=True)
class Power(Average):
    r"""beta_t = (1 - 1/t)^{gamma + 1}: the weight of theta_t grows as t^gamma (Karras et al., 2312.02696, eq. 124-127).

    Args:
        length: sigma_rel, the standard deviation of the averaging profile, as a share of the training so far.
    """

    length: float = 0.05

    def __post_init__(self) -> None:
        number("length", self.length, above=0, below=12**-0.5)

    @property
    def gamma(self) -> float:
        """The positive root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
        return _gamma(self.length)

    def decay(self, t: int) -> float:
        return float((1 - 1 / t) ** (self.gamma + 1))


@cache
def _gamma(length: float) -> float:
    # (g + 2)^2 (g + 3) = (g + 1) / length^2
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def named(ema: float | Average | Sequence[Average]) -> tuple[Average, ...]:
    """The averages themselves, or the exponential one of that decay."""
    if isinstance(ema, Sequence) and ema and all(isinstance(one, Average) for one in ema):
        return tuple(ema)
    return (ema if isinstance(ema, Average) else Exponential(ema),)  # type: ignore[arg-type]  # which refuses others


def weights_of_profiles(times: Sequence[float], gammas: Sequence[float], time: float, gamma: float) -> np.ndarray:
    r"""How averages of several times and lengths add up to another one: the least-squares fit of their profiles.

    The profile of a power average at time t is :math:`p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}` on [0, t].
    Two of them have the product :math:`\int p_a p_b = \frac{(\gamma_a + 1) (\gamma_b + 1)}{\gamma_a + \gamma_b + 1}
    \min(t_a, t_b)^{\gamma_a + \gamma_b + 1} t_a^{-\gamma_a - 1} t_b^{-\gamma_b - 1}` (2312.02696, appendix C.2).
    """
    t, g = np.array([*times, time], dtype=np.float64), np.array([*gammas, gamma], dtype=np.float64)
    t = t / t.max()
    # in logarithms: t^gamma alone underflows
    low, power = np.log(np.minimum.outer(t, t)), np.add.outer(g, g) + 1
    at = np.log(t) * (g + 1)
    products = np.multiply.outer(g + 1, g + 1) / power * np.exp(low * power - np.add.outer(at, at))
    return np.asarray(np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0])


def combine(files: Iterable[str | os.PathLike[str]], length: float) -> dict[str, Tensor]:
    """The weights that a power average of another length would have had, from those that `fit` saved (2312.02696).

        fit(.., ema=(Power(0.05), Power(0.1)), snapshots=16)
        net.load_state_dict(ds.training.combine(Path(".").glob("flow.safetensors-*"), length=0.13))

    Args:
        files: that `fit(snapshots=..)` wrote, of one training; the combination is at the latest of their times.
        length: sigma_rel of the wanted average.

    Returns:
        As `net.state_dict()`; what is no floating-point number as in the latest file.

    Raises:
        ValueError: if a file is no such average.
    """
    wanted, found = Power(length), []
    for file in files:
        tensors, note = read_tensors(file, KEY, accepted=ACCEPTED)
        with reading(file, ACCEPTED):
            found.append((integer("step", note["step"], 1), Power(number("length", note["length"])).gamma, tensors))
    required(bool(found), "files", found, "at least one file of an average")
    found.sort(key=lambda one: one[0])
    times, gammas = [one[0] for one in found], [one[1] for one in found]
    shares = weights_of_profiles(times, gammas, times[-1], wanted.gamma)
    total = dict(found[-1][2])
    for name, value in total.items():
        if value.is_floating_point():
            terms = [
                share * tensors[name].double() for share, (_, _, tensors) in zip(shares.tolist(), found, strict=True)
            ]
            total[name] = torch.stack(terms).sum(0).to(value.dtype)
    return total


def averaged(net: nn.Module, average: Average) -> AveragedModel:
    """A copy of the network that each `update_parameters(net)` moves towards it; buffers are copied."""

    @torch.no_grad()
    def move(mean: Any, now: Any, count: Any) -> None:
        torch._foreach_lerp_(mean, now, 1 - average.decay(int(count) + 1))

    return AveragedModel(net, multi_avg_fn=move)
