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
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffsolve.common.checks import required
from diffsolve.execute import Executor
from diffsolve.execute.apart import Apart
from diffsolve.execute.start import begin
from diffsolve.integrations.k_diffusion_adaptive import dpm_adaptive
from diffsolve.integrations.k_diffusion_names import Run, Sigmas, bare, method, with_plus
from diffsolve.kernels import Guided
from diffsolve.models import Model, adapt
from diffsolve.noise import SeedLike
from diffsolve.paths import EDM, Path, Rectified
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tableau.ends import TINY

__all__ = ["denoiser", "plan_of", "sampler"]

FIRST = 1e-4
"""Where a run to the noise begins that is to begin at the data."""

Sample = Callable[..., Tensor]


def sampler(solver: str | Solver | Tableau, *, seed: SeedLike | None = None, plus: bool = False) -> Sample:
    """A sampling function, with the arguments of k-diffusion's `sample_euler`, that runs a solver of this library.

    The sigmas given are the grid, bit for bit; a last one of 0 is the data. Those that repeat the one before are
    skipped, one alone is no step, and rising ones lead from the data to the noise. From a flow's sigmas above 1 the
    steps are Euler's. The noise of a stochastic solver comes from `seed`, else from extra_args["seed"] (ComfyUI puts it
    there), else from the system. At the first call of each step `callback` gets the mapping that k-diffusion passes: x,
    i, sigma, sigma_hat and denoised.

    Args:
        solver: a name, a solver object, or a tableau for just these sigmas; a grid in the name is ignored. A name of
            k-diffusion or ComfyUI without options is that sampler, number for number but for its noise; with options,
            as in "heun(frame='straight')", it is the solver of that name here. The two are one but for those in
            `k_diffusion_names.NAMES`.
        seed: an integer, or one for each sample; None as above.
        plus: CFG++ in the place of guidance: the data of a step are guided, its noise is not. ComfyUI hands over both
            outputs; of its samplers the names with `_cfg_pp` have it by themselves.

    Raises:
        ValueError: if the solver is unknown or takes no CFG++; from the sampling function, if the sigmas are negative,
            or rise and fall, or CFG++ is asked of a host that does not tell its unconditional output.
    """
    if bare(solver) == "dpm_adaptive":
        required(not plus, "plus", plus, "False with dpm_adaptive")
        return _adaptive
    known = with_plus(method(solver)) if plus else method(solver)

    def sample(
        model: Callable[..., Tensor],
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        disable: bool | None = None,
    ) -> Tensor:
        host = _Host(model, sigmas, extra_args, callback)
        if len(host.levels) < 2:
            return x.clone()
        sigmas_of_run = Sigmas(host.levels, host.flow, host.at)
        run = known(sigmas_of_run)
        with torch.no_grad(), tqdm(total=len(run.levels) - 1, disable=disable) as bar:
            above = host.above_one(run)
            y = host.euler(x, above, bar)
            if len(host.levels) - above < 2:
                return y.to(x.dtype, copy=True)
            run = known(replace(sigmas_of_run, levels=host.levels[above:])) if above else run
            number = host.cond.get("seed") if seed is None else seed
            return host.run(y, run, above, number, bar).to(x.dtype)

    return sample


def plan_of(solver: str | Solver | Tableau, model: Any, sigmas: Tensor) -> Tableau:
    """The tableau that `sampler(solver)` runs for a model on these sigmas.

    Raises:
        ValueError: if the solver is unknown or has no tableau, or the sigmas are no list of steps.
    """
    required(bare(solver) != "dpm_adaptive", "solver", solver, "one that is planned before it is run")
    host = _Host(model, sigmas, None, None)
    required(len(host.levels) > 1, "sigmas", sigmas.tolist(), "two that differ, or more")
    run = method(solver)(Sigmas(host.levels, host.flow, host.at))
    return host.begin(torch.ones(1), run, 0)[1].tableau


def _adaptive(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
) -> Tensor:
    """dpm_adaptive, from the first sigma to the last positive one."""
    host = _Host(model, sigmas, extra_args, callback)
    above = host.levels[host.levels > 0]
    if len(above) < 2:
        return x.clone()
    wide = torch.promote_types(x.dtype, torch.float32)

    def call(y: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(y),), sigma, dtype=torch.float64, device=y.device)
        return host.inside(y.to(x.dtype), level, **host.cond).to(wide)

    with torch.no_grad(), tqdm(disable=disable) as bar:

        def shown(trial: int, sigma: float, y: Tensor, out: Tensor) -> None:
            host.show(min(trial, len(sigmas) - 1), sigmas.new_tensor(sigma), y, out)
            bar.update()

        return dpm_adaptive(call, x.to(wide), float(above[0]), float(above[-1]), shown).to(x.dtype)


