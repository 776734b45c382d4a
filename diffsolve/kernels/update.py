"""The one update between two network calls: linear combinations of the live tensors.

On a GPU one launch, which reads every operand once and writes every result once. On the CPU an in-place chain, one pass
per non-zero weight, with no temporary but one scratch of the state's size; or the compiled loop, which does what the
chain does in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsolve import native
from diffsolve.kernels.dispatch import fused
from diffsolve.kernels.loop import Recipe, combine, recipe, run_recipe
from diffsolve.kernels.reduce import spread
from diffsolve.noise import Draw

__all__ = [
    "OUT",
    "D",
    "Guided",
    "Lowered",
    "Row",
    "S",
    "Terms",
    "Y",
    "Z",
    "backend_for",
    "compile_for_launch",
    "compile_for_loop",
    "linear_update",
    "terms",
]

S, Y, OUT, Z, D = range(5)
"""Places among the live tensors: the state, the network's input and output, the noise, then d_i, d_{i-1}, .."""

Terms = tuple[tuple[int, float], ...]
"""A combination: (place, weight), from `terms`."""


def terms(weights: Mapping[int, float]) -> Terms:
    """The combination with these weights, in the order in which it is best summed; zeros are left out.

    A weight of 1 on the first of two terms saves a pass. The network's output may be of lower precision: it must not
    come first, or its product would be rounded to that precision.
    """
    used = [(place, float(weight)) for place, weight in weights.items() if weight != 0]
    return tuple(sorted(used, key=lambda term: (term[0] == OUT, term[1] != 1)))


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
            out = out * factor.to(out.dtype).view(-1, *[1] * (out.dim() - 1))
        return out

    def factor(self) -> Tensor | None:
        """What each sample is multiplied by; None for 1."""
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
    """One call's work: what to keep of it, and the two combinations."""

    keep: tuple[float, float] | None
    """(p, q): the history gets p y + q out; None if no later row needs this call."""
    s: Terms | None
    """The combination for s', or None if s' is y' itself (they are then the same tensor)."""
    y: Terms
    noise: bool
    scale: float = 1.0
    """What the network wants y' multiplied by."""
    lowered: Lowered | None = None
    recipe: Recipe | None = None


def backend_for(like: Tensor) -> Callable[[Sequence[Row], torch.device], tuple[Row, ...]] | None:
    """What makes rows ready for such a state: `lower` for a launch, `written_down` for the compiled loop, or None."""
    if torch.compiler.is_compiling():
        return None
    found = fused(like.device, "combine")
    if found not in (None, combine):
        return compile_for_launch
    return compile_for_loop if like.device.type == "cpu" and native.library(like.dtype) is not None else None


def compile_for_launch(rows: Sequence[Row], device: torch.device) -> tuple[Row, ...]:
    """A whole run's rows, the entry first, with their matrices on the device, copied there at once."""
    folded = [_fold(row, same) for row, same in zip(rows, _ones(rows), strict=True)]
    table = torch.tensor([w for _, matrix in folded for line in matrix for w in line], dtype=torch.float64)
    sizes = [len(matrix) * len(matrix[0]) for _, matrix in folded]
    done = []
    for row, (places, matrix), weights in zip(rows, folded, torch.split(table.to(device), sizes), strict=True):
        masks = tuple(sum((w != 0) << k for k, w in enumerate(line)) for line in matrix)
        inputs = tuple(place for place in places if place != Z)
        done.append(replace(row, lowered=Lowered(inputs, weights.view(len(matrix), -1), masks)))
    return tuple(done)


def compile_for_loop(rows: Sequence[Row], _: torch.device) -> tuple[Row, ...]:
    """A whole run's rows, the entry first, with what the compiled loop needs to do what the chain does."""
    return tuple(replace(row, recipe=_recipe(row, one)) for row, one in zip(rows, _ones(rows), strict=True))


def _ones(rows: Sequence[Row]) -> list[bool]:
    """For each row, whether S and Y are one tensor when it begins."""
    return [True, *(row.s is None for row in rows[:-1])]


def _recipe(row: Row, one: bool) -> Recipe | None:
    """The results in the order of the chain: what is kept, y', s'. A sum begins with the tensor that it is put in.

    None for a row that is one operation of the chain: there the loop was measured to be no faster, at any size.
    """
    same = {Y: S} if one else {}
    sums: list[Terms] = []
    if row.keep is not None:
        p, q = row.keep
        sums.append(tuple((place, w) for place, w in ((OUT, q), (Y, p)) if w))
    into = None if row.s is not None else Y if _in_place_of_y(row.y) and not one else S
    sums.append(_begun(row.y, into, same))
    if row.s is not None:
        sums.append(_begun(row.s, S, same))
    if not row.noise and len(sums) == 1 and (len(sums[0]) < 2 or (len(sums[0]) == 2 and sums[0][0][1] == 1)):
        return None
    kept = {D: 0} if row.keep is not None else {}
    used = {same.get(k, k) for one_sum in sums for k, _ in one_sum if k not in kept}
    places = sorted(used, key=lambda k: (k == Z, k))
    at = {**{k: i for i, k in enumerate(places)}, **{k: len(places) + i for k, i in kept.items()}}
    return recipe(places, [[(at[same.get(k, k)], w) for k, w in one_sum] for one_sum in sums])


