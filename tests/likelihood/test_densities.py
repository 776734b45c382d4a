"""Log-densities: budgets of network calls, error bars that hold, every solver by name, tableaux."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.densities import PREDICTS, TIGHT, normal, truth

import diffsolve as ds
from diffsolve.likelihood import Density, traces
from diffsolve.likelihood.products import push
from diffsolve.noise import Key
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import random_means, ring

GRID = "angle(scale=1.4, power=1.75)"


def fixed(model, x, solver, calls, **options):
    """So many calls in all: one of them is for the extrapolation to the data, where that is made."""
    nfe = calls - (model.path.t_last != model.path.t_data)
    return ds.log_prob(model, x, solver=solver, nfe=nfe, grid=GRID, **options)


@pytest.mark.product({"path": list(PREDICTS)}, some={"path": ["condot"]})
@pytest.mark.slow
def test_1e_5_nats_where_no_sample_has_more_than_130_calls(path):
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    x = mixture.sample(64, seed=0)
    found = fixed(model, x, "abm-5(frame='trig')", 130, trace="exact")
    assert found.nfe.max() <= 130
    assert (found.value - truth(mixture, model.path, x)).abs().mean() < 1e-5


def torchdiffeq_curve(model, x, expected, tolerances, to_data=True):
    """(calls, error) of its dopri5 on the native clock with the exact divergence.

    It begins at the last time with alpha x; `to_data` gives it our extrapolation from there, and a call for that.
    """
    from torchdiffeq import odeint

    path, dim, calls = model.path, x.shape[1], [0]
    ode, eye = model.as_ode(), torch.eye(dim, dtype=torch.float64)

    def field(t, state):
        calls[0] += 1
        out, pushed = push(lambda y: ode(t, y), state[0], eye[:, None].expand(dim, *x.shape))
        return out.clone(), pushed.diagonal(dim1=0, dim2=2).sum(1).contiguous()

    alpha, extra = float(path.alpha(path.t_last)), int(to_data and path.t_last != path.t_data)
    start, known = alpha * x, dim * math.log(alpha)
    if extra:
        noise, half = Density.of(model, start, "rk4", "exact", Key(0), None, None).at_end(start, path.t_last)
        known = known + half[:, 0] - noise.square().sum(1) / 2
    times, curve = torch.tensor([path.t_last, path.t_noise], dtype=torch.float64), []
    for tol in tolerances:
        calls[0] = extra
        end, growth = (part[-1] for part in odeint(field, (start, 0 * x[:, 0]), times, rtol=tol, atol=tol))
        value = normal(end, path.prior_std()) + growth + known
        curve.append((calls[0], (value - expected).abs().mean().item()))
    return curve


def needed(curve, error):
    """The calls at which the curve has that error, in the logarithms of both; it must be on the curve."""
    for (n0, e0), (n1, e1) in itertools.pairwise(curve):
        if e1 <= error <= e0:
            return math.exp(np.interp(-math.log(error), [-math.log(e0), -math.log(e1)], [math.log(n0), math.log(n1)]))
    raise AssertionError(f"{error} is not on {curve}")


EQUAL = [("condot", 60, 0.6), ("edm", 60, 0.45), ("vp", 60, 0.7)]


@pytest.mark.slow
@pytest.mark.product({"path, calls, most": EQUAL}, some={"path, calls, most": EQUAL[1:2]})
def test_calls_against_torchdiffeq_at_equal_error(path, calls, most):
    """In calls of the batch one after another, which all samples here have."""
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    x = mixture.sample(64, seed=1)
    expected = truth(mixture, model.path, x)
    tolerances = (1e-4, 1e-5) if path == "vp" else (1e-5, 1e-6)  # on both sides of that error
    found = fixed(model, x, "abm-4(frame='trig')", calls)
    assert found.nfe.max() <= calls
    error = (found.value - expected).abs().mean().item()
    assert calls <= most * needed(torchdiffeq_curve(model, x, expected, tolerances), error)


@pytest.mark.slow
@pytest.mark.product({"path": ["edm", "vp"]}, some={"path": ["vp"]})
def test_half_the_calls_of_torchdiffeq_as_it_stands(path):
    """At the tolerance of the usual recipe, 1e-5, and on vp with no more error than that."""
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    x = torch.cat([mixture.sample(64, seed=seed) for seed in range(4)])
    expected = truth(mixture, model.path, x)
    ((calls, error),) = torchdiffeq_curve(model, x, expected, (1e-5,), to_data=False)
    found = fixed(model, x, "abm-4(frame='trig')", 50 if path == "vp" else 70)
    assert found.nfe.max() <= 0.45 * calls
    assert (found.value - expected).abs().mean() < error


@pytest.mark.slow
@pytest.mark.parametrize("path", PREDICTS)
def test_three_standard_errors_hold_the_truth_with_128_probes(path):
    """Where Jacobians are a multiple of the identity and a few directions, which skews Hutchinson's estimate.

    Against the exact trace on the same few calls: many bars are shorter than the error of any solver.
    """
    mixture = random_means(64)
    model = mixture_model(mixture, path, PREDICTS[path])
    x = mixture.sample(512, seed=0)
    exact = fixed(model, x, "abm-3(frame='trig')", 12, trace="exact")
    inside = []
    for seed in range(4):
        found = fixed(model, x, "abm-3(frame='trig')", 12, trace="hutchinson(probes=128)", seed=seed)
        off = (found.value - exact.value).abs()
        inside.append((off < 3 * found.stderr + 1e-9).double().mean().item())
    assert np.mean(inside) >= 0.99


@pytest.mark.slow
def test_more_probes_hold_more_of_the_truth():
    """The same in short: from the exact trace on the same few calls an estimate differs by its probes."""
    mixture = random_means(64)
    model = mixture_model(mixture, "vp", "v")
    x = mixture.sample(128, seed=0)
    exact = fixed(model, x, "abm-3(frame='trig')", 12, trace="exact")
    inside, bars = {}, {}
    for probes in (8, 128):
        found = fixed(model, x, "abm-3(frame='trig')", 12, trace=f"hutchinson(probes={probes})", seed=2)
        inside[probes] = ((found.value - exact.value).abs() < 3 * found.stderr).double().mean()
        bars[probes] = found.stderr.square().mean().sqrt()
    assert inside[128] >= 0.98 > 0.96 > inside[8] > 0.88
    assert bars[8] / bars[128] == pytest.approx(4, rel=0.15)


def test_deflated_is_unbiased_and_exact_on_a_few_directions():
    g = torch.Generator().manual_seed(0)
    few = torch.randn(3, 20, generator=g, dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    low = 3 * torch.eye(20, dtype=torch.float64) + few.T @ (signs[:, None] * few)
    x = torch.zeros(2000, 20, dtype=torch.float64)
    whole = torch.randn(20, 20, generator=g, dtype=torch.float64)
    steep = low + 0.05 * whole  # outliers over a bulk, not symmetric
    for a, probes in ((low, 12), (whole, 8), (steep, 8), (steep, 12)):
        trace = traces.named(f"deflated(probes={probes})")
        out, found = trace(lambda x, a=a: x @ a.T, x, trace.directions(x.shape, Key(3), x))
        assert found.shape == (2000, probes)
        mean = found.mean(1) - a.trace()
        if a is low:
            assert mean.abs().max() < 1e-6
            continue
        assert abs(mean.mean()) < 4 * mean.std() / math.sqrt(2000)
        plain = traces.Hutchinson(probes)
        _, other = plain(lambda x, a=a: x @ a.T, x, plain.directions(x.shape, Key(3), x))
        spread = (other.mean(1) - a.trace()).std()
        assert mean.std() < (1.1 if a is whole else 0.5) * spread
        if a is whole:
            assert trace.stderr(found, 20).mean() == pytest.approx(float(mean.std()), rel=0.1)
    assert out.shape == x.shape


def test_deflated_with_few_numbers():
    """Directions that depend on each other, up to as many as there are numbers, are no trouble."""
    trace = traces.Deflated(4)
    x = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, found = trace(lambda x: 3 * x, x, trace.directions(x.shape, Key(0), x))
    assert found.isfinite().all()
    assert trace(lambda x: 0 * x, x, trace.directions(x.shape, Key(0), x))[1].abs().max() == 0
    with pytest.raises(ValueError, match="probes must be at most 3 for 3 numbers a sample, got 4"):
        trace.directions(torch.Size([5, 3]), Key(0), x)


@pytest.mark.slow
def test_deflated_along_a_path():
    mixture = random_means(64)
    model = mixture_model(mixture, "vp", "v")
    x = mixture.sample(16, seed=0)
    exact, plain, deflated = (
        fixed(model, x, "abm-4(frame='trig')", 30, trace=trace)
        for trace in ("exact", "hutchinson(probes=16)", "deflated(probes=16)")
    )
    assert (deflated.value - exact.value).abs().max() < 1e-3
    assert (plain.value - exact.value).abs().max() > 0.1
    np.testing.assert_array_equal(deflated.jvps, 16 * deflated.nfe)


def deterministic():
    return [name for name in ds.solvers.names() if not ds.plan("vp", name, steps=4).stochastic]


SOME = ["deis-3", "unipc-3", "pndm", "tab-1", "dpm-3s"]


@pytest.mark.product({"path": list(PREDICTS), "solver": deterministic()}, some={"solver": SOME})
def test_every_deterministic_solver_on_every_path(path, solver, mixture):
    """The error falls with the steps, and is small, in frames that are singular at the data or at the noise too."""
    model = mixture_model(mixture, path, "v")
    x = mixture.sample(4, seed=3)
    expected = truth(mixture, model.path, x)
    coarse, fine = (
        (ds.log_prob(model, x, solver=solver, steps=steps, grid="angle").value - expected).abs().mean()
        for steps in (16, 32)
    )
    if solver.startswith(("rhoab", "tab")):  # polynomials in rho or t, on whose even steps they are at home
        assert fine < 0.8 * coarse
    else:
        assert fine < 0.15
        assert fine < coarse or fine < 2e-6


@pytest.mark.product(
    {"path": list(PREDICTS), "solver": ["dpmpp-2m", "rk4", "unipc-3"]}, some={"path": ["vp"], "solver": ["unipc-3"]}
)
def test_a_tableau_gives_samples_and_their_densities(path, solver, mixture):
    model = mixture_model(mixture, path, PREDICTS[path])
    tableau = ds.plan(model, solver, steps=60, grid="angle")
    run = ds.solve(model, (5, 2), solver=tableau, seed=0, dtype=torch.float64, log_prob="model")
    plain = ds.solve(model, (5, 2), solver=tableau, seed=0, dtype=torch.float64)
    torch.testing.assert_close(run.x, plain.x, rtol=1e-9, atol=1e-9)
    there = ds.log_prob(model, run.x, solver=TIGHT)
    assert (run.log_prob.value - there.value).abs().max() < (1e-4 if solver == "rk4" else 0.1)
    assert run.log_prob.nfe.max() == plain.nfe


def test_a_tableau_that_stops_short_gives_the_density_there(mixture):
    model = mixture_model(mixture, "edm", "denoised")
    tableau = ds.plan(model, "rk4", steps=40, grid="angle", stop=0.5)
    run = ds.solve(model, (5, 2), solver=tableau, seed=0, dtype=torch.float64, log_prob="model")
    assert run.log_prob.stop == 0.5
    end = mixture.flow(run.x, (1.0, 0.5), (1.0, 80.0))
    expected = mixture.log_prob(run.x, 1.0, 0.5) - mixture.log_prob(end, 1.0, 80.0) + normal(end, 80.0)
    assert (run.log_prob.value - expected).abs().max() < 1e-4


def test_grids_that_miss_the_noise_end_are_refused(mixture):
    model = mixture_model(mixture, "vp", "v")
    x = mixture.sample(2, seed=0)
    with pytest.raises(ValueError, match=r"grid must end at the noise end t=.*, got t=0.5"):
        ds.log_prob(model, x, solver="rk4", grid=[0.001, 0.1, 0.5])
    with pytest.raises(ValueError, match=r"grid must begin at the noise end t=.*, got t=0.5"):
        ds.solve(model, noise=x, solver=ds.plan(model, "rk4", grid=[0.5, 0.1]), log_prob="model")
    with pytest.raises(ValueError, match="is singular at the data"):
        ds.log_prob(mixture_model(mixture), x, solver="deis-2", grid=[1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="steps=3 cannot be given with a tableau as solver"):
        ds.solve(model, noise=x, solver=ds.plan(model, "rk4", steps=3), steps=3, log_prob="model")


def test_the_adjoint_refuses_a_frame_that_is_singular_at_the_noise_end(mixture):
    with pytest.raises(ValueError, match="singular at an end"):
        ds.solve(
            mixture_model(mixture),
            noise=torch.randn(2, 2).requires_grad_(),
            solver="deis-2",
            steps=4,
            gradient="adjoint",
        )
