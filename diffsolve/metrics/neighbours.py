"""Scores that look at rows one by one: precision, recall, density, coverage, CMMD, diversity, divergence, accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsolve.common.checks import integer, number, required
from diffsolve.metrics.distances import Estimate, check_sizes
from diffsolve.metrics.statistics import Statistics, blocks

__all__ = ["Accuracy", "cmmd", "coverage", "density", "kl", "kl_kde", "precision", "recall", "vendi"]


def precision(found: Statistics, reference: Statistics, *, k: int = 5) -> Estimate:
    """The share of samples that are nearer to some datum than its k-th neighbour among the data.

    References:
        | Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al., 2019),
          https://arxiv.org/abs/1904.06991

    Raises:
        ValueError: if the features differ in size, or either set kept at most k rows.
    """
    x, y = _rows(found, reference, k)
    radii = _radii(y, k)
    return _share(torch.cat([(far < radii).any(1) for far in _distances(x, y)]))


def recall(found: Statistics, reference: Statistics, *, k: int = 5) -> Estimate:
    """The share of data that are nearer to some sample than its k-th neighbour among the samples: `precision` with
    samples and data exchanged."""
    return precision(reference, found, k=k)


def density(found: Statistics, reference: Statistics, *, k: int = 5) -> Estimate:
    """How many data's balls, to their k-th neighbours, a sample is in, over k: 1 where the laws agree.

    References:
        | Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020),
          https://arxiv.org/abs/2002.09797
    """
    x, y = _rows(found, reference, k)
    radii = _radii(y, k)
    return _mean(torch.cat([(far < radii).sum(1) for far in _distances(x, y)]).double() / k)


def coverage(found: Statistics, reference: Statistics, *, k: int = 5) -> Estimate:
    """The share of data with a sample nearer than their k-th neighbour among the data (Naeem et al., 2020)."""
    x, y = _rows(found, reference, k)
    nearest = torch.cat([far.amin(1) for far in _distances(y, x)])
    return _share(nearest < _radii(y, k))


def cmmd(found: Statistics, reference: Statistics, *, sigma: float = 10.0, scale: float = 1000.0) -> Estimate:
    """The kernel distance with k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), times `scale`; with CLIP's features, on unit
    vectors, this is CMMD. The sums over one set leave out no term, as in the paper's own code, so it is never negative.

    The standard error is a jackknife over the samples.

    References:
        | Rethinking FID: Towards a Better Evaluation Metric for Image Generation (Jayasumana et al., 2024),
          https://arxiv.org/abs/2401.09603
    """
    number("sigma", sigma, above=0)
    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in _rows(found, reference, 0))
    m = len(x)

    def sums(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([torch.exp(-(far**2) / (2 * sigma**2)).sum(1) for far in _distances(a, b)])

    within, across, data = sums(x, x), sums(x, y), float(sums(y, y).mean()) / len(y)
    value = float(within.sum()) / m**2 + data - 2 * float(across.mean()) / len(y)
    left = (within.sum() - 2 * within + 1) / (m - 1) ** 2 - 2 * (across.sum() - across) / ((m - 1) * len(y))
    error = math.sqrt((m - 1) * float(left.var(correction=0))) if m > 2 else math.nan
    return Estimate(scale * value, scale * error)


def vendi(found: Statistics, reference: Statistics) -> float:
    """The effective number of different samples: the exponential of the entropy of the eigenvalues of the matrix of
    cosines, over their number. From 1 to the number of samples; the reference has no part in it.

    References:
        | The Vendi Score (Friedman and Dieng, 2023), https://arxiv.org/abs/2210.02410
    """
    rows = found.numbers
    unit = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    shares = torch.linalg.svdvals(unit).square() / len(unit)
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def kl(found: Statistics, reference: Statistics, *, k: int = 5) -> Estimate:
    r"""The divergence KL(samples | data) in nats, from distances to k-th neighbours; for a few dimensions.

    .. math:: \frac{d}{n} \sum_i \log \frac{\nu_k(i)}{\rho_k(i)} + \log \frac{m}{n - 1}

    with rho the distance to the k-th other sample and nu to the k-th of the m data. The standard error is that of the
    mean over samples; the bias, which grows with the dimension, is not in it.

    References:
        | Divergence Estimation for Multidimensional Densities Via k-Nearest-Neighbor Distances (Wang, Kulkarni and
          Verdu, 2009), eq. 5
    """
    from scipy.spatial import cKDTree

    x, y = (rows.numpy() for rows in _rows(found, reference, k))
    rho = cKDTree(x).query(x, [k + 1])[0][:, 0]
    nu = cKDTree(y).query(x, [k])[0][:, 0]
    required(bool((rho > 0).all() and (nu > 0).all()), "rows", found, f"without {k + 1} equal ones")
    found_mean = _mean(torch.from_numpy(x.shape[1] * np.log(nu / rho)))
    return Estimate(found_mean.value + math.log(len(y) / (len(x) - 1)), found_mean.stderr)


def kl_kde(found: Statistics, reference: Statistics) -> Estimate:
    """The same divergence by Gaussian kernel densities of Scott's width, each sample left out of its own; smoother and
    more biased than `kl`, and for a few dimensions."""
    x, y = _rows(found, reference, 2)
    return _mean(_log_kde(x, x, own=True) - _log_kde(x, y, own=False))


@dataclass(frozen=True)
class Accuracy:
    """The share of samples whose largest feature, of a classifier's logits, is their label.

    Args:
        labels: sample i has label i modulo their number, as conditions of a sweep.
    """

    labels: Sequence[int]

    def __call__(self, found: Statistics, reference: Statistics) -> Estimate:
        labels = torch.as_tensor(self.labels)
        right = found.numbers.argmax(1) == labels[torch.arange(len(found.numbers)) % len(labels)]
        return _share(right)


def _log_kde(at: Tensor, rows: Tensor, own: bool) -> Tensor:
    """log of the kernel density of rows (m, d) at (n, d)."""
    m, d = rows.shape
    factor = m ** (-1 / (d + 4))
    covariance = torch.cov(rows.T).reshape(d, d) * factor**2
    root = torch.linalg.cholesky(covariance)
    points, centres = (torch.linalg.solve_triangular(root, part.T, upper=False).T for part in (at, rows))
    parts, start = [], 0
    for far in _distances(points, centres):
        logs = -(far**2) / 2
        if own:
            logs[torch.arange(len(far)), torch.arange(start, start + len(far))] = -math.inf
        parts.append(logs.logsumexp(1))
        start += len(far)
    count = m - 1 if own else m
    norm = math.log(count) + float(root.diagonal().log().sum()) + d / 2 * math.log(2 * math.pi)
    return torch.cat(parts) - norm


def _rows(found: Statistics, reference: Statistics, k: int) -> tuple[Tensor, Tensor]:
    check_sizes(found, reference)
    integer("k", k, 0)
    x, y = found.numbers, reference.numbers
    required(min(len(x), len(y)) > k, "found and reference", (found, reference), f"statistics with more than {k} rows")
    return x, y


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """|x_i - y_j|, block of rows by block of rows."""
    for block in blocks(x, len(y)):
        yield torch.cdist(block, y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(rows: Tensor, k: int) -> Tensor:
    """(n,): the distance of each row to its k-th other one."""
    return torch.cat([far.kthvalue(k + 1, dim=1).values for far in _distances(rows, rows)])


def _mean(values: Tensor) -> Estimate:
    values = values.double()
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def _share(holds: Tensor) -> Estimate:
    p = float(holds.double().mean())
    return Estimate(p, math.sqrt(p * (1 - p) / len(holds)))
