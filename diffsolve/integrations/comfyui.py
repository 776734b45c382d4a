"""A node for ComfyUI: any solver of this library as a SAMPLER for SamplerCustom.

A file `diffsolve.py` in ComfyUI's `custom_nodes` needs one line:

    from diffsolve.integrations.comfyui import NODE_CLASS_MAPPINGS
"""

from __future__ import annotations

from typing import Any, ClassVar

from diffsolve.integrations.k_diffusion import sampler
from diffsolve.solvers import names

__all__ = ["NODE_CLASS_MAPPINGS", "DiffsolveSampler"]


class DiffsolveSampler:
    """The node: a solver's name, and options for it as in "eta=0.5, tau=1.0"."""

    RETURN_TYPES: ClassVar = ("SAMPLER",)
    FUNCTION: ClassVar = "sampler"
    CATEGORY: ClassVar = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What ComfyUI shows."""
        return {"required": {"solver": (names(), {"default": "unipc-3"}), "options": ("STRING", {"default": ""})}}

    def sampler(self, solver: str, options: str) -> tuple[Any]:
        """The sampler. An unknown option is a ValueError that lists those there are."""
        from comfy.samplers import KSAMPLER

        return (KSAMPLER(sampler(f"{solver}({options})" if options.strip() else solver)),)


NODE_CLASS_MAPPINGS = {"DiffsolveSampler": DiffsolveSampler}
