"""Conversions to and from objects of other libraries, each imported only when it is used."""

from __future__ import annotations

from typing import Any

from diffsolve.models import Model, register_adapter

__all__ = ["recognise"]


@register_adapter
def recognise(thing: Any) -> Model | None:
    """Another library's object as a Model, if it defines its path and prediction; else None.

    Known are diffusers pipelines, flow_matching's `ModelWrapper`, torchcfm's `torch_wrapper`, k-diffusion denoisers and
    EDM's networks.

    Raises:
        TypeError: for a k-diffusion denoiser that does not know its sigmas.
    """
    bases = {f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(thing).__mro__}
    if "diffusers.DiffusionPipeline" in bases:
        from diffsolve.integrations.diffusers import pipeline

        return pipeline(thing)
    if "flow_matching.ModelWrapper" in bases:
        from diffsolve.integrations.flow_matching import wrapped

        return wrapped(thing)
    if "torchcfm.torch_wrapper" in bases:
        from diffsolve.integrations.flow_matching import of_torchcfm

        return of_torchcfm(thing)
    if not (callable(thing) and hasattr(thing, "sigma_min") and hasattr(thing, "sigma_max")):
        if {"k_diffusion.VDenoiser", "k_diffusion.Denoiser"} & bases:
            from diffsolve.integrations.k_diffusion import LEARNED

            kind = type(thing).__name__
            learned = next(LEARNED[base.__name__] for base in type(thing).__mro__ if base.__name__ in LEARNED)
            raise TypeError(
                f"model must be a denoiser that knows its sigmas, got {kind}, which has no sigma_min and sigma_max: "
                f"ds.adapt(denoiser, ds.paths.EDM(sigma_min, sigma_max), 'denoised', learned={learned!r})"
            )
        return None
    if hasattr(thing, "round_sigma"):
        from diffsolve.integrations.edm import preconditioned

        return preconditioned(thing)
    if hasattr(thing, "sigma_to_t"):
        from diffsolve.integrations.k_diffusion import denoiser

        return denoiser(thing)
    return None
