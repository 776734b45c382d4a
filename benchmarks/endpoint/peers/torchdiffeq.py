"""The fixed and adaptive methods of torchdiffeq."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from endpoint.peers.base import GRIDS, Net, Peer, Result
from endpoint.problems import Course


def torchdiffeq(course: Course) -> Iterator[Peer]:
    try:
        from torchdiffeq import odeint
    except ImportError:
        return
    flow = course.name == "flow"

    def integrate(net: Net, levels: np.ndarray, **options: Any) -> Result:
        """In rho with x / alpha; the velocity of a flow in its sigma."""
        right = (lambda t, x: net.velocity(x, t)) if flow else (lambda t, x: net.eps(x, t))
        x = net.problem.start(net.course) if flow else net.start
        end = odeint(right, x, torch.from_numpy(np.ascontiguousarray(levels)), **options)[-1]
        return (end, None) if flow else net.finish(end)

    def fixed(method: str, options: dict[str, Any] | None, grid: Any, net: Net, n: int) -> Result:
        return integrate(net, grid(net, n), method=method, options=options)

    where: dict[str, Any] = {"uniform": lambda net, n: np.linspace(1, 0, n + 1)} if flow else GRIDS[course.name]
    methods: dict[str, tuple[str, dict[str, Any] | None, int]] = {
        "euler": ("euler", None, 1), "midpoint": ("midpoint", None, 2), "heun2": ("heun2", None, 2),
        "heun3": ("heun3", None, 3), "rk4": ("rk4", None, 4),
        **{f"adams{k}": ("explicit_adams", {"max_order": k}, 1) for k in (2, 3, 4, 5)},
    }  # fmt: skip
    for (name, (method, options, stages)), (at, grid) in ((m, g) for m in methods.items() for g in where.items()):
        # Its Adams methods start with Runge-Kutta steps, which cost more: `run` tries fewer.
        solve = functools.partial(fixed, method, options, grid)
        yield Peer(f"torchdiffeq {name} {at}", solve, functools.partial(_divided, stages))

    def adaptive(method: str, rtol: float, net: Net, n: int) -> Result:
        full = math.sqrt(net.problem.shrunk)  # the norm of all dimensions
        options = {"norm": lambda e: e.square().mean().sqrt() * full}
        if flow:
            return integrate(net, np.array([1.0, 0.0]), method=method, rtol=rtol, atol=rtol, options=options)
        high, low = net.ends
        # In log rho: in rho itself its first step leaves the path.
        right = lambda t, x: net.eps(x, t.exp()) * t.exp()  # noqa: E731
        t = torch.tensor([math.log(high), math.log(low)], dtype=torch.float64)
        options["step_t"] = t[1:]
        return net.finish(odeint(right, net.start, t, method=method, rtol=rtol, atol=rtol, options=options)[-1])

    for method in ("bosh3", "dopri5", "adaptive_heun"):
        for power in (0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5):
            make = functools.partial(adaptive, method, 10.0**-power)
            yield Peer(f"torchdiffeq {method} rtol=1e-{power:g}", make, adaptive=True)


def _divided(stages: int, nfe: int) -> int:
    return max(1, nfe // stages)
