r"""Which noise goes with which data: the joint law of the ends of the pairs that a network is trained on.

Every coupling has the same ends; the closer they are, the straighter the flow (Tong et al., 2302.00482; Pooladian et
al., 2304.14772). Costs are :math:`|x_0 - \varepsilon|^2`; the best matching is the same for :math:`\sigma \varepsilon`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import number
from diffsolve.common.registry import Registry
from diffsolve.common.tensors import flat

__all__ = ["Coupling", "Independent", "Optimal", "Sinkhorn", "named", "register"]


class Coupling(ABC):
    """A way to pair a batch of data with a batch of noise; a frozen dataclass of options."""

    @abstractmethod
    def partners(self, x0: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """For each sample of data the row (B,) of its noise; u (B,) uniform in (0, 1), float64, is for what is random.

        Data are not reordered, so that their conditions stay with them.
        """


@dataclass(frozen=True)
class Independent(Coupling):
    """Each sample with the noise of its own row."""

    def partners(self, x0: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        return torch.arange(len(x0), device=noise.device)


@dataclass(frozen=True)
class Optimal(Coupling):
    """The matching of the least total cost within the batch, exact, by `ot.emd` of POT."""

    def partners(self, x0: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        cost = _cost(x0, noise)
        plan = _pot().emd(*[np.full(len(cost), 1 / len(cost))] * 2, cost)
        return torch.from_numpy(plan.argmax(1)).to(noise.device)  # a vertex of the polytope: a permutation


@dataclass(frozen=True)
class Sinkhorn(Coupling):
    """Each sample with a noise drawn from its row of the entropic plan, by `ot.sinkhorn` of POT.

    Args:
        reg: weight of the entropy, as a share of the mean cost: the optimal matching for little of it, else independence.
    """

    reg: float = 0.05

    def __post_init__(self) -> None:
        number("reg", self.reg, low=0.01)  # below it exp(-cost / reg) underflows

    def partners(self, x0: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        cost = _cost(x0, noise)
        even = np.full(len(cost), 1 / len(cost))
        plan = _pot().sinkhorn(even, even, cost, self.reg * cost.mean(), stopThr=1e-4, warn=False)
        below = np.cumsum(plan, 1) / plan.sum(1, keepdims=True)
        drawn = (below < u.cpu().numpy()[:, None]).sum(1).clip(max=len(cost) - 1)
        return torch.from_numpy(drawn).to(noise.device)


def _cost(x0: Tensor, noise: Tensor) -> Any:
    return torch.cdist(flat(x0).double(), flat(noise).double()).square().cpu().numpy()


def _pot() -> Any:
    try:
        import ot
    except ImportError as error:
        raise ImportError("optimal transport is POT's: pip install 'diffsolve[metrics]'") from error
    return ot


registry: Registry[Coupling] = Registry(
    "coupling",
    Coupling,
    {"independent": Independent, "ot": Optimal, "sinkhorn": Sinkhorn},
    group="diffsolve.training.couplings",
)
register = registry.register


def named(coupling: str | Coupling) -> Coupling:
    """The coupling of that name."""
    return registry.resolve(coupling)
