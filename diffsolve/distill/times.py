"""Where a student's calls are best made: intermediate times found by search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from diffsolve.common.checks import integer, required
from diffsolve.paths import Path
from diffsolve.paths import named as path_named

__all__ = ["best_times"]

RATIO = (5**0.5 - 1) / 2


def best_times(
    path: str | Path, calls: int, score: Callable[[Sequence[float]], float], *, evaluations: int = 12, rounds: int = 2
) -> list[float]:
    """Times of a run of so many calls with the least score, one after the other by golden sections in the angle.

        times = ds.distill.best_times("condot", 2, lambda grid: distance(ds.sample(student, .., solver="consistency",
                                                                                   grid=grid)))

    As in multistep consistency sampling (2303.01469, section 3): each intermediate time is sought between its
    neighbours with the others kept. Give the score the same seeds each time; it need not be smooth.

    Args:
        score: of a grid, whose first time is the noise end and whose last the data.
        evaluations: of the score, for each time in each round.
        rounds: over all the times.

    Returns:
        calls + 1 times on the path's clock, for grid=.

    Raises:
        ValueError: if calls, evaluations or rounds is below 1, or the score is no number.
    """
    path = path_named(path)
    for name, count in (("calls", calls), ("evaluations", evaluations), ("rounds", rounds)):
        integer(name, count, 1)

    def times(angles: np.ndarray) -> list[float]:
        inner = path.time(-np.log(np.tan(angles[1:-1]))).tolist()
        return [path.t_noise, *inner, path.t_data]

    def scored(angles: np.ndarray) -> float:
        found = float(score(times(angles)))
        required(found == found, "score", found, "a number")
        return found

    first = path.nodes(np.array([path.t_noise]))[0]
    angles = np.linspace(np.arctan2(first.sigma, first.alpha), 0.0, calls + 1)
    best = scored(angles) if calls > 1 else 0.0
    for _ in range(rounds if calls > 1 else 0):
        for i in range(1, calls):
            low, high = angles[i + 1], angles[i - 1]
            width = high - low
            low, high = low + 1e-3 * width, high - 1e-3 * width
            for _ in range(evaluations // 2):
                inside = high - RATIO * (high - low), low + RATIO * (high - low)
                trials = [np.where(np.arange(calls + 1) == i, angle, angles) for angle in inside]
                scores = [scored(trial) for trial in trials]
                k = int(np.argmin(scores))
                if scores[k] < best:
                    best, angles = scores[k], trials[k]
                low, high = (low, inside[1]) if scores[0] <= scores[1] else (inside[0], high)
    return times(angles)
