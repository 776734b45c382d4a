"""Shared by the parallel drivers: the network called for many rows at once, and the count of its calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, number
from diffsolve.common.tensors import flat
from diffsolve.execute import Executor, Network
from diffsolve.execute.results import Rounds
from diffsolve.models import Model
from diffsolve.models.conditions import picked
from diffsolve.models.guidance import Guidance
from diffsolve.parallel.distributed import Ranks
from diffsolve.tableau import Tableau

__all__ = ["Calls", "Parallel", "in_order"]


class Parallel(ABC):
    """A way to make many of a run's network calls at once: `Picard`, `Parareal` or `Independent`. Immutable."""

    tol: float
    atol: float
    max_batch: int | None
    ranks: Ranks | None

    def _check(self, *counts: str, bounds: tuple[str, ...] = ("tol", "atol")) -> None:
        """Check these counts and bounds, and the ranks."""
        for name in counts:
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        for name in bounds:
            number(name, getattr(self, name), low=0)
        if self.ranks is not None:
            instance("ranks", self.ranks, Ranks, "a ds.Ranks")

    @abstractmethod
    def run(
        self, ex: Executor, calls: Calls, moved: Callable[[int], object], points: Tensor | None = None
    ) -> tuple[Executor, Rounds]:
        """Run from the first call to the end.

        Args:
            ex: the executor at call 0, with the start, the noise and the program.
            calls: the network.
            moved: called after each round with the number of calls by which the slowest sample has advanced.
            points: (N + 1, B, n); rows 1 .. N are filled with the later network inputs and the result.
        """


class Calls:
    """The network of a run, called for any samples at any rows of its tableau, and counted.

    A tensor among the conditions, at any depth, whose first axis is the batch size has one entry per sample, repeated
    for each of the sample's calls; all else, and what is `Shared`, is passed unchanged.
    """

    def __init__(
        self,
        model: Model,
        tableau: Tableau,
        like: Tensor,
        guidance: Guidance,
        cond: Mapping[str, Any],
        *,
        max_batch: int | None = None,
        ranks: Ranks | None = None,
        check: bool,
    ) -> None:
        self.model, self.max_batch, self.ranks, self.check = model, max_batch, ranks, check
        self._guidance, self._cond, self._shape = guidance, cond, like.shape
        self._at(tableau, like)
        self.made = self.depth = 0

    def _at(self, tableau: Tableau, like: Tensor) -> None:
        """Switch to the calls of this tableau."""
        self.tableau, self._network = tableau, Network.of(self.model, tableau, self._guidance, like)
        kinds = torch.from_numpy(self._guidance.kinds(tableau))
        self._mixed = None if bool((kinds == kinds[0]).all()) else kinds.to(like.device)
        self._scales = (
            torch.from_numpy(self._guidance.schedule(tableau)).to(like) if self._guidance.scheduled(tableau) else None
        )

    def of(self, tableau: Tableau, like: Tensor) -> Calls:
        """The same network at the calls of another tableau, with a count of its own."""
        other = copy(self)
        other._at(tableau, like)
        other.made = other.depth = 0
        return other

    def __call__(self, row: Tensor, sample: Tensor, y: Tensor) -> Tensor:
        """The network's outputs for the inputs y (M, n) of `sample` (M,) at the calls `row` (M,)."""
        if not len(row):
            return torch.empty_like(y)
        share = len(row) if self.ranks is None else -(-len(row) // self.ranks.size)
        self.made += len(row)
        self.depth += -(-share // (self.max_batch or share))
        if self.ranks is None:
            return self._batches(row, sample, y)
        mine = slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)
        return self.ranks.gather(lambda: self._batches(row[mine], sample[mine], y[mine]), share, y)

    def _batches(self, row: Tensor, sample: Tensor, y: Tensor) -> Tensor:
        if not len(row):  # nothing for this rank to do
            return torch.empty_like(y)
        size = self.max_batch or len(row)
        if size >= len(row):
            return self._batch(row, sample, y)
        out = torch.empty_like(y)  # filled at once: the network may overwrite its last output
        for first in range(0, len(row), size):
            part = slice(first, first + size)
            out[part] = self._batch(row[part], sample[part], y[part])
        return out

    def _batch(self, row: Tensor, sample: Tensor, y: Tensor) -> Tensor:
        if self._mixed is None:
            return self._call(row, sample, y)
        out = torch.empty_like(y)
        for kind in sorted({*self._mixed[row].tolist()}, reverse=True):  # rows with guidance, and rows without
            part = self._mixed[row] == kind
            out[part] = self._call(row[part], sample[part], y[part])
        return out

    def _call(self, row: Tensor, sample: Tensor, y: Tensor) -> Tensor:
        states = y.view(-1, *self._shape[1:])
        cond, given = (picked(each, sample, self._shape[0]) for each in (self._cond, self._guidance.given))
        if self._scales is not None:
            given = {**given, "scale": self._scales[row]}
        out = self._network.at_calls(row, states, cond, given, example=0 if self._mixed is None else int(row[0]))
        if self.check and not bool(out.isfinite().all()):
            bad = ~flat(out).isfinite().all(1)
            i = int(row[bad].min())
            raise FloatingPointError(
                f"net returned {int((~out.isfinite()).sum())} non-finite values of {out.numel()}, first in call {i} of "
                f"{self.tableau.nfe}, at t={self.tableau.calls[i, 0]:.6g}"
            )
        return flat(out).to(y.dtype)


def in_order(
    ex: Executor, calls: Calls, moved: Callable[[int], object], points: Tensor | None
) -> tuple[Executor, Rounds]:
    """One call after another: the executor itself."""
    n, batch = ex.tableau.nfe, len(ex.y)
    sample = torch.arange(batch, device=ex.y.device)
    while not ex.done:
        out = calls(torch.full_like(sample, ex.call), sample, flat(ex.y))
        ex.take(out.view_as(ex.y))
        if points is not None:
            points[ex.call] = flat(ex.y)
        moved(1)
    everyone = torch.ones(batch, dtype=torch.bool)
    return ex, Rounds(n, calls.made, 0, calls.depth, torch.full((batch,), n), everyone)
