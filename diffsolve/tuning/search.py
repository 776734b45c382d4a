r"""Which of many runs to try next: a Gaussian process of the error over pairs of solver and grid.

Like solvers on like grids have like errors. So the logarithm of the error is taken for

.. math:: y = a + b \log(\text{expected error}) + f, \quad
    \operatorname{cov}(f, f') = 3 k_s + 3 k_g + k_s k_g,

:math:`k_s` the share of options that two solvers have in common, among those in which any two differ, :math:`k_g` that
of grids, and a run is worth trying where :math:`\operatorname{mean} - 2 \operatorname{deviation}` given those tried is
least (Srinivas et al., arXiv:0912.3995, eq. 6, as a lower bound).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from diffsolve import grids, solvers
from diffsolve.tuning.space import Pair

__all__ = ["Search", "likeness"]

FREE, SLOPE = 10.0, 0.3
"""The deviation of a, and both mean and deviation of b: errors of one network follow the theory from afar."""
SOLVER, GRID, BOTH = 3.0, 3.0, 1.0
NOISE = 0.02
"""The variance of the logarithm of an error, as of few noises."""
BOLD = 2.0
CEILING = 4.0
"""An error so much above the least, in its logarithm, says no more than that it is bad."""


class Search:
    """Of these pairs, with their expected errors, which to try next."""

    def __init__(self, pairs: Sequence[Pair], expected: Sequence[float]) -> None:
        by_solver, by_grid = _alike([s for s, _ in pairs], solvers.named), _alike([g for _, g in pairs], grids.named)
        self.paper = SLOPE * _capped(expected, 1.5 * CEILING)
        self.covariance = SOLVER * by_solver + GRID * by_grid + BOTH * by_solver * by_grid
        self.covariance += FREE**2 + np.outer(self.paper, self.paper)

    def next(self, errors: Mapping[int, float]) -> int:
        """The place of the pair to try next, given the errors of those that were tried, by place; not all of them."""
        tried = list(errors)
        y = _capped([errors[i] for i in tried], CEILING) - self.paper[tried]
        among = self.covariance[np.ix_(tried, tried)] + NOISE * np.eye(len(tried))
        across = self.covariance[tried]
        weights = np.linalg.solve(among, across)
        variance = self.covariance.diagonal() - (weights * across).sum(0)
        bound = self.paper + weights.T @ y - BOLD * np.sqrt(variance.clip(0))
        bound[tried] = np.inf
        return int(bound.argmin())


def likeness(described: Sequence[Mapping[str, Hashable]]) -> np.ndarray:
    """(n, n): the share of properties that two have in common, among those in which any two of all differ."""
    names = sorted({name for one in described for name in one})
    values = [[one.get(name, ...) for one in described] for name in names]
    told = [row for row in values if len(set(row)) > 1]
    equal = [[[one == other for other in row] for one in row] for row in told]
    return np.mean(equal, axis=0) if told else np.ones((len(described), len(described)))


def _alike(names: Sequence[str | None], named: Callable[[str], object]) -> np.ndarray:
    """`likeness` of solvers or grids by name; None is one of its own."""
    unique = list(dict.fromkeys(names))
    place = [unique.index(name) for name in names]
    return likeness([_described(None if name is None else named(name)) for name in unique])[np.ix_(place, place)]


def _described(thing: object) -> dict[str, Hashable]:
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    return {"": type(thing), **{field.name: repr(getattr(thing, field.name)) for field in fields}}


def _capped(errors: Sequence[float], above: float) -> np.ndarray:
    """Logarithms over the least, at most so far above it."""
    y = np.log(np.maximum(np.nan_to_num(errors, nan=np.inf), 1e-300))
    capped: np.ndarray = np.minimum(y - y.min(), above)
    return capped
