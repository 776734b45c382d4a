"""The linear theory of a run, against runs."""

import math

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve.tableau import theory

SPECTRUM = (0.003, 0.1, 1.5)
KINDS = [
    ("condot", "velocity"),
    ("edm", "denoised"),
    ("ddpm", "noise"),
    ("vp", "score"),
    ("cosine", "v"),
    ("edm", "edm"),
]


def linear(path, predicts, delta=0.0, draws=1, rate=0.5, features=32):
    """A network in float64 for x of shape (draws, 3), exact but for delta times a process of lambda in every entry."""
    path = ds.paths.named(path)
    S = torch.tensor(SPECTRUM, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    omega = rate * torch.randn(draws, 3, features, generator=g, dtype=torch.float64)
    phase = 2 * math.pi * torch.rand(draws, 3, features, generator=g, dtype=torch.float64)

    def net(x, t):
        t = t.double().reshape(-1)[:1]
        p = path.at((4 * t).exp() if predicts == "edm" else t)  # such networks get log(sigma) / 4, and a scaled x
        scale = (p.sigma**2 + 0.25 * p.alpha**2) ** 0.5
        if predicts == "edm":
            x = x * scale
        q = p.alpha**2 * S + p.sigma**2
        x0, eps = p.alpha * S / q * x, p.sigma / q * x
        lam = (p.alpha.log() - p.sigma.log()).clamp(-9, 9)
        error = delta * (2 / features) ** 0.5 * torch.cos(omega * lam + phase).sum(-1)
        if predicts == "velocity":
            size = torch.maximum(p.dalpha.abs(), p.dsigma.abs())
            return p.dalpha * x0 + p.dsigma * eps + size * error
        return {
            "denoised": lambda: x0 + error,
            "noise": lambda: eps + error,
            "score": lambda: -eps / p.sigma + error / p.sigma,
            "v": lambda: p.alpha * eps - p.sigma * x0 + error,
            "edm": lambda: (x0 - 0.25 * p.alpha / scale**2 * x) / (0.5 * p.sigma / scale) + error,
        }[predicts]()

    return ds.adapt(net, path, predicts, dtype=torch.float64)


def begin(model, draws):
    """Starts of the law that the path has there."""
    p = model.path.at(torch.tensor([float(model.path.t_noise)], dtype=torch.float64))
    size = (p.alpha**2 * torch.tensor(SPECTRUM, dtype=torch.float64) + p.sigma**2).sqrt()
    z = torch.randn(draws, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z * size


@pytest.mark.parametrize(("path", "predicts"), KINDS)
def test_what_it_expects_is_what_runs_have(path, predicts):
    """The mean over 1500 erring networks, each with its own flow; the flow by 300 steps."""
    draws, delta = 1500, 0.05
    model = linear(path, predicts, delta, draws)
    noise = begin(model, draws)
    fine = ds.sample(model, noise=noise, solver="unipc-3", steps=300, grid="uniform-lambda")
    for solver, nfe in (("unipc-2", 6), ("auto", 5), ("heun", 12)):
        tableau = ds.plan(model, solver, nfe=nfe)
        found = ds.sample(model, noise=noise, solver=tableau)
        measured = float((found - fine).square().mean().sqrt())
        expected = tableau.expected_error(SPECTRUM, delta, predicts=predicts, path=path)
        assert measured == pytest.approx(expected, rel=0.06), solver


def test_without_an_error_it_is_the_distance_itself():
    model = linear("edm", "denoised")
    tableau = ds.plan(model, "dpmpp-2m", nfe=7)
    start, _ = theory.response(tableau, model.path, "denoised", SPECTRUM)
    ones = torch.ones(1, 3, dtype=torch.float64)
    size = (torch.tensor(SPECTRUM, dtype=torch.float64) + 80.0**2).sqrt()
    end = ds.sample(model, noise=ones * size, solver=tableau)
    assert start == pytest.approx(end[0].numpy(), rel=1e-12)
    # The own flow stops at sigma_min and goes straight on from there, where it is at x sqrt(S + sigma_min^2).
    S = np.array(SPECTRUM)
    own = np.sqrt(S + 0.002**2) * S / (S + 0.002**2)
    expected = math.sqrt(((start - own) ** 2).mean())
    assert tableau.expected_error(SPECTRUM, 0.0, predicts="denoised") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("path", "predicts"), KINDS)
def test_amplification_is_the_derivative_of_the_end_by_an_output(path, predicts):
    model = linear(path, predicts)
    tableau = ds.plan(model, "abm-3", nfe=6)
    found = tableau.amplification(SPECTRUM, predicts=predicts, path=path)
    noise = begin(model, 1)
    end = ds.sample(model, noise=noise, solver=tableau)
    p = model.path.nodes(tableau.calls[:, 0])
    for i in range(tableau.nfe):
        unit = {
            "score": 1 / p.sigma[i],
            "velocity": max(abs(p.dalpha[i]), abs(p.dsigma[i])),
        }.get(predicts, 1.0)
        calls = iter(range(tableau.nfe))
        pushed = ds.adapt(
            lambda x, t, i=i, calls=calls, unit=unit: model.net(x, t) + unit * (next(calls) == i),
            model.path, predicts, dtype=torch.float64,
        )  # fmt: skip
        moved = ds.sample(pushed, noise=noise, solver=tableau) - end
        assert found[i] == pytest.approx(float(moved.square().mean().sqrt()), rel=1e-6, abs=1e-9)


def test_the_quadrature_has_converged(monkeypatch):
    tableaus = [(ds.plan(path, "auto", nfe=8, predicts=predicts), path, predicts) for path, predicts in KINDS]
    usual = [t.expected_error(predicts=predicts, path=path) for t, path, predicts in tableaus]
    monkeypatch.setattr(theory, "QUADRATURE", 400)
    fine = [t.expected_error(predicts=predicts, path=path) for t, path, predicts in tableaus]
    assert usual == pytest.approx(fine, rel=1e-4)


def test_a_run_that_stops_short_is_held_to_the_flow_there():
    tableau = ds.plan("condot", "euler", steps=400, stop=0.5)
    assert tableau.expected_error(SPECTRUM, 0.0, predicts="velocity") < 2e-3
    x = math.sqrt(0.25 * 1.5 + 0.25)  # of S = 1.5 there
    start, _ = theory.response(tableau, ds.paths.named("condot"), "velocity", SPECTRUM)
    assert start[-1] == pytest.approx(x, rel=1e-2)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"run must be deterministic: for others see expected_frechet, got 'DDIM"):
        ds.plan("condot", "ddim(eta=1)", nfe=3).expected_error()
    tableau = ds.plan("ddpm", "euler", nfe=3)
    with pytest.raises(ValueError, match="path must be given for this run, whose path is Discrete"):
        tableau.expected_error()
    with pytest.raises(ValueError, match="path must be the path of this run, Discrete"):
        tableau.expected_error(path="condot")
    with pytest.raises(ValueError, match="predicts must be 'denoised', .* got 'x'"):
        tableau.expected_error(predicts="x", path="ddpm")
    with pytest.raises(ValueError, match="delta must be a finite number >= 0, got -1"):
        tableau.expected_error(delta=-1, path="ddpm")
    with pytest.raises(ValueError, match="spectrum must be numbers > 0"):
        tableau.amplification((0.0, 1.0), path="ddpm")
    with pytest.raises(TypeError, match="spectrum must be a list of variances > 0, got 0.5"):
        tableau.amplification(0.5, path="ddpm")  # type: ignore[arg-type]


