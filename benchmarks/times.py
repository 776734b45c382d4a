r"""Where the calls of a designed run should be: its error in the designed weights' world, descended by the times.

    python benchmarks/times.py                                  # noise and raw EDM, 5 and 10 steps, about 2 minutes
    python benchmarks/times.py --networks noise/ddpm --steps 5 8 10 15

For each list of times the weights are made anew (`diffsolve.solvers.designed.rows`), and the error is the mean weighted
distance of all particles from where their own flow ends. Powell's method moves the levels of the calls, from those of
the rule; "rule" is the error of the rule's own times, `diffsolve.solvers.designed.ArcOf`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
from record import Recorder
from scipy.optimize import minimize

import diffsolve as ds
from diffsolve.paths import Path
from diffsolve.solvers.designed import ArcOf, Designed, rows
from diffsolve.solvers.world import World, world
from diffsolve.tableau.frames import FRAMES
from diffsolve.tableau.theory import FAR

MOVES = 400
"""Lists of times that one descent may try."""


def end_error(problems: World, path: Path, times: np.ndarray, history: int) -> float:
    """The mean distance from the ends of the flow, weighted as the least squares are."""
    grid = path.nodes(times)
    u = np.asarray(FRAMES["straight"].v(grid))
    weights, outputs = rows(problems, path, grid, history), []
    y = problems.at(float(u[0]))
    for i, row in enumerate(weights):
        outputs.append(problems.velocity(y, float(u[i])))
        y = y + sum(w * outputs[j] for j, w in enumerate(row) if w != 0)
    return float(np.mean(problems.weight * abs(y - problems.at(float(u[-1])))))


def descended(path: Path, predicts: str, steps: int) -> tuple[float, float, np.ndarray]:
    """The errors of the rule's times and of the descended ones, and lambda of the latter's calls."""
    solver = Designed(predicts=predicts)
    problems = world(path, predicts, solver.delta, solver.spread, solver.modes, 1.0)
    rule = ArcOf(predicts)(path, steps)
    low, high = max(float(path.lam(rule[0])), -FAR), min(float(path.lam(path.t_last)), FAR)
    levels = path.nodes(rule).lam[:-1].clip(low, high)

    def times(gaps: np.ndarray) -> np.ndarray:
        inner = np.minimum(low + np.cumsum(np.exp(gaps.clip(-6, 6))), high)
        return np.array([rule[0], *path.time(inner).tolist(), rule[-1]])

    def error(gaps: np.ndarray) -> float:
        tried = times(gaps)
        if (np.diff(path.nodes(tried[:-1]).lam) <= 1e-6).any():
            return math.inf
        return math.log(end_error(problems, path, tried, solver.history))

    options = {"maxfev": MOVES, "xtol": 1e-2, "ftol": 1e-4}
    least = minimize(error, np.log(np.diff(levels).clip(1e-3)), method="Powell", options=options)
    before = end_error(problems, path, rule, solver.history)
    return before, math.exp(least.fun), path.nodes(times(least.x)).lam[:-1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The times of designed runs, by descent.")
    parser.add_argument("--networks", nargs="+", default=["noise/ddpm", "edm/edm"], help="prediction/path")
    parser.add_argument("--steps", nargs="+", type=int, default=[5, 10])
    options = parser.parse_args(argv)
    recorder = Recorder("times")
    table = recorder.table("times by descent", ["network", "steps"], {"rule": ".4f", "descended": ".4f", "lambda": ""})
    for network in options.networks:
        predicts, name = network.split("/")
        for steps in options.steps:
            before, after, levels = descended(ds.paths.named(name), predicts, steps)
            table.add([network, steps], [before, after, " ".join(f"{level:.1f}" for level in levels)])


if __name__ == "__main__":
    main()
