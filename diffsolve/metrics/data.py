"""Statistics of the reference models' data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor

from diffsolve.metrics.statistics import Statistics
from diffsolve.reference import classifier, digits
from diffsolve.reference.data import fashion
from diffsolve.reference.mixture import ring

__all__ = ["DATA"]

KEPT = 2000  # images of Fashion-MNIST whose features are kept, for KID


def _of(images: Tensor, labels: Tensor, data: str, label: str, keep: int | None = None) -> Statistics:
    chosen = images[labels == int(label)] if label.isdigit() else images
    return Statistics.of(chosen, classifier.load(data=data), keep=keep)


def _digits(label: str = "all") -> Statistics:
    return _of(*digits.load_data(), "digits", label)


@cache
def _fashion(label: str = "all") -> Statistics:
    return _of(*fashion(), "fashion", label, keep=KEPT)


def _ring(label: str = "all") -> Statistics:
    return Statistics.of(ring().sample(5000, seed=0))


DATA: dict[str, Callable[..., Statistics]] = {
    **dict.fromkeys(("digits", "digits-student"), _digits),
    **dict.fromkeys(("fashion", "fashion-student", "fashion-noise", "fashion-edm", "fashion-latent"), _fashion),
    "mixture-2d": _ring,
}
"""name of a reference model -> its data, of a class ("3") or of all ("all", "none"): digits and the clothes of
Fashion-MNIST's training part in the features of small classifiers; exact points of the ring."""
