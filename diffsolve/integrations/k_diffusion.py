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
from diffsolve.integrations.k_diffusion_names import method
from diffsolve.models import Model, adapt
from diffsolve.paths import EDM, Path, Rectified
from diffsolve.solvers import Solver
from diffsolve.tableau.ends import TINY

__all__ = ["denoiser", "sampler"]

FIRST = 1e-4
"""Where a run to the noise begins that is to begin at the data."""


def sampler(solver: str | Solver, *, seed: int | None = None) -> Callable[..., Tensor]:
    """A sampling function, with the arguments of k-diffusion's `sample_euler`, that runs a solver of this library.

    The sigmas given are the grid, bit for bit; a last one of 0 is the data. Those that repeat the one before are
    skipped, one alone is no step, and rising ones lead from the data to the noise. From a flow's sigmas above 1 the
    steps are Euler's. The noise of a stochastic solver comes
    from `seed`, else from extra_args["seed"] (ComfyUI puts it there), else from the system. At the first call of each
    step `callback` gets the mapping that k-diffusion passes: x, i, sigma, sigma_hat and denoised.

    Args:
        solver: a name or a solver object; a grid in the name is ignored. A name of k-diffusion or ComfyUI without
            options is that sampler, number for number but for its noise; with options, as in "heun(frame='straight')",
            it is the solver of that name here. The two are one but for heun, and for the names refused here alone.
        seed: an integer; None as above.

    Raises:
        ValueError: if the solver is unknown or not offered; from the sampling function, if the sigmas are negative, or
            rise and fall, or the model is a flow on which ComfyUI has another method by that name.
    """
    known = method(solver)

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        cond = dict(extra_args or {})
        levels, places = _levels(sigmas)
        flow = _flow(model)
        if flow and known.offset and len(levels) > 1 and levels[0] >= 1 > levels[1]:
            levels[0] = float(_model_sampling(model).percent_to_sigma(1e-4))
        if len(levels) > 1 and levels[-1] == 0 and levels[-2] > known.last:
            levels[-1] = known.last
        inside = _Denoiser(model, sigmas.dtype)

        def shown(node: int, y: Tensor, out: Tensor) -> None:
            if node >= 0 and callback is not None:
                i = places[node]
                callback({"x": y.clone(), "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": out})

        y = x
        with torch.no_grad(), tqdm(total=len(levels) - 1, disable=disable) as bar:
            above = int((levels > 1).sum()) if flow else 0
            for k in range(min(above, len(levels) - 1)):
                sigma, next_sigma = float(levels[k]), float(levels[k + 1])
                out = inside(y, torch.full((len(y),), sigma, dtype=torch.float64, device=y.device), **cond)
                shown(k, y, out)
                y = y + (next_sigma - sigma) / sigma * (y - out)
                bar.update()
            if len(levels) - above < 2:
                return y.to(x.dtype, copy=True)
            rest = levels[above:]
            run, path = known.over(len(rest) - 1, not rest[-1], flow), _path(model, rest)
            denoised = adapt(inside, path, "denoised", dtype=x.dtype, learned=_learned(model))
            number = cond.get("seed") if seed is None else seed
            ex = begin(denoised, noise=y, solver=run, grid=rest, seed=number)
            for node in [0, *ex.tableau.node[:-1].tolist()]:  # the grid node of each call; -1 between nodes
                out = denoised.call(*ex.inputs(), cond)
                shown(node + above if node >= 0 else -1, ex.y, out)
                ex.advance(out)
                bar.update(node >= 0)
        return ex.y.to(x.dtype)

    return sample


def _levels(sigmas: Tensor) -> tuple[Tensor, list[int]]:
    """The sigmas without repetitions, in float64 on the CPU, and the places of each in the list."""
    levels = sigmas.cpu().double()  # in this order: some devices have no float64
    fits = levels.dim() == 1 and len(levels) > 0 and bool((levels >= 0).all())
    steps = levels.diff() if fits else levels
    if not fits or (bool((steps > 0).any()) and bool((steps < 0).any())):
        raise ValueError(f"sigmas must be >= 0 and falling, or rising, got {levels.tolist()}")
    places = [0, *(steps.nonzero().flatten() + 1).tolist()]
    levels = levels[places]
    if len(levels) > 1 and levels[0] < levels[1] and levels[0] <= TINY:
        # Where the denoised says nothing of the noise: as ComfyUI flips sigmas.
        levels[0] = min(FIRST, float(levels[1]) / 2)
    return levels, places


class _Denoiser:
    """A denoiser that gets sigma in the dtype of the sigmas, whatever the executor computes in."""

    def __init__(self, model: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        return self.model(x, sigma.to(self.dtype), **extra_args)


def _path(model: Any, levels: Tensor) -> Path:
    """The path whose clock is the model's sigma, from the highest of the levels to the lowest positive one."""
    if _flow(model):
        return Rectified()
    high, low = float(levels.max()), float(levels[levels > 0].min())
    return EDM(low if low < high else high / 2, high)


def _model_sampling(model: Any) -> Any:
    """ComfyUI's account of what its model predicts, where; the model itself of a k-diffusion denoiser."""
    patcher: Any = getattr(getattr(model, "inner_model", None), "model_patcher", None)
    return patcher.get_model_object("model_sampling") if hasattr(patcher, "get_model_object") else model


def _sampling(model: Any) -> list[str]:
    """The names of the classes that say what ComfyUI's model predicts, and of a k-diffusion denoiser's own."""
    return [base.__name__ for base in type(_model_sampling(model)).__mro__]


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
