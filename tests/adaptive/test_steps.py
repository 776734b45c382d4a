"""One step of an adaptive solve: its error, and when it is accepted."""

import math

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.adaptive import METHODS, integrate
from diffsolve.adaptive.integrate import _estimate


def growth(parts, v, rows):
    return (parts[0].clone(),)


def scaled_error(h, rtol, atol):
    """E of the first step of bosh3 from z = 1 at dz/dv = z, from the fractions of the method."""
    table = METHODS["bosh3"]
    slopes = []
    for row in table.a:
        slopes.append(1 + h * sum(float(a) * k for a, k in zip(row, slopes, strict=False)))
    new = 1 + h * sum(float(b) * k for b, k in zip(table.b, slopes, strict=True))
    (embedded,) = table.embedded.values()
    slopes.append(new)
    full = [*table.b, 0]
    error = h * sum(float(b - e) * k for b, e, k in zip(full, embedded, slopes, strict=False))
    return abs(error) / (atol + rtol * max(1.0, new))


@pytest.mark.parametrize("wanted", [0.5, 0.97, 1.03, 1.5, 1.95])
def test_a_step_is_accepted_where_its_error_is_at_most_one(wanted):
    h, tolerance = 0.5, scaled_error(0.5, 1.0, 1.0) / wanted
    assert scaled_error(h, tolerance, tolerance) == pytest.approx(wanted)
    options = ds.Adaptive("bosh3", rtol=tolerance, atol=tolerance, first_step=h)
    solution = integrate(growth, (torch.ones(1, 1, dtype=torch.float64),), 0.0, 10.0, options)
    assert (solution.steps[0].h[0] == h) == (wanted <= 1)


def test_two_errors_are_combined_as_hairer_does():
    """DOP853: E = E5^2 / sqrt(E5^2 + 0.01 E3^2) (Solving ODEs I, II.10, eq. 10.17)."""
    combined = _estimate(np.array([[[3.0, 0.0, 2.0], [4.0, 5.0, 0.0]]]))
    np.testing.assert_allclose(combined, [[9 / math.sqrt(9 + 0.16), 0.0, 2.0]], rtol=1e-15)
