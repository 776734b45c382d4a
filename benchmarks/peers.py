"""Other libraries' samplers on our problems: each at the calls it makes, from the same noise, in float64.

Most of them step in rho = sigma / alpha with x / alpha, where VE, VP and EDM are one problem. So each method gets
each of its library's grids, as float64 levels in the place of its float32 ones: what is measured is the method.
Where a scheduler cannot start at the noise end or stop at the end, it gets the exact state at its own start and
is compared with the exact state at its own stop.

EDMEuler, EulerDiscrete, DDIM, HeunDiscrete, LMSDiscrete, KDPM2 and EDMDPMSolverMultistep of diffusers are left out:
they are the methods of k-diffusion's euler, heun, lms, dpm_2 and of DPMSolverMultistep.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from accuracy import Bundle, Course

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


# Grids of the peers, as levels of rho ------------------------------------------------------------------------------


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


# k-diffusion -------------------------------------------------------------------------------------------------------


@functools.cache
def loader() -> ModuleType:
    """tests/peers.py, which loads k-diffusion without the training code around it."""
    file = FilePath(__file__).resolve().parent.parent / "tests" / "peers.py"
    spec = importlib.util.spec_from_file_location("diffsolve_test_peers", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# diffusers ---------------------------------------------------------------------------------------------------------


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


# azula -------------------------------------------------------------------------------------------------------------


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


# torchdiffeq -------------------------------------------------------------------------------------------------------


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


def all_peers(course: Course) -> list[Peer]:
    """Every peer that is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [p for group in (k_diffusion, diffusers, azula, torchdiffeq) for p in group(course)]


def errors(
    course: Course, problem: Bundle, budgets: Sequence[int], among: Sequence[Peer] | None = None
) -> dict[str, dict[str, list[float]]]:
    """problem -> peer -> its error for each budget; nan where it has no run. An adaptive one counts where it fits."""
    found: dict[str, dict[str, list[float]]] = {p.name: {} for p in problem.problems}
    for peer in all_peers(course) if among is None else among:
        if peer.adaptive:  # each problem chooses its own steps
            for part in problem.parts():
                result = run(peer, course, part, max(budgets))
                made = [result is not None and result[1] <= nfe for nfe in budgets]
                found[part.problems[0].name][peer.name] = [result[0][0] if ok and result else math.nan for ok in made]
            continue
        results = [run(peer, course, problem, nfe) for nfe in budgets]
        for j, part in enumerate(problem.problems):
            found[part.name][peer.name] = [math.nan if result is None else result[0][j] for result in results]
    return found
