"""How the reference models are distilled: data, and settings of each method that suit them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice
from diffsolve.common.files import read_tensors, reading
from diffsolve.distill import methods
from diffsolve.distill.fit import fit
from diffsolve.distill.metrics import Adaptive
from diffsolve.distill.runs import reflow, runs, trajectory
from diffsolve.distill.stretches import Halves, Steps
from diffsolve.models import Model
from diffsolve.reference import load, students
from diffsolve.reference.data import fashion as load_fashion
from diffsolve.reference.digits import load_data as load_digits

__all__ = ["RECIPES", "Recipe", "about", "distill_reference", "load_student"]

RUNS = 20_000


@dataclass(frozen=True)
class Recipe:
    """A method: its loss, and what `fit` gets."""

    loss: Callable[[Model], Callable[..., Any]]
    options: Mapping[str, Any]
    data: str = "data"
    """The teacher's training data, its "runs" at this many nodes, or "pairs" of their ends."""
    nodes: int = 8
    sampler: str = "flow-map"
    """With which the student is sampled."""
    until: float = students.UNTIL
    """The highest frequency at which the student is told where to go."""
    memory: torch.memory_format = torch.channels_last
    """A third faster on a CPU; torch has forward derivatives of group normalisation for contiguous tensors alone."""


MODELS: dict[str, dict[str, Any]] = {"digits": {}, "fashion": {"batch": 64}}
"""What a model wants in place of a recipe's options."""

SHAPES = {"digits": (1, 8, 8), "fashion": (1, 28, 28)}

_BASE = {"batch": 64, "lr": 1e-3, "ema": 0.995, "steps": 3000}
_DERIVATIVE = {**_BASE, "steps": 2000}
_PLAIN: dict[str, Any] = {"memory": torch.contiguous_format, "until": 6.0}
"""Of losses with derivatives. A derivative in s multiplies the network's error of frequency w by w (v_s - v_t), and the
updates of `lagrangian` grow without bound where that is large: they do at 100, and do not at 6."""

RECIPES: dict[str, Recipe] = {
    "trajectory": Recipe(
        lambda teacher: trajectory(path=teacher.path, nodes=8, ends=0.4), {**_BASE, "batch": 128, "steps": 4000}, "runs"
    ),
    "lagrangian": Recipe(methods.lagrangian, _DERIVATIVE, **_PLAIN),
    "ayf": Recipe(lambda teacher: replace(methods.ayf(teacher), metric=Adaptive(0.5)), _DERIVATIVE, **_PLAIN),
    "consistency": Recipe(
        lambda teacher: methods.consistency(teacher, stretches=Steps("jumps", 12)), _BASE, sampler="consistency"
    ),
    "ect": Recipe(lambda teacher: methods.ect(every=500, q=2.0), _BASE, sampler="consistency"),
    "scm": Recipe(lambda teacher: methods.scm(teacher, warmup=500), _DERIVATIVE, sampler="scm", **_PLAIN),
    "meanflow": Recipe(
        lambda teacher: methods.meanflow(0.5, times="uniform-t", metric=Adaptive(0.5)), _DERIVATIVE, **_PLAIN
    ),
    "shortcut": Recipe(
        lambda teacher: methods.shortcut(
            source="teacher", teacher=teacher, stretches=Halves(steps=16, diagonal=0.3), diagonal=0.3
        ),
        _BASE,
    ),
    "progressive": Recipe(lambda teacher: methods.progressive(teacher, 4, weight="none"), _BASE),
    "reflow": Recipe(lambda teacher: reflow(), _BASE, "pairs", sampler="euler"),
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
    settings["note"] = {"model": model, "method": method, "sampler": recipe.sampler, "until": recipe.until}
    begun = students.student(model, teacher, recipe.until)
    begun.net.to(memory_format=recipe.memory)  # type: ignore[attr-defined]
    return fit(recipe.loss(teacher), begun, data(recipe, model, teacher), out, **settings)


def data(recipe: Recipe, model: str, teacher: Model) -> Any:
    """What a recipe learns from."""
    if recipe.data == "data":
        images, labels = load_digits() if model == "digits" else load_fashion("train")
        return images, {"label": labels}
    labels = torch.randint(-1, 10, (RUNS,), generator=torch.Generator().manual_seed(0))
    nodes = recipe.nodes if recipe.data == "runs" else 1
    shape = (RUNS, *SHAPES[model])
    states: Tensor = runs(teacher, shape, nodes=nodes, fine=16 // nodes, cond={"label": labels}, batch=250)
    if recipe.data == "runs":
        return states, {"label": labels}
    return states[:, -1], {"label": labels, "noise": states[:, 0]}
