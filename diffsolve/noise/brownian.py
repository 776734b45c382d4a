r"""Brownian paths that are a function of (seed, sample, element, time): nothing is stored, nothing is drawn in turn.

The clock [0, inf) is cut into octaves [2^k, 2^{k+1}). Their increments are independent normals, and each octave is
refined by a binary tree of Brownian bridges: with :math:`W_l, W_r` at the ends of a cell of length h,

.. math:: W(l + u h) = (1 - u) W_l + u W_r + \sqrt{u (1 - u) h}\; n, \qquad n \sim N(0, 1),

where u = 1/2 gives the middle of each cell for `depth` levels, and u = the place of t ends the descent inside the
finest cell, of 2^-depth of its octave. So the resolution is relative to the time, over all its orders of magnitude.
Each n is keyed by its node, hence by nothing that was asked before; a batch of times shares the nodes above them.

References:
    Levy, "Processus stochastiques et mouvement brownien", 1948 (the construction by midpoints).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.noise.key import Key, sizes_of
from diffsolve.noise.nodes import CHUNK, NodeNormals

__all__ = ["Brownian", "Times"]

Times = float | Sequence[float] | np.ndarray | Tensor

WINDOW = {torch.float32: 52, torch.float64: 110}  # octaves below which a path is under half a unit of rounding
NOWHERE = -1 << 20, 0, 0  # in no octave of a float


class Brownian:
    r"""A standard Brownian path per element of `shape`: W(t0) = 0, increments N(0, t - s).

        w = ds.Brownian((64, 2), seed=0)
        w(0.5)                        # W(0.5), shape (64, 2)
        w(0.25, 0.5)                  # W(0.5) - W(0.25)
        w([0.1, 0.2], [0.2, 0.7])     # two increments, shape (2, 64, 2)

    Row i depends on (seed, index + i), or on its own seed, as in `ds.Key`; and the value at a time on that time
    alone: not on the batch, the shard, the step count or the order of queries, up to rounding. A flat shape and
    an image's are the same path, element by element.

    The law of any set of times is exactly Brownian if no two of them lie in one finest cell, that is, if they
    differ by more than 2^-depth relative to their distance from t0. Within a cell the path is continuous and
    smoother than Brownian. Each n is a normal rounded to 2^16 quantiles (the first and last beyond 4.3): sums of a
    path's many levels have no such limit.

    A query costs depth + 1 normals per time and element at most; fewer where times share nodes, where a time is
    a multiple of a power of two, and along the nodes of the query before, which are kept (depth + 1 tensors of
    `shape`, or of 1 MB each, whatever was asked). Large batches of times are worked on in chunks. Threads may share
    a path.

    Args:
        shape: (B, *): the batch first.
        seed: an int, one per row, or a `ds.Key`, which may be antithetic or shared.
        index: where row 0 stands in the whole batch.
        t0: where the path starts. There is no end.
        depth: the finest cell is 2^-depth of its octave: 0 to 30.
        dtype: of the values. Half precisions are computed in float32, float64 in float64 throughout.
        device: of the values. The normals are the same bits on every device.

    Raises:
        ValueError, TypeError: for bad arguments, by name.
    """

    levy_area_approximation = "none"
    """What torchsde asks of its `bm`: no Levy areas here, so not for its methods "srk" and "log_ode"."""

    def __init__(
        self,
        shape: Sequence[int],
        seed: int | Sequence[int] | Key,
        *,
        index: int = 0,
        t0: float = 0.0,
        depth: int = 14,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        integer("depth", depth, 0, 30)
        self.key = Key.of(seed, index)
        sizes, like = sizes_of(shape), torch.empty(0, dtype=dtype, device=device)
        if not like.dtype.is_floating_point:
            raise ValueError(f"dtype must be a real floating type, got {dtype}")
        self.key.check(sizes)
        self.shape, self.dtype, self.device = tuple(sizes), like.dtype, like.device
        self.t0, self.depth = number("t0", t0), depth
        self._wide = torch.float64 if dtype == torch.float64 else torch.float32
        self._inner = math.prod(sizes[1:])
        self._nodes = NodeNormals(self.key, sizes[0], self._inner, self._wide, self.device)
        self._numel = self._nodes.numel
        # Where the last query ended: (octave, cell, middles passed) with the ends of the cells on the way there, and
        # (origin, octave, W) where the octave begins. Each is read once, never changed, and replaced as a whole, so
        # that threads, and a query that is interrupted, leave what another can use.
        self._way: tuple[tuple[int, int, int], Sequence[tuple[Tensor, Tensor]]] = (NOWHERE, ())
        self._base: tuple[int, int, Tensor] | None = None

    def __repr__(self) -> str:
        return f"Brownian({self.shape}, seed={self.key.seed!r}, t0={self.t0}, depth={self.depth}, dtype={self.dtype})"

    def size(self) -> tuple[int, ...]:
        """The shape of a value."""
        return self.shape

    def __call__(self, ta: Times, tb: Times | None = None, return_U: bool = False, return_A: bool = False) -> Tensor:
        """W(ta), or the increment W(tb) - W(ta): the path's shape for numbers, (n, *shape) for n times.

        Args:
            ta, tb: numbers, or two lists, arrays or tensors of one length, in any order, each at least t0.
            return_U, return_A: torchsde's words for Levy areas, which this path does not have: only False.
        """
        if return_U or return_A:
            raise ValueError(
                "return_U and return_A must be False: a ds.Brownian has no Levy areas. Of torchsde's methods "
                "'euler', 'milstein', 'heun', 'midpoint', 'euler_heun' and 'reversible_heun' need none"
            )
        s, t = (None, ta) if tb is None else (ta, tb)
        return self._increments(s, t, lambda s, t: np.ones_like(t))

    def normal_between(self, s: Times, t: Times) -> Tensor:
        """(W(t) - W(s)) / sqrt(t - s): a standard normal for s < t, with the sign of W(t) - W(s) for s > t.

        Over disjoint intervals these are independent, and over [s, u] it is what [s, t] and [t, u] make together:
        the noise of a long step is that of the short steps in it. Neither overflows nor underflows.
        """

        def scale(s: np.ndarray, t: np.ndarray) -> np.ndarray:
            if (s == t).any():
                raise ValueError(f"s and t must be different times, got {s[s == t][0] + self.t0!r} for both")
            return np.asarray(np.abs(t - s) ** -0.5)

        return self._increments(s, t, scale)

    def _increments(self, s: Times | None, t: Times, scale: Any) -> Tensor:
        """scale(s, t) (W(t) - W(s)), W(s) being 0 if s is None."""
        stop, alone = self._clock("t", t)
        start, _ = (np.zeros_like(stop), alone) if s is None else self._clock("s", s)
        if start.shape != stop.shape:
            raise ValueError(f"s and t must be of one length, got {start.size} and {stop.size} times")
        n = len(stop)
        factor = scale(start, stop)
        clock = np.concatenate([start, stop])
        into = np.flatnonzero(clock > 0)
        out = torch.zeros(n, self._numel, dtype=self._wide, device=self.device)
        if len(into) and self._numel:
            order = into[np.argsort(clock[into], kind="stable")]
            octave = np.frexp(clock[order])[1] - 1
            # From W = 0 at the first octave in use; W(0) itself is far enough below to be lost in rounding. That
            # is rounded to 64 octaves, so that the sums up to there are found again.
            low = int(octave[0])
            # Each query in units of its own octave: none over- or underflows.
            unit = np.frexp(np.maximum(start, stop))[1]
            origin = low if len(into) == len(clock) else (low - WINDOW[self._wide]) // 64 * 64
            step = max(8, CHUNK // max(4 * self._numel, 1))
            for i in range(0, len(order), step):
                part, k = order[i : i + step], octave[i : i + step]
                w = self._values(k, np.ldexp(clock[part], -k) - 1, origin)
                weights = np.where(part < n, -1.0, 1.0) * np.exp2((k - unit[part % n]) / 2)
                out.index_add_(0, self._nodes.index(part % n), w.mul_(self._nodes.column(weights)))
            out.mul_(self._nodes.column(factor * np.exp2(unit / 2)))
        rows = out.view(n, self.shape[0], self._inner)
        self.key.flip(rows.transpose(0, 1))
        return out.to(self.dtype).view(self.shape if alone else (n, *self.shape))

    def _values(self, octave: np.ndarray, place: np.ndarray, origin: int) -> Tensor:
        """W at the times 2^k (1 + place), sorted, over 2^(k/2): from W = 0 at the octave `origin`.

        With depth = 2 and the times 1.3, 1.4 and 1.6 of the octave [1, 2), of cells 1, 1 and 2 of 4:

            1.3    draws the increment of the octave (node 0), the middles of [1, 2) (node 1) and of [1, 1.5) (node 2),
                   keeps the ends of the three cells on the way, and interpolates between those of [1.25, 1.5)
            1.4    draws nothing: the same cell at another place
            1.6    keeps the ends of [1, 2), turns into its right half, and draws the middle of [1.5, 2) (node 3)
            last   each time adds its own multiple of its cell's normal (nodes 4 + 1 and 4 + 2), drawn once a cell
        """
        last, way = self._way
        cells = list(way)
        descent = _Descent(octave, place, self.depth, last)
        normals = self._nodes.scaled(descent.octaves, descent.nodes, descent.scale)
        base, zero = None, torch.zeros(self._numel, dtype=self._wide, device=self.device)
        value = zero.new_empty(len(octave), self._numel)
        places = zip(octave.tolist(), descent.cell.tolist(), descent.u.tolist(), strict=True)
        needs = zip(descent.known, descent.needed, strict=True)
        for w, (k, cell, u), (known, needed) in zip(value.unbind(), places, needs, strict=True):
            if base is None or k != last[0]:
                base = self._start(k, origin)
            if known < 0:
                cells, known = [(zero, next(normals))], 0
            del cells[known + 1 :]
            if known and (cell ^ last[1]) >> (self.depth - known):  # the time before went into its sibling
                (low, high), (left, right) = cells[-2:]
                cells[-1] = (right, high) if cell >> (self.depth - known) & 1 else (low, left)
            for level in range(known, needed):
                left, right = cells[-1]
                middle = next(normals).add_(left, alpha=0.5).add_(right, alpha=0.5)
                cells.append((middle, right) if cell >> (self.depth - 1 - level) & 1 else (left, middle))
            torch.lerp(*cells[-1], u, out=w).add_(base)
            last = k, cell, needed
        self._way = last, cells
        inside = list(normals)
        for w, i, spread in zip(value.unbind(), descent.which, descent.spread, strict=True):
            if spread:
                w.add_(inside[i], alpha=spread)
        return value

    def _start(self, octave: int, origin: int) -> Tensor:
        """W(2^octave) over 2^(octave/2), from W = 0 at 2^origin."""
        k, w = origin, torch.zeros(self._numel, dtype=self._wide, device=self.device)
        known = self._base
        if known is not None and known[0] == origin and known[1] <= octave:
            _, k, w = known
        several = np.arange(k, octave)
        for n in self._nodes.scaled(several, several * 0, np.ones(len(several))):
            w = (w + n).mul_(0.5**0.5)
        self._base = origin, octave, w
        return w

    def _clock(self, name: str, times: Times) -> tuple[np.ndarray, bool]:
        """Times since t0, float64, and whether it was one number."""
        if isinstance(times, Tensor):
            times = times.detach().cpu()
        try:
            clock = np.asarray(times, dtype=np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number, or a list, array or tensor of numbers, got {times!r}") from None
        if clock.ndim > 1:
            raise ValueError(f"{name} must be a number or one axis of times, got the shape {clock.shape}")
        bad = ~(np.isfinite(clock) & (clock >= self.t0))
        if bad.any():
            raise ValueError(f"{name} must be finite and >= t0={self.t0}, got {clock[bad].flat[0]!r}")
        return np.atleast_1d(clock - self.t0), clock.ndim == 0


class _Descent:
    """What sorted times need of the trees: every middle that the time before them has not passed."""

    def __init__(self, octave: np.ndarray, place: np.ndarray, depth: int, last: tuple[int, int, int]) -> None:
        x = np.ldexp(place, depth)
        self.cell = np.floor(x).astype(np.int64)
        self.u = x - self.cell
        # The lowest bit of a cell's number is the level at whose middle the cell begins; 0 begins the octave.
        lowest = np.frexp(self.cell & -self.cell)[1] - 1
        needed = np.where(self.u > 0, depth, np.where(self.cell > 0, depth - lowest, 0))
        k, cell, reach = (np.concatenate([[one], rest[:-1]])
                          for one, rest in zip(last, (octave, self.cell, needed), strict=True))  # fmt: skip
        # Two cells lie in one down to the level where their numbers differ first.
        shared = depth - np.frexp(self.cell ^ cell)[1] + 1
        known = np.where(k == octave, np.minimum(np.minimum(shared, reach), needed), -1)  # -1: nor the octave
        new = needed - known
        levels = np.arange(new.sum()) - np.repeat(np.cumsum(new) - new - known, new)
        nodes = (1 << np.maximum(levels, 0)) + (np.repeat(self.cell, new) >> (depth - levels))
        # And the normal inside each finest cell that some time lies in, once.
        inside = self.u > 0
        first = inside & ((np.diff(self.cell, prepend=-1) != 0) | (k != octave) | (np.roll(self.u, 1) == 0))
        self.which = (np.cumsum(first) - 1).tolist()
        self.spread = np.sqrt(self.u * (1 - self.u) * 2.0**-depth).tolist()
        self.known, self.needed = known.tolist(), needed.tolist()
        self.octaves = np.concatenate([np.repeat(octave, new), octave[first]])
        self.nodes = np.concatenate([np.where(levels < 0, 0, nodes), (1 << depth) + self.cell[first]])
        self.scale = np.concatenate([np.where(levels < 0, 1.0, 2.0 ** (-levels / 2 - 1)), np.ones(first.sum())])
