"""What k-diffusion and ComfyUI call a sampler -> the rows that have its numbers, on lists of sigmas.

Their clock is sigma, and most of their methods step x by (x - D) / sigma, on a flow's sigmas as on others: these run
as if x were x_0 + sigma eps (`Run.in_sigma`), whose flow has that equation. Those that know flows run on the flow's own
path, and if they add noise begin next to sigma = 1 in its place. A name with options, as in "heun(frame='straight')",
is this library's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffsolve.common.checks import required
from diffsolve.integrations.k_diffusion_rows import (
    DEIS,
    SA,
    ExactStart,
    FlowAncestral,
    GradientEstimation,
    HeunPP,
    ResAncestral,
    Singlestep,
    SummedERSDE,
    Unconditional,
)
from diffsolve.solvers import ExponentialRK, Interval, Solver, named
from diffsolve.solvers.exponential import res2
from diffsolve.tableau import Tableau

__all__ = ["Method", "Run", "Sigmas", "bare", "method", "with_plus"]

LAST = 1e-3
"""The sigma at which UniPC ends there, in the place of 0."""


@dataclass(frozen=True)
class Sigmas:
    """The sigmas of a run, and what of the model they are for."""

    levels: np.ndarray
    """Falling or rising, without repetitions, at least two."""
    flow: bool
    """Whether they are a flow's, with x = (1 - sigma) x_0 + sigma eps."""
    at: Callable[[float], float]
    """ComfyUI's sigma after a share of the model's times."""


@dataclass(frozen=True)
class Run:
    """A solver on a list of sigmas."""

    solver: Solver | Tableau
    levels: np.ndarray
    in_sigma: bool = False
    """Whether a flow is taken for x_0 + sigma eps, with the denoised that it has."""
    plus: bool = False
    """CFG++: guided data, unconditional noise; see `diffsolve.execute.apart`."""

    @property
    def two_rows(self) -> bool:
        """Whether a call has two rows, for the guided and for the unconditional output."""
        return isinstance(self.solver, Unconditional)

    @property
    def plan(self) -> dict[str, Any]:
        """The options of `ds.begin`."""
        solver = {"solver": self.solver}
        return solver if isinstance(self.solver, Tableau) else {**solver, "grid": self.levels}


Method = Callable[[Sigmas], Run]


def _solver(solver: Solver | str) -> Method:
    """A solver of this library on the path that the sigmas are of."""
    known = named(solver)
    return lambda sigmas: Run(known, sigmas.levels)


def _table(tableau: Tableau) -> Method:
    """A tableau, on its own sigmas."""

    def run(sigmas: Sigmas) -> Run:
        clock = tableau.grid[:, 2] if sigmas.flow else tableau.grid[:, 2] / tableau.grid[:, 1]
        of_this = np.allclose(tableau.times, clock)
        required(of_this, "the table", tableau.path, "for the path 'rectified' of a flow, and 'edm' of any other model")
        same = len(clock) == len(sigmas.levels) and np.allclose(clock, sigmas.levels, rtol=1e-4, atol=1e-6)
        required(same, "sigmas", sigmas.levels, f"those of the table, {clock.tolist()}")
        return Run(tableau, clock)

    return run


def _in_sigma(solver: Solver | str, *, last: float = 0.0) -> Method:
    """A method in x and sigma, whatever the path; `last` is what a last sigma of 0 stands for."""
    known = named(solver)

    def run(sigmas: Sigmas) -> Run:
        levels = sigmas.levels.copy()
        if levels[-1] == 0 and levels[-2] > last:
            levels[-1] = last
        return Run(known, levels, in_sigma=True)

    return run


def _of_flows(solver: Solver | str, on_flows: Solver | str | None = None, *, plus: bool = False) -> Method:
    """A method that knows flows, or that is another one on them."""
    known, there = named(solver), named(on_flows or solver)
    return lambda sigmas: Run(there if sigmas.flow else known, sigmas.levels, plus=plus)


def _below_one(solver: Solver | str) -> Method:
    """A method in lambda that knows flows, and begins next to their sigma of 1."""
    known = named(solver)
    return lambda sigmas: Run(known, _first_below_one(sigmas))


def _first_below_one(sigmas: Sigmas) -> np.ndarray:
    levels = sigmas.levels.copy()
    if sigmas.flow and levels[0] >= 1 > levels[1]:
        levels[0] = sigmas.at(1e-4)
    return levels


def _dpm_fast(sigmas: Sigmas) -> Run:
    """Steps equal in log sigma, to the last positive sigma, of as many calls as there are steps."""
    calls, above = len(sigmas.levels) - 1, sigmas.levels[sigmas.levels > 0]
    required(bool(above[0] > above[-1]), "sigmas", sigmas.levels, "falling, two of them positive")
    steps = calls // 3 + 1
    orders = [3] * (steps - 2) + [2, 1] if calls % 3 == 0 else [3] * (steps - 1) + [calls % 3]
    levels = np.exp(np.linspace(math.log(above[0]), math.log(above[-1]), steps + 1))
    levels[[0, -1]] = above[[0, -1]]
    return Run(Singlestep(tuple(orders)), levels, in_sigma=True)


