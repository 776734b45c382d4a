"""Other libraries' samplers, loaded and driven so that their runs can be laid beside ours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import paths
from diffsolve.noise import Key
from diffsolve.paths import Discrete
from diffsolve.reference.mixture import anisotropic
from diffsolve.solvers import DPMpp

KEY = Key(0)
MIXTURE = anisotropic(dim=8, modes=4)
SHAPE = (8, 2, 2, 2)
TABLES = {
    "linear": (Discrete.linear, {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (Discrete.scaled_linear, {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": (Discrete.cosine, {}),
}


def start(dtype=torch.float64):
    return KEY.normal(SHAPE, dtype=dtype)


def distance(a, b):
    """The largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / b.abs().max())


def table(name, zero_snr=False):
    """(our path, the scheduler's options)."""
    make, options = TABLES[name]
    extra = {"rescale_betas_zero_snr": True} if zero_snr else {}
    return make(zero_terminal_snr=zero_snr), {"beta_schedule": name, **options, **extra}


def k_diffusion(name: str) -> ModuleType:
    """The module `k_diffusion.{name}`, without the package around it.

    The package's `__init__` imports training code (torchvision, clip, ..) that no sampler needs. So the package is a
    bare module here, torchvision a stand-in where it is missing, and `sys.modules` is left as it was found.

    Raises:
        ImportError: if k-diffusion, or what its samplers need, is not installed.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'k_diffusion'")
    package: Any = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    made = {"k_diffusion": package}
    if importlib.util.find_spec("torchvision") is None:
        transforms: Any = ModuleType("torchvision.transforms")
        transforms.functional = ModuleType("torchvision.transforms.functional")
        made |= {"torchvision": ModuleType("torchvision"), "torchvision.transforms": transforms}

    def touched() -> dict[str, ModuleType]:
        return {key: module for key, module in sys.modules.items() if key in made or key.startswith("k_diffusion.")}

    before = touched()
    for key in before:
        del sys.modules[key]
    sys.modules.update(made)
    try:
        return importlib.import_module(f"k_diffusion.{name}")
    finally:
        for key in touched():
            del sys.modules[key]
        sys.modules.update(before)


class HeunStart(DPMpp):
    """DPM-Solver++(3M) whose second step has phi_2 where algorithm 2 of the paper has phi_1 / 2."""

    def predict(self, step: Any) -> np.ndarray:
        return step.omega() if len(step.nodes) == 2 else super().predict(step)


class Unrounded(Tensor):
    """A state that refuses to become float32, as several diffusers schedulers want it before each step."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        wanted = kwargs.get("dtype", args[0] if args else None)
        return self if wanted == torch.float32 else super().to(*args, **kwargs)


def nodes(scheduler: Any) -> np.ndarray:
    """The noise level of each grid node, as the scheduler's float32 has it: its sigmas, each once."""
    return torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1 :: scheduler.order]]).double().numpy()


def times(path: paths.Path, sigmas: np.ndarray) -> np.ndarray:
    """The path's clock at a scheduler's sigmas: sigma itself, or on a table the time where sigma / alpha is that."""
    if not isinstance(path, paths.Discrete):
        return sigmas
    with np.errstate(divide="ignore"):
        lam = -np.log(sigmas)
    # A float32 table may begin a rounding beyond ours.
    return path.time(np.maximum(lam, float(path.lam(path.t_noise)))).numpy()


def widen(scheduler: Any, path: paths.Path, at: np.ndarray) -> None:
    """Put float64 levels in the place of the scheduler's float32 ones: what is left of it is its method."""
    levels = torch.as_tensor(path.rho(at) if isinstance(path, paths.Discrete) else at)
    inner = levels[1:-1].repeat_interleave(scheduler.order)
    scheduler.sigmas = torch.cat([levels[:1], inner, levels[-1:]])


def run_scheduler(
    scheduler: Any,
    net: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    at: Sequence[float] | np.ndarray,
    *,
    unrounded: bool = False,
    options: Callable[[int], dict[str, Any]] = lambda i: {},
) -> Tensor:
    """The loop of a diffusers pipeline.

    Args:
        net: is told the path's clock `at[node]`, not the scheduler's timestep, which some of them round.
        unrounded: keep the state in its own dtype where the scheduler would round it to float32.
        options: what else `step` is given at call i.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it looks for its place by equality of timesteps, which may repeat
    clock = torch.tensor(np.array(at), dtype=torch.float64)
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = net(scaled, clock[(i + scheduler.order - 1) // scheduler.order].expand(len(x)))
        state = x.as_subclass(Unrounded) if unrounded else x
        x = scheduler.step(out, t, state, **options(i)).prev_sample.as_subclass(Tensor)
    return x
