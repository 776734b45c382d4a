"""`tune`: the times and weights with which a few network calls end where an accurate run ends."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from diffsolve.api.sampling import sample
from diffsolve.common.checks import choice, described, integer, number, required
from diffsolve.common.options import refuse_unknown, shows
from diffsolve.execute import Network, network_times
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, plan, refuse
from diffsolve.execute.start import Problem
from diffsolve.kernels.combine import LIMIT
from diffsolve.models import Model
from diffsolve.models.guidance import Guidance, picked
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tuning.progress import Progress
from diffsolve.tuning.student import Student

__all__ = ["TuneOptions", "Tuning", "fit", "tune"]

Loss = Callable[[Tensor, Tensor], Tensor]


class TuneOptions(TypedDict, total=False):
    """The options of `ds.tune`; `fit` says what each of them means."""

    noise: Tensor | None
    nfe: int | None
    solver: str | Solver | Tableau
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
    progress: bool
    dtype: torch.dtype | None
    device: str | torch.device | None


DEFAULTS: dict[str, Any] = {
    "solver": DEFAULT_SOLVER,
    "teacher": 100,
    "times": True,
    "iterations": 300,
    "batch": 64,
    "lr": 0.02,
    "held_out": 0.25,
    "gradient": "direct",
    "progress": False,
}
"""Of the options whose default is not None."""

MOST = LIMIT - 1
"""The most values of a history: with the state they are the inputs of one combination."""
VALIDATIONS = 20
WARM = 10  # iterations in which the rate rises
ROUNDING = 1e-6  # what is better by less is the start, written in another way


@dataclass(frozen=True)
class Tuning:
    """What `fit` returns."""

    tableau: Tableau
    """The best on the held-out noises: the learned one, or `start` where nothing learned was better."""
    start: Tableau
    """What the learning began with."""
    before: float
    """The loss of `start` on the held-out noises, run by the executor."""
    after: float
    """That of `tableau`."""
    losses: tuple[float, ...]
    """Of each iteration's batch."""
    validation: tuple[tuple[int, float], ...]
    """(iterations done, loss on the held-out noises)."""
    calls: int
    """Network calls in all, each counted once for every sample in it: the teacher's, learning (a backward pass is not
    counted, a repeated forward pass is) and validation."""
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

    The learned run is a combination of the start and the straight velocities at its calls, exact for constant ones
    (`diffsolve.tuning.student`), and starts from the very weights of a solver. Adam (its rate rises in the first
    iterations and falls to 0 along a cosine) moves it towards the teacher's ends, from the same noise; noises that are
    held out choose the best on the way.

    Args:
        model: as in `solve`; its network is differentiated by its input, and by its clock unless `times` is False.
        shape: (n, ...): so many noises in all are learned from and validated on. None of them is a noise of `sample`
            with any seed. Or
        noise: (n, ...) states to start from, as in `solve`.
        nfe, solver, grid, start, stop: the run to begin with, as in `plan`: a deterministic solver that calls the
            network once at each time; or `solver` is a Tableau of one.
        teacher: what is accurate: the number of network calls of "auto", a Tableau between the same times, or the ends
            (n, ...) that belong to `noise`, computed before.
        history: K >= 2, how many outputs a row may use; the run keeps K + 1 states. All, but at most 11, if None.
        times: learn the times of the calls too; False for a network whose clock has no derivative.
        loss: (x, ends) -> a number, or one per sample: how far a run ended. By default |x - end| over the root mean
            square of the |end|, one per sample. (Not squared: the few samples that end in another mode would have
            all the weight.)
        iterations, batch, lr: of Adam, whose parameters are weights and logits of shares of the way, of order 1.
        held_out: the share of the noises that is for validation.
        cond, guidance: as in `solve`; tensors whose first dimension is n have one entry per noise.
        gradient: "checkpoint" calls each network again on the way back, and keeps one network's graph in place of N.
        seed: of the noises and of the batches; one, as in `solve`.
        checkpoint: a file, whole at any time, that holds the learning in case it is cut off: the same call then goes on
            from it to the bits of an unbroken run, and deletes it at the end. It needs a seed, and the same `cond` and
            `loss`, which it does not know.
        progress: show a bar.
        dtype, device: of the state, as in `solve`.

    Returns:
        A `Tuning`. Where nothing learned is better than the start on the held-out noises it has the start itself, with
        a UserWarning.

    Raises:
        ValueError, TypeError: for bad arguments, by name; for a network without the derivatives needed.
        FloatingPointError: if the loss or its gradient is not finite.
    """
    refuse_unknown("tune", options, TuneOptions)
    settings: dict[str, Any] = {**dict.fromkeys(TuneOptions.__annotations__), **DEFAULTS, **options}
    _check(settings)
    problem = Problem.of(model, shape, settings)
    required(isinstance(problem.key.seed, int), "seed", settings["seed"], "one for all noises")
    begin, name = _begin(problem, settings)
    noises = _Noises(_states(problem, float(begin.times[0])), problem.cond, problem.guidance)
    history = min(begin.nfe, MOST if settings["history"] is None else settings["history"])
    student = Student(problem.model, begin, history, settings["times"], f"tuned({name}, nfe={begin.nfe})")
    _differentiable(problem.model, begin, noises.some(torch.tensor([0])), settings["times"])
    progress = Progress(student, _about(problem, begin, noises, history, settings), settings["checkpoint"])
    if progress.ends is None:
        progress.ends, progress.calls = _taught(problem.model, noises, settings["teacher"], begin, settings["batch"])
    learner = _Learner(problem, begin, noises, student, progress, settings)
    learner.learn()
    progress.restore_best()
    learned, before, after = student.tableau(), learner.validate(begin), progress.best
    if not after < (1 - ROUNDING) * before:
        warnings.warn(
            f"{learned.solver}: nothing learned is better than the start, whose held-out loss is {before:.4g}; the "
            "tableau is the start itself",
            stacklevel=2,
        )
        learned, after = begin, before
    progress.remove()
    losses, validation = tuple(progress.losses), tuple(progress.validation)
    return Tuning(learned, begin, before, after, losses, validation, progress.calls, progress.seconds)


def _begin(problem: Problem, settings: Mapping[str, Any]) -> tuple[Tableau, str]:
    """The run to begin with, and its solver as text."""
    solver, planned = settings["solver"], {name: settings[name] for name in ("nfe", "grid", "start", "stop")}
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", **planned)
        begin, name = solver, solver.solver
    else:
        begin, name = plan(problem.model, solver, **planned, guidance=problem.guidance.scale), str(solver)
    if begin.nfe < 2:
        raise ValueError(f"nfe must be at least 2 for there to be something to learn, got {begin.nfe}")
    return begin, name


def _states(problem: Problem, start: float) -> Tensor:
    """The states to start from; noises that no run of `ds.sample` starts from."""
    x = problem.state(start)
    if problem.noise is None:  # row 1 is the start of no run
        std = problem.model.path.prior_std(start)
        x = problem.key.normal(x.shape, row=1, dtype=x.dtype, device=x.device) * std
    if len(x) < 2:
        raise ValueError(f"shape must be of at least 2 noises, to learn from and to hold out, got {tuple(x.shape)}")
    return x


def _about(
    problem: Problem, begin: Tableau, noises: _Noises, history: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What a checkpoint belongs to, in JSON values."""
    guidance = problem.guidance
    return {
        "solver": begin.to_json(),
        "noise": _digest(noises.x),
        "teacher": _digest(settings["teacher"]),
        "seed": problem.key.seed,
        "history": history,
        **{name: settings[name] for name in ("times", "iterations", "batch", "lr", "held_out")},
        "guidance": [guidance.scale, *guidance.interval, guidance.rescale],
    }


