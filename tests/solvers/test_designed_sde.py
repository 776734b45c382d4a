"""Designed solvers with noise: rows that keep a point mass and the law of normal data, and how much noise there is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.solvers import Constant, DesignedSDE, DPMpp, Interval
from diffsolve.solvers.designed_sde import DIGITS, TAUS, _shares, error_of
from diffsolve.tableau import theory

KINDS = [("ddpm", "noise"), ("condot", "velocity"), ("edm", "denoised")]


@pytest.mark.parametrize(("path", "predicts"), KINDS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_without_noise_it_is_the_deterministic_one_bit_for_bit(path, predicts, guidance):
    given = {"predicts": predicts, "nfe": 6, "guidance": guidance, "shape": (2, 40)}
    found = ds.plan(path, "designed-sde(tau=0.0, delta=0.05, history=3)", **given)
    assert found == ds.plan(path, "designed(delta=0.05, history=3)", **given)
    assert found.solver.startswith("Designed(")


@pytest.mark.parametrize("tau", [0.4, 1.0, Interval(0.8, 0.1, 3.0)])
@pytest.mark.parametrize("path", ["ddpm", "edm"])
def test_every_row_keeps_a_point_mass(path, tau):
    """x = alpha x_0 + sigma eps with D = x_0: the mean goes to alpha', the variance to sigma'^2."""
    run = ds.plan(path, DesignedSDE(tau=tau), nfe=7, predicts="noise")
    alpha, sigma = run.grid[:, 1], run.grid[:, 2]
    y, z = run.weights[:, 1, 1], run.weights[:, 1, -1]
    np.testing.assert_allclose((y * sigma[:-1]) ** 2 + z**2, sigma[1:] ** 2, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(y * alpha[:-1] + run.weights[:, 1, 2:-1].sum(1), alpha[1:], rtol=1e-9)
    # How much is fresh is A = int tau^2 dlambda's to say.
    where = ds.paths.named(path).nodes(run.times)
    A = (tau if isinstance(tau, Interval) else Constant(tau)).A(ds.paths.named(path), where)
    np.testing.assert_allclose(z[:-1], sigma[1:-1] * np.sqrt(-np.expm1(-2 * np.diff(A)[:-1])), rtol=1e-12)
    assert z[-1] == 0
    assert (np.diff(run.clock[z > 0], axis=1) > 0).all()


@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_on_a_regular_end_the_straight_velocities_stand_in(tau):
    """With D = y - u V: y' = (kappa + g) y - g u sum s_j V_j, kappa^2 u^2 + n^2 = u'^2."""
    run = ds.plan("condot", DesignedSDE(tau=tau), nfe=6)
    assert set(run.frame) == {"straight"}
    u, keep, z = run.grid[:, 2], run.weights[:, 1, 1], run.weights[:, 1, -1]
    kappa = np.sqrt(u[1:] ** 2 - z**2) / u[:-1]
    np.testing.assert_allclose(keep, kappa + 1 - u[1:] - kappa * (1 - u[:-1]), atol=1e-12)
    np.testing.assert_allclose(run.weights[:, 1, 2:-1].sum(1), -(keep - kappa) * u[:-1], atol=1e-12)
    assert set(ds.plan("condot", DesignedSDE(tau=tau), nfe=6, stop=0.99).frame) == {"denoised"}


@pytest.mark.parametrize(("path", "predicts"), KINDS)
@pytest.mark.parametrize("tau", [0.4, 1.0])
def test_an_exact_network_keeps_the_variances(path, predicts, tau):
    solver = DesignedSDE(tau=tau)
    off = [ds.plan(path, solver, nfe=n, predicts=predicts).expected_frechet(delta=0, path=path) for n in (8, 16, 32)]
    assert off[0] < 0.02
    assert off[1] < off[0] / 1.5
    assert off[2] < off[0] / 2.5
    published = ds.plan(path, f"dpmpp-2m-sde(tau={tau})", nfe=16, grid="uniform-lambda")
    assert off[1] < published.expected_frechet(delta=0, path=path) / 2


def test_the_shares_are_the_least_of_what_is_said():
    random = np.random.RandomState(0)
    k, n, m = 7, 4, 3
    base, old = random.randn(k, 1 + 2 * n), 0.3 * random.randn(m, k, 1 + 2 * n)
    S, R, z, prior = random.rand(k) + 0.1, random.rand(k) + 2, 0.6, np.array([-0.2, 0.1])

    def least(share):
        state = base + np.tensordot(share, old, 1)
        deviation = np.sqrt((state[:, : 1 + n] ** 2).sum(1) + z**2)
        law = (S * (deviation / R - 1) ** 2).sum()
        added = (S / R**2 * (np.tensordot(share, old, 1)[:, 1 + n :] ** 2).sum(1)).sum()
        heavy = ((S / R**2)[:, None] * old**2).sum((1, 2))
        return law + added + 1e-3 * (heavy * (share - [0.0, *prior]) ** 2).sum()

    found = _shares(base, old, z, R, S, prior, n)
    for j, sign in [(j, sign) for j in range(m) for sign in (-1, 1)]:
        moved = found + sign * 1e-3 * np.eye(m)[j]
        assert least(found) < least(moved)
    assert (found / DIGITS == np.round(found / DIGITS)).all()


@pytest.mark.parametrize(("path", "predicts"), KINDS)
def test_how_much_noise_is_chosen_by_the_expected_distance(path, predicts):
    where, solver = ds.paths.named(path), DesignedSDE()
    chosen = ds.plan(path, solver, nfe=10, predicts=predicts)
    found = {}
    for tau in TAUS:
        run = ds.plan(path, DesignedSDE(tau=tau), nfe=10, predicts=predicts)
        delta = error_of(predicts, 0.03, where.nodes(run.calls[:, 0]).lam)
        ends = theory.frechet(run, where, predicts, theory.SPECTRUM, delta, 0.5)
        found[tau] = float((ends**2).mean())
    best = min(found, key=found.get)
    assert chosen == ds.plan(path, DesignedSDE(tau=best), nfe=10, predicts=predicts)
    # Noise helps where the network's error is multiplied at the noise end; a velocity's is not.
    assert best == {"noise": 0.5, "velocity": 0.0, "denoised": 0.25}[predicts]


def test_errors_grow_as_measured():
    lam = np.array([-9.0, -1.0, 0.0, 1.0, 5.0])
    grown = error_of("noise", 0.1, lam)
    np.testing.assert_allclose(grown, [0.03, 0.0475, 0.1044, 0.2735, 0.2735], rtol=2e-3)
    assert (error_of("denoised", 0.1, lam) == 0.1).all()


def test_samples_of_normal_data_are_as_wide_as_the_data():
    model = ds.adapt(lambda x, t: t.view(-1, 1) * x / (0.25 + t.view(-1, 1) ** 2), "edm", "noise", dtype=torch.float64)
    x = ds.sample(model, (20000, 2), solver="designed-sde(tau=1.0)", nfe=8, seed=0)
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)
    again = ds.sample(model, (3, 2), solver="designed-sde(tau=1.0)", nfe=8, seed=0)
    assert again.equal(x[:3])


def test_a_brownian_path_drives_it():
    model = ds.load("mixture-2d(path='edm', predicts='denoised')")
    path = ds.Brownian((8, 2), seed=1)
    one, two = (ds.sample(model, (8, 2), solver="designed-sde(tau=0.5)", steps=10, seed=0, brownian=path) for _ in "ab")
    assert one.equal(two)
    assert not one.equal(ds.sample(model, (8, 2), solver="designed-sde(tau=0.5)", steps=10, seed=0))


def test_long_runs_and_part_way():
    long = ds.plan("ddpm", DesignedSDE(tau=0.5), steps=41, predicts="noise")
    assert long == ds.plan("ddpm", DPMpp(2, tau=0.5), grid=long.times)
    part = ds.plan("ddpm", DesignedSDE(tau=0.5), steps=6, start=700.0, stop=100.0, predicts="noise")
    assert part.weights[-1, 1, -1] > 0  # it ends in the midst of the noise, and renews it to the last
    assert part.expected_frechet(delta=0.0, predicts="noise", path="ddpm") < 5e-3


def test_what_it_refuses():
    with pytest.raises(ValueError, match="only tau=0, the probability flow, runs from the data to the noise"):
        DesignedSDE(tau=0.5)(ds.paths.named("edm"), [0.1, 1.0, 10.0])
    with pytest.raises(ValueError, match="tau must be a finite number >= 0, got -1"):
        DesignedSDE(tau=-1)
    with pytest.raises(ValueError, match="spectrum must be numbers > 0"):
        DesignedSDE(spectrum=(0.0, 1.0))
    with pytest.raises(TypeError, match=r"spectrum must be a tuple of numbers, got 0\.5"):
        DesignedSDE(spectrum=0.5)
    with pytest.raises(ValueError, match="history must be an integer >= 1, got 0"):
        replace(DesignedSDE(), history=0)
