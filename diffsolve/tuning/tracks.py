"""The way of accurate runs, at any time: what a learned run can be held to between its start and its end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve.api.sampling import solve
from diffsolve.execute.results import Step
from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.tableau.frames import FRAMES
from diffsolve.tuning.runs import Noises

__all__ = ["Tracks", "tracked"]


@dataclass(frozen=True)
class Tracks:
    """Accurate runs in the straight frame, z = x / (alpha + sigma) with dz/du = v, at M calls and their end."""

    u: np.ndarray
    """(M + 1,), falling."""
    z: Tensor
    """(M + 1, B, ...)."""
    v: Tensor
    """(M + 1, B, ...): at the end, where nothing was called, that of the parabola through the last step."""

    def at(self, u: float) -> tuple[Tensor, Tensor]:
        """z (B, ...) at u and dz/du there, by cubic Hermite interpolation."""
        k = int(np.clip(np.searchsorted(-self.u, -u, side="right") - 1, 0, len(self.u) - 2))
        h = float(self.u[k + 1] - self.u[k])
        s = (u - float(self.u[k])) / h
        parts = self.z[k], self.z[k + 1], self.v[k], self.v[k + 1]
        here = (2 * s**3 - 3 * s**2 + 1, 3 * s**2 - 2 * s**3, h * (s**3 - 2 * s**2 + s), h * (s**3 - s**2))
        slope = ((6 * s**2 - 6 * s) / h, (6 * s - 6 * s**2) / h, 3 * s**2 - 4 * s + 1, 3 * s**2 - 2 * s)
        z, dz = (sum(w * part for w, part in zip(weights, parts, strict=True)) for weights in (here, slope))
        assert isinstance(z, Tensor)
        assert isinstance(dz, Tensor)
        return z, dz


@torch.no_grad()
def tracked(model: Model, noises: Noises, teacher: Tableau) -> Tracks:
    """The way of a teacher's runs."""
    straight = FRAMES["straight"]
    states: list[Tensor] = []
    slopes: list[Tensor] = []

    def look(step: Step) -> None:
        assert step.denoised is not None
        states.append(step.x.clone())
        slopes.append((step.x - step.alpha * step.denoised) / step.sigma - step.denoised)

    run = solve(model, noise=noises.x, solver=teacher, cond=noises.cond, guidance=noises.guidance, hook=look)
    at = model.path.nodes(np.append(teacher.calls[:, 0], teacher.times[-1]))
    c, u = (np.broadcast_to(part(at), at.t.shape) for part in (straight.c, straight.v))
    z = torch.stack([x / float(size) for x, size in zip([*states, run.x], c, strict=True)])
    last = 2 * (z[-1] - z[-2]) / float(u[-1] - u[-2]) - slopes[-1]
    return Tracks(u, z, torch.stack([*slopes, last]))
