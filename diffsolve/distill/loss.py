r"""The loss of a student: one object, of which the papers' methods are points (`diffsolve.distill.methods`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import choice, instance, integer, mapping, number, required
from diffsolve.distill.identities import Identity, Semigroup
from diffsolve.distill.metrics import Metric, Squared, squared
from diffsolve.distill.situation import Situation
from diffsolve.distill.stretches import Stretches
from diffsolve.distill.teacher import Teacher, column
from diffsolve.models import Guidance, Model
from diffsolve.noise import Key, Stream
from diffsolve.solvers import Solver, named
from diffsolve.training import weights
from diffsolve.training.objective import GOLDEN
from diffsolve.training.weights import Weight

__all__ = ["Distillation", "Parts", "Scales"]


class Parts(NamedTuple):
    """What a loss was made of."""

    t: Tensor
    """(B,): where each stretch begins, on the path's clock, float64."""
    m: Tensor
    s: Tensor
    x: Tensor
    """(B, ...): the samples at t."""
    output: Tensor
    target: Tensor
    """(B, ...): the student's output, and what it should have been."""
    error: Tensor
    """(B,): the mean square of their difference in the measure of the loss, before metric and weight."""


@dataclass(frozen=True)
class Scales:
    """Scales of guidance that the student is told, even in [low, high], one a sample (2210.03142, section 3).

    Args:
        uncond: of the teacher, as of `ds.Guidance`.
        told: the name of the student's condition; it gets (B,) in the dtype of its times.
    """

    low: float = 1.0
    high: float = 4.0
    uncond: Mapping[str, Any] = field(default_factory=dict, hash=False)
    told: str = "scale"

    def __post_init__(self) -> None:
        number("low", self.low)
        number("high", self.high, low=self.low)
        mapping("uncond", self.uncond)
        instance("told", self.told, str, "a string")


@dataclass(frozen=True)
class Distillation:
    """An identity, where the velocity comes from, at which stretches, and how errors are measured.

        loss = ds.distill.consistency(teacher=model)
        losses, parts = loss(student, x0, seed=0, step=step)
        losses.mean().backward()

    Everything random depends on (seed, step, index + i) alone, as in `ds.training.objective`, but for the dropout of
    the networks, which is the same in the student and its target.
    """

    identity: Identity
    stretches: Stretches
    source: str = "data"
    """Whose velocity it learns: "teacher", "data" (that of x_0 and the noise) or "self" (its own diagonal)."""
    teacher: Model | None = None
    guidance: float | Guidance | Scales | None = None
    """Of the teacher."""
    solver: str | Solver = "ddim"
    """Of the teacher's runs."""
    metric: Metric = field(default_factory=Squared)
    weight: str | Weight = "none"
    """Of the squared error at t, as in `ds.training.objective`."""
    measure: str = "output"
    """What is measured: "output" R = o - o*, or "state" X - X* where they land, Q R."""
    gap: float = 0.0
    """The power p of a factor 1 / |theta_t - theta_m|^p: 1 in iCT (2310.14189, eq. 7) with rho there."""
    averaged: bool = False
    """Whether the target is a slow copy of the student: `fit` gives its running average, a loop its own `target=`."""
    scale: float = 1.0
    """omega of MeanFlow's own guidance of a velocity of data; see `Situation`."""
    mix: float = 0.0
    """kappa of the same."""
    uncond: Mapping[str, Any] | None = field(default=None, hash=False)
    """The conditions without one: of that guidance, and of dropped samples."""
    drop: float = 0.0
    """The share of samples whose conditions are replaced by `uncond`."""

    def __post_init__(self) -> None:
        instance("identity", self.identity, Identity, "an Identity")
        instance("stretches", self.stretches, Stretches, "a law of stretches")
        instance("metric", self.metric, Metric, "a Metric")
        choice("source", self.source, ("teacher", "data", "self"))
        choice("measure", self.measure, ("output", "state"))
        named(self.solver)
        weights.named(self.weight)
        number("gap", self.gap, low=0)
        number("drop", self.drop, low=0, high=1)
        ran = isinstance(self.identity, Semigroup) and "teacher" in (self.identity.first, self.identity.second)
        if self.source == "teacher" or ran:
            required(isinstance(self.teacher, Model), "teacher", self.teacher, "a Model", TypeError)
        guides = self.scale != 1 or self.mix != 0
        required(not guides or self.source == "data", "scale", self.scale, "1 where the velocity is not that of data")
        required(not guides or self.uncond is not None, "uncond", self.uncond, f"given with scale={self.scale}")
        required(not self.drop or bool(self.uncond), "uncond", self.uncond, f"given with drop={self.drop}")

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
        target: Model | None = None,
    ) -> tuple[Tensor, Parts]:
        """The loss of each sample of a batch, with a graph back to the student's parameters.

        Args:
            student: of `ds.adapt`, with jumps= for a network told two times.
            x0: (B, ...), data, floating.
            cond: of both networks; tensors whose first axis is B have a row per sample.
            seed: any integer, of the whole training.
            step: the number of the update, in [0, 2**32).
            index: of the first sample.
            noise: (B, ...), in place of drawn normals.
            target: a slow copy of the student for what is not differentiated; the student itself if None.

        Returns:
            (B,), float32 or wider; and the `Parts`.

        Raises:
            ValueError: if an argument is out of range, the teacher's path is another, or a network does not determine
                what it is asked for at a time that is drawn.
            TypeError: if x0 is not floating, or the student is no Model.
        """
        at = self.situation(student, x0, cond, seed, step, index, noise, target)
        output, wanted = self.identity.output(at)
        wide = torch.promote_types(output.dtype, torch.float32)
        residual = output.to(wide) - wanted.to(wide).detach()
        p, q = (student.path.at(torch.from_numpy(times)) for times in (at.t, at.s))
        if self.measure == "state":
            residual = column(student.landing(p, q)[1], residual) * residual
        a, b = (torch.as_tensor(c, dtype=torch.float64).expand(len(x0)) for c in student.coefficients(p))
        factor = weights.named(self.weight).of_output(p, a, b)
        if self.gap:
            r = student.path.at(torch.from_numpy(at.m))
            between = torch.atan2(p.sigma, p.alpha) - torch.atan2(r.sigma, r.alpha)
            factor = factor / torch.where(between == 0, 1.0, between.abs()) ** self.gap
        required(bool(factor.isfinite().all()), "weight", self.weight, "finite at all times that are drawn")
        losses = factor.to(residual.device, wide) * self.metric(residual)
        t, m, s = (torch.from_numpy(times) for times in (at.t, at.m, at.s))
        return losses, Parts(t, m, s, at.x, output, wanted, squared(residual.detach()))

    def situation(
        self,
        student: Model,
        x0: Tensor,
        cond: Mapping[str, Any] | None,
        seed: int,
        step: int,
        index: int,
        noise: Tensor | None,
        target: Model | None,
    ) -> Situation:
        """The batch that an update is made of."""
        check(student, x0, noise)
        if self.teacher is not None:
            same = self.teacher.path == student.path
            required(same, "teacher.path", self.teacher.path, f"that of the student, {student.path}")
        key = Key.of(integer("seed", seed), index)
        u = uniforms(seed, integer("step", step, 0, 2**32 - 1), index, len(x0))
        t, m, s = np.ascontiguousarray(self.stretches.draw(u, student.path, step).T)
        if noise is None:
            noise = key.normal(x0.shape, row=step, stream=Stream.TRAIN_NOISE, dtype=x0.dtype, device=x0.device)
        conditions = dropped(mapping("cond", cond), self.drop, self.uncond, key, step, x0)
        told, scale = dict(conditions), None
        if isinstance(self.guidance, Scales):
            chosen = key.normal((len(x0), 2), row=step, stream=Stream.DISTILL, dtype=torch.float64)[:, 1]
            share = torch.special.ndtr(chosen)
            scale = (self.guidance.low + (self.guidance.high - self.guidance.low) * share).to(x0.device)
            told[self.guidance.told] = scale.to(student.time_dtype(x0.dtype))
            guidance = Guidance(1.0, uncond=self.guidance.uncond)
        else:
            guidance = Guidance.of(self.guidance)
        teacher = None if self.teacher is None else Teacher(self.teacher, guidance)
        at = Situation(
            student, target or student, teacher, self.source, named(self.solver), x0, noise, x0, t, m, s, told,
            conditions, scale, step, self.scale, self.mix, self.uncond,
        )  # fmt: skip
        return replace(at, x=at.noised(t))


