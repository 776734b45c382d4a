"""The one update between two network calls: linear combinations of the live tensors.

On a GPU one launch, which reads every operand once and writes every result once. On the CPU an in-place chain, one pass
per non-zero weight, with no temporary but one scratch of the state's size; or the compiled loop, which does what the
chain does in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsolve import native
from diffsolve.common.tensors import per_sample
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.loop import Recipe, combine, recipe, run_recipe
from diffsolve.kernels.reduce import spread
from diffsolve.kernels.terms import OUT, D, S, Terms, Y, Z, beginning_with, weighted_sum
from diffsolve.noise import Draw

__all__ = [
    "Guided", "Lowered", "Row", "backend_for", "compile_for_launch", "compile_for_launch_together", "compile_for_loop",
    "compile_for_loop_together", "linear_update",
]  # fmt: skip


@dataclass(frozen=True)
class Guided:
    """Two outputs of the network in the place of one: uncond + scale (cond - uncond), rescaled.

    With `rescale` phi > 0 the result is multiplied by 1 - phi + phi std(cond) / std(guided), sample by sample (Lin et
    al., 2305.08891, eq. 16).
    """

    cond: Tensor
    uncond: Tensor
    scale: float
    rescale: float = 0.0

    def tensor(self) -> Tensor:
        """The guided output, made by torch."""
        out = torch.lerp(self.uncond, self.cond, self.scale)
        if self.rescale:
            factor = self.factor()
            assert factor is not None
            out = out * per_sample(factor.to(out.dtype), out)
        return out

    def factor(self) -> Tensor | None:
        """The factor of each sample; None for 1."""
        if not self.rescale:
            return None
        return 1 - self.rescale + self.rescale * spread(self.cond, self.uncond, self.scale)


@dataclass(frozen=True)
class Lowered:
    """A row folded into one matrix, for one launch."""

    places: tuple[int, ...]
    """The live tensors that are read, the noise left out."""
    weights: Tensor
    """(M, K) float64 on the device, the noise last: y', then s', d and the next input, where there are such."""
    masks: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """The work of one call: the prediction to keep, and the two combinations."""

    keep: tuple[float, float] | None
    """(p, q): the history gets p y + q out; None if no later row needs this call."""
    s: Terms | None
    """The combination for s', or None if s' is y' itself (they are then the same tensor)."""
    y: Terms
    noise: bool
    scale: float = 1.0
    """The factor on y' that the network expects in its input."""
    lowered: Lowered | None = None
    recipe: Recipe | None = None

    @property
    def kept(self) -> Terms:
        """`keep` as a combination."""
        return (
            ()
            if self.keep is None
            else tuple((place, w) for place, w in zip((OUT, Y), self.keep[::-1], strict=True) if w)
        )

    @property
    def target(self) -> int:
        """Where y' is written if s' is y': over y if the sum uses y and not s, else over s."""
        places = {place for place, _ in self.y}
        return Y if Y in places and S not in places else S


def backend_for(
    like: Tensor, together: bool = False
) -> Callable[[Sequence[Row], torch.device], tuple[Row, ...]] | None:
    """What prepares rows for a state like this, updated alone or together with those of other runs; None for the chain.

    `compile_for_launch` or `compile_for_loop`, or the same with `_together`.
    """
    if torch.compiler.is_compiling():
        return None
    implementation = fused(like.device, "combine")
    if implementation not in (None, combine):
        return compile_for_launch_together if together else compile_for_launch
    if like.device.type == "cpu" and native.library(like.dtype) is not None:
        return compile_for_loop_together if together else compile_for_loop
    return None


def compile_for_launch(rows: Sequence[Row], device: torch.device) -> tuple[Row, ...]:
    """A whole run's rows, the entry first, with their matrices on the device, copied there at once."""
    folded = [_fold(row, single) for row, single in zip(rows, _single_states(rows), strict=True)]
    table = torch.tensor([w for _, matrix in folded for line in matrix for w in line], dtype=torch.float64)
    sizes = [len(matrix) * len(matrix[0]) for _, matrix in folded]
    compiled = []
    for row, (places, matrix), weights in zip(rows, folded, torch.split(table.to(device), sizes), strict=True):
        masks = tuple(sum((w != 0) << k for k, w in enumerate(line)) for line in matrix)
        inputs = tuple(place for place in places if place != Z)
        compiled.append(replace(row, lowered=Lowered(inputs, weights.view(len(matrix), -1), masks)))
    return tuple(compiled)


