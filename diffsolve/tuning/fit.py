"""`tune`: the times and weights with which a few network calls end where an accurate run ends."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsolve.api.sampling import sample
from diffsolve.common.checks import choice, described, integer, number, required
from diffsolve.execute.plan import DEFAULT_SOLVER, GridLike, plan, refuse
from diffsolve.execute.start import initial
from diffsolve.kernels.combine import LIMIT
from diffsolve.models import Model, as_model
from diffsolve.models.guidance import Guidance, picked
from diffsolve.noise import Key
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau
from diffsolve.tuning.progress import Progress
from diffsolve.tuning.student import Student

__all__ = ["Tuning", "fit", "tune"]

Loss = Callable[[Tensor, Tensor], Tensor]

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


def tune(model: Model, shape: Sequence[int] | None = None, **options: Any) -> Tableau:
    """A tableau learned for a model: `fit(model, shape, **options).tableau`.

    table = ds.tune(model, (512, 3, 32, 32), nfe=6, seed=0)
    x = ds.sample(model, (64, 3, 32, 32), solver=table, seed=1)
    """
    return fit(model, shape, **options).tableau


def fit(
    model: Model,
    shape: Sequence[int] | None = None,
    *,
    noise: Tensor | None = None,
    nfe: int | None = None,
    solver: str | Solver | Tableau = DEFAULT_SOLVER,
    grid: GridLike | None = None,
    start: float | None = None,
    stop: float | None = None,
    teacher: int | Tableau | Tensor = 100,
    history: int | None = None,
    times: bool = True,
    loss: Loss | None = None,
    iterations: int = 300,
    batch: int = 64,
    lr: float = 0.02,
    held_out: float = 0.25,
    cond: Mapping[str, Any] | None = None,
    guidance: float | Guidance | None = None,
    gradient: str = "direct",
    seed: int | Key | torch.Generator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Tuning:
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
    model, guided = as_model(model), Guidance.of(guidance)
    _check(iterations=iterations, batch=batch, history=history, lr=lr, held_out=held_out, gradient=gradient)
    if isinstance(solver, Tableau):
        refuse("a tableau as solver", nfe=nfe, grid=grid, start=start, stop=stop)
        begun, name = solver, solver.solver
    else:
        begun = plan(model, solver, nfe=nfe, grid=grid, start=start, stop=stop, guidance=guided.scale)
        name = str(solver)
    if begun.nfe < 2:
        raise ValueError(f"nfe must be at least 2 for there to be something to learn, got {begun.nfe}")
    if seed is None and checkpoint is not None:
        raise ValueError(f"seed must be given with checkpoint={os.fspath(checkpoint)!r}, to go on from it, got None")
    if start is not None and noise is None:
        raise ValueError(f"start={start!r}: a run from part-way needs noise=, the states at that time")
    key = Key.of(seed)
    required(isinstance(key.seed, int), "seed", seed, "one for all noises")
    first = float(begun.times[0])
    x = initial(model, first, shape, noise, key, dtype, device)
    if noise is None:  # row 1 is the start of no run
        x = key.normal(x.shape, row=1, dtype=x.dtype, device=x.device) * model.path.prior_std(first)
    if len(x) < 2:
        raise ValueError(f"shape must be of at least 2 noises, to learn from and to hold out, got {tuple(x.shape)}")
    history = min(begun.nfe, MOST if history is None else history)
    student = Student(model, begun, history, times, f"tuned({name}, nfe={begun.nfe})")
    every = _Noises(x, {} if cond is None else cond, guided)
    _differentiable(model, begun, every.some(torch.tensor([0])), times)
    about = {
        "solver": begun.to_json(), "noise": _digest(x), "teacher": _digest(teacher), "seed": key.seed,
        "history": history,
        "times": times, "iterations": iterations, "batch": batch, "lr": lr, "held_out": held_out,
        "guidance": [guided.scale, *guided.interval, guided.rescale],
    }  # fmt: skip
    done = Progress(student, about, checkpoint)
    if done.ends is None:
        done.ends, done.calls = _taught(model, every, teacher, begun, batch)
    ends = done.ends.to(x)
    measure = _relative(ends) if loss is None else loss
    held = max(1, min(len(x) - 1, round(held_out * len(x))))
    validating = torch.arange(len(x) - held, len(x))

    def validate(table: Tableau) -> float:
        found = torch.cat([_executed(model, table, every.some(i)) for i in torch.split(validating, batch)])
        done.calls += held * begun.nfe
        parts = zip(torch.split(found, batch), torch.split(ends[-held:], batch), strict=True)
        mean = sum(float(measure(*part).mean()) * len(part[0]) for part in parts) / held
        return math.inf if math.isnan(mean) else mean

    gap, passes = max(1, iterations // VALIDATIONS), 2 if gradient == "checkpoint" else 1
    with torch.enable_grad(), _bar(progress, iterations, done.iteration) as bar:
        while done.iteration < iterations:
            k = done.iteration
            if k % gap == 0 and not any(at == k for at, _ in done.validation):  # the last before a break is kept
                done.validated(validate(student.tableau()))
                done.save()
            order = np.random.default_rng([key.seed, k]).permutation(len(x) - held)
            index = torch.from_numpy(order[:batch])
            some = every.some(index)
            value = measure(student(some.x, some.cond, some.guidance, gradient), ends[index]).mean()
            done.step(value, lr * min(1.0, (k + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * k / iterations)))
            done.calls += len(index) * begun.nfe * passes
            bar.set_postfix(loss=f"{done.losses[-1]:.4g}", refresh=False)
            bar.update()
    done.validated(validate(student.tableau()))
    done.restore_best()
    learned, before, after = student.tableau(), validate(begun), done.best
    if not after < (1 - ROUNDING) * before:
        warnings.warn(
            f"{learned.solver}: nothing learned is better than the start, whose held-out loss is {before:.4g}; the "
            "tableau is the start itself",
            stacklevel=2,
        )
        learned, after = begun, before
    done.remove()
    return Tuning(learned, begun, before, after, tuple(done.losses), tuple(done.validation), done.calls, done.seconds)


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
    network_time = model.network_time(t).to(noises.x.device, model.time_dtype(noises.x.dtype))
    scale = model.input_scale(model.path.nodes(begun.calls[:1, 0]))
    x = (noises.x if scale is None else noises.x * float(scale[0])).requires_grad_()
    with torch.enable_grad():
        out = noises.guidance.around(model, begun)(0, x, network_time, noises.cond)
        found = torch.autograd.grad(out.sum(), [x, t], allow_unused=True) if out.requires_grad else (None, None)
    if found[0] is None:
        raise ValueError("net must have a derivative by its input, got an output that autograd does not lead back from")
    if times and (found[1] is None or model.clock == "index"):
        raise ValueError(
            f"net must have a derivative by its time, got none with clock={model.clock!r}; times=False learns the "
            "weights alone"
        )


def _check(*, iterations: int, batch: int, history: int | None, lr: float, held_out: float, gradient: str) -> None:
    integer("iterations", iterations, 1)
    integer("batch", batch, 1)
    if history is not None:
        integer("history", history, 2, MOST)
    number("lr", lr, above=0)
    number("held_out", held_out, above=0, below=1)
    choice("gradient", gradient, ("direct", "checkpoint"))


def _bar(progress: bool, total: int, done: int) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, disable=not progress, unit="iteration")
