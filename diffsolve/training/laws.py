r"""At which times a network is trained: laws of t, as maps of a uniform u in (0, 1)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve import grids
from diffsolve.common.checks import instance, number
from diffsolve.common.registry import Registry
from diffsolve.grids import Warp
from diffsolve.paths import Path

__all__ = ["LogNormal", "Spread", "TimeLaw", "named", "register"]


class TimeLaw(ABC):
    """A law of the time at which a sample is noised; a frozen dataclass of options."""

    @abstractmethod
    def quantile(self, u: np.ndarray, path: Path) -> np.ndarray:
        """The times below which (counted from the noise end) the share u of all draws lies."""

    def __call__(self, u: Tensor, path: Path) -> Tensor:
        """Times of the path's clock, float64, for uniform u (B,) in (0, 1); whole rows of a table of betas."""
        t = torch.from_numpy(self.quantile(u.double().cpu().numpy(), path))
        return t.round() if path.integer else t


@dataclass(frozen=True)
class Spread(TimeLaw):
    """As dense as the nodes of a grid: `uniform-t`, `uniform-lambda`, `karras`, `arc`, .. between the path's ends.

    Of a table of betas `uniform-t` draws every row alike.
    """

    grid: Warp

    def __post_init__(self) -> None:
        instance("grid", self.grid, Warp, "a grid that is even in some variable, such as 'uniform-lambda'")

    def quantile(self, u: np.ndarray, path: Path) -> np.ndarray:
        if path.integer and self.grid == grids.Uniform("t"):
            rows = path.t_noise - path.t_last + 1
            return np.asarray(np.ceil(path.t_noise - u * rows))
        return self.grid.at(path, u)


@dataclass(frozen=True)
class LogNormal(TimeLaw):
    r"""log(sigma / alpha) is normal: N(mean, std^2), cut at the path's ends.

    EDM's law with mean = -1.2 and std = 1.2 (Karras et al., 2206.00364, table 1). On the straight path, where
    sigma / alpha = u / (1 - u), it is the logit-normal law of rectified flows (Esser et al., 2403.03206, eq. 19):
    "logit-normal" has mean = 0 and std = 1.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        number("mean", self.mean)
        number("std", self.std, above=0)

    def quantile(self, u: np.ndarray, path: Path) -> np.ndarray:
        from scipy.special import ndtr, ndtri

        ends = np.array([float(path.lam(t)) for t in (path.t_noise, path.t_last)])
        high, low = ndtr((-ends - self.mean) / self.std)
        lam = -(self.mean + self.std * ndtri(high - (high - low) * u))
        return np.asarray(path.time(np.clip(lam, *ends)).numpy())


registry: Registry[TimeLaw] = Registry(
    "law of times",
    TimeLaw,
    {"log-normal": LogNormal, "logit-normal": lambda mean=0.0, std=1.0: LogNormal(mean, std)},
    group="diffsolve.training.laws",
)
register = registry.register


def named(law: str | TimeLaw | Warp) -> TimeLaw:
    """The law of that name, or as dense as the grid of that name or the grid itself."""
    if isinstance(law, Warp):
        return Spread(law)
    if isinstance(law, str) and law.partition("(")[0].strip().lower() in grids.registry.entries:
        return Spread(grids.named(law))  # type: ignore[arg-type]
    return registry.resolve(law)
