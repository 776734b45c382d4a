"""What k-diffusion and ComfyUI call a sampler -> the solver that has its numbers, on lists of sigmas.

Their clock is sigma, and most of their methods step x by (x - D) / sigma: that is the frame `native` of both of their
paths, x_0 + sigma eps and a flow's (1 - sigma) x_0 + sigma eps. On a flow some take -log sigma for lambda, which is the
variable `log-u` there, and those with noise begin next to sigma = 1 in its place. A name with options, as in
"heun(frame='straight')", is this library's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from diffsolve.solvers import DPMpp, Multistep, Solver, named
from diffsolve.solvers.integrals import StepIntegrals

__all__ = ["Method", "method"]

LAST = 1e-3
"""The sigma at which UniPC ends there, in the place of 0."""


@dataclass(frozen=True)
class Method:
    """A solver for lists of sigmas."""

    solver: Solver
    on_flows: Solver | str
    """The solver for a flow's sigmas, or why there is none."""
    last: float = 0.0
    """What a last sigma of 0 stands for."""
    offset: bool = False
    """Whether a flow's first sigma of 1 stands for the model's sigma next to it."""
    euler_last: bool = False
    """Whether a step to sigma = 0 is of first order, which is no rule of the frame."""

    def over(self, steps: int, to_zero: bool, flow: bool) -> Solver:
        """The solver for a list of so many steps, on a flow or not.

        Raises:
            ValueError: if there is none.
        """
        solver = self.on_flows if flow else self.solver
        if isinstance(solver, str):
            raise ValueError(f"on a flow the sampler is another method there; the nearest that is offered: {solver!r}")
        if self.euler_last and to_zero and isinstance(solver, Multistep):
            return replace(solver, points=(*[solver.most] * (steps - 1), 1))
        return solver


def _same(spec: str, flow: str | None = None, **rest: bool) -> Callable[[], Method]:
    return lambda: Method(named(spec), named(flow or spec), **rest)


def _not_on_flows(spec: str, nearest: str, *, last: float = 0.0) -> Callable[[], Method]:
    return lambda: Method(named(spec), nearest, last)


@dataclass(frozen=True)
class _ExactStart(DPMpp):
    """The 3M SDE there: its step of two values has the exact weights, with phi_2, and not those of 2M."""

    def predict(self, step: StepIntegrals) -> np.ndarray:
        return step.omega() if len(step.nodes) == 2 else super().predict(step)


_3M = _ExactStart(3, tau=1.0)


NAMES: dict[str, Callable[[], Method]] = {
    "heun": _same("heun(frame='native')"),
    "lms": _same("ab-4(frame='native')", euler_last=True),
    "ipndm": _same("ipndm-4(frame='native')", euler_last=True),
    "dpmpp_2m": _same("dpmpp-2m", "dpmpp-2m(variable='log-u')"),
    "res_multistep": _same("res-2m", "res-2m(variable='log-u')"),
    "dpm_2": _not_on_flows("dpm-2s", "midpoint(frame='native')"),
    "euler_ancestral": _not_on_flows("ddim(eta=1.0)", "ddim(eta=1.0)"),
    "dpm_2_ancestral": _not_on_flows("dpm-2-ancestral", "dpm-2-ancestral"),
    "dpmpp_2s_ancestral": _not_on_flows("dpmpp-2s-ancestral", "dpmpp-2s-ancestral"),
    "uni_pc": _not_on_flows("unipc-3(bh='bh1')", "unipc-3", last=LAST),
    "uni_pc_bh2": _not_on_flows("unipc-3", "unipc-3", last=LAST),
    **{
        f"{name}{device}": _same(name, offset=True)
        for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun")
        for device in ("", "_gpu")
    },
    **{name: lambda: Method(_3M, _3M, offset=True) for name in ("dpmpp_3m_sde", "dpmpp_3m_sde_gpu")},
    **{name: _same(name, offset=True) for name in ("seeds_2", "seeds_3")},
}  # fmt: skip
"""Name there -> the method, where it is not what the name stands for on any path."""

APART = {
    "er_sde": "er-sde-3",  # its integrals are sums of 200 rectangles
    "deis": "tab-2",  # in the time of a VP path fitted to the range of sigma
    "ipndm_v": "ab-4(frame='native')",  # (1 - a b) / 2 for (1 - a) b / 2, from three values on
    "sa_solver": "sa-3(limit=5)",  # noise between 20 % and 80 % of the model's times alone
    "sa_solver_pece": "sa-3(limit=5, mode='pece')",
}
"""Names there whose numbers no solver here has -> the nearest."""


def method(solver: str | Solver) -> Method:
    """The method of a name there, else of a solver here.

    Raises:
        ValueError: if the solver is unknown, or the name is of a method that is not offered, naming the nearest.
    """
    name = solver.strip().lower() if isinstance(solver, str) else ""
    name = name.removeprefix("sample_")
    if name in APART:
        raise ValueError(f"solver={solver!r} is another method there; the nearest that is offered: {APART[name]!r}")
    if name in NAMES:
        return NAMES[name]()
    return Method(named(solver), named(solver))
