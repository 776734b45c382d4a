"""Solvers: each writes a tableau for a path and a grid, and knows nothing of networks.

To add one: a `Multistep` with other weights overrides `predict` (see `DPMpp`), anything else is a `Solver` with
`write`; `register` gives it a name.
"""

from collections.abc import Callable
from inspect import Signature, signature
from typing import Any

from diffsolve.common.registry import Registry
from diffsolve.solvers.aliases import ALIASES, aliases, expand
from diffsolve.solvers.auto import Auto
from diffsolve.solvers.base import Solver
from diffsolve.solvers.butcher import (
    BOSH3,
    DOPRI5,
    DOPRI8,
    HEUN,
    KUTTA38,
    MIDPOINT,
    RALSTON,
    RK4,
    SSPRK3,
    TSIT5,
    Butcher,
)
from diffsolve.solvers.designed import Designed
from diffsolve.solvers.designed_sde import DesignedSDE
from diffsolve.solvers.exponential import ExponentialRK, Scheme, dpm2, dpm3, etdrk4, res2, res3, res5
from diffsolve.solvers.flow_map import FlowMap
from diffsolve.solvers.multistep import Multistep
from diffsolve.solvers.policy import CPS, DanceSDE, FlowSDE
from diffsolve.solvers.published import IPNDM, PNDM, DPMpp, UniPC
from diffsolve.solvers.renoise import Ancestral, Churn, Renoised, Repaint, Restart
from diffsolve.solvers.reversible import ReversibleHeun
from diffsolve.solvers.runge_kutta import RungeKutta
from diffsolve.solvers.sde import ERSDE, Constant, Diffusion, Interval, Pieces, Tau
from diffsolve.solvers.stochastic import DDIM, DDPM, Maruyama, ReverseDiffusion

__all__ = [
    "CPS",
    "DDIM",
    "DDPM",
    "ERSDE",
    "IPNDM",
    "PNDM",
    "Ancestral",
    "Auto",
    "Butcher",
    "Churn",
    "Constant",
    "DPMpp",
    "DanceSDE",
    "Designed",
    "DesignedSDE",
    "Diffusion",
    "ExponentialRK",
    "FlowMap",
    "FlowSDE",
    "Interval",
    "Maruyama",
    "Multistep",
    "Pieces",
    "Repaint",
    "Restart",
    "ReverseDiffusion",
    "ReversibleHeun",
    "RungeKutta",
    "Scheme",
    "Solver",
    "Tau",
    "UniPC",
    "aliases",
    "named",
    "names",
    "register",
    "resolve",
]


def _runge_kutta(method: Butcher) -> Callable[..., RungeKutta]:
    def make(frame: str = "straight") -> RungeKutta:
        return RungeKutta(method, frame)

    return make


def _multistep(kind: type[Multistep], points: int, **fixed: Any) -> Callable[..., Multistep]:
    """A point of the family: all options of the class, of which some have other defaults."""

    def make(**options: Any) -> Multistep:
        if options.get("points") is None:  # the number in the name, unless it is given for each step
            options["points"] = points
        return kind(**{**fixed, **options})

    defaults = {"points": None, **fixed}
    options = [
        option.replace(kind=option.KEYWORD_ONLY, default=defaults.get(option.name, option.default))
        for option in signature(kind).parameters.values()
    ]
    make.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return make


def _around(kind: Callable[..., Renoised], inner: str) -> Callable[..., Renoised]:
    """Noise added between the steps of another solver, which is given by name."""

    def make(inner: str | Solver = inner, **options: Any) -> Renoised:
        return kind(named(inner), **options)

    own = list(signature(kind).parameters.values())[1:]
    made = [signature(make).parameters["inner"], *(option.replace(kind=option.KEYWORD_ONLY) for option in own)]
    make.__signature__ = Signature(made)  # type: ignore[attr-defined]
    return make


def _seeds(scheme: Scheme) -> Callable[..., ExponentialRK]:
    def make(tau: float = 1.0) -> ExponentialRK:
        return ExponentialRK(scheme, "denoised", tau)

    return make


