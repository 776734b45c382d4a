"""How the reference models are distilled: data, and settings of each method that suit them."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice
from diffsolve.common.files import read_tensors, reading, write_tensors
from diffsolve.distill import methods
from diffsolve.distill.fit import fit
from diffsolve.distill.identities import Eulerian
from diffsolve.distill.loss import Distillation
from diffsolve.distill.matching import Matching, WithFake, distribution
from diffsolve.distill.metrics import Adaptive
from diffsolve.distill.runs import reflow, runs, trajectory
from diffsolve.distill.stretches import Between, Halves, Shrinking, Steps
from diffsolve.models import Model
from diffsolve.reference import load, students
from diffsolve.reference.data import fashion as load_fashion
from diffsolve.reference.digits import load_data as load_digits
from diffsolve.training.options import DEFAULTS

__all__ = ["RECIPES", "Recipe", "about", "distill_reference", "load_student"]

RUNS = 20_000
SEED = 1
"""Of the noise that the runs begin at, another than that of most samples."""


@dataclass(frozen=True)
class Recipe:
    """A method: its loss, and what `fit` gets."""

    loss: Callable[[Model], Callable[..., Any]]
    """Of the teacher."""
    options: Mapping[str, Any]
    data: str = "data"
    """The teacher's training data, its "runs" at this many nodes, or "pairs" of their ends."""
    nodes: int = 8
    sampler: str = "flow-map"
    """With which the student is sampled."""
    highest: float = students.HIGHEST
    """The highest frequency at which the student is told its times."""
    told: str = "until"
    """What it is told besides the time: "until", where to go, or the "scale" of guidance."""
    then: Sequence[Callable[[Model], Callable[..., Any]]] = ()
    """Losses of further stages, of which each has the student so far as its teacher; the updates are shared evenly."""


MODELS: dict[str, dict[str, Any]] = {"digits": {}, "fashion": {"batch": 64}}
"""What a model wants in place of a recipe's options."""

SHAPES = {"digits": (1, 8, 8), "fashion": (1, 28, 28)}

_BASE = {"batch": 64, "lr": 1e-3, "ema": 0.995, "steps": 3000}
_DERIVATIVE = {**_BASE, "steps": 2000}
_SLOW = {**_BASE, "steps": 1000, "lr": 2e-4}
"""Where the target moves with the network."""
_SMOOTH = 6.0
"""`highest` of losses with derivatives. One in t or s multiplies the network's error of frequency w by w (v_s - v_t):
the updates of `lagrangian` grow without bound where that is large, and those of `scm` do not settle. Here both do."""


def _scm(teacher: Model | None) -> Distillation:
    """The paper's law of times, on another path, would leave out the noise end, where one call begins."""
    stretches = Between("uniform-t", data=1.0, noise=0.2)
    return methods.scm(teacher, identity=Eulerian("straight", 500), stretches=stretches)


def _stage_of(teacher: Model, steps: int, solver: str = "flow-map") -> Distillation:
    """Progressive distillation to that many steps, with those of half and a quarter their length, to be of use too."""
    stretches = Halves(steps=4 * steps, least=steps)
    return methods.progressive(teacher, steps, solver=solver, weight="none", stretches=stretches)


RECIPES: dict[str, Recipe] = {
    "trajectory": Recipe(
        lambda teacher: trajectory(path=teacher.path, nodes=8, ends=0.4), {**_BASE, "batch": 128, "steps": 4000}, "runs"
    ),
    "lagrangian": Recipe(methods.lagrangian, _DERIVATIVE, highest=_SMOOTH),
    "ayf": Recipe(lambda teacher: replace(methods.ayf(teacher), metric=Adaptive(0.5)), _DERIVATIVE, highest=_SMOOTH),
    "consistency": Recipe(
        lambda teacher: methods.consistency(teacher, stretches=Steps("jumps", 12)), _BASE, sampler="consistency"
    ),
    "ect": Recipe(
        lambda teacher: methods.ect(stretches=Shrinking("uniform-t", "theta", every=500)),
        {**_BASE, "steps": 4000, "lr": 5e-4},
        sampler="consistency",
    ),
    "scm": Recipe(_scm, _SLOW, sampler="scm", highest=_SMOOTH),
    "sct": Recipe(lambda teacher: _scm(None), _SLOW, sampler="scm", highest=_SMOOTH),
    "meanflow": Recipe(
        lambda teacher: methods.meanflow(0.5, times="uniform-t", metric=Adaptive(0.5)), _DERIVATIVE, highest=_SMOOTH
    ),
    "shortcut": Recipe(
        lambda teacher: methods.shortcut(
            source="teacher", teacher=teacher, stretches=Halves(steps=16, diagonal=0.3), diagonal=0.3
        ),
        _BASE,
    ),
    "progressive": Recipe(
        lambda teacher: _stage_of(teacher, 8, "heun"),
        {**_BASE, "steps": 1600, "ema": 0.99},
        then=[partial(_stage_of, steps=steps) for steps in (4, 2, 1)],
    ),
    "guided": Recipe(
        lambda teacher: methods.guided(teacher, 1.0, students.SPAN),
        {**_BASE, "steps": 1500, "ema": 0.99},
        sampler="auto",
        told="scale",
    ),
    "reflow": Recipe(lambda teacher: reflow(), {**_BASE, "batch": 128, "steps": 1000}, "pairs", sampler="euler"),
    "distribution": Recipe(
        lambda teacher: distribution(teacher, steps=2, turns=3, regression=1.0),
        {**_BASE, "steps": 1200, "lr": 5e-4, "ema": 0.99},
        "pairs",
        sampler="consistency",
    ),
}
"""The methods of `diffsolve distill`."""


