"""Adaptive steps of an SDE: its law, its path, and that samples do not see each other."""

import math
import warnings

import numpy as np
import pytest
import torch

import diffsolve as ds
from diffsolve import paths
from diffsolve.adaptive import Status
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture

GAUSS = GaussianMixture.isotropic(torch.full((1, 1), 0.7, dtype=torch.float64), 0.4)
TWO = GaussianMixture.isotropic(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.4)


def solver(rtol, **options):
    return ds.AdaptiveSDE(rtol=rtol, atol=rtol, **options)


TAUS = [("edm", 1.0), ("condot", 0.5), ("ddpm(zero_terminal_snr=True)", 0.7)]


@pytest.mark.slow
@pytest.mark.product({"path, tau": TAUS}, some={"path, tau": TAUS[1:2]})
def test_the_law_is_unbiased_though_steps_are_rejected(path, tau):
    """Mean and variance of a Gaussian, by their standard errors and what the tolerance leaves."""
    model = mixture_model(GAUSS, path, "v" if "ddpm" in path else "velocity" if path == "condot" else "denoised")
    run = ds.solve(model, (1000, 1), solver=solver(0.005, tau=tau), seed=1, dtype=torch.float64)
    assert run.done
    n = len(run.x)
    mean, variance = float(run.x.mean()), float(run.x.var())
    assert abs(mean - 0.7) < 4 * 0.4 / math.sqrt(n) + 0.004
    assert abs(variance - 0.16) < 4 * 0.16 * math.sqrt(2 / n) + 0.008
    assert run.nfe.min() < run.nfe.max()  # each at its own steps


