"""One learning: from a start to a tableau, and what is said of it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffsolve import solvers
from diffsolve.common.checks import integer, required
from diffsolve.execute import bind
from diffsolve.execute.start import Problem
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import World
from diffsolve.tuning import ays, dpm_v3, gits
from diffsolve.tuning.adam import Adam
from diffsolve.tuning.differences import Differences
from diffsolve.tuning.distributions import Distribution
from diffsolve.tuning.least_squares import LeastSquares
from diffsolve.tuning.losses import scaled
from diffsolve.tuning.noisy import NoisyStudent
from diffsolve.tuning.options import LONGEST, SAME_ENDS, TIMED, about
from diffsolve.tuning.pilot import Start, candidates, grown, ranked
from diffsolve.tuning.progress import Checkpoint, Ends, Learnable, Progress, Saved
from diffsolve.tuning.runs import Noises, drawn, run_teacher, teacher_of
from diffsolve.tuning.student import Student
from diffsolve.tuning.task import Measured, Task

__all__ = ["Tuning", "Work", "learned"]

ROUNDING = 1e-6  # a smaller relative improvement counts as rounding
FINALISTS = 3
"""So many starts are learned from for a few iterations, the best of them to the end;"""
SPRINT = 5
"""so many iterations,"""
FEW = 64, 256
"""with a quarter of the noises, but not less or more than so many."""
Kind = type[LeastSquares] | type[Adam]
KINDS: dict[str, Kind] = {"least-squares": LeastSquares, "adam": Adam, "differences": Differences}


@dataclass(frozen=True)
class Tuning:
    """What `fit` returns."""

    tableau: Tableau
    """The learned one; or `start`, if nothing learned was better: on the noises that no choice depended on, where one
    counts at most fifty medians, or by the plain mean over all noises."""
    start: Tableau
    """The best that there was before: the run that learning began with, or another one of the list, by the plain mean
    over the noises learned from and chosen by."""
    before: Measured
    """The loss of `start` on those noises, half of the held-out ones, run by the executor."""
    after: Measured
    """That of `tableau`."""
    gain: Measured
    """By how much it is nearer, noise by noise."""
    learning: float
    """The loss of `tableau` on the noises that it was learned from: less than `after` where it is over-fitted."""
    losses: tuple[float, ...]
    """The loss of each iteration, on the noises it learned from."""
    validation: tuple[tuple[int, float], ...]
    """(iteration, loss on the other half of the held-out noises)."""
    calls: int
    """Network calls in total, per sample: those of the teacher, of learning (repeated forward passes and derivatives in
    one direction count as a call, backward passes do not) and of validation."""
    seconds: float

    @property
    def improved(self) -> bool:
        """Whether the tableau is a learned one."""
        return self.tableau is not self.start

    def __str__(self) -> str:
        return (
            f"{self.tableau.solver}: held-out loss {self.before} -> {self.after}, nearer by {self.gain}, "
            f"{self.learning:.2e} where it learned, in {len(self.losses)} iterations, {self.calls} network calls, "
            f"{self.seconds:.1f} seconds"
        )


class Work(NamedTuple):
    """A learning that is done."""

    tuning: Tuning
    task: Task
    checkpoint: Checkpoint


def learned(problem: Problem, settings: Mapping[str, Any], ranks: World, fewer: Work | None = None) -> Work:
    """Learn a tableau, all ranks together; after a run of fewer calls, whose teacher's ends are taken over.

    Runs that begin with calls of no weight are as near as that one, but learn slowly: they are begun with only where
    the solvers lead to nothing better.
    """
    starts = candidates(problem, settings)
    bind(starts[0].tableau, problem.model)
    _check(settings, starts[0].tableau, problem)
    noises = Noises(drawn(problem, float(starts[0].tableau.times[0])), problem.cond, problem.guidance)
    checkpoint = Checkpoint(settings["checkpoint"], about(problem, noises.x, settings))
    saved = ranks.shared(ranks.once(lambda: None if settings["force"] else checkpoint.read()))
    known = saved.ends.to(noises.x) if saved else fewer.task.ends if fewer else None
    task = _task(problem, noises, starts[0].tableau, known, checkpoint.about, settings, ranks)
    if settings["method"] in TIMED:
        timed = _timed(task, problem, settings)
        return Work(_result(task, ranked(task, starts)[:1], timed.tableau), task, checkpoint)
    kind = KINDS[settings["method"]]
    begin, student = (saved.begin, None) if saved else _raced(task, ranked(task, starts)[:FINALISTS], kind)
    progress = _learn(task, begin, student or _student(task, begin), kind, checkpoint, saved)
    if fewer is not None and settings["times"] and kind is not Differences:
        more = grown(task.model, fewer.tuning.tableau, begin.tableau.nfe, together=settings["together"])
        every = torch.cat([task.learning, task.choosing])  # the plain means, which so many noises can tell apart
        better = task.error(progress.student.tableau(), every) < task.error(fewer.tuning.tableau, every)
        if not better and begin.tableau != more.tableau:  # which a checkpoint may have begun with
            begin, progress = more, _learn(task, more, _student(task, more), kind, checkpoint)
    table, losses, validation = progress.student.tableau(), tuple(progress.losses), tuple(progress.validation)
    return Work(_result(task, [begin, *starts], table, losses, validation), task, checkpoint)


def _learn(
    task: Task,
    begin: Start,
    student: Learnable,
    kind: Kind,
    checkpoint: Checkpoint | None = None,
    saved: Saved | None = None,
) -> Progress:
    """All iterations from a start, or from where the checkpoint stands; the student is then the best one."""
    from tqdm.auto import tqdm

    progress = Progress(student, kind.moments(student), task, begin, checkpoint, saved)
    iterations, shown = task.settings["iterations"], task.settings["progress"] and task.ranks.first
    with tqdm(total=iterations, initial=progress.iteration, disable=not shown, unit="iteration") as bar:
        progress.bar = bar
        kind(task, student, progress).learn(iterations)
    progress.restore_best()
    return progress


def _timed(task: Task, problem: Problem, settings: Mapping[str, Any]) -> Start:
    """The best of the solvers at the times of GITS, or of aligned steps, or of DPM-Solver-v3's weights at some times.

    A few noises are enough to find these.
    """
    index, name, nfe = task.learning[: FEW[0]], settings["method"], settings["nfe"]
    few, solver, teacher = task.noises.some(index), settings["solver"], settings["teacher"]
    if not isinstance(teacher, Tableau):
        teacher = teacher_of(
            problem.model, integer("teacher", teacher, 1), candidates(problem, settings)[0].tableau, few
        )
    task.calls += teacher.nfe * len(few.x) * (2 if name == "dpm-v3" else 1)
    if name == "dpm-v3":
        statistics = dpm_v3.measured(problem.model, few, teacher, problem.key)
        runs = dpm_v3.starts(problem.model.path, statistics, candidates(problem, settings))
        return task.ranks.shared(min(runs, key=lambda run: task.verdict(run.tableau)))
    if name == "gits":
        cost = gits.costs(problem.model, few, teacher)
    else:
        ends = task.ends[index.to(task.ends.device)]
        cost = ays.bounds(problem.model, few, ends, teacher.calls[:, 0], problem.key)
    named = gits.SOLVERS if solver is None else (solver,)
    runs = gits.starts(problem.model, cost, teacher, nfe, named, name)
    return task.ranks.shared(min(runs, key=lambda run: task.verdict(run.tableau)))


def _result(
    task: Task,
    starts: list[Start],
    table: Tableau,
    losses: tuple[float, ...] = (),
    validation: tuple[tuple[int, float], ...] = (),
) -> Tuning:
    """The learned run, or the best of those it may begin with.

    Which is nearer is asked twice. Over the unseen noises a sample that ends in another mode, by chance, does not count
    for more than others; how often a run does that, the plain mean over all noises tells best.
    """
    known, parts = list(dict.fromkeys(start.tableau for start in starts)), [task.learning, task.choosing, task.unseen]
    begin, sets = known[0], isinstance(task.loss, Distribution)  # which has no loss of one noise
    if len(known) > 1 and not sets:
        begin = min(known, key=lambda run: float(torch.cat([task.errors(run, part) for part in parts[:2]]).mean()))
    before, after = ([task.errors(run, part) for part in parts] for run in (begin, table))
    (*_, old), (*_, new) = before, after
    most = task.most(old)
    pairs = [(new.clamp(max=most), old.clamp(max=most))]
    if not sets:
        pairs.append((torch.cat(after), torch.cat(before)))
    if not all(float(ours.mean()) < (1 - ROUNDING) * float(theirs.mean()) for ours, theirs in pairs):
        warnings.warn(
            f"{table.solver}: nothing learned is better than the start, whose held-out loss is {old.mean():.4g}; the "
            "tableau is the start itself",
            stacklevel=6,
        )
        table, new, after = begin, old, before
    gain = Measured.of((old - new).nan_to_num(posinf=math.inf))
    return Tuning(
        table, begin, Measured.of(old), Measured.of(new), gain, float(after[0].mean()), losses, validation, task.calls,
        task.seconds,
    )  # fmt: skip


def _task(
    problem: Problem,
    noises: Noises,
    begin: Tableau,
    ends: Tensor | None,
    about: Mapping[str, Any],
    settings: Mapping[str, Any],
    ranks: World,
) -> Task:
    """The task, with the teacher's ends if they are known, or else made."""
    calls = 0
    if ends is None:
        known = Ends(settings["cache"], {name: about[name] for name in SAME_ENDS})
        kept = ranks.shared(ranks.once(lambda: known.read(noises.x)))
        ends = None if kept is None else kept.to(noises.x)
    if ends is None:
        made, calls = run_teacher(problem.model, noises, settings["teacher"], begin, settings["batch"], ranks)
        ranks.once(lambda: known.write(made))
        ends = made
    loss, seed = scaled(settings["loss"], ends), problem.key.seed
    assert isinstance(seed, int)
    return Task(problem.model, noises, ends, loss, settings["batch"], seed, settings, calls=calls, ranks=ranks)


