"""Log-densities against closed forms: every path, trace, rank and dtype, and what they say of their own error."""

import math
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from support.densities import PREDICTS, TIGHT, normal, truth

import diffsolve as ds
from diffsolve.adaptive import Adaptive, Status
from diffsolve.likelihood import traces
from diffsolve.likelihood.products import push
from diffsolve.noise import Key
from diffsolve.reference import imperfect_model, mixture_model
from diffsolve.reference.mixture import GaussianMixture, anisotropic, random_means, ring
from diffsolve.tableau.augmented import augmented


@pytest.mark.product({"path": list(PREDICTS)}, some={"path": ["edm"]})
def test_exact_trace_to_1e_5_nats_in_130_calls(path):
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    x = mixture.sample(64, seed=0)
    found = ds.log_prob(model, x, solver=Adaptive("dopri5", rtol=2e-6, atol=2e-6), trace="exact")
    assert (found.value - truth(mixture, model.path, x)).abs().mean() < 1e-5
    assert found.nfe.mean() <= 130
    np.testing.assert_array_equal(found.jvps, 2 * found.nfe)
    assert (found.stderr == 0).all()
    assert found.solver_error.max() < 1e-3
    assert found.status == (Status.DONE,) * 64
    assert found.value.dtype == torch.float64


@pytest.mark.slow
def test_the_density_is_the_mixtures_where_the_noise_end_is_far_enough():
    mixture = ring()
    x = mixture.sample(16, seed=1)
    for path, predicts in (("condot", "velocity"), ("edm(sigma_max=2e4)", "denoised"), ("vp(beta_max=50.0)", "v")):
        found = ds.log_prob(mixture_model(mixture, path, predicts), x, solver=Adaptive("dopri8", rtol=1e-5, atol=1e-5))
        assert (found.value - mixture.log_prob(x)).abs().max() < 1e-4


def test_the_integral_over_the_plane_is_one():
    model = mixture_model(ring(4, 1.5, 0.5), "vp", "v")
    axis = torch.linspace(-4.5, 4.5, 46, dtype=torch.float64)
    for solver in (Adaptive(rtol=1e-4, atol=1e-4), "ab-4"):
        steps = {} if isinstance(solver, Adaptive) else {"steps": 40, "grid": "angle"}
        found = ds.log_prob(model, torch.cartesian_prod(axis, axis), solver=solver, **steps)
        assert found.value.exp().sum().item() * 0.2**2 == pytest.approx(1, abs=1e-3)


@pytest.mark.product(
    {"frame": ["trig", "straight", "noise", "lambda", "native", "denoised"], "path": list(PREDICTS)},
    some={"frame": ["trig", "noise"]},
)
def test_every_frame(path, frame, mixture):
    model = mixture_model(mixture, path, "v")
    x = mixture.sample(4, seed=0)
    found = ds.log_prob(model, x, solver=Adaptive("dopri8", rtol=1e-6, atol=1e-6, frame=frame))
    rough = path == "condot" and frame in ("noise", "lambda", "denoised")  # one first-order step off the noise end
    assert (found.value - truth(mixture, model.path, x)).abs().max() < (2e-3 if rough else 1e-4)


@pytest.mark.product(
    {
        "solver": ["rk4", "unipc-2", "deis-2", "dpmpp-2m", "res-3s", "heun(frame='trig')"],
        "path": list(PREDICTS),
    },
    some={"solver": ["rk4", "unipc-2", "heun(frame='trig')"]},
)
def test_any_fixed_solver_converges_to_the_truth(path, solver, mixture):
    model = mixture_model(mixture, path, "v")
    x = mixture.sample(6, seed=3)
    expected = truth(mixture, model.path, x)
    errors = []
    for steps in (16, 48) if solver == "dpmpp-2m" else (12, 24):
        found = ds.log_prob(model, x, solver=solver, steps=steps, grid="angle")
        errors.append((found.value - expected).abs().mean())
    assert errors[1] < errors[0] / 2 or errors[1] < 1e-4
    if path == "condot" and solver in ("unipc-2", "deis-2", "dpmpp-2m", "res-3s"):
        return  # singular at the data: it begins a little before
    # The state is that of an ordinary run.
    torch.testing.assert_close(
        found.latent, ds.encode(model, x, solver=solver, steps=steps, grid="angle"), rtol=1e-9, atol=1e-9
    )


