"""Training: one regression for every kind of network, inside anyone's loop or by `fit`."""

from diffsolve.training.average import Average, Exponential, Power
from diffsolve.training.data import Images, Tensors
from diffsolve.training.fit import fit
from diffsolve.training.laws import LogNormal, Spread, TimeLaw
from diffsolve.training.objective import Parts, objective
from diffsolve.training.schedule import Constant, Cosine, InverseRoot, Schedule
from diffsolve.training.weights import EDM, SNR, DataWeight, MinSNR, Plain, Sigmoid, Weight

__all__ = [
    "EDM",
    "SNR",
    "Average",
    "Constant",
    "Cosine",
    "DataWeight",
    "Exponential",
    "Images",
    "InverseRoot",
    "LogNormal",
    "MinSNR",
    "Parts",
    "Plain",
    "Power",
    "Schedule",
    "Sigmoid",
    "Spread",
    "Tensors",
    "TimeLaw",
    "Weight",
    "fit",
    "objective",
]
