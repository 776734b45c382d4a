"""What a peer is: a run on the exact network, which counts its calls; and the peers' grids."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor

from endpoint.problems import Bundle, Course

Level = tuple[float, float]
Result = tuple[Tensor, Level | None]
"""The state, and the (alpha, sigma) it stands at; None for the course's end."""


class Spent(Exception):
    """More calls than the budget."""


class Net:
    """The exact network, which counts its calls."""

    def __init__(self, course: Course, problem: Bundle, nfe: int) -> None:
        self.course, self.problem, self.nfe, self.calls = course, problem, nfe, 0

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """(E[x_0 | x], E[eps | x])."""
        self.calls += 1
        if self.calls > self.nfe:
            raise Spent
        return self.problem.fast(x.as_subclass(Tensor), float(alpha), float(sigma))

    def denoised(self, x: Tensor, rho: Any) -> Tensor:
        """k-diffusion's model: x / alpha and rho."""
        return self(x, 1.0, float(rho.reshape(-1)[0]))[0]

    def eps(self, x: Tensor, rho: Any) -> Tensor:
        return self(x, 1.0, float(rho))[1]

    def velocity(self, x: Tensor, sigma: Any) -> Tensor:
        """eps - x_0 of a straight path."""
        data, noise = self(x, 1 - float(sigma), float(sigma))
        return noise - data

    @property
    def start(self) -> Tensor:
        """x / alpha at the noise end."""
        return self.problem.start(self.course) / self.course.start[0]

    @property
    def ends(self) -> tuple[float, float]:
        """rho at the start and the end of the course."""
        return tuple(sigma / alpha for alpha, sigma in (self.course.start, self.course.end))

    def finish(self, x: Tensor) -> Result:
        """The state from x / alpha at the end of the course."""
        return x * self.course.end[0], None


@dataclass(frozen=True)
class Peer:
    name: str
    solve: Callable[[Net, int], Result]
    """(net, steps) -> the result."""
    calls: Callable[[int], int] = lambda nfe: nfe
    """The steps that fit a budget; fewer are tried if they do not."""
    adaptive: bool = False


def run(peer: Peer, course: Course, problem: Bundle, nfe: int) -> tuple[list[float], int] | None:
    """(the error on each problem, calls made) with at most `nfe` calls; None if the method has no such run."""
    for steps in range(peer.calls(nfe), max(peer.calls(nfe) - 16, 0), -1):
        net = Net(course, problem, nfe)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                x, level = peer.solve(net, steps)
        except Spent:
            if peer.adaptive:
                return None
            continue
        except (ValueError, IndexError, AssertionError, RuntimeError):
            return None
        return problem.errors(course, x.as_subclass(Tensor).double(), level), net.calls
    return None


# Grids, as levels of rho ------------------------------------------------------------------------------------------


def karras(net: Net, n: int, rho: float = 7.0) -> np.ndarray:
    high, low = net.ends
    levels = np.linspace(high ** (1 / rho), low ** (1 / rho), n + 1) ** rho
    return np.concatenate([[high], levels[1:-1], [low]])


def exponential(net: Net, n: int) -> np.ndarray:
    return np.geomspace(*net.ends, n + 1)


def rows(net: Net, at: np.ndarray) -> np.ndarray:
    return net.course.path.rho(np.maximum(at, 0.0)).numpy()


def linspace(net: Net, n: int) -> np.ndarray:
    return rows(net, np.linspace(999, 0, n + 1))


def trailing(net: Net, n: int) -> np.ndarray:
    return rows(net, np.round(np.arange(n, -1, -1) * 1000 / n) - 1)


GRIDS: dict[str, dict[str, Callable[[Net, int], np.ndarray]]] = {
    "ve": {"karras": karras, "karras5": functools.partial(karras, rho=5.0), "exponential": exponential},
    "vp": {"karras": karras, "exponential": exponential, "linspace": linspace, "trailing": trailing},
}


@functools.cache
def loader() -> ModuleType:
    """tests/support/peers.py, which loads k-diffusion without the training code around it."""
    file = FilePath(__file__).resolve().parents[3] / "tests" / "support" / "peers.py"
    spec = importlib.util.spec_from_file_location("diffsolve_test_peers", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