@pytest.mark.slow
def test_any_rank():
    mixture = anisotropic(8)
    model = mixture_model(mixture, "condot", "velocity")
    x = mixture.sample(3, seed=0)
    found = ds.log_prob(model, x.view(3, 2, 2, 2), solver=TIGHT)
    assert (found.value - truth(mixture, model.path, x)).abs().max() < 1e-4
    assert found.latent.shape == (3, 2, 2, 2)


@pytest.mark.parametrize("chunk", [1, 5, 12, 100])
def test_chunks_bound_the_directions_of_a_pass_and_change_nothing(chunk):
    mixture = anisotropic(12)
    seen = []

    def net(x, t):
        return mixture_model(mixture, "condot", "v").net(x, t)

    model = ds.adapt(net, "condot", "v")
    x = mixture.sample(2, seed=0)

    def watched(net, x, directions, mode):
        seen.append(len(directions))
        return push(net, x, directions, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traces, "push", watched)
        found = ds.log_prob(model, x, trace=traces.Exact(chunk=chunk), solver="heun", steps=3)
    whole = ds.log_prob(model, x, solver="heun", steps=3)
    torch.testing.assert_close(found.value, whole.value, rtol=1e-10, atol=1e-10)
    assert max(seen) == min(chunk, 12)


@pytest.mark.slow
def test_half_the_numbers_in_float32():
    mixture = ring()
    for path in PREDICTS:
        model = mixture_model(mixture, path, PREDICTS[path])
        x = mixture.sample(32, seed=0)
        found = ds.log_prob(model, x.float())
        assert found.latent.dtype == torch.float32
        assert (found.value - truth(mixture, model.path, x)).abs().mean() < 2e-3


def quadratic(dim, seed=0):
    """A linear network and the trace of its matrix."""
    a = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (lambda x: x @ a.T), a


@pytest.mark.parametrize("spec", ["hutchinson(probes=400)", "hutchinson(probes=400, kind='gaussian')",
                                  "hutchinson(probes=400, kind='sphere')"])  # fmt: skip
def test_hutchinson_has_the_mean_and_variance_of_theory(spec):
    net, a = quadratic(6)
    x = torch.zeros(300, 6, dtype=torch.float64)
    trace = traces.named(spec)
    out, found = trace(net, x, trace.directions(x.shape, Key(1), x))
    assert torch.equal(out, net(x))
    s = (a + a.T) / 2
    total, diagonal, n = s.square().sum(), s.diagonal().square().sum(), 6
    variance = {
        "rademacher": 2 * (total - diagonal),
        "gaussian": 2 * total,
        "sphere": 2 * (total - a.trace() ** 2 / n) * n / (n + 2),
    }[trace.kind]
    count = found.numel()
    assert abs(found.mean() - a.trace()) < 5 * math.sqrt(variance / count)
    assert found.var().item() == pytest.approx(float(variance), rel=0.05)


def test_hutch_plus_plus_is_exact_on_low_rank_and_unbiased_elsewhere():
    u = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    trace = traces.HutchPP(probes=12)
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, found = trace(lambda x: x @ u @ u.T, x, trace.directions(x.shape, Key(0), x))
    torch.testing.assert_close(found, (u @ u.T).trace().expand(5, 4), rtol=1e-10, atol=1e-10)
    net, a = quadratic(10)
    x = torch.zeros(4000, 10, dtype=torch.float64)
    _, found = trace(net, x, trace.directions(x.shape, Key(3), x))
    mean = found.mean(1)
    assert abs(mean.mean() - a.trace()) < 5 * mean.std() / math.sqrt(4000)
    plain = traces.Hutchinson(probes=12, kind="gaussian")
    _, other = plain(net, x[:500], plain.directions(x[:500].shape, Key(3), x))
    assert found.shape == (4000, 4)
    assert other.shape == (500, 12)


