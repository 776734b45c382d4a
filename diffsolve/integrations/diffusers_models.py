"""A diffusers network, or a pipeline's, as a Model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diffsolve.integrations.diffusers_meaning import meaning
from diffsolve.models import Model, adapt
from diffsolve.paths import CondOT, Rectified

__all__ = ["Network", "model_of", "pipeline"]

FLOW_CLOCKS = {"SD3Transformer2DModel": "1000t", "FluxTransformer2DModel": "t"}
"""The clocks of flow transformers, which their pipelines define and their schedulers do not."""


class Network(nn.Module):
    """A diffusers network as `net(x, t, **cond)`, returning a tensor without a learned variance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = self.network(x, timestep=t, return_dict=False, **cond)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def model_of(network: nn.Module, scheduler: Any, *, clock: str | None = None) -> Model:
    """A diffusers network (UNet2DModel, UNet2DConditionModel, a transformer) as a Model.

    Args:
        scheduler: one made for the network; it determines the path and the prediction.
        clock: the network's time, a name in `diffsolve.models.CLOCKS`. For flow transformers only the pipelines define
            it, so it must be given, except for those of Stable Diffusion 3 ("1000t") and Flux ("t"). Note that some
            pipelines also change the sign of the output.

    Raises:
        ValueError: if the scheduler is not supported, or the clock must be given.
    """
    path, predicts, its_clock = meaning(getattr(scheduler, "scheduler", scheduler))
    if clock is None and isinstance(path, Rectified | CondOT):
        clock = FLOW_CLOCKS.get(type(network).__name__)
        if clock is None:
            raise ValueError(
                f"clock must be 't', '1-t' or '1000t', as the pipeline has it, for {type(network).__name__}, got None"
            )
    sigma_data = scheduler.config.get("sigma_data", 0.5)
    return adapt(Network(network), path, predicts, clock=clock or its_clock, sigma_data=sigma_data)


def pipeline(pipe: Any, *, clock: str | None = None) -> Model:
    """The network of a pipeline, its `unet` or `transformer`, as a Model.

    Raises:
        ValueError: if the pipeline has no such network or no scheduler; see also `model_of`.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None or not hasattr(pipe, "scheduler"):
        kind = type(pipe).__name__
        raise ValueError(f"pipe must have a unet or transformer, and a scheduler, got {kind}; use model_of")
    return model_of(network, pipe.scheduler, clock=clock)
