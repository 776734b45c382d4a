r"""Gaussian noise that is a function of (seed, sample, row, stream, element), with no state at all.

A counter-based generator has nothing to advance: each draw encrypts its own address. A sample therefore
sees the same noise alone, in a batch, on one shard of eight, or in a run resumed half-way, and PyTorch's
global random state is neither read nor written.

References:
    Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox).
    Box and Muller, "A note on the generation of random normal deviates", Ann. Math. Statist. 29, 1958.
"""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve import native
from diffsolve.common.checks import described, instance, required

__all__ = ["Draw", "Key", "SeedLike", "Stream", "philox"]

MASK = 0xFFFFFFFF
M0, M1 = 0xD2511F53, 0xCD9E8D57  # the multipliers of Philox 4x32
W0, W1 = 0x9E3779B9, 0xBB67AE85  # its Weyl steps: the golden ratio and sqrt(3) - 1

IN_NUMPY = {"cpu"}  # where the integers are computed in NumPy: the same, at half the cost of PyTorch's calls

Word = Any  # 32 bits, held in a Python int, an int64 tensor or an int64 array


class Stream(IntEnum):
    """What a draw is for: the last counter word, so that different uses never share a number.

    The values are part of what a seed means. Append new ones; never renumber.
    """

    PRIOR = 0  # the sample at the noise end
    ROW = 1  # the noise of a tableau's row
    BROWNIAN = 2  # a Brownian path: counter (octave, sample, node)
    LANGEVIN = 3  # a Langevin step
    ACCEPT = 4  # the uniform of a Metropolis test
    PROBE = 5  # a direction in which a divergence is estimated
    DEQUANTISE = 6  # where in its bin an integer value stands
    TRAIN_NOISE = 7  # the noise of a training sample; the row is the step
    TRAIN_TIME = 8  # where the times of a training batch begin
    TRAIN_DROP = 9  # whether a training sample loses its condition
    TRAIN_COUPLE = 10  # with which noise of its batch a training sample is paired
    DISTILL = 11  # which stretches a student learns, and the scale of guidance that it is told


_STREAMS = tuple(Stream)


