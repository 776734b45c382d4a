"""Langevin chains against their linear recursions and plain loops; MALA leaves its target alone."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import diffsolve as ds
from diffsolve.noise import Key, Stream
from diffsolve.reference import mixture_model
from diffsolve.reference.mixture import GaussianMixture, ring

F64 = torch.float64
LEVELS = [("condot", 0.4), ("edm", 0.7), ("vp", 0.5)]


def gaussian(path, mean=0.0, std=0.6, predicts="velocity"):
    return mixture_model(GaussianMixture.isotropic(torch.tensor([[mean]]), std), path, predicts)


def level(model, t):
    return float(model.path.alpha(t)), float(model.path.sigma(t))


def normal(shape, i, stream=Stream.LANGEVIN, seed=0):
    return Key(seed).normal(shape, row=i, stream=stream, dtype=F64)


# ULA


@pytest.mark.parametrize(("path", "t"), LEVELS)
@pytest.mark.parametrize("step", [0.05, 0.5, 1.5])
def test_the_bias_of_ula_on_a_gaussian(path, t, step):
    """The chain is x' = a x + c z: its stationary variance c^2 / (1 - a^2) is v / (1 - h / 2v)."""
    model = gaussian(path)
    alpha, sigma = level(model, t)
    v, h = (alpha * 0.6) ** 2 + sigma**2, step * sigma**2
    start = torch.tensor([[0.0], [1.0]], dtype=F64)
    x = ds.langevin(model, start, t, steps=1, step=step, seed=Key(0, shared=True)).x
    a, c = float(x[1] - x[0]), float(x[0] / normal((1, 1), 0))
    assert abs(a - (1 - h / v)) < 1e-9
    assert abs(c - math.sqrt(2 * h)) < 1e-9
    assert abs(c**2 / (1 - a**2) - v / (1 - h / (2 * v))) < 1e-9
    end = ds.langevin(model, start, t, steps=7, step=step, seed=Key(0, shared=True)).x[1]
    assert abs(float(end) - (a**7 + sum(a ** (6 - i) * c * float(normal((1, 1), i)) for i in range(7)))) < 1e-8


def test_steps_set_by_the_signal_to_noise_ratio_are_each_samples_own():
    model = mixture_model(ring(), "edm", "score")
    x = 3 * normal((5, 2), 9)
    x[3] *= 100
    found = ds.langevin(model, x, 0.5, steps=3, snr=0.16, seed=0).x
    loop = x.clone()
    for i in range(3):
        z, score = normal((5, 2), i), model.score(loop, 0.5)
        h = 2 * (0.16 * z.norm(dim=1) / score.norm(dim=1)) ** 2
        loop = loop + h[:, None] * score + (2 * h).sqrt()[:, None] * z
    torch.testing.assert_close(found, loop, rtol=1e-9, atol=1e-9)
    alone = ds.langevin(model, x[3:4], 0.5, steps=3, snr=0.16, seed=0, index=3).x
    torch.testing.assert_close(alone, found[3:4], rtol=1e-9, atol=1e-9)


def test_a_score_of_zero_makes_no_step():
    model = gaussian("edm")
    x = torch.zeros(2, 1)
    assert torch.equal(ds.langevin(model, x, 1.0, steps=2, snr=0.1).x, x)


def test_a_seed_drawn_is_kept():
    model = gaussian("edm")
    chain, other = (ds.langevin(model, torch.zeros(2, 1), 1.0, steps=2, step=0.1) for _ in range(2))
    assert not torch.equal(chain.x, other.x)
    assert torch.equal(ds.langevin(model, torch.zeros(2, 1), 1.0, steps=2, step=0.1, seed=chain.key).x, chain.x)
    annealed = ds.annealed_langevin(model, (2, 1), levels=2, steps=2)
    assert torch.equal(ds.annealed_langevin(model, (2, 1), levels=2, steps=2, seed=annealed.key).x, annealed.x)


