"""The update of many requests in one go: each at a row of its own, of a tableau of its own, in one memory.

The states of all requests are rows of one tensor, `memory`, and the network's outputs rows of another. A `Turn` says
which of them are a request's live tensors, so that gathering, the sums and scattering are one pass. Every request gets
the bits that it gets alone: on a CPU from the compiled loop, which takes the turns' sums as they are, or from the chain
of `linear_update`, turn after turn; on a GPU from one launch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffsolve import native
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.loop import NOBODY
from diffsolve.kernels.terms import OUT, D, S, Y, Z
from diffsolve.kernels.update import Guided, Row, linear_update
from diffsolve.noise import Draw
from diffsolve.noise.key import signed

__all__ = ["Turn", "factors", "idle_table", "launch_table", "on_device", "table_of", "update_requests"]


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

    @cached_property
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
        table = table_of(turns, max(1, *(len(turn.history) for turn in turns)))
        launch_table(memory, outputs, on_device(table, memory.device), factors(outputs, turns))
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
        live = [first + turn.s * stride, first + turn.y * stride, said + turn.out * stride, 0]
        if turn.guided is not None:
            assert outputs is not None
            out = turn.output(outputs)
            assert isinstance(out, Guided)
            kept.append(out.tensor())
            live[OUT] = kept[-1].data_ptr()
        who = NOBODY
        if draw is not None:
            seeds, who = draw.address()
            kept += [] if seeds is None else [seeds]
        live += [first + h * stride for h in turn.history]
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


def table_of(turns: Sequence[Turn], history: int) -> np.ndarray:
    """What a launch does for each turn, (n, words) int64 on the host.

    With C = history + 3 columns S, Y, d_{i-1} .., out, z: the rows of the memory that the first C - 2 are read from,
    and the row of the outputs; those that y', s' and the kept prediction are written to; the row of the unconditional
    output; seed, sample and row of the noise; then, as float64, the scale of the guidance and the weights (3, C). -1
    stands for what there is not.
    """
    C = history + 3
    table = idle_table(len(turns), history)
    numbers = table.view(np.float64)
    for words, reals, turn in zip(table, numbers, turns, strict=True):
        row = turn.row
        assert row.lowered is not None
        live = {S: turn.s, Y: turn.y, OUT: turn.out, **{D + j: h for j, h in enumerate(turn.history)}}
        columns = [_column(place, C) for place in row.lowered.places]
        for place, column in zip(row.lowered.places, columns, strict=True):
            if place != Z:
                words[column] = live[place]
        s, y, _ = turn.after
        kinds = [0] + [1] * (row.s is not None) + [2] * (row.keep is not None)
        targets = (y, s, turn.history[0] if turn.history else -1)
        weights = reals[C + 7 :].reshape(3, C)
        for line, kind in zip(row.lowered.weights.numpy(), kinds, strict=False):
            words[C - 1 + kind] = targets[kind]
            weights[kind, columns] = line
        if turn.guided is not None:
            words[C + 2], reals[C + 6] = turn.guided[0], turn.guided[1]
        if turn.draw is not None:
            seed, first = turn.draw.key.seed, turn.draw.key.index
            words[C + 3 : C + 6] = signed(seed if isinstance(seed, int) else seed[0]), first, turn.draw.row
    return table


def idle_table(count: int, history: int) -> np.ndarray:
    """A table of turns that do nothing."""
    C = history + 3
    table = np.zeros((count, 4 * C + 7), dtype=np.int64)
    table[:, : C + 3] = -1
    return table


def _column(place: int, C: int) -> int:
    return {S: 0, Y: 1, OUT: C - 2, Z: C - 1}.get(place, place - D + 1)


def factors(outputs: Tensor | None, turns: Sequence[Turn]) -> Tensor | None:
    """(n,): the factor of each guided output; None if all are 1."""
    if outputs is None or not any(turn.guided and turn.guided[2] for turn in turns):
        return None
    found = torch.ones(len(turns), dtype=torch.float32, device=outputs.device)
    for i, turn in enumerate(turns):
        out = turn.output(outputs)
        factor = out.factor() if isinstance(out, Guided) else None
        if factor is not None:
            found[i : i + 1].copy_(factor)
    return found


def launch_table(memory: Tensor, outputs: Tensor | None, table: Tensor, factor: Tensor | None) -> None:
    """Make the turns of a table, in one launch."""
    launch = fused(memory.device, "update_requests")
    assert launch is not None
    launch(memory, outputs, table, factor)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Numbers of the host on a device, without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
