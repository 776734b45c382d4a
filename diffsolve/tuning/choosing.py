"""`choose`: the solver and grid for one network, by a pilot on the network itself."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from diffsolve.common.checks import integer, number, required
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import plan
from diffsolve.execute.start import Problem
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.tableau import Tableau
from diffsolve.tuning.linear import World, measured
from diffsolve.tuning.losses import Loss, relative
from diffsolve.tuning.runs import Noises, drawn, executed, held_out, run_teacher
from diffsolve.tuning.search import Search
from diffsolve.tuning.space import OWN, Pair, space
from diffsolve.tuning.task import Measured

__all__ = ["Choice", "Choices", "ChooseOptions", "Trial", "choose"]


class ChooseOptions(TypedDict, total=False):
    """The options of `ds.choose`, documented there."""

    nfe: int | Sequence[int]
    noise: Tensor | None
    start: float | None
    stop: float | None
    among: Sequence[Pair] | None
    trials: int
    teacher: int | Tableau | Tensor
    held_out: float
    batch: int
    cond: Mapping[str, Any] | None
    guidance: float | Guidance | None
    seed: int | Key | torch.Generator | None
    progress: bool
    dtype: torch.dtype | None
    device: str | torch.device | None


DEFAULTS: dict[str, Any] = {
    "nfe": (5, 10, 20),
    "trials": 48,
    "teacher": 200,
    "held_out": 0.25,
    "batch": 64,
    "progress": False,
}
"""Of the options whose default is not None."""

FINAL = 8
"""So many of those tried go on to all noises of the pilot."""
ORDERED = 8
"""The first of them are those with the least error on paper."""
FEW = 8  # noises on which all are tried, at least


@dataclass(frozen=True)
class Trial:
    """A solver and a grid with one budget, on the noises of the pilot."""

    solver: str
    grid: str | None
    """None is the solver's own, or the path's."""
    calls: int
    """Network calls of a sample, at most the budget."""
    expected: float
    """The error on paper, in the linear world of the network."""
    error: Measured
    """The distance |x - end| of a sample over the root mean square of |end|."""
    noises: int
    """How many the error is of."""


@dataclass(frozen=True)
class Choice:
    """What was chosen for one budget."""

    nfe: int
    solver: str
    grid: str | None
    tableau: Tableau
    """Its run, for `ds.sample(.., solver=tableau)`."""
    error: Measured
    """On the noises held out."""
    auto: Measured
    """That of `auto`, on the same."""
    trials: tuple[Trial, ...]
    """All that was run, the best first."""

    @property
    def code(self) -> str:
        """A line of Python that draws samples so."""
        grid = "" if self.grid is None else f", grid={self.grid!r}"
        return f"ds.sample(model, shape, solver={self.solver!r}{grid}, nfe={self.nfe})"


@dataclass(frozen=True)
class Choices(Mapping[int, Choice]):
    """What `choose` returns: budget -> `Choice`; `str` is a table in Markdown, with the cost."""

    chosen: Mapping[int, Choice]
    world: World
    """The spectrum of the data and the error of the network, as measured."""
    floor: float
    """How far the accurate runs are from those with half as many calls: errors below it say nothing. NaN if unknown."""
    calls: int
    """Network calls in all, summed over the samples."""
    seconds: float

    def __getitem__(self, nfe: int) -> Choice:
        return self.chosen[nfe]

    def __iter__(self) -> Iterator[int]:
        return iter(self.chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def __str__(self) -> str:
        lines = ["| NFE | solver | grid | error | of auto |", "| -- | -- | -- | -- | -- |"]
        for nfe, c in self.chosen.items():
            lines.append(f"| {nfe} | {c.solver} | {c.grid or 'its own'} | {c.error} | {c.auto} |")
        tried = sum(len(choice.trials) for choice in self.chosen.values())
        known = "" if math.isnan(self.floor) else f"; accurate runs are known to {self.floor:.0e}"
        cost = f"{tried} runs tried, {self.calls} network calls, {self.seconds:.0f} seconds{known}"
        code = "\n".join(choice.code for choice in self.chosen.values())
        return "\n".join(lines) + f"\n\n{cost}\n\n{code}"


@shows(ChooseOptions, **DEFAULTS)
def choose(model: ModelLike, shape: Shape | None = None, **options: Unpack[ChooseOptions]) -> Choices:
    """The best deterministic solver and grid for this network and each budget of calls, by a pilot.

        found = ds.choose(model, (64, 3, 32, 32), nfe=[5, 10], seed=0)
        x = ds.sample(model, (16, 3, 32, 32), solver=found[10].tableau, seed=1)

    Accurate runs from a few dozen noises are the reference. From their ends the spectrum of the data and the network's
    error are measured (`diffsolve.tuning.linear`), with which the linear theory (`diffsolve.tableau.theory`) orders
    some 400 pairs of solver and grid. `auto`, the first 8 of these, and then whatever promises most from the errors of
    those tried (`diffsolve.tuning.search`) are run on a few of the noises, and the best 8 on all; the best of those is
    held against `auto` on noises that had no part in it, and must not be worse.

    Args:
        model: as in `solve`.
        shape: (n, ...): n noises are drawn, for the pilot and to hold out: a few dozen. They differ from the noises of
            `sample` with any seed. Or
        noise: (n, ...) initial states, as in `solve`.
        nfe: a budget of network calls, or several.
        start, stop: as in `plan`.
        among: pairs (solver, grid) in place of those known here; a grid of None is the solver's own.
        trials: how many of them, beside `auto`, are run for each budget.
        teacher: the accurate run, as in `diffsolve.tuning.fit`: a number of calls of "auto", a Tableau between the
            same times, or ends (n, ...) of `noise`.
        held_out: the fraction of the noises held out, > 0 and < 1.
        batch: noises run at once.
        cond, guidance: as in `solve`; tensors whose first dimension is n have one entry per noise.
        seed: of the noises; one integer, as in `solve`.
        progress: show a bar, in runs tried.
        dtype, device: of the state, as in `solve`.

    Raises:
        ValueError: if an argument is out of range, no solver fits a budget, or the accurate runs are not finite.
        TypeError: if an option is unknown, or of the wrong type.
    """
    refuse_unknown("choose", options, ChooseOptions)
    settings: dict[str, Any] = {**dict.fromkeys(ChooseOptions.__annotations__), **DEFAULTS, **options}
    given = settings["nfe"]
    budgets = [integer("nfe", nfe, 1) for nfe in (given if isinstance(given, Sequence | np.ndarray) else [given])]
    required(bool(budgets), "nfe", given, "at least one budget")
    for name in ("trials", "batch"):
        integer(name, settings[name], 1)
    number("held_out", settings["held_out"], above=0, below=1)
    pairs = list(space() if settings["among"] is None else settings["among"])
    began = time.perf_counter()
    pilot = _Pilot(Problem.of(model, shape, settings), settings)
    chosen = {nfe: pilot.choice(nfe, pairs) for nfe in sorted(set(budgets))}
    pilot.bar.close()
    return Choices(chosen, pilot.world, pilot.floor, pilot.calls, time.perf_counter() - began)


class _Run(NamedTuple):
    """A pair, planned."""

    pair: Pair
    tableau: Tableau
    expected: float


class _Pilot:
    """The noises, their ends, and what the network is like."""

    def __init__(self, problem: Problem, settings: Mapping[str, Any]) -> None:
        from tqdm.auto import tqdm

        self.problem, self.model, self.batch = problem, problem.model, settings["batch"]
        self.planned = {name: settings[name] for name in ("start", "stop")}
        self.trials = settings["trials"]
        begin = self.plan(OWN, 2)
        assert begin is not None
        x = drawn(problem, float(begin.times[0]))
        self.noises = Noises(x, problem.cond, problem.guidance)
        held = held_out(len(x), settings["held_out"])
        self.pilot, self.held = torch.arange(len(x) - held), torch.arange(len(x) - held, len(x))
        teacher = settings["teacher"]
        self.ends, self.calls = run_teacher(self.model, self.noises, teacher, begin, self.batch)
        finite = bool(self.ends.isfinite().all())
        required(finite, "ends of the accurate runs", self.ends, "finite (see teacher=)")
        self.loss: Loss = relative(self.ends)
        self.floor = math.nan
        if isinstance(teacher, int) and teacher > 1:
            half, calls = run_teacher(self.model, self.noises, teacher // 2, begin, self.batch)
            self.floor, self.calls = float(self.loss(half, self.ends).mean()), self.calls + calls
        some = self.noises.some(self.pilot)
        self.world = measured(self.model, some, self.ends[self.pilot.to(x.device)], problem.key)
        self.calls += len(self.world.lam) * len(self.pilot)
        self.bar = tqdm(disable=not settings["progress"], unit="run")

    def plan(self, pair: Pair, nfe: int) -> Tableau | None:
        """The run of a pair; None if it does not fit the budget."""
        shape, guidance = self.problem.sizes, self.problem.guidance.level
        try:
            return plan(self.model, pair[0], nfe=nfe, grid=pair[1], guidance=guidance, shape=shape, **self.planned)
        except ValueError as error:
            if "nfe must be at least" in str(error):
                return None
            raise

    def choice(self, nfe: int, pairs: Sequence[Pair]) -> Choice:
        (auto, *runs) = self.ordered(nfe, [OWN, *(pair for pair in pairs if pair != OWN)])
        runs = [auto, *runs]
        few = self.pilot[: max(FEW, len(self.pilot) // 6)]
        search = Search([run.pair for run in runs], [run.expected for run in runs])
        first: dict[int, Trial] = {}
        while len(first) < min(len(runs), self.trials + 1):
            known = {i: trial.error.value for i, trial in first.items()}
            i = len(first) if len(first) <= ORDERED else search.next(known)
            first[i] = self.trial(runs[i], few)
        order = sorted(first, key=lambda i: first[i].error.value)
        final = {i: self.trial(runs[i], self.pilot) for i in order[:FINAL]}
        trials = {**first, **final}
        best = min(final, key=lambda i: final[i].error.value)
        of_auto, of_best = (self.errors(run.tableau, self.held) for run in (auto, runs[best]))
        if not float(of_best.mean()) < float(of_auto.mean()):
            best, of_best = 0, of_auto
        (solver, grid), tableau, _ = runs[best]
        shown = sorted(trials, key=lambda i: (i != best, i not in final, trials[i].error.value))
        return Choice(
            nfe, solver, grid, tableau, Measured.of(of_best), Measured.of(of_auto), tuple(trials[i] for i in shown)
        )

    def ordered(self, nfe: int, pairs: Sequence[Pair]) -> list[_Run]:
        """The runs that differ and fit: `auto`, then the others by their error on paper."""
        found: dict[bytes, _Run] = {}
        for pair in pairs:
            tableau = self.plan(pair, nfe)
            if tableau is not None and not tableau.stochastic:
                key = tableau.weights.tobytes() + tableau.calls.tobytes()
                if key not in found:
                    found[key] = _Run(pair, tableau, self.world.expected(tableau, self.model.path))
        auto, *rest = found.values()
        required(auto.pair == OWN, "nfe", nfe, "enough for a run of auto")
        return [auto, *sorted(rest, key=lambda run: run.expected if math.isfinite(run.expected) else math.inf)]

    def errors(self, tableau: Tableau, index: Tensor) -> Tensor:
        """The error of each of these noises, float64."""
        parts = []
        for some in torch.split(index, self.batch):
            x = executed(self.model, tableau, self.noises.some(some))
            parts.append(self.loss(x, self.ends[some.to(x.device)]).double().cpu())
        self.calls += tableau.nfe * len(index)
        return torch.cat(parts).nan_to_num(nan=math.inf, posinf=math.inf)

    def trial(self, run: _Run, index: Tensor) -> Trial:
        error = Measured.of(self.errors(run.tableau, index))
        self.bar.update()
        return Trial(*run.pair, run.tableau.nfe, run.expected, error, len(index))
