"""The published methods, as points of one loss.

| name | identity | velocity | stretches | source |
|---|---|---|---|---|
| `guided` | the diagonal | teacher | s = t | Meng et al., 2210.03142, stage 1 |
| `progressive` | semigroup, teacher and teacher | - | halves of even steps | Salimans and Ho, 2202.00512 |
| `consistency` | semigroup, teacher and self | - | neighbours of a grid, s = data | Song et al., 2303.01469 |
| `ect` | semigroup, data and self | - | shrinking, s = data | Geng et al., 2406.14548 |
| `scm` | Eulerian in rho | teacher or data | s = data | Lu and Song, 2410.11081 |
| `meanflow` | Eulerian | data | between, mostly s = t | Geng et al., 2505.13447 |
| `ayf` | Eulerian | teacher | between | Sabour et al., 2506.14603 |
| `lagrangian` | Lagrangian | teacher | between | Boffi et al., 2406.07507 |
| `shortcut` | semigroup, self and self | data | halves of dyadic steps | Frans et al., 2410.12557 |
| `trajectory` | regression on a teacher's run | - | from the noise, or between nodes | Luhman and Luhman, 2101.02388 |
| `reflow` | flow matching on a teacher's pairs | - | - | Liu et al., 2209.03003 |
| `distribution` | two scores of what the student makes | teacher | - | Yin et al., 2311.18828, 2405.14867 |

Each returns a loss, `loss(student, x0, cond=.., seed=.., step=..) -> (of each sample, parts)`. Its other options are
those of `Distillation`, given by name. `ds.distill.Distillation` makes any other point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffsolve.distill.identities import Eulerian, Identity, Lagrangian, Semigroup
from diffsolve.distill.loss import Distillation, Scales
from diffsolve.distill.metrics import Adaptive, Huber, Normalised
from diffsolve.distill.stretches import Between, Halves, Shrinking, Steps, Stretches
from diffsolve.models import Guidance, Model
from diffsolve.paths import Position
from diffsolve.solvers import Solver
from diffsolve.training.weights import DataWeight

__all__ = [
    "ayf",
    "consistency",
    "ect",
    "guided",
    "lagrangian",
    "meanflow",
    "progressive",
    "scm",
    "shortcut",
]

Guided = float | Guidance | Scales | None


@dataclass(frozen=True)
class TruncatedSNR(DataWeight):
    """max((alpha / sigma)^2, 1) of x_0's error (Salimans and Ho, 2202.00512, section 4)."""

    def of_data(self, p: Position[Tensor]) -> Tensor:
        return ((p.alpha / p.sigma) ** 2).clamp(min=1)