def _begun(sum_of: Terms, into: int | None, same: Mapping[int, int]) -> Terms:
    own = [k for k, (place, _) in enumerate(sum_of) if same.get(place, place) == into][:1]
    return tuple(sum_of[k] for k in own) + tuple(term for k, term in enumerate(sum_of) if k not in own)


def _fold(row: Row, one: bool) -> tuple[list[int], list[list[float]]]:
    """The places that a row reads, each once, and its results as combinations of them: y', s', d, scale y'."""
    lines = [dict(side) for side in (row.y, row.s) if side is not None]
    if row.keep is not None:
        kept = dict(zip((Y, OUT), row.keep, strict=True))
        for line in lines:
            on_d = line.pop(D, 0.0)
            for place, w in kept.items():
                line[place] = line.get(place, 0.0) + on_d * w
        lines.append(kept)
    if one:
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
        row: what to do.
        scratch: a tensor of the state's shape that may be overwritten, if there is one.
        network_input: gets `row.scale` y', in a dtype of its own.
    """
    if row.lowered is not None:
        return _launch(live, row, row.lowered, scratch, network_input)
    if isinstance(live[OUT], Guided):
        live = [*live[:OUT], live[OUT].tensor(), *live[Z:]]
    done = None if row.recipe is None else _loop(live, row, row.recipe, scratch)
    if done is None:
        live = [t.tensor(live[S]) if isinstance(t, Draw) else t for t in live]
        if row.keep is not None:
            _keep(live[D], live[Y], live[OUT], *row.keep)
        done = _chain(live, row.s, row.y, scratch)
    s, y, scratch = done
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
    live: Sequence[Any], row: Row, made: Recipe, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """The same by the compiled loop, on the tensors that the chain would write to; None if it cannot."""
    state, given, draw = live[S], live[Y], None
    if row.s is None:
        s = y = given if _in_place_of_y(row.y) else state
        left = scratch if state is given else given if y is state else state
    else:
        s, y = state, torch.empty_like(state) if scratch is None else scratch
        left = None if state is given else given
    results = [y] if row.s is None else [y, s]
    if row.keep is not None:
        results.insert(0, live[D])
    inputs = [live[place] for place in made.places]
    if made.places[-1:] == (Z,) and isinstance(live[Z], Draw):
        draw = inputs.pop()
    return (s, y, left) if run_recipe(made, inputs, results, draw) else None


def _in_place_of_y(y: Terms) -> bool:
    used = {place for place, _ in y}
    return S not in used and Y in used


def _keep(slot: Tensor, y: Tensor, out: Tensor, p: float, q: float) -> None:
    """slot = p y + q out, where one of p and q is 1 or 0."""
    if q == 0:
        slot.copy_(y)
    elif p == 0:
        slot.copy_(out)
    else:
        torch.add(out, y, alpha=p, out=slot)


def _chain(
    live: Sequence[Tensor], s: Terms | None, y: Terms, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    state, given = live[S], live[Y]
    if s is None:
        into = given if _in_place_of_y(y) else state
        _combine(into, y, live)
        return into, into, scratch if state is given else given if into is state else state
    # y' first, into the scratch, since s' is made in place of the old s.
    new = torch.empty_like(state) if scratch is None else scratch
    _combine(new, y, live)
    _combine(state, s, live)
    return state, new, None if state is given else given


def _combine(into: Tensor, sum_of: Terms, live: Sequence[Tensor]) -> None:
    """into = sum of weight * live[place]; `into` may itself be one of the terms."""
    own = next((k for k, (place, _) in enumerate(sum_of) if live[place] is into), None)
    if own is not None:
        if sum_of[own][1] != 1:
            into.mul_(sum_of[own][1])
        rest = sum_of[:own] + sum_of[own + 1 :]
    else:
        if not sum_of:
            into.zero_()
            return
        (place, weight), *others = sum_of
        if weight == 1 and others:
            torch.add(live[place], live[others[0][0]], alpha=others[0][1], out=into)
            others = others[1:]
        elif place == OUT or weight == 1:
            into.copy_(live[place])
            if weight != 1:
                into.mul_(weight)
        else:
            torch.mul(live[place], weight, out=into)
        rest = tuple(others)
    for place, weight in rest:
        into.add_(live[place], alpha=weight)
