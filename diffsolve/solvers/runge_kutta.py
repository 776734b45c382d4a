"""Explicit Runge-Kutta methods in any frame, and what all methods of one step share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction as F
from functools import lru_cache
from typing import TypeVar

import numpy as np

from diffsolve.paths import Position
from diffsolve.solvers.base import Solver, frame_named
from diffsolve.solvers.butcher import HEUN, MIDPOINT, RALSTON, RK4, Butcher
from diffsolve.solvers.sde import frame_of
from diffsolve.tableau import Combination, Draft
from diffsolve.tableau.ends import end_frame, first_order_frame
from diffsolve.tableau.frames import Frame

__all__ = ["HEUN", "MIDPOINT", "RALSTON", "RK4", "Butcher", "OneStep", "RungeKutta", "Stages", "low_storage"]

Scalar = TypeVar("Scalar", F, float)

Stages = tuple[list[tuple[float, float, dict[int, float]]], list[float]]
"""What makes the next stage of (s, y, each k), row by row, and the weights b; see `low_storage`."""


class OneStep(Solver):
    """Methods whose step makes several calls and keeps none of them for the next.

    In the coordinates z = x / c of the frame, with h = v_t - v_s, all of them are z' = z + h sum_j b_j k_j with
    k_i = d at z + h sum_j a_ij k_j. The state s gathers z + h sum b_j k_j as the stages come, so that a stage's k is
    kept only as long as later stages need it: heun and midpoint keep one, rk4 two.

    In the frame of an SDE z also gathers a Brownian motion: the stages of a step see the same one, and each row adds
    the increment from its point to the next (SEEDS, Gonzalez et al., 2305.14267).
    """

    frame: str
    tau: float = 0.0

    @property
    @abstractmethod
    def c(self) -> Sequence[F | float]:
        """Where the stages stand, from 0 to 1, the first at 0."""

    @property
    @abstractmethod
    def spacing(self) -> Frame:
        """The frame in whose v the stages are spaced by `c`."""

    @abstractmethod
    def stages(self, h: float) -> Stages:
        """The weights of a step of length h in the v of `spacing`."""

    @property
    def calls(self) -> int:
        return len(self.c)

    def write(self, draft: Draft, call_last: bool) -> None:
        path, g = draft.path, draft.grid
        frame = frame_of(self.frame, self.tau, path, g)
        with np.errstate(all="ignore"):
            w = self.spacing.v(g)
        inner = self._inner(draft, w)
        for i in range(draft.steps):
            end = end_frame(frame, path, g[i], g[i + 1], called=i + 1 < draft.steps or 1 in self.c)
            if end is None and not np.isfinite(w[i : i + 2]).all():
                end = frame
            if end is None and i + 1 == draft.steps and not call_last and self.calls > 1:
                # Nor may it be called between its last time and the end.
                end = first_order_frame(g[i], g[i + 1])
            if end is not None:
                end = frame if end.name == frame.name else end  # with its noise
                ratio, gain = end.step(g[i], g[i + 1])
                step: Combination = {"y": ratio, len(draft): gain, "z": end.noise(g[i], g[i + 1])}
                draft.call(g[i], end.name, y=step, node=i + 1, clock=end.clock(g[i], g[i + 1]))
                continue
            rows, b = self.stages(float(w[i + 1] - w[i]))
            base, h, c_start = len(draft), frame.v(g[i + 1]) - frame.v(g[i]), frame.c(g[i])
            # s is in units of c at the start of the step, or where noise shrinks c by orders of magnitude at its end;
            # y in those of its own point.
            unit = frame.c(g[i + 1]) if self.tau else c_start
            points = [
                g[i],
                *(g[i + 1] if c == 1 else g[i] if c == 0 else inner[i, k] for k, c in enumerate(self.c) if k),
            ]
            for k, (point, after) in enumerate(zip(points, [*points[1:], g[i + 1]], strict=True)):
                on_s, on_y, on_k = rows[k]
                c, c_next = frame.c(point), frame.c(after)
                y: dict[str | int, float] = {base + j: c_next * h * weight for j, weight in on_k.items()}
                noise = frame.noise(point, after)
                y.update({"s": c_next / (unit if k else c_start) * on_s, "y": c_next / c * on_y, "z": noise})
                last = k + 1 == len(points)
                gathered: Combination = {
                    "s": 1.0 if k else unit / c_start,
                    base + k: unit * h * b[k],
                    "z": noise * unit / c_next,
                }
                draft.call(
                    point, frame.name, y=y, s=None if last else gathered, node=i + 1 if last else -1,
                    clock=frame.clock(point, after),
                )  # fmt: skip

    def _inner(self, draft: Draft, w: np.ndarray) -> Position[np.ndarray]:
        """(steps, stages): where each stage of each step stands; the step's start where w is infinite."""
        with np.errstate(all="ignore"):
            inside = w[:-1, None] + np.diff(w)[:, None] * np.array([float(c) for c in self.c])
        t = np.broadcast_to(draft.grid.t[:-1, None], inside.shape).copy()
        usable = np.isfinite(inside) & [0 < c < 1 for c in self.c]
        t[usable] = self.spacing.time(draft.path, inside[usable])
        return draft.path.nodes(t)


@dataclass(frozen=True)
class RungeKutta(OneStep):
    """z' = z + h sum_j b_j k_j with k_i = d at z + h sum_j a_ij k_j, in the coordinates of `frame`."""

    method: Butcher = HEUN
    frame: str = "straight"

    def __post_init__(self) -> None:
        frame_named(self.frame)

    def __str__(self) -> str:
        return f"RungeKutta({self.method.name}, frame={self.frame!r})"

    @property
    def order(self) -> int:
        return self.method.order

    @property
    def c(self) -> tuple[F, ...]:
        return self.method.c

    @property
    def spacing(self) -> Frame:
        return frame_named(self.frame)

    def stages(self, h: float) -> Stages:
        return _exactly(self.method)


@lru_cache
def _exactly(method: Butcher) -> Stages:
    return low_storage([[F(x) for x in row] for row in method.a], [F(x) for x in method.b])


def low_storage(a: Sequence[Sequence[Scalar]], b: Sequence[Scalar], most: float = 4.0) -> Stages:
    """What makes the next stage (in the end, the result) of s, y and the k so far, in units of z and h.

    s holds S = z + h sum_{j < k} b_j k_j, y holds Y = z + h sum_{j < k} a_kj k_j, so for every beta
    z = beta Y + (1 - beta) S - ..: the beta is taken that spares the oldest k, among those of at most `most`, since
    beta multiplies the rounding of the state.
    """
    rows: list[tuple[float, float, dict[int, float]]] = []
    count, zero = len(b), b[0] * 0
    for k in range(count - 1):
        now, then = a[k], a[k + 1]
        betas = {j: (then[j] - b[j]) / (now[j] - b[j]) for j in range(k) if now[j] != b[j]}
        options = []
        for spared, beta in {-1: zero, **betas}.items():
            slopes = {j: then[j] - beta * now[j] - (1 - beta) * b[j] for j in range(k) if j != spared}
            slopes = {j: w for j, w in {**slopes, k: then[k]}.items() if w}
            if abs(beta) <= most:
                options.append((k - min(slopes, default=k), abs(beta), beta, slopes))
        _, _, beta, slopes = min(options, key=lambda option: option[:2])
        rows.append((float(1 - beta), float(beta), {j: float(w) for j, w in slopes.items()}))
    last = {count - 1: float(b[-1])} if b[-1] else {}
    return [*rows, (1.0, 0.0, last)], [float(w) for w in b]
