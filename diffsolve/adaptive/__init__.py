"""Embedded Runge-Kutta methods with a step size for every sample.

The probability-flow ODE is solved in the coordinates of a frame (`diffsolve.adaptive.flow`). Each sample has its own
time, step and error. One batch of network calls advances all unfinished samples; a finished sample leaves the batch.
So a hard sample costs the others nothing: their steps, network calls and values are the same as alone.
"""

from diffsolve.adaptive.integrate import integrate
from diffsolve.adaptive.options import METHODS, Adaptive, Status
from diffsolve.adaptive.run import AdaptiveRun, solve_ode
from diffsolve.adaptive.sde import AdaptiveSDE, solve_sde
from diffsolve.adaptive.solution import Solution

__all__ = [
    "METHODS",
    "Adaptive",
    "AdaptiveRun",
    "AdaptiveSDE",
    "Solution",
    "Status",
    "integrate",
    "solve_ode",
    "solve_sde",
]
