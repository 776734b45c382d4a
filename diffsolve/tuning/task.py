"""What is learned from: the noises, the accurate run's ends, and which of them are for what."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve.models import Model
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import World
from diffsolve.tuning.distributions import Distribution
from diffsolve.tuning.losses import Loss
from diffsolve.tuning.runs import Noises, dealt, executed, held_out

__all__ = ["Measured", "Task"]

GROUPS = 8
"""Of the jackknife, for the error of a loss of whole sets."""
MOST = 50.0
"""How many times the median a noise counts at most where runs are compared: a flip in a hundred is half of it all."""


class Measured(NamedTuple):
    """A mean over noises with its standard error."""

    value: float
    stderr: float

    @classmethod
    def of(cls, values: Tensor) -> Measured:
        """Of one value per noise."""
        value = float(values.mean())
        known = len(values) > 1 and math.isfinite(value)
        return cls(value, float(values.std()) / math.sqrt(len(values)) if known else math.nan)

    def __str__(self) -> str:
        return f"{self.value:.2e} ± {self.stderr:.0e}"


@dataclass
class Task:
    """Runs to be held against the accurate ones.

    The last of the noises are held out: half of them to choose what is best, the others, which no choice depends on, to
    say how good it is. Of a single one both.
    """

    model: Model
    noises: Noises
    ends: Tensor
    loss: Loss
    batch: int
    seed: int
    settings: Mapping[str, Any]
    """The options of `ds.tune`; here only `held_out`."""
    ranks: World = field(default_factory=World)
    """The processes that share the noises."""
    learning: Tensor = field(init=False)
    """The indices of the noises to learn from;"""
    choosing: Tensor = field(init=False)
    """to choose by;"""
    unseen: Tensor = field(init=False)
    """and to report on."""
    calls: int = 0
    """Network calls so far, summed over the samples."""
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        count = len(self.noises.x)
        held = held_out(count, self.settings["held_out"])
        self.learning, rest = torch.arange(count - held), torch.arange(count - held, count)
        self.choosing, self.unseen = (rest, rest) if held == 1 else (rest[: held // 2], rest[held // 2 :])

    def few(self, most: int) -> Task:
        """The same with at most so many noises to learn from, and to choose by."""
        task = replace(self)
        task.learning, task.choosing = self.learning[:most], self.choosing[:most]
        return task

    def errors(self, tableau: Tableau, index: Tensor) -> Tensor:
        """The loss of each of these noises, float64, infinite where it is not a number.

        Of a `Distribution` the jackknife's pseudo-values G L - (G - 1) L_g, with L_g the loss without one of G groups:
        their mean is the loss without its bias of order 1 / n, and their scatter its error.
        """
        if isinstance(self.loss, Distribution):
            return self._pseudo_values(self.run(tableau, index), self.ends[index.to(self.ends.device)])
        found = torch.zeros(len(index), dtype=torch.float64)
        for _, place, some in dealt(index, self.batch, self.ranks):
            x = executed(self.model, tableau, self.noises.some(some))
            found[place] = self.loss(x, self.ends[some.to(x.device)]).detach().cpu().double()
        self.calls += tableau.nfe * len(index)
        return self.ranks.summed(found, self.ends.device).nan_to_num(nan=math.inf, posinf=math.inf)

    def run(self, tableau: Tableau, index: Tensor) -> Tensor:
        """The ends (n, ...) of these noises, on all ranks."""
        x = torch.zeros_like(self.ends[index.to(self.ends.device)])
        for _, place, some in dealt(index, self.batch, self.ranks):
            x[place] = executed(self.model, tableau, self.noises.some(some))
        self.calls += tableau.nfe * len(index)
        return self.ranks.summed(x, x.device)

    def _pseudo_values(self, x: Tensor, ends: Tensor) -> Tensor:
        G = min(GROUPS, len(x) // 2)
        groups = torch.arange(len(x), device=x.device) * G // len(x)
        kept = [torch.ones_like(groups, dtype=torch.bool), *(groups != g for g in range(G))][: G + 1 if G > 1 else 1]
        all_of, *without = (self.loss(x[some], ends[some]).detach().cpu().double() for some in kept)
        values = torch.stack([G * all_of - (G - 1) * one for one in without] if without else [all_of])
        return values.nan_to_num(nan=math.inf, posinf=math.inf)

    def error(self, tableau: Tableau, index: Tensor) -> float:
        """Their mean."""
        return float(self.errors(tableau, index).mean())

    def verdict(self, tableau: Tableau) -> float:
        """The mean loss of the noises to choose by, each of which counts at most `MOST` times the median.

        A sample next to the border between two modes ends in the other one by chance, and is then worth hundreds of
        others: of a hundred noises the plain mean would say which run was lucky.
        """
        errors = self.errors(tableau, self.choosing)
        return float(errors.clamp(max=self.most(errors)).mean())

    def most(self, errors: Tensor) -> float:
        """What a noise counts for at most where runs are compared; of a loss of whole sets all that there is."""
        return math.inf if isinstance(self.loss, Distribution) else MOST * float(errors.median())

    @property
    def seconds(self) -> float:
        """Time spent so far, including earlier calls."""
        return time.monotonic() - self.began
