"""Models to sample from: Gaussian mixtures, whose predictions are exact, and a small trained network."""

from __future__ import annotations

from torch import Tensor

from diffsolve.common.registry import Registry
from diffsolve.models import Model, adapt
from diffsolve.paths import Path
from diffsolve.paths import named as path_named
from diffsolve.reference.mixture import GaussianMixture, ring
from diffsolve.tableau.frames import PREDICTIONS

__all__ = ["load", "mixture_model", "names"]


def mixture_model(mixture: GaussianMixture, path: str | Path = "condot", predicts: str = "velocity") -> Model:
    """The exact network of a Gaussian mixture: its posterior means, combined into any prediction on any path.

    A raw EDM prediction ("edm") uses sigma_data = 0.5, whatever the mixture's standard deviation.
    """
    where, sigma_data = path_named(path), 0.5

    def net(x: Tensor, network_time: Tensor) -> Tensor:
        # A raw EDM network gets c_noise = log(rho) / 4 as its time, and x scaled by c_in.
        t = (
            network_time
            if predicts != "edm"
            else where.time((-4 * network_time.double()).clamp(*where.lam([where.t_noise, where.t_data])))
        )
        p = where.at(t)
        a, b = (weight.to(x).view(-1, *[1] * (x.dim() - 1)) for weight in PREDICTIONS[predicts](p, sigma_data))
        scale = model.input_scale(p)
        if scale is not None:
            x = x / scale.to(x).view(-1, *[1] * (x.dim() - 1))
        data, noise = mixture.expectations(x, p.alpha.to(x), p.sigma.to(x))
        out: Tensor = a * data + b * noise
        return out

    model = adapt(net, where, predicts, sigma_data=sigma_data)
    return model


def _digits() -> Model:
    from diffsolve.reference import digits

    return adapt(digits.load(), "condot", "velocity")


def _mixture_2d(path: str = "condot", predicts: str = "velocity") -> Model:
    return mixture_model(ring(), path, predicts)


registry: Registry[Model] = Registry("model", Model, {"digits": _digits, "mixture-2d": _mixture_2d})


def load(name: str) -> Model:
    """A reference model by name.

    "digits": a small U-Net for 8 x 8 images, of any class or by `cond={"label": ...}`; shape (B, 1, 8, 8).
    "mixture-2d": eight Gaussians on a ring, exact; shape (B, 2). "mixture-2d(path='edm', predicts='noise')" puts
    it on another path.
    """
    return registry.resolve(name)


def names() -> list[str]:
    """The names that `load` accepts."""
    return registry.names()
