"""An unfinished run inside a pipeline: its executors, and what of the pipeline's calls they take."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffsolve.execute import Executor
from diffsolve.execute.clip import Clip
from diffsolve.execute.results import DenoisedEstimate
from diffsolve.execute.start import begin
from diffsolve.integrations.diffusers_plan import Plan
from diffsolve.noise import SeedLike
from diffsolve.solvers import DDIM

__all__ = ["PerThread", "Run", "drawn"]

Generators = torch.Generator | Sequence[torch.Generator]


class Run:
    """A run from a row of the plan, or from a time between rows, and the last tensor returned to the pipeline.

    Args:
        first: the row at which it begins; None between rows.
        time: the path's time there.
        config: clipping and thresholding follow it.
        keeps_noise: of clipped data, keep the noise that the unclipped one implies, as DDIM's scheduler does.
    """

    def __init__(
        self,
        plan: Plan,
        first: int | None,
        time: float,
        sample: Tensor,
        seed: SeedLike | None,
        config: Any,
        keeps_noise: bool,
    ) -> None:
        self.plan, self.config, self.clip, self.seed = plan, config, clipping(config), seed
        self.skips = "timestep_scaling" in config
        self.keeps_noise = keeps_noise and self.clip is not None and isinstance(plan.method, DDIM)
        self.first = first
        self.tableaux, self.takes = plan.rest(first, time)
        self.made = 0
        """How many of the calls ahead the pipeline has made."""
        self.denoised: Tensor | None = None
        self.returned: Tensor | None = None
        self.version = 0
        self._begin(sample)

    @property
    def row(self) -> int:
        """The row of the next call."""
        return len(self.plan.clock) - len(self.takes) + self.made

    @property
    def over(self) -> bool:
        """Whether the pipeline has made all calls."""
        return self.made == len(self.takes)

    def _begin(self, sample: Tensor) -> None:
        tableau, *self.tableaux = self.tableaux
        changed = self.clip is not None or self.skips
        prediction = "denoised" if changed else None
        self.ex: Executor = begin(self.plan.model, noise=sample, solver=tableau, seed=self.seed, prediction=prediction)
        self.estimate = DenoisedEstimate(self.plan.model, tableau, needed=changed)

    def step(self, out: Tensor, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state as the pipeline's next latents, and the denoised estimate, None where it is not determined."""
        if self.returned is not None and not (sample is self.returned and _version(sample) == self.version):
            self.ex.correct(sample.to(self.ex.y))
        if self.ex.done and self.tableaux:
            self._begin(self.ex.y)
        if self.takes[self.made]:
            self._advance(out)
        self.made += 1
        # A copy: the next step writes to the state, and pipelines keep the returned tensor.
        self.returned = self.ex.y.to(sample.dtype, copy=True)
        self.version = _version(self.returned)
        return self.returned, None if self.denoised is None else self.denoised.to(sample.dtype)

    def _advance(self, out: Tensor) -> None:
        whole = self.estimate(self.ex.call, self.ex.y, out).denoised
        if self.clip is None and not self.skips:
            self.denoised = whole
            self.ex.advance(out)
            return
        assert whole is not None
        self.denoised = whole if self.clip is None else self.clip.clipped(whole)
        if self.skips:
            self.denoised = skipped(self.denoised, self.ex.y, float(self.plan.told[self.row]), self.config)
        if not self.keeps_noise:
            self.ex.advance(self.denoised)
            return
        self.ex.advance(whole)
        tableau = self.ex.tableau
        last = self.ex.done
        alpha = float(self.plan.model.path.alpha(float(tableau.times[-1] if last else tableau.calls[self.ex.call, 0])))
        self.ex.correct(self.ex.y + alpha * (self.denoised - whole))


class PerThread(threading.local):
    """What one thread has set and begun. A copy has the plan and the run of the thread that copies."""

    plan: Plan | None = None
    begin: int | None = None
    run: Run | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> PerThread:
        new = PerThread()
        new.plan, new.begin, new.run = copy.deepcopy((self.plan, self.begin, self.run), memo)
        return new

    def __reduce__(self) -> tuple[type[PerThread], tuple[()]]:
        return PerThread, ()


def clipping(config: Any) -> Clip | None:
    """The threshold of the denoised that a scheduler's configuration asks for."""
    if config.get("thresholding"):
        return Clip(quantile=config.dynamic_thresholding_ratio, most=max(1.0, config.sample_max_value))
    return Clip(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None


def skipped(denoised: Tensor, x: Tensor, timestep: float, config: Any) -> Tensor:
    """LCM's function of x, which is the identity at timestep 0 (2310.04378, appendix): a skip around the denoised."""
    scaled, sigma_data = timestep * config.timestep_scaling, 0.5
    size = math.hypot(scaled, sigma_data)
    function: Tensor = (sigma_data / size) ** 2 * x + scaled / size * denoised
    return function


def drawn(generator: Generators) -> int | list[int]:
    """A seed from a generator, or one of each."""
    if not isinstance(generator, torch.Generator):
        return [_drawn(each) for each in generator]
    return _drawn(generator)


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _version(x: Tensor) -> int:
    """The number of in-place writes to x; -1 for tensors of inference mode, which are not tracked."""
    return -1 if x.is_inference() else x._version
