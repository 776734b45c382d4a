"""The samplers of k-diffusion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from endpoint.peers.base import GRIDS, Net, Peer, Result, loader
from endpoint.problems import Course


def k_diffusion(course: Course) -> Iterator[Peer]:
    try:
        kd = loader().k_diffusion("sampling")
    except ImportError:
        return
    if course.name == "flow":
        return  # rho is infinite at the start
    ode: dict[str, Any] = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    methods: dict[str, tuple[str, dict[str, Any], Callable[[int], int]]] = {
        "euler": ("euler", {}, lambda n: n),
        "heun": ("heun", {}, lambda n: n // 2),
        "dpm_2": ("dpm_2", {}, lambda n: n // 2),
        **{f"lms{k}": ("lms", {"order": k}, lambda n: n) for k in (2, 3, 4)},
        "dpmpp_2m": ("dpmpp_2m", {}, lambda n: n),
        "dpmpp_2s": ("dpmpp_2s_ancestral", ode, lambda n: n // 2),
        "dpmpp_2m_heun": ("dpmpp_2m_sde", {**ode, "solver_type": "heun"}, lambda n: n),
        "dpmpp_3m": ("dpmpp_3m_sde", ode, lambda n: n),
    }

    def solve(name: str, options: dict[str, Any], grid: Any, net: Net, n: int) -> Result:
        levels = torch.from_numpy(grid(net, n))
        return net.finish(getattr(kd, f"sample_{name}")(net.denoised, net.start, levels, disable=True, **options))

    for name, (function, options, steps) in methods.items():
        for where, grid in GRIDS[course.name].items():
            yield Peer(f"k-diffusion {name} {where}", functools.partial(solve, function, options, grid), steps)

    def fast(net: Net, n: int) -> Result:
        high, low = net.ends
        return net.finish(kd.sample_dpm_fast(net.denoised, net.start, low, high, n, disable=True, **ode))

    yield Peer("k-diffusion dpm_fast", fast)
    for order, rtol in ((2, 0.05), (3, 0.05), (3, 0.5), (3, 0.2), (3, 0.01)):

        def adaptive(net: Net, n: int, order: int = order, rtol: float = rtol) -> Result:
            high, low = net.ends
            x = kd.sample_dpm_adaptive(
                net.denoised, net.start, low, high, disable=True, order=order, rtol=rtol, atol=rtol / 6.4, **ode
            )
            return net.finish(x)

        yield Peer(f"k-diffusion dpm_adaptive{order} rtol={rtol}", adaptive, adaptive=True)
