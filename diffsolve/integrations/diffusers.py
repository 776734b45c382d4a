"""diffusers: any solver as the scheduler of a pipeline, and a pipeline's network as a Model.

pipe.scheduler = Scheduler(pipe.scheduler, solver="unipc-3")      # the pipeline goes on as before
image = pipe("a boat", num_inference_steps=12).images[0]

model = ds.adapt(unconditional_pipe)                              # or model_of(unet, scheduler)
x = ds.sample(model, (4, 3, 32, 32), solver="dpmpp-2m", steps=20, seed=0)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, own_times
from diffsolve.integrations.diffusers_meaning import class_of, meaning
from diffsolve.integrations.diffusers_models import model_of, pipeline
from diffsolve.integrations.diffusers_plan import Plan, host_rows, planned, times_of
from diffsolve.integrations.diffusers_run import Generators, PerThread, Run, drawn
from diffsolve.models import adapt
from diffsolve.noise import SeedLike
from diffsolve.solvers import FlowMap, Solver, resolve

__all__ = ["Scheduler", "model_of", "pipeline"]

IMAGE = 4 * 64 * 64
"""Numbers of a sample, for solvers that ask: a scheduler is told of no shape, and pipelines make images."""
OWN = "_diffsolve"
"""The key of the configuration that holds what a Scheduler was made with; other schedulers pass it on unread."""
THEIRS = frozenset({
    "alphas", "alphas_cumprod", "betas", "final_alpha_cumprod", "get_velocity", "set_shift", "shift", "sigma_max",
    "sigma_min", "time_shift",
})  # fmt: skip
"""What the given scheduler has and no solver changes."""
ALL_ROWS = frozenset({
    "DDPMParallelScheduler", "DDPMScheduler", "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
})  # fmt: skip
"""Schedulers that run over all their rows if `set_timesteps` was not called. The others ask for it."""


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusers scheduler that runs any solver of this library, in place of the given one.

        pipe.scheduler = Scheduler(pipe.scheduler, solver="dpmpp-3m", grid="karras")

    Timesteps, noise levels and the prediction type are those of the given scheduler, whatever its own method; the state
    is x_t = alpha x_0 + sigma eps itself, unscaled, in float32 whatever the pipeline's dtype. A run ends on the data.
    The output of a network that also predicts a variance (twice the channels) is accepted. Clipping and dynamic
    thresholding follow the scheduler's configuration; with "ddim" in the place of DDIM's scheduler the noise estimate
    is that of the unclipped data, as there, and with every other solver it is made anew from the clipped.

    A run begins at the row set by `set_begin_index`, else at the timestep that `step` is first given. After its last
    call, or at a timestep that is not the next, another begins. Each thread has its own run.

    It is saved and loaded with its pipeline. `from_config` also takes another scheduler's configuration, with
    `solver=`, and another scheduler's takes this one's.

    Edits of the latents between steps (inpainting, callbacks) are detected and used. Predictor-correctors and
    Runge-Kutta methods have a state beside the network's input, and for them an edit changes that input alone; use a
    method with one state ("dpmpp-2m", "ab-2", ..) in such pipelines.

    Args:
        scheduler: a diffusers scheduler with betas, of a flow (FlowMatch.., use_flow_sigmas) or of EDM. Of a Scheduler,
            the one inside.
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

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012  as in the base class

    def __init__(
        self,
        scheduler: Any,
        solver: str | Solver = DEFAULT_SOLVER,
        *,
        grid: GridLike | None = None,
        seed: SeedLike | None = None,
        guidance: float = 1.0,
    ) -> None:
        scheduler = getattr(scheduler, "scheduler", scheduler) if isinstance(scheduler, Scheduler) else scheduler
        instance("scheduler", scheduler, ConfigMixin, "a diffusers scheduler")
        self.scheduler, self.seed, self.guidance = scheduler, seed, guidance
        path, predicts, clock = meaning(scheduler)
        method, its_grid = resolve(solver)
        self.solver = method.suited(predicts, guidance, IMAGE)
        # A student's times are those of the scheduler that it was made for.
        own_grid = None if isinstance(self.solver, FlowMap) else its_grid or self.solver.grid
        self.grid = own_grid if grid is None else grid
        self.model = adapt(_not_called, path, predicts, clock=clock, sigma_data=scheduler.config.get("sigma_data", 0.5))
        # Calls in a step, by which pipelines find the first of a part: those of a start are not in most steps.
        self.order = 1 if getattr(self.solver, "start", None) else self.solver.calls
        self._latest: Plan | None = None
        self._mine = PerThread()
        times = own_times(grid)
        own = {
            "scheduler": type(scheduler).__name__,
            "solver": solver if isinstance(solver, str) else None,
            "grid": times.tolist() if times is not None else grid if isinstance(grid, str) else None,
            "seed": seed if isinstance(seed, int | list | None) else None,
            "guidance": guidance,
        }
        named = {"_class_name": type(self).__name__, OWN: own}
        self.register_to_config(**{**scheduler.config, **named})  # type: ignore[no-untyped-call]
        self._unsaved = [
            f"{name}={value!r}"
            for name, value in (("solver", solver), ("grid", grid), ("seed", seed))
            if value is not None and own[name] is None
        ]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **options: Any) -> Any:
        """A Scheduler from a configuration: one of its own, or another scheduler's.

        Args:
            config: a mapping, as `scheduler.config` is.
            return_unused_kwargs: also return the options that the inner scheduler does not know.
            options: solver, grid, seed and guidance, and values that replace those of the configuration.

        Raises:
            ValueError: if the configuration names no scheduler of diffusers.
        """
        config = dict(instance("config", config, dict, "a configuration, a mapping"))
        own = dict(config.pop(OWN, {}))
        kind = config.pop("_class_name", None)
        kind = own.get("scheduler") if kind == cls.__name__ else kind
        inner = getattr(diffusers, kind, None) if isinstance(kind, str) else class_of(config)
        known = isinstance(inner, type) and issubclass(inner, SchedulerMixin)
        required(known, "_class_name of config", kind, "that of a scheduler of diffusers")
        assert inner is not None
        made = {name: options.pop(name, own.get(name)) for name in ("solver", "grid", "seed", "guidance")}
        scheduler, unused = inner.from_config(config, return_unused_kwargs=True, **options)
        made["solver"] = DEFAULT_SOLVER if made["solver"] is None else made["solver"]
        made["guidance"] = 1.0 if made["guidance"] is None else made["guidance"]
        loaded = cls(scheduler, **made)
        return (loaded, unused) if return_unused_kwargs else loaded

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Write the configuration, that of the given scheduler and the solver, as every scheduler does.

        Raises:
            ValueError: if the solver, grid or seed is an object that has no name.
        """
        if self._unsaved:
            raise ValueError(
                f"solver, grid and seed must be names or numbers to be saved, got {', '.join(self._unsaved)}"
            )
        super().save_config(save_directory, push_to_hub, **options)

    @property
    def compatibles(self) -> list[Any]:
        """The classes that can stand in the given scheduler's place."""
        return list(self.scheduler.compatibles)

    def __getattr__(self, name: str) -> Any:
        if name in THEIRS and "scheduler" in self.__dict__:
            return getattr(self.scheduler, name)
        return super().__getattr__(name)

    @property
    def _plan(self) -> Plan | None:
        return self._latest if self._mine.plan is None else self._mine.plan

    @property
    def timesteps(self) -> Tensor:
        """(N,): what the network is told at each of its calls; before `set_timesteps`, the given scheduler's."""
        if self._plan is not None:
            return self._plan.timesteps
        own = self.scheduler.timesteps
        return own if isinstance(own, Tensor) else torch.arange(len(self) - 1, -1, -1, device="cpu")

    @property
    def sigmas(self) -> Tensor:
        """(N + 1,): the noise level of each call, in the given scheduler's terms, and 0 for the data."""
        if self._plan is not None:
            return self._plan.sigmas
        if hasattr(self.scheduler, "sigmas"):
            own: Tensor = self.scheduler.sigmas
            return own
        return self.model.path.rho(times_of(self.model, None, self.timesteps)).float()

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps; None before `set_timesteps`."""
        return None if self._plan is None else len(self._plan.times) - 1

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """The standard deviation of the noise at the start of a run; a tensor where the host's is one."""
        std, own = self.model.path.prior_std(), getattr(self.scheduler, "init_noise_sigma", None)
        return torch.tensor(std) if isinstance(own, Tensor) else std

    @property
    def step_index(self) -> int | None:
        """The number of the next call; None before the first."""
        return None if self._mine.run is None else self._mine.run.row

    @property
    def begin_index(self) -> int | None:
        """The number of the first call; None if `set_begin_index` was not called."""
        return self._mine.begin

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

        Raises:
            ValueError: if the number is below 1, the solver adds noise before its first call, the scheduler does not
                take an argument, or the timesteps or sigmas make no schedule.
        """
        host = copy.copy(self.scheduler)  # with what a pipeline has written into this configuration
        changed = {name: self.config[name] for name in host.config}
        host._internal_dict = FrozenDict(changed)  # type: ignore[no-untyped-call]
        given = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
        given = {name: value for name, value in given.items() if value is not None}
        rows = None
        if self.grid is None:
            rows = host_rows(host, self.model.path, num_inference_steps, given)
        elif own_times(self.grid) is not None:
            num_inference_steps = None
        else:
            own = timesteps if timesteps is not None else sigmas
            count = num_inference_steps if own is None else len(own)
            num_inference_steps = integer("num_inference_steps", count, 1)
        self._latest = self._mine.plan = planned(
            self.model,
            self.solver,
            self.grid,
            rows,
            steps=num_inference_steps,
            guidance=self.guidance,
            dtype=self.timesteps.dtype if rows is None else rows.dtype,
            device=device,
        )
        self._mine.begin = self._mine.run = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this call, as image-to-image pipelines do.

        Raises:
            ValueError: if it is not the number of a call, or the solver cannot go on from it with the calls after it.
        """
        plan = self._mine.plan or self._latest
        high = None if plan is None else len(plan.clock) - 1
        begin_index = integer("begin_index", begin_index, 0, high)
        if plan is not None:
            plan.rest(begin_index, float(plan.clock[begin_index]))
        self._mine.begin, self._mine.run = begin_index, None

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The number of the call that is told this timestep; of several, the first that begins a step.

        Raises:
            ValueError: if none is.
        """
        if schedule_timesteps is not None and self._plan is None:
            rows = (schedule_timesteps == timestep).nonzero().flatten().tolist()
        else:
            rows = self._planned.rows(timestep)
        required(bool(rows), "timestep", timestep, "one of the scheduler's timesteps")
        return int(rows[0])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None, **_: Any) -> Tensor:
        """The network's input: c_in times the state for a raw EDM network, else the state.

        Other arguments are ignored, as by the hosts: pipelines give some to every scheduler.
        """
        if self.model.predicts != "edm":
            return sample
        run, plan = self._mine.run, self._plan
        if timestep is not None:
            at = times_of(self.model, plan, timestep)[:1]
        else:
            row = run.row if run is not None else self._mine.begin or 0
            at = torch.from_numpy(self._planned.clock[row : row + 1].copy())
        return sample * float(self.model.input_scale(self.model.path.nodes(at))[0])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators | None = None,
        return_dict: bool = True,
        *,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Any:
        """The next state, from the network's output at this one.

        Args:
            timestep: says where a run begins, and whether one goes on.
            eta: DDIM's noise, where the solver is "ddim" without an eta of its own.
            use_clipped_model_output: make the noise estimate of "ddim" anew from clipped data.

        Returns:
            An object with `prev_sample` and `pred_original_sample` (the denoised estimate of this call, clipped as the
            configuration says; None where the network does not determine it), or a tuple of the two.

        Raises:
            ValueError: if the shapes of model_output and sample differ, `set_timesteps` was not called and the given
                scheduler asks for it, the timestep is not on the network's clock, or the solver has no eta.
        """
        out = model_output
        if out.shape[1:2] == (2 * sample.shape[1],):
            out = out[:, : sample.shape[1]]
        if out.shape != sample.shape:
            shapes = f"{tuple(sample.shape)}, got {tuple(out.shape)}"
            raise ValueError(f"model_output must have the shape of sample, {shapes}")
        run = self._mine.run
        if run is None or run.over or not self._goes_on(run, timestep):
            keeps_noise = not use_clipped_model_output and type(self.scheduler).__name__.startswith("DDIM")
            plan = self._planned.with_eta(eta) if eta else self._planned
            self._mine.run = run = self._begin(plan, timestep, sample, generator, keeps_noise)
        latents, denoised = run.step(out, sample)
        if not return_dict:
            return latents, denoised
        return DDIMSchedulerOutput(prev_sample=latents, pred_original_sample=denoised)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at the noise levels of `timesteps`, shape (B,), on the network's clock."""
        at = self.model.path.at(times_of(self.model, self._plan, timesteps))
        alpha, sigma = (
            w.to(noise.device, noise.dtype).view(-1, *[1] * (noise.dim() - 1)) for w in (at.alpha, at.sigma)
        )
        noisy: Tensor = alpha * original_samples + sigma * noise
        return noisy

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    @property
    def _planned(self) -> Plan:
        if self._plan is None and type(self.scheduler).__name__ in ALL_ROWS:
            self.set_timesteps(len(self))
        if self._plan is None:
            raise ValueError("timesteps must be set, got none; call set_timesteps first")
        return self._plan

    def _goes_on(self, run: Run, timestep: float | Tensor) -> bool:
        """Whether this timestep is the run's next, or may be: one on another device is not waited for."""
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu" and self._mine.begin is not None:
            return True
        rows = run.plan.rows(timestep) or run.plan.nearest(timestep)
        if run.row in rows:
            return True
        # A pipeline that said where it begins may count its own way from there on, but not begin again.
        return self._mine.begin is not None and self._mine.begin not in rows

    def _begin(
        self, plan: Plan, timestep: float | Tensor, sample: Tensor, generator: Generators | None, keeps_noise: bool
    ) -> Run:
        row = self._mine.begin
        if row is None:
            rows = plan.rows(timestep)
            row = rows[0] if rows else None
        time = plan.time(timestep) if row is None else float(plan.clock[row])
        seed = self.seed
        if seed is None and generator is not None and plan.tableau.stochastic:
            seed = drawn(generator)
        config = dict(self.config)
        if isinstance(self.scheduler, diffusers.TCDScheduler):  # which has these options and does neither
            config |= {"clip_sample": False, "thresholding": False}
        return Run(plan, row, time, sample, seed, FrozenDict(config), keeps_noise)  # type: ignore[no-untyped-call]


def _not_called(x: Tensor, t: Tensor) -> Tensor:
    raise TypeError("a scheduler has no network")
