"""From a model, a solver and a grid to a run: the plan, the program bound to a network, and its executor."""

from diffsolve.common.deprecation import deprecated_names
from diffsolve.execute.bind import Program, bind
from diffsolve.execute.executor import BrownianPath, Executor, State, executor_at_end
from diffsolve.execute.network import Network, conversion, derivatives, network_times

__all__ = [
    "BrownianPath",
    "Executor",
    "Network",
    "Program",
    "State",
    "bind",
    "conversion",
    "derivatives",
    "executor_at_end",
    "network_times",
]

__getattr__ = deprecated_names(__name__, {"Wiener": "diffsolve.execute.executor:BrownianPath"})