@pytest.mark.slow
@pytest.mark.product({"path": ["edm", "vp"]}, some={"path": ["vp"]})
def test_it_converges_along_the_path_that_fixed_steps_follow(path):
    model = mixture_model(TWO, path, "denoised")
    start, stop = {"edm": (5.0, 0.2), "vp": (0.7, 0.12)}[path]
    x = float(model.path.sigma(start)) * torch.randn(
        12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    w = ds.Brownian((12, 2), seed=3, dtype=torch.float64)
    where = {"start": start, "stop": stop, "brownian": w}
    exact = ds.sample(model, noise=x, solver="sa-2", steps=256, grid="uniform-lambda", **where)
    runs = [ds.solve(model, noise=x, solver=solver(rtol), **where) for rtol in (3e-2, 3e-3, 6e-4)]
    off = [float((run.x - exact).norm(dim=-1).median()) for run in runs]
    assert off[1] < off[0] / 2
    assert off[2] < off[1] / 1.5
    assert off[2] < 0.03
    assert runs[2].nfe.mean() > 2 * runs[0].nfe.mean()
    assert (runs[2].t == stop).all()


def test_the_steps_it_took_by_hand():
    """Tolerances that nothing violates: steps of 1/8, 1/8, 1/4, 1/2 of the range, against the formulas written out."""
    path = paths.EDM()
    called = []

    def net(x, t):
        called.append(float(t[0]))
        return torch.tanh(x) * 0.9

    model = ds.adapt(net, path, "denoised")
    x = 5 * torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = ds.Brownian((1, 3), seed=0, dtype=torch.float64)
    tau = 0.8
    found = ds.sample(model, noise=x, solver=ds.AdaptiveSDE(tau, rtol=0.9, atol=0.9), start=5.0, stop=0.5, brownian=w)
    lam = np.log(1 / 5.0) + np.log(10.0) * np.array([0, 1 / 8, 1 / 4, 1 / 2, 1])
    sigma = np.exp(-lam)
    np.testing.assert_allclose(called, sigma, rtol=1e-12)
    D = torch.tanh(x) * 0.9
    for s, t in zip(sigma, sigma[1:], strict=False):
        h = math.log(s / t)
        a, full = tau**2 * h, (1 + tau**2) * h
        q, r = s ** (-2 * tau**2), t ** (-2 * tau**2)
        base = t / s * math.exp(-a) * x + t * math.sqrt(1 - math.exp(-2 * a)) * w(q, r) / math.sqrt(r - q)
        gain = 1 - math.exp(-full)
        new = torch.tanh(base + gain * D) * 0.9
        share = 1 - gain / full  # of the integral that the slope of D has: int full e^{-full (1 - u)} u du
        x = base + gain * D + share * (new - D)
        D = new
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
def test_a_hard_sample_costs_the_others_nothing():
    """Elementwise network, one sample stiff: the others' values and calls are those that they have alone."""

    def net(x, t, hard):
        return torch.sin(x * (1 + 10 * hard))

    model = ds.adapt(net, "edm", "denoised")
    hard = torch.zeros(7, 1)
    hard[3] = 1.0
    run = ds.solve(model, (7, 5), solver=solver(0.02), seed=4, cond={"hard": hard})
    for i in (0, 3, 6):
        alone = ds.solve(model, (1, 5), solver=solver(0.02), seed=4, index=i, cond={"hard": hard[i : i + 1]})
        assert torch.equal(alone.x[0], run.x[i])
        assert alone.nfe[0] == run.nfe[i]
    assert run.nfe[3] > run.nfe[0]
    assert run.done


def test_statuses():
    model = ds.adapt(lambda x, t: torch.where(t[:, None] < 1.0, torch.nan, 0.5) * torch.tanh(x), "edm", "denoised")
    with pytest.warns(RuntimeWarning, match="step too small"):
        run = ds.solve(model, (2, 3), solver=solver(0.1), seed=0)
    assert run.status == (Status.STEP_TOO_SMALL,) * 2
    assert (run.t >= 1.0).all()
    assert run.x.isfinite().all()
    good = ds.adapt(lambda x, t: torch.tanh(x), "edm", "denoised")
    with pytest.warns(RuntimeWarning, match="budget spent"):
        run = ds.solve(good, (2, 3), solver=solver(1e-3, max_nfe=9), seed=0)
    assert run.nfe.max() <= 9
    shares = np.log2(run.h / math.log(80 / 0.002))  # of the range in lambda, by halves
    assert (shares < 0).all()
    np.testing.assert_allclose(shares, shares.round(), atol=1e-9)
    with pytest.warns(RuntimeWarning, match="non finite"):
        run = ds.solve(ds.adapt(lambda x, t: x * torch.nan, "edm", "denoised"), (2, 3), solver=solver(0.1), seed=0)
    assert run.status == (Status.NON_FINITE,) * 2


def test_images_guidance_and_float32():
    net = lambda x, t, y=0.0: torch.tanh(x) * (0.5 + y)  # noqa: E731
    flow = ds.adapt(net, "condot", "velocity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = ds.solve(flow, (2, 3, 4, 4), solver=solver(0.05), seed=0, cond={"y": 0.2}, guidance=2.0)
    assert run.x.shape == (2, 3, 4, 4)
    assert run.x.dtype == torch.float32
    assert run.seed == 0
    assert torch.equal(ds.sample(flow, (2, 3, 4, 4), solver=solver(0.05), seed=0, cond={"y": 0.2}, guidance=2.0), run.x)
    assert not torch.equal(ds.sample(flow, (2, 3, 4, 4), solver=solver(0.05), seed=0, cond={"y": 0.2}), run.x)


@pytest.mark.parametrize(("call", "says"), [
    (lambda m: ds.AdaptiveSDE(tau=0.0), "ds.Adaptive solves the probability flow"),
    (lambda m: ds.AdaptiveSDE(rtol=1.0), "rtol must be .*, got 1.0"),
    (lambda m: ds.AdaptiveSDE(rtol=0.0, atol=0.0), "rtol or atol must be positive"),
    (lambda m: ds.AdaptiveSDE(max_nfe=2), "max_nfe must be an integer >= 3, got 2"),
    (lambda m: ds.solve(m, (1, 2), solver=solver(0.1), steps=3), "steps=3 cannot be given"),
    (lambda m: ds.solve(m, (1, 2), solver=solver(0.1), log_prob="model"), "solver must be"),
    (
        lambda m: ds.solve(m, noise=torch.zeros(1, 2), solver=solver(0.1), start=1.0, stop=2.0),
        "from the noise to the data only",
    ),
])  # fmt: skip
def test_errors_name_what_is_wrong(call, says):
    with pytest.raises(ValueError, match=says):
        call(ds.adapt(lambda x, t: x, "edm", "denoised"))
