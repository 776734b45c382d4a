r"""Distribution matching: a student's samples, judged by two scores (Yin et al., 2311.18828; 2405.14867)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import instance
from diffsolve.common.tensors import column
from diffsolve.distill.base import Loss, Parts, uniforms
from diffsolve.distill.metrics import squared
from diffsolve.distill.teacher import Teacher
from diffsolve.grids import Warp
from diffsolve.models import Guidance, Model
from diffsolve.noise import Stream
from diffsolve.training import laws
from diffsolve.training.laws import TimeLaw
from diffsolve.training.objective import objective
from diffsolve.training.update import Update

__all__ = ["Matching", "distribution"]


@dataclass(frozen=True)
class Matching(Loss):
    """The loss of `distribution`."""

    teacher: Model
    fake: Model
    guidance: float | Guidance | None = None
    times: str | TimeLaw | Warp = "uniform-t"
    options: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, student: Model, update: Update) -> Tensor:
        """What the student makes of drawn noise in one jump, with its graph."""
        path = student.path
        z = update.normal(Stream.DISTILL) * path.prior_std()
        return student.jump(z, path.t_noise, path.t_data, **update.cond)

    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Parts]:
        """The loss, whose gradient by x is that of the divergence; x0 says the shape alone, noise is added to x."""
        x, path, noise = self.samples(student, update), student.path, update.noise
        t = laws.named(self.times).quantile(uniforms(update)[:, 0].clip(1e-9, 1 - 1e-9), path)
        p = path.nodes(t)
        with torch.no_grad():
            noised = column(p.alpha, x) * x + column(p.sigma, x) * noise
            to_data = (p.alpha * 0 + 1, p.alpha * 0)
            real, fake = (
                Teacher(model, guidance).predict(to_data, noised, t, update.cond)
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
            x = self.samples(student, Update.of(student, x0, cond, seed, step, index, None, name="student"))
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
