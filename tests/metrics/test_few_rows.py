"""Distances and statistics of very few images."""

import math

import pytest
import torch

from diffsolve.metrics.distances import kid
from diffsolve.metrics.statistics import Statistics


def rows(n: int) -> Statistics:
    return Statistics.of(torch.randn(n, 3, generator=torch.Generator().manual_seed(n)))


@pytest.mark.parametrize(("m", "n"), [(1, 5), (5, 1), (1, 1)])
def test_a_kernel_distance_needs_two_rows_of_each(m, n):
    with pytest.raises(ValueError, match="2"):
        kid(rows(m), rows(n))


@pytest.mark.parametrize(("m", "n", "known"), [(2, 5, False), (5, 2, False), (2, 2, False), (3, 3, True)])
def test_its_standard_error_needs_three(m, n, known):
    estimate = kid(rows(m), rows(n))
    assert math.isfinite(estimate.value)
    assert math.isfinite(estimate.stderr) == known


def test_images_one_at_a_time():
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    one, all_at_once = Statistics.of(images, batch=1), Statistics.of(images, batch=5)
    torch.testing.assert_close(one.cov, all_at_once.cov)
    assert one.count == 5


@pytest.mark.parametrize("option", ["batch", "keep"])
@pytest.mark.parametrize("value", [True, 2.5, "3", -1])
def test_counts_of_images_are_integers(option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        Statistics.of(torch.zeros(4, 3), **{option: value})
