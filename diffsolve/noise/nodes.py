r"""A normal per node of a tree, sample and element: Philox keys the node and the sample, SplitMix64 runs from there.

References:
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.noise.key import IN_NUMPY, Key, Stream, Word, philox

__all__ = ["CHUNK", "NodeNormals"]

GOLDEN, MIX = 0x9E3779B97F4A7C15, ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # of SplitMix64
BLOCK = 2**14  # words in flight: small enough for the caches of a CPU
CHUNK = 2**18  # normals in flight


class NodeNormals:
    """The normals of nodes (octave, number), as rows over the elements of all samples.

    Args:
        key: of the batch's rows.
        batch, inner: the number of samples, and of elements in each.
        dtype: float32 or float64.
    """

    def __init__(self, key: Key, batch: int, inner: int, dtype: torch.dtype, device: torch.device) -> None:
        self.key, self.batch, self.inner, self.dtype, self.device = key, batch, inner, dtype, device
        self.numel = batch * inner

    def scaled(self, octaves: np.ndarray, nodes: np.ndarray, scale: np.ndarray) -> Iterator[Tensor]:
        """The scaled normals of the nodes one by one, drawn some at a time."""
        starts = self.starts(octaves, nodes)
        step = max(1, CHUNK // max(self.numel, 1))
        for i in range(0, len(nodes), step):
            yield from self.normals(starts[i : i + step]).mul_(self.column(scale[i : i + step])).unbind()

    def normals(self, starts: Tensor) -> Tensor:
        """(n, B * inner): a normal per node and element, from `starts`.

        SplitMix64's word number e of a sample has 16 bits for each of the elements 4e .. 4e+3, lowest first: the
        number of a quantile.
        """
        words = -(-self.inner // 4)
        out = torch.empty(starts.numel(), self.inner, dtype=self.dtype, device=self.device)
        if not out.numel():
            return out.view(-1, self.numel)
        table = _quantiles(self.dtype, self.device)
        steps = _gammas(words, self.device)
        starts = starts.view(-1, 1)
        rows = min(max(1, BLOCK // words), len(out))
        if self.device.type not in IN_NUMPY:
            for i in range(0, len(out), rows):
                sixteen = _mix(starts[i : i + rows] + steps).view(torch.int16)[:, : self.inner]
                out[i : i + rows] = table[sixteen.long() & 0xFFFF]
            return out.view(-1, self.numel)
        z, place = np.empty((rows, words), np.uint64), np.empty((rows, self.inner), np.intp)  # once: fresh pages cost
        for i in range(0, len(out), rows):
            n = min(rows, len(out) - i)
            np.add(starts.numpy()[i : i + n].view(np.uint64), steps, out=z[:n])
            place[:n] = _mix(z[:n]).view(np.uint16)[:, : self.inner]
            np.take(table.numpy(), place[:n], out=out[i : i + n].numpy(), mode="clip")
        return out.view(-1, self.numel)

    def starts(self, octaves: np.ndarray, nodes: np.ndarray) -> Tensor:
        r"""(n, B): 64 bits per node and sample, where its SplitMix64 starts, as int64.

        .. math:: (r_0, r_1, \cdot, \cdot) = \mathrm{philox}\big((k \bmod 2^{32}, i, \mathrm{node},
                  \mathrm{stream}), s\big), \qquad r_0 + 2^{32} r_1,

        node 0 being the increment of octave k, and 2^l + j the normal of cell j of its level l.
        """
        out = torch.empty(len(nodes), self.batch, dtype=torch.int64, device=self.device)
        key, sample = self.key.words(0, self.batch, self.device)
        key, sample = [k if isinstance(k, int) else k.view(1, -1) for k in key], sample.view(1, -1)
        octave, node = (self.index(word.astype(np.int64) & 0xFFFFFFFF)[:, None] for word in (octaves, nodes))
        rows = max(1, BLOCK // self.batch)
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

    def index(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(self.device)

    def column(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self.dtype)[:, None]


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
