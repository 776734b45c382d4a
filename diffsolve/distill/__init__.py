"""Distillation: students that sample in a few calls, from a teacher, from data, or from themselves."""

from diffsolve.distill.identities import Eulerian, Identity, Lagrangian, Semigroup
from diffsolve.distill.loss import Distillation, Parts, Scales
from diffsolve.distill.methods import ayf, consistency, ect, guided, lagrangian, meanflow, progressive, scm, shortcut
from diffsolve.distill.metrics import Adaptive, Huber, Metric, Normalised, Squared
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
    "ayf",
    "consistency",
    "ect",
    "guided",
    "lagrangian",
    "meanflow",
    "progressive",
    "scm",
    "shortcut",
]
