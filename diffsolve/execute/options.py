"""The options of a run on a fixed grid; `diffsolve.api.options` adds those of other drivers."""

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
    """A diffusers pipeline, identified for type checkers by its method `from_pretrained`."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any: ...


ModelLike = Model | nn.Module | Pipeline
"""A Model, or an object that `ds.adapt` converts: a pipeline, or a network that knows its path and prediction."""


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
