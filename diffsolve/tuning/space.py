"""The solvers and grids that `choose` knows: points of the space in which the named methods lie too."""

from __future__ import annotations

import itertools

__all__ = ["OWN", "Pair", "space"]

Pair = tuple[str, str | None]
"""A solver and a grid, by the names and options that a user would type; None is the solver's own grid."""

OWN: Pair = ("auto", None)
"""The fixed rule, which every choice is compared with."""

ANGLES = tuple(
    f"angle(scale={scale:g}, power={power:g})"
    for scale, power in ((1.5, 1.5), (2, 1.25), (2, 2), (3, 1.5), (3, 2), (5, 2.5), (8, 2.5))
)
"""Even in a power of an angle: more steps in the middle, towards more noise with a larger scale."""

EVEN = ("angle", "uniform-u", "polynomial(power=1.5, variable='u')", "polynomial(power=1.5, variable='theta')")
LEVELS = ("karras", "karras(rho=5)", "exponential")
TIMES = ("uniform-t", "quadratic", "beta")
ARCS = (
    "arc(scale=0.8, power=0.9, even=0.48)",
    "arc(scale=0.37, power=0.3)",
    "arc(scale=0.6, power=0.6)",
)
"""Those of `auto` for noise, the denoised, and velocities."""

PUBLISHED = (
    *("ddim", "ipndm-3", "deis-2", "deis-3(lower_final=False)", "dpmpp-2m", "dpmpp-2m(lower_final=False)", "dpmpp-3m"),
    *("dpmpp-2m(frame='noise')", "dpmpp-3m(frame='noise')", "unipc-2", "unipc-3", "unipc-3(frame='noise')", "heun"),
)


def _adams(points: int, frame: str, variable: str | None = None, corrector: int | None = None) -> str:
    """Adams' method of so many values in a frame and a variable, with a corrector of one value more."""
    options = {"frame": frame, "variable": variable, "corrector": points + 1 if corrector is None else corrector}
    return f"ab-{points}({', '.join(f'{name}={value!r}' for name, value in options.items() if value is not None)})"


LOW = (*(_adams(p, "straight", v) for p in (1, 2, 3) for v in (None, "lambda", "rho7")), _adams(1, "noise", "theta"))
HIGH = (
    *(_adams(p, "straight", "theta") for p in range(1, 7)),
    *(_adams(p, "straight", "theta", p + 2) for p in (1, 2, 3, 4)),
    *(_adams(p, "trig") for p in (5, 6)),
    *(_adams(p, "trig", "u") for p in (4, 5)),
    *(_adams(p, "denoised", "theta") for p in (2, 6)),
)


def space() -> list[Pair]:
    """All pairs; `auto` on its own grid is the first."""
    pairs: list[Pair] = [OWN, *itertools.product(("auto", "designed"), (None, *ARCS, *EVEN, *ANGLES))]
    pairs += itertools.product((*LOW, *HIGH), (*ANGLES, *EVEN))
    pairs += itertools.product(LOW, (*ARCS, *LEVELS))
    pairs += itertools.product(PUBLISHED, (None, *LEVELS, *TIMES))
    return list(dict.fromkeys(pairs))
