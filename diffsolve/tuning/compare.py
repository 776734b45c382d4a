"""How far runs carry: to noises, classes or scales of guidance that are new to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import instance, integer, required
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.start import Problem
from diffsolve.models.guidance import Guidance
from diffsolve.tableau import Tableau
from diffsolve.tuning.learning import Tuning
from diffsolve.tuning.losses import Loss, scaled
from diffsolve.tuning.runs import Noises, drawn, run_teacher
from diffsolve.tuning.task import Measured, Task

__all__ = ["Carried", "Comparison", "carries", "compare"]


@dataclass(frozen=True)
class Comparison(Mapping[str, Measured]):
    """What `compare` returns: name -> mean loss with its standard error; `str` has a line for each."""

    errors: Mapping[str, Measured]
    gains: Mapping[str, Measured]
    """By how much each is nearer than the first, noise by noise: far better known than the difference of two means."""

    def __getitem__(self, name: str) -> Measured:
        return self.errors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.errors)

    def __len__(self) -> int:
        return len(self.errors)

    def __str__(self) -> str:
        width = max(map(len, self.errors))
        first = next(iter(self.errors))
        said = [f"{name:{width}}  {error}" for name, error in self.errors.items()]
        return "\n".join([said[0], *(f"{line}  nearer than {first} by {self.gains[name]}"
                                     for line, name in zip(said[1:], [*self.errors][1:], strict=True))])  # fmt: skip


@dataclass(frozen=True)
class Carried:
    """What `carries` returns; `str` is a table, with a line for each place."""

    learning: float
    """The loss of the learned run where it learned."""
    places: Mapping[str, Comparison]
    """Of "start" and "tuned": on the noises held out, and elsewhere by name."""

    def overfitted(self, place: str) -> Measured:
        """The loss of the learned run there over that where it learned; 1 is not over-fitted at all."""
        found = self.places[place]["tuned"]
        return Measured(found.value / self.learning, found.stderr / self.learning) if self.learning else found

    def __str__(self) -> str:
        head = ["", "start", "tuned", "nearer by", "tuned / where it learned"]
        rows = [head, ["where it learned", "", f"{self.learning:.2e}", "", "1"]]
        for place, found in self.places.items():
            ratio = self.overfitted(place)
            kept = f"{ratio.value:.2f}" + ("" if math.isnan(ratio.stderr) else f" ± {ratio.stderr:.2f}")
            rows.append([place, str(found["start"]), str(found["tuned"]), str(found.gains["tuned"]), kept])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines)


def carries(
    model: ModelLike,
    tuning: Tuning,
    shape: Shape | None = None,
    elsewhere: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Carried:
    """How far a learned run carries: to new noises, and wherever else it may be used.

        tuning = fit(model, shape, nfe=6, guidance=3.0, cond=few_classes, seed=0)
        elsewhere = {"scale 5": {"guidance": 5.0}, "other classes": {"cond": other_classes}}
        print(carries(model, tuning, shape, elsewhere, guidance=3.0, cond=few_classes, seed=1))

    Args:
        tuning: what `fit` returned.
        shape: of the noises to compare on.
        elsewhere: name -> what differs there, of the options of `compare`; beside new noises alone.
        options: of `compare`: teacher, loss, cond, guidance, batch and a seed other than that of the learning.

    Raises:
        ValueError: as of `compare`.
    """
    runs = {"start": tuning.start, "tuned": tuning.tableau}
    nothing = Measured(0.0, 0.0)
    held = Comparison({"start": tuning.before, "tuned": tuning.after}, {"start": nothing, "tuned": tuning.gain})
    places = {"held out": held, "new noises": compare(model, runs, shape, **options)}
    for name, changes in (elsewhere or {}).items():
        places[name] = compare(model, runs, shape, **{**options, **changes})
    return Carried(tuning.learning, places)


def compare(
    model: ModelLike,
    runs: Mapping[str, Tableau],
    shape: Shape | None = None,
    *,
    noise: Tensor | None = None,
    teacher: int | Tableau | Tensor = 100,
    loss: Loss | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    seed: int | None = None,
    batch: int = 256,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Comparison:
    """The mean loss of runs, with its standard error, all from the same noises.

        tuning = fit(model, shape, nfe=6, guidance=3.0, seed=0)
        runs = {"start": tuning.start, "tuned": tuning.tableau}
        print([compare(model, runs, shape, guidance=scale, seed=1) for scale in (1.0, 3.0, 5.0)])

    Args:
        runs: name -> tableau, all between the same times.
        shape, noise, teacher, loss, cond, guidance, batch, dtype, device: as in `fit`.
        seed: of the noises; another than that of the learning, for noises that are new.

    Raises:
        ValueError: if an argument is out of range, or the teacher does not fit the runs.
    """
    required(bool(runs), "runs", runs, "at least one tableau by its name")
    first, *others = [instance(f"runs[{name!r}]", run, Tableau, "a Tableau") for name, run in runs.items()]
    for run in others:
        ends = run.times[[0, -1]].tolist()
        required(ends == first.times[[0, -1]].tolist(), "runs", ends, "between the same times")
    options = {"noise": noise, "cond": cond, "guidance": guidance, "seed": seed, "dtype": dtype, "device": device}
    problem = Problem.of(model, shape, options)
    noises = Noises(drawn(problem, float(first.times[0])), problem.cond, problem.guidance)
    ends, _ = run_teacher(problem.model, noises, teacher, first, integer("batch", batch, 1))
    task = Task(problem.model, noises, ends, scaled(loss, ends), batch, 0, {"held_out": 0.5})
    every = torch.arange(len(noises.x))
    found = {name: task.errors(run, every) for name, run in runs.items()}
    base = next(iter(found.values()))
    gains = {name: Measured.of((base - errors).nan_to_num(posinf=math.inf)) for name, errors in found.items()}
    return Comparison({name: Measured.of(errors) for name, errors in found.items()}, gains)