def _student(**fixed: Any) -> Callable[..., FlowMap]:
    """A point of the samplers of students."""

    def make(**options: Any) -> FlowMap:
        return FlowMap(**{**fixed, **options})

    options = [o.replace(kind=o.KEYWORD_ONLY, default=fixed.get(n, o.default)) for n, o in _FLOW_MAP.items()]
    make.__signature__ = Signature(options)  # type: ignore[attr-defined]
    return make


_FLOW_MAP = signature(FlowMap).parameters


def _maruyama(stages: int) -> Callable[..., Maruyama]:
    def make(tau: float = 1.0) -> Maruyama:
        return Maruyama(stages, tau)

    return make


def _dpm2s(frame: str) -> Callable[..., ExponentialRK]:
    def make(r1: float = 0.5) -> ExponentialRK:
        return ExponentialRK(dpm2(r1), frame)

    return make


def _dpm3s(frame: str) -> Callable[..., ExponentialRK]:
    def make(r1: float = 1 / 3, r2: float = 2 / 3) -> ExponentialRK:
        return ExponentialRK(dpm3(r1, r2), frame)

    return make


def _res2s(frame: str = "denoised", c2: float = 0.5) -> ExponentialRK:
    return ExponentialRK(res2(c2), frame)


def _res3s(frame: str = "denoised", c2: float = 0.5, c3: float = 1.0) -> ExponentialRK:
    return ExponentialRK(res3(c2, c3), frame)


def _exponential(scheme: Scheme) -> Callable[..., ExponentialRK]:
    def make(frame: str = "denoised") -> ExponentialRK:
        return ExponentialRK(scheme, frame)

    return make


_DEIS: dict[str, Any] = {"frame": "noise", "variable": "lambda"}
_RES: dict[str, Any] = {"frame": "denoised", "variable": "lambda"}
_SDE: dict[str, Any] = {**_RES, "tau": 1.0}

