"""diffusers: any solver as the scheduler of a pipeline, and a pipeline's network as a Model.

pipe.scheduler = Scheduler(pipe.scheduler, solver="unipc-3")      # the pipeline goes on as before
image = pipe("a boat", num_inference_steps=12).images[0]

model = ds.adapt(unconditional_pipe)                              # or model_of(unet, scheduler)
x = ds.sample(model, (4, 3, 32, 32), solver="dpmpp-2m", steps=20, seed=0)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve.common.checks import choice, described
from diffsolve.execute import Executor
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, plan
from diffsolve.execute.results import DenoisedEstimate
from diffsolve.execute.start import begin
from diffsolve.models import Model, adapt
from diffsolve.noise import SeedLike
from diffsolve.paths import EDM, Custom, Discrete, Path, Rectified
from diffsolve.solvers import Solver, resolve
from diffsolve.tableau import Tableau

__all__ = ["Scheduler", "model_of", "pipeline"]

PREDICTIONS = {"epsilon": "noise", "sample": "denoised", "v_prediction": "v", "flow_prediction": "velocity"}
IMAGE = 4 * 64 * 64
"""Numbers of a sample, for solvers that ask: a scheduler is told of no shape, and pipelines make images."""
FLOW_CLOCKS = {"SD3Transformer2DModel": "1000t", "FluxTransformer2DModel": "t"}
"""The clocks of flow transformers, which their pipelines define and their schedulers do not."""


def meaning(scheduler: Any) -> tuple[Path, str, str | Any]:
    """(path, prediction, clock) of the networks that a scheduler is made for.

    Raises:
        ValueError: if the scheduler has no table of betas and is neither a flow's nor EDM's, or its prediction type is
            not supported.
    """
    if isinstance(scheduler, Scheduler):
        return scheduler.model.path, scheduler.model.predicts, scheduler.model.clock
    config, kind = scheduler.config, type(scheduler).__name__
    predicts = PREDICTIONS[choice("prediction_type", config.get("prediction_type", "epsilon"), PREDICTIONS)]
    if kind.startswith("FlowMatch") or config.get("use_flow_sigmas") or predicts == "velocity":
        return Rectified(), "velocity", "1000t"
    if kind.startswith("EDM"):
        if predicts != "noise":
            raise ValueError(f"prediction_type must be 'epsilon' of a scheduler {kind}, got {config.prediction_type!r}")
        return EDM(config.sigma_min, config.sigma_max), "edm", "c_noise"
    if config.get("timestep_type") == "continuous" and predicts == "v":
        # v with x = cos(a) x_0 + sin(a) eps and the clock c_noise, as in video models.
        last = math.atan(config.sigma_min or 0.002)
        return Custom(torch.cos, torch.sin, math.atan(config.sigma_max or 700.0), 0.0, last), predicts, "c_noise"
    betas = getattr(scheduler, "betas", None)
    if not isinstance(betas, Tensor) or kind in ("LCMScheduler", "TCDScheduler"):
        raise ValueError(
            f"scheduler must be one with betas, of a flow or of EDM, got {kind}; give ds.adapt the network with its "
            "path and prediction"
        )
    return Discrete(betas), predicts, "t"


class Scheduler:
    """A diffusers scheduler that runs any solver of this library, in place of the given one.

        pipe.scheduler = Scheduler(pipe.scheduler, solver="dpmpp-3m", grid="karras")

    Timesteps, noise levels and the prediction type are those of the given scheduler, whatever its own method; the state
    is x_t = alpha x_0 + sigma eps itself, unscaled, in float32 whatever the pipeline's dtype. A run ends on the data.
    The output of a network that also predicts a variance (twice the channels) is accepted. Clipping and dynamic
    thresholding follow the scheduler's configuration.

    Edits of the latents between steps (inpainting, callbacks) are detected and used. Predictor-correctors and
    Runge-Kutta methods have a state beside the network's input, and for them an edit changes that input alone; use a
    method with one state ("dpmpp-2m", "ab-2", ..) in such pipelines.

    Args:
        scheduler: a diffusers scheduler with betas, of a flow (FlowMatch.., use_flow_sigmas) or of EDM.
        solver: a name or solver object, as in `ds.solve`; `num_inference_steps` is its number of steps.
        grid: as in `ds.solve`. If None, that of the solver's name ("DPM++ 2M Karras", "auto"), else the timesteps and
            sigmas of the given scheduler. With a grid, only the number of timesteps or sigmas that a pipeline sets (as
            Flux's does) is used.
        seed: of a stochastic solver's noise, one integer or one per sample. If None, it is drawn from the generator
            that the pipeline passes, or from the system.
        guidance: the pipeline's guidance scale, if any; "auto" depends on it.

    Raises:
        ValueError: if the scheduler is of another kind; from `set_timesteps`, if the solver adds noise before its first
            call (churn).
    """

    def __init__(
        self,
        scheduler: Any,
        solver: str | Solver = DEFAULT_SOLVER,
        *,
        grid: GridLike | None = None,
        seed: SeedLike | None = None,
        guidance: float = 1.0,
    ) -> None:
        self.scheduler, self.seed, self.guidance = scheduler, seed, guidance
        path, predicts, clock = meaning(scheduler)
        method, its_grid = resolve(solver)
        self.solver = method.suited(predicts, guidance, IMAGE)
        self.grid = its_grid or self.solver.grid if grid is None else grid
        self.model = adapt(_not_called, path, predicts, clock=clock, sigma_data=scheduler.config.get("sigma_data", 0.5))
        self.timesteps = torch.empty(0)
        self.num_inference_steps: int | None = None
        self.order = self.solver.calls
        self._tableau: Tableau | None = None
        self._first = 0
        self._run: _Run | None = None

    @property
    def config(self) -> Any:
        """The configuration of the given scheduler."""
        return self.scheduler.config

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise at the start of a run."""
        return self.model.path.prior_std()

    @property
    def step_index(self) -> int | None:
        """The number of the next call; None before the first."""
        return None if self._run is None else self._first + self._run.call

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run with a number of steps, or with custom timesteps or sigmas if the given scheduler takes them.

        Sets `timesteps`, the network's clock at each of its calls.

        Raises:
            ValueError: if the solver adds noise before its first call, or the scheduler does not take an argument.
        """
        given = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
        given = {name: value for name, value in given.items() if value is not None}
        if self.grid is None:
            nodes = self._own_grid(num_inference_steps, given)
            tableau = plan(self.model, self.solver, grid=nodes, guidance=self.guidance)
        else:
            own = timesteps if timesteps is not None else sigmas
            steps = num_inference_steps if own is None else len(own)
            tableau = plan(self.model, self.solver, grid=self.grid, steps=steps, guidance=self.guidance)
        if (tableau.entry != [[1, 0], [1, 0]]).any():
            raise ValueError(f"solver must add no noise before its first call, got {self.solver}")
        self._tableau, self._first, self._run = tableau, 0, None
        self.num_inference_steps = len(tableau.times) - 1
        self.timesteps = self._network_times(tableau).to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call, the first of a step, as image-to-image pipelines do.

        Raises:
            ValueError: if it is not the number of the first call of a step.
        """
        if not 0 <= begin_index < self._planned.nfe or self._node(begin_index) < 0:
            raise ValueError(f"begin_index must be the number of the first call of a step, got {begin_index!r}")
        self._first, self._run = begin_index, None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The network's input: c_in times the state for a raw EDM network, else the state."""
        call = self._first if self.step_index is None else self.step_index
        scale = self.model.input_scale(self.model.path.nodes(self._planned.calls[call : call + 1, 0]))
        return sample if scale is None else sample * float(scale[0])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The next state, from the network's output at this one.

        Args:
            timestep: not used; calls are counted.

        Returns:
            An object with `prev_sample` and `pred_original_sample` (the denoised estimate if it is clipped, else None),
            or the tuple (prev_sample,).

        Raises:
            ValueError: if the shapes of model_output and sample differ, or `set_timesteps` was not called.
        """
        out = model_output
        if out.shape[1:2] == (2 * sample.shape[1],):
            out = out[:, : sample.shape[1]]
        if out.shape != sample.shape:
            shapes = f"{tuple(sample.shape)}, got {tuple(out.shape)}"
            raise ValueError(f"model_output must have the shape of sample, {shapes}")
        if self._run is None:
            self._run = _Run(self._begin(sample, generator), self.model, self.config)
        latents, denoised = self._run.step(out, sample)
        if not return_dict:
            return (latents,)
        from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

        return DDIMSchedulerOutput(prev_sample=latents, pred_original_sample=denoised)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at the noise levels of `timesteps`, shape (B,), on the network's clock."""
        at = self.model.path.at(self._times(timesteps))
        alpha, sigma = (
            w.to(noise.device, noise.dtype).view(-1, *[1] * (noise.dim() - 1)) for w in (at.alpha, at.sigma)
        )
        noisy: Tensor = alpha * original_samples + sigma * noise
        return noisy

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    @property
    def _planned(self) -> Tableau:
        if self._tableau is None:
            raise ValueError("timesteps must be set, got none; call set_timesteps first")
        return self._tableau

    def _node(self, call: int) -> int:
        """The grid node of a call, or -1 between nodes."""
        return int(self._planned.node[call - 1]) if call else 0

    def _begin(self, sample: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Executor:
        tableau = self._planned
        if self._first:
            times = tableau.times[self._node(self._first) :]
            tableau = plan(self.model, self.solver, grid=times, guidance=self.guidance)
        seed = self.seed
        if seed is None and generator is not None and tableau.stochastic:
            seed = _drawn(generator) if isinstance(generator, torch.Generator) else [_drawn(g) for g in generator]
        clips = self.config.get("clip_sample") or self.config.get("thresholding")
        return begin(self.model, noise=sample, solver=tableau, seed=seed, prediction="denoised" if clips else None)

    def _own_grid(self, steps: int | None, given: dict[str, Any]) -> np.ndarray:
        """The nodes of the given scheduler, on the path's clock, the data end last."""
        from diffusers import DDIMScheduler

        theirs, path = self.scheduler, self.model.path
        if not hasattr(theirs, "sigmas") and "timesteps" not in given:  # the same spacing without repeated calls
            theirs = DDIMScheduler.from_config(theirs.config)  # type: ignore[no-untyped-call]
        accepted = inspect.signature(theirs.set_timesteps).parameters
        for name in given.keys() - accepted.keys():
            kind = type(self.scheduler).__name__
            raise ValueError(f"{name}={described(given[name])} cannot be given with {kind}, which does not take it")
        theirs.set_timesteps(**({"num_inference_steps": steps} if steps is not None else {}), **given)
        if not hasattr(theirs, "sigmas"):
            return np.append(theirs.timesteps.double().numpy(force=True), path.t_data)
        sigmas: np.ndarray = torch.cat([theirs.sigmas[:1], theirs.sigmas[1 :: theirs.order]]).double().numpy(force=True)
        if isinstance(path, EDM | Rectified):
            times: np.ndarray = np.minimum(sigmas, path.t_noise)
            return times
        with np.errstate(divide="ignore"):  # sigma / alpha in float32; the first may exceed our table's by rounding
            times = path.time(np.maximum(-np.log(sigmas), float(path.lam(path.t_noise)))).numpy()
        row = times.round()
        return np.where(np.abs(times - row) < 1e-3, row, times) if path.integer else times

    def _network_times(self, tableau: Tableau) -> Tensor:
        return self.model.network_time(torch.from_numpy(tableau.calls[:, 0].copy())).float()

    def _times(self, network_time: Tensor) -> Tensor:
        """The path's times at these values of the network's clock."""
        network_time = network_time.double().reshape(-1)
        if self.model.clock == "c_noise":
            return self.model.path.time(-4 * network_time)
        return network_time / 1000 if self.model.clock == "1000t" else network_time


class _Run:
    """An unfinished run: the executor, and the last tensor returned to the pipeline."""

    def __init__(self, ex: Executor, model: Model, config: Any) -> None:
        self.ex, self.config = ex, config
        self.estimate = (
            DenoisedEstimate(model, ex.tableau, needed=True) if ex.program.prediction != model.predicts else None
        )
        self.returned: Tensor | None = None
        self.version = 0

    @property
    def call(self) -> int:
        return self.ex.call

    def step(self, out: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state as the pipeline's next latents, and the denoised estimate where it is thresholded."""
        if self.returned is not None and not (sample is self.returned and _version(sample) == self.version):
            self.ex.correct(sample.to(self.ex.y))
        denoised = None
        if self.estimate is not None:
            denoised = self.estimate(self.ex.call, self.ex.y, out).denoised
            assert denoised is not None
            out = denoised = _thresholded(denoised, self.config)
        self.ex.advance(out)
        # A copy: the next step writes to the state, and pipelines keep the returned tensor.
        self.returned = self.ex.y.to(sample.dtype, copy=True)
        self.version = _version(self.returned)
        return self.returned, denoised


def _thresholded(x: Tensor, config: Any) -> Tensor:
    """x clipped, or scaled to a quantile of its magnitude (2205.11487, section 2.3), as the configuration says."""
    if not config.get("thresholding"):
        bound = config.get("clip_sample_range", 1.0)
        return x.clamp(-bound, bound)
    size = torch.quantile(x.abs().flatten(1), config.dynamic_thresholding_ratio, dim=1)
    size = size.clamp(1, config.sample_max_value).view(-1, *[1] * (x.dim() - 1))
    return torch.minimum(torch.maximum(x, -size), size) / size


def _version(x: Tensor) -> int:
    """The number of in-place writes to x; -1 for tensors of inference mode, which are not tracked."""
    return -1 if x.is_inference() else x._version


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


class Network(nn.Module):
    """A diffusers network as `net(x, t, **cond)`, returning a tensor without a learned variance."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        out: Tensor = self.network(x, timestep=t, return_dict=False, **cond)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def model_of(network: nn.Module, scheduler: Any, *, clock: str | None = None) -> Model:
    """A diffusers network (UNet2DModel, UNet2DConditionModel, a transformer) as a Model.

    Args:
        scheduler: one made for the network; it determines the path and the prediction.
        clock: the network's time, a name in `diffsolve.models.CLOCKS`. For flow transformers only the pipelines define
            it, so it must be given, except for those of Stable Diffusion 3 ("1000t") and Flux ("t"). Note that some
            pipelines also change the sign of the output.

    Raises:
        ValueError: if the scheduler is not supported, or the clock must be given.
    """
    path, predicts, its_clock = meaning(scheduler)
    if clock is None and isinstance(path, Rectified):
        clock = FLOW_CLOCKS.get(type(network).__name__)
        if clock is None:
            raise ValueError(
                f"clock must be 't', '1-t' or '1000t', as the pipeline has it, for {type(network).__name__}, got None"
            )
    sigma_data = scheduler.config.get("sigma_data", 0.5)
    return adapt(Network(network), path, predicts, clock=clock or its_clock, sigma_data=sigma_data)


def pipeline(pipe: Any, *, clock: str | None = None) -> Model:
    """The network of a pipeline, its `unet` or `transformer`, as a Model.

    Raises:
        ValueError: if the pipeline has no such network or no scheduler; see also `model_of`.
    """
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if network is None or not hasattr(pipe, "scheduler"):
        kind = type(pipe).__name__
        raise ValueError(f"pipe must have a unet or transformer, and a scheduler, got {kind}; use model_of")
    return model_of(network, pipe.scheduler, clock=clock)


def _not_called(x: Tensor, t: Tensor) -> Tensor:
    raise TypeError("a scheduler has no network")