def _sa(mode: str) -> Method:
    """SA-Solver with the noise of tau = 1 in the steps that end between 20 % and 80 % of the model's times."""

    def run(sigmas: Sigmas) -> Run:
        levels = _first_below_one(sigmas)
        n = len(levels) - 1
        inside = [i for i in range(n) if sigmas.at(0.2) >= levels[i + 1] >= sigmas.at(0.8)]
        with np.errstate(divide="ignore"):
            rho = levels / np.maximum(1 - levels, 0) if sigmas.flow else levels
        tau = Interval(1.0, float(rho[inside[-1] + 1]), float(rho[inside[0]])) if inside else 0.0
        to_zero = levels[-1] == 0
        points = tuple(max(1, min(3, n - 1 - i)) for i in range(n)) if to_zero else 3
        return Run(SA(points, corrector=4, mode=mode, tau=tau), levels)

    return run


_HEUN_2 = res2(1.0)

NAMES: dict[str, Method] = {
    "heun": _in_sigma("heun(frame='noise')"),
    "heunpp2": _in_sigma(HeunPP()),
    "dpm_2": _in_sigma("dpm-2s"),
    "lms": _in_sigma("ab-4(frame='noise')"),
    "ipndm": _in_sigma("ipndm-4"),
    "ipndm_v": _in_sigma("ab-4(frame='noise')"),  # as it was meant
    "deis": _in_sigma(DEIS()),
    "dpm_fast": _dpm_fast,
    "dpmpp_2m": _in_sigma("dpmpp-2m"),
    "res_multistep": _in_sigma("res-2m"),
    "res_multistep_ancestral": _in_sigma(ResAncestral()),
    "gradient_estimation": _in_sigma(GradientEstimation()),
    "uni_pc": _in_sigma("unipc-3(bh='bh1')", last=LAST),
    "uni_pc_bh2": _in_sigma("unipc-3", last=LAST),
    "ddpm": _in_sigma("ddpm"),
    "euler_ancestral": _of_flows("ddim(eta=1.0)", FlowAncestral()),
    "dpm_2_ancestral": _of_flows("dpm-2-ancestral", FlowAncestral("dpm-2s")),
    "dpmpp_2s_ancestral": _of_flows("dpmpp-2s-ancestral", FlowAncestral("dpmpp-2s")),
    **{
        f"{name}{device}": _below_one(solver)
        for name, solver in (
            ("dpmpp_sde", named("dpmpp-sde")),
            ("dpmpp_2m_sde", named("dpmpp-2m-sde")),
            ("dpmpp_2m_sde_heun", named("res-2m(tau=1.0)")),
            ("dpmpp_3m_sde", ExactStart(3, tau=1.0)),
        )
        for device in ("", "_gpu")
    },
    "seeds_2": _below_one("seeds-2"),
    "seeds_3": _below_one("seeds-3"),
    "exp_heun_2_x0": _below_one(ExponentialRK(_HEUN_2)),
    "exp_heun_2_x0_sde": _below_one(ExponentialRK(_HEUN_2, tau=1.0)),
    "er_sde": _below_one(SummedERSDE()),
    "sa_solver": _sa("pec"),
    "sa_solver_pece": _sa("pece"),
    "euler_cfg_pp": _of_flows("ddim", plus=True),
    "euler_ancestral_cfg_pp": _of_flows("ddim(eta=1.0)", plus=True),
    "dpmpp_2s_ancestral_cfg_pp": _in_sigma(Unconditional("dpmpp-2s", eta=1.0)),
    "dpmpp_2m_cfg_pp": _in_sigma(Unconditional()),
    "res_multistep_cfg_pp": _in_sigma(Unconditional("res-2m")),
    "res_multistep_ancestral_cfg_pp": _in_sigma(Unconditional("res-2m", eta=1.0)),
    "gradient_estimation_cfg_pp": _in_sigma(Unconditional("gradient-estimation")),
}
"""Name there -> the method, where it is not what the name stands for on any path; without `dpm_adaptive`."""


def bare(solver: str | Solver | Tableau) -> str:
    """A name as the table has it; nothing for an object."""
    return solver.strip().lower().removeprefix("sample_") if isinstance(solver, str) else ""


def method(solver: str | Solver | Tableau) -> Method:
    """The method of a name there, else of a solver here or a tableau.

    Raises:
        ValueError: if the solver is unknown.
    """
    if isinstance(solver, Tableau):
        return _table(solver)
    return NAMES.get(bare(solver)) or _solver(solver)


def with_plus(known: Method) -> Method:
    """The same with CFG++."""

    def run(sigmas: Sigmas) -> Run:
        made = known(sigmas)
        return made if made.two_rows else replace(made, plus=True)

    return run
