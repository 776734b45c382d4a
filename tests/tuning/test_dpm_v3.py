"""Weights by measured statistics: their closed forms, what the weights become without them, and the order."""

import numpy as np
import pytest
import torch
from support.learning import RING, Net, noise

import diffsolve as ds
from diffsolve.models.guidance import Guidance
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture
from diffsolve.tableau.frames import FRAMES
from diffsolve.tuning import fit
from diffsolve.tuning.dpm_v3 import RIDGE, Statistics, defect, measured, rows
from diffsolve.tuning.runs import Noises
from diffsolve.tuning.student import flattened

STD = 0.4
ZERO = torch.zeros(1, 3, dtype=torch.float64)


def normals(n, size=3, seed=0):
    return torch.randn(n, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gain(u, std=STD):
    """v / z where the data are Gaussian."""
    return (u - (1 - u) * std**2) / ((1 - u) ** 2 * std**2 + u**2)


@pytest.mark.parametrize(("path", "predicts"), [("condot", "velocity"), ("edm", "denoised"), ("vp", "noise")])
def test_of_gaussian_data_of_one_scale_nothing_is_left(path, predicts):
    """gamma is v / z, and rows that are not mended lead where the flow does, as far as gamma is known."""
    model = mixture_model(GaussianMixture.isotropic(ZERO, STD), path, predicts)
    x = normals(16) * model.path.prior_std()
    found = measured(model, Noises(x, {}, Guidance(1.0)), ds.plan(model, nfe=200), ds.Key(0))
    np.testing.assert_allclose(found.gamma, gain(found.u), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.s, 0, atol=1e-3)
    u = np.array([0.8, 0.5, 0.3, 0.1])
    z, v = [1.0], []
    for i, row in enumerate(rows(found, u, 2, mended=False)):
        v.append(float(gain(u[i])) * z[-1])
        z.append(row[0] + row[1 : i + 2] @ np.array(v))
    size = np.sqrt((1 - u) ** 2 * STD**2 + u**2)
    np.testing.assert_allclose(z, size / size[0], rtol=1e-3)


def test_of_two_scales_the_rest_grows_as_it_should():
    """R = (g_d - gamma) z_d in direction d, with dz_d/du = g_d z_d; gamma is the mean of the g_d."""
    scales = torch.tensor([0.2, 0.9], dtype=torch.float64)
    model = mixture_model(GaussianMixture.diagonal(ZERO[:, :2], scales), "condot")
    teacher = ds.plan(model, nfe=80)
    found = measured(model, Noises(normals(10_000, 2), {}, Guidance(1.0)), teacher, ds.Key(0))
    u, std = found.u[:, None], scales.numpy()
    g = gain(u, std)
    mean = g.mean(1, keepdims=True)
    np.testing.assert_allclose(found.gamma, mean[:, 0], rtol=0.03, atol=0.03)
    h = 1e-6
    slope = (gain(u + h, std) - gain(u - h, std)) / (2 * h)
    variance = (1 - u) ** 2 * std**2 + u**2
    rest = g - mean
    change = slope - slope.mean(1, keepdims=True) + rest * g
    wanted = (rest * change * variance).sum(1) / ((rest**2 + RIDGE * g**2) * variance).sum(1)
    inner = slice(5, -5)
    np.testing.assert_allclose(found.s[inner], wanted[inner], rtol=0.06, atol=0.06)


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize("frame", ["straight", "denoised"])
def test_without_statistics_they_are_methods_of_adams(frame, points):
    """gamma = s = 0 is the frame straight, gamma = 1 / u = -s the denoised one; neither has a defect."""
    times = np.array([0.05, 0.2, 0.35, 0.6, 0.8, 0.95])
    u = np.linspace(1, 0.01, 20001)
    gamma = 0 * u if frame == "straight" else 1 / u
    found = rows(Statistics(u, gamma, -gamma), 1 - times, points)
    plain = rows(Statistics(u, gamma, -gamma), 1 - times, points, mended=False)
    table = ds.solvers.named(f"ab-{points}(frame={frame!r}, variable='theta')")(ds.paths.CondOT(), times)
    np.testing.assert_allclose(found[:, 1:], flattened(table), atol=2e-5)
    np.testing.assert_allclose(plain, found, atol=1e-4)
    np.testing.assert_allclose(
        [defect(row, 0.95, 1 - t) for row, t in zip(plain, times[1:], strict=True)], 0, atol=1e-5
    )


def test_a_row_is_exact_for_what_the_statistics_say():
    """dz/du = gamma z + R with R = exp(S) times a line in the angle; and, mended, for constant data and noise."""
    u = np.linspace(1, 0.01, 2001)
    statistics = Statistics(u, -0.4 - 0.3 * u, 0.5 + u)
    at = np.array([0.9, 0.8, 0.65])
    fine = np.linspace(0.9, 0.65, 20001)
    angle, S = np.arctan2(fine, 1 - fine), 0.5 * (fine - 0.9) + 0.5 * (fine**2 - 0.81)
    R, G = np.exp(S) * (2 - 3 * angle), -0.4 * (fine - 0.9) - 0.15 * (fine**2 - 0.81)
    grown = np.exp(-G) * R
    z = np.exp(G) * (1 + np.append(0, np.cumsum((grown[1:] + grown[:-1]) / 2 * np.diff(fine))))
    z_at, R_at = (np.interp(-at, -fine, values) for values in (z, R))
    v = (-0.4 - 0.3 * at) * z_at + R_at
    # The first row is Euler's, so the last step is taken from the exact z there.
    first, last = rows(statistics, at, 2, mended=False)
    step = last - np.exp(np.interp(-0.65, -fine, G) - np.interp(-0.8, -fine, G)) * first
    # z_1 of the rows stands in v_1 - gamma_1 z_1 too: that part is taken out.
    on_v1 = step[2]
    step = step + on_v1 * (-0.4 - 0.3 * 0.8) * first
    made = np.exp(np.interp(-0.65, -fine, G) - np.interp(-0.8, -fine, G)) * z_at[1] + step[0] + step[1] * v[0]
    made += on_v1 * (v[1] - (-0.4 - 0.3 * 0.8) * z_at[1])
    assert made == pytest.approx(z_at[2], rel=1e-6)
    for row, end in zip(rows(statistics, at, 2), at[1:], strict=True):
        np.testing.assert_allclose(defect(row, 0.9, end), 0, atol=1e-14)
        assert row[0] == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(("points", "order"), [(1, 1), (2, 2), (3, 2.5)])
def test_the_order_and_that_of_the_defect(points, order):
    """On dz/du = a matrix times z, with statistics of another; of 3 points the first two steps are of lower order."""
    A = np.array([[0.5, 1.0], [-1.0, -0.7]])
    statistics = Statistics(np.array([1.0, 0.0]), np.array([-0.1, 0.4]), np.array([0.6, -0.3]))
    values, vectors = np.linalg.eig(A)
    exact = (vectors @ np.diag(np.exp(-0.8 * values)) @ np.linalg.inv(vectors)).real @ np.ones(2)
    errors, defects = [], []
    for n in (8, 16, 32):
        u = 0.9 - 0.8 * (np.arange(n + 1) / n) ** 2 if points == 3 else np.linspace(0.9, 0.1, n + 1)
        z, v = np.ones(2), [A @ np.ones(2)]
        for i, row in enumerate(rows(statistics, u, points)):
            z = 1 + row[1 : i + 2] @ np.array(v)
            v.append(A @ z)
        errors.append(np.abs(z - exact).max())
        # A step that begins with exact rows: those before it made by Euler's method, which is exact for constants.
        defects.append(max(map(abs, defect(rows(statistics, u[: points + 1], points, mended=False)[0], u[0], u[1]))))
    rates = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert rates[-1] > order - 0.2
    assert np.log2(defects[1] / defects[2]) > 1.8  # of the first step, which is of first order


def test_as_a_method_of_tune():
    options = {"method": "dpm-v3", "teacher": 40, "seed": 0, "dtype": torch.float64}
    model = mixture_model(GaussianMixture.diagonal(ZERO[:, :2], [0.2, 0.9]), "condot")
    found = fit(model, (64, 2), nfe=6, grid="uniform-t", **options)
    assert found.tableau.solver == "dpm-v3(3, s=0, nfe=6)"
    assert found.after.value < 0.9 * found.before.value
    assert (found.losses, found.validation) == ((), ())
    np.testing.assert_array_equal(found.tableau.times, ds.plan(model, "euler", grid="uniform-t", nfe=6).times)
    with pytest.warns(UserWarning, match="nothing learned is better than the start"):
        ring = fit(RING, (64, 2), nfe=4, **options)  # of separated modes the best of the list is nearer
    assert not ring.improved
    for more, message in (
        ({"solver": "ddim"}, "solver must be left out with method='dpm-v3'"),
        ({"nfe": 12}, "nfe must be an integer from 2 to 11, got 12"),
        ({"also": "told"}, "also must be left out with method='dpm-v3'"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(RING, (8, 2), **{"nfe": 4, **options, **more})


def test_the_levels_are_those_of_the_frame():
    model = ds.adapt(Net(), "ddpm", "noise")
    x = noise() * model.path.prior_std()
    found = measured(model, Noises(x, {}, Guidance(1.0)), ds.plan(model, nfe=8), ds.Key(0))
    at = model.path.nodes(ds.plan(model, nfe=8).calls[:, 0])
    np.testing.assert_allclose(found.u, FRAMES["straight"].v(at))
