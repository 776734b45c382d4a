r"""Distribution matching: a student's samples, judged by two scores (Yin et al., 2311.18828; 2405.14867)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, mapping
from diffsolve.distill.loss import Parts, check, uniforms
from diffsolve.distill.metrics import squared
from diffsolve.distill.teacher import Teacher, column
from diffsolve.grids import Warp
from diffsolve.models import Guidance, Model
from diffsolve.noise import Key, Stream
from diffsolve.training import laws
from diffsolve.training.laws import TimeLaw
from diffsolve.training.objective import objective

__all__ = ["Matching", "distribution"]


@dataclass(frozen=True)
class Matching:
    """The loss of `distribution`."""

    teacher: Model
    fake: Model
    guidance: float | Guidance | None = None
    times: str | TimeLaw | Warp = "uniform-t"
    options: Mapping[str, Any] = field(default_factory=dict)
    averaged = False

    def samples(
        self, student: Model, x0: Tensor, cond: Mapping[str, Any] | None, seed: int, step: int, index: int
    ) -> Tensor:
        """What the student makes of drawn noise in one jump, with its graph."""
        key, path = Key.of(integer("seed", seed), index), student.path
        z = key.normal(x0.shape, row=step, stream=Stream.DISTILL, dtype=x0.dtype, device=x0.device)
        return student.jump(z * path.prior_std(), path.t_noise, path.t_data, **mapping("cond", cond))

    def __call__(
        self,
        student: Model,
        x0: Tensor,
        *,
        cond: Mapping[str, Any] | None = None,
        seed: int,
        step: int,
        index: int = 0,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of each sample, whose gradient by x is that of the divergence; x0 says the shape alone.

        Args:
            noise: (B, ...), that the samples are noised with, in place of drawn normals.

        The others, the result and the errors are those of `ds.distill.Distillation`.
        """
        check(student, x0, noise)
        x, path = self.samples(student, x0, cond, seed, step, index), student.path
        u = uniforms(seed, step, index, len(x0))[:, 0].clip(1e-9, 1 - 1e-9)
        t = laws.named(self.times).quantile(u, path)
        if noise is None:
            key = Key.of(seed, index)
            noise = key.normal(x0.shape, row=step, stream=Stream.TRAIN_NOISE, dtype=x0.dtype, device=x0.device)
        p = path.nodes(t)
        with torch.no_grad():
            noised = column(p.alpha, x) * x + column(p.sigma, x) * noise
            to_data = (p.alpha * 0 + 1, p.alpha * 0)
            conditions = mapping("cond", cond)
            real, fake = (
                Teacher(model, guidance).predict(to_data, noised, t, conditions)
                for model, guidance in ((self.teacher, Guidance.of(self.guidance)), (self.fake, Guidance(1.0)))
            )
            size = (x - real).abs().flatten(1).mean(1) if x.dim() > 1 else (x - real).abs()
            step_by = (fake - real) / column(size.double().clamp(min=1e-8), x)
            wanted = x - step_by
        residual = x - wanted
        times = torch.from_numpy(t)
        return 0.5 * squared(residual), Parts(times, times, times, noised, x, wanted, squared(residual.detach()))

    def fake_loss(
        self,
        student: Model,
        x0: Tensor,
        *,
        cond: Mapping[str, Any] | None = None,
        seed: int,
        step: int,
        index: int = 0,
    ) -> tuple[Tensor, Any]:
        """The loss of the fake network on what the student makes, `ds.training.objective`: for its own optimizer."""
        with torch.no_grad():
            x = self.samples(student, x0, cond, seed, step, index)
        return objective(self.fake, x, cond=cond, seed=seed, step=step, index=index, **self.options)


def distribution(
    teacher: Model,
    fake: Model,
    *,
    guidance: float | Guidance | None = None,
    times: str | TimeLaw | Warp = "uniform-t",
    **options: Any,
) -> Matching:
    r"""Distribution matching of one-jump samples x, by the difference of two denoised estimates of what they noise to:

    .. math:: \nabla_x \propto D_{fake}(x_t, t) - D_{teacher}(x_t, t), \quad
              \text{over the mean of}\ |x - D_{teacher}|,

    which is 0 where the samples have the teacher's law. `fake` is a network of its own, begun as a copy of the teacher,
    that learns the student's law as it changes: `loss.fake_loss(student, x0, ..)` is its loss, of several updates for
    one of the student's. There is no adversarial part. Another map than the teacher's flow may come out.

    Args:
        guidance: of the teacher.
        times: the law of the times at which the two are compared.
        options: of `ds.training.objective`, for the fake network.
    """
    instance("teacher", teacher, Model, "a Model")
    instance("fake", fake, Model, "a Model")
    return Matching(teacher, fake, guidance, times, options)
