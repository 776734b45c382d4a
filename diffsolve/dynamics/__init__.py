"""Langevin dynamics, and its use as a corrector."""

from diffsolve.dynamics.chains import Chain, Langevin, annealed_langevin, langevin
from diffsolve.dynamics.corrector import Correction

__all__ = ["Chain", "Correction", "Langevin", "annealed_langevin", "langevin"]