class _Host:
    """What the host's program hands over for one run."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None,
        callback: Callable[[dict[str, Any]], object] | None,
    ) -> None:
        self.model, self.sigmas, self.callback = model, sigmas, callback
        self.cond = dict(extra_args or {})
        self.levels, self.places = _levels(sigmas)
        self.flow = _flow(model)
        self.inside = _Denoiser(model, sigmas.dtype)

    def at(self, share: float) -> float:
        """The sigma after this share of the model's times."""
        sampling = _model_sampling(self.model)
        kind = type(sampling).__name__
        required(hasattr(sampling, "percent_to_sigma"), "model", kind, "one of ComfyUI, which knows percent_to_sigma")
        return float(sampling.percent_to_sigma(share))

    def show(self, i: int, sigma: Tensor, y: Tensor, out: Tensor) -> None:
        """Tell the callback of a step."""
        if self.callback is not None:
            self.callback({"x": y.clone(), "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": out})

    def at_node(self, node: int, sigma: float, y: Tensor, out: Tensor) -> None:
        """Tell it of the step from a node of the given sigmas, or at another sigma from a node of the run's own."""
        given = self.sigmas[self.places[node]] if node < len(self.places) else None
        if given is None or abs(float(given) - sigma) > 0.01 * sigma:
            self.show(node, self.sigmas.new_tensor(sigma), y, out)
        else:
            self.show(self.places[node], given, y, out)

    def above_one(self, run: Run) -> int:
        """The first nodes whose sigma is not on the path of the run: a flow has none above 1."""
        return int((self.levels > 1).sum()) if self.flow and not run.in_sigma else 0

    def euler(self, y: Tensor, steps: int, bar: Any) -> Tensor:
        """y after that many of Euler's steps."""
        for k in range(min(steps, len(self.levels) - 1)):
            sigma, next_sigma = self.levels[k : k + 2].tolist()
            out = self.inside(y, torch.full((len(y),), sigma, dtype=torch.float64, device=y.device), **self.cond)
            self.at_node(k, sigma, y, out)
            y = y + (next_sigma - sigma) / sigma * (y - out)
            bar.update()
        return y

    def begin(self, y: Tensor, run: Run, seed: SeedLike | None) -> tuple[Model, Executor]:
        """The model of a run, and its executor at y."""
        path = _path(self.flow and not run.in_sigma, run.levels)
        model = adapt(self.inside, path, "denoised", dtype=y.dtype, learned=_learned(self.model))
        ex = begin(model, noise=y, seed=seed, **run.plan)
        own_scales = "without scales of guidance of its own: the host guides"
        required("guides" not in ex.tableau.unusual, "solver", ex.tableau.solver, own_scales)
        return model, ex

    def run(self, y: Tensor, run: Run, above: int, seed: SeedLike | None, bar: Any) -> Tensor:
        """The result of a run from y, which is at the node `above` of the given sigmas."""
        model, ex = self.begin(y, run, seed)
        apart = Apart.of(ex.tableau, model) if run.plus else None
        cond = self.inside.keeping(self.cond) if run.plus or run.two_rows else self.cond
        for node in [0, *ex.tableau.node[:-1].tolist()]:  # the grid node of each call; -1 between nodes
            i = ex.call
            if run.two_rows and i % 2:
                ex.advance(self.inside.unconditional(ex.y))
                continue
            out = model.call(*ex.inputs(), cond)
            if node >= 0:
                self.at_node(node + above, float(run.levels[node]), ex.y, out)
            if apart is None:
                ex.advance(out)
            else:
                pair, difference = apart(i, Guided(out, self.inside.unconditional(out), 1.0))
                ex.advance(pair)
                if difference is not None:
                    ex.shift(difference, *apart.shift(i))
            bar.update(node >= 0)
        return ex.y


def _levels(sigmas: Tensor) -> tuple[np.ndarray, list[int]]:
    """The sigmas without repetitions, in float64, and the place of each in the list."""
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
    return levels.numpy(), places


class _Denoiser:
    """A denoiser that gets sigma in the dtype of the sigmas, whatever the executor computes in."""

    def __init__(self, model: Callable[..., Tensor], dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        self.kept = None
        return self.model(x, sigma.to(self.dtype), **extra_args)

    def keeping(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Extra arguments by which ComfyUI hands over the unconditional denoised of each call, also at scale 1."""
        options = dict(cond.get("model_options") or {})
        hooks = [*options.get("sampler_post_cfg_function", []), self._keep]
        options.update(sampler_post_cfg_function=hooks, disable_cfg1_optimization=True)
        return {**cond, "model_options": options}

    def _keep(self, about: Mapping[str, Tensor]) -> Tensor:
        self.kept = about["uncond_denoised"]
        return about["denoised"]

    def unconditional(self, like: Tensor) -> Tensor:
        """The unconditional denoised of the last call.

        Raises:
            ValueError: if the host did not hand it over.
        """
        if self.kept is None:
            raise ValueError("model must be one of ComfyUI for CFG++, got one that tells no unconditional output")
        return self.kept.to(like)


def _path(flow: bool, levels: np.ndarray) -> Path:
    """The path whose clock is the model's sigma, from the highest of the levels to the lowest positive one."""
    if flow:
        return Rectified()
    high, low = float(levels.max()), float(levels[levels > 0].min())
    return EDM(low if low < high else high / 2, high)


def _model_sampling(model: Any) -> Any:
    """ComfyUI's account of what its model predicts, where; the model itself of a k-diffusion denoiser."""
    patcher: Any = getattr(getattr(model, "inner_model", None), "model_patcher", None)
    return patcher.get_model_object("model_sampling") if hasattr(patcher, "get_model_object") else model


def _sampling(model: Any) -> list[str]:
    """The names of the classes that say what a host's network predicts."""
    inner = getattr(model, "inner_model", None)
    kinds = [base.__name__ for thing in (_model_sampling(model), inner) for base in type(thing).__mro__]
    unet = getattr(getattr(inner, "forge_objects", None), "unet", None)
    predictor = getattr(getattr(unet, "model", None), "predictor", None)
    return [*FORGE.get(getattr(predictor, "prediction_type", ""), ()), *kinds]


FORGE = {"const": ("CONST",), "epsilon": ("EPS",), "v_prediction": ("V_PREDICTION",), "edm": ("EDM",)}
"""What Forge calls a prediction -> the class of ComfyUI."""


def _flow(model: Any) -> bool:
    """Whether the model of ComfyUI or Forge has x = (1 - sigma) x_0 + sigma eps."""
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
