"""The web UI of AUTOMATIC1111 and Forge: the solvers of this library in their menu of samplers.

The folder `webui` of the repository is the extension: in their `extensions` it is all that is needed. `register()` is
what its script calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from diffsolve.integrations.k_diffusion import sampler
from diffsolve.solvers import named, names

__all__ = ["register"]

PREFIX = "diffsolve "


def register(solvers: Iterable[str] | None = None) -> list[str]:
    """Add solvers to the menu, as "diffsolve unipc-3", with the menu's schedule types for grids.

    The noise of a stochastic solver is keyed by the seed of each picture.

    Args:
        solvers: names, with options or without; None for all. Doing it again changes nothing.

    Returns:
        The names under which they are listed.

    Raises:
        ValueError: if a solver is unknown.
    """
    from modules import sd_samplers, sd_samplers_common
    from modules.sd_samplers_kdiffusion import KDiffusionSampler

    def entry(shown: str, function: Callable[..., Tensor]) -> Any:
        return sd_samplers_common.SamplerData(shown, lambda model: KDiffusionSampler(function, model), [], {})

    listed = []
    for name in names() if solvers is None else solvers:
        shown = PREFIX + name
        if shown not in sd_samplers.all_samplers_map:
            made = entry(shown, _keyed(name))
            sd_samplers.all_samplers.append(made)
            sd_samplers.all_samplers_map[shown] = made
        listed.append(shown)
    sd_samplers.set_samplers()
    return listed


def _keyed(name: str) -> Callable[..., Tensor]:
    """The sampling function whose noise has the seeds of the pictures that the web UI makes."""
    solver = named(name)

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        seeds = getattr(getattr(model, "p", None), "seeds", None)
        seed = [int(each) for each in seeds] if seeds is not None and len(seeds) == len(x) else None
        return sampler(solver, seed=seed)(model, x, sigmas, extra_args, callback, disable)

    return sample
