"""The main functions: `sample`, `solve`, `encode`, `diffuse`, and `reversible`."""

from diffsolve.api import reversible
from diffsolve.api.sampling import diffuse, encode, sample, sample_with_log_prob, solve

__all__ = ["diffuse", "encode", "reversible", "sample", "sample_with_log_prob", "solve"]
