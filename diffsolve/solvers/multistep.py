r"""Linear multistep methods in any frame: Adams, exponential Adams, and the published points near them.

In a frame, z = x / c and dz/dv = d. A step integrates the Lagrange polynomial through the last p values of d,

    x_t = (c_t / c_s) x_s + c_t \int_{v_s}^{v_t} sum_j L_j(w(v)) d_j dv = ratio x_s + gain sum_j omega_j d_j,

where the polynomial may live in another variable w than v. With `omega` summing to 1, only `omega` tells
methods of one frame apart. Examples: frame noise and w = t is DEIS tAB (2204.13902); frame denoised and
w = lambda the exact form of DPM-Solver++ (2211.01095) and UniPC (2302.04867); frame straight and w = v
Adams-Bashforth on the velocity of CondOT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from diffsolve.common.checks import choice, instance, integer, required
from diffsolve.paths import Path, Position
from diffsolve.solvers.base import Solver, frame_named
from diffsolve.solvers.butcher import HEUN, RK4
from diffsolve.solvers.integrals import Integrals, StepIntegrals
from diffsolve.solvers.sde import Constant, Tau, frame_of, tau_named
from diffsolve.tableau import Combination, Draft
from diffsolve.tableau.ends import end_frame, next_to_data
from diffsolve.tableau.frames import VARIABLES, Frame

__all__ = ["Multistep"]

STARTS = {"heun": HEUN, "rk4": RK4}
"""Runge-Kutta methods that a multistep run may begin with."""

LIMIT = 5.0
"""At equal steps two values weigh 2 to 3, three 3.7 to 7, from short steps to long, and four at least 6.7."""


@dataclass(frozen=True)
class Multistep(Solver):
    """Adams-Bashforth of any order in any frame, with an optional Adams-Moulton corrector.

    Args:
        points: how many values of d the predictor uses: one number, or one for each step of the run. A step uses
            no more than there are.
        frame: the coordinates; see `diffsolve.tableau.frames`.
        variable: where the polynomial lives: a name in `diffsolve.tableau.frames.VARIABLES`, or None for the frame's v.
        corrector: how many values the corrector uses, the newest included; 0 for none, -1 for `points` + 1. Where a
            step has k points less than the most, its corrector has k less too, but at least two.
        lower_final: use no more than n - i values in step i of n, so that the last step is of first order. True
            and False mean always and never; a number, in runs of fewer steps than that (15 in diffusers). It is
            False where `points` are given for each step: they are used as they are.
        ramp: how many values the first steps use, in the place of `points`; a step by the rule for the ends is none.
        start: "heun" or "rk4" to make Runge-Kutta steps in the frame until there are as many values as `points`
            asks for; None to use fewer until then, which caps the order (see `order`).
        mode: "pec": the call at the predicted point corrects it, and is all there is (as in UniPC); the result of
            the run is a predicted one. "pece": a second call, at the corrected point, is what later steps use.
        uncorrected: the steps that keep their prediction, counted from 0, or from the end if negative
            (`disable_corrector` in diffusers).
        tau: the SDE to step in the place of the probability flow, a number or a `Tau`; in the frame denoised, from
            the noise to the data. With the variable lambda it is SA-Solver; see `diffsolve.solvers.sde`.
        limit: with tau, the most that the |weights| of a prediction may add up to, at least 3; a step over it uses
            fewer values. Each value has noise of its own, which the weights multiply: four values weigh 30 at the end
            of CondOT's grid. None is 5 where `points` is 4 or more, and no limit below, as published, nor where
            `points` are given for each step; `math.inf` is no limit.
    """

    points: int | tuple[int, ...] = 2
    frame: str = "straight"
    variable: str | None = None
    corrector: int = 0
    lower_final: bool | int = False
    ramp: tuple[int, ...] = ()
    start: str | None = None
    mode: str = "pec"
    uncorrected: tuple[int, ...] = ()
    tau: float | Tau = 0.0
    limit: float | None = None

    def __post_init__(self) -> None:
        frame_named(self.frame)
        for name in ("points", "ramp", "uncorrected"):  # so that a list will do
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.points, tuple):
            _each("points", self.points, 1, 8)
            required(bool(self.points), "points", self.points, "an integer, or one for each step of the run")
            required(not self.ramp, "ramp", self.ramp, "empty where points are given for each step")
            object.__setattr__(self, "lower_final", False)
        else:
            integer("points", self.points, 1, 8)
        _each("ramp", self.ramp, 1, 8)
        _each("uncorrected", self.uncorrected, -1000, 1000)
        if self.corrector == -1:
            object.__setattr__(self, "corrector", self.most + 1)
        integer("corrector", self.corrector, 0, 9)
        if not isinstance(self.lower_final, bool):
            integer("lower_final, where not True or False,", self.lower_final, 2, 1000)
        choice("variable", self.variable, (*VARIABLES, None))
        choice("start", self.start, (*STARTS, None))
        choice("mode", self.mode, ("pec", "pece") if self.corrector else ("pec",))
        if tau_named(self.tau) != Constant(0.0) and (self.frame != "denoised" or self.start):
            raise ValueError(
                f"tau={self.tau!r} with frame={self.frame!r}, start={self.start!r}: an SDE is stepped in the frame "
                "'denoised' and without a Runge-Kutta start"
            )
        if self.limit is not None:
            fits = isinstance(self.limit, (int, float)) and self.limit >= 3
            required(fits, "limit", self.limit, "a number >= 3, or None")
            required(tau_named(self.tau) != Constant(0.0), "limit", self.limit, "None where tau is 0")

    def __str__(self) -> str:
        """The class with its points, frame and lowering, and with whatever else is not at its default."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        shown = [
            f"{name}={value!r}"
            for name, (value, default) in values.items()
            if name in ("points", "frame", "lower_final") or value != default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def most(self) -> int:
        """The points of a full step."""
        return max(self.points) if isinstance(self.points, tuple) else self.points

    @property
    def most_weight(self) -> float:
        """What the |weights| of a prediction may add up to."""
        if self.limit is not None:
            return self.limit
        noisy = tau_named(self.tau) != Constant(0.0)
        return LIMIT if noisy and isinstance(self.points, int) and self.points > 3 else math.inf

    @property
    def order(self) -> int:
        """The order of global convergence between interior times, as run.

        Full steps have order p, or with a corrector that of the corrector, at most p + 1. A single step with
        local error h^(k+1) caps it at k + 1: the first step, of one value (k = 1, corrected 2) or of Runge-Kutta;
        a last step, which is not corrected (but in PECE); a step of the ramp. `points` for each step are
        taken to rise and fall like a ramp and a lowered end.
        """
        p, corrected = self.most, self.corrector > 1
        ends = [p + 1, STARTS[self.start].order + 1 if self.start else 2 + corrected]
        ends += [k + 1 + corrected for k in self.ramp]
        if self.lower_final is True or isinstance(self.points, tuple):
            ends.append(2 + (self.mode == "pece"))
        if corrected:
            ends += [(p if self.start or j < 0 else min(p, j + 1)) + 1 for j in self.uncorrected]
        if tau_named(self.tau) != Constant(0.0):  # the weak order: a step sees nothing of the noise within it
            ends.append(2)
        return min(self.corrector if corrected else p, *ends)

    @property
    def calls(self) -> int:
        """The most network calls that a step makes."""
        return max(2 if self.mode == "pece" else 1, len(STARTS[self.start].b) if self.start else 1)

    def counts(self, steps: int, first: int = 0, last: int | None = None) -> list[int]:
        """How many values the predictor of each step may use.

        Args:
            first: the first step that has a value to use.
            last: where `lower_final` counts to; None for the last step.

        Raises:
            ValueError: if `points` were given for each step of a run of another length.
        """
        if isinstance(self.points, tuple):
            fits = len(self.points) == steps
            required(fits, "points", self.points, f"{steps} numbers for a run of {steps} steps, or one number")
            return list(self.points)
        counts = [*[1] * first, *self.ramp, *[self.points] * steps][:steps]
        last = steps if last is None else last
        lowered = self.lower_final is True or last < self.lower_final
        return [min(count, max(1, last - i)) if lowered else count for i, count in enumerate(counts)]

    def predict(self, step: StepIntegrals) -> np.ndarray:
        """omega over the values of d at and before the start of the step, newest first."""
        return step.omega()

    def correct(self, step: StepIntegrals) -> np.ndarray:
        """omega over the value of d at the end of the step and those before it."""
        return step.omega()

    def between(self, path: Path, frame: Frame, s: Position[float], t: Position[float], c: float) -> Position[float]:
        """Where a Runge-Kutta stage at the fraction c of the step from s to t stands."""
        if c in (0, 1):
            return t if c else s
        v = np.array([frame.v(s) + c * (frame.v(t) - frame.v(s))])
        return path.nodes(frame.time(path, v))[0]

    def write(self, draft: Draft, call_last: bool) -> None:
        run = _Run(self, draft, call_last)
        for i in range(draft.steps):
            run.step(i)

    def corrects(self, count: int, step: int) -> int:
        """How many values correct this step, counted from 0, of so many points."""
        return max(min(2, self.corrector), self.corrector - self.most + count)

    def runge_kutta(self, draft: Draft, frame: Frame, i: int, state: Combination) -> None:
        """The step as stages that all start from the state, each a first-order step with a mean of the d so far.

        The stage at c_k is x_k = (c_k / c_s) x_s + c_k (v_k - v_s) sum_j (a_kj / c_k) d_j: where v_k is c_k of
        the way this is Butcher's scheme, elsewhere the pseudo one of PNDM.
        """
        assert self.start is not None
        method, s, t, base = STARTS[self.start], draft.grid[i], draft.grid[i + 1], len(draft)
        at = [self.between(draft.path, frame, s, t, float(c)) for c in method.c]
        for k, (point, after) in enumerate(zip(at, [*at[1:], t], strict=True)):
            last = k + 1 == len(at)
            weights = [float(w) for w in method.b] if last else [float(a / method.c[k + 1]) for a in method.a[k + 1]]
            ratio, gain = frame.step(s, after)
            start: Combination = {"s": 1.0} if k else state
            y = _sum(ratio, start, {base + j: gain * w for j, w in enumerate(weights) if w})
            draft.call(point, frame.name, y=y, s=None if last else start, node=i + 1 if last else -1)


