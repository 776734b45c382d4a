"""Our configurations: solvers and grids by the names and options that a user would type."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from endpoint.problems import Course, Problem
from endpoint.runner import OWN_GRID, Pair, Table, measure

TWINS = [
    "ddim", *(f"lms-{k}" for k in (2, 3, 4)), *(f"ipndm-{k}" for k in (3, 4)), "pndm", "plms",
    *(f"tab-{k}" for k in (1, 2)),
    *(f"deis-{k}(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"res-{k}m(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"dpmpp-{k}m(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"dpmpp-{k}m(frame='noise')" for k in (2, 3)),
    *(
        f"unipc-{k}(frame={frame!r}, bh={bh!r}, lower_final={lower})"
        for k in (2, 3) for frame in ("denoised", "noise") for bh in ("bh1", "bh2") for lower in (False, True)
    ),
    *(f"{name}(frame='noise')" for name in ("heun", "midpoint", "rk4-38")), "dpm-2s", "dpm-3s", "dpmpp-2s", "dpmpp-3s",
]  # fmt: skip
"""The methods that peers have, by our names."""

PEER_GRIDS = {
    "ve": ["karras", "karras(rho=5)", "exponential"],
    "vp": ["karras", "exponential", "uniform-t", "trailing"],  # on a table uniform-t is linspace
    "flow": ["uniform-t", "shifted(shift=3)"],
}

OWN = [
    *(f"ab-{k}" for k in (2, 3, 4, 5)), "ab-2(frame='trig')", "ab-3(frame='trig')",
    "ab-3(start='heun')", "ab-4(start='rk4')", "ab-5(start='rk4')",
    "heun", "midpoint", "bosh3", "rk4", "rk4-38", "midpoint(frame='lambda')",
]  # fmt: skip
"""Adams and Runge-Kutta methods in frames that are regular at the ends."""

OWN_GRIDS = {
    "ve": ["uniform-u", "uniform-theta"],
    "vp": ["uniform-u", "uniform-t", "trailing"],
    "flow": ["uniform-t", "shifted(shift=0.7)", "beta"],
}


def named(course: str) -> list[Pair]:
    """The methods that have a name, on the grids that they go with."""
    return [*itertools.product(TWINS, PEER_GRIDS[course]), *itertools.product(OWN, OWN_GRIDS[course])]


def abm(points: int, frame: str = "straight", variable: str | None = None, corrector: int | None = None) -> str:
    """A member of the multistep family."""
    options = {"frame": frame, "variable": variable, "corrector": points + 1 if corrector is None else corrector}
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"ab-{points}({', '.join(given)})"


def family() -> list[str]:
    """The multistep family, where a wide crossing of all of it found any good."""
    straight, trig, denoised = ("straight", "theta"), ("trig", "u"), ("denoised", "theta")
    found = [abm(p, "straight", variable) for p in (1, 2, 3) for variable in (None, "lambda", "rho7", "log-u")]
    found += [abm(p, *straight) for p in (1, 2, 3, 4, 5, 6)] + [abm(p, *straight, p + 2) for p in (1, 2, 3, 4)]
    found += [abm(p, "trig", None) for p in (4, 5, 6)] + [abm(p, *trig) for p in (2, 4, 5)]
    found += [abm(p, *denoised) for p in (2, 6)] + [abm(p, "noise", "lambda") for p in (2, 3)]
    return [*found, abm(1, "noise", "theta"), abm(3, "straight", None, 0), abm(2, "straight", "rho7", 0)]


def family_grids(course: str) -> list[str]:
    """Where the family is tried."""
    angles = [
        (1.5, 1.5), (1.5, 2.0), (2.0, 1.25), (2.0, 1.5), (2.0, 2.0), (3.0, 1.5), (3.0, 2.0),
        (5.0, 2.0), (5.0, 2.5), (8.0, 2.0), (8.0, 2.5),
    ]  # fmt: skip
    common = [
        "uniform-u", "polynomial(power=1.25, variable='u')", "polynomial(power=1.5, variable='u')",
        "polynomial(power=1.5, variable='theta')",
        *(f"angle(scale={scale:g}, power={power:g})" for scale, power in angles),
    ]  # fmt: skip
    own = {
        "ve": ["karras", "karras(rho=3)"],
        "vp": ["exponential", "quadratic", "polynomial(power=1.5)"],
        "flow": ["beta", "polynomial(power=1.25)"],
    }
    return [*common, *own[course]]


PREDICTIONS = {"ve": ("denoised", "score", "edm"), "vp": ("noise", "v"), "flow": ("velocity",)}
"""What networks of each path predict. An exact one predicts all of them; the rule behind `auto` asks which."""


def auto(course: Course, budgets: Sequence[int], problems: Sequence[Problem]) -> Table:
    """`auto` as who names no solver gets it: by prediction and size of a sample, on its own grid, to the data."""
    course = replace(course, stop=None)
    table: Table = {}
    for problem in problems:
        rules = {f"auto, {p}": f"auto(predicts={p!r}, size={problem.dim})" for p in PREDICTIONS[course.name]}
        found = measure(course, [(rule, OWN_GRID) for rule in rules.values()], budgets, [problem], problem.name)
        table[problem.name] = dict(zip(rules, found[problem.name].values(), strict=True))
    return table


POINTS: list[Pair] = [(abm(p, "straight", "theta"), "angle") for p in range(1, 7)]
"""Adams in the angle, which is what is best without an error: what `auto` was once, by the number of points."""