def moments(run, path, predicts, delta, nets, rate=0.5):
    """(nets, 3) twice: the mean and deviation of the ends, each network erring by a constant and a slope of its own.

    Means and covariances of all that a row may use are followed row by row.
    """
    random, N, K = np.random.RandomState(0), run.nfe, run.history
    S, (t, alpha, sigma) = np.array(SPECTRUM), run.calls.T
    p = path.nodes(t)
    lam = np.clip(p.lam, -9, 9)
    kernel = np.exp(-((rate * (lam[:, None] - lam)) ** 2) / 2) + 1e-10 * np.eye(N)
    constant, slope = (delta / 2**0.5 * np.linalg.cholesky(kernel) @ random.randn(nets, 3, N, 1) for _ in "ab")
    unit = (run.d[:, 1] * alpha - run.d[:, 0] * sigma) * theory.output_unit(predicts, p)
    mean, cov = np.zeros((nets, 3, K + 3)), np.zeros((nets, 3, K + 3, K + 3))
    size = np.sqrt(run.grid[0, 1] ** 2 * S + run.grid[0, 2] ** 2)
    cov[:, :, :2, :2] = size[:, None, None] ** 2 * np.outer(run.entry[:, 0], run.entry[:, 0])
    for i in range(N):
        q = alpha[i] ** 2 * S + sigma[i] ** 2
        own = np.sqrt(cov[:, :, 1, 1])  # the error's slope is in proportion to the state's own deviation
        push = np.zeros((nets, 3, K + 3, K + 3))
        push[:, :, 0, 0] = push[:, :, 1, 1] = 1
        push[:, :, range(3, K + 2), range(2, K + 1)] = 1
        push[:, :, 2, 1] = (run.d[i, 0] * alpha[i] * S + run.d[i, 1] * sigma[i]) / q + unit[i] * slope[:, :, i, 0] / own
        mean = (push @ mean[..., None])[..., 0]
        mean[:, :, 2] += unit[i] * constant[:, :, i, 0]
        cov = push @ cov @ push.swapaxes(-1, -2)
        cov[:, :, -1, -1] = 1  # fresh noise
        push = np.zeros((K + 3, K + 3))
        push[:2] = run.weights[i]
        push[range(2, K + 2), range(2, K + 2)] = 1
        mean, cov = (push @ mean[..., None])[..., 0], push @ cov @ push.T
    return mean[..., 1], np.sqrt(cov[:, :, 1, 1])


@pytest.mark.parametrize(("path", "predicts"), KINDS)
@pytest.mark.parametrize("solver", ["ddim(eta=1)", "designed-sde(tau=0.5)", "unipc-2"])
def test_the_law_of_the_ends_is_as_far_from_the_data_as_expected(path, predicts, solver):
    """What the errors of 3000 networks, whose moments are followed exactly, add to the squared distance."""
    where, delta = ds.paths.named(path), 0.003
    run = ds.plan(path, solver, nfe=6, predicts=predicts, grid="uniform-lambda")
    mean, deviation = moments(run, where, predicts, delta, 3000)
    _, right = moments(run, where, predicts, 0.0, 1)
    added = float((mean**2 + (deviation - right) ** 2).mean())
    bias, expected = (run.expected_frechet(SPECTRUM, d, predicts=predicts, path=path) for d in (0.0, delta))
    assert bias == pytest.approx(math.sqrt(((right - np.sqrt(SPECTRUM)) ** 2).mean()), rel=1e-9)
    assert added == pytest.approx(expected**2 - bias**2, rel=0.06)


def test_a_stochastic_run_has_amplifications_of_its_mean():
    assert ds.plan("condot", "ddim(eta=1)", nfe=3).amplification(predicts="denoised").shape == (3,)
