"""Distillation: students that sample in a few calls, from a teacher, from data, or from themselves."""

from diffsolve.distill.fit import fit
from diffsolve.distill.identities import Eulerian, Identity, Lagrangian, Semigroup
from diffsolve.distill.loss import Distillation, Parts, Scales
from diffsolve.distill.matching import distribution
from diffsolve.distill.methods import ayf, consistency, ect, guided, lagrangian, meanflow, progressive, scm, shortcut
from diffsolve.distill.metrics import Adaptive, Huber, Metric, Normalised, Squared
from diffsolve.distill.runs import reflow, runs, trajectory
from diffsolve.distill.second import TwoTimes
from diffsolve.distill.stretches import Between, Halves, Shrinking, Steps, Stretches

__all__ = [
    "Adaptive",
    "Between",
    "Distillation",
    "Eulerian",
    "Halves",
    "Huber",
    "Identity",
    "Lagrangian",
    "Metric",
    "Normalised",
    "Parts",
    "Scales",
    "Semigroup",
    "Shrinking",
    "Squared",
    "Steps",
    "Stretches",
    "TwoTimes",
    "ayf",
    "consistency",
    "distribution",
    "ect",
    "fit",
    "guided",
    "lagrangian",
    "meanflow",
    "progressive",
    "reflow",
    "runs",
    "scm",
    "shortcut",
    "trajectory",
]