def load_student(path: str | os.PathLike[str]) -> Model:
    """The student that a file of `distill_reference` holds, in evaluation mode.

    Raises:
        ValueError: if the file is no such student.
    """
    return students.load(about(path)["model"], path)


def about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of `distill_reference` says of its student: teacher, method, and the solver that samples from it.

    Raises:
        ValueError: if the file is no such student.
    """
    _, note = read_tensors(path, students.KEY, accepted=students.ACCEPTED)
    with reading(path, students.ACCEPTED):
        choice("model", note["model"], students.NETWORKS)
        choice("method", note["method"], RECIPES)
        choice("sampler", note["sampler"], {recipe.sampler for recipe in RECIPES.values()})
    return note


def distill_reference(
    method: str, out: str | os.PathLike[str], model: str = "digits", **options: Any
) -> dict[str, Any]:
    """Distil a reference model by a method and write the student.

    Args:
        method: a name in `RECIPES`.
        out: the safetensors file.
        model: the teacher, "digits" or "fashion".
        options: of `ds.distill.fit`, in place of the recipe's.

    Raises:
        ValueError: if the method has no recipe, the model no student, or as of `ds.distill.fit`.
        FileNotFoundError: if the data are not there.
    """
    choice("method", method, RECIPES)
    choice("model", model, students.NETWORKS)
    recipe, teacher = RECIPES[method], load(model)
    settings = {**recipe.options, **MODELS[model], "dtype": torch.float16, **options}
    note: dict[str, Any] = {"model": model, "method": method, "sampler": recipe.sampler}
    note |= {"highest": recipe.highest, "told": recipe.told}
    begun = students.student(model, teacher, recipe.highest, told=recipe.told)
    begun.net.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]  # a third faster on a CPU
    learns = data(recipe, model, teacher)
    first = recipe.loss(teacher)
    if not recipe.then and not isinstance(first, Matching):
        return fit(first, begun, learns, out, **{**settings, "note": note})
    return _staged(recipe, first, begun, learns, Path(out), settings, note)


def _staged(
    recipe: Recipe, loss: Any, student: Model, learns: Any, out: Path, settings: dict[str, Any], note: dict[str, Any]
) -> dict[str, Any]:
    """`fit` of one stage after the other, each to a file of its own that resumes it, and the student's file at last."""
    net: Any = student.net
    count, total = 1 + len(recipe.then), settings.pop("steps")
    dtype, report = settings.pop("dtype"), {"steps": 0, "seconds": 0.0}
    files = [out.with_name(f"{out.name}.stage{i}") for i in range(count)]
    if not settings.get("resume", True):
        for file in files:
            file.unlink(missing_ok=True)
    for i, file in enumerate(files):
        if i:
            before = copy.deepcopy(net).requires_grad_(False)
            loss = recipe.then[i - 1](replace(student, net=before))
        steps = max(total // count, 1)
        stage = _stage(loss, carrying(student, loss), learns, file, {**settings, "steps": steps, "note": note})
        done = {name: report[name] + stage[name] for name in ("steps", "seconds")}
        report = {**stage, **done}
        if not stage["finished"]:
            return report
    weights = {name: value.to(dtype or value.dtype) for name, value in net.state_dict().items()}
    about = {**note, **_noted(settings), "steps": report["steps"], "loss": report["loss"]}
    write_tensors(out, weights, students.KEY, about)
    for file in files:
        file.unlink()
    return {**report, "out": str(out)}


def _stage(loss: Any, student: Model, learns: Any, file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """`fit`, unless the file has what it wrote with these settings."""
    net: Any = student.net
    if file.exists():
        weights, note = read_tensors(file, students.KEY, accepted=students.ACCEPTED)
        wanted = {**settings["note"], **_noted(settings), "steps": settings["steps"]}
        if all(note.get(name) == value for name, value in wanted.items()):
            net.load_state_dict(weights)
            net.eval()
            return {"finished": True, "steps": settings["steps"], "seconds": 0.0, "loss": note["loss"]}
    return fit(loss, student, learns, file, **settings)


def _noted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a student's file says of its training."""
    return {name: settings.get(name, DEFAULTS[name]) for name in ("batch", "lr", "seed")}


def carrying(student: Model, loss: Any) -> Model:
    """The student, whose network carries the fake one of a loss that has one."""
    net: Any = student.net
    fake: Any = loss.fake.net if isinstance(loss, Matching) else None
    return student if fake is None else replace(student, net=WithFake(net, fake))


def data(recipe: Recipe, model: str, teacher: Model) -> Any:
    """What a recipe learns from."""
    if recipe.data == "data":
        images, labels = load_digits() if model == "digits" else load_fashion("train")
        return images, {"label": labels}
    labels = torch.randint(-1, 10, (RUNS,), generator=torch.Generator().manual_seed(0))
    nodes = recipe.nodes if recipe.data == "runs" else 1
    shape = (RUNS, *SHAPES[model])
    states: Tensor = runs(teacher, shape, nodes=nodes, fine=16 // nodes, cond={"label": labels}, seed=SEED, batch=250)
    if recipe.data == "runs":
        return states, {"label": labels}
    return states[:, -1], {"label": labels, "noise": states[:, 0]}
