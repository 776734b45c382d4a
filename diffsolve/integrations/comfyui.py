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
    """The node: the name of a solver, and its options, such as "eta=0.5, tau=1.0"."""

    RETURN_TYPES: ClassVar = ("SAMPLER",)
    FUNCTION: ClassVar = "sampler"
    CATEGORY: ClassVar = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs that ComfyUI shows."""
        return {"required": {"solver": (names(), {"default": "unipc-3"}), "options": ("STRING", {"default": ""})}}

    def sampler(self, solver: str, options: str) -> tuple[Any]:
        """The sampler.

        Raises:
            ValueError: if the solver or an option is unknown, with a list of the known ones.
        """
        from comfy.samplers import KSAMPLER

        return (KSAMPLER(sampler(f"{solver}({options})" if options.strip() else solver)),)


NODE_CLASS_MAPPINGS = {"DiffsolveSampler": DiffsolveSampler}
