"""Where the steps go."""

from diffsolve.common.registry import Registry
from diffsolve.grids.base import Grid
from diffsolve.grids.spaced import Distilled, Spaced
from diffsolve.grids.warps import Angle, Arc, Beta, Jumps, Karras, Power, Shifted, Uniform, Warp
from diffsolve.grids.whole import Whole

__all__ = [
    "Angle",
    "Arc",
    "Beta",
    "Distilled",
    "Grid",
    "Jumps",
    "Karras",
    "Power",
    "Shifted",
    "Spaced",
    "Uniform",
    "Warp",
    "Whole",
    "named",
    "names",
    "register",
]

registry: Registry[Grid] = Registry(
    "grid",
    Grid,
    {
        "angle": Angle,
        "arc": Arc,
        "beta": Beta,
        "distilled": Distilled,
        "exponential": lambda: Uniform("lambda"),
        "jumps": Jumps,
        "karras": Karras,
        "leading": lambda offset=0: Spaced("leading", offset),
        "linspace": lambda: Spaced("linspace"),
        "polynomial": lambda power=2.0, variable="t": Power(variable, power),
        "quadratic": lambda: Power("t", 2.0),
        "respaced": lambda sections=(): Spaced("respaced", sections=sections),
        "shifted": lambda shift=3.0, variable="t": Shifted(variable, shift),
        "trailing": lambda: Spaced("trailing"),
        "uniform-lambda": lambda: Uniform("lambda"),
        "uniform-rho": lambda: Uniform("rho"),
        "uniform-t": lambda: Uniform("t"),
        "uniform-theta": lambda: Uniform("theta"),
        "uniform-u": lambda: Uniform("u"),
    },
    group="diffsolve.grids",
)
register = registry.register


def named(grid: str | Grid) -> Grid:
    """The grid of that name, as in `"karras(rho=5)"`; a `Grid` is returned as it is."""
    return registry.resolve(grid)


def names() -> list[str]:
    """The names that `grid=` accepts."""
    return registry.names()
