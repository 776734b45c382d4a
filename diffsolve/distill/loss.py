r"""The loss of a student: one object, of which the papers' methods are points (`diffsolve.distill.methods`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import choice, instance, mapping, number, required
from diffsolve.common.tensors import column
from diffsolve.distill.base import Loss, Parts, uniforms
from diffsolve.distill.identities import Identity, Semigroup
from diffsolve.distill.metrics import Metric, Squared, squared
from diffsolve.distill.situation import Situation
from diffsolve.distill.stretches import Stretches
from diffsolve.distill.teacher import Teacher
from diffsolve.models import Guidance, Model
from diffsolve.noise import Stream
from diffsolve.solvers import Solver, named
from diffsolve.training import weights
from diffsolve.training.update import Update, check_drop
from diffsolve.training.weights import Weight

__all__ = ["Distillation", "Scales"]


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
class Distillation(Loss):
    """An identity, where the velocity comes from, at which stretches, and how errors are measured.

    loss = ds.distill.consistency(teacher=model)
    losses, parts = loss(student, x0, seed=0, step=step)
    losses.mean().backward()
    """

    has_target = True

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
        ran = isinstance(self.identity, Semigroup) and "teacher" in (self.identity.first, self.identity.second)
        if self.source == "teacher" or ran:
            required(isinstance(self.teacher, Model), "teacher", self.teacher, "a Model", TypeError)
        guides = self.scale != 1 or self.mix != 0
        required(not guides or self.source == "data", "scale", self.scale, "1 where the velocity is not that of data")
        required(not guides or self.uncond is not None, "uncond", self.uncond, f"given with scale={self.scale}")
        check_drop(self.drop, self.uncond)

    def of(self, student: Model, update: Update, target: Model) -> tuple[Tensor, Parts]:
        """The loss, where x0 is data of shape (B, ...)."""
        at = self.situation(student, update, target)
        output, wanted = self.identity.output(at)
        wide = torch.promote_types(output.dtype, torch.float32)
        residual = output.to(wide) - wanted.to(wide).detach()
        p, q = (student.path.at(torch.from_numpy(times)) for times in (at.t, at.s))
        if self.measure == "state":
            residual = column(student.landing(p, q)[1], residual) * residual
        a, b = (torch.as_tensor(c, dtype=torch.float64).expand(len(update.x0)) for c in student.coefficients(p))
        factor = weights.named(self.weight).of_output(p, a, b)
        if self.gap:
            r = student.path.at(torch.from_numpy(at.m))
            between = torch.atan2(p.sigma, p.alpha) - torch.atan2(r.sigma, r.alpha)
            factor = factor / torch.where(between == 0, 1.0, between.abs()) ** self.gap
        required(bool(factor.isfinite().all()), "weight", self.weight, "finite at all times that are drawn")
        losses = factor.to(residual.device, wide) * self.metric(residual)
        t, m, s = (torch.from_numpy(times) for times in (at.t, at.m, at.s))
        return losses, Parts(t, m, s, at.x, output, wanted, squared(residual.detach()))

    def situation(self, student: Model, update: Update, target: Model) -> Situation:
        """The batch that an update is made of."""
        if self.teacher is not None:
            same = self.teacher.path == student.path
            required(same, "teacher.path", self.teacher.path, f"that of the student, {student.path}")
        x0 = update.x0
        t, m, s = np.ascontiguousarray(self.stretches.draw(uniforms(update), student.path, update.step).T)
        conditions = update.conditions(self.drop, self.uncond)
        told, scale = dict(conditions), None
        if isinstance(self.guidance, Scales):
            share = update.uniform(Stream.DISTILL, 2)[:, 1]
            scale = (self.guidance.low + (self.guidance.high - self.guidance.low) * share).to(x0.device)
            told[self.guidance.told] = scale.to(student.time_dtype(x0.dtype))
            guidance = Guidance(1.0, uncond=self.guidance.uncond)
        else:
            guidance = Guidance.of(self.guidance)
        teacher = None if self.teacher is None else Teacher(self.teacher, guidance)
        at = Situation(
            student, target, teacher, self.source, named(self.solver), x0, update.noise, x0, t, m, s, told,
            conditions, scale, update.step, self.scale, self.mix, self.uncond,
        )  # fmt: skip
        return replace(at, x=at.noised(t))