def test_chains_can_be_cut_in_time_and_in_batch():
    model = mixture_model(ring(), "condot", "noise")
    x, options = normal((6, 2), 5), {"t": 0.5, "step": 0.2, "seed": 4}
    whole = ds.langevin(model, x, steps=8, **options).x
    part = ds.langevin(model, ds.langevin(model, x, steps=5, **options).x, steps=3, first=5, **options).x
    assert torch.equal(whole, part)
    shard = ds.langevin(model, x[2:5], steps=8, index=2, **options).x
    torch.testing.assert_close(shard, whole[2:5], rtol=1e-9, atol=1e-9)
    assert not torch.equal(whole, x)
    before = torch.random.get_rng_state()
    density = lambda y: -(y**2).sum(1)  # noqa: E731
    mala = ds.langevin(model, x, steps=5, log_density=density, **options)
    again = ds.langevin(model, mala.x, steps=3, first=5, log_density=density, **options)
    assert torch.equal(again.x, ds.langevin(model, x, steps=8, log_density=density, **options).x)
    assert (again.nfe, mala.nfe) == (4, 6)
    assert torch.equal(torch.random.get_rng_state(), before)


# MALA


def test_mala_is_the_plain_loop():
    model, mixture = mixture_model(ring(), "edm", "denoised"), ring()
    density = lambda x: mixture.log_prob(x, 1.0, 0.8)  # noqa: E731
    x = mixture.sample(40, seed=0) + 0.8 * normal((40, 2), 77)
    found = ds.langevin(model, x, 0.8, steps=6, step=1.2, log_density=density, seed=0)
    h, loop, taken = 1.2 * 0.64, x.clone(), torch.zeros(40)
    for i in range(6):
        z = normal((40, 2), i)
        y = loop + h * mixture.score(loop, 1.0, 0.8) + math.sqrt(2 * h) * z
        u = torch.special.ndtr(normal((40,), i, Stream.ACCEPT))
        for j in range(40):
            xj, yj = loop[j : j + 1], y[j : j + 1]
            to = -((yj - xj - h * mixture.score(xj, 1.0, 0.8)) ** 2).sum() / (4 * h)
            back = -((xj - yj - h * mixture.score(yj, 1.0, 0.8)) ** 2).sum() / (4 * h)
            if u[j] < torch.exp(density(yj) - density(xj) + back - to):
                loop[j] = yj
                taken[j] += 1
    torch.testing.assert_close(found.x, loop, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.acceptance, taken / 6)
    assert 0.2 < float(found.acceptance.mean()) < 0.95


@pytest.mark.parametrize("error", [0.0, 0.6])
def test_mala_leaves_its_target_invariant(error):
    """From exact samples: the law after 20 steps is the same, also where the score is wrong; that of ULA is not."""
    n, std = 20_000, 0.6
    net = gaussian("edm", std=std, predicts="score")
    model = ds.adapt(lambda x, t: (1 + error) * net.net(x, t), "edm", "score")
    v = std**2 + 0.5**2
    x = math.sqrt(v) * normal((n, 1), 3, seed=8)
    density = lambda x: -(x.flatten() ** 2) / (2 * v)  # noqa: E731
    kept = ds.langevin(model, x, 0.5, steps=20, step=1.5, log_density=density, seed=1)
    assert stats.kstest((kept.x / math.sqrt(v)).flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float(kept.x.var()) / v - 1) < 4.5 * math.sqrt(2 / n)
    assert abs(float((kept.x * x).mean())) < 0.6 * v  # and it moves
    assert 0.3 < float(kept.acceptance.mean()) < 0.99
    biased = ds.langevin(model, x, 0.5, steps=20, step=1.5, seed=1)
    assert biased.acceptance is None
    assert stats.kstest((biased.x / math.sqrt(v)).flatten().numpy(), "norm").pvalue < 1e-3


def test_mala_on_a_mixture():
    mixture = GaussianMixture.isotropic(torch.tensor([[-1.0], [1.2]]), [0.3, 0.6], [1, 2])
    model = mixture_model(mixture, "edm", "score")
    x = mixture.sample(20_000, seed=0) + 0.4 * normal((20_000, 1), 3, seed=8)
    y = ds.langevin(model, x, 0.4, steps=15, step=1.0, log_density=lambda x: mixture.log_prob(x, 1.0, 0.4), seed=2).x
    fresh = mixture.sample(20_000, seed=5) + 0.4 * normal((20_000, 1), 4, seed=9)
    assert stats.ks_2samp(y.flatten().numpy(), fresh.flatten().numpy()).pvalue > 1e-3
    assert abs(float((x - y).abs().mean())) > 0.1


# Annealed


