"""Choosing a solver for one network, or learning one: by pilots and by gradients."""

from diffsolve.tuning.choosing import Choice, Choices, choose
from diffsolve.tuning.fit import Tuning, fit, tune

__all__ = ["Choice", "Choices", "Tuning", "choose", "fit", "tune"]
