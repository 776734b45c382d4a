"""Calls that do not depend on each other, made as one batch: no iteration, and no call more than the run has."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffsolve.common.tensors import flat
from diffsolve.execute import Executor, executor_at_end
from diffsolve.execute.results import Rounds
from diffsolve.parallel.base import Calls, Parallel, in_order
from diffsolve.parallel.distributed import Ranks
from diffsolve.parallel.rows import Rows, advance_window
from diffsolve.tableau import Tableau

__all__ = ["Independent", "edges"]


@dataclass(frozen=True)
class Independent(Parallel):
    """Consecutive calls of which no input has weights on another's output, made at once.

    Learned tableaux have such groups (`ds.tune(.., together=2)`: parallel directions, Zhu et al., 2507.14797). The
    result is that of the calls one by one, to rounding; of a run in which each call depends on the last, bit for bit.

    Args:
        max_batch: the largest batch for one network call.
        ranks: the `ds.Ranks` of torch.distributed that share the calls.

    Raises:
        ValueError: if max_batch is out of range.
        TypeError: if ranks is not a `ds.Ranks`.
    """

    max_batch: int | None = None
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self._check("max_batch", bounds=())

    def run(
        self, ex: Executor, calls: Calls, moved: Callable[[int], object], points: Tensor | None = None
    ) -> tuple[Executor, Rounds]:
        cut = edges(ex.tableau)
        if len(ex.y) == 0 or len(cut) == ex.tableau.nfe + 1:
            return in_order(ex, calls, moved, points)
        start, batch = ex.state, len(ex.y)
        s, y = flat(start.s), flat(start.y)
        rows = Rows(ex.tableau, calls.model, "straight", y)
        d = y.new_zeros(ex.tableau.history - 1, *y.shape)
        who = torch.arange(batch, device=y.device)
        for first, stop in itertools.pairwise(cut):
            numbers = torch.arange(first, stop, device=y.device)
            row, z = numbers[:, None].expand(-1, batch), _noise(ex, rows, first, stop)
            unknown = y.new_zeros(stop - first, *y.shape)  # the inputs have no weight on what is not known yet
            x = advance_window(rows, row, s, y, d, unknown, z)[1][:-1].flatten(0, 1)
            every = row.flatten()
            f = rows.fixed(every, x, calls(every, who.repeat(stop - first), x)).view_as(unknown)
            ss, ys, ds, _ = advance_window(rows, row, s, y, d, f, z)
            s, y, d = ss[-1], ys[-1], ds[len(ds) - len(d) :]
            if points is not None:
                points[first + 1 : stop + 1] = ys[1:]
            moved(stop - first)
        x = y.view_as(ex.y)
        rounds, all_of = len(cut) - 1, torch.ones(batch, dtype=torch.bool)
        each = torch.full((batch,), rounds)
        done = executor_at_end(ex.program, x if rows.single else s.view_as(x), x, ex.key)
        return done, Rounds(rounds, calls.made, 0, calls.depth, each, all_of)


def edges(tableau: Tableau) -> list[int]:
    """Where groups of independent calls begin, and N."""
    found = [0]
    for i in range(1, tableau.nfe):
        # Row j makes the input of call j + 1; its weights on the outputs of this group, the newest first.
        if any(tableau.weights[j, :, 2 : 3 + j - found[-1]].any() for j in range(found[-1], i)):
            found.append(i)
    return [*found, tableau.nfe]


def _noise(ex: Executor, rows: Rows, first: int, stop: int) -> Tensor | None:
    """(L, B, n): the noise of these calls; None if there is none."""
    if not any(rows.noisy[first:stop]):
        return None
    drawn = [ex.noise(i + 1, ex.y) if rows.noisy[i] else torch.zeros_like(ex.y) for i in range(first, stop)]
    return torch.stack([flat(z) for z in drawn])