def test_annealed_langevin_is_the_plain_loop():
    model = mixture_model(ring(), "condot", "velocity")
    times = [0.0, 0.3, 0.6, 0.9]
    found = ds.annealed_langevin(model, (5, 2), levels=times, steps=3, step=0.3, seed=6)
    x = Key(6).normal((5, 2))
    for i, t in enumerate(times):
        if i:
            x = x * (t / times[i - 1] if times[i - 1] else (1 - t) / 1.0)
        h = 0.3 * (1 - t) ** 2
        for j in range(3):
            z = Key(6).normal((5, 2), row=3 * i + j, stream=Stream.LANGEVIN)
            x = x + h * model.score(x, t) + math.sqrt(2 * h) * z
    torch.testing.assert_close(found.x, model.denoised(x, 0.9), rtol=1e-4, atol=1e-4)
    assert found.nfe == 13
    shard = ds.annealed_langevin(model, (2, 2), levels=times, steps=3, step=0.3, seed=6, index=2)
    torch.testing.assert_close(shard.x, found.x[2:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", ["ve", "condot", "vp"])
def test_annealed_langevin_samples(path):
    model = mixture_model(ring(), path, "score" if path == "ve" else "velocity")
    x = ds.annealed_langevin(model, (2000, 2), levels=12, steps=20, step=0.2, seed=0).x
    assert (x.norm(dim=1) - 4).abs().mean() < 0.25
    share = torch.histc(torch.atan2(x[:, 1], x[:, 0]).add(torch.pi / 8).remainder(2 * torch.pi), 8, 0, 2 * torch.pi)
    assert (share / 2000 - 1 / 8).abs().max() < 0.05


# Predictor-corrector

PC = ds.Langevin(steps=2, step=0.1)


def test_predictor_corrector_is_the_plain_loop():
    model = mixture_model(ring(), "condot", "velocity")
    x = normal((5, 2), 1, Stream.PRIOR)
    run = ds.solve(model, noise=x, solver="ddim(eta=0.5)", grid="uniform-t", steps=6, corrector=PC, seed=3)
    table, loop = run.tableau, x.clone()
    for i in range(6):
        t = table.calls[i, 0]
        d = model.denoised(loop, t)
        w = table.weights[i, 1]
        z = normal((5, 2), i + 1, Stream.ROW, seed=3)
        loop = (w[0] + w[1]) * loop + w[2] * d + w[-1] * z
        if i < 5:
            t, h = table.grid[i + 1, 0], 0.1 * table.grid[i + 1, 2] ** 2
            for j in range(2):
                z = normal((5, 2), 2 * i + j, seed=3)
                loop = loop + h * model.score(loop, t) + math.sqrt(2 * h) * z
    assert (table.frame[0], run.nfe) == ("denoised", 6 + 10)
    torch.testing.assert_close(run.x, loop, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["ddim", "heun(frame='noise')", "rk4", "dpmpp-2m", "ddim(eta=1)", "euler"])
def test_predictor_corrector_is_cut_in_time_and_in_batch(solver):
    model = mixture_model(ring(), "condot", "velocity")
    options = {"solver": solver, "steps": 5, "corrector": ds.Langevin(snr=0.1, steps=2)}
    run = ds.solve(model, (6, 2), seed=0, trajectory=True, **options)
    assert run.nfe == run.tableau.nfe + 2 * 4
    assert torch.equal(run.trajectory[-1], run.x)
    shard = ds.sample(model, (2, 2), seed=0, index=3, **options)
    torch.testing.assert_close(shard, run.x[3:5], rtol=1e-4, atol=1e-4)
    for stop in (1, 3):
        half = ds.solve(model, (6, 2), seed=0, max_calls=stop, **options)
        rest = ds.solve(model, solver=run.tableau, state=half.state, corrector=options["corrector"])
        assert torch.equal(rest.x, run.x)
        assert half.nfe + rest.nfe == run.nfe
    assert not torch.equal(run.x, ds.sample(model, (6, 2), seed=0, solver=solver, steps=5))


def test_the_corrector_brings_the_variance_of_a_gaussian_back():
    """Euler's variance at a node, pulled to the marginal's by steps with the bias of ULA: the exact recursion."""
    model = gaussian("condot")
    n = 6
    plan = ds.plan(model, "euler", steps=n, grid="uniform-t")
    times = plan.grid[:, 0]
    how = ds.Langevin(steps=4, step=0.3)
    ones = torch.ones(1, 1, dtype=F64)

    def gain(**options):
        """d result / d noise at the start: linear, with the same draws."""
        return float(
            np.subtract(*(float(ds.sample(model, noise=k * ones, solver=plan, seed=1, **options)) for k in (1, 0)))
        )

    factors, pulls, variance, plain = [], [], 1.0, 1.0
    for i in range(n):
        t, h = times[i], times[i + 1] - times[i]
        v = (0.6 * t) ** 2 + (1 - t) ** 2
        factors.append(1 + h * (0.36 * t - (1 - t)) / v)  # of x' = x + h u, u the velocity of a Gaussian
        variance, plain = factors[-1] ** 2 * variance, factors[-1] ** 2 * plain
        if i < n - 1:
            t = times[i + 1]
            v, step = (0.6 * t) ** 2 + (1 - t) ** 2, 0.3 * (1 - t) ** 2
            pulls.append(1 - step / v)
            for _ in range(4):
                variance = pulls[-1] ** 2 * variance + 2 * step
    assert abs(gain() - math.prod(factors)) < 1e-9
    assert abs(gain(corrector=how) - math.prod(factors) * math.prod(pulls) ** 4) < 1e-9
    many = Key(5).normal((40_000, 1), dtype=F64)
    found = ds.sample(model, noise=many, solver=plan, seed=1, corrector=how)
    assert abs(float(found.var()) / variance - 1) < 4.5 * math.sqrt(2 / 40_000)
    assert abs(variance - 0.36) < abs(plain - 0.36)


def test_guidance_and_conditions_reach_the_corrector():
    seen = []

    def net(x, t, shift):
        seen.append((float(t[0]), shift))
        return x * 0 + shift

    model = ds.adapt(net, "condot", "velocity")
    options = {"cond": {"shift": 1.0}, "solver": "euler", "grid": "uniform-t", "steps": 4, "seed": 0}
    run = ds.solve(model, (2, 3), corrector=ds.Langevin(step=0.1), **options)
    assert seen == [(t, 1.0) for t in (0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75)]
    assert run.nfe == 7
    guided = ds.Guidance(2.0, uncond={"shift": 0.0})
    doubled = ds.sample(model, (2, 3), corrector=ds.Langevin(step=0.1), guidance=guided, **options)
    options["cond"] = {"shift": 2.0}
    torch.testing.assert_close(doubled, ds.sample(model, (2, 3), corrector=ds.Langevin(step=0.1), **options))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: ds.Langevin(), ValueError, "exactly one of step and snr must be given, got none"),
        (lambda m: ds.Langevin(step=0.1, snr=0.1), ValueError, "exactly one"),
        (lambda m: ds.Langevin(steps=0, snr=0.1), ValueError, "steps must be an integer >= 1, got 0"),
        (lambda m: ds.Langevin(snr=-1.0), ValueError, "snr must be a finite number > 0, got -1.0"),
        (lambda m: ds.Langevin(step=math.nan), ValueError, "step must be a finite number > 0, got nan"),
        (
            lambda m: ds.langevin(m, torch.ones(2, 2), 1.0, steps=1, step=0.1),
            ValueError,
            "t must be noisier: sigma is 0 there.*got 1.0",
        ),
        (lambda m: ds.langevin(m, torch.ones(2, 2), 1.5, steps=1, step=0.1), ValueError, "t must be from .* got 1.5"),
        (
            lambda m: ds.langevin(m, torch.ones(2, 2), 0.5, steps=1, snr=0.1, log_density=len),
            ValueError,
            "snr must be None with log_density.* got 0.1",
        ),
        (
            lambda m: ds.langevin(m, torch.ones(2, 2), 0.5, steps=1, step=0.1, log_density=lambda x: x),
            ValueError,
            r"log_density returns must be a tensor of shape \(2,\), got Tensor of shape \(2, 2\)",
        ),
        (lambda m: ds.annealed_langevin(m, (2, 2), levels=0), ValueError, "levels must be an integer >= 1, got 0"),
        (lambda m: ds.annealed_langevin(m, (2, 2), levels=[0.5, 0.2]), ValueError, "from the noise to the data"),
        (lambda m: ds.sample(m, (2, 2), steps=4, corrector=0.1), TypeError, "corrector must be a ds.Langevin, got 0.1"),
        (lambda m: ds.sample(m, (2, 2), nfe=4, corrector=PC), ValueError, "nfe=4"),
        (lambda m: ds.sample(m, (2, 2), steps=4, corrector=PC, hook=print), ValueError, "hook"),
        (lambda m: ds.sample(m, (2, 2), steps=4, solver="unipc-3", corrector=PC), ValueError, "two states"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call(ds.load("mixture-2d"))
