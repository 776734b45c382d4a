"""Models to sample from: Gaussian mixtures, exact or with a known error, and small trained networks."""

from __future__ import annotations

from functools import partial

from diffsolve.common.registry import Registry
from diffsolve.models import Model, adapt
from diffsolve.reference.mixture import ring
from diffsolve.reference.targets import imperfect_model, mixture_model

__all__ = ["imperfect_model", "load", "mixture_model", "names"]


def _digits(weights: str | None = None) -> Model:
    from diffsolve.reference import digits

    return adapt(digits.load(weights), "condot", "velocity")


def _fashion(objective: str, weights: str | None = None) -> Model:
    from diffsolve.reference import fashion

    return fashion.load(objective, weights)


def _student(of: str, weights: str | None = None) -> Model:
    from diffsolve.reference import students

    return students.load(of, weights)


def _mixture_2d(path: str = "condot", predicts: str = "velocity") -> Model:
    return mixture_model(ring(), path, predicts)


registry: Registry[Model] = Registry(
    "model",
    Model,
    {
        "digits": _digits,
        "digits-student": partial(_student, "digits"),
        "fashion": partial(_fashion, "flow"),
        "fashion-student": partial(_student, "fashion"),
        "fashion-noise": partial(_fashion, "noise"),
        "fashion-edm": partial(_fashion, "edm"),
        "fashion-latent": partial(_fashion, "latent"),
        "mixture-2d": _mixture_2d,
    },
)


def load(name: str) -> Model:
    """A reference model by name.

    "digits": a small U-Net for 8 x 8 images, of any class or by `cond={"label": ...}`; shape (B, 1, 8, 8).
    "digits(weights='mine.safetensors')" has the weights that `diffsolve train digits` wrote.
    "fashion": a small U-Net for the 28 x 28 images of Fashion-MNIST, of a class or of any, a velocity on CondOT; shape
    (B, 1, 28, 28). "fashion-noise" predicts the noise on the table "ddpm", "fashion-edm" is a raw EDM network;
    "fashion-latent" is a velocity of latents, shape (B, 4, 7, 7), of which `model.net.decode` makes images.
    All take `weights=`, a file of `diffsolve train fashion`.
    "digits-student" and "fashion-student": flow maps of those two for one to four calls; `weights=` is a file of
    `diffsolve distill`.
    "mixture-2d": eight Gaussians on a ring, exact; shape (B, 2). "mixture-2d(path='edm', predicts='noise')" puts
    it on another path.
    """
    return registry.resolve(name)


def names() -> list[str]:
    """The names that `load` accepts."""
    return registry.names()
