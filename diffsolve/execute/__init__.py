"""From a model, a solver and a grid to a run: the plan, the program bound to a network, and what steps it."""

from diffsolve.common.deprecation import deprecated_names
from diffsolve.execute.bind import Program, bind, conversion
from diffsolve.execute.executor import BrownianPath, Executor, State

__all__ = ["BrownianPath", "Executor", "Program", "State", "bind", "conversion"]

__getattr__ = deprecated_names(__name__, {"Wiener": "diffsolve.execute.executor:BrownianPath"})
