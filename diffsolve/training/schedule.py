r"""The learning rate over a training, as a factor of the highest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from diffsolve.common.checks import integer
from diffsolve.common.registry import Registry

__all__ = ["Constant", "Cosine", "InverseRoot", "Schedule", "named", "register"]


class Schedule(ABC):
    """A schedule of the learning rate; a frozen dataclass of options."""

    @abstractmethod
    def __call__(self, step: int, steps: int) -> float:
        """The factor of the update `step`, counted from 0, of `steps`."""


@dataclass(frozen=True)
class Constant(Schedule):
    """min((step + 1) / warmup, 1), with a warm-up of at most a tenth of the training."""

    warmup: int = 200

    def __post_init__(self) -> None:
        integer("warmup", self.warmup, 0)

    def __call__(self, step: int, steps: int) -> float:
        return min((step + 1) / max(min(self.warmup, steps // 10), 1), 1.0)


@dataclass(frozen=True)
class Cosine(Constant):
    """The same times (1 + cos(pi step / steps)) / 2: to zero at the end (Loshchilov and Hutter, 1608.03983, eq. 5)."""

    def __call__(self, step: int, steps: int) -> float:
        return super().__call__(step, steps) * 0.5 * (1 + math.cos(math.pi * step / steps))


@dataclass(frozen=True)
class InverseRoot(Constant):
    """The same over sqrt(max(step / decay, 1)) (Karras et al., 2312.02696, eq. 67), for averages chosen afterwards."""

    decay: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("decay", self.decay, 1)

    def __call__(self, step: int, steps: int) -> float:
        return super().__call__(step, steps) / math.sqrt(max(step / self.decay, 1))


registry: Registry[Schedule] = Registry(
    "schedule",
    Schedule,
    {"constant": Constant, "cosine": Cosine, "inverse-root": InverseRoot},
    group="diffsolve.training.schedules",
)
register = registry.register


def named(schedule: str | Schedule) -> Schedule:
    """The schedule of that name."""
    return registry.resolve(schedule)
