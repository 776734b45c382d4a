"""`tune`: learn the times and weights with which a few network calls reproduce an accurate run."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from diffsolve.common.checks import choice, integer, number, required
from diffsolve.common.files import in_folder
from diffsolve.common.fingerprint import describe, weights_of
from diffsolve.common.locks import exclusive
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.execute import Network, network_times
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import GridLike
from diffsolve.execute.start import Problem
from diffsolve.kernels.combine import LIMIT
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tuning.pilot import best, candidates
from diffsolve.tuning.progress import Progress
from diffsolve.tuning.runs import Loss, Noises, drawn, executed, held_out, relative, run_teacher
from diffsolve.tuning.student import Student

__all__ = ["TuneOptions", "Tuning", "fit", "tune"]


class TuneOptions(TypedDict, total=False):
    """The options of `ds.tune`, documented in `fit`."""

    noise: Tensor | None
    nfe: int | None
    solver: str | Solver | Tableau | None
    grid: GridLike | None
    start: float | None
    stop: float | None
    teacher: int | Tableau | Tensor
    history: int | None
    times: bool
    loss: Loss | None
    iterations: int
    batch: int
    lr: float
    held_out: float
    cond: Mapping[str, Any] | None
    guidance: float | Guidance | None
    gradient: Literal["direct", "checkpoint"]
    seed: int | Key | torch.Generator | None
    checkpoint: str | os.PathLike[str] | None
    out: str | os.PathLike[str] | None
    force: bool
    progress: bool
    dtype: torch.dtype | None
    device: str | torch.device | None


DEFAULTS: dict[str, Any] = {
    "teacher": 100,
    "times": True,
    "iterations": 300,
    "batch": 64,
    "lr": 0.02,
    "held_out": 0.25,
    "gradient": "direct",
    "force": False,
    "progress": False,
}
"""Of the options whose default is not None."""

MOST = LIMIT - 1
"""The longest history: with the state, the inputs of one linear combination."""
VALIDATIONS = 20  # how often the held-out loss is measured, roughly
WARM = 10  # iterations in which the learning rate rises
ROUNDING = 1e-6  # a smaller relative improvement counts as rounding


@dataclass(frozen=True)
class Tuning:
    """What `fit` returns."""

    tableau: Tableau
    """The best on the held-out noises: the learned one, or `start` if nothing learned was better."""
    start: Tableau
    """The initial tableau."""
    before: float
    """The loss of `start` on the held-out noises, run by the executor."""
    after: float
    """That of `tableau`."""
    losses: tuple[float, ...]
    """The loss of each iteration's batch."""
    validation: tuple[tuple[int, float], ...]
    """(iteration, loss on the held-out noises)."""
    calls: int
    """Network calls in total, per sample: those of the teacher, of learning (repeated forward passes are counted,
    backward passes are not) and of validation."""
    seconds: float

    @property
    def improved(self) -> bool:
        """Whether the tableau is a learned one."""
        return self.tableau is not self.start

    def __str__(self) -> str:
        return (
            f"{self.tableau.solver}: held-out loss {self.before:.4g} -> {self.after:.4g} in {len(self.losses)} "
            f"iterations, {self.calls} network calls, {self.seconds:.1f} seconds"
        )


@shows(TuneOptions, **DEFAULTS)
def tune(model: ModelLike, shape: Shape | None = None, **options: Unpack[TuneOptions]) -> Tableau:
    """A tableau learned for a model: `diffsolve.tuning.fit(model, shape, **options).tableau`.

        table = ds.tune(model, (512, 3, 32, 32), nfe=6, seed=0)
        x = ds.sample(model, (64, 3, 32, 32), solver=table, seed=1)

    The options are those of `diffsolve.tuning.fit`.
    """
    return fit(model, shape, **options).tableau


