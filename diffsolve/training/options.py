"""The options of `fit`, declared once, and what is made of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import TypedDict

from diffsolve.common.checks import integer, mapping, number
from diffsolve.common.files import dumps, parsed
from diffsolve.common.fingerprint import describe
from diffsolve.models import Model
from diffsolve.training import average, schedule
from diffsolve.training.average import Average
from diffsolve.training.objective import objective as regression
from diffsolve.training.schedule import Schedule

__all__ = ["DEFAULTS", "FitOptions", "Look", "Loss", "Settings"]

Loss = Callable[..., tuple[Tensor, Any]]
"""loss(model, x0, *, cond, seed, step, index) -> (the loss of each sample (B,), anything)."""
Look = Callable[[Model, int], None]
"""look(model with the averaged weights, step)."""


class FitOptions(TypedDict, total=False):
    """The options of `ds.training.fit`, documented there."""

    steps: int
    batch: int
    lr: float
    seed: int
    noise: Any
    objective: Mapping[str, Any] | Loss | None
    ema: float | Average
    schedule: str | Schedule
    optimizer: Callable[..., torch.optim.Optimizer]
    clip: float | None
    accumulate: int
    autocast: torch.dtype | None
    parallel: Callable[[nn.Module], nn.Module]
    workers: int
    dtype: torch.dtype | None
    note: Mapping[str, Any] | None
    log: str | os.PathLike[str] | None
    look: Look | None
    minutes: float | None
    checkpoint_every: float
    resume: bool
    progress: bool


DEFAULTS: dict[str, Any] = {
    "steps": 20_000,
    "batch": 128,
    "lr": 2e-3,
    "seed": 0,
    "ema": 0.999,
    "schedule": "cosine",
    "optimizer": torch.optim.AdamW,
    "clip": 1.0,
    "accumulate": 1,
    "parallel": DistributedDataParallel,
    "workers": 0,
    "checkpoint_every": 30.0,
    "resume": True,
    "progress": False,
}
"""Of the options whose default is not None."""


@dataclass(frozen=True)
class Settings:
    """What decides the weights, checked."""

    steps: int
    batch: int
    lr: float
    seed: int
    loss: Loss
    ema: Average
    schedule: Schedule
    optimizer: Callable[..., torch.optim.Optimizer]
    clip: float | None
    accumulate: int
    autocast: torch.dtype | None
    parallel: Callable[[nn.Module], nn.Module]
    config: Mapping[str, Any]
    """What a checkpoint, a log and the weights' note must agree on, as JSON values."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Settings:
        """Those of all options of `fit`.

        Raises:
            ValueError: if one is out of range.
            TypeError: if one is of another kind.
        """
        given = options["objective"]
        objective = given if callable(given) else mapping("objective", given)
        settings = cls(
            steps=integer("steps", options["steps"], 1),
            batch=integer("batch", options["batch"], 1),
            lr=number("lr", options["lr"], above=0),
            seed=integer("seed", options["seed"], 0, 2**64 - 1),
            loss=objective if callable(objective) else partial(regression, **objective),
            ema=average.named(options["ema"]),
            schedule=schedule.named(options["schedule"]),
            optimizer=options["optimizer"],
            clip=None if options["clip"] is None else number("clip", options["clip"], above=0),
            accumulate=integer("accumulate", options["accumulate"], 1),
            autocast=options["autocast"],
            parallel=options["parallel"],
            config={},
        )
        names = ("steps", "batch", "lr", "seed", "ema", "schedule", "optimizer", "clip", "accumulate", "autocast")
        about = {name: describe(getattr(settings, name)) for name in names}
        return replace(settings, config={**about, "objective": describe(objective)})

    def about(self, model: Model, data: Any) -> Settings:
        """With what is trained, and on what, in the `config`."""
        config = {**self.config, "path": str(model.path), "predicts": model.predicts, "data": describe(data)}
        return replace(self, config=parsed(dumps(config)))  # as they are read from a file
