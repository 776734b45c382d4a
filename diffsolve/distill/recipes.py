"""How the digits network is distilled: its student, the data, and settings of each method that suit it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffsolve.common.checks import choice
from diffsolve.common.files import match, read_tensors, reading
from diffsolve.distill import methods
from diffsolve.distill.fit import fit
from diffsolve.distill.metrics import Adaptive
from diffsolve.distill.runs import reflow, runs, trajectory
from diffsolve.distill.stretches import Halves, Steps
from diffsolve.models import Model, adapt
from diffsolve.reference import digits
from diffsolve.reference.unet import UNet

__all__ = ["RECIPES", "Recipe", "about", "distill_digits", "load_student", "student"]

NOTE = "diffsolve"
RUNS = 20_000
ACCEPTED = "a student of `diffsolve distill` (of other weights say the model: 'fashion(weights=\"mine.safetensors\")')"


@dataclass(frozen=True)
class Recipe:
    """A method on the digits: its loss, and what `fit` gets."""

    loss: Callable[[Model], Callable[..., Any]]
    options: Mapping[str, Any]
    data: str = "digits"
    """The digits themselves, or "runs" of the teacher at this many nodes."""
    nodes: int = 8
    sampler: str = "flow-map"
    """With which the student is sampled."""


_BASE = {"batch": 128, "lr": 1e-3, "ema": 0.995, "steps": 4000}

RECIPES: dict[str, Recipe] = {
    "trajectory": Recipe(lambda teacher: trajectory(path=teacher.path, nodes=8, ends=0.4), _BASE, "runs"),
    "lagrangian": Recipe(methods.lagrangian, {**_BASE, "steps": 2000}),
    "ayf": Recipe(lambda teacher: replace(methods.ayf(teacher), metric=Adaptive(0.5)), {**_BASE, "steps": 2000}),
    "consistency": Recipe(
        lambda teacher: methods.consistency(teacher, stretches=Steps("jumps", 12)), _BASE, sampler="consistency"
    ),
    "ect": Recipe(lambda teacher: methods.ect(every=500, q=2.0), _BASE, sampler="consistency"),
    "scm": Recipe(lambda teacher: methods.scm(teacher, warmup=500), {**_BASE, "steps": 2000}, sampler="scm"),
    "meanflow": Recipe(
        lambda teacher: methods.meanflow(0.5, times="uniform-t", metric=Adaptive(0.5)), {**_BASE, "steps": 3000}
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


def student(teacher: Model) -> Model:
    """The digits' student: the teacher's network, told two times, which begins as the teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = UNet(in_channels=1, channels=24, multipliers=(1, 2), num_classes=10, times=2)
    net.load_state_dict(teacher.net.state_dict(), strict=False)  # type: ignore[attr-defined]
    return adapt(net, teacher.path, teacher.predicts, jumps="straight")


def load_student(path: str | os.PathLike[str]) -> Model:
    """The student that a file of `distill_digits` holds, in evaluation mode.

    Raises:
        ValueError: if the file is no such student.
    """
    model = student(adapt(digits.load(), "condot", "velocity"))
    weights, _ = read_tensors(path, NOTE, accepted=ACCEPTED)
    match(path, weights, model.net.state_dict())  # type: ignore[attr-defined]
    model.net.load_state_dict({name: value.float() for name, value in weights.items()})  # type: ignore[attr-defined]
    model.net.eval().requires_grad_(False)  # type: ignore[attr-defined]
    return model


def about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of `distill_digits` says of its student: the method, and the solver with which it is sampled.

    Raises:
        ValueError: if the file is no such student.
    """
    _, note = read_tensors(path, NOTE, accepted=ACCEPTED)
    with reading(path, ACCEPTED):
        choice("method", note["method"], RECIPES)
        choice("sampler", note["sampler"], {recipe.sampler for recipe in RECIPES.values()})
    return note


def distill_digits(method: str, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Distil the digits network by a method and write the student; the arguments are those of `ds.distill.fit`.

    Raises:
        ValueError: if the method has no recipe, or as of `ds.distill.fit`.
    """
    choice("method", method, RECIPES)
    recipe, teacher = RECIPES[method], adapt(digits.load(), "condot", "velocity")
    note = {"method": method, "sampler": recipe.sampler}
    settings = {**recipe.options, "dtype": torch.float16, "note": note, **options}
    return fit(recipe.loss(teacher), student(teacher), data(recipe, teacher), out, **settings)


def data(recipe: Recipe, teacher: Model) -> Any:
    """What a recipe learns from."""
    if recipe.data == "digits":
        images, labels = digits.load_data()
        return images, {"label": labels}
    labels = torch.randint(-1, 10, (RUNS,), generator=torch.Generator().manual_seed(0))
    nodes = recipe.nodes if recipe.data == "runs" else 1
    states: Tensor = runs(teacher, (RUNS, 1, 8, 8), nodes=nodes, fine=16 // nodes, cond={"label": labels})
    if recipe.data == "runs":
        return states, {"label": labels}
    return states[:, -1], {"label": labels, "noise": states[:, 0]}