class _Learner:
    """Adam on the noises that are not held out, judged now and then on those that are."""

    def __init__(
        self,
        problem: Problem,
        begin: Tableau,
        noises: _Noises,
        student: Student,
        progress: Progress,
        settings: Mapping[str, Any],
    ) -> None:
        self.model, self.key, self.calls = problem.model, problem.key, begin.nfe
        self.noises, self.student, self.progress, self.settings = noises, student, progress, settings
        assert progress.ends is not None
        self.ends = progress.ends.to(noises.x)
        self.loss: Loss = settings["loss"] or _relative(self.ends)
        self.held = max(1, min(len(noises.x) - 1, round(settings["held_out"] * len(noises.x))))

    def validate(self, tableau: Tableau) -> float:
        """The mean loss of the held-out noises; infinite where it is not a number."""
        batch, count = self.settings["batch"], len(self.noises.x)
        total = 0.0
        for index in torch.split(torch.arange(count - self.held, count), batch):
            x = _executed(self.model, tableau, self.noises.some(index))
            total += float(self.loss(x, self.ends[index]).mean()) * len(index)
        self.progress.calls += self.held * self.calls
        return math.inf if math.isnan(total) else total / self.held

    def learn(self) -> None:
        """The iterations that are left, and the last validation."""
        progress, iterations = self.progress, self.settings["iterations"]
        gap = max(1, iterations // VALIDATIONS)
        with torch.enable_grad(), _bar(self.settings["progress"], iterations, progress.iteration) as bar:
            while progress.iteration < iterations:
                k = progress.iteration
                if k % gap == 0 and not any(at == k for at, _ in progress.validation):  # before a break is kept
                    progress.validated(self.validate(self.student.tableau()))
                    progress.save()
                self.iterate(k)
                bar.set_postfix(loss=f"{progress.losses[-1]:.4g}", refresh=False)
                bar.update()
        progress.validated(self.validate(self.student.tableau()))

    def iterate(self, k: int) -> None:
        """One step of Adam, on a batch that depends on the seed and the iteration alone."""
        settings, count = self.settings, len(self.noises.x) - self.held
        order = np.random.default_rng([self.key.seed, k]).permutation(count)
        index = torch.from_numpy(order[: settings["batch"]])
        some = self.noises.some(index)
        x = self.student(some.x, some.cond, some.guidance, settings["gradient"])
        rate = settings["lr"] * min(1.0, (k + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * k / settings["iterations"]))
        self.progress.step(self.loss(x, self.ends[index]).mean(), rate)
        self.progress.calls += len(index) * self.calls * (2 if settings["gradient"] == "checkpoint" else 1)


@dataclass(frozen=True)
class _Noises:
    """States to start from, and the conditions that belong to them."""

    x: Tensor
    cond: Mapping[str, Any]
    guidance: Guidance

    def some(self, index: Tensor) -> _Noises:
        """Those of these numbers."""
        at, size = index.to(self.x.device), len(self.x)
        guidance = replace(self.guidance, uncond=picked(self.guidance.uncond, at, size))
        return _Noises(self.x[at], picked(self.cond, at, size), guidance)


def _executed(model: Model, tableau: Tableau, noises: _Noises) -> Tensor:
    """The end of a tableau's run by the executor."""
    return sample(
        model, noise=noises.x, solver=tableau, cond=noises.cond, guidance=noises.guidance, dtype=noises.x.dtype,
    )  # fmt: skip


def _taught(
    model: Model, noises: _Noises, teacher: int | Tableau | Tensor, begun: Tableau, batch: int
) -> tuple[Tensor, int]:
    """The ends of the teacher's run, and the network calls that they took."""
    if isinstance(teacher, Tensor):
        if teacher.shape != noises.x.shape or not teacher.is_floating_point():
            shape = tuple(noises.x.shape)
            raise ValueError(f"teacher must be floating, the ends of the noises {shape}, got {described(teacher)}")
        return teacher.detach().to(noises.x), 0
    if not isinstance(teacher, Tableau):
        teacher = integer("teacher", teacher, 1)  # so many network calls
        ends = (model.path.t_noise, model.path.t_data)
        start, stop = (None if t == end else t for t, end in zip(begun.times[[0, -1]].tolist(), ends, strict=True))
        teacher = plan(model, nfe=teacher, start=start, stop=stop, guidance=noises.guidance.scale)
    if teacher.stochastic or not np.array_equal(teacher.times[[0, -1]], begun.times[[0, -1]]):
        raise ValueError(
            f"teacher must be a deterministic run from t={begun.times[0]:.6g} to {begun.times[-1]:.6g}, got "
            f"{teacher.solver!r} from t={teacher.times[0]:.6g} to {teacher.times[-1]:.6g}"
        )
    parts = [_executed(model, teacher, noises.some(i)) for i in torch.split(torch.arange(len(noises.x)), batch)]
    return torch.cat(parts), len(noises.x) * teacher.nfe


def _digest(value: int | Tableau | Tensor) -> int | str:
    """What tells a value from another in a file."""
    if isinstance(value, Tensor):
        about = f"{value.dtype} {tuple(value.shape)}".encode()
        return sha256(about + value.detach().cpu().double().numpy().tobytes()).hexdigest()
    return value.to_json() if isinstance(value, Tableau) else value


def _relative(ends: Tensor) -> Loss:
    """|x - end| of each sample over the root mean square of the |end|."""
    size = float(ends.square().sum() / len(ends)) ** 0.5 or 1.0
    return lambda x, end: (x - end).reshape(len(x), -1).norm(dim=1) / size


def _differentiable(model: Model, begun: Tableau, noises: _Noises, times: bool) -> None:
    """That the network's output has the derivatives that learning needs."""
    t = torch.tensor(begun.calls[:1, 0], requires_grad=True)
    x = noises.x.clone().requires_grad_()
    with torch.enable_grad():
        network = replace(Network.of(model, begun, noises.guidance, x), times=network_times(model, t, x))
        out = network(0, x, noises.cond)
        found = torch.autograd.grad(out.sum(), [x, t], allow_unused=True) if out.requires_grad else (None, None)
    if found[0] is None:
        raise ValueError("net must have a derivative by its input, got an output that autograd does not lead back from")
    if times and (found[1] is None or model.clock == "index"):
        raise ValueError(
            f"net must have a derivative by its time, got none with clock={model.clock!r}; times=False learns the "
            "weights alone"
        )


def _check(settings: Mapping[str, Any]) -> None:
    integer("iterations", settings["iterations"], 1)
    integer("batch", settings["batch"], 1)
    if settings["history"] is not None:
        integer("history", settings["history"], 2, MOST)
    number("lr", settings["lr"], above=0)
    number("held_out", settings["held_out"], above=0, below=1)
    choice("gradient", settings["gradient"], ("direct", "checkpoint"))
    if settings["seed"] is None and settings["checkpoint"] is not None:
        file = os.fspath(settings["checkpoint"])
        raise ValueError(f"seed must be given with checkpoint={file!r}, to go on from it, got None")


def _bar(progress: bool, total: int, done: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, disable=not progress, unit="iteration")