def philox(counter: Sequence[Word], key: Sequence[Word], rounds: int = 10) -> tuple[Word, Word, Word, Word]:
    r"""Philox 4x32: four uniform 32-bit words from a counter of four words and a key of two.

    A round maps, with :math:`(h_j, l_j)` the high and low words of a 64-bit product,

    .. math:: (h_0, l_0) = M_0 c_0, \quad (h_1, l_1) = M_1 c_2, \qquad
              c \leftarrow (h_1 \oplus c_1 \oplus k_0,\; l_1,\; h_0 \oplus c_3 \oplus k_1,\; l_0),

    after which the key moves on by :math:`(W_0, W_1)`.

    Args:
        counter: four words, ints or int64 tensors (or arrays) that broadcast. The first and the third are
            multiplied, so beside tensors these two must be tensors too: only those wrap.
        key: two words, likewise.
        rounds: 10 is the published safety margin; 7 already pass BigCrush.

    References: Salmon et al. 2011, section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # An int64 product wraps, which keeps its 64 bits; the shift smears its sign over the high word,
        # and the mask removes that. The low words stay unmasked: they are only xored, under the next mask.
        p0, p1 = c0 * M0, c2 * M1
        c0, c1 = ((p1 >> 32) ^ c1 ^ k0) & MASK, p1
        c2, c3 = ((p0 >> 32) ^ c3 ^ k1) & MASK, p0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1 & MASK, c2, c3 & MASK


@dataclass(frozen=True)
class Key:
    r"""The identity of each row of a batch, which its noise is a function of.

    Args:
        seed: an int (row i of the batch is keyed (seed, index + i)), or a sequence or 1-D integer tensor of
            ints, one per row (row i is keyed (seed_i, 0)). Each in [0, 2**64).
        index: the index of row 0 of this shard in the whole batch; 0 where every row has its own seed.
        antithetic: rows 2j and 2j + 1 of the whole batch have opposite noise, that of row 2j. Averages of odd
            functions of the noise are then exact in each pair; their variance is smaller for monotone ones.
        shared: every row has the noise of row 0. With both, that of row 0 and its opposite in turn.

    The seed s and the seeds (s,) name the same first row. Antithetic and shared rows need an int seed: with one
    seed per row the seeds alone decide which rows agree.

    Raises:
        ValueError: if a seed or the index is out of range, or an option does not go with one seed per row.
        TypeError: if an argument is of the wrong kind.
    """

    seed: int | Sequence[int]
    index: int = 0
    antithetic: bool = False
    shared: bool = False

    def __post_init__(self) -> None:
        seed: Any = self.seed
        if hasattr(seed, "tolist"):  # a tensor or an array
            seed = seed.tolist()
        if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
            seed = tuple(_integer(f"seed[{i}]", s, 2**64) for i, s in enumerate(seed))
        else:
            seed = _integer("seed", seed, 2**64, "an integer, or one per row,")
        index = _integer("index", self.index, 2**32)
        if index and isinstance(seed, tuple):
            raise ValueError(f"index must be 0 with one seed per row, which alone keys the row, got {index}")
        for name in ("antithetic", "shared"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise TypeError(f"{name} must be True or False, got {described(value)}")
            if value and isinstance(seed, tuple):
                raise ValueError(f"{name} must be False with one seed per row, which alone keys the row, got True")
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "index", index)

    @classmethod
    def of(cls, seed: SeedLike | None, index: int = 0) -> Key:
        """The key that a `seed` argument and an `index` mean.

        Args:
            seed: an integer of Python, NumPy or torch; one for each row, as a sequence, an array or a tensor; a
                `torch.Generator`, or one for each row, from which a seed is drawn, so that it advances as it does with
                torch's own functions; None, for a random seed; or a Key, which is returned as it is.
        """
        if isinstance(seed, Key):
            if index:
                raise ValueError(f"index must be 0 with seed={seed}, which has its own, got {index}")
            return seed
        if seed is None:
            return cls(secrets.randbits(63), index)
        if isinstance(seed, torch.Generator):
            return cls(_drawn(seed), index)
        if isinstance(seed, Sequence) and any(isinstance(one, torch.Generator) for one in seed):
            return cls([_drawn(one) if isinstance(one, torch.Generator) else one for one in seed], index)
        return cls(seed, index)  # type: ignore[arg-type]  # which takes what has `tolist`

    def normal(
        self,
        shape: Sequence[int],
        *,
        row: int = 0,
        stream: Stream = Stream.PRIOR,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        r"""Standard normals of `shape`, whose first axis is the batch.

        Elements 4e .. 4e+3 of sample i (flat within the sample) come from one block of four words,

        .. math:: r &= \mathrm{philox}\big((e, i, \mathrm{row}, \mathrm{stream}),
                       (s \bmod 2^{32}, \lfloor s / 2^{32} \rfloor)\big), \\
                  u_j &= (\lfloor r_j / 2^8 \rfloor + \tfrac12)\, 2^{-24}, \\
                  (n_{4e+j}, n_{4e+j+1}) &= \sqrt{-2 \ln u_j}\; (\cos 2\pi u_{j+1}, \sin 2\pi u_{j+1}),
                       \qquad j = 0, 2,

        in float32, then cast. The integers are the same everywhere, the normals agree to the rounding of log, sin
        and cos: on every device, and on a CPU with the compiled loop (`native`) and without it. Since u >= 2**-25,
        none exceeds sqrt(50 ln 2) = 5.89; nothing is clipped.

        Args:
            shape: (B, *); one seed per row means B seeds.
            row: the row of the tableau, or any other count of draws, in [0, 2**32).
            stream: what the draw is for.
            dtype: a real floating type; float32, or that of `out`.
            device: the CPU, or that of `out`.
            out: a tensor of this shape to write to; if it is not contiguous, through one that is.

        Raises:
            ValueError: if an argument is out of range, or does not fit the shape or `out`.
            TypeError: if row or shape is of the wrong kind.
        """
        batch, *inner = sizes = sizes_of(shape)
        size = math.prod(inner)
        counters = -(-size // 4)
        if counters > 2**32:
            raise ValueError(f"shape must have at most 2**34 elements in a sample, got {tuple(sizes)}")
        self.check(sizes)
        row = _integer("row", row, 2**32)
        if stream not in _STREAMS:
            raise ValueError(f"stream must be one of {', '.join(map(str, Stream.__members__))}, got {stream!r}")
        out = _destination(sizes, dtype, device, out)

        whole = out if out.is_contiguous() else torch.empty(sizes, dtype=out.dtype, device=out.device)
        flat = whole.view(batch, size)
        if not self._compiled(flat, row, stream):
            self._blocks(flat, row, stream)
        self.flip(flat)
        return out if whole is out else out.copy_(whole)

    def _compiled(self, flat: Tensor, row: int, stream: int) -> bool:
        """Whether the compiled loop could write the normals to (B, size)."""
        loops = native.library() if flat.device.type == "cpu" and native.is_plain(flat) else None
        if loops is None:
            return False
        into = flat if flat.dtype == torch.float32 else torch.empty_like(flat, dtype=torch.float32)
        seeds, who = self.address()
        loops.fill(native.record(*flat.shape, native.threads(flat.numel()), *who, row, int(stream), into.data_ptr()))
        del seeds  # they had to stay until now
        native.mark_mutated(into)
        if into is not flat:
            flat.copy_(into)
        return True

    def _blocks(self, flat: Tensor, row: int, stream: int) -> None:
        """The normals into (B, size), by NumPy or torch."""
        batch, size = flat.shape
        counters = -(-size // 4)
        # A block is `depth` samples of `width` counters: on a CPU small enough for the caches, elsewhere
        # large enough to hide the launches. About 100 bytes of scratch per counter.
        block = 2**14 if flat.device.type == "cpu" else 2**18
        width = min(max(counters, 1), block)
        depth = block // width
        for i in range(0, batch, depth):
            key, sample = self.words(i, min(i + depth, batch), flat.device)
            for e in range(0, counters, width):
                n = _normals(key, (e, min(e + width, counters)), sample, row, stream)
                flat[i : i + depth, 4 * e : 4 * (e + width)] = n[:, : size - 4 * e]

    def address(self) -> tuple[Tensor | None, tuple[int, int, int, int]]:
        """The rows' seeds, if each has one, and (seed, where they are, sample of row 0, mask on the sample)."""
        if isinstance(self.seed, int):
            mask = 0 if self.shared else ~1 if self.antithetic else -1
            return None, (signed(self.seed), 0, self.index, mask)
        seeds = seeds_on(tuple(self.seed), torch.device("cpu"))
        return seeds, (0, seeds.data_ptr(), 0, 0)

    def check(self, sizes: Sequence[int]) -> None:
        """Raise a ValueError unless there is a key for every row of a batch of this shape."""
        if isinstance(self.seed, int):
            if self.index + sizes[0] > 2**32:
                raise ValueError(f"index must be <= 2**32 - rows, got {self.index} with {sizes[0]} rows")
        elif len(self.seed) != sizes[0]:
            raise ValueError(f"seed must be one, or {sizes[0]} for shape={tuple(sizes)}, got {len(self.seed)}")

    def flip(self, x: Tensor) -> None:
        """Flip the sign of the rows whose noise is opposite to that of the previous row."""
        if self.antithetic:
            x[1 - self.index % 2 :: 2].neg_()

    def words(self, start: int, stop: int, device: torch.device) -> tuple[Sequence[Word], Tensor]:
        """The key and the sample word of rows start .. stop-1, each an int or a column."""
        if isinstance(self.seed, int):
            first = self.index + start
            sample = torch.arange(first, first + stop - start, device=device)[:, None]
            if self.shared:
                sample.zero_()
            elif self.antithetic:
                sample.bitwise_and_(~1)
            return _split(self.seed), sample
        k0, k1 = _columns(tuple(self.seed), device)
        return (k0[start:stop], k1[start:stop]), torch.zeros(1, 1, dtype=torch.int64, device=device)


