"""The update of many requests in one go: each at a row of its own, of a tableau of its own, in one memory.

The states of all requests are rows of one tensor, `memory`, and the network's outputs rows of another. A `Turn` says
which of them are a request's live tensors, so that gathering, the sums and scattering are one pass. Every request gets
the bits that it gets alone: on a CPU from the compiled loop, which takes the turns' sums as they are, or from the chain
of `linear_update`, turn after turn; on a GPU from one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diffsolve.kernels.terms import S, Y
from diffsolve.kernels.update import Guided, Row, linear_update
from diffsolve.noise import Draw

__all__ = ["Turn", "update_requests"]


@dataclass(frozen=True)
class Turn:
    """One request's part in an update: what it does, and which rows of the memory and of the outputs it does it on."""

    row: Row
    s: int
    """The row of the memory that is the state,"""
    y: int
    """the network's input (the same row, where the two are one),"""
    free: tuple[int, ...]
    """and the rows that may be overwritten: one, or two where the state is the network's input."""
    history: tuple[int, ...] = ()
    """The rows of the predictions, newest first; if this call's is kept, it goes to the first."""
    out: int = -1
    """The row of the outputs; -1 for a first row, which has none."""
    guided: tuple[int, float, float] | None = None
    """The row of the unconditional output, the scale and the rescaling of a guided call."""
    draw: Draw | None = None
    """The noise, where the row has some."""

    @property
    def after(self) -> tuple[int, int, tuple[int, ...]]:
        """s, y and free after the turn: y' is written where `linear_update` writes it."""
        if self.row.s is not None:  # y' goes to a row of its own
            return self.s, self.free[0], self.free[1:] + ((self.y,) if self.y != self.s else ())
        target = {S: self.s, Y: self.y}[self.row.target]
        left = {self.s, self.y} - {target}
        return target, target, (*left, *self.free)

    def output(self, outputs: Tensor) -> Tensor | Guided:
        """What the network said, of shape (1, ...)."""
        out = outputs[self.out : self.out + 1]
        if self.guided is None:
            return out
        uncond, scale, rescale = self.guided
        return Guided(out, outputs[uncond : uncond + 1], scale, rescale)


def update_requests(memory: Tensor, outputs: Tensor | None, turns: Sequence[Turn]) -> None:
    """Update the states of all turns, in place.

    Args:
        memory: (rows, ...), the states.
        outputs: (n, ...), of the network; None where no turn has one.
    """
    for turn in turns:
        _chain(memory, outputs, turn)


def _chain(memory: Tensor, outputs: Tensor | None, turn: Turn) -> None:
    """One turn by what a run on its own does, on views of the memory."""
    state = memory[turn.s : turn.s + 1]
    given = state if turn.y == turn.s else memory[turn.y : turn.y + 1]
    history = (memory[h : h + 1] for h in turn.history)
    out = None if outputs is None else turn.output(outputs)
    linear_update((state, given, out, turn.draw, *history), turn.row, memory[turn.free[0] : turn.free[0] + 1])
