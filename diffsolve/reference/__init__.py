"""Models to sample from: Gaussian mixtures, exact or with a known error, and a small trained network."""

from __future__ import annotations

from diffsolve.common.registry import Registry
from diffsolve.models import Model, adapt
from diffsolve.reference.mixture import ring
from diffsolve.reference.targets import imperfect_model, mixture_model

__all__ = ["imperfect_model", "load", "mixture_model", "names"]


def _digits(weights: str | None = None) -> Model:
    from diffsolve.reference import digits

    return adapt(digits.load(weights), "condot", "velocity")


def _mixture_2d(path: str = "condot", predicts: str = "velocity") -> Model:
    return mixture_model(ring(), path, predicts)


registry: Registry[Model] = Registry("model", Model, {"digits": _digits, "mixture-2d": _mixture_2d})


def load(name: str) -> Model:
    """A reference model by name.

    "digits": a small U-Net for 8 x 8 images, of any class or by `cond={"label": ...}`; shape (B, 1, 8, 8).
    "digits(weights='mine.safetensors')" has the weights that `diffsolve train digits` wrote.
    "mixture-2d": eight Gaussians on a ring, exact; shape (B, 2). "mixture-2d(path='edm', predicts='noise')" puts
    it on another path.
    """
    return registry.resolve(name)


def names() -> list[str]:
    """The names that `load` accepts."""
    return registry.names()