SeedLike = int | Sequence[int] | np.ndarray | Tensor | torch.Generator | Sequence[torch.Generator] | Key
"""What `seed=` accepts everywhere, None aside: see `Key.of`."""


@dataclass(frozen=True)
class Draw:
    """Noise not yet drawn: a kernel generates it as it goes, torch by `tensor`."""

    key: Key
    row: int
    stream: Stream

    @property
    def plain(self) -> bool:
        """Whether the key is a seed and index only: such draws can be made in a kernel."""
        return not (self.key.antithetic or self.key.shared)

    def address(self) -> tuple[Tensor | None, tuple[int, int, int, int, int, int]]:
        """Of a plain draw: the rows' seeds, if each has one, and the six words that the compiled loop knows it by."""
        seeds, who = self.key.address()
        return seeds, (*who, self.row, int(self.stream))

    def tensor(self, like: Tensor) -> Tensor:
        """The normals, of the shape, dtype and device of `like`."""
        return self.key.normal(like.shape, row=self.row, stream=self.stream, dtype=like.dtype, device=like.device)


def _drawn(generator: torch.Generator) -> int:
    """A seed drawn from a generator, which advances."""
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _normals(key: Sequence[Word], elements: tuple[int, int], sample: Tensor, row: int, stream: int) -> Tensor:
    """The normals of counters elements[0] .. elements[1]-1, four each, for a column of samples."""
    device = sample.device
    element = torch.arange(*elements, dtype=torch.int64, device=device)
    # The row is a tensor, not an int: M1 * row needs 64 bits, and only an int64 tensor wraps.
    counter: list[Word] = [element, sample, torch.full_like(element[:1], row), int(stream)]
    arrays = device.type in IN_NUMPY and type(element) is Tensor and not torch.compiler.is_compiling()
    if arrays:
        counter, key = ([w.numpy() if isinstance(w, Tensor) else w for w in ws] for ws in (counter, key))
    words = philox(counter, key)

    # (r0, r2) and (r1, r3) side by side: per pair a radius, and an angle. The transcendentals run on
    # contiguous memory, where an element's bits do not depend on its place (a test holds this).
    u = torch.empty(2, *words[0].shape, 2, dtype=torch.float32, device=device)
    slots: Any = u.numpy() if arrays else u
    for j, r in enumerate(words):
        slots[j % 2, ..., j // 2] = r >> 8
    u += 0.5  # rounds to an even integer above 2**23: u may be 1, which is the normal 0
    radius = u[0].mul_(2**-24).log_().mul_(-2).sqrt_()
    angle = u[1].mul_(2 * math.pi * 2**-24)
    return torch.stack((angle.cos().mul_(radius), angle.sin_().mul_(radius)), -1).flatten(1)


@lru_cache(maxsize=16)  # the copy to a device waits for it: once per set of seeds, not once per draw
def seeds_on(seeds: tuple[int, ...], device: torch.device) -> Tensor:
    """Seeds as int64 on a device, bit for bit."""
    return torch.tensor([signed(s) for s in seeds], dtype=torch.int64, device=device)


def signed(seed: int) -> int:
    return seed - 2**64 if seed >= 2**63 else seed


def _split(seed: int) -> tuple[int, int]:
    return seed & MASK, seed >> 32


@lru_cache(maxsize=16)  # the copy to a device waits for it: once per set of seeds, not once per draw
def _columns(seeds: tuple[int, ...], device: torch.device) -> Tensor:
    """The two key words of each seed, with shape (2, B, 1)."""
    words = torch.tensor([_split(s) for s in seeds], dtype=torch.int64, device="cpu").view(-1, 2)
    return words.T[..., None].contiguous().to(device)


def _integer(name: str, value: Any, stop: int, accepted: str = "an integer") -> int:
    accepted = f"{accepted} in [0, 2**{stop.bit_length() - 1})"
    try:
        if isinstance(value, (bool, Tensor)):  # a Tensor of one element, even True, passes for an index
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {accepted}, got {described(value)}") from None
    required(0 <= number < stop, name, value, accepted)
    return number


def sizes_of(shape: Any) -> list[int]:
    instance("shape", shape, Sequence, "a tuple of integers")
    required(bool(shape), "shape", shape, "at least the batch axis")
    return [_integer(f"shape[{i}]", n, 2**63) for i, n in enumerate(shape)]


def _destination(
    sizes: list[int], dtype: torch.dtype | None, device: torch.device | str | None, out: Tensor | None
) -> Tensor:
    if out is None:
        out = torch.empty(sizes, dtype=dtype or torch.float32, device=device or "cpu")
    elif list(out.shape) != sizes:
        raise ValueError(f"out must be of the shape {tuple(sizes)}, got {tuple(out.shape)}")
    elif dtype not in (None, out.dtype):
        raise ValueError(f"dtype must be None or that of out, {out.dtype}, got {dtype}")
    elif device is not None and torch.empty(0, device=device).device != out.device:
        raise ValueError(f"device must be None or that of out, {out.device}, got {device}")
    if not out.dtype.is_floating_point:
        raise ValueError(f"dtype must be a real floating type, got {out.dtype}")
    return out
