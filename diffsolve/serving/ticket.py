"""What a caller holds of a request: its ticket, and in the end what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diffsolve.common.result import Status, one_line
from diffsolve.execute.results import Seed

__all__ = ["Served", "Ticket"]


@dataclass(frozen=True, repr=False)
class Served:
    """What came of one request: the face of all results, for one sample."""

    x: Tensor | None
    """Of the shape submitted: the result, or the state at which the request ended; None if it had not begun."""
    nfe: int
    """Network calls made; a guided one counts once."""
    seed: Seed
    """The `seed=` that repeats it."""
    status: tuple[Status, ...]
    """How it ended."""

    @property
    def done(self) -> bool:
        """Whether it reached its end."""
        return self.status == (Status.DONE,)

    def __repr__(self) -> str:
        return one_line(self) if self.x is not None else f"Served(not begun, {self.status[0].name})"


class Ticket:
    """A request of a `Stepper`. The result lives as long as its ticket.

    Attributes:
        number: which submission it is, from 0.
        calls: the network calls of the whole run.
        call: those made so far.
        served: what came of it; None until it has ended.
    """

    __slots__ = ("__weakref__", "call", "calls", "cancelled", "number", "served")

    def __init__(self, number: int, calls: int) -> None:
        self.number, self.calls, self.call = number, calls, 0
        self.cancelled = False
        self.served: Served | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, however it did."""
        return self.served is not None

    @property
    def status(self) -> Status | None:
        """How it ended; None while it waits or runs."""
        return None if self.served is None else self.served.status[0]

    @property
    def progress(self) -> float:
        """The fraction of the calls made."""
        return self.call / self.calls

    def __repr__(self) -> str:
        state = "running" if self.served is None else self.served.status[0].name
        return f"Ticket({self.number}, call {self.call} of {self.calls}, {state})"
