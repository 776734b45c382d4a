"""Gaussian paths x_t = alpha(t) x_0 + sigma(t) eps: alpha, sigma, their inverse and their ends.

A path is a value: two equal paths give equal numbers, and building one twice changes nothing. All of it is
float64, whatever the network's dtype. `t` is the path's own clock, which is also the clock of the network
unless `adapt(..., clock=...)` says otherwise. Writing lambda = log(alpha / sigma), every path runs from its
noise end (`t_noise`, lambda smallest) to its data end (`t_data`, sigma = 0, lambda = +inf).
"""

from diffsolve.common.registry import Registry
from diffsolve.paths.base import Path, Position
from diffsolve.paths.continuous import EDM, VE, VP, CondOT, Cosine, Rectified, SubVP
from diffsolve.paths.custom import Custom
from diffsolve.paths.table import Discrete

__all__ = [
    "EDM",
    "VE",
    "VP",
    "CondOT",
    "Cosine",
    "Custom",
    "Discrete",
    "Path",
    "Position",
    "Rectified",
    "SubVP",
    "named",
    "names",
    "register",
]

registry: Registry[Path] = Registry(
    "path",
    Path,
    {
        "condot": CondOT,
        "cosine": Cosine,
        "ddpm": Discrete.linear,
        "ddpm-cosine": Discrete.cosine,
        "ddpm-scaled-linear": Discrete.scaled_linear,
        "edm": EDM,
        "rectified": Rectified,
        "subvp": SubVP,
        "ve": VE,
        "vp": VP,
    },
    group="diffsolve.paths",
)
register = registry.register


def named(path: str | Path) -> Path:
    """The path of that name, as in `"edm"` or `"rectified(shift=3.0)"`; a `Path` is returned as it is."""
    return registry.resolve(path)


def names() -> list[str]:
    """The names that `path=` accepts."""
    return registry.names()
