"""diffsolve: numerical ODE and SDE solvers for sampling from diffusion, score and flow-matching networks."""

from diffsolve import grids, paths, solvers
from diffsolve.brownian import Brownian
from diffsolve.execute import Executor, State
from diffsolve.guidance import Guidance
from diffsolve.langevin import Chain, Langevin, annealed_langevin, langevin
from diffsolve.models import Model, adapt
from diffsolve.noise import Key
from diffsolve.parallel import Anderson, Parareal, Picard, Ranks
from diffsolve.planning import plan
from diffsolve.reference import load
from diffsolve.sampling import Run, Step, begin, diffuse, encode, sample, solve
from diffsolve.tableau import Tableau
from diffsolve.transitions import transition_log_prob

__version__ = "0.1.0"

__all__ = [
    "Anderson",
    "Brownian",
    "Chain",
    "Executor",
    "Guidance",
    "Key",
    "Langevin",
    "Model",
    "Parareal",
    "Picard",
    "Ranks",
    "Run",
    "State",
    "Step",
    "Tableau",
    "adapt",
    "annealed_langevin",
    "begin",
    "diffuse",
    "encode",
    "grids",
    "langevin",
    "load",
    "paths",
    "plan",
    "sample",
    "solve",
    "solvers",
    "transition_log_prob",
]
