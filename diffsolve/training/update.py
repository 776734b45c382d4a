"""What one update of a training is made of: a batch, its conditions, and everything random by (seed, step, sample)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import integer, mapping, number, required
from diffsolve.common.tensors import per_sample
from diffsolve.models import Model
from diffsolve.noise import Key, Stream

__all__ = ["Update", "check_drop"]

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it are the most even sequence in (0, 1) that grows by one: as times of a batch of any size."""


@dataclass(frozen=True)
class Update:
    """A batch, and its random numbers, each a function of (seed, step, index + i)."""

    x0: Tensor
    """(B, ...), data."""
    cond: Mapping[str, Any]
    seed: int
    step: int
    index: int
    """The number of the first sample."""
    given: Tensor | None = None
    """(B, ...), the other end of each pair, in place of a drawn one."""

    @classmethod
    def of(
        cls,
        model: Model,
        x0: Tensor,
        cond: Mapping[str, Any] | None,
        seed: int,
        step: int,
        index: int,
        noise: Tensor | None,
        name: str = "model",
    ) -> Update:
        """The update of a model, which an error calls by the name.

        Raises:
            ValueError: if a number is out of range or a shape does not fit.
            TypeError: if x0 is not floating, or the model is no Model.
        """
        required(isinstance(model, Model), name, model, "a Model, of ds.adapt(net, path, predicts)", TypeError)
        floating = isinstance(x0, Tensor) and x0.is_floating_point()
        required(floating, "x0", x0, "a floating tensor", TypeError)
        required(x0.dim() > 0 and len(x0) > 0, "x0", x0, "of shape (B, ...) with at least one sample")
        integer("seed", seed)
        integer("step", step, 0, 2**32 - 1)
        if noise is not None:
            fits = isinstance(noise, Tensor) and noise.shape == x0.shape
            required(fits, "noise", noise, f"a tensor of the shape of x0, {tuple(x0.shape)}")
        return cls(x0, mapping("cond", cond), seed, step, integer("index", index, 0), noise)

    @cached_property
    def noise(self) -> Tensor:
        """(B, ...): the given ones, or normals like x0."""
        return self.normal(Stream.TRAIN_NOISE) if self.given is None else self.given

    def normal(self, stream: Stream) -> Tensor:
        """(B, ...): normals like x0."""
        key, like = Key.of(self.seed, self.index), self.x0
        return key.normal(like.shape, row=self.step, stream=stream, dtype=like.dtype, device=like.device)

    def uniform(self, stream: Stream, *columns: int) -> Tensor:
        """(B, *columns): numbers in (0, 1), float64."""
        return _uniform(Key.of(self.seed, self.index), (len(self.x0), *columns), self.step, stream)

    def even(self, stream: Stream) -> Tensor:
        """(B,): numbers in [0, 1), float64, even over the batch from a random beginning, the same on all ranks."""
        start = float(_uniform(Key.of(self.seed), (1,), self.step, stream))
        return (start + GOLDEN * torch.arange(self.index, self.index + len(self.x0), dtype=torch.float64)) % 1

    def conditions(self, drop: float, uncond: Mapping[str, Any] | None) -> dict[str, Any]:
        """The conditions, those of a share `drop` of the samples replaced by `uncond`.

        Raises:
            ValueError: if one that is to be replaced has no row per sample.
        """
        conditions = dict(self.cond)
        if not drop:
            return conditions
        lost = self.uniform(Stream.TRAIN_DROP) < drop
        for name, null in (uncond or {}).items():
            value = conditions.get(name)
            rows = isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(self.x0)
            required(rows, f"cond[{name!r}]", value, f"a tensor of {len(self.x0)} rows, to drop some of them")
            assert isinstance(value, Tensor)
            null = torch.as_tensor(null, dtype=value.dtype, device=value.device)
            conditions[name] = torch.where(per_sample(lost.to(value.device), value), null, value)
        return conditions


def check_drop(drop: float, uncond: Mapping[str, Any] | None) -> None:
    """Check the share of dropped conditions, and that there is something in their place."""
    number("drop", drop, low=0, high=1)
    required(not drop or bool(uncond), "uncond", uncond, f"given with drop={drop}, what takes a condition's place")


def _uniform(key: Key, shape: tuple[int, ...], step: int, stream: Stream) -> Tensor:
    uniform: Tensor = torch.special.ndtr(key.normal(shape, row=step, stream=stream, dtype=torch.float64))
    return uniform
