"""The options of `ds.sample`, `ds.solve` and `ds.encode`, declared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor

from diffsolve.adaptive import Adaptive, AdaptiveSDE
from diffsolve.common.checks import choice, instance, integer, required
from diffsolve.dynamics import Langevin
from diffsolve.execute.executor import State
from diffsolve.execute.options import StartOptions
from diffsolve.execute.plan import DEFAULT_SOLVER
from diffsolve.execute.results import Step
from diffsolve.gradients import GRADIENTS
from diffsolve.models import Guidance
from diffsolve.parallel import Parallel
from diffsolve.solvers import Solver
from diffsolve.tableau import Tableau

__all__ = ["DEFAULTS", "AnySolver", "CommonOptions", "SampleOptions", "SolveOptions", "check_values"]

AnySolver = str | Solver | Tableau | Adaptive | AdaptiveSDE

DEFAULTS: dict[str, Any] = {
    "solver": DEFAULT_SOLVER,
    "index": 0,
    "trajectory": False,
    "log_prob": False,
    "progress": False,
    "check": False,
    "graph": False,
}
"""Of the options whose default is not None."""


class CommonOptions(StartOptions, total=False):
    """The options of a run, whatever the driver; documented in `ds.solve`."""

    cond: Mapping[str, Any] | None
    guidance: float | Guidance | None
    corrector: Langevin | None
    hook: Callable[[Step], Tensor | None] | None
    callback: Callable[[Step], object] | None
    progress: bool
    check: bool
    max_calls: int | None
    variance: Literal["learned"] | None
    graph: bool
    parallel: Parallel | None
    gradient: Literal["direct", "checkpoint", "adjoint"] | None


class SampleOptions(CommonOptions, total=False):
    """The options of `ds.sample`."""

    solver: AnySolver


class RunOptions(CommonOptions, total=False):
    """The options of `ds.sample` and what a `Run` can also keep; the overloads of `ds.solve` add solver."""

    trajectory: bool | Literal["calls"]


class SolveOptions(RunOptions, total=False):
    """The options of `ds.solve`."""

    solver: AnySolver
    log_prob: bool | Literal["model"]


def check_values(options: Mapping[str, Any]) -> None:
    """Check that every given option has a value that some driver accepts.

    Raises:
        ValueError: if an option has an unknown value or is out of range.
        TypeError: if an option is of the wrong type.
    """
    for name, values in (("trajectory", (False, True, "calls")), ("log_prob", (False, True, "model"))):
        choice(name, options.get(name, False), values)
    choice("gradient", options.get("gradient"), (None, *GRADIENTS))
    choice("variance", options.get("variance"), (None, "learned"))
    for name in ("progress", "check", "graph"):
        instance(name, options.get(name, False), bool, "True or False")
    for name in ("hook", "callback", "brownian"):
        value = options.get(name)
        required(value is None or callable(value), name, value, "callable", TypeError)
    kinds = {"corrector": Langevin, "parallel": Parallel, "state": State}
    together = "a ds.Picard, a ds.Parareal or a ds.Independent"
    accepted = {"corrector": "a ds.Langevin", "parallel": together, "state": "a ds.State"}
    for name, kind in kinds.items():
        instance(name, options.get(name), (kind, type(None)), accepted[name])
    if options.get("max_calls") is not None:
        integer("max_calls", options["max_calls"], 1)
