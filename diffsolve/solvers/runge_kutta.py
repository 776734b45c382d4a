"""Explicit Runge-Kutta methods in any frame, from Butcher tableaux in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction as F
from functools import lru_cache

import numpy as np

from diffsolve.frames import FRAMES
from diffsolve.paths import Position
from diffsolve.solvers.base import Solver, end_frame, frame_named
from diffsolve.tableau import Combination, Draft

__all__ = ["HEUN", "MIDPOINT", "RALSTON", "RK4", "Butcher", "RungeKutta"]


@dataclass(frozen=True)
class Butcher:
    """The coefficients of an explicit Runge-Kutta method.

    Args:
        a: the strictly lower triangle, row by row: () for the first stage, then (a_21,), (a_31, a_32), ...
        b: the weights of the stages.
        order: the classical order.

    The abscissae are the row sums, c_i = sum_j a_ij.
    """

    name: str
    a: tuple[tuple[F, ...], ...]
    b: tuple[F, ...]
    order: int
    c: tuple[F, ...] = field(init=False)

    def __post_init__(self) -> None:
        a, b = tuple(tuple(map(F, row)) for row in self.a), tuple(map(F, self.b))
        if [len(row) for row in a] != list(range(len(b))):
            raise ValueError(f"a={self.a!r}: rows of 0, 1, .., {len(b) - 1} entries are needed for {len(b)} stages")
        if sum(b) != 1:
            raise ValueError(f"b={self.b!r} must sum to 1")
        c = tuple(sum(row, F(0)) for row in a)
        if not all(0 <= x <= 1 for x in c):
            raise ValueError(f"a={self.a!r}: its row sums must lie between 0 and 1, so that no stage leaves the step")
        object.__setattr__(self, "a", a)
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "c", c)


def _butcher(name: str, order: int, a: Sequence[Sequence[F | int]], b: Sequence[F | int]) -> Butcher:
    return Butcher(name, tuple(tuple(map(F, row)) for row in a), tuple(map(F, b)), order)


HEUN = _butcher("heun", 2, [[], [1]], [F(1, 2), F(1, 2)])
MIDPOINT = _butcher("midpoint", 2, [[], [F(1, 2)]], [0, 1])
RALSTON = _butcher("ralston", 2, [[], [F(2, 3)]], [F(1, 4), F(3, 4)])
RK4 = _butcher("rk4", 4, [[], [F(1, 2)], [0, F(1, 2)], [0, 0, 1]], [F(1, 6), F(1, 3), F(1, 3), F(1, 6)])


@dataclass(frozen=True)
class RungeKutta(Solver):
    """z' = z + h sum_j b_j k_j with k_i = d at z + h sum_j a_ij k_j, in the coordinates of `frame`.

    The state s gathers z + h sum b_j k_j as the stages come, so that a stage's k is kept only as long as later
    stages need it: heun and midpoint keep one, rk4 two.
    """

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
    def calls(self) -> int:
        return len(self.method.b)

    def write(self, draft: Draft, call_last: bool) -> None:
        frame, path, g, method = frame_named(self.frame), draft.path, draft.grid, self.method
        stages, inner = _stages(method), self._inner(draft)
        for i in range(draft.steps):
            end = end_frame(frame, path, g[i], g[i + 1])
            if end is None and i + 1 == draft.steps and not call_last and len(method.b) > 1:
                # Nor may it be called between its last time and the end.
                end = FRAMES["denoised" if g.sigma[i] > 0 else "noise"]
            if end is not None:
                ratio, gain = end.step(g[i], g[i + 1])
                draft.call(g[i], end.name, y={"y": ratio, len(draft): gain}, node=i + 1)
                continue
            base, h, c_start = len(draft), frame.v(g[i + 1]) - frame.v(g[i]), frame.c(g[i])
            points = [
                g[i],
                *(g[i + 1] if c == 1 else g[i] if c == 0 else inner[i, k] for k, c in enumerate(method.c) if k),
            ]
            for k, (point, after) in enumerate(zip(points, [*points[1:], g[i + 1]], strict=True)):
                # s is in units of c at the start of the step, y in those of its own point.
                on_s, on_y, on_k = stages[k]
                c, c_next = frame.c(point), frame.c(after)
                y: dict[str | int, float] = {base + j: c_next * h * float(w) for j, w in on_k.items()}
                y.update({"s": c_next / c_start * float(on_s), "y": c_next / c * float(on_y)})
                last = k + 1 == len(points)
                gathered: Combination = {"s": 1.0, base + k: c_start * h * float(method.b[k])}
                draft.call(point, frame.name, y=y, s=None if last else gathered, node=i + 1 if last else -1)

    def _inner(self, draft: Draft) -> Position:
        """(steps, stages): where each stage of each step stands; the step's start where the frame is singular."""
        frame, g = frame_named(self.frame), draft.grid
        with np.errstate(all="ignore"):
            v = frame.v(g)
            inside = v[:-1, None] + np.diff(v)[:, None] * np.array([float(c) for c in self.method.c])
        t = np.broadcast_to(g.t[:-1, None], inside.shape).copy()
        usable = np.isfinite(inside) & [0 < c < 1 for c in self.method.c]
        t[usable] = frame.time(draft.path, inside[usable])
        return draft.path.nodes(t)


@lru_cache
def _stages(method: Butcher) -> list[tuple[F, F, dict[int, F]]]:
    """What makes the next stage (in the end, the result) of s, y and the k so far, in units of z and h.

    s holds S = z + h sum_{j < k} b_j k_j, y holds Y = z + h sum_{j < k} a_kj k_j, so for every beta
    z = beta Y + (1 - beta) S - ..: the beta is taken that spares the oldest k.
    """
    rows, count = [], len(method.b)
    for k in range(count - 1):
        a, a_next = method.a[k], method.a[k + 1]
        betas = [
            F(0),
            *((a_next[j] - method.b[j]) / (a[j] - method.b[j]) for j in range(k) if a[j] != method.b[j]),
        ]
        options = []
        for beta in betas:
            slopes = {j: a_next[j] - beta * a[j] - (1 - beta) * method.b[j] for j in range(k)}
            slopes = {j: w for j, w in {**slopes, k: a_next[k]}.items() if w}
            options.append((k - min(slopes, default=k), abs(beta), beta, slopes))
        _, _, beta, slopes = min(options, key=lambda option: option[:2])
        rows.append((1 - beta, beta, slopes))
    last = {count - 1: method.b[-1]} if method.b[-1] else {}
    return [*rows, (F(1), F(0), last)]
