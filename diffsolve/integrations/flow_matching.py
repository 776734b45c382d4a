"""Models of the flow_matching package, and torchcfm's wrapper: velocities with t = 0 noise and t = 1 data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffsolve.models import Model, adapt

__all__ = ["of_torchcfm", "wrapped"]


def wrapped(model: Any) -> Model:
    """A flow_matching `ModelWrapper` as a Model, for the conditional optimal-transport path.

    A wrapper does not know its path. For a model trained on another (`CosineScheduler`, ..) give it: `ds.adapt(wrapper,
    path=ds.paths.Custom(alpha, sigma, t_noise=0.0, t_data=1.0), predicts="velocity")`.
    """
    return adapt(model, "condot", "velocity")


class _Joined(nn.Module):
    """A network of x and t in one tensor (B, d + 1), as torchcfm's are, told each sample's own time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.network(torch.cat([x, t.to(x.dtype)[:, None]], 1))
        return out


def of_torchcfm(wrapper: Any) -> Model:
    """torchcfm's `torch_wrapper`, called as (t, x) for torchdiffeq, as a Model of states (B, d)."""
    return adapt(_Joined(wrapper.model), "condot", "velocity")