@pytest.mark.slow
def test_64_numbers_by_hutchinson():
    """The truth inside three standard errors, and error bars that shrink with the root of the probes."""
    mixture = anisotropic(64, 2)
    model = mixture_model(mixture, "vp", "v")
    x = mixture.sample(100, seed=0)
    exact = truth(mixture, model.path, x)
    bars = {}
    for probes in (16, 64):
        found = ds.log_prob(
            model, x, solver=Adaptive(rtol=1e-3, atol=1e-3), trace=f"hutchinson(probes={probes})", seed=1
        )
        bars[probes] = found.stderr.mean()
        off = (found.value - exact).abs() / found.stderr
        assert (off < 3).double().mean() >= 0.99
        assert 0.6 < off.square().mean().sqrt() < 1.4
        np.testing.assert_array_equal(found.jvps, probes * found.nfe)
    assert bars[16] / bars[64] == pytest.approx(2, rel=0.15)
    one = ds.log_prob(model, x[:3], trace="hutchinson(probes=1)", solver="rk4", steps=2)
    assert one.stderr.isnan().all()


def test_probes_follow_their_samples():
    """Frozen along the path, and a function of (seed, sample) alone: a shard gives what the whole batch gives."""
    mixture = random_means(16)
    model = mixture_model(mixture, "condot", "velocity")
    x = mixture.sample(6, seed=0)
    solver = Adaptive(rtol=1e-3, atol=1e-3)
    run = lambda x, **k: ds.log_prob(model, x, solver=solver, trace="hutchinson(probes=4)", **k)  # noqa: E731
    whole = run(x)
    for i in (0, 3):
        part = run(x[i : i + 3], index=i)
        torch.testing.assert_close(part.value, whole.value[i : i + 3], rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(part.nfe, whole.nfe[i : i + 3])
    assert not torch.allclose(run(x, seed=1).value, whole.value)


@pytest.mark.product({"path": list(PREDICTS)}, some={"path": ["vp"]})
@pytest.mark.slow
def test_no_more_calls_than_torchdiffeq_at_equal_error(path):
    """Against dopri5 on the native clock and its exact divergence: as many calls a sample on CondOT, half elsewhere."""
    from torchdiffeq import odeint

    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    p, x = model.path, mixture.sample(16, seed=0)
    expected = truth(mixture, p, x)
    calls, eye = [], torch.eye(2, dtype=torch.float64)
    ode = model.as_ode()

    def field(t, state):
        calls.append(float(t))
        out, pushed = push(lambda y: ode(t, y), state[0], eye[:, None].expand(2, 16, 2))
        return out.clone(), pushed.diagonal(dim1=0, dim2=2).sum(1).contiguous()

    times = torch.tensor([p.t_last, p.t_noise], dtype=torch.float64)
    start = x * float(p.alpha(p.t_last)), torch.zeros(16, dtype=torch.float64)
    end, growth = (part[-1] for part in odeint(field, start, times, rtol=1e-6, atol=1e-6))
    value = normal(end, p.prior_std()) + growth + 2 * math.log(float(p.alpha(p.t_last)))
    error = (value - expected).abs().mean().item()
    for tol in (1e-3, 1e-4, 1e-5, 1e-6):  # the loosest that is as good
        found = ds.log_prob(model, x, solver=Adaptive("dopri5", rtol=tol, atol=tol))
        ours = (found.value - expected).abs().mean().item()
        if ours <= error:
            break
    assert ours <= error
    assert found.nfe.mean() <= len(calls) * (1 if path == "condot" else 0.5), (found.nfe.mean(), len(calls), error)


@pytest.mark.slow
def test_early_stopping_is_the_density_of_noised_data(mixture):
    x = mixture.sample(5, seed=0)
    for path, predicts, stop in (("edm", "denoised", 0.3), ("vp", "noise", 0.1), ("condot", "velocity", 0.8)):
        model = mixture_model(mixture, path, predicts)
        p = model.path
        a, s = float(p.alpha(stop)), float(p.sigma(stop))
        level = float(p.alpha(p.t_noise)), float(p.sigma(p.t_noise))
        end = mixture.flow(a * x, (a, s), level)
        expected = mixture.log_prob(x, 1.0, s / a) - mixture.log_prob(end, *level) + normal(end, p.prior_std())
        found = ds.log_prob(model, x, solver=TIGHT, stop=stop)
        assert (found.value - expected).abs().max() < 1e-5
        assert found.stop == stop
        fixed = ds.log_prob(model, x, solver="rk4", steps=30, grid="angle", stop=stop)
        assert (fixed.value - expected).abs().max() < 1e-3
    assert ds.log_prob(model, x).stop == p.t_data


@pytest.mark.product({"path": list(PREDICTS)}, some={"path": ["condot"]})
@pytest.mark.slow
def test_samples_with_their_densities(path, mixture):
    """In one pass, the same samples as without, and the densities that log_prob finds for them."""
    model = mixture_model(mixture, path, PREDICTS[path])
    for solver, options in ((TIGHT, {}), ("rk4", {"steps": 24, "grid": "angle"})):
        run = ds.solve(model, (6, 2), solver=solver, seed=0, dtype=torch.float64, log_prob="model", **options)
        plain = ds.sample(model, (6, 2), solver=TIGHT, seed=0, dtype=torch.float64)
        rough = 1e-6 if solver is TIGHT else 1e-3
        assert (run.x - plain).abs().max() < rough
        there = ds.log_prob(model, run.x, solver=TIGHT)
        assert (run.log_prob.value - there.value).abs().max() < (3e-5 if solver is TIGHT else 2e-3)
        assert torch.equal(run.log_prob.latent, ds.Key(0).normal((6, 2), dtype=torch.float64) * model.path.prior_std())


def test_conditions_and_guidance(mixture):
    """A condition that shifts the data by a label, and guidance as a mixture of two networks: each against one."""
    inner = mixture_model(mixture, "vp", "noise")

    def net(x, t, label=None):
        alpha = inner.path.alpha(t).to(x).view(-1, 1)
        shift = 0 if label is None else label.view(-1, 1)
        return inner.net(x - alpha * shift, t)

    model = ds.adapt(net, "vp", "noise")
    label = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    x = mixture.sample(3, seed=0)
    found = ds.log_prob(model, x + label[:, None], cond={"label": label}, solver=TIGHT)
    assert (found.value - truth(mixture, inner.path, x)).abs().max() < 2e-2  # the prior is not shifted
    for batched in (False, True):
        zero = {"label": torch.zeros(3, dtype=torch.float64)}
        guided = ds.Guidance(3.0, uncond=zero if batched else {}, batched=batched)
        by_hand = ds.adapt(lambda x, t: net(x, t) + 3 * (net(x, t, label) - net(x, t)), "vp", "noise")
        fixed = {"solver": "rk4", "steps": 4}
        one = ds.log_prob(model, x, cond={"label": label}, guidance=guided, **fixed)
        two = ds.log_prob(by_hand, x, **fixed)
        torch.testing.assert_close(one.value, two.value, rtol=1e-8, atol=1e-8)


def test_gradients():
    """Of the log-density: in the data the score, and by gradcheck in the parameters too."""
    mixture = ring(3, 1.0, 0.5)
    model = mixture_model(mixture, "condot", "velocity")
    x = mixture.sample(4, seed=0).requires_grad_()
    for solver, options in ((Adaptive(rtol=1e-6, atol=1e-6), {}), ("rk4", {"steps": 30, "grid": "angle"})):
        found = ds.log_prob(model, x, solver=solver, gradient=True, **options)
        (score,) = torch.autograd.grad(found.value.sum(), x)
        torch.testing.assert_close(score, mixture.score(x.detach()), rtol=1e-3, atol=1e-3)
    assert not ds.log_prob(model, x).value.requires_grad

    def value(x, weight, trace):
        net = ds.adapt(lambda x, t: torch.tanh(x @ weight) * (1 + t[:, None]), "vp", "v")
        return ds.log_prob(net, x, solver="rk4", steps=2, gradient=True, trace=trace).value

    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for trace in ("exact", "hutchinson(probes=2)"):
        assert torch.autograd.gradcheck(lambda x, w, trace=trace: value(x, w, trace), (x, weight), fast_mode=True)


def test_half_precision_gives_a_warning_and_a_sane_error_bar():
    mixture = random_means(8)
    inner = mixture_model(mixture, "condot", "velocity")
    model = ds.adapt(lambda x, t: inner.net(x, t), "condot", "velocity", dtype=torch.bfloat16)
    x = mixture.sample(16, seed=0)
    with pytest.warns(RuntimeWarning, match=r"computes in torch.bfloat16"):
        found = ds.log_prob(model, x, solver="rk4", steps=12, trace="hutchinson(probes=16)")
    whole = ds.log_prob(inner, x, solver="rk4", steps=12, trace="hutchinson(probes=16)")
    assert found.value.isfinite().all()
    assert 0.5 < (found.stderr / whole.stderr).mean() < 2
    assert (found.value - whole.value).abs().mean() < 1


def test_a_warning_where_the_tolerance_dominates():
    mixture = random_means(16)
    model = mixture_model(mixture, "condot", "velocity")
    x = mixture.sample(4, seed=0)
    with pytest.warns(RuntimeWarning, match="the solver's own error, .* exceeds the error bar"):
        ds.log_prob(model, x, solver=Adaptive("bosh3", rtol=0.5, atol=0.5), trace="hutchinson(probes=64)")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ds.log_prob(model, x, trace="hutchinson(probes=2)")


@pytest.mark.slow
def test_bits_per_dim_of_a_known_density():
    """Data uniform in its bins has log2(levels) bits; wide Gaussians in fine bins have their entropy."""
    mixture = GaussianMixture.isotropic(torch.zeros(1, 2), 0.3)
    model = mixture_model(mixture, "condot", "velocity")
    edges = torch.linspace(-1, 1, 257, dtype=torch.float64)
    n = torch.tensor([[128, 128], [100, 160], [60, 200]])
    cdf = torch.special.ndtr(edges / 0.3)
    exact = -(cdf[n + 1] - cdf[n]).log2().mean(1)
    bits = partial(ds.bits_per_dim, solver=Adaptive(rtol=1e-4, atol=1e-4))
    one = bits(model, n)
    assert (one.value - exact).abs().max() < 0.02
    many = bits(model, n, samples=8)
    assert (many.value - exact).abs().max() < 0.02
    assert (many.nfe > 6 * one.nfe).all()
    narrow = bits(model, n, dequantisation="truncated-normal", spread=5.0)
    assert (narrow.value - exact).abs().max() < 0.02
    tight = bits(model, n, dequantisation="truncated-normal", spread=0.2, samples=8)
    assert (tight.value - exact).abs().max() < 0.5
    shifted = mixture_model(GaussianMixture.isotropic(torch.full((1, 2), 0.5), 0.15), "condot", "velocity")
    assert (bits(shifted, n, data_range=(0.0, 1.0)).value - one.value).abs().max() < 1e-3
    mean, error = one.mean
    assert mean == pytest.approx(float(one.value.mean()))
    assert error == pytest.approx(float(one.value.std()) / math.sqrt(3))


def test_the_unit_of_bits():
    value = ds.LogProb(
        torch.zeros(1), torch.zeros(1), torch.zeros(1, 4), np.ones(1), np.ones(1), np.zeros(1), (), 0.0, 4
    )
    assert value.bits_per_dim() == 7
    assert value.bits_per_dim(1 / 256) == 8


def test_truncated_normal_is_a_density_on_the_bin():
    from diffsolve.likelihood.bits import _place

    n = torch.zeros(20000, 1, dtype=torch.int64)
    for spread in (0.2, 0.3, 3.0):
        u, log_q = _place(Key(0), n, 0, "truncated-normal", spread)
        assert 0 <= u.min() <= u.max() <= 1
        assert (-log_q).exp().mean().item() == pytest.approx(1, abs=0.03)  # the integral of 1 over the bin
        assert u.mean().item() == pytest.approx(0.5, abs=0.01)


def test_units_of_a_tableau():
    """In z = x / u the weights of the state sum to 1, whatever the frames."""
    for spec in ("dpmpp-2m", "rk4", "unipc-3", "dopri8(frame='noise')"):
        rows = augmented(ds.plan("vp", spec, steps=7, stop=0.1))
        np.testing.assert_allclose(rows.weights[:, 1, :2].sum(1), 1, rtol=1e-12)
        np.testing.assert_allclose(rows.weights[:-1, 0, :2].sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda m, x: ds.log_prob(3, x), "got one of type int"),
        (lambda m, x: ds.log_prob(m, x.long()), "x must be a floating tensor of shape"),
        (lambda m, x: ds.log_prob(m, x, trace="exactly"), "got 'exactly'; did you mean 'exact'"),
        (lambda m, x: ds.log_prob(m, x, trace="hutchinson(probes=0)"), "probes must be an integer >= 1, got 0"),
        (lambda m, x: ds.log_prob(m, x, trace="hutch++(probes=4)"), "probes must be a multiple of 3, got 4"),
        (
            lambda m, x: ds.log_prob(m, x, trace="hutchinson(kind='cauchy')"),
            "kind must be 'rademacher', 'gaussian' or 'sphere', got 'cauchy'",
        ),
        (
            lambda m, x: ds.log_prob(m, x, stop=-1.0),
            "where the network gives the data and the noise, got -1.0",
        ),
        (lambda m, x: ds.log_prob(m, x, steps=3), "steps=3 cannot be given with an adaptive solver"),
        (lambda m, x: ds.log_prob(m, x, solver="ddim(eta=1.0)", steps=3), "eta=1.0"),
        (lambda m, x: ds.solve(m, (1, 2), log_prob="sde"), "log_prob must be False, True or 'model', got 'sde'"),
        (lambda m, x: ds.solve(m, (1, 2), log_prob="model", start=0.5), "start=0.5 cannot be given"),
        (lambda m, x: ds.bits_per_dim(m, x), "n must be a tensor of integers, got Tensor"),
        (
            lambda m, x: ds.bits_per_dim(m, 300 * torch.ones(1, 2).long()),
            "n must be from 0 to levels - 1 = 255, got (300, 300)",
        ),
        (
            lambda m, x: ds.bits_per_dim(m, torch.ones(1, 2).long(), dequantisation="none"),
            "dequantisation must be 'uniform' or 'truncated-normal', got 'none'",
        ),
        (
            lambda m, x: ds.bits_per_dim(m, torch.ones(1, 2).long(), data_range=(1.0, 0.0)),
            "data_range must be two numbers, low < high, got (1.0, 0.0)",
        ),
    ],
)
def test_errors_name_what_is_wrong(make, says, mixture):
    import re

    with pytest.raises((ValueError, TypeError), match=re.escape(says)):
        make(mixture_model(mixture), mixture.sample(2, seed=0))


