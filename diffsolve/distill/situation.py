"""A batch of a distillation: samples, stretches, and what student, target and teacher say of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.common.tensors import column
from diffsolve.distill.teacher import Teacher
from diffsolve.models import Model
from diffsolve.solvers import Solver
from diffsolve.tableau.frames import convert

__all__ = ["Situation"]


@dataclass(frozen=True)
class Situation:
    """What an identity is asked about."""

    student: Model
    target: Model
    """The student, or a slow copy of it, for what is not to be differentiated."""
    teacher: Teacher | None
    """None where the velocity comes from elsewhere."""
    source: str
    """Whose velocity: "teacher", "data" or "self"."""
    solver: Solver
    """Of the teacher's runs."""
    x0: Tensor
    noise: Tensor
    x: Tensor
    """x_t."""
    t: np.ndarray
    m: np.ndarray
    s: np.ndarray
    cond: Mapping[str, Any]
    """Of the student."""
    teacher_cond: Mapping[str, Any]
    scale: Tensor | None
    """(B,): the teacher's scale of guidance, if each sample has its own."""
    step: int
    guided: float = 1.0
    """The scale omega of a velocity of data that is guided by the student itself (MeanFlow, 2505.13447, eq. 20)."""
    mixed: float = 0.0
    """kappa, how much of it is the student's own conditional velocity."""
    uncond: Mapping[str, Any] | None = None

    def call(self, t: np.ndarray, s: np.ndarray) -> Tensor:
        """The student's output, with its graph."""
        times = (t, s) if self.student.jumps else (t,)
        return self.student(self.x, *map(torch.from_numpy, times), **self.cond)

    def jump(self, x: Tensor, t: np.ndarray, s: np.ndarray) -> Tensor:
        """Where the target lands."""
        return self.target.jump(x, torch.from_numpy(t), torch.from_numpy(s), **self.cond)

    def teach(self, x: Tensor, nodes: np.ndarray) -> Tensor:
        """Where a run of the teacher over nodes (B, n + 1) ends."""
        assert self.teacher is not None
        return self.teacher.run(self.solver, x, nodes, self.teacher_cond, self.scale)

    def noised(self, t: np.ndarray) -> Tensor:
        """alpha x_0 + sigma eps."""
        p = self.student.path.nodes(t)
        return column(p.alpha, self.x) * self.x0 + column(p.sigma, self.x) * self.noise

    @cached_property
    def velocity(self) -> Tensor:
        """dx/dt at x_t, of the source."""
        p = self.student.path.nodes(self.t)
        if self.source != "data":
            return self.field(self.x, self.t)
        given = column(p.dalpha, self.x) * self.x0 + column(p.dsigma, self.x) * self.noise
        if self.guided == 1 and not self.mixed:
            return given
        own, without = self._own(self.x, self.t, self.cond), self._own(self.x, self.t, self.uncond or {})
        return self.guided * given + self.mixed * own + (1 - self.guided - self.mixed) * without

    def field(self, x: Tensor, t: np.ndarray) -> Tensor:
        """dx/dt at any x and t, of the teacher or the student itself."""
        if self.source == "teacher":
            assert self.teacher is not None
            return self.teacher.velocity(x, t, self.teacher_cond, self.scale)
        return self._own(x, t, self.cond)

    def _own(self, x: Tensor, t: np.ndarray, cond: Mapping[str, Any]) -> Tensor:
        """The target's velocity, its output on the diagonal."""
        with torch.no_grad(), self.same_dropout():
            return self.target.velocity(x, torch.from_numpy(t), **cond)

    def predicted(self, velocity: Tensor) -> Tensor:
        """The student's prediction at (x_t, t) if dx/dt is that."""
        model = self.student
        p = model.path.nodes(self.t)
        with np.errstate(all="ignore"):
            on_x, on_v = convert(model.coefficients(p), (p.dalpha, p.dsigma), p.alpha, p.sigma)
        return column(on_x, self.x) * self.x + column(on_v, self.x) * velocity

    def reaching(self, landed: Tensor) -> Tensor:
        """The student's output whose jump from t ends there; where s = t, that of the velocity."""
        stays = self.s == self.t
        p, q = (torch.from_numpy(times) for times in (self.t, self.s))
        on_x, on_out = self.student.landing(self.student.path.at(p), self.student.path.at(q))
        determined = bool((torch.from_numpy(stays) | (on_out.isfinite() & (on_out != 0))).all())
        required(determined, "student", self.student, "one whose output decides where each stretch drawn ends")
        on_out = torch.where(torch.from_numpy(stays), torch.ones_like(on_out), on_out)
        out = (landed - column(on_x, self.x) * self.x) / column(on_out, self.x)
        if not stays.any():
            return out
        return torch.where(column(stays.astype(float), self.x).bool(), self.predicted(self.velocity), out)

    @contextmanager
    def same_dropout(self) -> Iterator[None]:
        """Leave the random state of dropout as it is, so that the student's own call draws the same."""
        devices = [self.x.device] if self.x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield
