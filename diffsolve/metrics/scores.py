"""The scores by name, and which of them look at more than mean and covariance."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from diffsolve.common.registry import Registry
from diffsolve.metrics import neighbours
from diffsolve.metrics.distances import Score, frechet, frechet_infinity, kid, sliced_wasserstein

__all__ = ["named", "names", "needs_rows", "register"]


def _of_neighbours(score: Callable[..., Any]) -> Callable[..., Score]:
    return lambda k=5: partial(score, k=k)


registry: Registry[Score] = Registry(
    "score",
    Callable,
    {
        "frechet": lambda: frechet,
        "frechet-infinity": lambda: frechet_infinity,
        "kid": lambda: kid,
        "sliced-wasserstein": lambda projections=256, seed=0: partial(
            sliced_wasserstein, projections=projections, seed=seed
        ),
        "precision": _of_neighbours(neighbours.precision),
        "recall": _of_neighbours(neighbours.recall),
        "density": _of_neighbours(neighbours.density),
        "coverage": _of_neighbours(neighbours.coverage),
        "cmmd": lambda sigma=10.0, scale=1000.0: partial(neighbours.cmmd, sigma=sigma, scale=scale),
        "vendi": lambda: neighbours.vendi,
        "kl": _of_neighbours(neighbours.kl),
        "kl-kde": lambda: neighbours.kl_kde,
        "accuracy": lambda labels=(): neighbours.Accuracy(tuple(labels)),
    },
    group="diffsolve.metrics",
)
register = registry.register


def named(score: str | Score) -> Score:
    """The distance of that name, such as `"sliced-wasserstein(projections=64)"`; a function is returned unchanged."""
    return registry.resolve(score)


def names() -> list[str]:
    """The names that `scores=` of `sweep` accepts."""
    return registry.names()


def needs_rows(score: Score) -> bool:
    """Whether a score may look at the rows; the Frechet distance alone is known not to."""
    return score is not frechet