def _point(
    identity: Identity, stretches: Stretches, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> Distillation:
    """A loss whose every option may be another than the method's."""
    return Distillation(**{"identity": identity, "stretches": stretches, **settings, **options})


def guided(
    teacher: Model, low: float = 1.0, high: float = 4.0, *, uncond: Mapping[str, Any] | None = None, **options: Any
) -> Distillation:
    """A student told the scale of guidance, `net(x, t, scale=.., **cond)`, that predicts what the guided teacher does.

    Here scale = 1 + w. The same `ds.distill.Scales(low, high)` as guidance= of another method is stage two.
    """
    settings = {"source": "teacher", "teacher": teacher, "guidance": Scales(low, high, uncond or {})}
    return _point(Eulerian(), Between(diagonal=1.0), settings, options)


def progressive(
    teacher: Model, steps: int = 8, *, solver: str | Solver = "ddim", guidance: Guided = None, **options: Any
) -> Distillation:
    """One stage: a student of `steps` steps from two steps each of the teacher, which is the student of the last stage.

    The weight is max(SNR, 1) of x_0's error. A student told one time is sampled by "ddim" with as many steps on the
    same grid, "jumps".
    """
    stretches = Halves(steps=steps, least=steps)
    settings = {"teacher": teacher, "solver": solver, "guidance": guidance, "weight": TruncatedSNR()}
    return _point(Semigroup("teacher", "teacher"), stretches, settings, options)


def consistency(
    teacher: Model, steps: int = 18, *, solver: str | Solver = "heun", guidance: Guided = None, **options: Any
) -> Distillation:
    """Consistency distillation: neighbours on a grid of `steps` steps, of which the nearer is one step of the teacher.

    The target is a slow copy of the student. It learns jumps to the data alone, so a network told one time will do.
    """
    settings = {"teacher": teacher, "solver": solver, "guidance": guidance, "measure": "state", "averaged": True}
    return _point(Semigroup("teacher", "self"), Steps(steps=steps), settings, options)


def ect(q: float = 2.0, every: int = 1000, **options: Any) -> Distillation:
    """Easy consistency tuning, from data: neighbours that draw nearer, with the same noise and dropout on both.

    Best from a trained network. With `stretches=Steps(steps=10, every=..)` it is improved consistency training, iCT.
    """
    settings: dict[str, Any] = {"measure": "state", "metric": Huber(), "gap": 1.0}
    return _point(Semigroup("data", "self"), Shrinking(q=q, every=every), settings, options)


def scm(
    teacher: Model | None = None, *, warmup: int = 10_000, guidance: Guided = None, times: Any = None, **options: Any
) -> Distillation:
    """The continuous-time consistency model sCM: from a teacher (sCD), or from data without one (sCT).

    The tangent rises over `warmup` updates and is normalised. Times are log-normal in rho, N(-0.8, 1.6) from a teacher
    and N(-1, 1.4) from data (table 4).
    """
    source = "data" if teacher is None else "teacher"
    law = f"log-normal(mean={-1.0 if teacher is None else -0.8}, std={1.4 if teacher is None else 1.6})"
    stretches = Between(law if times is None else times, data=1.0)
    settings = {"source": source, "teacher": teacher, "guidance": guidance, "metric": Normalised()}
    return _point(Eulerian("noise", warmup), stretches, settings, options)


def meanflow(
    diagonal: float = 0.75,
    *,
    times: Any = "logit-normal(mean=-0.4, std=1.0)",
    scale: float = 1.0,
    mix: float = 0.0,
    uncond: Mapping[str, Any] | None = None,
    **options: Any,
) -> Distillation:
    """MeanFlow, from data alone: the mean velocity, whose diagonal share of samples is flow matching.

    scale = omega and mix = kappa make it that of guided samples at no cost in sampling (eq. 20; the effective scale is
    omega / (1 - kappa)), with `uncond` and some `drop`.
    """
    settings = {"metric": Adaptive(), "scale": scale, "mix": mix, "uncond": uncond}
    return _point(Eulerian(), Between(times, diagonal), settings, options)


def ayf(
    teacher: Model, *, guidance: Guided = None, warmup: int = 0, times: Any = "uniform-t", **options: Any
) -> Distillation:
    """Align Your Flow's Eulerian distillation: the tangent is that of the teacher, and normalised."""
    settings = {"source": "teacher", "teacher": teacher, "guidance": guidance, "metric": Normalised()}
    return _point(Eulerian(warmup=warmup), Between(times, noise=0.25), settings, options)


def lagrangian(teacher: Model, *, guidance: Guided = None, times: Any = "uniform-t", **options: Any) -> Distillation:
    """Lagrangian flow map distillation: where it lands, the student moves as the teacher says."""
    settings = {"source": "teacher", "teacher": teacher, "guidance": guidance}
    return _point(Lagrangian(), Between(times, noise=0.25), settings, options)


def shortcut(steps: int = 64, diagonal: float = 0.75, **options: Any) -> Distillation:
    """Shortcut models, from data alone: a step of twice the length is two steps of a slow copy of the student.

    The shortest of `steps` steps learn the velocity. With a teacher and source="teacher" the diagonal is the teacher's.
    """
    stretches = Halves(steps=steps, diagonal=diagonal)
    return _point(Semigroup("self", "self"), stretches, {"averaged": True}, options)
