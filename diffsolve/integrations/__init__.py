"""Conversions to and from objects of other libraries, each imported only when it is used."""

from __future__ import annotations

from typing import Any

from diffsolve.models import Model, register_adapter

__all__ = ["recognise"]


@register_adapter
def recognise(thing: Any) -> Model | None:
    """Another library's object as a Model, if it defines its path and prediction; else None.

    Known are diffusers pipelines, flow_matching's `ModelWrapper`, k-diffusion denoisers and EDM's networks.
    """
    bases = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(thing).__mro__}
    if "diffusers.DiffusionPipeline" in bases:
        from diffsolve.integrations.diffusers import pipeline

        return pipeline(thing)
    if "flow_matching.ModelWrapper" in bases:
        from diffsolve.integrations.flow_matching import wrapped

        return wrapped(thing)
    if not (callable(thing) and hasattr(thing, "sigma_min") and hasattr(thing, "sigma_max")):
        return None
    if hasattr(thing, "round_sigma"):
        from diffsolve.integrations.edm import preconditioned

        return preconditioned(thing)
    if hasattr(thing, "sigma_to_t"):
        from diffsolve.integrations.k_diffusion import denoiser

        return denoiser(thing)
    return None