def compile_for_loop(rows: Sequence[Row], _: torch.device) -> tuple[Row, ...]:
    """A whole run's rows, the entry first, with what the compiled loop needs to do what the chain does."""
    return tuple(
        replace(row, recipe=_loop_recipe(row, single)) for row, single in zip(rows, _single_states(rows), strict=True)
    )


def compile_for_launch_together(rows: Sequence[Row], _: torch.device) -> tuple[Row, ...]:
    """A run's rows for `update_requests` on a GPU: folded, and still on the host, which makes the table of a launch."""
    return tuple(
        replace(row, lowered=_lowered(*_fold(row, one))) for row, one in zip(rows, _single_states(rows), strict=True)
    )


def compile_for_loop_together(rows: Sequence[Row], _: torch.device) -> tuple[Row, ...]:
    """A run's rows for `update_requests` on a CPU: also those that a run on its own leaves to the chain as they are
    one operation, since here they share a pass."""
    return tuple(
        replace(row, recipe=_loop_recipe(row, one, 0)) for row, one in zip(rows, _single_states(rows), strict=True)
    )


def _lowered(places: Sequence[int], matrix: Sequence[Sequence[float]]) -> Lowered:
    """A folded row on the host, noise among its places."""
    weights = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    return Lowered(tuple(places), weights, ())


def _single_states(rows: Sequence[Row]) -> list[bool]:
    """For each row, whether S and Y are one tensor when it begins."""
    return [True, *(row.s is None for row in rows[:-1])]


# Example: d = out - 0.5 y is kept, y' = 0.7 d + 0.9 s + 0.1 z, s' = y', and s and y are one tensor before, too.
#     row      Row(keep=(-0.5, 1.0), s=None, y=((D, 0.7), (S, 0.9), (Z, 0.1)), noise=True)
#     chain    d = out; d -= 0.5 y;               y' is written over s: s *= 0.9; s += 0.7 d; s += 0.1 z
#     sums     [(OUT, 1.0), (Y, -0.5)]            [(S, 0.9), (D, 0.7), (Z, 0.1)]
#     numbers  the inputs S, OUT, Z are 0, 1, 2 (Y is S here); the results follow, so d is 3
#     recipe   places (S, OUT, Z), sums [(1, 1.0), (0, -0.5)] and [(0, 0.9), (3, 0.7), (2, 0.1)]
def _loop_recipe(row: Row, single: bool, least: int = 2) -> Recipe | None:
    """The results in the order of the chain: what is kept, y', s'. A sum begins with the tensor that it overwrites,
    as the chain's does, so that both round alike. D is no input: it is the first result.

    None for a row of fewer than `least` operations of the chain: for one the loop was measured to be no faster, at any
    size.
    """

    def one(sum_of: Terms) -> Terms:
        return tuple((S if single and place == Y else place, w) for place, w in sum_of)

    sums = [one(row.kept)] if row.keep is not None else []
    if row.s is None:
        sums.append(beginning_with(one(row.y), S if single else row.target))
    else:  # y' goes to a tensor of its own
        sums += [one(row.y), beginning_with(one(row.s), S)]
    one_operation = len(sums) == 1 and (len(sums[0]) < 2 or (len(sums[0]) == 2 and sums[0][0][1] == 1))
    if least > 1 and one_operation and not row.noise:
        return None
    kept = {D} if row.keep is not None else set()
    places = sorted({place for sum_of in sums for place, _ in sum_of} - kept, key=lambda k: (k == Z, k))
    numbers = {place: i for i, place in enumerate([*places, *kept])}
    return recipe(places, [[(numbers[place], w) for place, w in sum_of] for sum_of in sums])


def _fold(row: Row, single: bool) -> tuple[list[int], list[list[float]]]:
    """The places that a row reads, each once, and its results as combinations of them: y', s', d, scale y'."""
    lines = [dict(side) for side in (row.y, row.s) if side is not None]
    if row.keep is not None:
        kept = dict(zip((Y, OUT), row.keep, strict=True))
        for line in lines:
            on_d = line.pop(D, 0.0)
            for place, w in kept.items():
                line[place] = line.get(place, 0.0) + on_d * w
        lines.append(kept)
    if single:
        for line in lines:
            line[S] = line.get(S, 0.0) + line.pop(Y, 0.0)
    lines.append({place: row.scale * w for place, w in lines[0].items()})
    places = sorted({k for line in lines for k, w in line.items() if w != 0}, key=lambda k: (k == Z, k)) or [S]
    return places, [[line.get(place, 0.0) for place in places] for line in lines]


