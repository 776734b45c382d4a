"""A weighted sum of the live tensors of a run, in place or not: all that a solver does between two network calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import SupportsFloat

import torch
from torch import Tensor

__all__ = ["OUT", "D", "S", "Terms", "Y", "Z", "beginning_with", "in_order", "terms", "weighted_sum"]

S, Y, OUT, Z, D = range(5)
"""Places among the live tensors: the state, the network's input and output, the noise, then d_i, d_{i-1}, .."""

Terms = tuple[tuple[int, float], ...]
"""A combination: (place, weight), in the order in which it is summed. Another order has other last bits."""


def terms(weights: Mapping[int, float]) -> Terms:
    """The combination with these weights, in the order in which it is best summed; zeros are left out.

    A weight of 1 on the first of two terms saves a pass. The network's output may be of lower precision: it must not
    come first, or its product would be rounded to that precision.
    """
    used = [(place, float(weight)) for place, weight in weights.items() if weight != 0]
    return tuple(sorted(used, key=lambda term: (term[0] == OUT, term[1] != 1)))


def in_order(weights: Sequence[SupportsFloat]) -> Terms:
    """The combination of the tensors 0, 1, .. with these weights, in that order; zeros are left out."""
    return tuple((place, weight) for place, weight in enumerate(map(float, weights)) if weight != 0)


def beginning_with(sum_of: Terms, place: int | None) -> Terms:
    """The combination with the term of that place moved to the front, if there is one."""
    if place is None or not sum_of or sum_of[0][0] == place:
        return sum_of
    own = tuple(term for term in sum_of if term[0] == place)
    return own + tuple(term for term in sum_of if term[0] != place)


def weighted_sum(sum_of: Terms, live: Sequence[Tensor], into: Tensor | None = None) -> Tensor:
    """The sum of weight * live[place], term after term: each is rounded once, as it is added.

    Without `into` nothing is written in place: the result can be differentiated. It may be a live tensor itself.

    Args:
        live: tensors of one shape. The sum has the dtype of the first.
        into: where the sum is written. It may be one of the live tensors; the sum then begins with its term.
    """
    if into is None:
        if not sum_of:
            return torch.zeros_like(live[0])
        (place, weight), *rest = sum_of
        total = live[place].to(live[0].dtype)
        if weight != 1:
            total = total * weight
        for place, weight in rest:
            total = torch.add(total, live[place], alpha=weight)
        return total
    if not sum_of:
        return into.zero_()
    own = [place for place, _ in sum_of if live[place] is into]  # no next(): PyTorch 2.6 does not trace it
    (place, weight), *rest = beginning_with(sum_of, own[0] if own else None)
    first = live[place]
    if first is into:
        if weight != 1:
            into.mul_(weight)
    elif weight == 1 and rest:
        (place, weight), *rest = rest
        torch.add(first, live[place], alpha=weight, out=into)
    elif weight == 1 or first.dtype != into.dtype:  # whose product would be rounded to its own dtype
        into.copy_(first)
        if weight != 1:
            into.mul_(weight)
    else:
        torch.mul(first, weight, out=into)
    for place, weight in rest:
        into.add_(live[place], alpha=weight)
    return into
