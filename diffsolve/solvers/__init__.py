"""Solvers: each writes a tableau for a path and a grid, and knows nothing of networks.

To add one: a `Multistep` with other weights overrides `predict` (see `DPMpp`), anything else is a `Solver` with
`write`; then a line in the registry below gives it a name.
"""

from collections.abc import Callable

from diffsolve.names import Registry
from diffsolve.solvers.base import Solver
from diffsolve.solvers.multistep import DPMpp, Multistep, UniPC
from diffsolve.solvers.runge_kutta import HEUN, MIDPOINT, RALSTON, RK4, Butcher, RungeKutta
from diffsolve.solvers.stochastic import DDIM

__all__ = ["DDIM", "Butcher", "DPMpp", "Multistep", "RungeKutta", "Solver", "UniPC", "named", "names"]


def _runge_kutta(method: Butcher) -> Callable[..., RungeKutta]:
    def make(frame: str = "straight") -> RungeKutta:
        return RungeKutta(method, frame)

    return make


def _adams(points: int) -> Callable[..., Multistep]:
    def make(
        frame: str = "straight", variable: str | None = None, corrector: int = 0, lower_final: bool = False
    ) -> Multistep:
        return Multistep(points, frame, variable, corrector, lower_final)

    return make


def _unipc(points: int) -> Callable[..., UniPC]:
    def make(frame: str = "denoised", bh: str = "bh2", lower_final: bool = True) -> UniPC:
        return UniPC(points, frame, bh=bh, lower_final=lower_final)

    return make


def _dpmpp(points: int) -> Callable[..., DPMpp]:
    def make(lower_final: bool = False) -> DPMpp:
        return DPMpp(points, lower_final=lower_final)

    return make


registry: Registry[Solver] = Registry(
    "solver",
    Solver,
    {
        "euler": _adams(1),
        "ab-1": _adams(1),
        "ab-2": _adams(2),
        "ab-3": _adams(3),
        "ab-4": _adams(4),
        "ddim": DDIM,
        "dpmpp-2m": _dpmpp(2),
        "dpmpp-3m": _dpmpp(3),
        "heun": _runge_kutta(HEUN),
        "midpoint": _runge_kutta(MIDPOINT),
        "ralston": _runge_kutta(RALSTON),
        "rk4": _runge_kutta(RK4),
        "unipc-1": _unipc(1),
        "unipc-2": _unipc(2),
        "unipc-3": _unipc(3),
    },
)


def named(solver: str | Solver) -> Solver:
    """The solver of that name, as in `"heun"` or `"ddim(eta=0.5)"`; a `Solver` is returned as it is."""
    return registry.resolve(solver)


def names() -> list[str]:
    """The names that `solver=` accepts."""
    return registry.names()
