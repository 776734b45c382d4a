"""Log-densities: of samples under a model, of the transitions of a stochastic run, in bits per dimension."""

from diffsolve.likelihood import traces
from diffsolve.likelihood.bits import BitsPerDim, bits_per_dim
from diffsolve.likelihood.density import DEFAULT, Density, log_prob, sample_with_density
from diffsolve.likelihood.results import DensityRun, LogProb
from diffsolve.likelihood.transitions import transition_log_prob

__all__ = [
    "DEFAULT",
    "BitsPerDim",
    "Density",
    "DensityRun",
    "LogProb",
    "bits_per_dim",
    "log_prob",
    "sample_with_density",
    "traces",
    "transition_log_prob",
]