def check(student: Model, x0: Tensor, noise: Tensor | None) -> None:
    """Check the student and the data."""
    required(isinstance(student, Model), "student", student, "a Model, of ds.adapt(net, path, predicts)", TypeError)
    floating = isinstance(x0, Tensor) and x0.is_floating_point()
    required(floating, "x0", x0, "a floating tensor", TypeError)
    required(x0.dim() > 0 and len(x0) > 0, "x0", x0, "of shape (B, ...) with at least one sample")
    if noise is not None:
        fits = isinstance(noise, Tensor) and noise.shape == x0.shape
        required(fits, "noise", noise, f"a tensor of the shape of x0, {tuple(x0.shape)}")


def uniforms(seed: int, step: int, index: int, count: int) -> np.ndarray:
    """(B, 4) uniform numbers of an update, of which the first are spread evenly over the batch."""
    ndtr = torch.special.ndtr
    u = ndtr(Key.of(seed, index).normal((count, 4), row=step, stream=Stream.TRAIN_TIME, dtype=torch.float64))
    start = float(ndtr(Key.of(seed).normal((1,), row=step, stream=Stream.DISTILL, dtype=torch.float64)))
    u[:, 0] = (start + GOLDEN * torch.arange(index, index + count, dtype=torch.float64)) % 1
    values: np.ndarray = u.numpy()
    return values


def dropped(
    cond: Mapping[str, Any], drop: float, uncond: Mapping[str, Any] | None, key: Key, step: int, x0: Tensor
) -> dict[str, Any]:
    """The conditions with the dropped samples' rows replaced."""
    conditions = dict(cond)
    if not drop:
        return conditions
    chosen = key.normal((len(x0), 1), row=step, stream=Stream.TRAIN_DROP, dtype=torch.float64)[:, 0]
    lost = torch.special.ndtr(chosen) < drop
    for name, null in (uncond or {}).items():
        value = conditions.get(name)
        rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(x0)
        required(rows, f"cond[{name!r}]", value, f"a tensor of {len(x0)} rows, to drop some of them")
        assert isinstance(value, Tensor)
        where = lost.to(value.device).view(-1, *[1] * (value.dim() - 1))
        conditions[name] = torch.where(where, torch.as_tensor(null, dtype=value.dtype, device=value.device), value)
    return conditions
