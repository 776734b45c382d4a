"""Parareal: blocks of the run side by side, joined by a coarse solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve import solvers
from diffsolve.common.checks import required
from diffsolve.common.tensors import flat
from diffsolve.execute import Executor, executor_at_end
from diffsolve.execute.results import Rounds
from diffsolve.parallel.base import Calls, Parallel, in_order
from diffsolve.parallel.coarse import one_by_one
from diffsolve.parallel.distributed import Ranks
from diffsolve.parallel.rows import Rows, advance_window
from diffsolve.solvers import Solver
from diffsolve.solvers.base import frame_named
from diffsolve.tableau import Tableau

__all__ = ["Parareal"]


@dataclass(frozen=True)
class Parareal(Parallel):
    r"""Blocks of calls side by side, corrected by a coarse run (Lions et al. 2001; SRDS, Selvam et al., 2405.15285).

    With F the run itself over a block, and G a cheap one, the states u at the blocks' ends follow

    .. math:: u_{b+1}^{k+1} = F(u_b^k) + \big[G(u_b^{k+1}) - G(u_b^k)\big].

    F of all blocks is computed at once, G block after block. After k rounds the first k ends are exact. A sample has
    converged up to the first end that changed by more than `tol` and `atol` allow (as in `Picard`). The depth of a
    round is the calls of the longest block plus those of G.

    Args:
        blocks: the number of blocks, of lengths as equal as the solver's steps allow, and fewer if there are fewer
            steps; the square root of the calls if None.
        coarse: the solver of G, which must be deterministic, with one step per block. If None, the run itself with the
            first derivative of each block held to its end: one call, and the run's own noise.
        tol, atol, max_batch, ranks: as in `Picard`.
        frame: the frame whose derivative is held when coarse is None.

    Raises:
        ValueError: if an option is out of range or a name is unknown.
    """

    blocks: int | None = None
    coarse: str | Solver | None = None
    tol: float = 0.1
    atol: float = 0.0
    frame: str = "straight"
    max_batch: int | None = None
    ranks: Ranks | None = None

    def __post_init__(self) -> None:
        self._check("blocks", "max_batch")
        frame_named(self.frame)
        if self.coarse is not None:
            solvers.named(self.coarse)

    def run(
        self, ex: Executor, calls: Calls, moved: Callable[[int], object], points: Tensor | None = None
    ) -> tuple[Executor, Rounds]:
        if len(ex.y) == 0:
            return in_order(ex, calls, moved, points)
        return _Blocks(self, ex, calls, points).run(moved)


@dataclass
class _State:
    """A run at a block's end: s, y (B, n) and the last K - 1 derivatives (K - 1, B, n)."""

    s: Tensor
    y: Tensor
    d: Tensor

    def of(self, who: Tensor) -> _State:
        return _State(self.s[who], self.y[who], self.d[:, who])

    def put(self, who: Tensor, other: _State) -> None:
        self.s[who], self.y[who], self.d[:, who] = other.s, other.y, other.d

    def copy(self) -> _State:
        return _State(self.s.clone(), self.y.clone(), self.d.clone())