@pytest.mark.product({"path": list(PREDICTS)}, some={"path": ["edm"]})
def test_the_solver_error_has_that_of_the_latent(path):
    """Far from the data the latent is far from 0, and its error is most of what the solver errs by."""
    mixture = ring()
    model = mixture_model(mixture, path, PREDICTS[path])
    x = torch.tensor([[10.0, 0.0], [0.0, -6.0], [4.0, 4.0]], dtype=torch.float64)
    found = ds.log_prob(model, x)
    error = (found.value - ds.log_prob(model, x, solver=Adaptive("dopri8", rtol=1e-7, atol=1e-7)).value).abs().numpy()
    assert error[0] > 1e-3
    assert (error <= found.solver_error).all()
    assert (found.solver_error < 0.3).all()


@pytest.mark.slow
@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_the_solver_error_where_the_flow_turns_within_a_step(delta):
    """Four modes in space, between which the field turns sharply: an estimate at 1e-5, and one that holds at 1e-7."""
    means = 2 * torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = imperfect_model(GaussianMixture.isotropic(means, 0.5), "cosine", "v", delta=delta, seed=1)
    x = torch.tensor([[-0.8, 3.9, 0.5], [3.0, 2.0, -1.0], [0.0, -4.0, 4.0], [6.0, 0.0, 1.0]], dtype=torch.float64)
    truth = ds.log_prob(model, x, solver=Adaptive("dopri8", rtol=1e-10, atol=1e-10)).value
    share = {}
    for tolerance in (1e-5, 1e-7):
        found = ds.log_prob(model, x, solver=Adaptive("dopri5", rtol=tolerance, atol=tolerance))
        share[tolerance] = ((found.value - truth).abs().numpy() / found.solver_error).max()
    assert share[1e-7] < 1
    assert 0.01 < share[1e-5] < 12
