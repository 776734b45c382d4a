"""A model for engines that step requests themselves: the four calls of vLLM-Omni's step execution.

The engine owns the requests, batches what is compatible, and calls what `vllm_omni.diffusion.models.interface` (as of
0.30) names SupportsStepExecution; what it calls a scheduler is here an `Executor` of the request's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.execute import network_times
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.start import begin
from diffsolve.models import Guidance, as_model

__all__ = ["StepExecution"]

Conditions = tuple[Mapping[str, Any], Mapping[str, Any]]


class StepExecution:
    """Stepwise requests of a model, for an engine's pipeline class to derive from or to hold.

    Args:
        model: as in `ds.solve`.
        shape: request state -> (1, C, H, W) of its sample.
        encode: sets `prompt_embeds` and the like of a request state.
        conditions: input batch -> the network's arguments for it with and without the prompt, one entry for each row.
        decode: latents -> what the engine hands out.
        options: of `ds.begin`, such as solver and grid; steps, seed and scale of guidance are the request's.
    """

    supports_step_execution: ClassVar[bool] = True

    def __init__(
        self,
        model: ModelLike,
        shape: Callable[[Any], Shape],
        encode: Callable[[Any], object],
        conditions: Callable[[Any], Conditions],
        decode: Callable[[Tensor], Any],
        **options: Any,
    ) -> None:
        self.model, self.shape, self.encode = as_model(model), shape, encode
        self.conditions, self.decode, self.options = conditions, decode, options

    def prepare_encode(self, state: Any, **_: Any) -> Any:
        """Set up a request: its conditions, and an executor at its first call."""
        self.encode(state)
        asked, scale = state.sampling, 1.0
        if state.do_true_cfg:
            scale = 4.0 if getattr(asked, "true_cfg_scale", None) is None else asked.true_cfg_scale  # the engine's own
        ex = begin(self.model, self.shape(state), steps=asked.num_inference_steps, seed=asked.seed, guidance=scale,
                   **self.options)  # fmt: skip
        own_scales = "without scales of guidance of its own: the engine guides"
        required("guides" not in ex.tableau.unusual, "solver", ex.tableau.solver, own_scales)
        state.scheduler, state.step_index, state.latents = ex, 0, ex.inputs()[0]
        state.timesteps = network_times(self.model, ex.tableau, ex.y)
        return state

    @torch.no_grad()
    def denoise_step(self, input_batch: Any, **_: Any) -> Tensor:
        """One network call over the batch, or one with the unconditional rows in it."""
        cond, uncond = self.conditions(input_batch)
        x, t = input_batch.latents, input_batch.timesteps
        if not input_batch.do_true_cfg:
            return self.model.call(x, t, cond)
        guidance = Guidance(input_batch.true_cfg_scale, batched=True)
        with_, without = guidance.pair(self.model, x, t, cond, uncond)
        return torch.lerp(without, with_, guidance.level)

    def step_scheduler(self, state: Any, noise_pred: Tensor, **_: Any) -> None:
        """Update a request by its own row of its own tableau."""
        state.scheduler.advance(noise_pred)
        state.step_index += 1
        state.latents = state.scheduler.y if state.scheduler.done else state.scheduler.inputs()[0]

    def post_decode(self, state: Any, **_: Any) -> Any:
        """What the engine hands out."""
        return self.decode(state.scheduler.y)
