"""The schedulers of diffusers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from endpoint.peers.base import GRIDS, Net, Peer, Result, loader
from endpoint.problems import Course


def diffusers(course: Course) -> Iterator[Peer]:
    try:
        import diffusers as df
    except ImportError:
        return
    step_on = df.schedulers
    flow = course.name == "flow"
    methods: dict[str, tuple[str, dict[str, Any]]] = {}
    for lower in (False, True):
        tail = " lowered" if lower else ""
        for order in (2, 3):
            for kind in ("midpoint", "heun"):
                options = {"solver_order": order, "solver_type": kind, "lower_order_final": lower}
                methods[f"dpm++{order}m {kind}{tail}"] = ("DPMSolverMultistepScheduler", options)
            for x0, bh in ((True, "bh2"), (True, "bh1")) if flow else ((True, "bh2"), (False, "bh2"), (True, "bh1")):
                options = {"solver_order": order, "predict_x0": x0, "solver_type": bh, "lower_order_final": lower}
                kind = f"{'data' if x0 else 'noise'} {bh}"
                methods[f"unipc{order} {kind}{tail}"] = ("UniPCMultistepScheduler", options)
        for order in (1, 2, 3):
            options = {"solver_order": order, "lower_order_final": lower}
            if order > 1 or not lower:
                methods[f"deis{order}{tail}"] = ("DEISMultistepScheduler", options)
    for order in (2, 3):
        options = {"solver_order": order, "algorithm_type": "dpmsolver", "lower_order_final": False}
        if not flow:
            methods[f"dpm{order}m noise"] = ("DPMSolverMultistepScheduler", options)
        options = {"solver_order": order, "lower_order_final": True}
        methods[f"dpm++{order}s"] = ("DPMSolverSinglestepScheduler", options)

    def drive(scheduler: Any, x: Tensor, levels: np.ndarray, out: Callable[[Tensor, float], Tensor]) -> Tensor:
        n = len(levels) - 1
        scheduler.sigmas = torch.from_numpy(np.ascontiguousarray(levels))
        scheduler.timesteps = torch.arange(n, 0, -1, dtype=torch.float64)
        scheduler.set_begin_index(0)
        for t, level in zip(scheduler.timesteps, levels[:-1], strict=True):
            x = x.as_subclass(Tensor)
            x = scheduler.step(out(x, level), t, x.as_subclass(loader().Unrounded)).prev_sample
        return x.as_subclass(Tensor)

    def on_rho(name: str, options: dict[str, Any], grid: Any, net: Net, n: int) -> Result:
        if name != "DEISMultistepScheduler":
            options = {**options, "final_sigmas_type": "sigma_min"}
        scheduler = getattr(step_on, name)(**options)
        scheduler.set_timesteps(n)
        levels = grid(net, n)
        alpha = (1 + levels**2) ** -0.5  # of the schedulers' own VP state

        def out(x: Tensor, rho: float) -> Tensor:
            return net.eps(x * math.sqrt(1 + rho**2), rho)

        return net.finish(drive(scheduler, net.start * alpha[0], levels, out) / alpha[-1])

    def on_flow(name: str, options: dict[str, Any], final: str, shift: float, net: Net, n: int) -> Result:
        options = {**options, "use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        if name != "DEISMultistepScheduler":
            options["final_sigmas_type"] = final
        scheduler = getattr(step_on, name)(**options)
        scheduler.set_timesteps(n)
        levels = scheduler.sigmas.double().numpy().copy()
        if name == "DEISMultistepScheduler":  # as shipped it stops at its last call
            levels[-1] = 0.0 if final == "zero" else 1e-3
        elif final == "sigma_min":
            levels[-1] = 1e-3
        high = levels[0]
        x = drive(scheduler, net.problem.exact(net.course, (1 - high, high)), levels, net.velocity)
        return x, None if levels[-1] == 0 else (1 - levels[-1], levels[-1])

    for name, (scheduler, options) in methods.items():
        if flow:
            for final, shift in (("zero", 1.0), ("zero", 3.0), ("sigma_min", 1.0)):
                tail = f" shift={shift:g}" + ("" if final == "zero" else f" {final}")
                yield Peer(f"diffusers {name}{tail}", functools.partial(on_flow, scheduler, options, final, shift))
        else:
            for where, grid in GRIDS[course.name].items():
                yield Peer(f"diffusers {name} {where}", functools.partial(on_rho, scheduler, options, grid))

    if not flow:
        yield Peer("diffusers ipndm", _ipndm(step_on))
    if course.name == "vp":
        for spacing, offset in (("leading", 1), ("trailing", 0)):
            name = f"diffusers pndm {spacing}{offset or ''}"
            yield Peer(name, functools.partial(_pndm, step_on, spacing, offset), lambda nfe: nfe - 1)
    if flow:
        for heun, shift in ((False, 1.0), (False, 3.0), (True, 1.0), (True, 3.0)):
            name = f"diffusers FlowMatch{'Heun' if heun else 'Euler'} shift={shift:g}"
            steps = (lambda nfe: (nfe + 1) // 2) if heun else (lambda nfe: nfe)
            yield Peer(name, functools.partial(_flow_match, step_on, heun, shift), steps)


def _ipndm(schedulers: Any) -> Callable[[Net, int], Result]:
    """Its grid is even in the angle, from atan(rho) at the start to atan(rho) at the end; it takes v."""

    def solve(net: Net, n: int) -> Result:
        scheduler = schedulers.IPNDMScheduler()
        scheduler.set_timesteps(n)
        high, low = net.ends
        theta = torch.linspace(math.atan(high), math.atan(low), n + 1, dtype=torch.float64)
        scheduler.betas, scheduler.alphas = theta.sin(), theta.cos()
        scheduler.set_begin_index(0)
        x = net.start * scheduler.alphas[0]
        for t, (alpha, sigma) in zip(
            scheduler.timesteps, torch.stack([scheduler.alphas, scheduler.betas], -1)[:-1].tolist(), strict=True
        ):
            data, noise = net(x, alpha, sigma)
            x = scheduler.step(alpha * noise - sigma * data, t, x).prev_sample
        return net.finish(x / scheduler.alphas[-1])

    return solve


def _pndm(schedulers: Any, spacing: str, offset: int, net: Net, n: int) -> Result:
    scheduler = schedulers.PNDMScheduler(skip_prk_steps=True, timestep_spacing=spacing, steps_offset=offset)
    path = net.course.path
    scheduler.alphas_cumprod = path.alpha(np.arange(1000.0)) ** 2
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(n)  # which makes n + 1 calls
    first = float(scheduler.timesteps[0])
    x = net.problem.exact(net.course, net.course.level(first))
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, *net.course.level(float(t)))[1], int(t), x).prev_sample
    return x, None


def _flow_match(schedulers: Any, heun: bool, shift: float, net: Net, n: int) -> Result:
    levels = np.linspace(1, 0, n + 1)
    levels = shift * levels / (1 + (shift - 1) * levels)
    if heun:
        scheduler = schedulers.FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(n)
        scheduler.sigmas = torch.from_numpy(np.concatenate([levels[:1], levels[1:-1].repeat(2), levels[-1:]]))
    else:
        scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(n)
        scheduler.sigmas = torch.from_numpy(levels)
    calls = scheduler.sigmas[:-1]
    scheduler.timesteps = torch.arange(len(calls), 0, -1, dtype=torch.float64)
    scheduler.set_begin_index(0)
    x = net.problem.start(net.course)
    for t, sigma in zip(scheduler.timesteps, calls.tolist(), strict=True):
        x = x.as_subclass(Tensor)
        x = scheduler.step(net.velocity(x, sigma), t, x.as_subclass(loader().Unrounded)).prev_sample
    return x, None
