"""Students of the reference models, on which `ds.load` and `diffsolve distill` agree: their networks, told more.

`diffsolve.distill.RECIPES` says how they are trained.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from diffsolve.common.checks import choice, number
from diffsolve.common.files import match, read_tensors, reading
from diffsolve.models import Model, adapt
from diffsolve.reference.embedding import fourier, refit
from diffsolve.reference.told import WithScale
from diffsolve.reference.unet import UNet

__all__ = ["ACCEPTED", "KEY", "NETWORKS", "load", "student"]

KEY = "diffsolve"  # the one entry of the files' metadata, a JSON object
ACCEPTED = "a student of `diffsolve distill` (of other weights say the model: 'fashion(weights=\"mine.safetensors\")')"

NETWORKS: dict[str, Callable[..., UNet]] = {
    "digits": partial(UNet, 1, 24, (1, 2), num_classes=10),
    "fashion": partial(UNet, 1, 32, (1, 2), num_classes=10, patch=2),
}
"""Each teacher's network, freshly initialised."""
TOLD = ("until", "scale")
SPAN = 4.0
"""The largest scale of guidance that students are told."""

HIGHEST = 100.0
"""The highest frequency at which the teachers are told the time, and students whose files do not say it."""
POINTS = 512
"""Times at which a smoother embedding is fitted."""


def student(
    of: str,
    teacher: Model | None = None,
    highest: float = HIGHEST,
    until: float | None = None,
    told: str = "until",
) -> Model:
    """A student of the teacher "digits" or "fashion": its network, told more, which begins as the teacher.

    Without a teacher its weights are random, the same each time.

    Args:
        highest, until: as in `UNet`; of a `highest` that is not the teacher's, the embedding of t is fitted to the
            teacher's first.
        told: "until", where to go; or "scale", that of guidance, at most `SPAN`, and no second time.
    """
    choice("of", of, NETWORKS)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        net = NETWORKS[of](highest=highest, until=until, times=2 if told == "until" else 1)
    if teacher is not None:
        taught: Any = teacher.net
        net.load_state_dict(taught.state_dict(), strict=False)
        if highest != taught.highest:
            t = torch.linspace(0, 1, POINTS)
            with torch.no_grad():
                wanted = taught.time(fourier(t, taught.features, taught.highest))
            refit(net.time, fourier(t, net.features, highest), wanted)
    if choice("told", told, TOLD) == "until":
        return adapt(net, "condot", "velocity", jumps="straight")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return adapt(WithScale(net, net.time, SPAN), "condot", "velocity")


def load(of: str, path: str | PathLike[str] | None = None) -> Model:
    """A trained student in float32, in evaluation mode, its parameters frozen.

    Args:
        of: its teacher, "digits" or "fashion".
        path: a file of `diffsolve distill`; by default the one in the package.

    Raises:
        ValueError: if there is no such teacher, or the file is no student of it.
    """
    choice("of", of, NETWORKS)
    packaged = resources.files(__package__) / "weights" / f"{of}-student.safetensors"
    with resources.as_file(packaged) if path is None else nullcontext(Path(path)) as file:
        weights, note = read_tensors(file, KEY, accepted=ACCEPTED)
        with reading(file, ACCEPTED):
            highest = number("highest", note.get("highest", HIGHEST), above=0)
            until = number("until", note.get("until", highest), above=0)
            model = student(of, None, highest, until, choice("told", note.get("told", "until"), TOLD))
        match(file, weights, model.net.state_dict())  # type: ignore[attr-defined]
    model.net.load_state_dict({name: value.float() for name, value in weights.items()})  # type: ignore[attr-defined]
    model.net.eval().requires_grad_(False)  # type: ignore[attr-defined]
    return model
