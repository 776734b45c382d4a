"""Training: one regression for every kind of network, to be used inside anyone's loop."""

from diffsolve.training.laws import LogNormal, Spread, TimeLaw
from diffsolve.training.objective import Parts, objective
from diffsolve.training.weights import EDM, SNR, DataWeight, MinSNR, Plain, Sigmoid, Weight

__all__ = [
    "EDM",
    "SNR",
    "DataWeight",
    "LogNormal",
    "MinSNR",
    "Parts",
    "Plain",
    "Sigmoid",
    "Spread",
    "TimeLaw",
    "Weight",
    "objective",
]
