"""Training: one regression for every kind of network, inside anyone's loop or by `fit`."""

from diffsolve.training.average import Average, Exponential, Power
from diffsolve.training.couplings import Coupling, Independent, Optimal, Sinkhorn
from diffsolve.training.data import Tensors
from diffsolve.training.fit import fit
from diffsolve.training.images import Images
from diffsolve.training.laws import LogNormal, Spread, TimeLaw
from diffsolve.training.objective import Parts, objective
from diffsolve.training.reflow import Pairs, reflow, straightness
from diffsolve.training.schedule import Constant, Cosine, InverseRoot, Schedule
from diffsolve.training.weights import EDM, SNR, DataWeight, MinSNR, Plain, Sigmoid, Weight

__all__ = [
    "EDM",
    "SNR",
    "Average",
    "Constant",
    "Cosine",
    "Coupling",
    "DataWeight",
    "Exponential",
    "Images",
    "Independent",
    "InverseRoot",
    "LogNormal",
    "MinSNR",
    "Optimal",
    "Pairs",
    "Parts",
    "Plain",
    "Power",
    "Schedule",
    "Sigmoid",
    "Sinkhorn",
    "Spread",
    "Tensors",
    "TimeLaw",
    "Weight",
    "fit",
    "objective",
    "reflow",
    "straightness",
]
