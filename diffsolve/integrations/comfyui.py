"""ComfyUI: the solvers and grids of this library in KSampler's lists, and the grids as SIGMAS of its models.

The folder `comfyui` of the repository is the node pack: in ComfyUI's `custom_nodes` it is all that is needed. A file of
one's own there needs two lines:

    from diffsolve.integrations.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register
    register()

KSampler then lists "diffsolve unipc-3", "diffsolve auto cfg++" and so on after its own samplers, and "diffsolve arc"
after its own schedulers, which stay as they are. The nodes are in `comfyui_nodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from diffsolve import grids
from diffsolve.integrations.comfyui_models import sigmas_of
from diffsolve.integrations.comfyui_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from diffsolve.integrations.k_diffusion import sampler
from diffsolve.solvers import named, names

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "register"]

PREFIX, PLUS = "diffsolve ", " cfg++"

WITH_PLUS = ("auto", "ddim", "ddim(eta=1.0)", "dpmpp-2m", "unipc-3")
"""The solvers that KSampler also lists with CFG++; the sampler node has it for every one."""


def register(solvers: Iterable[str] | None = None) -> list[str]:
    """Add solvers and grids to what KSampler and the other nodes of ComfyUI list, as "diffsolve unipc-3".

    Args:
        solvers: names, with options or without; None for all of this library, some with CFG++ too, and all grids.
            A name that ends in " cfg++" has it. Doing it again changes nothing.

    Returns:
        The names under which the solvers are listed.

    Raises:
        ValueError: if a solver is unknown.
    """
    import comfy.samplers
    from comfy.k_diffusion import sampling

    chosen = [*names(), *(name + PLUS for name in WITH_PLUS)] if solvers is None else solvers
    listed = []
    for name in chosen:
        shown, bare = PREFIX + name, name.removesuffix(PLUS)
        made = sampler(named(bare), plus=name != bare)
        setattr(sampling, f"sample_{shown}", made)  # where ComfyUI looks a sampler up
        _list(shown, comfy.samplers.KSAMPLER_NAMES, comfy.samplers.SAMPLER_NAMES)
        listed.append(shown)
    if solvers is None:
        for grid in grids.names():
            handler = comfy.samplers.SchedulerHandler(_handler(grid))
            comfy.samplers.SCHEDULER_HANDLERS[PREFIX + grid] = handler
            _list(PREFIX + grid, comfy.samplers.SCHEDULER_NAMES)
    return listed


def _list(name: str, *lists: list[str]) -> None:
    for known in lists:
        if name not in known:
            known.append(name)


def _handler(grid: str) -> Callable[[Any, int], Tensor]:
    return lambda sampling, steps: sigmas_of(sampling, grid, steps)
