"""Statistics of the reference models' data."""

from __future__ import annotations

from collections.abc import Callable

from diffsolve.metrics.statistics import Statistics
from diffsolve.reference import classifier, digits
from diffsolve.reference.mixture import ring

__all__ = ["DATA"]


def _digits(label: str = "all") -> Statistics:
    images, labels = digits.load_data()
    return Statistics.of(images[labels == int(label)] if label.isdigit() else images, classifier.load())


def _ring(label: str = "all") -> Statistics:
    return Statistics.of(ring().sample(5000, seed=0))


DATA: dict[str, Callable[..., Statistics]] = {"digits": _digits, "mixture-2d": _ring}
"""name of a reference model -> its data, of a class ("3") or of all ("all", "none"): the digits in the features of a
small classifier; exact points of the ring."""