class _Run:
    """A multistep run as it is written, step by step.

    Two points, three corrector values, mode "pec", n steps; r and g are the ratio and gain of each step, w its omega:

        call 0 at t_0    s = y = x                                          y' = r s + g d_0
        call 1 at t_1    s' = r s + g (w_0 d_1 + w_1 d_0), corrected        y' = r s' + g (w_0 d_1 + w_1 d_0)
        call 2 at t_2    s' = r s + g (w_0 d_2 + w_1 d_1 + w_2 d_0)         y' = r s' + g (w_0 d_2 + w_1 d_1)
        ..               so the call at the predicted y corrects s, the step before, and predicts the next y from it
        call n - 1       the last y' is the result: no call at t_n corrects it
    """

    def __init__(self, solver: Multistep, draft: Draft, call_last: bool) -> None:
        path, g, n = draft.path, draft.grid, draft.steps
        self.solver, self.draft, self.call_last = solver, draft, call_last
        self.frame = frame_of(solver.frame, solver.tau, path, g)
        self.integrals = Integrals(path, self.frame, solver.variable, g)
        self.at_data = [next_to_data(g[i]) for i in range(n + 1)]
        """Whether a node counts as the data, though it is not."""
        self.to_data = next((i for i in range(1, n) if self.at_data[i]), n)
        """The steps that lead to the data; a step from there to the data itself is not counted."""
        self.ends = [self.end(i) for i in range(n)]
        self.own = [
            end in (None, self.frame) and math.isfinite(at)
            for end, at in zip(self.ends, self.integrals.node[:-1], strict=True)
        ]
        self.counts = solver.counts(n, self.own.index(True) if any(self.own) else n, self.to_data)
        self.uncorrected = {j % n for j in solver.uncorrected if -n <= j < n}
        self.usable: tuple[int, ...] = ()
        """Nodes whose d may be interpolated, newest first."""
        self.calls: dict[int, int] = {}
        """The call that made the d of a node."""
        self.waiting = False
        """Whether the step to this node is still to be corrected."""
        self.carried = 1.0
        """The weight of s in the corrected state."""

    def end(self, i: int) -> Frame | None:
        """The frame of the first-order call in the place of step i, if there is one.

        A prediction makes no call at its end: a frame that is regular at the data leads next to it too.
        """
        s, t = self.draft.grid[i], self.draft.grid[i + 1]
        if self.at_data[i + 1] and not self.at_data[i]:
            t = replace(t, sigma=0.0)
        return end_frame(self.frame, self.draft.path, s, t)

    def step(self, i: int) -> None:
        """The calls of step i: from node i to node i + 1."""
        solver, draft, s, t = self.solver, self.draft, self.draft.grid[i], self.draft.grid[i + 1]
        last = i + 1 == draft.steps
        self.calls[i] = len(draft)
        if self.own[i]:
            self.usable = (i, *self.usable)
        state = self.corrected(i)
        full = self.ends[i] is None and bool(self.usable) and math.isfinite(self.integrals.node[i + 1])
        end_may_be_called = (not last or self.call_last) and not self.at_data[i + 1]
        if solver.start and full and end_may_be_called and len(self.usable) < self.counts[i]:
            solver.runge_kutta(draft, self.frame, i, state)
            self.waiting = False
            return
        frame = self.ends[i] or self.frame
        ratio, gain = frame.step(s, t)
        change: Combination = {self.calls[i]: gain}
        if full:
            change = self.integral(i, gain, self.fitting(i), solver.predict)
        y = _sum(ratio, state, change)
        self.carried = ratio
        if noise := self.frame.noise(s, t):  # which the corrected state has too
            y["z"] = noise
            state, self.carried = {**{key: ratio * weight for key, weight in state.items()}, "z": noise}, 1.0
        clock = self.frame.clock(s, t)
        corrects = full and solver.corrects(self.counts[i], i) > 0 and i not in self.uncorrected
        if corrects and solver.mode == "pece" and end_may_be_called:
            draft.call(s, frame.name, y=y, s=state, clock=clock)
            self.calls[i + 1] = len(draft)  # for now: at the predicted point
            nodes = (i + 1, *self.usable)[: solver.corrects(self.counts[i], i)]
            corrected = {"s": self.carried, **self.integral(i, gain, nodes, solver.correct)}
            draft.call(t, frame.name, y=corrected, node=i + 1)
            return
        self.waiting = corrects and solver.mode == "pec" and not last
        draft.call(s, frame.name, y=y, s=state if self.waiting else y, node=i + 1, clock=clock)

    def fitting(self, i: int) -> tuple[int, ...]:
        """The nodes that predict step i; where their weights pass the limit, the step counts as one of fewer points."""
        nodes, most = self.usable[: self.counts[i]], self.solver.most_weight
        while len(nodes) > 1 and most < math.inf:
            omega = self.solver.predict(StepIntegrals(self.integrals, i, nodes))
            if np.abs(omega).sum() <= most:
                break
            nodes = nodes[:-1]
            self.counts[i] = len(nodes)
        return nodes

    def corrected(self, i: int) -> Combination:
        """The state at node i: y, or where the step to it is still to be corrected, the corrected s."""
        if not (self.waiting and self.own[i] and len(self.usable) > 1):
            return {"y": 1.0}
        _, gain = self.frame.step(self.draft.grid[i - 1], self.draft.grid[i])
        nodes = self.usable[: self.solver.corrects(self.counts[i - 1], i - 1)]
        return {"s": self.carried, **self.integral(i - 1, gain, nodes, self.solver.correct)}

    def integral(
        self, i: int, gain: float, nodes: tuple[int, ...], rule: Callable[[StepIntegrals], np.ndarray]
    ) -> dict[str | int, float]:
        """gain sum_j omega_j d_j over step i, of the d at those nodes."""
        omega = rule(StepIntegrals(self.integrals, i, nodes))
        return {self.calls[j]: gain * float(weight) for j, weight in zip(nodes, omega, strict=True)}


def _sum(ratio: float, state: Combination, new: Combination) -> dict[str | int, float]:
    total = {key: ratio * weight for key, weight in state.items()}
    for key, weight in new.items():
        total[key] = total.get(key, 0.0) + weight
    return total


def _each(name: str, values: object, low: int, high: int) -> None:
    for value in instance(name, values, tuple, "a tuple of integers"):
        integer(name, value, low, high)
