"""Distances between the features of two sets of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffsolve.common.checks import required
from diffsolve.metrics.statistics import Statistics, kernel_sums
from diffsolve.noise import Key

__all__ = [
    "Estimate",
    "Score",
    "check_sizes",
    "frechet",
    "frechet_infinity",
    "kid",
    "sliced_wasserstein",
]


class Estimate(NamedTuple):
    """A value with its standard error."""

    value: float
    stderr: float


def frechet(found: Statistics, reference: Statistics) -> float:
    r"""The squared Frechet (2-Wasserstein) distance of two Gaussians; with Inception's features this is FID.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2})

    With C_i = A_i A_i^T the trace of the last root is the sum of the singular values of A_1^T A_2. This is real, and
    accurate for singular covariances (fewer images than features), where the eigenvalues of C_1 C_2 have errors of
    1e-16 that become 1e-8 under the root.

    The estimate is biased upwards by an amount of order 1 / N (see `frechet_infinity`), so compare only values with
    the same N.

    References:
        | GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), https://arxiv.org/abs/1706.08500
        | The Frechet distance between multivariate normal distributions (Dowson and Landau, 1982)

    Raises:
        ValueError: if the features differ in size.
    """
    check_sizes(found, reference)
    a, b, shift = found.root, reference.root, found.mean - reference.mean
    common = torch.linalg.svdvals(a.T @ b).sum()
    return max(0.0, float(shift.square().sum() + a.square().sum() + b.square().sum() - 2 * common))


def frechet_infinity(found: Statistics, reference: Statistics) -> float:
    """The Frechet distance extrapolated to infinitely many samples; the reference is not extrapolated.

    The bias is C / N to leading order, so 2 d(N) - d(N / 2) has none of that order; d(N / 2) is the mean over two
    halves, split at random (with a fixed seed) since samples may be ordered by class. Chong and Forsyth (2019),
    https://arxiv.org/abs/1911.07023, fit a line through more sizes. The result can be negative, has more variance than
    d(N), and is meaningful only if half the samples are several times as many as the features.

    Raises:
        ValueError: if the features differ in size, or `found` did not keep at least 4 rows.
    """
    check_sizes(found, reference)
    rows = found.numbers
    required(len(rows) >= 4, "found", found, "statistics with at least 4 rows")
    whole = found if len(rows) == found.count else Statistics.of(rows)
    mixed = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    halves = [frechet(Statistics.of(half), reference) for half in mixed.tensor_split(2)]
    return 2 * frechet(whole, reference) - sum(halves) / 2


def kid(found: Statistics, reference: Statistics) -> Estimate:
    r"""The kernel distance: the unbiased squared maximum mean discrepancy with k(x, y) = (x . y / F + 1)^3.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{n (n - 1)}
              - \frac{2}{m n} \sum_{ij} k(x_i, y_j)

    All rows are used, since random subsets would only add variance. The standard error is a jackknife over both sets,
    leaving out one row at a time. Being unbiased, the estimate is negative about half the time where the distributions
    agree. The cost is O(m n F).

    References:
        | Demystifying MMD GANs (Binkowski et al., 2018), https://arxiv.org/abs/1801.01401

    Raises:
        ValueError: if the features differ in size, or either set kept fewer than 2 rows.
    """
    check_sizes(found, reference)
    x, y = found.numbers, reference.numbers
    m, n = len(x), len(y)
    required(min(m, n) >= 2, "found and reference", (found, reference), "statistics with at least 2 rows each")
    of_x, of_y = kernel_sums(x, y)
    xx, yy, xy = found.within.sum(), reference.within.sum(), of_x.sum()
    value = xx / (m * (m - 1)) + yy / (n * (n - 1)) - 2 * xy / (m * n)
    if min(m, n) < 3:
        return Estimate(float(value), math.nan)
    without_x = (xx - 2 * found.within) / ((m - 1) * (m - 2)) - 2 * (xy - of_x) / ((m - 1) * n)
    without_y = (yy - 2 * reference.within) / ((n - 1) * (n - 2)) - 2 * (xy - of_y) / (m * (n - 1))
    variance = sum((len(left) - 1) * left.var(correction=0) for left in (without_x, without_y))
    return Estimate(float(value), math.sqrt(variance))


def sliced_wasserstein(found: Statistics, reference: Statistics, *, projections: int = 256, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance (by POT): squared, a mean of squared 1-D distances over random directions.

    Raises:
        ValueError: if the features differ in size, or either set kept no rows.
        ImportError: if the package `ot` is not installed.
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError("the sliced Wasserstein distance needs POT: pip install 'diffsolve[metrics]'") from error
    check_sizes(found, reference)
    lines = Key(seed).normal((projections, len(found.mean)), dtype=torch.float64).T
    distance: Tensor = ot.sliced_wasserstein_distance(
        found.numbers, reference.numbers, projections=lines / lines.norm(dim=0), p=2
    )
    return float(distance)


Score = Callable[[Statistics, Statistics], float | Estimate]
"""(samples, reference) -> distance."""


def check_sizes(found: Statistics, reference: Statistics) -> None:
    if found.mean.shape != reference.mean.shape:
        raise ValueError(f"features must be of the same size, got {len(found.mean)} and {len(reference.mean)} numbers")
