"""Choosing a solver for one network, or learning one: by pilots, by least squares and by gradients."""

from diffsolve.tuning.choosing import Choice, Choices, choose
from diffsolve.tuning.compare import compare
from diffsolve.tuning.distributions import Distribution, Frechet, SlicedWasserstein
from diffsolve.tuning.family import Family
from diffsolve.tuning.fit import Tunings, fit, tune
from diffsolve.tuning.learning import Tuning
from diffsolve.tuning.losses import Distance
from diffsolve.tuning.task import Measured

__all__ = [
    "Choice",
    "Choices",
    "Distance",
    "Distribution",
    "Family",
    "Frechet",
    "Measured",
    "SlicedWasserstein",
    "Tuning",
    "Tunings",
    "choose",
    "compare",
    "fit",
    "tune",
]