def linear_update(
    live: Sequence[Any], row: Row, scratch: Tensor | None, network_input: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(s', y', scratch): the next state and network input, as combinations of the live tensors.

    Args:
        live: the tensors at S, Y, OUT, Z, then the history. S and Y may be the same tensor; both are overwritten, and
            so is what stands at D if the row keeps its prediction. OUT may be `Guided`, Z a `Draw`.
        row: the row to apply.
        scratch: a tensor of the state's shape that may be overwritten, if there is one.
        network_input: gets `row.scale` y', in a dtype of its own.
    """
    if row.lowered is not None:
        return _launch(live, row, row.lowered, scratch, network_input)
    if isinstance(live[OUT], Guided):
        live = [*live[:OUT], live[OUT].tensor(), *live[Z:]]
    updated = None if row.recipe is None else _loop(live, row, row.recipe, scratch)
    s, y, scratch = updated or _chain(live, row, scratch)
    if network_input is not None:
        torch.mul(y, row.scale, out=network_input)
    return s, y, scratch


def _launch(
    live: Sequence[Any], row: Row, lowered: Lowered, scratch: Tensor | None, network_input: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same in one launch, in place: no tile is written before all of it has been read."""
    state, given, out = live[S], live[Y], live[OUT]
    if row.s is None:
        s = y = given
        left = scratch if state is given else state
    else:
        s, left = state, scratch if given is not state else None
        y = given if given is not state else torch.empty_like(state) if scratch is None else scratch
    outputs = [y] if row.s is None else [y, s]
    if row.keep is not None:
        outputs.append(live[D])
    if network_input is not None:
        outputs.append(network_input)
    places, draw, options = lowered.places, None, {}
    inputs = [live[place] for place in places]
    if isinstance(out, Guided) and OUT in places:
        column = places.index(OUT)
        inputs[column] = out.cond
        options = {"guided": column, "uncond": out.uncond, "guidance": out.scale, "factor": out.factor()}
    if row.noise:
        draw = live[Z]
        if not (isinstance(draw, Draw) and draw.plain and y.is_contiguous()):
            # Counters follow the logical order of the elements; of another layout the noise is drawn beforehand.
            inputs.append(draw.tensor(y) if isinstance(draw, Draw) else draw)
            draw = None
    count = len(outputs)
    combine = fused(y.device, "combine")
    assert combine is not None
    combine(inputs, lowered.weights[:count], outputs, masks=lowered.masks[:count], draw=draw, **options)
    return s, y, left


def _loop(
    live: Sequence[Any], row: Row, recipe: Recipe, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The same by the compiled loop, on the tensors that the chain would write to; None if it cannot."""
    s, y, left = _destinations(live, row, scratch)
    results = [*([] if row.keep is None else [live[D]]), y, *([] if row.s is None else [s])]
    inputs, draw = [live[place] for place in recipe.places], None
    if recipe.places[-1:] == (Z,) and isinstance(live[Z], Draw):
        draw = inputs.pop()
    return (s, y, left) if run_recipe(recipe, inputs, results, draw) else None


def _chain(live: Sequence[Any], row: Row, scratch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same by torch, one pass per term."""
    live = [t.tensor(live[S]) if isinstance(t, Draw) else t for t in live]
    if row.keep is not None:
        weighted_sum(row.kept, live, live[D])
    s, y, left = _destinations(live, row, scratch)
    weighted_sum(row.y, live, y)  # before s', which overwrites s
    if row.s is not None:
        weighted_sum(row.s, live, s)
    return s, y, left


def _destinations(live: Sequence[Any], row: Row, scratch: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(s', y', scratch): the tensors that the chain writes to, and the one that is left over."""
    state, given = live[S], live[Y]
    if row.s is None:
        y = live[row.target]
        return y, y, scratch if state is given else given if y is state else state
    return state, torch.empty_like(state) if scratch is None else scratch, None if state is given else given