@shows(TuneOptions, **DEFAULTS)
def fit(model: ModelLike, shape: Shape | None = None, **options: Unpack[TuneOptions]) -> Tuning:
    """Learn the times of N network calls and the weights of their outputs, by gradients through the run.

    The learned run is a linear combination of the initial state and the straight velocities at its calls, exact for
    constant velocities (`diffsolve.tuning.student`), and is initialised with the weights of a solver. Adam (with a
    warm-up and a cosine decay to 0) moves its ends towards the teacher's ends from the same noise; the iterate with the
    least loss on held-out noises is returned.

    Args:
        model: as in `solve`; its network is differentiated in its input, and in its time unless `times` is False.
        shape: (n, ...): n noises are drawn, for learning and validation. They differ from the noises of `sample` with
            any seed. Or
        noise: (n, ...) initial states, as in `solve`.
        nfe, solver, grid, start, stop: the initial run, as in `plan`: a deterministic solver that calls the network
            once at each time; or `solver` is a Tableau of one. If None, the best of a short list in a pilot on a few of
            the noises (`diffsolve.tuning.pilot`).
        teacher: the accurate run: a number of network calls of "auto", a Tableau between the same times, or
            precomputed ends (n, ...) of `noise`.
        history: K >= 2, the number of outputs that a row may use; the run keeps K + 1 states. If None all, at most 11.
        times: learn the times of the calls too; False for a network whose clock has no derivative.
        loss: (x, ends) -> a number, or one per sample. By default |x - end| over the root mean square of |end|, one per
            sample; not squared, since the few samples that end in another mode would then dominate.
        iterations, batch, lr: of Adam; the parameters are weights and logits of step sizes, of order 1.
        held_out: the fraction of the noises used for validation, > 0 and < 1.
        cond, guidance: as in `solve`; tensors whose first dimension is n have one entry per noise.
        gradient: "direct", or "checkpoint", which calls the network again in the backward pass and keeps the graph of
            one call in place of N.
        seed: of the noises and batches; one integer, as in `solve`.
        checkpoint: a file from which the same call resumes after an interruption, with the same bits as an
            uninterrupted run; of a finished one it gives the result again, until `out` is written or it is deleted. It
            needs a seed, and is held to the network, conditions and options; what `loss` computes is not checked.
        out: a .json file for the tableau. It is written before the checkpoint is deleted.
        force: start anew, whatever the checkpoint has.
        progress: show a bar.
        dtype, device: of the state, as in `solve`.

    Returns:
        A `Tuning`. If nothing learned is better than the start on the held-out noises, its tableau is the start, with a
        UserWarning.

    Raises:
        ValueError: if an argument is out of range, the solver or teacher does not fit, or the network has no derivative
            in its input or time.
        TypeError: if an option is unknown, or of the wrong type.
        FloatingPointError: if the loss or its gradient is not finite.
        BlockingIOError: while another run has the checkpoint.
    """
    refuse_unknown("tune", options, TuneOptions)
    settings: dict[str, Any] = {**dict.fromkeys(TuneOptions.__annotations__), **DEFAULTS, **options}
    _check(settings)
    problem = Problem.of(model, shape, settings)
    required(isinstance(problem.key.seed, int), "seed", settings["seed"], "one for all noises")
    with exclusive(settings["checkpoint"]):
        return _fitted(problem, settings)


def _fitted(problem: Problem, settings: Mapping[str, Any]) -> Tuning:
    starts = candidates(problem, settings)
    _check_teacher(settings["teacher"], starts[0].tableau)
    noises = Noises(drawn(problem, float(starts[0].tableau.times[0])), problem.cond, problem.guidance)
    (begin, name), pilot = best(problem.model, noises, starts, settings)
    history = min(begin.nfe, MOST if settings["history"] is None else settings["history"])
    student = Student(problem.model, begin, history, settings["times"], f"tuned({name}, nfe={begin.nfe})")
    _check_derivatives(problem.model, begin, noises.some(torch.tensor([0])), settings["times"])
    about = _about(problem, begin, noises, history, settings)
    progress = Progress(student, about, settings["checkpoint"], settings["force"])
    if progress.ends is None:
        teacher, batch = settings["teacher"], settings["batch"]
        progress.ends, calls = run_teacher(problem.model, noises, teacher, begin, batch)
        progress.calls = calls + pilot
    learner = _Learner(problem, begin, noises, student, progress, settings)
    learner.learn()
    progress.restore_best()
    learned, before, after = student.tableau(), learner.validate(begin), progress.best
    if not after < (1 - ROUNDING) * before:
        warnings.warn(
            f"{learned.solver}: nothing learned is better than the start, whose held-out loss is {before:.4g}; the "
            "tableau is the start itself",
            stacklevel=4,
        )
        learned, after = begin, before
    if settings["out"] is not None:
        learned.save(settings["out"])
        progress.remove()  # no earlier: one of the two files always has the result
    losses, validation = tuple(progress.losses), tuple(progress.validation)
    return Tuning(learned, begin, before, after, losses, validation, progress.calls, progress.seconds)


