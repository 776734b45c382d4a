"""Scores of rows: against prdc on the same features, closed forms, and the definitions written out."""

import math

import numpy as np
import pytest
import torch

from diffsolve import metrics
from diffsolve.metrics import Statistics, statistics


def normal(n, d, seed, mean=0.0, std=1.0):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Statistics.of(x * std + mean)


X, Y = normal(70, 3, 0, 0.4, 0.8), normal(60, 3, 1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_are_prdcs(k):
    prdc = pytest.importorskip("prdc")
    theirs = prdc.compute_prdc(Y.numbers.numpy(), X.numbers.numpy(), k)
    for name, value in theirs.items():
        assert metrics.named(f"{name}(k={k})")(X, Y).value == pytest.approx(value), name


def test_matrices_between_rows_come_in_blocks_of_bounded_size(monkeypatch):
    """Whatever the number of columns, so that memory does not grow with that of samples; the scores are the same."""
    names = ["precision", "recall", "density", "coverage", "kid", "cmmd", "kl-kde"]
    whole = [metrics.named(name)(X, Y).value for name in names]
    monkeypatch.setattr(statistics, "ENTRIES", 200)
    for columns in (1, 3, 70, 200, 500):
        parts = statistics.blocks(X.numbers, columns)
        assert max(len(part) for part in parts) == min(70, max(1, 200 // columns))
        assert torch.equal(torch.cat(parts), X.numbers)
    sizes = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda x, y, **how: sizes.append(len(x) * len(y)) or cdist(x, y, **how))
    assert [metrics.named(name)(X, Y).value for name in names] == pytest.approx(whole, rel=1e-12)
    assert max(sizes) <= 200


@pytest.mark.parametrize("k", [1, 4])
def test_precision_recall_density_coverage_are_their_definitions(k):
    """Loops over pairs, where prdc is not installed."""
    x, y = X.numbers, Y.numbers

    def radius(rows, i):
        return sorted(float((rows[i] - row).norm()) for row in rows)[k]

    of_y, of_x = ([radius(rows, i) for i in range(len(rows))] for rows in (y, x))
    near = [[float((a - b).norm()) for b in y] for a in x]
    inside = [[far < r for far, r in zip(row, of_y, strict=True)] for row in near]
    expected = {
        metrics.precision: sum(map(any, inside)) / len(x),
        metrics.density: sum(map(sum, inside)) / len(x) / k,
        metrics.recall: sum(any(near[i][j] < of_x[i] for i in range(len(x))) for j in range(len(y))) / len(y),
        metrics.coverage: sum(min(near[i][j] for i in range(len(x))) < of_y[j] for j in range(len(y))) / len(y),
    }
    for score, value in expected.items():
        assert score(X, Y, k=k).value == pytest.approx(value)
    p, n = expected[metrics.precision], len(x)
    assert metrics.precision(X, Y, k=k).stderr == pytest.approx(math.sqrt(p * (1 - p) / n))


def test_the_error_of_a_density_is_that_of_its_mean():
    values = torch.stack(
        [metrics.density(Statistics.of(row[None].repeat(6, 1)), Y).value * torch.ones(()) for row in X.numbers]
    )
    found = metrics.density(X, Y)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.stderr == pytest.approx(float(values.std()) / math.sqrt(len(values)), rel=1e-6)


def test_cmmd_is_its_formula():
    x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (X.numbers, Y.numbers))

    def mean(a, b):
        return sum(math.exp(-(float((p - q).norm()) ** 2) / (2 * 0.7**2)) for p in a for q in b) / len(a) / len(b)

    def distance(a):
        return 1000 * (mean(a, a) + mean(y, y) - 2 * mean(a, y))

    found = metrics.named("cmmd(sigma=0.7)")(X, Y)
    assert found.value == pytest.approx(distance(x))
    few = Statistics.of(X.numbers[:6])
    left = [distance(torch.cat([x[:i], x[i + 1 : 6]])) for i in range(6)]
    assert metrics.cmmd(few, Y, sigma=0.7).stderr == pytest.approx(math.sqrt(5 * np.var(left)))
    assert metrics.cmmd(X, X).value == pytest.approx(0, abs=1e-10)


def test_vendi_counts_different_samples():
    eye = Statistics.of(torch.eye(8).repeat(3, 1)[:12])  # 4 directions twice, 4 once
    p = [2 / 12] * 4 + [1 / 12] * 4
    assert metrics.vendi(eye, Y) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)))
    assert metrics.vendi(Statistics.of(torch.ones(5, 3)), Y) == pytest.approx(1)
    assert metrics.vendi(Statistics.of(torch.eye(5) * 7), Y) == pytest.approx(5)


@pytest.mark.parametrize("score", [metrics.kl, metrics.kl_kde])
@pytest.mark.parametrize("d", [1, 2])
def test_divergences_of_normal_laws(score, d):
    """KL(N(m, s^2) | N(0, 1)) = d (s^2 + m^2 - 1 - log s^2) / 2."""
    m, s = 0.6, 0.7
    expected = d * (s**2 + m**2 - 1 - 2 * math.log(s)) / 2
    found = score(normal(1500, d, 2, m, s), normal(2500, d, 3))
    assert found.value == pytest.approx(expected, abs=4 * found.stderr + 0.03)
    assert 0 < found.stderr < 0.1
    same = score(normal(1500, d, 2), normal(2500, d, 3))
    assert same.value == pytest.approx(0, abs=4 * same.stderr + 0.03)


def test_kde_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    from diffsolve.metrics.neighbours import _log_kde

    expected = stats.gaussian_kde(Y.numbers.T.numpy()).logpdf(X.numbers.T.numpy())
    assert _log_kde(X.numbers, Y.numbers, own=False).numpy() == pytest.approx(expected, rel=1e-6)


def test_accuracy_of_a_classifier():
    logits = Statistics.of(torch.eye(4)[torch.tensor([0, 1, 2, 0, 1, 3])])
    found = metrics.Accuracy([0, 1, 2])(logits, logits)
    assert found == pytest.approx((5 / 6, math.sqrt(5 / 36 / 6)))
    assert metrics.named("accuracy(labels=[0, 1, 2])")(logits, logits) == found


def test_rows_that_do_not_fit_are_told():
    for score in (metrics.precision, metrics.kl, metrics.density):
        with pytest.raises(ValueError, match="statistics with more than 70 rows"):
            score(X, Y, k=70)
    with pytest.raises(ValueError, match="features must be of the same size, got 3 and 2"):
        metrics.coverage(X, normal(9, 2, 0))
    with pytest.raises(ValueError, match="rows must be kept"):
        metrics.vendi(Statistics.of(X.numbers, keep=0), Y)
    with pytest.raises(ValueError, match="without 6 equal ones"):
        metrics.kl(Statistics.of(torch.ones(9, 3)), Y)