registry: Registry[Solver] = Registry(
    "solver",
    Solver,
    {
        "euler": _multistep(Multistep, 1),
        # Adams-Bashforth of k values, order k, and with an Adams-Moulton corrector of k + 1.
        **{f"ab-{k}": _multistep(Multistep, k) for k in range(1, 7)},
        **{f"abm-{k}": _multistep(Multistep, k, corrector=-1) for k in range(1, 7)},
        "auto": Auto,
        "bosh3": _runge_kutta(BOSH3),
        # Students (solvers/flow_map.py).
        "consistency": _student(gamma=1.0, floor=True, grid="jumps(variable='theta')"),
        "flow-map": _student(),
        "lcm": _student(gamma=1.0, grid="distilled"),
        "scm": _student(gamma=1.0, grid="jumps(variable='theta')"),
        "tcd": _student(gamma=0.3, by="time", grid="distilled"),
        "cps": CPS,
        "dance-sde": DanceSDE,
        "ddim": DDIM,
        "ddpm": DDPM,
        "designed": Designed,
        "designed-sde": DesignedSDE,
        "dopri5": _runge_kutta(DOPRI5),
        "dopri8": _runge_kutta(DOPRI8),
        "dpm-2s": _dpm2s("noise"),
        "dpm-3s": _dpm3s("noise"),
        # Points of the Adams family in an exponential frame (2204.13902): deis-k of k values, as in diffusers, with the
        # polynomial in lambda; tab-r and rhoab-r of degree r, that is r + 1 values, in t and in rho, as in the paper.
        # With three values in lambda a lowered end halves the error on mixtures at 5 to 20 calls, or more.
        **{f"deis-{k}": _multistep(Multistep, k, **_DEIS, lower_final=k > 2) for k in range(1, 4)},
        **{f"rhoab-{r}": _multistep(Multistep, r + 1, frame="noise") for r in range(1, 5)},
        **{f"tab-{r}": _multistep(Multistep, r + 1, frame="noise", variable="t") for r in range(1, 5)},
        "dpm-2-ancestral": _around(Ancestral, "dpm-2s"),
        "dpmpp-2m": _multistep(DPMpp, 2),
        "dpmpp-2m-sde": _multistep(DPMpp, 2, tau=1.0),
        "dpmpp-2s-ancestral": _around(Ancestral, "dpmpp-2s"),
        "dpmpp-2s": _dpm2s("denoised"),
        "dpmpp-3m": _multistep(DPMpp, 3),
        "dpmpp-3m-sde": _multistep(DPMpp, 3, tau=1.0),
        "dpmpp-3s": _dpm3s("denoised"),
        "dpmpp-sde": _seeds(dpm2()),
        # EDM's stochastic sampler, with the steps of Heun and of Euler.
        "edm-euler": _around(Churn, "euler"),
        "edm-heun": _around(Churn, "heun(frame='noise')"),
        **{f"er-sde-{k}": _multistep(Multistep, k, frame="denoised", variable="rho", tau=ERSDE()) for k in (1, 2, 3)},
        "euler-maruyama": _maruyama(1),
        "etdrk-4s": _exponential(etdrk4()),
        "flow-sde": FlowSDE,
        "heun": _runge_kutta(HEUN),
        **{f"ipndm-{k}": _multistep(IPNDM, k) for k in range(1, 5)},
        "midpoint": _runge_kutta(MIDPOINT),
        # plms: PNDM without its Runge-Kutta steps as Stable Diffusion has it, begun by one Heun step.
        "plms": _multistep(IPNDM, 4, ramp=(2, 2, 3), start="heun"),
        "pndm": _multistep(PNDM, 4),
        "ralston": _runge_kutta(RALSTON),
        # Exponential Adams with exact phi weights: the multistep form of RES (2308.02157).
        "res-2m": _multistep(Multistep, 2, **_RES),
        "res-3m": _multistep(Multistep, 3, **_RES, lower_final=True),
        "res-2s": _res2s,
        "res-3s": _res3s,
        "res-5s": _exponential(res5()),
        "repaint": _around(Repaint, "ddim(eta=1.0)"),
        "restart": _around(Restart, "heun(frame='noise')"),
        "reverse-diffusion": ReverseDiffusion,
        "reversible-heun": ReversibleHeun,
        "rk4": _runge_kutta(RK4),
        "rk4-38": _runge_kutta(KUTTA38),
        # SA-Solver (2309.05019): exponential Adams for the SDE, with its corrector.
        **{f"sa-{k}": _multistep(Multistep, k, **_SDE, corrector=-1) for k in range(1, 5)},
        # SEEDS (2305.14267) with data prediction; the first is the exponential Euler-Maruyama method.
        "seeds-1": _multistep(Multistep, 1, **_SDE),
        "seeds-2": _seeds(dpm2()),
        "seeds-3": _seeds(dpm3()),
        "ssprk3": _runge_kutta(SSPRK3),
        "stochastic-heun": _maruyama(2),
        "tsit5": _runge_kutta(TSIT5),
        **{f"unip-{k}": _multistep(UniPC, k, corrector=0) for k in range(1, 7)},
        **{f"unipc-{k}": _multistep(UniPC, k) for k in range(1, 7)},
    },
    aliases=ALIASES,
    group="diffsolve.solvers",
)
register = registry.register


def resolve(solver: str | Solver) -> tuple[Solver, str | None]:
    """The solver of that name or alias, and the grid that the alias names, if it does."""
    spec, grid = expand(solver, registry.entries) if isinstance(solver, str) else (solver, None)
    return registry.resolve(spec), grid


def named(solver: str | Solver) -> Solver:
    """The solver of that name, as in `"heun"` or `"ddim(eta=0.5)"`; a `Solver` is returned as it is."""
    return resolve(solver)[0]


def names() -> list[str]:
    """The names that `solver=` accepts, but for other libraries' names for the same, which `aliases` lists."""
    return registry.names()
