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

from diffsolve import native
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.loop import NOBODY
from diffsolve.kernels.terms import OUT, S, Y
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
        memory: (rows, ...), the states, contiguous.
        outputs: (n, ...), of the network; None where no turn has one.
    """
    if not turns:
        return
    if turns[0].row.lowered is not None:
        launch = fused(memory.device, "update_requests")
        assert launch is not None
        launch(memory, outputs, table_of(turns, outputs), len(turns))
        return
    rest = turns
    if memory.is_cpu and native.is_plain(memory, *([] if outputs is None else [outputs])):
        rest = _loop(memory, outputs, turns)
    for turn in rest:
        _chain(memory, outputs, turn)


def _chain(memory: Tensor, outputs: Tensor | None, turn: Turn) -> None:
    """One turn by what a run on its own does, on views of the memory."""
    state = memory[turn.s : turn.s + 1]
    given = state if turn.y == turn.s else memory[turn.y : turn.y + 1]
    history = (memory[h : h + 1] for h in turn.history)
    out = None if outputs is None else turn.output(outputs)
    linear_update((state, given, out, turn.draw, *history), turn.row, memory[turn.free[0] : turn.free[0] + 1])


def _loop(memory: Tensor, outputs: Tensor | None, turns: Sequence[Turn]) -> Sequence[Turn]:
    """All turns that the compiled loop can make, in one call of it; the others are returned."""
    loops = native.found(memory.dtype)
    apart = outputs is not None and (outputs.dtype != memory.dtype or not outputs.is_contiguous())
    if loops is None or apart or not memory.is_contiguous():
        return turns
    size = memory[0].numel()
    first, stride = memory.data_ptr(), size * memory.element_size()
    said, kept = 0 if outputs is None else outputs.data_ptr(), list[Tensor]()  # what must stay until the loop has run
    records, left = list[bytes](), list[Turn]()
    for turn in turns:
        recipe, draw = turn.row.recipe, turn.draw
        if recipe is None or not (draw is None or draw.plain):
            left.append(turn)
            continue
        live = (first + turn.s * stride, first + turn.y * stride, said + turn.out * stride, 0)
        if turn.guided is not None:
            out = turn.output(outputs)
            assert isinstance(out, Guided)
            kept.append(out.tensor())
            live = (*live[:OUT], kept[-1].data_ptr(), 0)
        who = NOBODY
        if draw is not None:
            seeds, who = draw.address()
            kept += [] if seeds is None else [seeds]
        live += tuple(first + h * stride for h in turn.history)
        s, y, _ = turn.after
        results = [*turn.history[:1]] if turn.row.keep is not None else []
        results += [y] if turn.row.s is None else [y, s]
        at = [live[place] for place in recipe.places] + [first + row * stride for row in results]
        words = (1, size, len(recipe.places), len(results), 1, 0, 0, draw is not None, *who, *at)
        records.append(native.record(*words) + recipe.rule)
    begins, at_word = list[int](), 3 + len(records)
    for one in records:
        begins.append(at_word)
        at_word += len(one) // 8
    loops.updates(native.record(len(records), size, native.threads(size * len(records)), *begins) + b"".join(records))
    del kept
    native.mark_mutated(memory)
    return left
