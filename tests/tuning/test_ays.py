"""Times that align with the SDE: the bound in closed form on Gaussian data, and what it is good for."""

import numpy as np
import pytest
import torch
from support.learning import RING

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.tuning import Frechet, fit
from diffsolve.tuning.ays import bounds
from diffsolve.tuning.gits import cheapest
from diffsolve.tuning.runs import Noises

STD = 0.4


def exact(at, i, k):
    """E |D_k - D_i|^2 of N(0, STD^2), x_i noised further from x_k."""
    gain = [a * STD**2 / (a**2 * STD**2 + s**2) for a, s in zip(at.alpha, at.sigma, strict=True)]
    variance = [a**2 * STD**2 + s**2 for a, s in zip(at.alpha, at.sigma, strict=True)]
    ratio = at.alpha[i] / at.alpha[k]
    return gain[k] ** 2 * variance[k] + gain[i] ** 2 * variance[i] - 2 * gain[k] * gain[i] * ratio * variance[k]


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "denoised"), ("vp", "noise")])
def test_the_bound_is_that_of_gaussian_data(path, predicts):
    one = GaussianMixture.isotropic(torch.zeros(1, 1, dtype=torch.float64), STD)
    model = mixture_model(one, path, predicts)
    at = model.path.nodes(model.path.time(np.array([-3.0, -1.5, 0.0, 1.0, 2.0])).numpy())
    data = one.sample(20_000, seed=0)
    found = bounds(model, Noises(data, {}, Guidance(1.0)), data, at.t, ds.Key(0))
    q = (at.alpha / at.sigma) ** 2 / 2
    for i in range(5):
        for j in range(i + 1, 5):
            off = [exact(at, i, k) for k in range(i, j + 1)]
            assert found[i, j] == pytest.approx(np.trapezoid(off, q[i : j + 1]), rel=0.03)
    np.testing.assert_array_equal(found[:5, 5], [*found[:4, 4], 0.0])
    assert np.isinf(found[np.tril_indices(6)]).all()


def test_as_a_method_of_tune():
    """A stochastic run, judged by the distribution that it leads to."""
    one = GaussianMixture.isotropic(torch.zeros(1, 2, dtype=torch.float64), STD)
    model, data = mixture_model(one, "edm"), one.sample(2000, seed=9)
    options = {"method": "ays", "teacher": 40, "seed": 0, "dtype": torch.float64, "loss": Frechet(reference=data)}
    tuning = fit(model, (256, 2), nfe=8, solver="sa-2", **options)
    assert tuning.improved
    assert tuning.after.value < 0.3 * tuning.before.value
    assert set(tuning.tableau.times) <= {*ds.plan(model, nfe=40, shape=(64, 2)).times}
    assert tuning.tableau == ds.plan(model, "sa-2", grid=tuning.tableau.times)
    with pytest.raises(ValueError, match="iterations must be left out with method='ays', got 5"):
        fit(RING, (8, 2), nfe=5, iterations=5, **options)


def test_no_other_times_have_a_lower_bound():
    levels = ds.plan("condot", nfe=9).calls[:, 0]
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cost = bounds(RING, Noises(data, {}, Guidance(1.0)), data, levels, ds.Key(0))
    places = cheapest(cost, 4)
    total = sum(cost[i, j] for i, j in zip(places, places[1:], strict=False))
    even = [0, 3, 5, 7, 9]
    assert total <= sum(cost[i, j] for i, j in zip(even, even[1:], strict=False))
    assert total > 0
