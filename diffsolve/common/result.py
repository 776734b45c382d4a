"""The attributes that the results of all runs share."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Result", "Status", "one_line"]


class Status(IntEnum):
    """How a sample's solve ended."""

    DONE = 0
    """It reached the end."""
    NON_FINITE = 1
    """The network's output was not finite, however small the step."""
    STEP_TOO_SMALL = 2
    """The tolerance could not be met at the smallest step."""
    BUDGET_SPENT = 3
    """The next step would have exceeded the allowed number of network calls."""
    CANCELLED = 4
    """It was taken back before its end: `Stepper.cancel`."""
    DEADLINE = 5
    """Its deadline passed before its end."""


@runtime_checkable
class Result(Protocol):
    """The attributes of `Run`, `AdaptiveRun`, `DensityRun` and `Chain`."""

    @property
    def x(self) -> Tensor:
        """(B, ...): the result."""

    @property
    def nfe(self) -> Any:
        """Network calls: a number, or one for each sample."""

    @property
    def seed(self) -> Any:
        """The `seed=` that repeats the run."""

    @property
    def done(self) -> bool:
        """Whether every sample reached the end."""

    @property
    def status(self) -> tuple[Status, ...]:
        """How each sample ended."""


def one_line(result: Any, **more: object) -> str:
    """A result in one line: `Run(nfe=10, x=(64, 3, 32, 32) float32, solver='unipc-3', seed=0)`.

    Args:
        more: further values to show, between x and the seed.
    """
    nfe = result.nfe
    if getattr(nfe, "ndim", 0):  # one for each sample
        low, high = (int(nfe.min()), int(nfe.max())) if len(nfe) else (0, 0)
        nfe = low if low == high else f"{low}..{high}"
    shown = [f"nfe={nfe}", f"x={tuple(result.x.shape)} {str(result.x.dtype).removeprefix('torch.')}"]
    shown += [f"{name}={value!r}" for name, value in more.items()]
    if not result.done:
        stopped = [status for status in result.status if status is not Status.DONE]
        shown.append(f"not done: {len(stopped)} of {len(result.status)}")
    seed = result.seed
    shown.append(f"seed={seed if not isinstance(seed, list) or len(seed) < 5 else f'{len(seed)} seeds'}")
    return f"{type(result).__name__}({', '.join(shown)})"
