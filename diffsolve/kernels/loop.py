"""The update by the compiled loop: one pass over memory on a CPU, which draws the noise too.

A row's loop does what the in-place chain does, term by term and with the same roundings, so the bits of a run do not
depend on which of them ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack

import torch
from torch import Tensor

from diffsolve import native
from diffsolve.kernels.layout import accumulator, same_layout
from diffsolve.noise import Draw

__all__ = ["NOBODY", "Recipe", "combine", "recipe", "run_recipe"]

Sum = Sequence[tuple[int, float]]
"""(place, weight): a place below the number of inputs is one of them, those above are the results before."""
NOBODY = (0,) * 6
"""The address of no draw."""


@dataclass(frozen=True)
class Recipe:
    """The sums that give the results, in the form that the loop reads."""

    places: tuple[int, ...]
    """The live tensors that are the inputs, the noise last."""
    results: int
    rule: bytes


def recipe(places: Sequence[int], sums: Sequence[Sum]) -> Recipe | None:
    """The sums in the form that the loop reads; None if there are too many for it."""
    if len(places) > native.INPUTS or len(sums) > native.RESULTS:
        return None
    terms = [term for one in sums for term in one]
    which = (*(len(one) for one in sums), *(place for place, _ in terms))
    rule = pack(f"{len(which)}q{len(terms)}d", *which, *(weight for _, weight in terms))
    return Recipe(tuple(places), len(sums), rule)


def run_recipe(instructions: Recipe, inputs: Sequence[Tensor], results: Sequence[Tensor], draw: Draw | None) -> bool:
    """Run the loop and return True, or return False where it cannot: it needs one dtype, one layout and plain memory.

    Args:
        inputs: without the noise of `draw`, which comes last.
    """
    like = results[0]
    dtype, shape, stride = like.dtype, like.shape, like.stride()
    loops = native.found(dtype)
    if loops is None or not native.is_plain(*inputs, *results):
        return False
    for x in (*inputs, *results):
        if x.dtype != dtype or x.shape != shape or x.stride() != stride or not x.is_cpu:
            return False
    batch = 1
    count = size = like.numel()
    seeds, who = None, NOBODY
    if draw is not None:  # whose counters follow the samples and the order of their elements
        if not (draw.plain and like.is_contiguous()):
            return False
        seeds, who = draw.address()
        batch = len(like)
        size = count // batch if batch else 0
    at = [x.data_ptr() for x in inputs]
    if draw is not None:
        at.append(0)
    words = (batch, size, len(at), len(results), native.threads(count), 0, 0, draw is not None, *who, *at)
    loops.update(native.record(*words, *(y.data_ptr() for y in results)) + instructions.rule)
    del seeds  # they had to stay until now
    native.mark_mutated(*results)
    return True


def combine(inputs: Sequence[Tensor], weights: Tensor, outputs: Sequence[Tensor], *, draw: Draw | None = None) -> None:
    """As `launch.combine`. Operands of other dtypes than the sum's are converted first."""
    acc, like = accumulator(*inputs, *outputs), outputs[0]
    loops = native.library(acc)
    assert loops is not None
    given = [t.to(acc) for t in same_layout(like, inputs)]
    sums = [t if t.dtype == acc else torch.empty_like(t, dtype=acc) for t in outputs]
    M, K = weights.shape[-2:]
    rows = weights.dim() == 3 or draw is not None
    batch = len(like) if rows else 1
    size = like.numel() // max(batch, 1)
    seeds, who = (None, NOBODY) if draw is None else draw.address()
    weights = weights.contiguous()
    at = [x.data_ptr() for x in given] + [0] * (draw is not None)
    where = weights.data_ptr(), M * K if weights.dim() == 3 else 0
    words = (batch, size, K, M, native.threads(like.numel()), *where, draw is not None, *who, *at)
    loops.update(native.record(*words, *(y.data_ptr() for y in sums), *[K] * M, *list(range(K)) * M))
    del seeds
    native.mark_mutated(*sums)
    for target, source in zip(outputs, sums, strict=True):
        if target is not source:
            target.copy_(source)
