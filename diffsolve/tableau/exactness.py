"""Whether a tableau is exact for a constant prediction, as every run must be."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from diffsolve.paths import Position
from diffsolve.tableau.frames import DRIFT, FRAMES
from diffsolve.tableau.theory import Weights

__all__ = ["check_exact"]

_STEPS = {**FRAMES, DRIFT: FRAMES["native"]}


class Run(Weights, Protocol):
    """What of a tableau is read."""

    @property
    def solver(self) -> str: ...
    @property
    def frame(self) -> tuple[str, ...]: ...
    @property
    def nfe(self) -> int: ...
    @property
    def history(self) -> int: ...
    @property
    def stochastic(self) -> bool: ...


def check_exact(run: Run, tolerance: float) -> None:
    """What `Tableau.check` says."""
    sigma = np.append(run.calls[:, 2], run.grid[-1, 2])
    # Near the data a clock like 1 - sigma does not tell positions apart that a step in lambda does.
    allowed = tolerance + 2.0**-51 * np.maximum.accumulate(1 / np.where(sigma > 0, sigma, 1.0))
    traces = [_trace_constant(run)]
    if run.stochastic and set(run.frame) <= {"denoised", "noise", "straight"}:
        traces.append(_trace_mean(run))
    for found, wanted, size in traces:
        # Relative to the largest term summed so far: far extrapolation has huge weights that cancel.
        error = np.abs(found - wanted).max(-1) / np.maximum(1, np.maximum.accumulate(size))
        bad = ~(error <= allowed)
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            what = "the result" if i == run.nfe else f"the input of call {i}"
            raise ValueError(f"weights of {run.solver}: {what} is off by {error[i]:.3g} for a constant prediction")


def _trace_constant(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every y, what it should be, and the size of the terms: vectors over x, d, d of the next frame, .."""
    stretch = np.cumsum([0] + [f != g for f, g in zip(run.frame, run.frame[1:], strict=False)])
    points = [_position(row) for row in (*run.calls, run.grid[-1])]
    wanted = np.zeros((run.nfe + 1, stretch[-1] + 2))
    anchor, start = wanted[0].copy(), points[0]
    anchor[0] = run.entry[1, 0]
    wanted[0] = anchor
    d = np.eye(len(anchor))[1 + stretch]
    found, size = _propagate(run, run.entry[:, :1] * np.eye(len(anchor))[0], d)
    for i, frame in enumerate(run.frame):
        if i and frame != run.frame[i - 1]:
            anchor, start = found[i], points[i]
        if run.weights[i, 1, -1] and frame != DRIFT:  # noise was added beyond the end of a stretch
            wanted[i + 1] = anchor = found[i + 1]
            start = points[i + 1]
            continue
        ratio, gain = _STEPS[frame].step(start, points[i + 1])
        wanted[i + 1] = ratio * anchor
        wanted[i + 1, 1 + stretch[i]] += gain
    return found, wanted, size


def _trace_mean(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for a point mass at x_0 = 1: the mean of y is alpha."""
    found, size = _propagate(run, run.entry[:, :1] * run.grid[0, 1], run.d[:, :1])
    return found, np.append(run.calls[:, 1], run.grid[-1, 1])[:, None], size


def _propagate(run: Run, start: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every y, and the largest sum of absolute terms of each row, for given vectors s and y_0, d_i and no noise."""
    inputs = np.zeros((run.history + 3, start.shape[1]))
    inputs[:2] = start
    found, size = np.empty((run.nfe + 1, start.shape[1])), np.ones(run.nfe + 1)
    found[0] = start[1]
    for i, weights in enumerate(run.weights):
        inputs[3:-1] = inputs[2:-2].copy()
        inputs[2] = d[i]
        size[i + 1] = (np.abs(weights) @ np.abs(inputs)).max()
        inputs[:2] = weights @ inputs
        found[i + 1] = inputs[1]
    return found, size


def _position(row: np.ndarray) -> Position[float]:
    t, alpha, sigma = row
    return Position(t, alpha, sigma, math.nan, math.nan)
