"""A tableau being written, call by call: what solvers write into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffsolve.paths import Path, Position
from diffsolve.tableau.frames import FRAMES
from diffsolve.tableau.tableau import Tableau

__all__ = ["Call", "Combination", "Draft"]

Combination = Mapping[str | int, float]
"""Weights on "s", "y", "z" and, by the number of the call that made it, on d."""


@dataclass(frozen=True)
class Call:
    """One row of a draft; the arguments of `Draft.call`, completed."""

    at: Position[float]
    frame: str
    d: tuple[float, float]
    s: Combination
    y: Combination
    node: int
    clock: tuple[float, float]
    to: float
    """The second time."""


class Draft:
    """A tableau being written: a solver adds its network calls one by one."""

    def __init__(self, path: Path, grid: Position[np.ndarray]) -> None:
        self.path, self.grid = path, grid
        self.entry = (1.0, 0.0)
        """What s and y are made of before the first call: x and z."""
        self.rows: list[Call] = []

    def __len__(self) -> int:
        """The number of calls so far, which is the number of the next one."""
        return len(self.rows)

    @property
    def steps(self) -> int:
        """The number of grid intervals."""
        return len(self.grid.t) - 1

    def call(
        self,
        at: Position[float],
        frame: str,
        *,
        y: Combination,
        s: Combination | None = None,
        node: int = -1,
        d: tuple[float, float] | None = None,
        clock: tuple[float, float] = (0.0, 0.0),
        to: Position[float] | None = None,
    ) -> None:
        """Call the network at `at`, take its output as the derivative d of `frame`, then set s' and y'.

        Args:
            y: the next network input, as weights on "s", "y", "z" and earlier (or this) calls' d.
            s: the next state; y itself if not given.
            node: the grid node that y' stands at, if it does.
            d: (a, b) of d = a x_0 + b eps, for the frame "drift".
            clock: the stretch of a Brownian clock that "z" stands for, if it does.
            to: where the stretch ends over which a network told two times averages d; of no length if not given.
        """
        d = FRAMES[frame].d(at) if d is None else d
        told = float(at.t if to is None else to.t)
        self.rows.append(Call(at, frame, d, y if s is None else s, y, node, clock, told))

    def build(self, solver: str, order: int) -> Tableau:
        """The finished tableau, checked."""
        rows = self.rows
        back = [i - j for i, row in enumerate(rows) for side in (row.s, row.y) for j in side if isinstance(j, int)]
        history = 1 + max(back, default=0)
        columns: dict[str | int, int] = {"s": 0, "y": 1, "z": history + 2}
        weights = np.zeros((len(self), 2, history + 3))
        for i, row in enumerate(rows):
            for side, combination in enumerate((row.s, row.y)):
                for key, weight in combination.items():
                    weights[i, side, 2 + i - key if isinstance(key, int) else columns[key]] += weight
        return Tableau(
            solver=solver,
            path=str(self.path),
            order=order,
            grid=np.stack([self.grid.t, self.grid.alpha, self.grid.sigma], -1),
            calls=np.array([[row.at.t, row.at.alpha, row.at.sigma] for row in rows]),
            frame=tuple(row.frame for row in rows),
            d=np.array([row.d for row in rows]),
            node=np.array([row.node for row in rows]),
            entry=np.array([self.entry, self.entry]),
            weights=weights,
            clock=np.array([row.clock for row in rows]),
            to=np.array([row.to for row in rows]),
        )
