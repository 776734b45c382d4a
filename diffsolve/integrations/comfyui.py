"""ComfyUI: the solvers of this library in KSampler's list, and a node that makes a SAMPLER of any with its options.

A file `diffsolve.py` in ComfyUI's `custom_nodes` needs two lines:

    from diffsolve.integrations.comfyui import NODE_CLASS_MAPPINGS, register
    register()

KSampler then lists "diffsolve unipc-3", "diffsolve auto" and so on after its own samplers, which stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from diffsolve.integrations.k_diffusion import sampler
from diffsolve.solvers import named, names

__all__ = ["NODE_CLASS_MAPPINGS", "DiffsolveSampler", "register"]

PREFIX = "diffsolve "


class DiffsolveSampler:
    """The node: the name of a solver, and its options, such as "eta=0.5, tau=1.0".

    "heun" without options is ComfyUI's own, as of every name that both have; see `k_diffusion.sampler`.
    """

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


def register(solvers: Iterable[str] | None = None) -> list[str]:
    """Add solvers to the samplers that KSampler and the other nodes of ComfyUI list, as "diffsolve unipc-3".

    Args:
        solvers: names, with options or without; None for all of this library. Doing it again changes nothing.

    Returns:
        The names under which they are listed.

    Raises:
        ValueError: if a solver is unknown.
    """
    import comfy.samplers
    from comfy.k_diffusion import sampling

    listed = []
    for name in names() if solvers is None else solvers:
        shown = PREFIX + name
        setattr(sampling, f"sample_{shown}", sampler(named(name)))  # where ComfyUI looks a sampler up
        for known in (comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES):
            if shown not in known:
                known.append(shown)
        listed.append(shown)
    return listed


NODE_CLASS_MAPPINGS = {"DiffsolveSampler": DiffsolveSampler}
