r"""Distribution matching: a student's samples, judged by two scores (Yin et al., 2311.18828; 2405.14867)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffsolve import grids
from diffsolve.common.checks import instance, integer, number, required
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

__all__ = ["Matching", "WithFake", "distribution"]

GRID = "jumps(variable='theta')"
"""That of the solver "consistency"."""


class WithFake(nn.Module):
    """A student's network that carries the fake one, so that one optimizer and one checkpoint have both.

    `distribution(.., turns=..)` trains them by turns; `net` is what is kept of it.
    """

    def __init__(self, net: nn.Module, fake: nn.Module) -> None:
        super().__init__()
        self.net, self.fake = net, fake

    def forward(self, *inputs: Tensor, **cond: Any) -> Tensor:
        """The student's output."""
        out: Tensor = self.net(*inputs, **cond)
        return out


@dataclass(frozen=True)
class Matching(Loss):
    """The loss of `distribution`."""

    teacher: Model
    fake: Model
    guidance: float | Guidance | None = None
    times: str | TimeLaw | Warp = "uniform-t"
    steps: int = 1
    turns: int = 0
    regression: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def samples(self, student: Model, update: Update) -> Tensor:
        """What the student makes of drawn noise: by one jump, or noised again and by a second one, which has the graph.

        The second begins at a node of the grid of `steps` steps, as likely at any; at the first node it is the only
        one.
        """
        path = student.path
        z = update.normal(Stream.DISTILL) * path.prior_std()
        if self.steps == 1:
            return student.jump(z, path.t_noise, path.t_data, **update.cond)
        nodes = grids.named(GRID)(path, self.steps)
        place = np.minimum((uniforms(update)[:, 1] * self.steps).astype(int), self.steps - 1)
        t = torch.from_numpy(nodes[place])
        p = path.at(t)
        with torch.no_grad():
            made = student.jump(z, path.t_noise, path.t_data, **update.cond)
            again = column(p.alpha, z) * made + column(p.sigma, z) * update.normal(Stream.ROW)
            begins = torch.where(column((place == 0).astype(float), z).bool(), z, again)
        return student.jump(begins, t, path.t_data, **update.cond)

    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Parts]:
        """The loss, whose gradient by x is that of the divergence; x0 says the shape alone, noise is added to x.

        With a share of regression they are a pair: the end of a run of the teacher, and its start.
        """
        if self.turns:
            carried = isinstance(student.net, WithFake) and student.net.fake is self.fake.net
            required(carried, "student.net", student.net, "a WithFake that carries the fake network, with turns=")
            if update.step % (self.turns + 1) != self.turns:
                return self._of_fake(student, update)
        x, path = self.samples(student, update), student.path
        noise = update.normal(Stream.TRAIN_NOISE) if self.regression else update.noise
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
        losses, times = 0.5 * squared(residual), torch.from_numpy(t)
        if self.regression:
            required(update.given is not None, "noise", update.given, "the start of each x0, with regression=")
            ends = student.jump(update.noise * path.prior_std(), path.t_noise, path.t_data, **update.cond)
            losses = losses + self.regression * squared(ends - update.x0)
        return losses, Parts(times, times, times, noised, x, wanted, squared(residual.detach()))

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
        return self._of_fake(student, Update.of(student, x0, cond, seed, step, index, None, name="student"))

    def _of_fake(self, student: Model, update: Update) -> tuple[Tensor, Any]:
        with torch.no_grad():
            x = self.samples(student, update)
        key: dict[str, Any] = {"seed": update.seed, "step": update.step, "index": update.index}
        return objective(self.fake, x, cond=update.cond, **key, **self.options)


def distribution(
    teacher: Model,
    fake: Model | None = None,
    *,
    guidance: float | Guidance | None = None,
    times: str | TimeLaw | Warp = "uniform-t",
    steps: int = 1,
    turns: int = 0,
    regression: float = 0.0,
    **options: Any,
) -> Matching:
    r"""Distribution matching of one-jump samples x, by the difference of two denoised estimates of what they noise to:

    .. math:: \nabla_x \propto D_{fake}(x_t, t) - D_{teacher}(x_t, t), \quad
              \text{over the mean of}\ |x - D_{teacher}|,

    which is 0 where the samples have the teacher's law. `fake` is a network of its own, by default a copy of the
    teacher without its dropout, that learns the student's law as it changes: `loss.fake_loss(student, x0, ..)` is its
    loss, of several updates for one of the student's. There is no adversarial part. Another map than the teacher's flow
    may come out.

    Args:
        guidance: of the teacher.
        times: the law of the times at which the two are compared.
        steps: for which the student is meant: with more than one it also learns jumps to the data from its own samples,
            noised again to the nodes of that many steps of "consistency" (2405.14867, section 4.5).
        turns: updates of the fake network for one of the student's, which the loss then makes itself, by turns: for a
            student whose network is `WithFake(net, fake.net)`, in `ds.distill.fit`.
        regression: the weight of |x - x_0|^2 where x is made from the start of a run of the teacher, given as noise,
            and x_0 is its end (2311.18828, eq. 9), by mean squares; it holds the student to the teacher's map.
        options: of `ds.training.objective`, for the fake network.
    """
    instance("teacher", teacher, Model, "a Model")
    fake = _copied(teacher) if fake is None else instance("fake", fake, Model, "a Model")
    steps, turns = integer("steps", steps, 1), integer("turns", turns, 0)
    return Matching(teacher, fake, guidance, times, steps, turns, number("regression", regression, low=0), options)


def _copied(teacher: Model) -> Model:
    """The teacher with a network of its own, to be trained, which drops nothing."""
    net = copy.deepcopy(instance("teacher.net", teacher.net, nn.Module, "a torch module")).requires_grad_(True)
    for part in net.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return replace(teacher, net=net)
