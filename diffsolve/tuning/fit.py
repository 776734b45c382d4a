"""`tune`: learn the times and weights with which a few network calls reproduce an accurate run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, overload

import torch
from typing_extensions import Unpack

from diffsolve.common.checks import required
from diffsolve.common.fingerprint import describe, weights_of
from diffsolve.common.locks import exclusive
from diffsolve.common.options import given, refuse_unknown, shows
from diffsolve.execute.options import ModelLike, Shape
from diffsolve.execute.start import Problem
from diffsolve.tableau import Tableau
from diffsolve.training.distributed import World, world
from diffsolve.tuning.family import Family, Provenance
from diffsolve.tuning.learning import Tuning, Work, learned
from diffsolve.tuning.options import DEFAULTS, OneOptions, TuneOptions, checked

__all__ = ["Tunings", "fit", "tune"]


@dataclass(frozen=True)
class Tunings(Mapping[int, Tuning]):
    """What `fit` returns for several budgets: budget -> `Tuning`; `str` has a line for each."""

    tunings: Mapping[int, Tuning]
    family: Family
    """What was learned, as one solver."""

    def __getitem__(self, nfe: int) -> Tuning:
        return self.tunings[nfe]

    def __iter__(self) -> Iterator[int]:
        return iter(self.tunings)

    def __len__(self) -> int:
        return len(self.tunings)

    def __str__(self) -> str:
        return "\n".join(map(str, self.tunings.values()))


@overload
def tune(
    model: ModelLike, shape: Shape | None = None, *, nfe: Sequence[int], **options: Unpack[OneOptions]
) -> Family: ...
@overload
def tune(
    model: ModelLike, shape: Shape | None = None, *, nfe: int | None = None, **options: Unpack[OneOptions]
) -> Tableau: ...
@shows(TuneOptions, **DEFAULTS)
def tune(model: ModelLike, shape: Shape | None = None, **options: Any) -> Tableau | Family:
    """A tableau learned for a model: `diffsolve.tuning.fit(model, shape, **options).tableau`.

        table = ds.tune(model, (512, 3, 32, 32), nfe=6, seed=0)
        x = ds.sample(model, (64, 3, 32, 32), solver=table, seed=1)

    For several budgets a `Family`, one solver for all of them:

        family = ds.tune(model, (512, 3, 32, 32), nfe=range(4, 13), seed=0)
        x = ds.sample(model, (64, 3, 32, 32), solver=family, nfe=7, seed=1)

    The options are those of `diffsolve.tuning.fit`.
    """
    found = _fit(model, shape, options)
    return found.family if isinstance(found, Tunings) else found.tableau


@overload
def fit(
    model: ModelLike, shape: Shape | None = None, *, nfe: Sequence[int], **options: Unpack[OneOptions]
) -> Tunings: ...
@overload
def fit(
    model: ModelLike, shape: Shape | None = None, *, nfe: int | None = None, **options: Unpack[OneOptions]
) -> Tuning: ...
@shows(TuneOptions, **DEFAULTS)
def fit(model: ModelLike, shape: Shape | None = None, **options: Any) -> Tuning | Tunings:
    """Learn the times of N network calls and the weights of their outputs.

    The learned run is a linear combination of the initial state and the straight velocities at its calls, exact for
    constant velocities (`diffsolve.tuning.student`), and is initialised with the weights of a solver. Least squares
    (`diffsolve.tuning.least_squares`) or Adam move its ends towards the teacher's ends from the same noise; the iterate
    with the least loss on held-out noises is returned.

    Under `torchrun`, or in a group of `torch.distributed`, the ranks make the same call and share the noises, batch by
    batch; the first one writes. What comes out is what one process gives, so there should be a batch for each rank.

    Args:
        model: as in `solve`. Adam differentiates it in its input, and in its time unless `times` is False.
        shape: (n, ...): n noises are drawn, for learning and validation. They differ from the noises of `sample` with
            any seed. Or
        noise: (n, ...) initial states, as in `solve`.
        nfe, solver, grid, start, stop: the initial run, as in `plan`: a deterministic solver that calls the network
            once at each time, or with method="differences" a stochastic one with tau; or `solver` is a Tableau of one.
            If None, the best of a short list in a pilot on a few of the noises, and after a few iterations from the
            best three (`diffsolve.tuning.pilot`). Several budgets, as nfe=range(4, 13), share the teacher's run; each
            begins with the best of that list and of the run learned for the budget before it, with calls of no weight
            added.
        teacher: the accurate run: a number of network calls of "auto", a Tableau between the same times, or
            precomputed ends (n, ...) of `noise`.
        history: K >= 2, how many outputs a row may use; the run keeps K + 1 states. If None all, at most 11.
        times: learn the times of the calls too; False for a network that rounds its clock or looks it up.
        also: what is learned beside times and weights, of "told": the times that the network is told, apart from those
            of the states; "guides": what the scale of guidance counts for at each call, 1 + guides (scale - 1); and
            "blurs", an operator in space: k of v + k (m - v), m the mean of the neighbours along the axes after (B, C).
        together: M: after the first, calls are made in groups of M that do not depend on each other, which
            `parallel=ds.Independent()` makes as one batch. Then `nfe` is 1 more than a multiple of M.
        loss: a `diffsolve.tuning.Distance`, of features perhaps, or of the way too; or (x, ends) -> a number, or one
            per sample. By default |x - end| over the root mean square of |end|, one per sample; not squared, since the
            few samples that end in another mode would then dominate. Or a `diffsolve.tuning.Frechet` or
            `SlicedWasserstein`, of sets of ends: what stochastic runs are learned by.
        ball: r, in units of the prior's deviation: the run may start within r of the noise, where its loss is least to
            first order (the soft loss of LD3, Tong et al., 2405.15506); by Adam, for twice the calls. Held-out noises
            start where they are.
        method: "least-squares" (Levenberg-Marquardt on all noises, for a distance) or "adam" (on batches, for any
            loss). If None the first, or the second where `loss` is no distance or `lr` is given. "differences" learns
            the times of a stochastic run and the noise of its steps, tau, by differences of whole runs: the one for a
            loss of sets, if None is given. Or "gits": only the times, and without a derivative of the network: those of
            the least sum of a first-order step's errors along the teacher's runs (`diffsolve.tuning.gits`), or of
            the least bound on the divergence from the SDE, "ays" (`diffsolve.tuning.ays`), for the best of a few
            solvers, or the one that is named. Or "dpm-v3": only the weights, by statistics of the network along these
            runs (`diffsolve.tuning.dpm_v3`), at the times of `grid`, or the best of a few.
        iterations: at most; 40, or 300 of method="adam".
        batch: noises at once: 256, or 64 in each of Adam's iterations.
        lr: of Adam, 0.02 if None, or 0.1 with "differences"; the parameters are weights and logits of step sizes, of
            order 1.
        held_out: the fraction of the noises not learned from, > 0 and < 1: half of them choose the iterate, the others
            say how good it is.
        cond, guidance: as in `solve`; tensors whose first dimension is n have one entry per noise.
        gradient: of Adam: "direct", or "checkpoint", which calls the network again in the backward pass and keeps the
            graph of one call in place of N.
        seed: of the noises and batches; one integer, as in `solve`.
        checkpoint: a file from which the same call resumes after an interruption, with the same bits as an
            uninterrupted run; of a finished one it gives the result again, until `out` is written or it is deleted. It
            needs a seed, and is held to the network, conditions and options; what `loss` computes is not checked. With
            several budgets each has one, whose name ends in its number.
        cache: a folder for the ends of the teacher's runs: one file for each network, noises, conditions, guidance and
            teacher. Ends that it has are not made again.
        out: a .json file for the tableau, or the family. It is written before the checkpoint is deleted.
        force: start anew, whatever the checkpoint has.
        progress: show a bar.
        dtype, device: of the state, as in `solve`.

    Returns:
        A `Tuning`, or `Tunings` for several budgets. If nothing learned is better than the start on the held-out
        noises, its tableau is the start, with a UserWarning.

    Raises:
        ValueError: if an argument is out of range, the solver or teacher does not fit, or the network has no derivative
            in its input or time.
        TypeError: if an option is unknown, or of the wrong type.
        FloatingPointError: if the loss or its gradient is not finite.
        BlockingIOError: while another run has the checkpoint.
        RuntimeError, ConnectionError: if the ranks make different calls; if another one ended or does not answer.
    """
    return _fit(model, shape, options)


def _fit(model: ModelLike, shape: Shape | None, options: Mapping[str, Any]) -> Tuning | Tunings:
    refuse_unknown("tune", options, TuneOptions)
    settings = checked(options)
    problem = Problem.of(model, shape, settings)
    required(isinstance(problem.key.seed, int), "seed", settings["seed"], "one for all noises")
    where = problem.model.device if problem.noise is None else problem.noise.device
    with world(where if problem.device is None else torch.device(problem.device)) as ranks, ExitStack() as stack:
        _agree(problem, shape, options, ranks)
        if settings["seed"] is None:
            problem = replace(problem, key=ranks.shared(problem.key))
        ranks.once(lambda: stack.enter_context(exclusive(settings["checkpoint"])))
        if isinstance(settings["nfe"], int | None):
            return _one(problem, settings, ranks)
        return _several(problem, settings, options, ranks)


def _agree(problem: Problem, shape: Shape | None, options: Mapping[str, Any], ranks: World) -> None:
    """Check that all ranks make the same call, with the same network.

    Raises:
        RuntimeError: if they do not, naming what differs.
    """
    model = problem.model
    about = {"path": str(model.path), "predicts": model.predicts, "clock": model.clock, "net": weights_of(model.net)}
    ranks.agree({"shape": shape, **about, **{name: value for name, value in options.items() if name != "device"}})


def _one(problem: Problem, settings: Mapping[str, Any], ranks: World) -> Tuning:
    work = learned(problem, settings, ranks)

    def write() -> None:
        work.tuning.tableau.save(settings["out"])
        work.checkpoint.remove()  # no earlier: one of the two files always has the result

    if settings["out"] is not None:
        ranks.once(write)
    return work.tuning


def _several(problem: Problem, settings: Mapping[str, Any], options: Mapping[str, Any], ranks: World) -> Tunings:
    works: dict[int, Work] = {}
    file, last = settings["checkpoint"], None
    for nfe in settings["nfe"]:
        own = {**settings, "nfe": nfe, "checkpoint": None if file is None else f"{os.fspath(file)}.{nfe}"}
        last = works[nfe] = learned(problem, own, ranks, last)
    tunings = {nfe: work.tuning for nfe, work in works.items()}
    family = Family({nfe: tuning.tableau for nfe, tuning in tunings.items()}, _provenance(problem, settings, options))

    def write() -> None:
        family.save(settings["out"])
        for work in works.values():
            work.checkpoint.remove()

    if settings["out"] is not None:
        ranks.once(write)
    return Tunings(tunings, family)


def _provenance(problem: Problem, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Provenance:
    model, guidance, teacher, seed = problem.model, problem.guidance, settings["teacher"], problem.key.seed
    assert isinstance(seed, int)
    kept = given(options, but=("nfe", "seed", "teacher", "out", "checkpoint", "progress", "force", "noise"))
    return Provenance(
        network=weights_of(model.net),
        path=str(model.path),
        predicts=model.predicts,
        guidance=guidance.level,
        teacher=teacher.solver if isinstance(teacher, Tableau) else str(describe(teacher)),
        seed=seed,
        noises=len(problem.noise) if problem.noise is not None else int((problem.shape or (0,))[0]),
        options={name: describe(value) for name, value in kept.items()},
        diffsolve=version("diffsolve"),
        torch=torch.__version__,
    )
