r"""Brownian paths that are a function of (seed, sample, element, time): nothing is stored or drawn sequentially.

The clock [0, inf) is cut into octaves [2^k, 2^{k+1}). Their increments are independent normals, and each octave is
refined by a binary tree of Brownian bridges: with :math:`W_l, W_r` at the ends of a cell of length h,

.. math:: W(l + u h) = (1 - u) W_l + u W_r + \sqrt{u (1 - u) h}\; n, \qquad n \sim N(0, 1),

where u = 1/2 gives the middle of each cell for `depth` levels, and u = the place of t ends the descent inside the
finest cell, of 2^-depth of its octave. So the resolution is relative to the time, over all its orders of magnitude.
Each n is keyed by its node, so it does not depend on earlier queries; a batch of times shares the nodes above them.

References:
    Levy, "Processus stochastiques et mouvement brownien", 1948 (the construction by midpoints).
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import integer, number
from diffsolve.noise.key import IN_NUMPY, Key, Stream, Word, philox, sizes_of

__all__ = ["Brownian", "Times"]

Times = float | Sequence[float] | np.ndarray | Tensor

GOLDEN, MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # of SplitMix64
WINDOW = {torch.float32: 52, torch.float64: 110}  # octaves below which a path is under half a unit of rounding
BLOCK = 2**14  # words in flight: small enough for the caches of a CPU
CHUNK = 2**18  # normals in flight
NOWHERE = -1 << 20, 0, 0  # in no octave of a float


class Brownian:
    r"""A standard Brownian path per element of `shape`: W(t0) = 0, increments N(0, t - s).

        w = ds.Brownian((64, 2), seed=0)
        w(0.5)                        # W(0.5), shape (64, 2)
        w(0.25, 0.5)                  # W(0.5) - W(0.25)
        w([0.1, 0.2], [0.2, 0.7])     # two increments, shape (2, 64, 2)

    Row i depends on (seed, index + i), or on its own seed, as in `ds.Key`; and the value at a time on that time
    alone, not on the batch, the shard, the number of steps or the order of queries, up to rounding. A flat shape and
    an image's are the same path, element by element.

    The law of any set of times is exactly Brownian if no two of them lie in one finest cell, that is, if they
    differ by more than 2^-depth relative to their distance from t0. Within a cell the path is continuous and
    smoother than Brownian. Each n is a normal rounded to 2^16 quantiles (the first and last beyond 4.3): sums of a
    path's many levels have no such limit.

    A query costs at most depth + 1 normals per time and element, and fewer where times share nodes, where a time is
    a multiple of a power of two, and along the nodes of the previous query, which are kept (depth + 1 tensors of
    `shape`, or of 1 MB each). Large batches of times are processed in chunks. One thread at a
    time may query a path; a path of the same seed in another thread has the same values.

    Args:
        shape: (B, *): the batch first.
        seed: an int, one per row, or a `ds.Key`, which may be antithetic or shared.
        index: the index of row 0 in the whole batch.
        t0: the time at which the path starts, in the unit of the queries; it has no end.
        depth: the finest cell is 2^-depth of its octave: 0 to 30.
        dtype: of the values. Half precision is computed in float32, float64 in float64 throughout.
        device: of the values. The normals are the same bits on every device.

    Raises:
        ValueError: if depth, t0, dtype, or the value of seed, index or shape is out of range.
        TypeError: if seed, index or shape is of the wrong kind.
    """

    levy_area_approximation = "none"
    """What torchsde reads of its `bm`: there are no Levy areas, so its methods "srk" and "log_ode" cannot be used."""

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
        self._numel, self._inner = math.prod(sizes), math.prod(sizes[1:])
        # Where the last query ended: (octave, cell, middles passed), the ends of the cells on the way there, and
        # (origin, octave, W) where the octave begins.
        self._last = NOWHERE
        self._cells: list[tuple[Tensor, Tensor]] = []
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
            return_U, return_A: torchsde's flags for Levy areas, which this path does not have: only False.

        Raises:
            ValueError: if a time is before t0 or not finite, or ta and tb differ in length.
            TypeError: if a time is not a number.
        """
        if return_U or return_A:
            name = "return_U" if return_U else "return_A"
            raise ValueError(
                "return_U and return_A must be False: a ds.Brownian has no Levy areas. Of torchsde's methods "
                "'euler', 'milstein', 'heun', 'midpoint', 'euler_heun' and 'reversible_heun' need none"
            )
        s, t = (None, ta) if tb is None else (ta, tb)
        return self._increments(s, t, lambda s, t: np.ones_like(t))

    def normal_between(self, s: Times, t: Times) -> Tensor:
        """(W(t) - W(s)) / sqrt(t - s): a standard normal for s < t, with the sign of W(t) - W(s) for s > t.

        Over disjoint intervals these are independent, and the increment over [s, u] is the sum of those over [s, t]
        and [t, u]: the noise of a long step is that of the short steps in it. Nothing overflows or underflows.

        Raises:
            ValueError: if an interval has length 0, and as in a call.
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
            unit = np.frexp(np.maximum(start, stop))[
                1
            ]  # each query in that of its own octave: none over- or underflows
            origin = low if len(into) == len(clock) else (low - WINDOW[self._wide]) // 64 * 64
            step = max(8, CHUNK // max(4 * self._numel, 1))
            for i in range(0, len(order), step):
                part, k = order[i : i + step], octave[i : i + step]
                w = self._values(k, np.ldexp(clock[part], -k) - 1, origin)
                weights = np.where(part < n, -1.0, 1.0) * np.exp2((k - unit[part % n]) / 2)
                out.index_add_(0, self._index(part % n), w.mul_(self._column(weights)))
            out.mul_(self._column(factor * np.exp2(unit / 2)))
        rows = out.view(n, self.shape[0], self._inner)
        self.key.flip(rows.transpose(0, 1))
        return out.to(self.dtype).view(self.shape if alone else (n, *self.shape))

    def _values(self, octave: np.ndarray, place: np.ndarray, origin: int) -> Tensor:
        """W at the times 2^k (1 + place), sorted, over 2^(k/2): from W = 0 at the octave `origin`."""
        last, self._last = self._last, NOWHERE  # until the end, should this be interrupted
        descent = _Descent(octave, place, self.depth, last)
        normals = self._rows(descent.octaves, descent.nodes, descent.scale)
        cells = self._cells
        base, zero = None, torch.zeros(self._numel, dtype=self._wide, device=self.device)
        value = zero.new_empty(len(octave), self._numel)
        for w, k, cell, u, known, needed in zip(
            value.unbind(),
            octave.tolist(),
            descent.cell.tolist(),
            descent.u.tolist(),
            descent.known,
            descent.needed,
            strict=True,
        ):
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
        self._last, self._cells = last, cells
        inside = list(normals)
        for w, i, spread in zip(value.unbind(), descent.which, descent.spread, strict=True):
            if spread:
                w.add_(inside[i], alpha=spread)
        return value

    def _rows(self, octaves: np.ndarray, nodes: np.ndarray, scale: np.ndarray) -> Iterator[Tensor]:
        """The scaled normals of the nodes one by one, drawn in chunks."""
        starts = self._starts(octaves, nodes)
        step = max(1, CHUNK // max(self._numel, 1))
        for i in range(0, len(nodes), step):
            yield from self._normals(starts[i : i + step]).mul_(self._column(scale[i : i + step])).unbind()

    def _start(self, octave: int, origin: int) -> Tensor:
        """W(2^octave) over 2^(octave/2), from W = 0 at 2^origin."""
        k, w = origin, torch.zeros(self._numel, dtype=self._wide, device=self.device)
        if self._base is not None and self._base[0] == origin and self._base[1] <= octave:
            _, k, w = self._base
        several = np.arange(k, octave)
        for n in self._rows(several, several * 0, np.ones(len(several))):
            w = (w + n).mul_(0.5**0.5)
        self._base = origin, octave, w
        return w

    def _normals(self, starts: Tensor) -> Tensor:
        """(n, B * inner): a normal per node and element, from `_starts`.

        SplitMix64's word number e of a sample has 16 bits for each of the elements 4e .. 4e+3, lowest first: the
        number of a quantile.
        """
        words = -(-self._inner // 4)
        out = torch.empty(starts.numel(), self._inner, dtype=self._wide, device=self.device)
        if not out.numel():
            return out.view(-1, self._numel)
        table = _quantiles(self._wide, self.device)
        steps = _gammas(words, self.device)
        starts = starts.view(-1, 1)
        rows = min(max(1, BLOCK // words), len(out))
        if self.device.type not in IN_NUMPY:
            for i in range(0, len(out), rows):
                sixteen = _mix(starts[i : i + rows] + steps).view(torch.int16)[:, : self._inner]
                out[i : i + rows] = table[sixteen.long() & 0xFFFF]
            return out.view(-1, self._numel)
        z, place = np.empty((rows, words), np.uint64), np.empty((rows, self._inner), np.intp)  # once: fresh pages cost
        for i in range(0, len(out), rows):
            n = min(rows, len(out) - i)
            np.add(starts.numpy()[i : i + n].view(np.uint64), steps, out=z[:n])
            place[:n] = _mix(z[:n]).view(np.uint16)[:, : self._inner]
            np.take(table.numpy(), place[:n], out=out[i : i + n].numpy(), mode="clip")
        return out.view(-1, self._numel)

    def _starts(self, octaves: np.ndarray, nodes: np.ndarray) -> Tensor:
        r"""(n, B): 64 bits per node and sample, where its SplitMix64 starts, as int64.

        .. math:: (r_0, r_1, \cdot, \cdot) = \mathrm{philox}\big((k \bmod 2^{32}, i, \mathrm{node},
                  \mathrm{stream}), s\big), \qquad r_0 + 2^{32} r_1,

        node 0 being the increment of octave k, and 2^l + j the normal of cell j of its level l.
        """
        out = torch.empty(len(nodes), self.shape[0], dtype=torch.int64, device=self.device)
        key, sample = self.key.words(0, self.shape[0], self.device)
        key, sample = [k if isinstance(k, int) else k.view(1, -1) for k in key], sample.view(1, -1)
        octave, node = (self._index(word.astype(np.int64) & 0xFFFFFFFF)[:, None] for word in (octaves, nodes))
        rows = max(1, BLOCK // self.shape[0])
        arrays = self.device.type in IN_NUMPY
        for i in range(0, len(out), rows):
            counter: list[Word] = [octave[i : i + rows], sample, node[i : i + rows], int(Stream.BROWNIAN)]
            into: Any = out[i : i + rows]
            if arrays:
                into = into.numpy()
                counter, key = ([w.numpy() if isinstance(w, Tensor) else w for w in ws] for ws in (counter, key))
            low, high, _, _ = philox(counter, key)
            into[...] = low | (high << 32)
        return out

    def _clock(self, name: str, times: Times) -> tuple[np.ndarray, bool]:
        """Times since t0, float64, and whether a single number was given."""
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

    def _index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.device)

    def _column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self._wide)[:, None]


class _Descent:
    """The nodes that sorted times need: every middle that the previous time has not passed."""

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


def _mix(z: Word) -> Word:
    """SplitMix64's output function of 64-bit words in an uint64 array or an int64 tensor, in place."""
    for shift, factor in MIX:
        if isinstance(z, Tensor):  # its shift copies the sign, which the mask removes
            z ^= (z >> shift) & ((1 << (64 - shift)) - 1)
            z *= _signed(factor)
        else:
            z ^= z >> np.uint64(shift)
            if factor != 1:
                z *= np.uint64(factor)
    return z


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


@lru_cache(maxsize=8)
def _gammas(words: int, device: torch.device) -> Any:
    steps = np.arange(1, words + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    return steps if device.type in IN_NUMPY else torch.from_numpy(steps.view(np.int64)).to(device)


@lru_cache(maxsize=8)
def _quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The normal quantiles of (k + 1/2) / 2^16, scaled to variance 1."""
    upper = torch.special.ndtri((torch.arange(2**15, 2**16, dtype=torch.float64, device="cpu") + 0.5) / 2**16)
    upper /= upper.square().mean().sqrt()
    return torch.cat([-upper.flip(0), upper]).to(device, dtype)
