"""diffsolve: numerical ODE and SDE solvers for sampling from diffusion, score and flow-matching networks."""

from diffsolve import grids, paths, solvers
from diffsolve.adaptive import Adaptive, AdaptiveRun, AdaptiveSDE, Status
from diffsolve.brownian import Brownian
from diffsolve.dequantise import BitsPerDim, bits_per_dim
from diffsolve.execute import Executor, State
from diffsolve.guidance import Guidance
from diffsolve.langevin import Chain, Langevin, annealed_langevin, langevin
from diffsolve.likelihood import LogProb, log_prob
from diffsolve.models import Model, adapt
from diffsolve.noise import Key
from diffsolve.parallel import Anderson, Parareal, Picard, Ranks
from diffsolve.planning import plan
from diffsolve.reference import load
from diffsolve.runs import Run, Step
from diffsolve.sampling import diffuse, encode, sample, solve
from diffsolve.starting import begin
from diffsolve.tableau import Tableau
from diffsolve.transitions import transition_log_prob
from diffsolve.tuning import Tuning, tune

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "AdaptiveRun",
    "AdaptiveSDE",
    "Anderson",
    "BitsPerDim",
    "Brownian",
    "Chain",
    "Executor",
    "Guidance",
    "Key",
    "Langevin",
    "LogProb",
    "Model",
    "Parareal",
    "Picard",
    "Ranks",
    "Run",
    "State",
    "Status",
    "Step",
    "Tableau",
    "Tuning",
    "adapt",
    "annealed_langevin",
    "begin",
    "bits_per_dim",
    "diffuse",
    "encode",
    "grids",
    "langevin",
    "load",
    "log_prob",
    "paths",
    "plan",
    "sample",
    "solve",
    "solvers",
    "transition_log_prob",
    "tune",
]