def _student(task: Task, start: Start) -> Learnable:
    n, settings = start.tableau.nfe, task.settings
    if settings["method"] == "differences":
        solver = settings["solver"]
        method = solvers.resolve(start.name if solver is None else solver)[0]
        return NoisyStudent(task.model, start.tableau, method, settings["times"], f"tuned({start.name}, nfe={n})")
    also, together = settings["also"], settings["together"]
    history = min(n, LONGEST if settings["history"] is None else settings["history"])
    more = f", also={'+'.join(also)}" if also else ""
    more += f", together={together}" if together > 1 else ""
    name = f"tuned({start.name}, nfe={n}{more})"
    return Student(task.model, start.tableau, history, settings["times"], name, also, together)


def _raced(task: Task, starts: list[Start], kind: Kind) -> tuple[Start, Learnable]:
    """The start from which a few iterations lead nearest to the teacher, and the student that they lead to.

    Adam's iterations are too slow to tell.
    """
    if len(starts) == 1 or kind is not LeastSquares:
        return starts[0], _student(task, starts[0])
    found = []
    for start in starts:
        student = _student(task, start)
        few = task.few(min(max(len(task.learning) // 4, FEW[0]), FEW[1]))
        progress = Progress(student, kind.moments(student), few, start)
        kind(few, student, progress).learn(SPRINT)
        task.calls = few.calls
        progress.restore_best()
        found.append((progress.best, start, student))
    _, start, student = min(found, key=lambda one: one[0])
    return start, student


def _check(settings: Mapping[str, Any], begin: Tableau, problem: Problem) -> None:
    """Check that the accurate run has at least the calls of the one that learns from it, and that times can be learned.

    Raises:
        ValueError: if it has fewer, the network knows whole rows of its table only, or there is no guidance to learn,
            or no space to blur along.
    """
    timed = (settings["times"] or "told" in settings["also"]) and settings["method"] not in TIMED
    if timed and problem.model.clock == "index":
        raise ValueError(
            "net must have a derivative in its time, got none with clock='index'; times=False learns the weights alone"
        )
    if "guides" in settings["also"]:
        guidance = problem.guidance
        guided = not isinstance(guidance.scale, Tensor) and bool((guidance.schedule(begin) != 1).any())
        required(guided, "guidance", guidance.scale, "a scale other than 1, of all samples, with also='guides'")
    if "blurs" in settings["also"]:
        sizes = tuple(problem.sizes or ())
        required(len(sizes) > 2, "shape", sizes, "(n, C, ...), with axes of space to blur along, with also='blurs'")
    teacher = settings["teacher"]
    calls = teacher.nfe if isinstance(teacher, Tableau) else teacher
    if not isinstance(calls, Tensor):
        given = integer("teacher", calls, 1)
        required(given >= begin.nfe, "teacher", given, f"at least {begin.nfe} network calls, those of the run to learn")
