"""The one update between two network calls: linear combinations of the live tensors.

On the CPU an in-place chain: one pass per non-zero weight, no temporary but one scratch of the state's size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["S", "OUT", "Terms", "Y", "Z", "linear_update"]  # noqa: RUF022

S, Y, OUT, Z, D = range(5)
"""Places among the live tensors: the state, the network's input and output, the noise, then d_i, d_{i-1}, .."""

Terms = tuple[tuple[int, float], ...]
"""A combination: (place, weight), zero weights left out."""


def linear_update(
    live: Sequence[Tensor], s: Terms | None, y: Terms, spare: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(s', y', spare): the next state and network input, as combinations of the live tensors.

    Args:
        live: the tensors at S, Y, OUT, Z, then the history. S and Y may be the same tensor; both are overwritten.
        s: the combination for s', or None if s' is y' itself (they are then the same tensor).
        y: the combination for y'.
        spare: a tensor of the state's shape that may be overwritten, if there is one.
    """
    state, given = live[S], live[Y]
    if s is None:
        used = {place for place, _ in y}
        into = given if S not in used and Y in used else state
        _combine(into, y, live)
        return into, into, spare if state is given else given if into is state else state
    # y' first, into the scratch, since s' is made in place of the old s.
    new = torch.empty_like(state) if spare is None else spare
    _combine(new, y, live)
    _combine(state, s, live)
    return state, new, None if state is given else given


def _combine(into: Tensor, terms: Terms, live: Sequence[Tensor]) -> None:
    """into = sum of weight * live[place]; `into` may itself be one of the terms."""
    own = next((k for k, (place, _) in enumerate(terms) if live[place] is into), None)
    if own is not None:
        if terms[own][1] != 1:
            into.mul_(terms[own][1])
        rest = terms[:own] + terms[own + 1 :]
    else:
        # A weight of 1 on one of two terms saves a pass. The network's output may be of lower precision: it must
        # not come first, or its product would be rounded to that precision.
        first = sorted(terms, key=lambda term: (term[0] == OUT, term[1] != 1))
        if not first:
            into.zero_()
            return
        (place, weight), *others = first
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
