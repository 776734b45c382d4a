"""Distances of samples from data, and from the exact endpoints of the same noise, against network calls.

`Statistics` summarise a set of images, `frechet`, `kid` and others are distances between two of them, and `sweep`
measures them for solvers and budgets of network calls, into a file of JSON lines and a `Table`.
"""

from diffsolve.metrics import features
from diffsolve.metrics.distances import (
    Estimate,
    frechet,
    frechet_infinity,
    kid,
    sliced_wasserstein,
)
from diffsolve.metrics.images import batches, is_statistics, save_images
from diffsolve.metrics.neighbours import (
    Accuracy,
    cmmd,
    coverage,
    density,
    kl,
    kl_kde,
    precision,
    recall,
    vendi,
)
from diffsolve.metrics.report import report
from diffsolve.metrics.scores import named, names, register
from diffsolve.metrics.statistics import Statistics, pixels
from diffsolve.metrics.sweep import sweep
from diffsolve.metrics.table import Table

__all__ = [
    "Accuracy",
    "Estimate",
    "Statistics",
    "Table",
    "batches",
    "cmmd",
    "coverage",
    "density",
    "features",
    "frechet",
    "frechet_infinity",
    "is_statistics",
    "kid",
    "kl",
    "kl_kde",
    "named",
    "names",
    "pixels",
    "precision",
    "recall",
    "register",
    "report",
    "save_images",
    "sliced_wasserstein",
    "sweep",
    "vendi",
]
