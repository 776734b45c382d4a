"""k-diffusion, ComfyUI and the web UI: our solvers as their sampling functions, and their denoisers as Models.

    sample = sampler("unipc-3")
    x = sample(denoiser, x, sigmas, extra_args={"cond": c}, callback=preview, disable=True)

    KSAMPLER(sampler("dpmpp-3m"))                                     # a SAMPLER for a ComfyUI node

    model = ds.adapt(denoiser)                                        # a k-diffusion denoiser knows its sigmas

A denoiser is `denoiser(x, sigma, **extra_args)`, sigma of shape (B,), with D(x; sigma) for x = x_0 + sigma eps; in
ComfyUI, for a flow model, for x = (1 - sigma) x_0 + sigma eps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffsolve.execute.start import begin
from diffsolve.models import Model, adapt
from diffsolve.paths import EDM, Path, Rectified
from diffsolve.solvers import Solver, resolve

__all__ = ["denoiser", "sampler"]


def sampler(solver: str | Solver, *, seed: int | None = None) -> Callable[..., Tensor]:
    """A sampling function, with the arguments of k-diffusion's `sample_euler`, that runs a solver of this library.

    The sigmas given are the grid, bit for bit; a last one of 0 is the data. The noise of a stochastic solver comes
    from `seed`, else from extra_args["seed"] (ComfyUI puts it there), else from the system. At the first call of each
    step `callback` gets the mapping that k-diffusion passes: x, i, sigma, sigma_hat and denoised.

    Args:
        solver: a name or a solver object; a grid in the name is ignored.
        seed: an integer; None as above.

    Raises:
        ValueError: if the solver is unknown; from the sampling function, if the sigmas do not fall strictly.
    """
    method = resolve(solver)[0]

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        cond = dict(extra_args or {})
        levels = sigmas.double().cpu()
        path = _path(model, levels)

        inside = _Denoiser(model, sigmas.dtype)
        denoised = adapt(inside, path, "denoised", dtype=x.dtype, learned=_learned(model))
        number = cond.get("seed") if seed is None else seed
        ex = begin(denoised, noise=x, solver=method, grid=levels, seed=number)
        nodes = [0, *ex.tableau.node[:-1].tolist()]  # the grid node of each call; -1 between nodes
        with torch.no_grad(), tqdm(total=len(levels) - 1, disable=disable) as bar:
            for i in nodes:
                out = denoised.call(*ex.query(), cond)
                if i >= 0 and callback is not None:
                    about = {"x": ex.y.clone(), "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": out}
                    callback(about)
                ex.advance(out)
                bar.update(i >= 0)
        return ex.y.to(x.dtype)

    return sample


class _Denoiser:
    """A denoiser that gets sigma in the dtype of the sigmas, whatever the executor computes in."""

    def __init__(self, model: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return self.model(x, sigma.to(self.dtype), **extra_args)


def _path(model: Any, levels: Tensor) -> Path:
    """The path whose clock is the model's sigma, from the first of the levels to the last positive one."""
    if levels.dim() != 1 or len(levels) < 2 or not bool((levels.diff() < 0).all()) or float(levels[-1]) < 0:
        raise ValueError(f"sigmas must be at least two, >= 0 and falling strictly, got {levels.tolist()}")
    if _flow(model):
        return Rectified()
    high, low = float(levels[0]), float(levels[levels > 0][-1])
    return EDM(low if low < high else high / 2, high)


def _sampling(model: Any) -> list[str]:
    """The names of the classes that say what ComfyUI's model predicts, and of a k-diffusion denoiser's own."""
    patcher: Any = getattr(getattr(model, "inner_model", None), "model_patcher", None)
    sampling = patcher.get_model_object("model_sampling") if hasattr(patcher, "get_model_object") else model
    return [base.__name__ for base in type(sampling).__mro__]


def _flow(model: Any) -> bool:
    """Whether ComfyUI's model has x = (1 - sigma) x_0 + sigma eps."""
    return "CONST" in _sampling(model)


LEARNED = {
    "CONST": "velocity", "V_PREDICTION": "v", "EPS": "noise", "VDenoiser": "v", "DiscreteVDDPMDenoiser": "v",
    "DiscreteEpsDDPMDenoiser": "noise", "Denoiser": "edm",
}  # fmt: skip
"""What the network inside predicts, by the name of a class of ComfyUI's model_sampling or of k-diffusion's denoisers.

ComfyUI's V_PREDICTION and EDM derive from EPS: the first that fits counts.
"""


def _learned(model: Any) -> str:
    """What the network inside the denoiser was trained to predict; the denoised if nothing says so."""
    names = _sampling(model)
    return next((predicts for name, predicts in LEARNED.items() if name in names), "denoised")


def denoiser(model: Any) -> Model:
    """A k-diffusion denoiser that knows its sigmas (`sigma_min`, `sigma_max`) as a Model, with sigma for its clock."""
    path = EDM(float(model.sigma_min), float(model.sigma_max))
    return adapt(model, path, "denoised", learned=_learned(model))