def _about(
    problem: Problem, begin: Tableau, noises: Noises, history: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that a checkpoint must have, as JSON values."""
    guidance = problem.guidance
    newer = [guidance.newer] if guidance.newer else []
    return {
        "solver": begin.to_json(),
        "network": weights_of(problem.model.net),
        "noise": _digest(noises.x),
        "shape": list(noises.x.shape),
        "cond": describe(problem.cond),
        "teacher": _digest(settings["teacher"]),
        "seed": problem.key.seed,
        "history": history,
        **{name: settings[name] for name in ("times", "iterations", "batch", "lr", "held_out")},
        "guidance": describe([guidance.scale, *guidance.interval, guidance.rescale, guidance.uncond, *newer]),
    }


class _Learner:
    """Adam on the learning noises, with regular validation on the held-out ones."""

    def __init__(
        self,
        problem: Problem,
        begin: Tableau,
        noises: Noises,
        student: Student,
        progress: Progress,
        settings: Mapping[str, Any],
    ) -> None:
        self.model, self.key, self.calls = problem.model, problem.key, begin.nfe
        self.noises, self.student, self.progress, self.settings = noises, student, progress, settings
        assert progress.ends is not None
        self.ends = progress.ends.to(noises.x)
        self.loss: Loss = settings["loss"] or relative(self.ends)
        self.held = held_out(len(noises.x), settings["held_out"])

    def validate(self, tableau: Tableau) -> float:
        """The mean loss of the held-out noises; infinite if it is NaN."""
        batch, count = self.settings["batch"], len(self.noises.x)
        total = 0.0
        for index in torch.split(torch.arange(count - self.held, count), batch):
            x = executed(self.model, tableau, self.noises.some(index))
            total += float(self.loss(x, self.ends[index]).mean()) * len(index)
        self.progress.calls += self.held * self.calls
        return math.inf if math.isnan(total) else total / self.held

    def learn(self) -> None:
        """Run the remaining iterations and the last validation."""
        progress, iterations = self.progress, self.settings["iterations"]
        gap = max(1, iterations // VALIDATIONS)
        with torch.enable_grad(), _bar(self.settings["progress"], iterations, progress.iteration) as bar:
            while progress.iteration < iterations:
                k = progress.iteration
                if k % gap == 0 and progress.fresh:
                    progress.validated(self.validate(self.student.tableau()))
                    progress.save()
                self.iterate(k)
                bar.set_postfix(loss=f"{progress.losses[-1]:.4g}", refresh=False)
                bar.update()
        if progress.fresh:
            progress.validated(self.validate(self.student.tableau()))
            progress.save()

    def iterate(self, k: int) -> None:
        """One step of Adam, on a batch that depends only on the seed and the iteration."""
        settings, count = self.settings, len(self.noises.x) - self.held
        order = np.random.default_rng([self.key.seed, k]).permutation(count)
        index = torch.from_numpy(order[: settings["batch"]])
        some = self.noises.some(index)
        x = self.student(some.x, some.cond, some.guidance, settings["gradient"])
        rate = settings["lr"] * min(1.0, (k + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * k / settings["iterations"]))
        self.progress.step(self.loss(x, self.ends[index]).mean(), rate)
        self.progress.calls += len(index) * self.calls * (2 if settings["gradient"] == "checkpoint" else 1)


def _digest(value: int | Tableau | Tensor) -> int | str:
    """What identifies a teacher or a noise in a checkpoint."""
    if isinstance(value, Tensor):
        about = f"{value.dtype} {tuple(value.shape)}".encode()
        return sha256(about + value.detach().cpu().double().numpy().tobytes()).hexdigest()
    return value.to_json() if isinstance(value, Tableau) else value


def _check_derivatives(model: Model, begin: Tableau, noises: Noises, times: bool) -> None:
    """Check that the network has the derivatives that learning needs.

    Raises:
        ValueError: if it has none in its input, or none in its time where the times are learned.
    """
    t = torch.tensor(begin.calls[:1, 0], requires_grad=True)
    x = noises.x.clone().requires_grad_()
    with torch.enable_grad():
        network = replace(Network.of(model, begin, noises.guidance, x), times=network_times(model, t, x))
        out = network(0, x, noises.cond)
        gradients = torch.autograd.grad(out.sum(), [x, t], allow_unused=True) if out.requires_grad else (None, None)
    if gradients[0] is None:
        raise ValueError("net must have a derivative in its input, got an output without a graph back to it")
    if times and (gradients[1] is None or model.clock == "index"):
        raise ValueError(
            f"net must have a derivative in its time, got none with clock={model.clock!r}; times=False learns the "
            "weights alone"
        )


def _check_teacher(teacher: object, begin: Tableau) -> None:
    """Check that the accurate run has at least the calls of the one that learns from it.

    Raises:
        ValueError: if it has fewer.
    """
    calls = teacher.nfe if isinstance(teacher, Tableau) else teacher
    if not isinstance(calls, Tensor):
        given = integer("teacher", calls, 1)
        required(given >= begin.nfe, "teacher", given, f"at least {begin.nfe} network calls, those of the run to learn")


def _check(settings: Mapping[str, Any]) -> None:
    integer("iterations", settings["iterations"], 1)
    integer("batch", settings["batch"], 1)
    if settings["history"] is not None:
        integer("history", settings["history"], 2, MOST)
    number("lr", settings["lr"], above=0)
    number("held_out", settings["held_out"], above=0, below=1)
    choice("gradient", settings["gradient"], ("direct", "checkpoint"))
    if settings["out"] is not None:
        in_folder(settings["out"], "out")
    if settings["seed"] is None and settings["checkpoint"] is not None:
        file = os.fspath(settings["checkpoint"])
        raise ValueError(f"seed must be given with checkpoint={file!r}, to go on from it, got None")


def _bar(progress: bool, total: int, initial: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=initial, disable=not progress, unit="iteration")
