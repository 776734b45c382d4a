"""Distillation: students that sample in a few calls, from a teacher, from data, or from themselves."""

from diffsolve.distill.base import Loss, Parts
from diffsolve.distill.fit import fit
from diffsolve.distill.identities import Eulerian, Identity, Lagrangian, Semigroup
from diffsolve.distill.loss import Distillation, Scales
from diffsolve.distill.matching import WithFake, distribution
from diffsolve.distill.methods import ayf, consistency, ect, guided, lagrangian, meanflow, progressive, scm, shortcut
from diffsolve.distill.metrics import Adaptive, Huber, Metric, Normalised, Squared
from diffsolve.distill.recipes import RECIPES, about, distill_reference, load_student
from diffsolve.distill.runs import reflow, runs, trajectory
from diffsolve.distill.smooth import SmoothTime
from diffsolve.distill.stretches import Between, Halves, Shrinking, Steps, Stretches
from diffsolve.distill.times import best_times
from diffsolve.reference.told import TwoTimes, WithScale

__all__ = [
    "RECIPES",
    "Adaptive",
    "Between",
    "Distillation",
    "Eulerian",
    "Halves",
    "Huber",
    "Identity",
    "Lagrangian",
    "Loss",
    "Metric",
    "Normalised",
    "Parts",
    "Scales",
    "Semigroup",
    "Shrinking",
    "SmoothTime",
    "Squared",
    "Steps",
    "Stretches",
    "TwoTimes",
    "WithFake",
    "WithScale",
    "about",
    "ayf",
    "best_times",
    "consistency",
    "distill_reference",
    "distribution",
    "ect",
    "fit",
    "guided",
    "lagrangian",
    "load_student",
    "meanflow",
    "progressive",
    "reflow",
    "runs",
    "scm",
    "shortcut",
    "trajectory",
]
