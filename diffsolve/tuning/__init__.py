"""Choosing a solver for one network, or learning one: by pilots, by least squares and by gradients."""

from diffsolve.tuning.choosing import Choice, Choices, choose
from diffsolve.tuning.compare import Carried, Comparison, carries, compare
from diffsolve.tuning.distributions import Distribution, Frechet, SlicedWasserstein
from diffsolve.tuning.family import Family
from diffsolve.tuning.fit import Tunings, fit, tune
from diffsolve.tuning.learning import Tuning
from diffsolve.tuning.losses import Distance
from diffsolve.tuning.task import Measured

__all__ = [
    "Carried",
    "Choice",
    "Choices",
    "Comparison",
    "Distance",
    "Distribution",
    "Family",
    "Frechet",
    "Measured",
    "SlicedWasserstein",
    "Tuning",
    "Tunings",
    "carries",
    "choose",
    "compare",
    "fit",
    "tune",
]
