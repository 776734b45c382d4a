"""Models to sample from: exact mixtures, whose every prediction is known, and a small trained network."""

from __future__ import annotations

from torch import Tensor

from diffsolve.frames import PREDICTIONS
from diffsolve.models import Model, adapt
from diffsolve.names import Registry
from diffsolve.paths import Path
from diffsolve.paths import named as path_named
from diffsolve.reference.mixture import GaussianMixture, ring

__all__ = ["load", "mixture_model", "names"]


def mixture_model(mixture: GaussianMixture, path: str | Path = "condot", predicts: str = "velocity") -> Model:
    """The exact network of a Gaussian mixture: its posterior means, combined into any prediction on any path."""
    where = path_named(path)

    def net(x: Tensor, t: Tensor) -> Tensor:
        p = where.at(t)
        data, noise = mixture.expectations(x, p.alpha.to(x), p.sigma.to(x))
        a, b = (weight.to(x).view(-1, *[1] * (x.dim() - 1)) for weight in PREDICTIONS[predicts](p, 0.5))
        return a * data + b * noise

    return adapt(net, where, predicts)


def _digits() -> Model:
    from diffsolve.reference import digits

    return adapt(digits.load(), "condot", "velocity")


registry: Registry[Model] = Registry(
    "model",
    Model,
    {
        "digits": _digits,
        "mixture-2d": lambda path="condot", predicts="velocity": mixture_model(ring(), path, predicts),
    },
)


def load(name: str) -> Model:
    """A reference model by name: "digits" (8 x 8 images, classes 0 to 9 by `cond={"label": ...}`), or
    "mixture-2d" (eight Gaussians on a ring, exact; options path and predicts, as in "mixture-2d(path='edm')").
    """
    return registry.resolve(name)


def names() -> list[str]:
    """The names that `load` accepts."""
    return registry.names()
