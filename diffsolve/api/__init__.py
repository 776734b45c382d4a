"""The main calls: `sample`, `solve`, `encode`, `diffuse`, and `reversible`."""

from diffsolve.api import reversible
from diffsolve.api.sampling import diffuse, encode, sample, solve

__all__ = ["diffuse", "encode", "reversible", "sample", "solve"]
