"""Reproducible noise: normals that are a function of (seed, sample, row), and Brownian paths."""

from diffsolve.noise.brownian import Brownian
from diffsolve.noise.key import Draw, Key, SeedLike, Stream

__all__ = ["Brownian", "Draw", "Key", "SeedLike", "Stream"]
