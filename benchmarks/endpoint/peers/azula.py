"""The samplers of azula."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from endpoint.peers.base import GRIDS, Net, Peer, Result
from endpoint.problems import Course


def azula(course: Course) -> Iterator[Peer]:
    try:
        from azula import sample
        from azula.denoise import DiracPosterior
    except ImportError:
        return
    flow = course.name == "flow"

    class Denoiser:
        def __init__(self, net: Net) -> None:
            self.net = net

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            """azula's clock falls from 1 to 0; here it holds the rho (or sigma, for a flow) itself."""
            return (1 - t, t) if flow else (torch.ones_like(t), t)

        def __call__(self, x: Tensor, t: Tensor) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(self.net(x, float(alpha), float(sigma))[0])

    def solve(kind: str, options: dict[str, Any], grid: Any, net: Net, n: int) -> Result:
        levels = torch.from_numpy(np.ascontiguousarray(grid(net, n)))

        class Sampler(getattr(sample, kind)):
            timesteps = levels

        sampler = Sampler(Denoiser(net), silent=True, steps=n, **options)
        if not flow:
            return net.finish(sampler(net.start))
        high, low = levels[0].item(), levels[-1].item()
        x = sampler(net.problem.exact(net.course, (1 - high, high)))
        return x, None if low == 0 else (1 - low, low)

    where: dict[str, Any]
    if flow:  # its rectified schedule, from alpha = 1e-3 to sigma = 1e-3; and to the ends, for whom that is possible
        where = {
            "": lambda net, n: np.linspace(0.999, 0.001, n + 1),
            "to the ends": lambda net, n: np.linspace(1, 0, n + 1),
        }
    else:
        where = GRIDS[course.name]
    for name, grid in where.items():
        yield Peer(f"azula Euler {name}", functools.partial(solve, "EulerSampler", {}, grid))
        yield Peer(f"azula Heun {name}", functools.partial(solve, "HeunSampler", {}, grid), lambda nfe: nfe // 2)
        for kind in ("zAB", "vAB", "zEAB", "xEAB", "REAB"):
            for order in (2, 3):
                make = functools.partial(solve, f"{kind}Sampler", {"order": order}, grid)
                yield Peer(f"azula {kind}{order} {name}", make)
