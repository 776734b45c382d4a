"""Our configurations: solvers and grids by the names and options that a user would type."""

from __future__ import annotations

import itertools

from endpoint.runner import Pair

ONE_CALL = [
    "ddim",
    *(f"ab-{k}" for k in (2, 3, 4, 5)), "ab-2(frame='trig')", "ab-3(frame='trig')",
    "ab-3(start='heun')", "ab-4(start='rk4')", "ab-5(start='rk4')",
    *(f"lms-{k}" for k in (2, 3, 4)), *(f"ipndm-{k}" for k in (2, 3, 4)), "pndm", "plms",
    *(f"tab-{k}" for k in (1, 2, 3)),
    *(f"deis-{k}(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"res-{k}m(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"dpmpp-{k}m(lower_final={lower})" for k in (2, 3) for lower in (False, 15)),
    *(f"dpmpp-{k}m(frame='noise')" for k in (2, 3)),
    *(
        f"unipc-{k}(frame={frame!r}, bh={bh!r}, lower_final={lower})"
        for k in (2, 3) for frame in ("denoised", "noise") for bh in ("bh1", "bh2") for lower in (False, True)
    ),
]  # fmt: skip
"""Multistep methods: those of the peers, and what else has a name."""

MORE_CALLS = [
    "heun", "midpoint", "ralston", "bosh3", "ssprk3", "rk4", "rk4-38", "midpoint(frame='lambda')",
    *(f"{name}(frame='noise')" for name in ("heun", "midpoint", "bosh3", "rk4", "rk4-38")),
    "dpm-2s", "dpm-3s", "dpmpp-2s", "dpmpp-3s", "res-2s", "res-3s", "etdrk-4s",
]  # fmt: skip

GRIDS = {
    "ve": ["karras", "karras(rho=5)", "exponential", "uniform-u", "uniform-theta", "angle"],
    "vp": ["karras", "exponential", "uniform-t", "trailing", "uniform-u", "uniform-theta", "angle"],
    "flow": ["uniform-t", "shifted(shift=3)", "shifted(shift=0.7)", "uniform-theta", "beta", "angle"],
}
"""The peers' grids (`uniform-t` is linspace on a table) and what else has a name."""


def named(course: str) -> list[Pair]:
    """Every named solver on every grid of a course."""
    return list(itertools.product([*ONE_CALL, *MORE_CALLS], GRIDS[course]))


def abm(points: int, frame: str = "straight", variable: str | None = None, corrector: int | None = None) -> str:
    """A member of the multistep family."""
    options = {"frame": frame, "variable": variable, "corrector": points + 1 if corrector is None else corrector}
    given = [f"{name}={value!r}" for name, value in options.items() if value is not None]
    return f"ab-{points}({', '.join(given)})"


NEAR = [
    ("straight", None), ("straight", "theta"), ("straight", "lambda"), ("straight", "rho7"), ("straight", "log-u"),
    ("trig", None), ("trig", "u"), ("trig", "log-u"), ("denoised", "theta"), ("noise", "theta"), ("noise", "lambda"),
]  # fmt: skip
"""Frames, and variables to interpolate in: those of which a wide crossing of all found any good."""


def family() -> list[str]:
    """The multistep family: points, frame, variable and corrector."""
    wide = [abm(p, *near) for p in (1, 2, 3) for near in NEAR]
    high = [abm(p, *near) for p in (4, 5, 6) for near in (*NEAR[:2], *NEAR[5:7], NEAR[8])]
    longer = [abm(p, "straight", "theta", p + 2) for p in (1, 2, 3, 4)]
    shorter = [abm(p, "straight", "theta", p) for p in (2, 3, 4)]
    plain = [abm(p, *near, 0) for p in (2, 3, 4) for near in NEAR[:4]]
    return [*wide, *high, *longer, *shorter, *plain]


def family_grids(course: str) -> list[str]:
    """Where the family is tried."""
    angles = [
        *itertools.product((1.0, 1.5, 2.0, 3.0), (1.25, 1.5, 2.0)),
        *itertools.product((5.0, 7.0, 10.0), (1.5, 2.0, 2.5)),
    ]
    common = [
        "uniform-u", "polynomial(power=1.25, variable='u')", "polynomial(power=1.5, variable='u')",
        "shifted(shift=1.4, variable='u')", "polynomial(power=1.5, variable='theta')",
        *(f"angle(scale={scale:g}, power={power:g})" for scale, power in angles),
    ]  # fmt: skip
    own = {
        "ve": ["karras", "karras(rho=3)"],
        "vp": ["exponential", "quadratic", "polynomial(power=1.5)"],
        "flow": ["beta", "polynomial(power=1.25)", "shifted(shift=2)"],
    }
    return [*common, *own[course]]


RULE: list[Pair] = [("auto", grid) for grid in ("angle", "angle(scale=2)", "angle(scale=5)", "uniform-u")]
"""auto on its own grid, and on others to compare."""

POINTS: list[Pair] = [(abm(p, "straight", "theta"), "angle") for p in range(1, 7)]
"""What auto chooses among."""
