"""The options of a run on a fixed grid, written down once; `diffsolve.api.options` adds the other ways of running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import TypedDict

from diffsolve.execute.executor import BrownianPath, State
from diffsolve.execute.plan import GridLike
from diffsolve.models import Model
from diffsolve.noise import SeedLike
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["BeginOptions", "ModelLike", "Pipeline", "Shape", "StartOptions"]

Shape = Sequence[int]


class Pipeline(Protocol):
    """A diffusers pipeline, by the method that loads it: all that type checkers see of one."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any: ...


ModelLike = Model | nn.Module | Pipeline
"""A Model, or what `ds.adapt` takes alone: a pipeline, or a network that knows its path and prediction."""


class StartOptions(TypedDict, total=False):
    """Where a run starts, and on what grid."""

    noise: Tensor | None
    steps: int | None
    nfe: int | None
    grid: GridLike | None
    seed: SeedLike | None
    index: int
    start: float | None
    stop: float | None
    state: State | None
    brownian: BrownianPath | None
    dtype: torch.dtype | None
    device: str | torch.device | None


class BeginOptions(StartOptions, total=False):
    """The options of `ds.begin`."""

    solver: str | Solver | Tableau
    guidance: float
    prediction: str | None