class _Blocks:
    """The iteration. `ends[b]` is the state where block b begins; a sample's blocks before `at` are done.

    `points` receives every point of F, and the ends.
    """

    def __init__(self, options: Parareal, ex: Executor, calls: Calls, points: Tensor | None = None) -> None:
        self.ex, self.calls, self.points, tableau = ex, calls, points, ex.tableau
        start = ex.state
        y = flat(start.y)
        self.rows = Rows(tableau, calls.model, options.frame, y)
        self.bounds = _bounds(tableau, options.blocks)
        self.n = len(self.bounds) - 1
        limit = (options.tol**2 * self.rows.variance + options.atol**2).double()
        self.limit = limit[torch.tensor(self.bounds[1:], device=y.device) - 1, None]
        self.limit[-1] = math.inf
        self.coarse = None
        if options.coarse is not None:
            written = _coarse(options.coarse, calls, tableau, self.bounds)
            self.coarse = [(Rows(t, calls.model, options.frame, y), calls.of(t, y)) for t in written]
        first = _State(flat(start.s), y, y.new_zeros(tableau.history - 1, *y.shape))
        self.everyone = torch.arange(len(y), device=y.device)
        self.ends = [first]
        self.G: list[_State] = []
        for b in range(self.n):
            self.G.append(self.guess(b, self.ends[b], self.everyone))
            self.ends.append(self.G[b].copy())
        self.at = torch.zeros_like(self.everyone)

    def run(self, moved: Callable[[int], object]) -> tuple[Executor, Rounds]:
        rounds, passed = 0, 0
        each = torch.zeros(len(self.at), dtype=torch.int64)
        while passed < self.n:
            rounds += 1
            going = self.at < self.n
            self.round(passed)
            each[going.cpu()] = rounds
            slowest = int(self.at.min())
            moved(self.bounds[slowest] - self.bounds[passed])
            passed = slowest
        end = self.ends[-1]
        y = end.y.view_as(self.ex.y)
        network = [self.calls, *(calls for _, calls in self.coarse or ())]
        made, depth = sum(c.made for c in network), sum(c.depth for c in network)
        everyone = torch.ones(len(each), dtype=torch.bool)
        statistics = Rounds(rounds, made, made - len(each) * self.ex.tableau.nfe, depth, each, everyone)
        s = y if self.rows.single else end.s.view_as(y)
        return executor_at_end(self.ex.program, s, y, self.ex.key), statistics

    def round(self, first: int) -> None:
        """F of all unconverged blocks, then the correction, block after block."""
        fine = self.fine(first)
        change = torch.zeros_like(self.limit.expand(-1, len(self.at)))
        for b in range(first, self.n):
            who = (self.at <= b).nonzero()[:, 0]
            new = fine[b]
            # Up to a sample's first unconverged block nothing changed, and the bracket is 0.
            late = (self.at[who] < b).nonzero()[:, 0]
            if len(late):
                G = self.guess(b, self.ends[b].of(who[late]), who[late])
                old = self.G[b].of(who[late])
                new.s[late] += G.s - old.s
                new.y[late] += G.y - old.y
                self.G[b].put(who[late], G)
            change[b, who] = (new.y - self.ends[b + 1].y[who]).square().mean(-1, dtype=torch.float64)
            self.ends[b + 1].put(who, new)
            if self.points is not None:
                self.points[self.bounds[b + 1], who] = new.y
        within = (change <= self.limit) | (torch.arange(self.n, device=self.at.device)[:, None] < self.at)
        self.at = (within.int().cumprod(0).sum(0) + 1).clamp(max=self.n)

    def fine(self, first: int) -> dict[int, _State]:
        """F of each unconverged block, for its unconverged samples: call after call, all blocks at once."""
        columns = [(b, (self.at <= b).nonzero()[:, 0]) for b in range(first, self.n)]
        sample = torch.cat([who for _, who in columns])
        block = torch.cat([torch.full_like(who, b) for b, who in columns])
        bounds = torch.tensor(self.bounds, device=block.device)
        parts = [self.ends[b].of(who) for b, who in columns]
        state = _State(
            torch.cat([p.s for p in parts]), torch.cat([p.y for p in parts]), torch.cat([p.d for p in parts], 1)
        )
        for step in range(max(np.diff(self.bounds[first:]))):
            here = (bounds[block] + step < bounds[block + 1]).nonzero()[:, 0]
            row, who, now = bounds[block[here]] + step, sample[here], state.of(here)
            f = self.rows.fixed(row, now.y, self.calls(row, who, now.y))
            state.put(here, self.follow(row[None], now, f[None], who))
            if self.points is not None:
                self.points[row + 1, who] = state.y[here]
        sizes = [len(who) for _, who in columns]
        split = zip(
            torch.split(state.s, sizes), torch.split(state.y, sizes), torch.split(state.d, sizes, 1), strict=True
        )
        return {b: _State(*part) for (b, _), part in zip(columns, split, strict=True)}

    def guess(self, b: int, start: _State, who: Tensor) -> _State:
        """G of block b."""
        first, last = self.bounds[b : b + 2]
        if self.coarse is None:
            row = torch.full_like(who, first)
            f, y = self.rows.fixed(row, start.y, self.calls(row, who, start.y)), None
        else:
            derivatives, y = one_by_one(*self.coarse[b], who, start.y)
            f = derivatives[0]
        row = torch.arange(first, last, device=who.device)[:, None].expand(-1, len(who))
        end = self.follow(row, start, f.expand(last - first, -1, -1), who)
        return end if y is None else _State(end.s + (y - end.y), y, end.d)

    def follow(self, row: Tensor, start: _State, f: Tensor, who: Tensor) -> _State:
        """The recurrence over these rows."""
        s, y, d, _ = advance_window(self.rows, row, start.s, start.y, start.d, f, self.noise(row, who))
        return _State(s[-1], y[-1], d[len(d) - len(start.d) :])

    def noise(self, row: Tensor, who: Tensor) -> Tensor | None:
        """Drawn again each time: stored, it would be as large as all states of the run."""
        if not any(self.rows.noisy):
            return None
        z = self.ex.y.new_zeros(*row.shape, self.ex.y[0].numel())
        for i in sorted(set(row.flatten().tolist())):
            if self.rows.noisy[i]:
                drawn = flat(self.ex.noise(i + 1, self.ex.y))
                slot, column = (row == i).nonzero().unbind(1)
                z[slot, column] = drawn[who[column]]
        return z


def _bounds(tableau: Tableau, blocks: int | None) -> list[int]:
    """The calls at which blocks begin, and N: each where the input stands at a node."""
    n = tableau.nfe
    blocks = blocks or max(1, round(math.sqrt(n)))
    places = np.flatnonzero(tableau.node[:-1] >= 0) + 1
    wanted = np.arange(1, blocks) * n / blocks
    near = places[np.abs(places - wanted[:, None]).argmin(1)] if len(places) else []
    return [0, *sorted({int(place) for place in near}), n]


def _coarse(solver: str | Solver, calls: Calls, tableau: Tableau, bounds: list[int]) -> list[Tableau]:
    """One step of the solver over each block."""
    model, method = calls.model, solvers.named(solver)
    times = [tableau.times[0], *(tableau.times[tableau.node[i - 1]] for i in bounds[1:])]
    written = [
        method(model.path, np.array(pair), call_last=model.determined(float(pair[1])))
        for pair in zip(times, times[1:], strict=False)
    ]
    required(not any(t.stochastic for t in written), "coarse", solver, "a deterministic solver")
    return written
